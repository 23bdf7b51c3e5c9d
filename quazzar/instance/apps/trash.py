"""Apps that were deleted and can still come back."""

from collections.abc import Collection, Iterable
from typing import Any

from quazzar.core.db import unique_or
from quazzar.core.errors import Unavailable
from quazzar.core.records import audit, publish
from quazzar.instance.apps import jobs, room_store, store, trash_store
from quazzar.instance.apps.building import auto_fields, exchange_ports, url_of
from quazzar.instance.apps.errors import AppBusy, AppNameTaken, AppNotFound, AppNotTrashed, PortTaken
from quazzar.instance.apps.events import AppUndeleted
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.ports import is_free, pick_ports
from quazzar.instance.apps.schemas import FullAppRow
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.store import HeldPort


async def undelete(apps: AppService, app_id: str) -> FullAppRow:
    """Bring an app back from the trash with its data; one that ran is started.

    Its ports are the former ones; those that were chosen for it and are taken by now are exchanged. Raises
    `AppNotFound`, `AppNotTrashed`, `AppBusy` when it is being purged, `AppNameTaken`, `PortTaken`, `DoesNotFit`.
    """
    session = apps.session
    if not apps.may_see(app_id):
        raise AppNotFound
    found = await trash_store.lock_trashed(session, app_id)
    if found is None:
        raise AppNotFound if await store.get_state(session, app_id) is None else AppNotTrashed
    if found.status != "stopped":
        raise AppBusy("The app is being removed for good")
    app = found.held
    await store.lock_ports(session)
    held = await store.find_ports(session)
    refusals = _refusals(found.ports, held, apps.reserved_ports)
    if await store.find_name(session, app.name) is not None:
        raise AppNameTaken(details={"name": f"The name {app.name} is taken by now"} | refusals)
    if refusals:
        raise PortTaken(details=refusals)
    await apps.require_room(await room_store.get_claim(session, app_id), app_id=app_id)
    values: dict[str, Any] = {}
    ports = found.ports
    if names := auto_fields(ports):
        by_field = {port.field: port.host_port for port in ports}
        former = [by_field[name] for name in names]
        chosen = _exchanged(former, apps.reserved_ports | {port.host_port for port in held})
        if chosen != former:
            values, ports = exchange_ports(app, apps.keyring, ports, chosen, url_of(apps.settings))
    runs = found.desired == "running"
    status: AppStatus = "starting" if runs else "stopped"
    async with unique_or(AppNameTaken()):
        await trash_store.take_out(
            session, app_id, status=status, seconds=jobs.START_SECONDS if runs else None, values=values
        )
    async with unique_or(PortTaken()):
        await store.hold_ports(session, ports)
    audit(session, "app.undelete", subject=app_id, after={"name": app.name, "status": status})
    publish(session, AppUndeleted(app_id=app_id, name=app.name), subject=app_id)
    if runs:
        await apps.enqueue(jobs.start, app_id)
    return await apps.show(app_id)


def _refusals(ports: Iterable[HeldPort], held: Iterable[HeldPort], reserved: Collection[int]) -> dict[str, str]:
    """Why ports that somebody chose can't be had again, by field."""
    taken = {(port.host_port, port.protocol) for port in held} | {(port, "tcp") for port in reserved}
    return {
        f"config.{port.field}" if port.field else "ports": f"Port {port.host_port} is taken by now"
        for port in ports
        if not port.auto and (port.host_port, port.protocol) in taken
    }


def _exchanged(ports: list[int], taken: Collection[int]) -> list[int]:
    """`ports`, those that are taken or in use by now replaced by free ones."""
    gone = [port for port in ports if port in taken or not is_free(port)]
    try:
        fresh = dict(zip(gone, pick_ports(len(gone), avoid={*taken, *ports}), strict=True))
    except LookupError:
        raise Unavailable("There are not enough free ports on this machine", code="no_free_port") from None
    return [fresh.get(port, port) for port in ports]
