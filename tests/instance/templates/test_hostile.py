"""Whatever text arrives, the answer is a template or a refusal, and soon."""

import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quazzar.core.errors import Invalid
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.templates.compose import (
    Template,
    TemplateInvalid,
    check_config,
    parse_compose,
    parse_template,
    ports_wanted,
    with_ports,
)
from quazzar.instance.templates.rendering import render
from quazzar.instance.templates.yaml_nodes import MAX_BYTES
from tests.instance.templates.test_compose import CONTRACT
from tests.instance.templates.writing import template_text


def parsed(parse: Callable[[], Template]) -> Template | None:
    try:
        template = parse()
    except TemplateInvalid as error:
        assert error.problems
        assert error.details
        assert len(error.problems) <= 101
        assert all(one.message for one in error.problems)
        msgspec.json.encode(error.details)
        return None
    assert msgspec.json.decode(msgspec.json.encode(template), type=Template) == template
    return template


def rendered(template: Template) -> AppSpec | None:
    try:
        config = check_config(template, {})
        config = with_ports(template, config, list(range(42000, 42000 + ports_wanted(template, config))))
        return render(template, config, app_id="app_1", project="p")
    except Invalid:
        return None


def anything(text: str | bytes) -> None:
    for template in (
        parsed(lambda: parse_template(text)),
        parsed(lambda: parse_compose(text, name="a", env={"A": "b"})),
    ):
        if template is not None:
            rendered(template)


@given(st.text() | st.binary())
@example("")
@example("\x00")
@example("\ud800")
@example(b"\xff\xfe")
@example("---\n...\n---\n")
def test_any_text(text: str | bytes) -> None:
    anything(text)


KEYS = st.sampled_from(
    [
        "services", "volumes", "networks", "configs", "secrets", "x-quazzar", "image", "command", "entrypoint",
        "environment", "ports", "expose", "tmpfs", "depends_on", "healthcheck", "restart", "user", "working_dir",
        "hostname", "read_only", "cap_add", "cap_drop", "init", "stop_grace_period", "stop_signal", "ulimits",
        "shm_size", "labels", "deploy", "mem_limit", "cpus", "pids_limit", "container_name", "platform",
        "pull_policy", "security_opt", "privileged", "build", "include", "test", "interval", "retries", "disable",
        "target", "published", "protocol", "host_ip", "type", "source", "content", "file", "mode", "resources",
        "limits", "reservations", "memory", "soft", "hard", "nofile", "aliases", "condition", "required",
        "internal", "driver", "driver_opts", "external", "slug", "version", "title", "fields", "web", "backup",
        "hooks", "before", "after", "service", "port", "name", "label", "default", "pattern", "min", "max",
        "generated", "options", "secret", "db", "data", "a", "needs", "disk", "first_steps",
    ]
) | st.text(max_size=6)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "nginx:1.27", "80", "8080:80", "data:/data", "/data", "./x:/y", "${a}", "${a:-b}", "$$", "${", "a",
            "web", "db", "data", "1.0", "CMD", "CMD-SHELL", "30s", "64m", "auto", "port", "string", "password",
            "[a-z]+", "host", "tcp", "A=b", "ALL", "no", "default",
        ]
    )
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)


def dumped(value: Any) -> str:
    return yaml.safe_dump(value, allow_unicode=True)


@settings(max_examples=100)
@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_any_tree(tree: dict[str, Any]) -> None:
    anything(dumped(tree))


@settings(max_examples=120)
@given(st.dictionaries(KEYS, TREES, max_size=6), st.dictionaries(KEYS, TREES, max_size=3), TREES)
def test_any_service(service: dict[str, Any], top: dict[str, Any], fields: Any) -> None:
    block = {"slug": "a", "version": "1", "title": "A", "fields": fields}
    whole = {**top, "x-quazzar": block, "services": {"web": {"image": "nginx", **service}, "db": {"image": "x"}}}
    anything(dumped(whole))
    anything(dumped({**whole, "x-quazzar": {**block, "fields": []}}))


