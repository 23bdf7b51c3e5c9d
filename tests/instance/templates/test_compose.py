"""What is taken of Compose, in every way that it can be written."""

# ruff: noqa: E501 - whole sentences and whole files stand in the tables

import re

import msgspec
import pytest

from quazzar.instance.apps.spec import (
    AttachmentSpec,
    DependencySpec,
    FileSpec,
    HealthSpec,
    MountSpec,
    NetworkSpec,
    PortSpec,
    ResourceSpec,
    RestartSpec,
    TmpfsSpec,
    UlimitSpec,
)
from quazzar.instance.templates.compose import Needs, Template, TemplateInvalid, parse_template
from quazzar.instance.templates.names import DEFAULT_CAPABILITIES
from tests.instance.templates.writing import problems_of, service_of, service_text, spec_of, template_text

CONTRACT = """\
x-quazzar:
  slug: gitea                 # [a-z0-9-], unique in the catalogue
  version: "1.22.3"
  title: Gitea
  description: Git hosting
  category: development
  fields:                     # what a form asks; each becomes ${NAME} below and a key of `config`
    - {name: http_port, label: Port, type: port, default: auto}
    - {name: admin_password, label: Admin password, type: password, required: true, min_length: 12}
    - {name: db_password, type: password, generated: 24}
  web: {service: web, port: 3000}      # what a domain points to
  backup: {volumes: [data], hooks: {before: {service: db, command: ["pg_dump", "-f", "/backup/db.sql"]}}}
services:
  web:
    image: gitea/gitea:1.22.3
    environment: {DB_PASSWORD: "${db_password}"}
    ports: ["${http_port}:3000"]
    volumes: ["data:/data"]
    depends_on: {db: {condition: service_healthy}}
    healthcheck: {test: ["CMD", "wget", "-qO-", "http://127.0.0.1:3000/"], interval: 5s, retries: 5}
  db: {image: "postgres:17", volumes: ["db:/var/lib/postgresql/data"]}
volumes: {data: {}, db: {}}
"""


def test_what_an_app_needs_and_what_to_do_first() -> None:
    template = parse_template(
        template_text("services: {a: {image: x}}", extra="needs: {memory: 1.5g, disk: 1048576}, first_steps: Log in.")
    )
    assert template.needs == Needs(memory_bytes=3 << 29, disk_bytes=1 << 20)
    assert template.first_steps == "Log in."
    bare = parse_template(template_text("services: {a: {image: x}}"))
    assert (bare.needs, bare.first_steps) == (Needs(), "")


def test_the_example_of_the_contract() -> None:
    template = parse_template(CONTRACT)
    assert (template.slug, template.version, template.title, template.category) == (
        "gitea",
        "1.22.3",
        "Gitea",
        "development",
    )
    assert [field.label for field in template.fields] == ["Port", "Admin password", "Db password"]
    assert template.web is not None
    assert (template.web.service, template.web.port) == ("web", 3000)
    assert template.backup.volumes == ("data",)
    assert template.backup.before is not None
    assert template.backup.before.command == ("pg_dump", "-f", "/backup/db.sql")
    spec = spec_of(template, admin_password="x" * 12, db_password='it\'s "a"\npass$word')
    assert [service.name for service in spec.services] == ["db", "web"]
    web = spec.services[1]
    assert web.environment == {"DB_PASSWORD": 'it\'s "a"\npass$word'}
    assert web.ports == (PortSpec(container_port=3000, host_port=41000),)
    assert web.mounts == (MountSpec(volume="data", target="/data"),)
    assert web.depends_on == (DependencySpec(service="db", condition="service_healthy"),)
    assert web.healthcheck == HealthSpec(
        test=("CMD", "wget", "-qO-", "http://127.0.0.1:3000/"), interval_seconds=5, retries=5
    )
    assert (spec.volumes, spec.networks) == (("data", "db"), (NetworkSpec(name="default"),))


def test_a_template_survives_storing() -> None:
    template = parse_template(CONTRACT)
    again = msgspec.json.decode(msgspec.json.encode(template), type=Template)
    assert again == template
    assert spec_of(again, admin_password="x" * 12, db_password="y" * 12) == spec_of(
        template, admin_password="x" * 12, db_password="y" * 12
    )


def test_the_same_from_bytes() -> None:
    assert parse_template(CONTRACT.encode()) == parse_template(CONTRACT)


