"""Compose files without a catalogue entry."""

import msgspec
import pytest

from quazzar.core.errors import Invalid
from quazzar.instance.apps.spec import AppSpec, PortSpec
from quazzar.instance.templates.compose import (
    Template,
    TemplateInvalid,
    Web,
    check_config,
    import_config,
    parse_compose,
    ports_wanted,
    secret_fields,
    with_ports,
)
from quazzar.instance.templates.rendering import render
from quazzar.instance.templates.writing import compose_file

BLOG = """\
version: "3.9"
name: anything
services:
  db:
    image: mariadb:${DB_TAG:-11.4}
    container_name: blog_db
    environment:
      MARIADB_ROOT_PASSWORD: ${DB_PASSWORD}
      MARIADB_DATABASE: ${DB_NAME:-blog}
    volumes: [db:/var/lib/mysql]
    restart: always
  blog:
    image: wordpress:6.7
    depends_on: [db]
    ports: ["${PORT:-8080}:80"]
    environment:
      - WORDPRESS_DB_HOST=blog_db
      - WORDPRESS_DB_PASSWORD=${DB_PASSWORD:?set a password}
      - WORDPRESS_DEBUG
volumes:
  db:
"""
ENV = {"DB_PASSWORD": 'it\'s "a"\n$x ${y}', "WORDPRESS_DEBUG": "1", "UNUSED": "u", "not a name": "x"}


def app_of(template: Template, env: dict[str, str]) -> AppSpec:
    config = check_config(template, import_config(template, env))
    config = with_ports(template, config, list(range(41000, 41000 + ports_wanted(template, config))))
    return render(template, config, app_id="app_1", project="blog")