@settings(max_examples=120)
@given(st.data())
def test_a_good_file_with_a_bad_spot(data: st.DataObject) -> None:
    tree = yaml.safe_load(CONTRACT)
    place: Any = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        below = place[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.booleans()):
            place[key] = data.draw(TREES)
            break
        place = below
    anything(dumped(tree))


@settings(max_examples=100)
@given(st.integers(0, len(CONTRACT)), st.integers(0, 30), st.text(max_size=8))
def test_a_good_file_with_other_letters(at: int, cut: int, text: str) -> None:
    anything(CONTRACT[:at] + text + CONTRACT[at + cut :])


def service(keys: str) -> str:
    return template_text("services:\n  a: {image: x, " + keys + "}\n")


def fifty(keys: str) -> str:
    return template_text(f"services:\n  s: &s {{image: x, {keys}}}\n" + "".join(f"  s{n}: *s\n" for n in range(49)))


FULL = MAX_BYTES - 500
WORST = {
    "unknown keys": template_text("services:\n  a: {image: x}\n" + "".join(f"k{n}: 1\n" for n in range(9900))),
    "unknown keys of a service": service(", ".join(f"k{n}: 1" for n in range(9900))),
    "one long key": service("? " + "k" * FULL + " : 1"),
    "references": service('environment: {A: "' + "$a" * (FULL // 2) + '"}'),
    "references with defaults": service('environment: {A: "' + "${a:-b}" * (FULL // 7) + '"}'),
    "references within the bound": service('environment: {A: "' + "${a:-b}" * 19_000 + '"}'),
    "nested references": service('environment: {A: "' + "${a:-" * (FULL // 5) + '"}'),
    "braces": service('environment: {A: "' + ("${a:-" + "{}" * 2000 + "}") * (FULL // 4006) + '"}'),
    "escapes": service('environment: {A: "' + "$$" * (FULL // 2) + '"}'),
    "a long command": service('command: "' + "a " * (FULL // 2) + '"'),
    "many commands": fifty('command: "' + "a " * 2000 + '", entrypoint: "' + "b " * 2000 + '"'),
    "dependencies": service("depends_on: [" + "s," * 15_000 + "]"),
    "open ports": fifty('ports: ["1-90"]'),
    "ranges of ports": service("ports: [" + '"1-90:1-90",' * 15_000 + "]"),
    "volumes": service("volumes: [" + '"a:/a",' * 15_000 + "]") + "volumes: {a: }\n",
    "an image": service('command: a, image: "' + "a" * FULL + '"').replace("image: x, ", ""),
    "an image of dashes": template_text('services: {a: {image: "' + "a-" * 240 + '"}}'),
    "aliases": service("networks: {default: {aliases: [" + ",".join(f"a{n}" for n in range(15_000)) + "]}}"),
    "labels": service("labels: [" + ",".join(f"a{n}=b" for n in range(15_000)) + "]"),
    "a health check": service("healthcheck: {test: [CMD, " + '"${A:-b}",' * 900 + "]}"),
    "patterns": template_text(
        "services: {a: {image: x}}",
        fields=", ".join(
            f'{{name: a{n}, type: string, pattern: "([a-b]?[b-c]?[a-c]?){{{100 + n}}}", default: {"ab" * 2000}}}'
            for n in range(100)
        ),
    ),
    "options": template_text(
        "services: {a: {image: x}}",
        fields=", ".join(
            f"{{name: a{n}, type: select, options: [{','.join(f'o{m}' for m in range(99))}]}}" for n in range(99)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORST)
def test_s13_the_worst_files_are_answered_soon(name: str) -> None:
    for parse in (parse_template, lambda text: parse_compose(text, name="a")):
        began = time.process_time()
        parsed(lambda parse=parse: parse(WORST[name]))  # type: ignore[misc]
        assert time.process_time() - began < 4, "about a second on a quiet machine"


@pytest.mark.torture
def test_a_long_campaign_of_broken_files() -> None:
    source = random.Random(7)
    letters = CONTRACT + "&*!|>{}[]$%@`\"'\\\t"
    for _ in range(3000):
        text = list(CONTRACT)
        for _ in range(source.randint(1, 12)):
            at = source.randrange(len(text))
            text[at : at + source.randint(0, 4)] = source.choices(letters, k=source.randint(0, 4))
        anything("".join(text))
