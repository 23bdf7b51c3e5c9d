"""From a template and a config to what an engine is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.errors import Invalid
from quazzar.instance.apps.spec import ResourceSpec, RestartSpec
from quazzar.instance.templates.compose import Hook, check_config, parse_template
from quazzar.instance.templates.names import DEFAULT_CAPABILITIES
from quazzar.instance.templates.rendering import Limits, render, render_hook
from tests.instance.templates.writing import problems_of, service_of, service_text, spec_of, template_text

FIELD = "{name: v, type: string, default: plain}"


def failed(text: str, **config: object) -> dict[str, str]:
    template = parse_template(text)
    with pytest.raises(Invalid) as caught:
        spec_of(template, **config)
    return caught.value.details


def test_what_every_service_gets() -> None:
    service = service_of("environment: {}")
    assert service.cap_drop == ("ALL",)
    assert service.cap_add == tuple(sorted(DEFAULT_CAPABILITIES))
    assert service.resources == ResourceSpec(pids=512)
    assert service.restart == RestartSpec(policy="unless-stopped")
    assert not service.init
    assert [one.network for one in service.networks] == ["default"]


def test_a_service_that_others_wait_for_is_not_restarted() -> None:
    text = """\
        services:
          setup: {image: x}
          again: {image: x, restart: on-failure}
          web:
            image: x
            depends_on:
              setup: {condition: service_completed_successfully}
              again: {condition: service_completed_successfully}
        """
    template = parse_template(template_text(text))
    spec = render(template, {}, app_id="app_1", project="p", restart_policy=RestartSpec(policy="always"))
    policies = {one.name: one.restart.policy for one in spec.services}
    assert policies == {"setup": "no", "again": "on-failure", "web": "always"}


def test_limits_of_the_app_beat_the_template_which_beats_the_defaults() -> None:
    text = """\
        services:
          a: {image: x, mem_limit: 64m, cpus: 0.5, pids_limit: 100, mem_reservation: 48m}
          b: {image: x, deploy: {resources: {limits: {pids: 100}}}}
          c: {image: x}
        """
    template = parse_template(template_text(text))
    defaults = Limits(memory_bytes=1 << 30, cpus=2.0, pids=300)
    spec = render(template, {}, app_id="app_1", project="p", defaults=defaults)
    assert [one.resources for one in spec.services] == [
        ResourceSpec(memory_bytes=64 << 20, memory_reservation_bytes=48 << 20, cpus=0.5, pids=100),
        ResourceSpec(memory_bytes=1 << 30, cpus=2.0, pids=100),
        ResourceSpec(memory_bytes=1 << 30, cpus=2.0, pids=300),
    ]
    spec = render(
        template, {}, app_id="app_1", project="p", defaults=defaults, resources=Limits(memory_bytes=32 << 20, pids=50)
    )
    assert [one.resources for one in spec.services] == [
        ResourceSpec(memory_bytes=32 << 20, memory_reservation_bytes=32 << 20, cpus=0.5, pids=50),
        ResourceSpec(memory_bytes=32 << 20, cpus=2.0, pids=50),
        ResourceSpec(memory_bytes=32 << 20, cpus=2.0, pids=50),
    ]


def test_names_of_the_app_are_handed_through() -> None:
    template = parse_template(service_text("volumes: [b:/b]", tail="volumes: {b: , a: }"))
    spec = render(template, {}, app_id="app_9", project="cloud")
    assert (spec.app_id, spec.project, spec.volumes) == ("app_9", "cloud", ("b", "a"))


def test_a_port_that_is_not_found_yet_is_a_mistake_of_the_caller() -> None:
    template = parse_template(service_text('ports: ["80"]'))
    with pytest.raises(ValueError, match="port_web_80"):
        render(template, check_config(template, {}), app_id="app_1", project="p")


@pytest.mark.parametrize(
    ("keys", "value", "place"),
    [
        ("mem_limit: ${v}", "lots", "services.web.mem_limit"),
        ("user: ${v}", "a b", "services.web.user"),
        ("hostname: ${v}", "a b", "services.web.hostname"),
        ("working_dir: ${v}", "etc", "services.web.working_dir"),
        ("restart: ${v}", "maybe", "services.web.restart"),
        ("stop_signal: ${v}", "SIGX", "services.web.stop_signal"),
        ("cap_add: ['${v}']", "SYS_ADMIN", "services.web.cap_add.0"),
        ("cap_add: ['${v}']", "ALL", "services.web.cap_add.0"),
        ("security_opt: ['${v}']", "seccomp:unconfined", "services.web.security_opt.0"),
        ("volumes: ['${v}:/data']", "/etc", "services.web.volumes.0"),
        ("volumes: ['${v}:/data']", "other", "services.web.volumes.0"),
        ("volumes: ['data:${v}']", "/proc/x", "services.web.volumes.0"),
        ("volumes: ['data:${v}']", "/x:ro", "services.web.volumes.0"),
        ("volumes: [{type: '${v}', source: data, target: /x}]", "bind", "services.web.volumes.0.type"),
        ("tmpfs: ['${v}']", "/dev", "services.web.tmpfs.0"),
        ("ports: ['${v}:80']", "127.0.0.1:80", "services.web.ports.0"),
        ("ports: ['${v}:81:80']", "example.com", "services.web.ports.0"),
        ("depends_on: ['${v}']", "other", "services.web.depends_on.0"),
        ("networks: ['${v}']", "host", "services.web.networks.0"),
        ("healthcheck: {test: [CMD, a], interval: '${v}'}", "soon", "services.web.healthcheck.interval"),
        ("labels: ['a=${v}']\nexpose: ['${v}']", "x", "services.web.expose.0"),
        ("labels: ['${v}=x']", "io.quazzar.app", "services.web.labels.0"),
        ("labels: ['${v}=x']", "com.docker.compose.project", "services.web.labels.0"),
        ("environment: ['${v}=x']", "a b", "services.web.environment.0"),
        ("read_only: ${v}", "perhaps", "services.web.read_only"),
        ("ulimits: {nofile: '${v}'}", "many", "services.web.ulimits.nofile"),
    ],
)
def test_s12_a_value_is_checked_as_if_it_were_written_there(keys: str, value: str, place: str) -> None:
    field = "{name: v, type: string, required: true}"
    text = service_text(keys, fields=field, tail="volumes: {data: }")
    details = failed(text, v=value)
    assert set(details) == {"config.v"}
    assert details["config.v"].startswith(f"Does not fit {place}: ")
    assert len(value) < 5 or value not in details["config.v"].removeprefix(f"Does not fit {place}: ")


def test_s02_an_image_from_a_value() -> None:
    text = template_text("services: {web: {image: 'nginx:${v}'}}", fields="{name: v, type: string, required: true}")
    assert spec_of(parse_template(text), v="1.27").services[0].image == "nginx:1.27"
    for value in ("1 --privileged", "x; id", "$(id)", ""):
        template = parse_template(text)
        with pytest.raises(Invalid) as caught:
            spec_of(template, v=value)
        assert set(caught.value.details) == {"config.v"}


def test_defaults_are_checked_with_the_template() -> None:
    details = problems_of(service_text("mem_limit: ${v}", fields=FIELD))
    assert details == {"services.web.mem_limit": "mem_limit must be a size such as 64m or 1gb (line 5)"}


SHELLS = [
    "command: [sh, -c, 'echo ${v}']",
    "command: [bash, -ec, 'echo ${v}']",
    "command: sh -c 'echo ${v}'",
    "command: sh -c ${none-} 'echo ${v}'",
    "entrypoint: [/bin/sh, -c]\ncommand: ['echo ${v}']",
    "entrypoint: sh -c ${none-}\ncommand: ['echo ${v}']",
    "entrypoint: [/bin/sh, -c, 'echo ${v}']",
    "healthcheck: {test: [CMD-SHELL, 'echo ${v}']}",
    "healthcheck: {test: [CMD, sh, -c, 'echo ${v}']}",
    "configs: [{source: c, target: /start.sh}]",
    "configs: [{source: c, target: /docker-entrypoint-initdb.d/a.txt}]",
    "configs: [{source: c, target: /init.sql}]",
    "configs: [{source: d, target: /start}]",
]
FILES = 'configs: {c: {content: "echo ${v}"}, d: {content: "#!/bin/sh\\necho ${v}"}}'


@pytest.mark.parametrize("keys", SHELLS)
def test_s38_a_value_in_text_for_a_shell_must_be_a_word(keys: str) -> None:
    text = service_text(keys, fields=FIELD, tail=FILES)
    spec_of(parse_template(text), v="plain-Word_1.2/3:4@5%+,=")
    for value in (
        "a;id",
        "$(id)",
        "`id`",
        "a b",
        "a'b",
        'a"b',
        "a\nb",
        "a|b",
        "a&b",
        "a>b",
        "*",
        "~",
        "a\\b",
        "ä",
        "{a,b}",
        "#",
    ):
        details = failed(text, v=value)
        assert set(details) == {"config.v"}
        assert "stands in text that a shell reads" in details["config.v"]
        assert len(value) < 3 or value not in details["config.v"]


def test_s38_outside_of_shells_a_value_is_one_word_whatever_it_is() -> None:
    value = 'it\'s "a"\n; $(id) ${v} -- *'
    found = service_of(
        "command: serve --title=${v} ${v}\nentrypoint: ['/x', '${v}']\nhealthcheck: {test: [CMD, probe, '${v}']}\n"
        "environment: {A: '${v}'}\nconfigs: [c]",
        fields=FIELD,
        tail=FILES,
        v=value,
    )
    assert found.command == ("serve", f"--title={value}", value)
    assert found.entrypoint == ("/x", value)
    assert found.healthcheck is not None
    assert found.healthcheck.test == ("CMD", "probe", value)
    assert found.environment == {"A": value}
    assert found.files[0].content == f"echo {value}"


def test_s39_a_hook_is_words_for_a_container() -> None:
    extra = 'backup: {hooks: {before: {service: web, command: [dump, "--name=${v}", "$$X"]}}}'
    template = parse_template(template_text("services: {web: {image: x}}", fields=FIELD, extra=extra))
    hook = template.backup.before
    assert hook is not None
    config = check_config(template, {"v": "a; $(id)\n'"})
    assert render_hook(template, config, hook) == ("dump", "--name=a; $(id)\n'", "$X")
    shell = Hook(service="web", command=("sh", "-c", "dump ${v}"))
    with pytest.raises(Invalid) as caught:
        render_hook(template, config, shell)
    assert set(caught.value.details) == {"config.v"}


def test_long_values_repeated_have_an_end() -> None:
    body = "services: {web: {image: x, environment: {" + ", ".join(f'K{n}: "${{v}}${{v}}"' for n in range(100)) + "}}}"
    template = parse_template(template_text(body, fields=FIELD))
    with pytest.raises(Invalid) as caught:
        spec_of(template, v="x" * 32_000)
    assert "longer than 4 MiB" in caught.value.details["config.v"]


def test_a_clash_of_ports_that_values_make() -> None:
    fields = "{name: a, type: port, default: 80}, {name: b, type: port, default: 81}"
    template = parse_template(service_text('ports: ["${a}:1", "${b}:2"]', fields=fields))
    with pytest.raises(Invalid) as caught:
        spec_of(template, a=90, b=90)
    assert "already published" in str(caught.value.details)


def test_unset_fields_are_empty_and_defaults_of_the_file_count() -> None:
    found = service_of(
        'environment: {A: "${v}", B: "${v:-x}", C: "${v-x}", D: "${v:+x}"}', fields="{name: v, type: string}"
    )
    assert found.environment == {"A": "", "B": "x", "C": "x", "D": ""}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=60))
def test_no_value_becomes_structure(value: str) -> None:
    keys = (
        "command: run ${v}\nentrypoint: ['${v}']\nenvironment: ['A=${v}']\nlabels: {l: '${v}'}\n"
        "healthcheck: {test: [CMD, a, '${v}']}\nconfigs: [c]"
    )
    found = service_of(keys, fields=FIELD, tail='configs: {c: {content: "${v}"}}', v=value)
    # Nothing without quotes around it is no word, as for Compose.
    assert found.command == (("run", value) if value else ("run",))
    assert found.entrypoint == (value,)
    assert (found.environment, found.labels) == ({"A": value}, {"l": value})
    assert found.files[0].content == value
