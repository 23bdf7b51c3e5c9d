"""From what the engine says to what an app is: a pure judgement, so that it can be tested on every case."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from quazzar.instance.apps.models import Desired
from quazzar.instance.apps.runtimes.base import AppState, ServiceState
from quazzar.instance.apps.runtimes.plan import UP
from quazzar.instance.apps.spec import AppSpec

# 143 is 128 + SIGTERM: the process ended because it was asked to.
_CLEAN_EXITS = frozenset({0, 143})


class Expected(msgspec.Struct, frozen=True):
    """A service that the app should have. A `finite` one does its work and ends; that is no fault."""

    name: str
    finite: bool = False


class Verdict(msgspec.Struct, frozen=True):
    status: Literal["running", "unhealthy", "stopped", "crashed"]
    reason: str | None = None
    settled: bool = True
    """False while a health check has not made up its mind, or the engine is about to start a service again."""


def expected_services(spec: AppSpec) -> list[Expected]:
    """The services of `spec`; finite are those whose end another one waits for, and those that are not restarted."""
    awaited = {
        one.service
        for service in spec.services
        for one in service.depends_on
        if one.condition == "service_completed_successfully"
    }
    return [
        Expected(service.name, service.name in awaited or service.restart.policy in {"no", "on-failure"})
        for service in spec.services
    ]


def judge(
    state: AppState | None, expected: Sequence[Expected], desired: Desired, *, stopped: Iterable[str] = ()
) -> Verdict:
    """What an app is, given what the engine holds of it.

    `stopped` names services that somebody stopped through the engine, whatever exit code that gave.
    """
    found = {service.name: service for service in state.services} if state is not None else {}
    wanted = list(expected) or [Expected(name) for name in found]
    by_hand = set(stopped)
    missing = [one.name for one in wanted if one.name not in found]
    present = [(found[one.name], one.finite) for one in wanted if one.name in found]
    if not present:
        if desired == "stopped":
            return Verdict("stopped", "Its containers are gone; starting it makes new ones")
        return Verdict("crashed", "Its containers were removed from the engine")
    up = [service for service, _ in present if service.status in {"running", "paused", "restarting"}]
    ended = [
        service
        for service, finite in present
        if service.status in {"exited", "dead", "created"} and not (finite and service.exit_code == 0)
    ]
    if not up and desired == "stopped":
        return Verdict("stopped")
    looping = next((service for service in up if service.status == "restarting"), None)
    if looping is not None:
        return Verdict("crashed", f'Service "{looping.name}" keeps restarting{_exit(looping)}', settled=False)
    died = next((service for service in ended if not _was_stopped(service, by_hand)), None)
    if died is not None:
        return Verdict("crashed", _death(died))
    if missing:
        return Verdict("crashed", f'The container of service "{missing[0]}" was removed from the engine')
    if not up:
        return Verdict("stopped", "Stopped outside of this system" if ended else "All its services have ended")
    if ended:
        return Verdict("unhealthy", f'Service "{ended[0].name}" is stopped')
    return _health(up)


def _health(up: Sequence[ServiceState]) -> Verdict:
    for service in up:
        if service.status == "paused":
            return Verdict("unhealthy", f'Service "{service.name}" is paused')
    for service in up:
        if service.health == "unhealthy":
            return Verdict("unhealthy", f'The health check of service "{service.name}" fails')
    return Verdict("running", settled=all(service.health != "starting" for service in up))


def _was_stopped(service: ServiceState, by_hand: set[str]) -> bool:
    if service.oom_killed or service.status == "dead":
        return False
    return service.name in by_hand or (service.status == "exited" and service.exit_code in _CLEAN_EXITS)


def _death(service: ServiceState) -> str:
    if service.oom_killed:
        return f'Service "{service.name}" was killed: it used more memory than its limit{_exit(service)}'
    if service.status == "created":
        return f'Service "{service.name}" was never started'
    return f'Service "{service.name}" ended{_exit(service)}'


def _exit(service: ServiceState) -> str:
    return "" if service.exit_code is None else f" (exit code {service.exit_code})"


def stands_still(services: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> bool:
    """Whether a service that should run is stopped or paused, as the columns of an app say."""
    finite = {one["name"] for one in expected if one.get("finite")}
    return any(
        one["status"] not in UP and not (one["name"] in finite and one.get("exit_code") == 0) for one in services
    )


def views_of(state: AppState | None, expected: Sequence[Expected]) -> dict[str, Any]:
    """The columns that show what the engine has; without `ports` where it tells none, so that what was known stays."""
    views = {"services": services_view(state, expected), "volumes": volumes_view(state)}
    return views | ({"ports": ports} if (ports := ports_view(state)) else {})


def services_view(state: AppState | None, expected: Sequence[Expected]) -> list[dict[str, Any]]:
    """The `services` of an answer: what the engine has, and the ones that it should have as `missing`."""
    found = {service.name: service for service in state.services} if state is not None else {}
    names = [one.name for one in expected] or list(found)
    names += [name for name in found if name not in names]
    view: list[dict[str, Any]] = []
    for name in names:
        service = found.get(name)
        if service is None:
            view.append({"name": name, "image": "", "status": "missing"} | _UNKNOWN)
            continue
        view.append(
            {
                "name": service.name,
                "image": service.image,
                "image_digest": service.image_digest,
                "status": service.status,
                "health": service.health,
                "restarts": service.restarts,
                "exit_code": service.exit_code if service.status in {"exited", "dead", "restarting"} else None,
                "oom_killed": service.oom_killed,
                "started_at": msgspec.to_builtins(service.started_at),
            }
        )
    return view


_UNKNOWN: dict[str, Any] = {
    "image_digest": None,
    "health": "none",
    "restarts": 0,
    "exit_code": None,
    "oom_killed": False,
    "started_at": None,
}


def ports_view(state: AppState | None) -> list[dict[str, Any]]:
    """The published ports of an answer; empty when the engine tells none, as it does of stopped containers."""
    return [] if state is None else [msgspec.to_builtins(port) for port in state.ports]


def volumes_view(state: AppState | None) -> list[dict[str, Any]]:
    return [] if state is None else [{"name": name} for name in state.volumes]