def port(container: int, host: int, **more: str) -> PortSpec:
    return PortSpec(container_port=container, host_port=host, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "ports"),
    [
        ('["8080:80"]', [port(80, 8080)]),
        ('["8080:80/UDP"]', [port(80, 8080, protocol="udp")]),
        ('["127.0.0.1:8080:80/udp"]', [port(80, 8080, host_ip="127.0.0.1", protocol="udp")]),
        ('["0.0.0.0:8080:80"]', [port(80, 8080, host_ip="0.0.0.0")]),
        ('["[::1]:8080:80"]', [port(80, 8080, host_ip="::1")]),
        ('["8000-8002:9000-9002/tcp"]', [port(9000, 8000), port(9001, 8001), port(9002, 8002)]),
        ("[8080:80]", [port(80, 8080)]),  # no sexagesimal number
        ("[80]", [port(80, 41000)]),
        ('["80", "81/udp"]', [port(80, 41000), port(81, 41001, protocol="udp")]),
        ('["127.0.0.1::80"]', [port(80, 41000, host_ip="127.0.0.1")]),
        ('["3000-3001"]', [port(3000, 41000), port(3001, 41001)]),
        ("[{target: 80, published: 8080}]", [port(80, 8080)]),
        (
            '[{target: "80", published: "8080", protocol: udp, host_ip: 127.0.0.1, mode: ingress, name: a, app_protocol: http}]',
            [port(80, 8080, host_ip="127.0.0.1", protocol="udp")],
        ),
        ("[{target: 80}]", [port(80, 41000)]),
        ('["53:53/tcp", "53:53/udp"]', [port(53, 53), port(53, 53, protocol="udp")]),
        (
            '["127.0.0.1:80:80", "127.0.0.2:80:80"]',
            [port(80, 80, host_ip="127.0.0.1"), port(80, 80, host_ip="127.0.0.2")],
        ),
        ('["${nope:-8080}:80"]', [port(80, 8080)]),
        ('["${nope:-127.0.0.1}:8080:80"]', [port(80, 8080, host_ip="127.0.0.1")]),
        ("[]", []),
    ],
)
def test_ports(written: str, ports: list[PortSpec]) -> None:
    assert list(service_of(f"ports: {written}").ports) == ports


def test_a_port_left_open_gets_a_field_of_its_own() -> None:
    template = parse_template(
        service_text('ports: ["80", "53/udp", "80"]', fields="{name: port_web_80, type: port, default: 81}")
    )
    assert [(one.name, one.default) for one in template.fields] == [
        ("port_web_80", 81),
        ("port_web_80_2", "auto"),
        ("port_web_53_udp", "auto"),
        ("port_web_80_3", "auto"),
    ]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ('["x"]', "ports.0 must have a container port between 1 and 65535"),
        ('["0:80"]', "ports.0 must have a host port between 1 and 65535"),
        ('["80:70000"]', "ports.0 must have a container port between 1 and 65535"),
        (
            '["8080-8090:80"]',
            "A range of host ports needs as many container ports; leave the host port out to have a free one found",
        ),
        ('["8005-8000:80-85"]', "A range of ports must run upwards"),
        ('["1-60000"]', "A range of ports has at most 100"),
        ('["80:80/sctp"]', "ports.0 must have the protocol tcp or udp"),
        ('["localhost:80:80"]', "ports.0 must be an IP address of this host"),
        ('["1.2.3.4:1:2:3"]', "ports.0 must be a port such as 8080:80 or 127.0.0.1:8080:80/udp"),
        ('[""]', "ports.0 must be a port such as 8080:80 or 127.0.0.1:8080:80/udp"),
        ('["80:"]', "ports.0 must be a port such as 8080:80 or 127.0.0.1:8080:80/udp"),
        ("[true]", "ports.0 must be a port such as 8080:80"),
        ('["[::1:80"]', "ports.0 must be a port such as [::1]:8080:80"),
        ("[{target: 80, publish: 81}]", "publish is not known here; did you mean published?"),
        ("[{published: 81}]", "target is required"),
        ("[{target: 80, mode: x}]", "mode must be one of: ingress, host"),
        ('["80:80", "80:81"]', "The host port is already published by services.web.ports.0"),
        ('["80:80", "127.0.0.1:80:81"]', "The host port is already published by services.web.ports.0"),
        ("80", "ports must be a list"),
    ],
)
def test_ports_that_are_wrong(written: str, sentence: str) -> None:
    details = problems_of(service_text(f"ports: {written}"))
    assert f"{sentence} (line 5)" in details.values()


def test_a_problem_behind_a_range_has_its_own_place() -> None:
    assert set(problems_of(service_text('ports: ["1-5:1-5", "x:x", "80"]'))) == {"services.web.ports.1"}