def refused(text: str, env: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(TemplateInvalid) as caught:
        parse_compose(text, name="blog", env=env)
    return caught.value.details


def test_a_file_as_people_have_it() -> None:
    template = parse_compose(BLOG, name="blog", env=ENV)
    assert (template.slug, template.title, template.version) == ("blog", "blog", "0")
    assert [field.name for field in template.fields] == ["DB_TAG", "DB_PASSWORD", "DB_NAME", "PORT", "WORDPRESS_DEBUG"]
    assert secret_fields(template) == {"DB_PASSWORD"}
    assert template.web == Web(service="blog", port=80)
    assert template.backup.volumes == ("db",)
    db, blog = app_of(template, ENV).services
    assert db.image == "mariadb:11.4"
    assert db.environment == {"MARIADB_ROOT_PASSWORD": ENV["DB_PASSWORD"], "MARIADB_DATABASE": "blog"}
    assert db.networks[0].aliases == ("blog_db",)
    assert blog.ports == (PortSpec(container_port=80, host_port=8080),)
    assert blog.environment == {
        "WORDPRESS_DB_HOST": "blog_db",
        "WORDPRESS_DB_PASSWORD": ENV["DB_PASSWORD"],
        "WORDPRESS_DEBUG": "1",
    }


def test_a_name_alone_that_has_no_value_is_not_there() -> None:
    text = """\
services:
  a:
    image: x
    network_mode: bridge
    environment: [GIVEN, MISSING=x, MISSING]
  b: {image: x, environment: {GIVEN: , MISSING: }}
"""
    template = parse_compose(text, name="a", env={"GIVEN": "1"})
    assert [note.partition(" ")[0] for note in template.notes if "has no value" in note] == [
        "services.a.environment.2",
        "services.b.environment.MISSING",
    ]
    spec = app_of(template, {"GIVEN": "1"})
    assert [one.environment for one in spec.services] == [{"GIVEN": "1"}] * 2
    later = check_config(template, {"GIVEN": "1", "MISSING": "2"})
    assert render(template, later, app_id="a", project="a").services[1].environment == {"GIVEN": "1", "MISSING": "2"}
    written = compose_file(template, check_config(template, {"GIVEN": "1"}), spec, kept={})
    assert [one["environment"] for one in written["services"].values()] == [
        ["GIVEN=1", "MISSING=x", "MISSING"],
        {"GIVEN": "1", "MISSING": None},
    ]
    assert "network_mode" not in written["services"]["a"]


def test_a_value_that_compose_would_split_is_told() -> None:
    text = "services: {a: {image: x, command: 'run ${ARGS} \"${ARGS}\" ${MORE:-}'}}"
    template = parse_compose(text, name="a", env={"ARGS": "-v -x"})
    assert [note.partition(",")[0] for note in template.notes] == ["services.a.command has a value with spaces"]
    assert app_of(template, {"ARGS": "-v -x"}).services[0].command == ("run", "-v -x", "-v -x")


def test_values_of_the_environment_are_not_in_the_template() -> None:
    template = parse_compose(BLOG, name="blog", env=ENV | {"DB_PASSWORD": "canary-value"})
    assert b"canary" not in msgspec.json.encode(template)
    assert msgspec.json.decode(msgspec.json.encode(template), type=Template) == template
    assert import_config(template, ENV) == {"DB_PASSWORD": ENV["DB_PASSWORD"], "WORDPRESS_DEBUG": "1"}


def test_values_can_be_changed_later() -> None:
    template = parse_compose(BLOG, name="blog", env=ENV)
    before = check_config(template, import_config(template, ENV))
    after = check_config(template, {"PORT": "9090", "DB_NAME": "other"}, previous=before)
    spec = render(template, after, app_id="app_1", project="blog")
    assert spec.services[1].ports[0].host_port == 9090
    assert spec.services[0].environment["MARIADB_DATABASE"] == "other"
    with pytest.raises(Invalid) as caught:
        render(template, before | {"PORT": "127.0.0.1:80"}, app_id="app_1", project="blog")
    assert caught.value.details == {
        "config.PORT": "Does not fit services.blog.ports.0: ports.0 must have a host port between 1 and 65535"
    }


def test_what_is_missing_in_the_environment() -> None:
    assert refused(BLOG) == {
        "services.db.environment.MARIADB_ROOT_PASSWORD": (
            "${DB_PASSWORD} is not known; give it in env, or write ${NAME:-default} (line 8)"
        ),
        "services.blog.environment.1": "DB_PASSWORD has no value: set a password (line 18)",
    }


@pytest.mark.parametrize(
    ("env", "path"),
    [({"A": "x\x00"}, "env.A"), ({"A": "x" * 40_000}, "env.A"), ({f"A{n}": "" for n in range(1001)}, "env")],
)
def test_an_environment_that_cannot_be_taken(env: dict[str, str], path: str) -> None:
    assert path in refused("services: {a: {image: x}}", env)


def test_a_value_is_checked_where_it_stands() -> None:
    text = "services: {a: {image: '${IMAGE}', volumes: ['${DATA:-./data}:/data']}}"
    details = refused(text, {"IMAGE": "x; id"})
    assert details["services.a.image"].startswith("image must be an image")
    assert details["services.a.volumes.0"].startswith("volumes.0: bind mounts are refused")


def test_open_ports_and_ranges() -> None:
    template = parse_compose('services: {a: {image: x, ports: ["80", "6000-6001:6000-6001", "53/udp"]}}', name="a")
    assert [field.name for field in template.fields] == ["port_a_80", "port_a_53_udp"]
    spec = app_of(template, {})
    assert [(one.host_port, one.container_port) for one in spec.services[0].ports] == [
        (41000, 80), (6000, 6000), (6001, 6001), (41001, 53),
    ]  # fmt: skip


def test_a_field_keeps_its_name_beside_a_variable() -> None:
    template = parse_compose('services: {a: {image: "x:${port_a_80:-1}", ports: ["80"]}}', name="a")
    assert [field.name for field in template.fields] == ["port_a_80", "port_a_80_2"]


def test_an_exported_template_comes_back_with_its_fields() -> None:
    text = """\
x-quazzar:
  title: Mine
  fields:
    - {name: http_port, type: port, default: auto}
    - {name: on_air, type: boolean, default: false}
    - {name: level, type: integer, required: true}
  web: {service: a, port: 81}
services:
  a: {image: x, ports: ["${http_port}:80"], environment: {ON: "${on_air}", LEVEL: "${level}", X: "${X:-y}"}}
"""
    env = {"http_port": "8081", "on_air": "true", "level": "7"}
    template = parse_compose(text, name="mine", env=env)
    assert (template.slug, template.title, template.web) == ("mine", "Mine", Web(service="a", port=81))
    spec = app_of(template, env)
    assert spec.services[0].environment == {"ON": "true", "LEVEL": "7", "X": "y"}
    assert spec.services[0].ports[0].host_port == 8081
    with pytest.raises(Invalid) as caught:
        app_of(template, env | {"level": "high"})
    assert caught.value.details == {"config.level": "Level must be a whole number"}


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("DB_PASSWORD", True),
        ("API_KEY", True),
        ("github_token", True),
        ("DATABASE_URL", True),
        ("PORT", False),
        ("TZ", False),
    ],
)
def test_names_that_sound_like_secrets_are(name: str, *, is_secret: bool) -> None:
    template = parse_compose(
        f"services: {{a: {{image: x, environment: {{A: '${{{name}}}'}}}}}}", name="a", env={name: "v"}
    )
    assert template.fields[0].secret is is_secret


def test_too_many_names() -> None:
    body = ", ".join(f"'${{V{number}:-x}}'" for number in range(201))
    assert "more than 200 names" in refused(f"services: {{a: {{image: x, command: [{body}]}}}}")["services"]


def test_booleans_are_no_names() -> None:
    template = parse_compose("services: {a: {image: x, environment: {DEBUG: false, EMPTY: ''}}}", name="a")
    assert template.fields == ()
    assert app_of(template, {}).services[0].environment == {"DEBUG": "false", "EMPTY": ""}
