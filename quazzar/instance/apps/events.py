"""What happens to apps, as webhooks, the feed and panels hear of it. The subject of each is the app's id."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from quazzar.core.records import Event
from quazzar.instance.apps.models import AppStatus


class AppInstalled(Event):
    """An install has gone through: the app is on the engine."""

    type = "app.installed"
    app_id: str
    name: str
    template: str | None
    version: str | None


class AppAdopted(Event):
    """A Compose project that was on the engine is an app now, as it stood."""

    type = "app.adopted"
    app_id: str
    name: str
    project: str


class AppStarted(Event):
    """An app that stood still runs, by a call or because somebody started it through the engine."""

    type = "app.started"
    app_id: str
    name: str


class AppStopped(Event):
    """An app that ran stands still; `reason` is there when it was not we who stopped it."""

    type = "app.stopped"
    app_id: str
    name: str
    reason: str | None = None


class AppRestarted(Event):
    """A restart has gone through."""

    type = "app.restarted"
    app_id: str
    name: str


class AppUnhealthy(Event):
    """An app runs, but not as it should: a health check fails, or a service is paused or stopped."""

    type = "app.unhealthy"
    app_id: str
    name: str
    reason: str | None


class AppCrashed(Event):
    """A service ended by itself, was killed, or is gone; `exit_code` is None where there is none."""

    type = "app.crashed"
    app_id: str
    name: str
    reason: str | None
    service: str | None = None
    exit_code: int | None = None
    oom_killed: bool = False


class AppFailed(Event):
    """An operation did not go through; `operation` is the state that it was in (`installing`, `starting`, …)."""

    type = "app.failed"
    app_id: str
    name: str
    operation: str
    reason: str


class AppUninstalled(Event):
    """An app is gone, and its volumes with it unless `data_kept`; in the trash they are until `purge_at`."""

    type = "app.uninstalled"
    app_id: str
    name: str
    data_kept: bool
    purge_at: datetime | None = None


class AppUndeleted(Event):
    """An app is back from the trash; when it ran before, it is started now."""

    type = "app.undeleted"
    app_id: str
    name: str


class AppCloned(Event):
    """The data of an app has been copied into its clone, which is another app."""

    type = "app.cloned"
    app_id: str
    name: str
    clone_id: str


class AppPurged(Event):
    """An app that was in the trash is gone for good, and its volumes with it."""

    type = "app.purged"
    app_id: str
    name: str


class AppUpdateAvailable(Event):
    """There is something newer: `available_version`, or of the present version new `images`. Told once of each."""

    type = "app.update_available"
    app_id: str
    name: str
    version: str | None
    available_version: str | None
    images: list[str]


class AppUpdateSkipped(Event):
    """From now on the app is not updated any more by itself to `version`, or to images with the `digests`.

    It did not run with that, or somebody rolled it back from there.
    """

    type = "app.update_skipped"
    app_id: str
    name: str
    version: str | None
    digests: list[str]
    reason: str


class AppUpdated(Event):
    """An update or a rollback has gone through; `former_version` is what it came from.

    An `automatic` update nobody asked for.
    """

    type = "app.updated"
    app_id: str
    name: str
    former_version: str | None
    version: str | None
    rollback: bool = False
    automatic: bool = False


class AppUpdateFailed(Event):
    """An update, a rollback or a change did not go through, for `reason`; the app is again what it was."""

    type = "app.update_failed"
    app_id: str
    name: str
    version: str | None
    reason: str
    automatic: bool = False


def crash_of(app_id: str, name: str, reason: str | None, services: Sequence[Mapping[str, Any]]) -> AppCrashed:
    """The event of a crash; `services` are those of the answer, `reason` names the one to blame."""
    down = [one for one in services if one["status"] != "running"]
    culprit = next((one for one in down if f'"{one["name"]}"' in (reason or "")), down[0] if down else None)
    if culprit is None:
        return AppCrashed(app_id=app_id, name=name, reason=reason)
    return AppCrashed(
        app_id=app_id,
        name=name,
        reason=reason,
        service=culprit["name"],
        exit_code=culprit["exit_code"],
        oom_killed=culprit["oom_killed"],
    )


def change_of(
    app_id: str,
    name: str,
    *,
    was: AppStatus,
    now: AppStatus,
    reason: str | None,
    services: Sequence[Mapping[str, Any]],
) -> Event | None:
    """What to announce when an app was found in another state than it was left in; None where that is no news.

    An app that is healthy again has not been started.
    """
    match now:
        case "running" if was != "unhealthy":
            return AppStarted(app_id=app_id, name=name)
        case "unhealthy":
            return AppUnhealthy(app_id=app_id, name=name, reason=reason)
        case "stopped":
            return AppStopped(app_id=app_id, name=name, reason=reason)
        case "crashed":
            return crash_of(app_id, name, reason, services)
        case _:
            return None
