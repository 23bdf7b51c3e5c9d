"""Answers on apps that are more than a struct: the fast list, streams, and removals that are waited for."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast, get_args
from urllib.parse import parse_qs

import msgspec
from litestar import Request, Response
from litestar.datastructures import State
from litestar.openapi.spec import Operation, Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core import exchange
from quazzar.core.auth import Principal, principal_of
from quazzar.core.db import Database
from quazzar.core.errors import BadRequest, Unavailable
from quazzar.core.gate import roll_back
from quazzar.core.http import caller_of
from quazzar.core.jobs import wait_for
from quazzar.core.paging import DEFAULT_LIMIT, MOST, Page, page_of, paged
from quazzar.core.sse import ServerEvent, server_events
from quazzar.events.schemas import EventOut, Wanted
from quazzar.events.service import EventService
from quazzar.events.store import Scope
from quazzar.instance.apps import checking, service, trash_store
from quazzar.instance.apps.dry_run import PlannedUpdate, asked
from quazzar.instance.apps.errors import ServiceNotFound
from quazzar.instance.apps.history import read_history
from quazzar.instance.apps.models import AppStatus
from quazzar.instance.apps.runtimes.base import LogLine, Runtime, RuntimeFailure, RuntimeUnavailable, ServiceStats
from quazzar.instance.apps.schemas import (
    AppHistory,
    AppOut,
    AppPlan,
    AppRow,
    AppStats,
    FullAppRow,
    ImagePlan,
    ListedApp,
    LogLineOut,
    Range,
    UpdatePlan,
)
from quazzar.instance.apps.service import Planned

AppRequest = Request[Any, Any, State]

MOST_SEARCHED_LINES = 10_000
MOST_ANSWER_CHARACTERS = 8 * 1024 * 1024
STATS_SECONDS = 2.0
CHECK_WAIT_SECONDS = 20.0
"""How long a request waits for registries."""
_STATUSES = get_args(AppStatus)
_MOST_STATUSES = 20
_APP_ID = r"app_[a-z2-7]{26}"
_VISIBLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,100}\Z")


# --- the list: read by hand, because the framework's parameters cost more than the query --------------------------


def _parameter(name: str, schema: Schema, description: str) -> Parameter:
    return Parameter(name=name, param_in="query", schema=schema, description=description)


_PARAMETERS = [
    _parameter("limit", Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=MOST, default=DEFAULT_LIMIT), "At most."),
    _parameter("cursor", Schema(type=OpenAPIType.STRING, max_length=200), "From the `Link` of the page before."),
    _parameter(
        "status",
        Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(type=OpenAPIType.STRING, enum=list(_STATUSES)),
            max_items=_MOST_STATUSES,
        ),
        "Only apps of these statuses.",
    ),
    _parameter(
        "template",
        Schema(type=OpenAPIType.STRING, min_length=1, max_length=100),
        "Only apps of the template with this slug or id.",
    ),
    _parameter("q", Schema(type=OpenAPIType.STRING, min_length=1, max_length=100), "Part of the name or the template."),
    _parameter(
        "trashed", Schema(type=OpenAPIType.BOOLEAN, default=False), "Those in the trash in place of the others."
    ),
]


@dataclass
class ListOperation(Operation):
    """Documents the query of the list."""

    def __post_init__(self) -> None:
        self.parameters = [*(self.parameters or ()), *_PARAMETERS]


_ALL: tuple[dict[str, Any], Page, bool] = ({"statuses": [], "template": None, "q": None}, Page(), False)


def _list_query(request: AppRequest) -> tuple[dict[str, Any], Page, bool]:
    """Filters, page, and whether it is the trash that is asked for."""
    raw = request.scope["query_string"]
    if not raw:
        return _ALL
    query = parse_qs(raw.decode("latin-1"), keep_blank_values=True, errors="replace")
    problems: dict[str, str] = {}
    limit = query.get("limit", [str(DEFAULT_LIMIT)])[-1]
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MOST):
        problems["limit"] = f"Limit must be between 1 and {MOST}"
    statuses = [one for value in query.get("status", []) for one in value.split(",")]
    if any(one not in _STATUSES for one in statuses):
        problems["status"] = f"Status must be one of: {', '.join(_STATUSES)}"
    elif len(statuses) > _MOST_STATUSES:
        problems["status"] = f"Status can have at most {_MOST_STATUSES} items"
    texts: dict[str, str | None] = {}
    for name in ("template", "q"):
        texts[name] = query.get(name, [None])[-1]
        value = texts[name]
        if value is not None and _VISIBLE.match(value) is None:
            problems[name] = f"{name.capitalize()} must be 1 to 100 characters without control characters"
    trashed = query.get("trashed", ["false"])[-1]
    if trashed not in {"true", "false"}:
        problems["trashed"] = "Trashed must be true or false"
    elif trashed == "true":
        others = [name for name in ("status", "template", "q") if name in query]
        problems |= dict.fromkeys(others, "The trash can't be filtered")
    if problems:
        raise BadRequest("A parameter can't be read", details=problems)
    page = page_of(int(limit), query.get("cursor", [None])[-1], key=_APP_ID)
    words = texts["q"]
    filters = {"statuses": statuses, "template": texts["template"], "q": words.lower() if words else None}
    return filters, page, trashed == "true"


def _id_of(row: AppRow) -> str:
    return row.id


def _itself(row: AppRow) -> AppRow:
    return row


async def list_answer(request: AppRequest) -> Response[list[ListedApp]]:
    """All apps that the caller may see and that fit the query, or those in the trash, newest first."""
    filters, page, trashed = _list_query(request)
    state, principal = request.app.state, principal_of(request)
    before = {"before": page.after} if page.after is not None else {}
    rows: Sequence[AppRow]
    if trashed:
        days, ids = state.settings.apps.trash_days, service.visible(principal)
        rows = await trash_store.list_trashed(state.database, days=days, limit=page.fetch, ids=ids, **before)
    else:
        rows = await service.list_apps(state.database, principal, limit=page.fetch, **before, **filters)
    return cast("Response[list[ListedApp]]", paged(request, page, rows, _itself, _id_of))


def full_answer(row: FullAppRow) -> Response[AppOut]:
    return cast("Response[AppOut]", Response(row))


def made_answer(row: FullAppRow) -> Response[AppOut]:
    return cast("Response[AppOut]", install_answer(row))


def install_answer(row: FullAppRow) -> Response[AppOut | AppPlan]:
    return cast("Response[AppOut | AppPlan]", Response(row, headers={"Location": f"/api/apps/{row.id}"}))


def plan_answer(plan: AppPlan) -> Response[AppOut | AppPlan]:
    return Response(plan, status_code=200)


async def planned_answer(request: AppRequest, plan: Planned) -> Response[AppOut | AppPlan]:
    """The plan, with what the engine has of its images; without that where the engine does not answer.

    A dry run writes nothing, so its transaction is over before the engine is asked, and no answer of it is kept.
    """
    request.scope["state"]["idempotent"] = None
    await roll_back(cast("exchange.Scope", request.scope))
    runtime: Runtime = request.app.state.runtime
    try:
        present: Mapping[str, str | None] | None = await runtime.present(plan.spec)
    except (RuntimeUnavailable, RuntimeFailure):
        present = None
    pulls = [
        ImagePlan(
            image=name,
            present=None if present is None else present[name] is not None,
            digest=None if present is None else present[name],
        )
        for name in plan.plan.images
    ]
    return plan_answer(msgspec.structs.replace(plan.plan, pulls=pulls))


# --- what happened --------------------------------------------------------------------------------------------------


async def events_answer(
    request: AppRequest, session: AsyncSession, app_id: str, page: Page
) -> Response[list[EventOut]]:
    """The events about one app, newest first. Raises `AppNotFound`."""
    principal = principal_of(request)
    await service.require_app(request.app.state.database, principal, app_id)
    events = EventService(session, Scope.of(principal))
    found = await events.find(Wanted(subject=app_id), page)
    return paged(request, page, found, EventOut.of, lambda event: event.id)


# --- removal -------------------------------------------------------------------------------------------------------


async def uninstall_answer(request: AppRequest, app_id: str, *, keep_data: bool, purge: bool) -> Response[Any]:
    """204 once the app is gone; the app on its way out when that takes longer than a request should."""
    if keep_data and purge:
        details = {"purge": "Purge can't go together with keep_data"}
        raise BadRequest("A parameter contradicts another", details=details)
    state = request.app.state
    principal = principal_of(request)
    database: Database = state.database
    async with database.begin(user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        apps = service.AppService(
            session, principal, keyring=state.keyring, settings=state.settings, machine=state.machine
        )
        job_id = await apps.uninstall(app_id, keep_data=keep_data, purge=purge)
    row = await service.wait_until_gone(database, app_id, job_id)
    return Response(None, status_code=204) if row is None else Response(row, status_code=200)


# --- updates -------------------------------------------------------------------------------------------------------


def updated_answer(row: FullAppRow) -> Response[AppOut | UpdatePlan]:
    return cast("Response[AppOut | UpdatePlan]", Response(row))


async def update_plan_answer(request: AppRequest, planned: PlannedUpdate) -> Response[AppOut | UpdatePlan]:
    """What an update would do. A dry run writes nothing: its transaction is over before registries are asked."""
    request.scope["state"]["idempotent"] = None
    await roll_back(cast("exchange.Scope", request.scope))
    return Response(await asked(planned, request.app.state.runtime))


# --- newer versions ------------------------------------------------------------------------------------------------


async def checked_answer(request: AppRequest, app_id: str) -> Response[AppOut]:
    """The app once the catalogue and the registries were asked, or as it is when that takes longer than a request.

    Raises `AppNotFound`, `AppBusy`, `RuntimeUnavailable`.
    """
    state = request.app.state
    principal = principal_of(request)
    database: Database = state.database
    async with database.begin(user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        apps = service.AppService(session, principal, keyring=state.keyring, settings=state.settings)
        job_id = await checking.begin_check(apps, app_id)
    job = await wait_for(database, job_id, CHECK_WAIT_SECONDS)
    if job is not None and job.status == "failed":
        raise RuntimeUnavailable(job.error)
    return full_answer(await service.read_app(database, principal, app_id))


# --- logs ----------------------------------------------------------------------------------------------------------


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    tail: int = 200
    since: datetime | None = None
    until: datetime | None = None
    service: str | None = None
    q: str | None = None
    timestamps: bool = True
    follow: bool = False


Show = Callable[[LogLine], LogLineOut]


def times_of(**given: str | None) -> dict[str, datetime]:
    """Times in RFC 3339 form with a zone. Raises `BadRequest` naming each that is none."""
    found: dict[str, datetime] = {}
    problems: dict[str, str] = {}
    for name, value in given.items():
        try:
            if value is not None:
                found[name] = msgspec.convert(value, _Time)
        except msgspec.ValidationError:
            problems[name] = f"{name.capitalize()} must be a time in RFC 3339 form with a zone"
    if problems:
        raise BadRequest("A parameter can't be read", details=problems)
    return found


_Time = Annotated[datetime, msgspec.Meta(tz=True)]


async def logs_answer(request: AppRequest, app_id: str, query: LogQuery) -> Response[list[LogLineOut]]:
    """The lines, or a stream of them. Raises `AppNotFound`, `ServiceNotFound`, `RuntimeUnavailable`."""
    runtime: Runtime = request.app.state.runtime
    principal = principal_of(request)
    app = await service.read_app(request.app.state.database, principal, app_id)
    if query.service is not None and query.service not in _service_names(app):
        raise ServiceNotFound
    lines = _lines(runtime, app_id, query)
    show = _shown if query.timestamps else _untimed
    if query.follow:
        # The engine is asked once before the answer begins, so that a missing one is a 503 and not a broken stream.
        await runtime.get(app_id)
        return cast("Response[list[LogLineOut]]", server_events(request, _log_events(lines, show)))
    try:
        async with aclosing(lines):
            found = [show(line) for line in await _newest(lines, query.tail)]
    except RuntimeFailure as failure:
        raise RuntimeUnavailable(failure.reason) from failure
    return Response(found)


async def _newest(lines: AsyncIterator[LogLine], most: int) -> deque[LogLine]:
    """The last `most` lines, fewer where they are so long that the answer would be huge."""
    found: deque[LogLine] = deque(maxlen=most)
    size = 0
    async for line in lines:
        if len(found) == most:
            if most == 0:
                break
            size -= len(found[0].line)
        found.append(line)
        size += len(line.line)
        while size > MOST_ANSWER_CHARACTERS and len(found) > 1:
            size -= len(found.popleft().line)
    return found


def _service_names(app: FullAppRow) -> set[str]:
    return {one["name"] for one in msgspec.json.decode(app.services)}


async def _lines(runtime: Runtime, app_id: str, query: LogQuery) -> AsyncGenerator[LogLine, None]:
    words = query.q.lower() if query.q is not None else None
    lines = runtime.logs(
        app_id,
        services=[query.service] if query.service is not None else None,
        # A search goes over more lines than it shows.
        tail=query.tail if words is None else MOST_SEARCHED_LINES,
        since=query.since,
        until=query.until,
        follow=query.follow,
    )
    async with aclosing(lines):
        async for line in lines:
            if words is None or words in line.line.lower():
                yield line


def _shown(line: LogLine) -> LogLineOut:
    return LogLineOut(time=line.time, service=line.service, stream=line.stream, line=line.line)


def _untimed(line: LogLine) -> LogLineOut:
    return LogLineOut(service=line.service, stream=line.stream, line=line.line)


_ENGINE_GONE = {"error": "The container engine is gone", "code": "runtime_unavailable"}


async def _log_events(
    lines: AsyncGenerator[LogLine, None], show: Callable[[LogLine], LogLineOut]
) -> AsyncIterator[ServerEvent]:
    async with aclosing(lines):
        try:
            async for line in lines:
                yield ServerEvent(event="line", data=show(line))
        except (RuntimeUnavailable, RuntimeFailure):
            yield ServerEvent(
                event="error", data={"error": "The container engine is gone", "code": "runtime_unavailable"}
            )


# --- stats ---------------------------------------------------------------------------------------------------------


async def stats_answer(
    request: AppRequest, app_id: str, *, span: Range | None, follow: bool
) -> Response[AppStats | AppHistory]:
    """What the app uses now, a stream of that, or points over `span`.

    Raises `AppNotFound`, `RuntimeUnavailable` (points need no engine), `BadRequest` for a stream of points.
    """
    if span is not None and follow:
        raise BadRequest("A parameter can't be read", details={"follow": "A range can't be followed"})
    runtime: Runtime = request.app.state.runtime
    database: Database = request.app.state.database
    principal = principal_of(request)
    await service.require_app(database, principal, app_id)
    if span is not None:
        return Response(await read_history(database, app_id, span))
    first = await _stats(runtime, app_id)
    if not follow:
        return Response(first)
    events = _stats_events(runtime, database, principal, app_id, first)
    return cast("Response[AppStats | AppHistory]", server_events(request, events))


async def _stats(runtime: Runtime, app_id: str) -> AppStats:
    try:
        return summed(await runtime.stats(app_id))
    except RuntimeFailure as failure:
        raise RuntimeUnavailable(failure.reason) from failure


async def _stats_events(
    runtime: Runtime, database: Database, principal: Principal, app_id: str, first: AppStats
) -> AsyncIterator[ServerEvent]:
    yield ServerEvent(event="stats", data=first)
    while True:
        await asyncio.sleep(STATS_SECONDS)
        try:
            await service.require_app(database, principal, app_id)
            yield ServerEvent(event="stats", data=await _stats(runtime, app_id))
        except Unavailable as error:
            yield ServerEvent(event="error", data={"error": error.message, "code": error.code})
            return


def summed(services: Sequence[ServiceStats]) -> AppStats:
    def total(name: str) -> Any:
        return sum(getattr(one, name) for one in services)

    return AppStats(
        cpu_percent=round(total("cpu_percent"), 2),
        memory_bytes=total("memory_bytes"),
        memory_limit_bytes=total("memory_limit_bytes"),
        network_rx_bytes=total("network_rx_bytes"),
        network_tx_bytes=total("network_tx_bytes"),
        disk_read_bytes=total("disk_read_bytes"),
        disk_write_bytes=total("disk_write_bytes"),
        pids=total("pids"),
        restarts=total("restarts"),
        services=list(services),
    )
