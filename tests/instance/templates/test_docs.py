"""The pages on templates say what the validator does: every key, every type, every refusal with its reason."""

import re
from pathlib import Path
from typing import get_args

import pytest

from quazzar.instance.apps.models import AppStatus
from quazzar.instance.templates import refusals
from quazzar.instance.templates.compose import parse_template
from quazzar.instance.templates.compose_services import _DEPLOY_KEYS
from quazzar.instance.templates.extension import FIELD_KEYS, FIELD_TYPES, KEYS
from quazzar.instance.templates.names import SAFE_CAPABILITIES
from tests.instance.templates.writing import minimal_config, spec_of

DOCS = Path(__file__).parents[3] / "docs"
TEMPLATES = (DOCS / "templates.md").read_text()
COMPOSE = (DOCS / "from-compose.md").read_text()


def first_cells(text: str, heading: str) -> dict[str, str]:
    """The rows of the tables below a heading: what stands in backticks first → the next cell."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", part, re.MULTILINE))


def test_the_example_is_a_template() -> None:
    [example] = re.findall(r"```yaml template\n(.+?)```", TEMPLATES, re.DOTALL)
    template = parse_template(example)
    assert template.notes == ()
    assert [service.name for service in spec_of(template, **minimal_config(template)).services] == ["db", "web"]


def test_every_key_of_the_block_is_described() -> None:
    assert set(first_cells(TEMPLATES, "The block")) == set(KEYS)


def test_every_key_and_type_of_a_field_is_described() -> None:
    assert set(first_cells(TEMPLATES, "Fields")) == set(FIELD_KEYS) | set(FIELD_TYPES)


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("Refused in a service", refusals.REFUSED_IN_SERVICE),
        ("Not supported in a service", refusals.UNSUPPORTED_IN_SERVICE),
        ("Not supported under `deploy`", _DEPLOY_KEYS),
        ("Refused at the top of the file", {**refusals.REFUSED_AT_TOP, **refusals.UNSUPPORTED_AT_TOP}),
        ("Refused of a volume", refusals.REFUSED_IN_VOLUME),
        ("Refused of a network", refusals.REFUSED_IN_NETWORK),
        ("Refused of a config or secret", refusals.REFUSED_IN_FILE),
    ],
)
def test_every_refusal_is_told_with_its_reason(heading: str, table: dict[str, str]) -> None:
    assert first_cells(COMPOSE, heading) == dict(table)


def test_every_capability_that_may_be_added_is_named() -> None:
    assert {name for name in SAFE_CAPABILITIES if f"`{name}`" in COMPOSE} == SAFE_CAPABILITIES


def test_every_status_is_explained() -> None:
    cells = re.findall(r"^\| (`.+?) \|", (DOCS / "apps.md").read_text(), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} >= set(get_args(AppStatus))
