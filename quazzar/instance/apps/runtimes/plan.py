"""What is to be done to get from what an engine holds to what a spec wants: the rules that all drivers share."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final, TypeVar, assert_never

import msgspec

from quazzar.instance.apps.runtimes.base import PortState, ServiceState
from quazzar.instance.apps.spec import DependencySpec

HEALTH_EXTRA_SECONDS: Final = 30.0
COMPLETION_SECONDS: Final = 3600.0
CRASHES_ENOUGH: Final = 5
UP: Final = frozenset({"running", "restarting"})
STOPPABLE: Final = frozenset({"running", "paused", "restarting"})


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A service's container as the engine holds it, with what was noted on it when it was made."""

    id: str
    app_id: str
    digest: str
    order: int
    depends_on: tuple[DependencySpec, ...]
    state: ServiceState
    ports: tuple[PortState, ...]
    health_deadline_seconds: float | None
    """How long the engine takes at most until a fresh container is healthy or not; None without a health check."""


H = TypeVar("H", bound=Held)


def kept(present: Iterable[H], digests: Mapping[str, str]) -> dict[str, H]:
    """By service, the container that is as the spec (`digests` of its services) wants it, and so stays.

    One that never started may lack its files, so it does not.
    """
    found: dict[str, H] = {}
    for one in present:
        if digests.get(one.state.name) == one.digest and one.state.status not in {"created", "dead"}:
            found.setdefault(one.state.name, one)
    return found


def awaited(dependencies: Iterable[Sequence[DependencySpec]]) -> set[str]:
    """The services that others wait to complete."""
    return {one.service for some in dependencies for one in some if one.condition == "service_completed_successfully"}


def still_there(depends_on: Iterable[DependencySpec], names: Container[str]) -> list[DependencySpec]:
    """What of `depends_on` there is to wait for, where the app has services of these `names`."""
    return [one for one in depends_on if one.service in names]


def is_right(held: Held, once: set[str]) -> bool:
    """Whether a container needs no start: it is up, or it is one of `once` and has completed."""
    state = held.state
    completed = state.name in once and state.status == "exited" and state.exit_code == 0
    return completed or state.status in UP


def next_to_stop(left: Sequence[H]) -> list[H]:
    """Those of the containers that none of the others depends on; never none."""
    needed = {wanted.service for one in left for wanted in one.depends_on}
    return [one for one in left if one.state.name not in needed] or list(left)


def problem(held: Held, wanted: DependencySpec, *, waited: float, crashes: int) -> str | None:
    """Why a condition can't come true any more; None when it is true, empty when it still may become so.

    `waited` is in seconds; `crashes` counts the restarts since the waiting began.
    """
    state = held.state
    match wanted.condition:
        case "service_started":
            return None
        case "service_healthy":
            # Neither the file nor the image says what healthy is: that it runs is all that can be told.
            deadline = held.health_deadline_seconds
            if state.health == "healthy" or (deadline is None and state.status == "running"):
                return None
            if state.health == "unhealthy":
                return "is unhealthy"
            if state.status in {"exited", "dead"}:
                return f"exited with code {state.exit_code}"
            if deadline is not None and waited > deadline + HEALTH_EXTRA_SECONDS:
                return "did not get healthy in time"
        case "service_completed_successfully":
            if state.status in {"exited", "dead"}:
                return None if state.exit_code == 0 else f"exited with code {state.exit_code}"
            if waited > COMPLETION_SECONDS:
                return "did not complete in time"
        case _:
            assert_never(wanted.condition)
    return "keeps exiting" if crashes >= CRASHES_ENOUGH else ""
