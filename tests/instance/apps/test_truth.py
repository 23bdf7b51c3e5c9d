"""What an app is, for everything that an engine can say of it."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.apps.runtimes.base import AppState, ServiceState
from quazzar.instance.apps.schemas import ServiceOut
from quazzar.instance.apps.spec import AppSpec, DependencySpec, RestartSpec, ServiceSpec
from quazzar.instance.apps.truth import Expected, Verdict, expected_services, judge, services_view

WEB, DB, INIT = Expected("web"), Expected("db"), Expected("init", finite=True)


def service(name: str, status: Any = "running", **options: Any) -> ServiceState:
    return ServiceState(
        name=name, container_id=f"{name}-id", image="image:1", image_digest=None, status=status, **options
    )


def state(*services: ServiceState) -> AppState:
    return AppState(app_id="app_x", services=services)


@pytest.mark.parametrize(
    ("services", "status", "reason"),
    [
        ([service("web"), service("db")], "running", None),
        ([service("web", health="healthy"), service("db", health="starting")], "running", None),
        ([service("web", health="unhealthy"), service("db")], "unhealthy", 'health check of service "web"'),
        ([service("web", "paused"), service("db")], "unhealthy", '"web" is paused'),
        ([service("web", "exited", exit_code=0), service("db")], "unhealthy", '"web" is stopped'),
        ([service("web", "exited", exit_code=143), service("db")], "unhealthy", '"web" is stopped'),
        ([service("web", "exited", exit_code=1), service("db")], "crashed", '"web" ended (exit code 1)'),
        ([service("web", "exited", exit_code=137), service("db")], "crashed", "(exit code 137)"),
        ([service("web", "exited", exit_code=137, oom_killed=True), service("db")], "crashed", "more memory"),
        ([service("web", "exited", exit_code=0, oom_killed=True), service("db")], "crashed", "more memory"),
        ([service("web", "dead", exit_code=0), service("db")], "crashed", '"web" ended'),
        ([service("web", "created"), service("db")], "crashed", "never started"),
        ([service("web", "restarting", exit_code=3), service("db")], "crashed", "keeps restarting (exit code 3)"),
        ([service("db")], "crashed", 'service "web" was removed'),
        ([service("web", "exited", exit_code=0), service("db", "exited", exit_code=0)], "stopped", "outside"),
        ([service("web", "exited", exit_code=0), service("db", "exited", exit_code=2)], "crashed", '"db" ended'),
    ],
)
def test_apps_that_should_run(services: list[ServiceState], status: str, reason: str | None) -> None:
    verdict = judge(state(*services), [WEB, DB], "running")
    assert verdict.status == status
    assert verdict.reason is None if reason is None else reason in (verdict.reason or "")


def test_nothing_left() -> None:
    for gone in (None, state()):
        assert judge(gone, [WEB], "running").status == "crashed"
        assert judge(gone, [WEB], "stopped").status == "stopped"


def test_what_was_stopped_by_hand_has_not_crashed() -> None:
    killed = state(service("web", "exited", exit_code=137))
    assert judge(killed, [WEB], "running").status == "crashed"
    assert judge(killed, [WEB], "running", stopped={"web"}).status == "stopped"
    oom = state(service("web", "exited", exit_code=137, oom_killed=True))
    assert judge(oom, [WEB], "running", stopped={"web"}).status == "crashed"


def test_an_app_that_should_be_stopped_is_so_whatever_its_exit_code() -> None:
    for code in (0, 1, 137, 143):
        verdict = judge(state(service("web", "exited", exit_code=code)), [WEB], "stopped")
        assert verdict == Verdict("stopped")
    assert judge(state(service("web")), [WEB], "stopped").status == "running"


def test_services_that_are_meant_to_end() -> None:
    done = service("init", "exited", exit_code=0)
    assert judge(state(done, service("web")), [INIT, WEB], "running") == Verdict("running")
    assert judge(state(service("init", "exited", exit_code=1), service("web")), [INIT, WEB], "running").status == (
        "crashed"
    )
    assert judge(state(done), [INIT], "running") == Verdict("stopped", "All its services have ended")


def test_what_is_not_settled_yet() -> None:
    assert not judge(state(service("web", health="starting")), [WEB], "running").settled
    assert not judge(state(service("web", "restarting", exit_code=1)), [WEB], "running").settled
    assert judge(state(service("web", health="healthy")), [WEB], "running").settled


def test_expected_services_of_a_spec() -> None:
    def made(name: str, **options: Any) -> ServiceSpec:
        return ServiceSpec(name=name, image="i", **options)

    spec = AppSpec(
        app_id="app_x",
        project="x",
        services=(
            made("init"),
            made("job", restart=RestartSpec(policy="no")),
            made("retry", restart=RestartSpec(policy="on-failure")),
            made(
                "web",
                depends_on=(DependencySpec(service="init", condition="service_completed_successfully"),),
            ),
        ),
    )
    assert expected_services(spec) == [
        Expected("init", finite=True),
        Expected("job", finite=True),
        Expected("retry", finite=True),
        Expected("web"),
    ]


def test_the_view_is_what_answers_promise_and_names_what_is_missing() -> None:
    started = datetime(2026, 1, 31, 12, tzinfo=UTC)
    found = state(service("web", health="healthy", started_at=started), service("extra", "exited", exit_code=4))
    view = services_view(found, [WEB, DB])
    assert [one.name for one in msgspec.convert(view, list[ServiceOut])] == ["web", "db", "extra"]
    assert view[0]["started_at"] == "2026-01-31T12:00:00Z"
    assert view[0]["exit_code"] is None
    assert view[1]["status"] == "missing"
    assert view[2]["exit_code"] == 4
    assert msgspec.json.decode(msgspec.json.encode(view)) == view, "as it comes back from the database"


STATES = st.builds(
    service,
    st.sampled_from(["web", "db", "init", "other"]),
    st.sampled_from(["created", "running", "paused", "restarting", "exited", "dead"]),
    health=st.sampled_from(["none", "starting", "healthy", "unhealthy"]),
    exit_code=st.sampled_from([None, 0, 1, 137, 143]),
    oom_killed=st.booleans(),
)


@given(
    st.lists(STATES, max_size=5, unique_by=lambda one: one.name),
    st.sampled_from(["running", "stopped"]),
    st.sets(st.sampled_from(["web", "db", "init"])),
)
def test_every_state_has_a_verdict(services: list[ServiceState], desired: Any, stopped: set[str]) -> None:
    found = state(*services)
    verdict = judge(found, [WEB, DB, INIT], desired, stopped=stopped)
    up = {one.name for one in services if one.status in {"running", "paused", "restarting"}} & {"web", "db", "init"}
    if verdict.status in {"running", "unhealthy"}:
        assert up, "nothing runs"
    if verdict.status == "stopped":
        assert not up, "something runs"
    assert (verdict.status == "running") == (verdict.reason is None) or verdict.status == "stopped"
    msgspec.convert(services_view(found, [WEB, DB, INIT]), list[ServiceOut])


def test_an_order_of_services_changes_nothing() -> None:
    services = [service("web"), service("db", "exited", exit_code=1), service("init", "exited", exit_code=0)]
    verdicts = {
        judge(state(*order), [WEB, DB, INIT], "running").status
        for order in product(services, repeat=3)
        if len({one.name for one in order}) == 3
    }
    assert verdicts == {"crashed"}
