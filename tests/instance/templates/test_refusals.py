"""What no template may say: each with its line and a reason, and in every place where it could hide."""

# ruff: noqa: E501 - whole sentences and whole files stand in the tables

import sys
from collections.abc import Callable
from typing import Any

import pytest

from quazzar.instance.templates.compose import TemplateInvalid, parse_compose, parse_template
from quazzar.instance.templates.refusals import (
    REFUSED_IN_FILE,
    REFUSED_IN_NETWORK,
    REFUSED_IN_SERVICE,
    REFUSED_IN_VOLUME,
    TRUSTED_IN_SERVICE,
    UNSUPPORTED_IN_SERVICE,
)
from tests.instance.templates.writing import problems_of, service_of, service_text, template_text

SERVICE_VALUES = {
    "privileged": "true",
    "network_mode": "host",
    "pid": "host",
    "ipc": '"service:web"',
    "uts": "host",
    "userns_mode": "host",
    "cgroup": "host",
    "cgroup_parent": "/x",
    "devices": '["/dev/sda:/dev/sda"]',
    "device_cgroup_rules": '["c 1:3 mr"]',
    "gpus": "all",
    "volumes_from": "[db]",
    "external_links": "[other]",
    "runtime": "runsc",
    "isolation": "hyperv",
    "sysctls": "{net.core.somaxconn: 1024}",
    "oom_kill_disable": "true",
    "oom_score_adj": "-500",
    "extends": "{file: ../../etc/passwd, service: a}",
    "env_file": "../../etc/passwd",
    "label_file": "/etc/passwd",
    "build": "{context: /}",
    "develop": "{watch: [{path: /, action: sync, target: /}]}",
    "credential_spec": '{file: "x.json"}',
    "provider": "{type: sh}",
    "use_api_socket": "true",
    "pre_start": "[{command: x}]",
    "post_start": "[{command: x}]",
    "pre_stop": "[{command: x}]",
}
Parser = Callable[[str], object]


def imported(text: str) -> object:
    return parse_compose(text, name="sample", env={})


def as_import(text: str) -> str:
    return text.split("\n", 1)[1]


def test_every_refused_key_has_a_value_here() -> None:
    assert SERVICE_VALUES.keys() == REFUSED_IN_SERVICE.keys()


@pytest.mark.parametrize(
    ("key", "trusted"),
    [
        *((key, False) for key in REFUSED_IN_SERVICE),
        *((key, True) for key in sorted(set(REFUSED_IN_SERVICE) - set(TRUSTED_IN_SERVICE))),
    ],
)
def test_refused_in_a_service(key: str, *, trusted: bool) -> None:
    with pytest.raises(TemplateInvalid) as caught:
        parse_template(service_text(f"restart: always\n{key}: {SERVICE_VALUES[key]}"), trusted=trusted)
    said = caught.value.details[f"services.web.{key}"]
    more = " (to a trusted template too)" if trusted else ""
    assert said == f"{key} is refused: {REFUSED_IN_SERVICE[key]}{more} (line 6)"
    assert len(caught.value.details) == 1


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (
            "service:vpn",
            "it shares the network of another service; left out, its traffic no longer goes through that one",
        ),
        (
            "container:vpn",
            "it shares the network of another container; left out, its traffic no longer goes through that one",
        ),
        ("none", "write networks: [inside] and networks: {inside: {internal: true}}"),
    ],
)
def test_nobody_is_told_to_leave_out_what_keeps_a_service_in(mode: str, said: str) -> None:
    assert problems_of(service_text(f"network_mode: {mode}")) == {
        "services.web.network_mode": f"network_mode is refused: {said} (line 5)"
    }


@pytest.mark.parametrize("driver", ["{driver: syslog}", "{driver: none}", "{driver: '${v}'}"])
def test_logs_that_go_elsewhere(driver: str) -> None:
    said = "logging is not supported: logs are kept and shown by the platform; leave it out (line 5)"
    assert problems_of(service_text(f"logging: {driver}")) == {"services.web.logging": said}


@pytest.mark.parametrize("key", REFUSED_IN_SERVICE)
def test_refused_in_an_import_with_the_same_words(key: str) -> None:
    text = as_import(service_text(f"{key}: {SERVICE_VALUES[key]}"))
    with pytest.raises(TemplateInvalid) as caught:
        imported(text)
    assert caught.value.details == {f"services.web.{key}": f"{key} is refused: {REFUSED_IN_SERVICE[key]} (line 4)"}


@pytest.mark.parametrize("key", UNSUPPORTED_IN_SERVICE)
def test_not_supported_in_a_service(key: str) -> None:
    details = problems_of(service_text(f"\n\n{key}: [x]"))
    assert details == {f"services.web.{key}": f"{key} is not supported: {UNSUPPORTED_IN_SERVICE[key]} (line 5)"}