@pytest.mark.parametrize(
    ("written", "mount"),
    [
        ("[data:/data]", MountSpec(volume="data", target="/data")),
        ("[data:/data:ro]", MountSpec(volume="data", target="/data", read_only=True)),
        ("[data:/data/:rw]", MountSpec(volume="data", target="/data")),
        ("[data:/data:Z]", MountSpec(volume="data", target="/data")),
        ("['data:/data:cached,ro']", MountSpec(volume="data", target="/data", read_only=True)),
        (
            "[{type: volume, source: data, target: /data, consistency: cached}]",
            MountSpec(volume="data", target="/data"),
        ),
        ("[{type: volume, source: data, target: /data}]", MountSpec(volume="data", target="/data")),
        (
            "[{type: volume, source: data, target: /data, read_only: true}]",
            MountSpec(volume="data", target="/data", read_only=True),
        ),
        (
            "[{type: volume, source: data, target: /data, volume: {nocopy: false}}]",
            MountSpec(volume="data", target="/data"),
        ),
        ('["${nope:-data}:/data"]', MountSpec(volume="data", target="/data")),
    ],
)
def test_volumes(written: str, mount: MountSpec) -> None:
    assert service_of(f"volumes: {written}", tail="volumes: {data: }").mounts == (mount,)


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ("tmpfs: /run", TmpfsSpec(target="/run")),
        ("tmpfs: [/run]", TmpfsSpec(target="/run")),
        ("tmpfs: /run:size=64m,mode=1777,noexec", TmpfsSpec(target="/run", size_bytes=64 << 20)),
        ("volumes: [{type: tmpfs, target: /run}]", TmpfsSpec(target="/run")),
        (
            "volumes: [{type: tmpfs, target: /run, tmpfs: {size: 1048576}}]",
            TmpfsSpec(target="/run", size_bytes=1 << 20),
        ),
        (
            "volumes: [{type: tmpfs, target: /run, tmpfs: {size: 64m, mode: 01777}}]",
            TmpfsSpec(target="/run", size_bytes=64 << 20),
        ),
    ],
)
def test_tmpfs(written: str, spec: TmpfsSpec) -> None:
    assert service_of(written).tmpfs == (spec,)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("volumes: [data:/data, data:/data/]", "volumes.1: the target is already used by services.web.volumes.0"),
        ("volumes: [data:/run]\ntmpfs: /run", "tmpfs: the target is already used by services.web.volumes.0"),
        ("volumes: [other:/data]", "volumes.0: the volume other is not declared under volumes; write other: there"),
        (
            "volumes: [{type: volume, source: other, target: /data}]",
            "volumes.0: the volume other is not declared under volumes; write other: there",
        ),
        ("volumes: ['${x:-other}:/data']", "volumes.0: the volume of that name is not declared under volumes"),
        ("volumes: [data:data]", "volumes.0: the target must be an absolute path in the container"),
        ("volumes: [data:/a/../b]", "volumes.0: the target must be a path without '.', '..' or doubled slashes"),
        ("volumes: [data:/proc/x]", "volumes.0: the target must not be /, nor lie in /proc, /sys or /dev"),
        ("volumes: ['data:/data:z,exec']", "Of the options of a volume only ro and rw are taken"),
        (
            "volumes: [data:/data:nocopy]",
            "nocopy is not supported: a new volume begins with what the image has there",
        ),
        (
            "volumes: ['/etc/localtime:/etc/localtime:ro']",
            "volumes.0: the time zone of the host is refused: set TZ in environment, such as TZ=Europe/Berlin",
        ),
        ("volumes: [data:/data:ro:x]", "volumes.0 must be a named volume and a path, such as data:/data"),
        ("volumes: [data]", "volumes.0 must be a named volume and a path, such as data:/data"),
        ("volumes: [5]", "volumes.0 must be a string such as data:/data, or a mapping"),
        ("volumes: {data: /data}", "volumes must be a list"),
        ("volumes: [{type: volume, source: data}]", "target is required"),
        ("volumes: [{source: data, target: /data}]", "type is required"),
        ("volumes: [{type: volume, target: /data}]", "volumes.0: a volume needs a name"),
        (
            "volumes: [{type: volume, source: data, target: /data, tmpfs: {}}]",
            "tmpfs means nothing for the type volume",
        ),
        (
            "volumes: [{type: volume, source: data, target: /data, volume: {nocopy: true}}]",
            "nocopy is not supported: a new volume begins with what the image has there",
        ),
        (
            "volumes: [{type: volume, source: data, target: /data, volume: {subpath: ../x}}]",
            "subpath is not known here",
        ),
        (
            "volumes: [{type: tmpfs, target: /x, tmpfs: {mode: 0700}}]",
            "mode is not supported: a tmpfs has the mode 1777",
        ),
        ("tmpfs: /run:size=x", "size must be a size such as 64m or 1gb"),
        ("tmpfs: /run:exec", "Of the options of a tmpfs only size is taken"),
        ("tmpfs: run", "tmpfs: the target must be an absolute path in the container"),
    ],
)
def test_mounts_that_are_wrong(written: str, sentence: str) -> None:
    details = problems_of(service_text(written, tail="volumes: {data: {}}"))
    assert any(said.startswith(f"{sentence} (line ") for said in details.values()), details


FILES = """
configs: {page: {content: "a ${name:-b}"}, other: {content: x}}
secrets: {key: {content: "s"}}
"""


