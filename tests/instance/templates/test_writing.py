"""What is written as plain Compose means the same app when it is read again, whatever its values are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quazzar.instance.apps.spec import AppSpec, RestartSpec
from quazzar.instance.templates import compose
from quazzar.instance.templates.compose import (
    Template,
    TemplateInvalid,
    check_config,
    import_config,
    parse_compose,
    parse_template,
    with_ports,
)
from quazzar.instance.templates.config import ports_wanted, secret_fields
from quazzar.instance.templates.extension import KEY
from quazzar.instance.templates.fields import MAX_VALUE, config_texts
from quazzar.instance.templates.problems import Problems
from quazzar.instance.templates.rendering import Limits, render
from quazzar.instance.templates.writing import compose_file, extension_block, yaml_text
from quazzar.instance.templates.yaml_nodes import plain, read_yaml
from tests.instance.templates.writing import minimal_config, template_text

FILES = sorted((Path(compose.__file__).parent / "packaged").glob("*.yaml"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


def rendered(template: Template, config: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], AppSpec]:
    full = check_config(template, config)
    full = with_ports(template, full, list(range(41000, 41000 + ports_wanted(template, full))))
    return full, render(template, full, app_id="app_1", project="sample", **options)


def read_again(text: str, env: Mapping[str, str] | None = None) -> AppSpec:
    template = parse_compose(text, name="sample", env=env)
    assert not any(field.type == "port" for field in template.fields), "all ports stand in the file"
    return rendered(template, import_config(template, env or {}))[1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_packaged_template_survives(file: Path) -> None:
    template = parse_template(file.read_bytes())
    config, spec = rendered(template, minimal_config(template))
    text = yaml_text(compose_file(template, config, spec, kept={}))
    assert KEY not in text
    assert read_again(text) == spec
    # Without its secrets it is whole again with them.
    texts, hidden = config_texts(template.fields, config), secret_fields(template) & set(config)
    asking = yaml_text(compose_file(template, config, spec, kept={name: f"${{{name}:?x}}" for name in hidden}))
    assert not [name for name in hidden if texts[name] in asking]
    assert read_again(asking, {name: texts[name] for name in hidden}) == spec
    if used := [name for name in hidden if f"${{{name}:?x}}" in asking]:
        with pytest.raises(TemplateInvalid) as caught:
            read_again(asking)
        assert all(any(name in said for said in caught.value.details.values()) for name in used)
    # With its block it is the template of this app.
    kept = {name: f"${{{name}:-{value}}}" for name, value in texts.items() if name not in hidden}
    document = compose_file(template, config, spec, kept=kept | {name: f"${{{name}:?x}}" for name in hidden})
    written = parse_template(yaml_text({KEY: extension_block(template, config)} | document))
    assert (written.slug, written.version, written.title) == (template.slug, template.version, template.title)
    assert (written.web, written.backup, written.needs) == (template.web, template.backup, template.needs)
    again = rendered(written, {name: config[name] for name in hidden})[1]
    assert again.services == spec.services


FIELDS = """\
    {name: a, type: string, default: one}, {name: empty, type: string, default: ""}, {name: gone, type: string},
    {name: flag, type: boolean, default: true}, {name: number, type: integer, default: 7},
    {name: secret, type: password, default: null}, {name: port, type: port, default: auto}
