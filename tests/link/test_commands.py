"""What arguments a command may have."""

from typing import Any

import pytest

from quazzar.core.errors import Invalid
from quazzar.link.commands import COMMANDS, InstallArgs, check_args


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"config": value}
    return value


@pytest.mark.parametrize("app", ["cloud", "cafe", "app_" + "a2" * 13, "a" * 63, "deadbeefcafe1"])
def test_an_app_is_meant_by_its_name_or_its_id(app: str) -> None:
    for kind in COMMANDS:
        if kind.startswith("app.") and kind != "app.install":
            assert getattr(check_args(kind, {"app": app}), "app") == app  # noqa: B009 - of several structs


@pytest.mark.parametrize(
    "app",
    ["0f3b2c1d4e5f", "0f3b" * 16, "", "-a", "a;id", "../a", "A", "a\n", "app_short", "svc_" + "a" * 26, 1, None, b"a"],
)
def test_a_container_is_not_an_app(app: object) -> None:
    """S-14: nor is anything else."""
    with pytest.raises(Invalid) as refused:
        check_args("app.stop", {"app": app})
    assert refused.value.details == {"args.app": "App must be the name or the id of an app"}


def test_settings_of_all_kinds_are_taken() -> None:
    config = {"a": True, "b": 1, "c": 1.5, "d": None, "e": "", "f": -(2**53)}
    made = check_args("app.install", {"template": "gitea", "name": "git", "config": config})
    assert isinstance(made, InstallArgs)
    assert made.config == config


@pytest.mark.parametrize(
    ("kind", "args", "fields"),
    [
        ("app.install", {}, {"args.template", "args.name"}),
        ("app.install", {"template": "a", "name": "A b", "nane": 1}, {"args.name", "args.nane"}),
        ("app.install", {"template": "a", "name": "a", "version": "; id"}, {"args.version"}),
        ("app.install", {"template": "a", "name": "a", "resources": {"cpus": 0}}, {"args.resources.cpus"}),
        ("app.install", {"template": "a", "name": "a", "resources": {"cpus": float("nan")}}, {"args"}),
        (
            "app.install",
            {"template": "a", "name": "a", "domain": "a b", "hostname": "x"},
            {"args.domain", "args.hostname"},
        ),
        ("app.uninstall", {"app": "a", "keep_data": 1}, {"args.keep_data"}),
        ("instance.refresh", {"x": 1}, {"args.x"}),
        ("app.start", [], {"args"}),
        ("app.start", None, {"args"}),
        ("app.start", {1: 2, "app": "a"}, {"args.1"}),
    ],
)
def test_every_field_that_fails_is_named(kind: str, args: object, fields: set[str]) -> None:
    with pytest.raises(Invalid) as refused:
        check_args(kind, args)
    assert set(refused.value.details) == fields


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 2**63, "a\0", "x" * 40_000, [1], {}, b"x", nested(5_000)]
)
def test_what_json_and_the_database_can_not_hold_is_no_setting(value: object) -> None:
    with pytest.raises(Invalid) as refused:
        check_args("app.install", {"template": "a", "name": "a", "config": {"x": value}})
    assert all(field.startswith("args") for field in refused.value.details)


@pytest.mark.parametrize("config", [{1: 1}, {"a\0": 1}, {str(number): 1 for number in range(501)}, nested(5_000)])
def test_names_of_settings_are_bounded_too(config: object) -> None:
    with pytest.raises(Invalid):
        check_args("app.install", {"template": "a", "name": "a", "config": config})