@pytest.mark.parametrize(
    ("written", "spec"),
    [
        ("configs: [page]", FileSpec(target="/page", content="a b")),
        (
            "configs: [{source: page, target: /etc/a.conf, uid: '33', gid: 33, mode: 0440}]",
            FileSpec(target="/etc/a.conf", content="a b", mode=0o440, uid=33, gid=33),
        ),
        ('configs: [{source: page, mode: "0400"}]', FileSpec(target="/page", content="a b", mode=0o400)),
        ("configs: [{source: page, mode: 0o555}]", FileSpec(target="/page", content="a b", mode=0o555)),
        ("secrets: [key]", FileSpec(target="/run/secrets/key", content="s")),
        ("secrets: [{source: key, target: token}]", FileSpec(target="/run/secrets/token", content="s")),
        ("secrets: [{source: key, target: /etc/key}]", FileSpec(target="/etc/key", content="s")),
    ],
)
def test_configs_and_secrets(written: str, spec: FileSpec) -> None:
    assert service_of(written, tail=FILES).files == (spec,)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("configs: [nope]", "configs.0 is not declared under configs"),
        ("secrets: [page]", "secrets.0 is not declared under secrets"),
        (
            "configs: [page, {source: other, target: /page}]",
            "configs.1: the target is already used by services.web.configs.0",
        ),
        ("configs: [{target: /a}]", "source is required"),
        ("configs: [{source: page, mode: 04755}]", "mode must be a mode such as 0440"),
        ('configs: [{source: page, mode: "abc"}]', "mode must be a mode such as 0440"),
        ("configs: [{source: page, uid: root}]", "uid must be a whole number between 0 and 2147483647"),
        (
            "configs: [{source: page, target: /proc/a}]",
            "target: the target must not be /, nor lie in /proc, /sys or /dev",
        ),
        ("configs: page", "configs must be a list"),
    ],
)
def test_files_that_are_wrong(written: str, sentence: str) -> None:
    details = problems_of(service_text(written, tail=FILES))
    assert any(said.startswith(f"{sentence} (line ") for said in details.values()), details


@pytest.mark.parametrize(
    ("written", "environment"),
    [
        (
            "{A: x, B: 1, C: 1.10, D: true, E: yes, F: 022, G: 22:22, H: '022', I: 1e6, J: 2024-01-31}",
            {
                "A": "x",
                "B": "1",
                "C": "1.1",
                "D": "true",
                "E": "yes",
                "F": "18",
                "G": "22:22",
                "H": "022",
                "I": "1e+06",
                "J": "2024-01-31",
            },
        ),
        (
            "[A=x, B=, C=a=b, 'D=\"q\"', E=022, discovery.type=single, Logging:Level=x]",
            {"A": "x", "B": "", "C": "a=b", "D": '"q"', "E": "022", "discovery.type": "single", "Logging:Level": "x"},
        ),
        ("[name, NAME=$$name]", {"name": "from config", "NAME": "$name"}),
        ("{name: , B: '${name}'}", {"name": "from config", "B": "from config"}),
        ("{}", {}),
    ],
)
def test_environment(written: str, environment: dict[str, str]) -> None:
    found = service_of(f"environment: {written}", fields="{name: name, type: string}", name="from config")
    assert found.environment == environment


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("[UNKNOWN]", "UNKNOWN has no value; write UNKNOWN= for an empty one"),
        ("{UNKNOWN: }", "UNKNOWN has no value; write UNKNOWN= for an empty one"),
        ("{'A B': x}", "A B must be named with letters, digits, '_', '.', ':' and '-', not beginning with a digit"),
        ("['=x']", "The name must be named with letters, digits, '_', '.', ':' and '-', not beginning with a digit"),
        ("['${nope:-1}=x']", "1 must be named with letters, digits, '_', '.', ':' and '-', not beginning with a digit"),
        ("{A: [x]}", "A must be a string"),
        ("[[A]]", "environment.0 must be a string such as NAME=value"),
        ("A=x", "environment must be a mapping or a list of NAME=value"),
        ("{A: '${nmae}'}", "${nmae} is not known; did you mean name?"),
        ("{A: '${other}'}", "${other} is not known; declare it under x-quazzar.fields, or write ${NAME:-default}"),
        ("{A: '${'}", "A: ${ must be followed by a name; write $$ for a dollar sign"),
        ("{A: '${other:?set it}'}", "other has no value: set it"),
    ],
)
def test_environment_that_is_wrong(written: str, sentence: str) -> None:
    details = problems_of(service_text(f"environment: {written}", fields="{name: name, type: string}"))
    assert f"{sentence} (line 5)" in details.values()


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("echo hello 'a b' \"c  d\"", ("echo", "hello", "a b", "c  d")),
        ('["echo", "a b", "$$HOME", "5"]', ("echo", "a b", "$HOME", "5")),
        ("echo $$HOME", ("echo", "$HOME")),
        ("echo ${word} --x=${word}", ("echo", "one two", "--x=one two")),
        ("echo ${nope:-a b} c", ("echo", "a b", "c")),
        ("""'echo ${nope-} --x=${nope-} "${nope-}" c'""", ("echo", "--x=", "", "c")),
        ('[echo, "${nope-}"]', ("echo", "")),
        ('""', ()),
        ("[]", ()),
        ("'echo a\\ b'", ("echo", "a b")),
        ("""'a "b\\nc\\"d" e\\''f "" \\;'""", ("a", 'bnc"d', "e'f", "", ";")),
    ],
)
def test_commands(written: str, words: tuple[str, ...]) -> None:
    fields = "{name: word, type: string, default: one two}"
    assert service_of(f"command: {written}", fields=fields).command == words
    assert service_of(f"entrypoint: {written}", fields=fields).entrypoint == words


def test_no_command_is_the_image_s_own() -> None:
    service = service_of("command:\nentrypoint: null")
    assert (service.command, service.entrypoint) == (None, None)