@pytest.mark.parametrize("key", REFUSED_IN_SERVICE)
def test_refused_where_a_merge_brings_it(key: str) -> None:
    text = template_text(
        f"x-base: &base\n  restart: always\n  {key}: {SERVICE_VALUES[key]}\nservices:\n  web:\n    <<: *base\n    image: x\n"
    )
    assert problems_of(text) == {f"services.web.{key}": f"{key} is refused: {REFUSED_IN_SERVICE[key]} (line 4)"}


VOLUME_VALUES = {"driver_opts": "{type: none, o: bind, device: /}", "external": "true", "name": "other_data"}


@pytest.mark.parametrize("key", REFUSED_IN_VOLUME)
def test_s12_refused_in_a_volume(key: str) -> None:
    details = problems_of(service_text("init: true", tail=f"volumes:\n  d:\n    {key}: {VOLUME_VALUES[key]}\n"))
    assert details == {f"volumes.d.{key}": f"{key} is refused: {REFUSED_IN_VOLUME[key]} (line 8)"}


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("volume", "path"),
    [
        ("{driver_opts: {type: none, o: bind, device: /}}", "driver_opts"),
        ("{driver: local, driver_opts: {type: none, o: bind, device: /}}", "driver_opts"),
        ('{driver_opts: {device: "/"}}', "driver_opts"),
        ("{driver: nfs}", "driver"),
        ("{driver: '${x:-nfs}'}", "driver"),
        ("{external: true}", "external"),
        ("{external: {name: other}}", "external"),
        ("{<<: {external: true}}", "external"),
    ],
)
def test_s12_bind_mount_hidden_in_driver_opts(volume: str, path: str, *, trusted: bool) -> None:
    text = service_text("volumes: [d:/d]", tail=f"volumes:\n  d: {volume}\n")
    parsers: list[tuple[Parser, str]] = [
        (lambda text: parse_template(text, trusted=trusted), text),
        (lambda text: parse_compose(text, name="a", trusted=trusted), as_import(text)),
    ]
    for parse, written in parsers:
        with pytest.raises(TemplateInvalid) as caught:
            parse(written)
        ((where, said),) = caught.value.details.items()
        assert where == f"volumes.d.{path}"
        assert said.startswith(f"{path} is refused: ")
        assert "(line " in said


@pytest.mark.parametrize(
    ("volume", "line"),
    [
        ("/:/host", 5),
        ("./data:/data", 5),
        ("../x:/data:ro", 5),
        ("~/x:/data", 5),
        ("~:/data", 5),
        ("data/sub:/data", 5),
        ("\\\\\\\\host\\\\x:/data", 5),
        ("${HOME:-/root}:/data", 5),
        ("/var/run/docker.sock:/var/run/docker.sock", 5),
        ("/run/containerd/containerd.sock:/x:ro", 5),
        ("/data", 5),
    ],
)
def test_s12_host_paths_in_short_volumes(volume: str, line: int) -> None:
    details = problems_of(service_text(f'volumes: ["{volume}"]'))
    said = details["services.web.volumes.0"]
    assert "refused" in said
    assert said.endswith(f"(line {line})")


@pytest.mark.parametrize("kind", ["bind", "npipe", "cluster", "image"])
def test_s12_host_paths_in_long_volumes(kind: str) -> None:
    details = problems_of(
        service_text(f"volumes:\n  - type: {kind}\n    source: /\n    target: /host\n    bind: {{propagation: shared}}")
    )
    said = details["services.web.volumes.0.type"]
    assert said.startswith("bind mounts are refused" if kind == "bind" else "type must be one of: volume, tmpfs")
    assert said.endswith("(line 6)")


def test_s12_a_volume_type_cannot_hide_a_host_path() -> None:
    details = problems_of(service_text("volumes: [{type: volume, source: /etc, target: /x}]"))
    assert details == {
        "services.web.volumes.0.source": "source: bind mounts are refused unless the file is trusted: an app sees no folder of the host; use a named volume, or for a single file configs with content (line 5)"
    }
    details = problems_of(service_text("volumes: [{type: '${t:-bind}', source: /, target: /x}]"))
    assert details == {"services.web.volumes.0.type": "type must be one of: volume, tmpfs (line 5)"}


@pytest.mark.parametrize("key", REFUSED_IN_NETWORK)
def test_refused_in_a_network(key: str) -> None:
    details = problems_of(service_text("init: true", tail=f"networks:\n  n:\n    {key}: [x]\n"))
    assert details == {f"networks.n.{key}": f"{key} is refused: {REFUSED_IN_NETWORK[key]} (line 8)"}


