"""How each kind of order is carried out: by the same services that the API calls, in one transaction.

Such a transaction makes at most one job, which does the work; without one the order is done with its commit.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from quazzar.core.db import after_commit
from quazzar.core.schema import In
from quazzar.instance.apps import changes
from quazzar.instance.apps.schemas import AppCreate, AppUpdate
from quazzar.instance.apps.service import AppService
from quazzar.link.commands import AppArgs, InstallArgs, RefreshArgs, UninstallArgs, UpdateArgs


class Means(msgspec.Struct, frozen=True):
    """What orders are carried out with: the services of one transaction, and how the panel is told the state anew."""

    apps: AppService
    tell_state: Callable[[], None]


async def _install(means: Means, args: InstallArgs) -> None:
    await means.apps.create(
        AppCreate(
            template=args.template,
            name=args.name,
            config=dict(args.config),
            version=args.version,
            resources=args.resources,
            domain=args.domain,
        )
    )


async def _update(means: Means, args: UpdateArgs) -> None:
    await changes.update(means.apps, await means.apps.id_of(args.app), AppUpdate(version=args.version))


async def _start(means: Means, args: AppArgs) -> None:
    await means.apps.start(await means.apps.id_of(args.app))


async def _stop(means: Means, args: AppArgs) -> None:
    await means.apps.stop(await means.apps.id_of(args.app))


async def _restart(means: Means, args: AppArgs) -> None:
    await means.apps.restart(await means.apps.id_of(args.app))


async def _roll_back(means: Means, args: AppArgs) -> None:
    await changes.roll_back(means.apps, await means.apps.id_of(args.app))


async def _uninstall(means: Means, args: UninstallArgs) -> None:
    await means.apps.uninstall(await means.apps.id_of(args.app), keep_data=args.keep_data, purge=False)


async def _refresh(means: Means, _: RefreshArgs) -> None:
    after_commit(means.apps.session, means.tell_state)


CARRIED_OUT: Final[Mapping[str, Callable[[Means, Any], Awaitable[None]]]] = {
    "app.install": _install,
    "app.update": _update,
    "app.start": _start,
    "app.stop": _stop,
    "app.restart": _restart,
    "app.rollback": _roll_back,
    "app.uninstall": _uninstall,
    "instance.refresh": _refresh,
}


async def carry_out(means: Means, kind: str, args: In) -> None:
    """Raises what the service raises, for the reasons that its endpoint would give."""
    await CARRIED_OUT[kind](means, args)