@pytest.mark.parametrize(
    ("written", "check"),
    [
        (
            '{test: ["CMD", "a", "b"], interval: 1m30s, timeout: 500ms, start_period: 2h, retries: 7}',
            HealthSpec(
                test=("CMD", "a", "b"), interval_seconds=90, timeout_seconds=0.5, start_period_seconds=7200, retries=7
            ),
        ),
        ('{test: ["CMD-SHELL", "a || b"]}', HealthSpec(test=("CMD-SHELL", "a || b"))),
        ("{test: [CMD-SHELL, a, -b]}", HealthSpec(test=("CMD-SHELL", "a", "-b"))),
        ("{test: a $$B || b}", HealthSpec(test=("CMD-SHELL", "a $B || b"))),
        ('{test: ["NONE"]}', HealthSpec(test=("NONE",))),
        ("{disable: true}", HealthSpec(test=("NONE",))),
        ('{test: [CMD, a, "${word}"]}', HealthSpec(test=("CMD", "a", "x; y"))),
        ('{test: [CMD, a], retries: "4"}', HealthSpec(test=("CMD", "a"), retries=4)),
        ("{disable: false}", None),
    ],
)
def test_health_checks(written: str, check: HealthSpec | None) -> None:
    assert (
        service_of(f"healthcheck: {written}", fields="{name: word, type: string, default: x; y}").healthcheck == check
    )


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("{test: [a, b]}", "test.0 must be one of: CMD, CMD-SHELL, NONE"),
        ("{test: [CMD]}", "test must be a list with something to run"),
        ("{test: [CMD-SHELL]}", "test must be a list with something to run"),
        ("{test: [NONE, a]}", "test must be [NONE] alone"),
        ("{test: []}", "test must be a list with at least one item"),
        ("{test: ' '}", "test must be a command"),
        ("{test: 5}", "test must be a list of strings"),
        ("{test: [CMD, 5]}", "test.1 must be a string; put it in quotes"),
        ("{interval: 5s}", "test is required; without one leave healthcheck out"),
        ("{test: [CMD, a], interval: 5}", "interval must be a duration such as 30s or 1m30s"),
        ("{test: [CMD, a], interval: 0s}", "interval must be at least 1ms"),
        ("{test: [CMD, a], retries: 0}", "retries must be a whole number between 1 and 1000"),
        ("{test: [CMD, a], intervall: 5s}", "intervall is not known here; did you mean interval?"),
        ("[CMD, a]", "healthcheck must be a mapping"),
    ],
)
def test_health_checks_that_are_wrong(written: str, sentence: str) -> None:
    assert f"{sentence} (line 5)" in problems_of(service_text(f"healthcheck: {written}")).values()