@pytest.mark.parametrize("driver", ["host", "none", "macvlan", "overlay", "my-plugin"])
def test_other_network_drivers(driver: str) -> None:
    details = problems_of(service_text("init: true", tail=f"networks:\n  n:\n    driver: {driver}\n"))
    assert details == {"networks.n.driver": "driver is refused: only the driver bridge is taken (line 8)"}


@pytest.mark.parametrize("section", ["configs", "secrets"])
@pytest.mark.parametrize("key", REFUSED_IN_FILE)
def test_s13_refused_in_configs_and_secrets(section: str, key: str) -> None:
    details = problems_of(service_text("init: true", tail=f"{section}:\n  x:\n    {key}: /etc/passwd\n"))
    assert details == {f"{section}.x.{key}": f"{key} is refused: {REFUSED_IN_FILE[key]} (line 8)"}


S13: dict[str, str] = {
    "include": service_text("init: true", tail="include: [/etc/passwd]"),
    "include long": service_text("init: true", tail="include: [{path: x.yaml, env_file: /etc/passwd}]"),
    "extends": service_text("extends: {file: /etc/passwd, service: x}"),
    "extends short": service_text("extends: other"),
    "env_file": service_text("env_file: ../../etc/passwd"),
    "env_file long": service_text("env_file: [{path: /etc/passwd, required: false}]"),
    "label_file": service_text("label_file: [/etc/passwd]"),
    "configs": service_text("configs: [x]", tail="configs: {x: {file: /etc/passwd}}"),
    "secrets": service_text("secrets: [x]", tail="secrets: {x: {file: /etc/passwd}}"),
    "build": service_text("build: /etc"),
    "build long": service_text("build: {context: /etc, dockerfile: /etc/passwd}"),
    "develop": service_text("develop: {watch: [{path: /etc, action: sync, target: /x}]}"),
    "yaml include": service_text("labels: !include /etc/passwd"),
    "yaml python": service_text("labels: !!python/object/apply:os.system [id]"),
    "anchors": template_text(
        "x-a: &a [x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"x-{new}: &{new} [{','.join(['*' + old] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        )
    ),
}
WATCHED = ("open", "os.", "subprocess.", "socket.", "shutil.", "pty.")
opened: list[str] = []
watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event.startswith(WATCHED):
        opened.append(f"{event} {arguments!r}")


sys.addaudithook(_watch)


@pytest.mark.parametrize("name", S13)
def test_s13_no_file_of_the_host_is_read(name: str) -> None:
    global watching  # noqa: PLW0603 - an audit hook can't be taken away, only told to look elsewhere
    for parse, text in ((parse_template, S13[name]), (imported, as_import(S13[name]))):
        opened.clear()
        watching = True
        try:
            with pytest.raises(TemplateInvalid) as caught:
                parse(text)
        finally:
            watching = False
        assert opened == []
        assert any("(line " in said for said in caught.value.details.values())


@pytest.mark.parametrize(
    "image", ["x; id", "--privileged", "-v/:/h", "$(id)", "`id`", "a b", "a\\nb", "x|y", "../x", "x@sha256:1"]
)
def test_s02_images_are_no_shell_text(image: str) -> None:
    text = template_text(f'services:\n  web:\n    image: "{image}"\n')
    for parse, written in ((parse_template, text), (imported, as_import(text))):
        with pytest.raises(TemplateInvalid) as caught:
            parse(written)
        assert caught.value.details["services.web.image"].startswith("image must be an image such as nginx:1.27")


@pytest.mark.parametrize(
    "prefix", ["io.quazzar.app", "IO.QUAZZAR.app", "com.docker.compose.project", "com.docker.stack.namespace"]
)
@pytest.mark.parametrize("form", ["{{{0}: x}}", "['{0}=x']", "['{0}']"])
def test_s34_reserved_labels(prefix: str, form: str) -> None:
    (said,) = problems_of(service_text("labels: " + form.format(prefix))).values()
    assert said == f"{prefix} is refused: labels that begin with io.quazzar. or com.docker. are reserved (line 5)"


@pytest.mark.parametrize(
    "option",
    ["seccomp:unconfined", "apparmor=unconfined", "label:disable", "no-new-privileges:false", "systempaths=unconfined"],
)
def test_security_options(option: str) -> None:
    details = problems_of(service_text(f"security_opt: ['{option}']"))
    assert details == {
        "services.web.security_opt.0": "security_opt is refused: only no-new-privileges is taken, and it is always on (line 5)"
    }


@pytest.mark.parametrize(
    "name", ["SYS_ADMIN", "cap_sys_module", "NET_ADMIN", "sys_ptrace", "DAC_READ_SEARCH", "SYS_NICE", "MKNOD"]
)
def test_capabilities_beyond_the_list_need_trust(name: str) -> None:
    text = service_text(f"cap_add: [{name}]")
    (said,) = problems_of(text).values()
    assert said.startswith("cap_add is refused: of the capabilities only AUDIT_WRITE, ")
    assert said.endswith("unless the template is trusted (line 5)")
    assert parse_template(text, trusted=True).trusted


@pytest.mark.parametrize("trusted", [False, True])
def test_not_even_trust_adds_all_capabilities(*, trusted: bool) -> None:
    with pytest.raises(TemplateInvalid, match="not valid"):
        parse_template(service_text("cap_add: [ALL]"), trusted=trusted)


@pytest.mark.parametrize("key", ["devices", "generic_resources"])
def test_devices_hidden_in_reservations(key: str) -> None:
    details = problems_of(
        service_text(f"deploy: {{resources: {{reservations: {{{key}: [{{capabilities: [gpu]}}]}}}}}}")
    )
    assert details == {
        f"services.web.deploy.resources.reservations.{key}": f"{key} is refused: it gives the container devices of the host (line 5)"
    }


@pytest.mark.parametrize(
    "key",
    ["replicas", "mode", "placement", "update_config", "labels", "restart_policy", "endpoint_mode", "rollback_config"],
)
def test_the_rest_of_deploy(key: str) -> None:
    (said,) = problems_of(service_text(f"deploy: {{{key}: x}}")).values()
    assert said.startswith(f"{key} is not supported: ")


@pytest.mark.parametrize(
    "key", ["ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "driver_opts", "interface_name"]
)
def test_addresses_of_networks(key: str) -> None:
    details = problems_of(service_text(f"networks: {{default: {{{key}: x}}}}"))
    assert details == {
        f"services.web.networks.default.{key}": f"{key} is not supported: addresses are given by the engine; leave it out (line 5)"
    }


def test_pull_policy_cannot_build() -> None:
    details = problems_of(service_text("pull_policy: build"))
    assert details["services.web.pull_policy"].startswith("build is refused: ")


WORD = "{name: word, type: string, default: plain}"


@pytest.mark.parametrize("test", ["curl ${word}", "curl $word", "curl ${word:-x}", "curl ${nope:-x}"])
def test_s38_a_line_for_a_shell_takes_no_field(test: str) -> None:
    details = problems_of(service_text(f'healthcheck: {{test: "{test}"}}', fields=WORD))
    said = 'test with a ${name} in it must be a list, such as ["CMD", "pg_isready", "-U", "${name}"], or ["CMD-SHELL", "…"] where a shell is needed'
    assert details == {"services.web.healthcheck.test": f"{said} (line 5)"}


def test_s38_a_line_without_fields_is_compose_s_own() -> None:
    check = service_of("healthcheck: {test: 'curl -f http://127.0.0.1 || exit 1'}").healthcheck
    assert check is not None
    assert check.test == ("CMD-SHELL", "curl -f http://127.0.0.1 || exit 1")


@pytest.mark.parametrize("command", ["pg_dump -f x", "'pg_dump'", "5", "{a: b}", "[]"])
def test_s38_a_hook_is_a_list(command: str) -> None:
    extra = f"backup: {{hooks: {{before: {{service: web, command: {command}}}}}}}"
    details = problems_of(template_text("services: {web: {image: x}}", extra=extra))
    said = 'command must be a list, such as ["pg_dump", "-f", "/backup/db.sql"]: hooks are not run by a shell'
    assert details == {"x-quazzar.backup.hooks.before.command": f"{said} (line 1)"}


@pytest.mark.parametrize(
    ("hook", "path", "said"),
    [
        ("{service: nope, command: [x]}", "service", "There is no service nope"),
        ("{command: [x]}", "service", "service is required"),
        ("{service: web}", "command", "command is required"),
        ("{service: web, command: [x, 5]}", "command.1", "command.1 must be a string; put it in quotes"),
        (
            "{service: web, command: ['${nope}']}",
            "command.0",
            "${nope} is not known; declare it under x-quazzar.fields, or write ${NAME:-default}",
        ),
        ("{service: web, command: [x], host: true}", "host", "host is not known here"),
        ("{service: web, command: [x], user: root}", "user", "user is not known here"),
    ],
)
def test_s39_a_hook_runs_in_a_container_of_the_app_only(hook: str, path: str, said: str) -> None:
    details = problems_of(template_text("services: {web: {image: x}}", extra=f"backup: {{hooks: {{after: {hook}}}}}"))
    assert details[f"x-quazzar.backup.hooks.after.{path}"] == f"{said} (line 1)"