""".replace(", default: null", "").replace("\n", " ")
BODY = """\
services:
  job:
    image: "busybox:${a}"
    command: ["sh", "-c", "echo $$HOME; exit ${number}"]
    environment:
      - A=${a}
      - a
      - gone
      - "B=${gone:-x${a:+y}}${empty:-z}${a:+-$$}"
      - C=
      - "D=${secret:-none}/${gone-unset}/${empty-unset}/${secret:+there}"
    read_only: "${flag}"
    restart: on-failure:3
  web:
    image: nginx:1.27
    mem_limit: 64m
    deploy: {resources: {limits: {memory: 64m, cpus: "0.5"}, reservations: {memory: 10m}}}
    pids_limit: ${number}
    ports: ["${port}:80", "127.0.0.1:4000-4001:90-91/udp", "[::1]:4002:92"]
    depends_on: {job: {condition: service_completed_successfully, required: "${flag}"}}
    configs: [plain, {source: plain, target: /etc/deep/x, mode: 0440, uid: "5", gid: 6}]
    secrets: [hidden, {source: hidden, target: other, mode: "0400"}]
    volumes: ["data:/data:ro", {type: tmpfs, target: /run/x, tmpfs: {size: 10m}}]
    tmpfs: /tmp:size=1m
    networks: {default: {aliases: ["${a}.local"]}, inner: }
    healthcheck: {test: "wget -q http://127.0.0.1/", interval: 5s, retries: 9}
    labels: [plain, "x=$${a}"]
    user: 1000
    ulimits: {nofile: {soft: 5, hard: 6}}
    stop_grace_period: 1m30s
    init: true
    platform: linux/amd64
    container_name: web_one
volumes: {data: }
networks: {inner: {internal: "${flag}"}}
configs: {plain: {content: "a=${a}\\n#!no\\n  b: $${x}\\n"}}
secrets: {hidden: {content: "${secret}"}}
"""


@pytest.fixture(scope="module")
def template() -> Template:
    return parse_template(template_text(BODY, fields=FIELDS))


@pytest.mark.parametrize("secret", ['it\'s $ecret ${a} \\ "x"', "plain-and-long"])
def test_all_that_a_file_may_say(template: Template, secret: str) -> None:
    config, spec = rendered(template, {"secret": secret}, restart_policy=RestartSpec(policy="always"))
    text = yaml_text(compose_file(template, config, spec, kept={}))
    assert read_again(text) == spec
    assert "secrets:" not in text, "Compose knows inline content of configs only"
    asking = yaml_text(compose_file(template, config, spec, kept={"secret": "${secret:?x}"}))
    assert secret not in asking
    assert read_again(asking, {"secret": secret}) == spec


def test_what_this_platform_was_told_is_in_the_file(template: Template) -> None:
    resources = Limits(memory_bytes=128 << 20, cpus=2, pids=99)
    config, spec = rendered(template, {}, resources=resources, restart_policy=RestartSpec(policy="no"))
    document = compose_file(template, config, spec, kept={}, folders={"web": {"image-web-1": "/var/x"}})
    web = document["services"]["web"]
    assert (web["mem_limit"], web["cpus"], web["pids_limit"], web["restart"]) == (128 << 20, 2, 99, "no")
    assert web["volumes"][-1] == "image-web-1:/var/x"
    assert document["volumes"] == {"data": {}, "image-web-1": {}}
    assert document["name"] == "sample"
    assert web["ports"] == ["41000:80", "127.0.0.1:4000:90/udp", "127.0.0.1:4001:91/udp", "[::1]:4002:92"]


@given(values=st.dictionaries(st.text("ABCdef_", min_size=1, max_size=8), TEXT, max_size=6), comment=st.just(["x"]))
@example(values={"A": "a\nb\x85c", "B": "a\nb\u2028c"}, comment=["x"])
def test_every_string_is_read_as_it_was_written(values: dict[str, str], comment: list[str]) -> None:
    document = {"a": values, "b": list(values.values()), "n": 1, "t": True, "none": None}
    text = yaml_text(document, comment=comment)
    problems = Problems()
    node = read_yaml(text, problems)
    assert node is not None, problems.all()
    assert plain(node) == document


@given(value=TEXT.filter(lambda text: len(text) <= MAX_VALUE))
def test_no_value_changes_the_file(value: str) -> None:
    template = parse_template(
        template_text(
            "services: {a: {image: x, environment: {V: '<${v}>'}, command: [run, '${v}']}}",
            fields="{name: v, type: string}",
        )
    )
    config, spec = rendered(template, {"v": value})
    assert read_again(yaml_text(compose_file(template, config, spec, kept={}))) == spec
    assert msgspec.to_builtins(spec)["services"][0]["environment"] == {"V": f"<{value}>"}