@pytest.mark.parametrize(
    ("written", "attribute", "value"),
    [
        ("restart: no", "restart", RestartSpec(policy="no")),
        ('restart: "no"', "restart", RestartSpec(policy="no")),
        ("restart: always", "restart", RestartSpec(policy="always")),
        ("restart: on-failure:5", "restart", RestartSpec(policy="on-failure", max_retries=5)),
        ("restart: unless-stopped", "restart", RestartSpec(policy="unless-stopped")),
        ("init: true", "init", True),
        ("expose: [80]", "init", False),
        ("user: 1000", "user", "1000"),
        ("user: 1000:1000", "user", "1000:1000"),
        ("user: www-data", "user", "www-data"),
        ("working_dir: /srv/app/", "working_dir", "/srv/app"),
        ("hostname: mail.example", "hostname", "mail.example"),
        ("hostname: blog_db", "hostname", "blog_db"),
        ("read_only: true", "read_only", True),
        ("read_only: 'True'", "read_only", True),
        ("network_mode: bridge", "networks", (AttachmentSpec(network="default"),)),
        ("deploy: {mode: replicated, replicas: 1}", "init", False),
        ("pid: ''", "init", False),
        ("stop_signal: SIGQUIT", "stop_signal", "SIGQUIT"),
        ("stop_grace_period: 1m30s", "stop_grace_seconds", 90.0),
        ("shm_size: 64m", "shm_size_bytes", 64 << 20),
        ("shm_size: 1048576", "shm_size_bytes", 1 << 20),
        ("labels: {a.b: 1, c: , d: x}", "labels", {"a.b": "1", "c": "", "d": "x"}),
        ("labels: [a=b=c, d]", "labels", {"a": "b=c", "d": ""}),
        ("labels: {x-mine: a}", "labels", {"x-mine": "a"}),
        ("labels: ['a.${size}.rule=${nope:-b=c}', 'd']", "labels", {"a.256.rule": "b=c", "d": ""}),
        ("labels: {'a.${size}': b}", "labels", {"a.${size}": "b"}),
        (
            "ulimits: {nofile: 1024, memlock: {soft: -1, hard: -1}, nproc: {soft: 1, hard: 2}}",
            "ulimits",
            (
                UlimitSpec(name="nofile", soft=1024, hard=1024),
                UlimitSpec(name="memlock", soft=-1, hard=-1),
                UlimitSpec(name="nproc", soft=1, hard=2),
            ),
        ),
        (
            "mem_limit: 512m\nmem_reservation: 64m\ncpus: 0.5\npids_limit: 100",
            "resources",
            ResourceSpec(memory_bytes=512 << 20, memory_reservation_bytes=64 << 20, cpus=0.5, pids=100),
        ),
        (
            "deploy: {replicas: 1, resources: {limits: {memory: 512M, cpus: '1.5', pids: 9}, reservations: {memory: 64M}}}",
            "resources",
            ResourceSpec(memory_bytes=512 << 20, memory_reservation_bytes=64 << 20, cpus=1.5, pids=9),
        ),
        (
            "mem_limit: 1g\ndeploy: {resources: {limits: {memory: 1024m}}}",
            "resources",
            ResourceSpec(memory_bytes=1 << 30),
        ),
        ("mem_limit: ${size}m", "resources", ResourceSpec(memory_bytes=256 << 20)),
        ("read_only: ${flag}", "read_only", True),
        ("security_opt: [no-new-privileges:true]", "read_only", False),
        ("privileged: false\ndevices: []\nnetwork_mode:\nstdin_open: false", "read_only", False),
        ("x-anything: {a: 1}", "read_only", False),
        ("cap_drop: [ALL]", "cap_add", ()),
        ("cap_drop: [ALL]\ncap_add: [NET_BIND_SERVICE, cap_chown]", "cap_add", ("CHOWN", "NET_BIND_SERVICE")),
        ("cap_drop: [SETUID, MKNOD]", "cap_add", tuple(sorted(DEFAULT_CAPABILITIES - {"SETUID"}))),
        ("cap_add: [SYS_CHROOT]", "cap_add", tuple(sorted(DEFAULT_CAPABILITIES | {"SYS_CHROOT"}))),
        ("cap_add: [SYS_CHROOT]", "cap_drop", ("ALL",)),
        ("networks: [front]", "networks", (AttachmentSpec(network="front"),)),
        (
            "networks: {front: {aliases: [a, b.c]}, back: }",
            "networks",
            (AttachmentSpec(network="front", aliases=("a", "b.c")), AttachmentSpec(network="back")),
        ),
        ("networks: {default: {aliases: [a]}}", "networks", (AttachmentSpec(network="default", aliases=("a",)),)),
        ("container_name: my_app", "networks", (AttachmentSpec(network="default", aliases=("my_app",)),)),
        (
            "container_name: my_app\nnetworks: [front]",
            "networks",
            (AttachmentSpec(network="front", aliases=("my_app",)),),
        ),
    ],
)
def test_other_keys(written: str, attribute: str, value: object) -> None:
    fields = "{name: size, type: integer, default: 256}, {name: flag, type: boolean, default: true}"
    found = service_of(written, fields=fields, tail="networks: {front: , back: {internal: true}}")
    assert getattr(found, attribute) == value


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("restart: sometimes", "restart must be one of: no, always, on-failure, unless-stopped"),
        ("restart: always:5", "restart must be one of: no, always, on-failure, unless-stopped"),
        ("init: 1", "init must be true or false"),
        ("read_only: 'maybe'", "read_only must be true or false"),
        ("user: -x", "user must be a user such as 1000, 1000:1000 or www-data"),
        ("working_dir: srv", "working_dir must be an absolute path in the container"),
        ("hostname: a b", "hostname must be a host name: labels of letters, digits, '-' and '_', joined by dots"),
        ("stop_signal: SIGNOPE", "stop_signal must be a signal such as SIGTERM"),
        ("stop_grace_period: 90", "stop_grace_period must be a duration such as 30s or 1m30s"),
        ("shm_size: lots", "shm_size must be a size such as 64m or 1gb"),
        ("mem_limit: 1m", "mem_limit must be at least 6m, the least that the engine takes"),
        ("mem_limit: -1", "mem_limit must be a size such as 64m or 1gb"),
        ("cpus: 0", "cpus must be a number of CPUs between 0.01 and 1024, such as 0.5"),
        ("pids_limit: -1", "pids_limit must be a whole number between 1 and 65536"),
        ("mem_limit: 64m\nmem_reservation: 65m", "web reserves more memory than its limit"),
        ("cap_drop: [EVERYTHING]", "cap_drop.0 must be a Linux capability such as NET_BIND_SERVICE"),
        (
            "ulimits: {rtprio: 5}",
            "rtprio must be one of: core, cpu, data, fsize, locks, memlock, msgqueue, nofile, nproc, rss, sigpending, stack",
        ),
        ("ulimits: {nofile: {soft: 5, hard: 4}}", "nofile: soft must not be above hard"),
        ("ulimits: {nofile: {soft: 5}}", "nofile needs soft and hard"),
        ("networks: [nope]", "nope is not declared under networks"),
        (
            "networks: {default: {aliases: [a b]}}",
            "aliases.0 must be a host name: labels of letters, digits, '-' and '_', joined by dots",
        ),
        ("labels: {a b: c}", "a b must be named with 1 to 255 printable characters without spaces and '='"),
        ("expose: [x]", "expose.0 must be a port such as 3000"),
        ("platform: 'a b'", "platform must be a platform such as linux/amd64"),
        (
            "pull_policy: sometimes",
            "pull_policy must be one of: always, missing, never, daily, weekly, every_<duration>",
        ),
        ("command: [a, 5]", "command.1 must be a string; put it in quotes"),
        ("command: echo 'a", "command must be a line whose quotes are closed"),
        (
            "command: migrate && serve '&'",
            'command has &, which only a shell knows: write ["sh", "-c", "…"], or put it in quotes',
        ),
        ("command: {a: b}", "command must be a string or a list of strings"),
        ("evironment: {}", "evironment is not known here; did you mean environment?"),
        ("depends_on: [web]", "web depends on itself"),
        ("depends_on: [db]", "There is no service db"),
        ("depends_on: {db: }", "There is no service db"),
        ("image: nginx", "image stands here for the second time; the first is on line 4"),
    ],
)
def test_other_keys_that_are_wrong(written: str, sentence: str) -> None:
    details = problems_of(service_text(written))
    assert any(said.startswith(f"{sentence} (line ") for said in details.values()), details


def test_limits_that_differ() -> None:
    details = problems_of(service_text("mem_limit: 64m\ndeploy: {resources: {limits: {memory: 65m}}}"))
    assert details == {
        "services.web.deploy.resources.limits.memory": "memory and the same limit elsewhere differ (line 6)"
    }


def test_services_stand_in_the_order_of_their_dependencies() -> None:
    template = parse_template(
        template_text(
            """\
            services:
              a: {image: x, depends_on: [c]}
              b: {image: x, depends_on: {a: {condition: service_started, required: false, restart: true}}}
              c: {image: x}
              d: {image: x}
            """
        )
    )
    spec = spec_of(template)
    assert [service.name for service in spec.services] == ["c", "a", "b", "d"]
    assert spec.services[2].depends_on == (DependencySpec(service="a", required=False),)
    assert template.notes == (
        "services.b.depends_on.a.restart is ignored: a restart of one service leaves the others as they are (line 4)",
    )


def test_names_that_look_like_extension_keys() -> None:
    spec = spec_of(
        parse_template(
            template_text(
                "services:\n  a: {image: x, depends_on: {x-b: }, networks: {x-n: }}\n  x-b: {image: y}\nnetworks: {x-n: }\n"
            )
        )
    )
    assert [service.name for service in spec.services] == ["x-b", "a"]
    assert spec.services[1].networks == (AttachmentSpec(network="x-n"),)


def test_dependencies_in_a_circle() -> None:
    details = problems_of(
        template_text(
            "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [c]}\n  c: {image: x, depends_on: [a]}\n"
        )
    )
    assert details == {"services.a.depends_on": "These services wait for each other in a circle: a, b, c (line 3)"}


def test_waiting_for_a_health_that_is_switched_off() -> None:
    details = problems_of(
        template_text(
            "services:\n  a: {image: x, depends_on: {b: {condition: service_healthy}}}\n  b: {image: x, healthcheck: {disable: true}}\n"
        )
    )
    assert details == {"services.a.depends_on": "b can never become healthy: its health check is switched off (line 3)"}


def test_networks() -> None:
    template = parse_template(
        template_text(
            """\
            services:
              a: {image: x, networks: [inner]}
            networks:
              inner: {internal: true, driver: bridge, labels: {a: b}}
              unused:
            """
        )
    )
    assert spec_of(template).networks == (NetworkSpec(name="inner", internal=True), NetworkSpec(name="unused"))
    assert template.notes == ("networks.inner.labels are ignored: only services carry labels (line 5)",)


def test_host_ports_of_two_services_clash() -> None:
    details = problems_of(
        template_text('services:\n  a: {image: x, ports: ["80:80"]}\n  b: {image: x, ports: ["80:81"]}\n')
    )
    assert details == {"services.b.ports.0": "The host port is already published by services.a.ports.0 (line 4)"}


@pytest.mark.parametrize("name", ["a b", "-v", "a;id", "$(id)", "a/b", "ä", "a" * 64, "a.b", "_a"])
def test_s01_names_of_services(name: str) -> None:
    details = problems_of(template_text(f'services:\n  "{name}": {{image: x}}\n'))
    (sentence,) = [said for path, said in details.items() if path.startswith("services.")]
    assert sentence.endswith("must be 1 to 63 letters, digits, '-' and '_', without a sign at either end (line 3)")


@pytest.mark.parametrize("section", ["volumes", "networks", "configs", "secrets"])
def test_s01_names_of_the_rest(section: str) -> None:
    entry = "{content: x}" if section in {"configs", "secrets"} else "{}"
    details = problems_of(service_text("init: true", tail=f'{section}:\n  "$(id)": {entry}\n'))
    assert details == {
        f"{section}.$(id)": "$(id) must be 1 to 63 letters, digits, '.', '-' and '_', without a sign at either end (line 7)"
    }


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        (
            "services: {a: {image: x}}",
            "x-quazzar",
            "x-quazzar is required: a template says its slug, version and title there (line 1)",
        ),
        ("x-quazzar: {}\nservices: {a: {image: x}}", "x-quazzar.slug", "slug is required (line 1)"),
        (template_text(""), "services", "services is required: an app has at least one (line 1)"),
        (template_text("services: {}"), "services", "services is required: an app has at least one (line 1)"),
        (template_text("services: [a]"), "services", "services must be a mapping (line 2)"),
        (template_text("services: {a: x}"), "services.a", "a must be a mapping (line 2)"),
        (template_text("services: {a: }"), "services.a", "a must be a mapping (line 2)"),
        (template_text("services: {a: {}}"), "services.a.image", "image is required (line 2)"),
        (template_text("services: {a: {image: }}"), "services.a.image", "image must be a string (line 2)"),
        (
            template_text("services: {a: {image: 5}}"),
            "services.a.image",
            "image must be a string; put it in quotes (line 2)",
        ),
        (
            template_text("services: {a: {image: x}}\nservice: {}"),
            "service",
            "service is not known here; did you mean services? (line 3)",
        ),
        ("- a", "compose", "The file must be a mapping with services (line 1)"),
        ("just text", "compose", "The file must be a mapping with services (line 1)"),
        (
            template_text("services: {a: {image: x}}", extra="web: {service: b, port: 80}"),
            "x-quazzar.web.service",
            "There is no service b (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="web: {service: a, port: 0}"),
            "x-quazzar.web.port",
            "port must be a whole number between 1 and 65535 (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="web: {service: a}"),
            "x-quazzar.web.port",
            "port is required (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="backup: {volumes: [x]}"),
            "x-quazzar.backup.volumes.0",
            "volumes.0 is not declared under volumes (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="backup: {volume: [x]}"),
            "x-quazzar.backup.volume",
            "volume is not known here; did you mean volumes? (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="icon: 'javascript:x'"),
            "x-quazzar.icon",
            "icon must be a name such as gitea.svg or an https:// address (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="website: 'ftp://x'"),
            "x-quazzar.website",
            "website must be an address that begins with https:// or http:// (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="category: A B"),
            "x-quazzar.category",
            "category must be 1 to 40 of a-z, 0-9 and '-' (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="needs: {memory: 5m}"),
            "x-quazzar.needs.memory",
            "memory must be at least 6m, the least that the engine takes (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="needs: {disk: much}"),
            "x-quazzar.needs.disk",
            "disk must be a size such as 64m or 1gb (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="needs: {memory: 1g, cpu: 2}"),
            "x-quazzar.needs.cpu",
            "cpu is not known here (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="needs: 1g"),
            "x-quazzar.needs",
            "needs must be a mapping (line 1)",
        ),
        (
            template_text("services: {a: {image: x}}", extra="first_steps: [a]"),
            "x-quazzar.first_steps",
            "first_steps must be a string (line 1)",
        ),
        (
            "x-quazzar: {slug: A, version: '1', title: T}\nservices: {a: {image: x}}",
            "x-quazzar.slug",
            "slug must be 1 to 63 of a-z, 0-9 and '-', without '-' at either end (line 1)",
        ),
        (
            "x-quazzar: {slug: a, version: 1.10, title: T}\nservices: {a: {image: x}}",
            "x-quazzar.version",
            "version must be a string; put it in quotes (line 1)",
        ),
    ],
)
def test_the_file_as_a_whole(text: str, path: str, sentence: str) -> None:
    details = problems_of(text)
    assert details[path] == sentence


def test_all_problems_at_once_in_the_order_of_lines() -> None:
    with pytest.raises(TemplateInvalid) as caught:
        parse_template(service_text("privileged: true\nrestart: x\nnope: 1\nports: [x]"))
    assert [(one.path, one.line, one.code) for one in caught.value.problems] == [
        ("services.web.privileged", 5, "refused"),
        ("services.web.restart", 6, "invalid"),
        ("services.web.nope", 7, "unknown"),
        ("services.web.ports.0", 8, "invalid"),
    ]


def test_many_problems_are_cut() -> None:
    keys = "\n".join(f"k{number}: 1" for number in range(500))
    details = problems_of(service_text(keys))
    assert len(details) == 101
    assert details["compose"] == "There are more problems than are listed"


def test_merges_anchors_and_extension_keys() -> None:
    template = parse_template(
        template_text(
            """\
            name: tolerated
            version: "3.8"
            x-base: &base
              image: nginx:1.27
              environment: &env {A: x}
            services:
              one: {<<: *base}
              two: {<<: *base, environment: {<<: *env, B: y}}
            """
        )
    )
    one, two = spec_of(template).services
    assert (one.image, one.environment, two.environment) == ("nginx:1.27", {"A": "x"}, {"A": "x", "B": "y"})


def test_what_is_done_in_another_way_is_noted() -> None:
    template = parse_template(
        service_text(
            """
            container_name: mine
            platform: linux/amd64
            pull_policy: always
            healthcheck: {test: [CMD, a], start_interval: 1s}
            networks: {default: {priority: 5}}
            deploy: {resources: {reservations: {cpus: "0.5"}}}
            network_mode: bridge
            logging: {driver: json-file, options: {max-size: 10m}}
            environment: [A=1, B=2, A=3]
            """
        )
    )
    assert [re.split(r" (?:is|are) ", note)[0] for note in template.notes] == [
        "services.web.container_name",
        "services.web.platform",
        "services.web.pull_policy",
        "services.web.healthcheck.start_interval",
        "services.web.networks.default.priority",
        "services.web.deploy.resources.reservations.cpus",
        "services.web.network_mode",
        "services.web.logging",
        "services.web.environment.2 names what stands before already: the last one holds (line 13)",
    ]
    assert spec_of(template).services[0].environment == {"A": "3", "B": "2"}
