"""Apps over HTTP."""

from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import principal_of, requires
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of
from quazzar.core.routing import delete, get, patch, post
from quazzar.events.schemas import EventOut
from quazzar.events.service import EVENT_ID
from quazzar.instance.apps import adopting, changes, cloning, importing
from quazzar.instance.apps.answers import (
    ListOperation,
    LogQuery,
    checked_answer,
    events_answer,
    full_answer,
    install_answer,
    list_answer,
    logs_answer,
    made_answer,
    planned_answer,
    stats_answer,
    times_of,
    uninstall_answer,
    update_plan_answer,
    updated_answer,
)
from quazzar.instance.apps.exporting import YAML, ExportOperation, Wanted, export_answer
from quazzar.instance.apps.schemas import (
    TO_THE_NEWEST,
    AppAdopt,
    AppClone,
    AppCreate,
    AppHistory,
    AppImport,
    AppOut,
    AppPatch,
    AppPlan,
    AppStats,
    AppUpdate,
    ListedApp,
    LogLineOut,
    Range,
    UpdatePlan,
)
from quazzar.instance.apps.service import AppService, read_app
from quazzar.instance.apps.trash import undelete

AppRequest = Request[Any, Any, State]
AppId = FromPath[Annotated[str, Meta(description="Id of an app.", examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]]
TIME = {"format": "date-time"}
Flag = Annotated[bool, QueryParameter()]
MaybeFlag = Annotated[bool | None, QueryParameter()]


async def provide_apps(request: AppRequest, session: NamedDependency[AsyncSession]) -> AppService:
    state = request.app.state
    return AppService(
        session, principal_of(request), keyring=state.keyring, settings=state.settings, machine=state.machine
    )


class AppController(Controller):
    path = "/apps"
    tags = ("Apps",)
    dependencies = {"apps": Provide(provide_apps)}

    @get(guards=[requires("apps:read")], operation_id="ListApps", operation_class=ListOperation, summary="All apps")
    async def list_apps(self, request: AppRequest) -> Response[list[ListedApp]]:
        """Newest first. Statuses are the truth of the engine; a key that is bound to apps sees only those.

        With `trashed=true` the apps in the trash, each with `trashed_at` and `purge_at`; they are in no other answer.
        """
        return await list_answer(request)

    @post(
        guards=[requires("apps:deploy")],
        operation_id="InstallApp",
        summary="Install an app from a template",
        responses={
            200: ResponseSpec(AppPlan, description="With `dry_run=true`: what would happen", generate_examples=False)
        },
    )
    async def install_app(
        self, request: AppRequest, apps: NamedDependency[AppService], data: JSONBody[AppCreate], dry_run: Flag = False
    ) -> Response[AppOut | AppPlan]:
        """Answers at once with the status `installing`; the job of `job_id` does the work and tells its progress.

        What the machine has no room for is a 409 `does_not_fit` with the sums.
        """
        if dry_run:
            return await planned_answer(request, await apps.plan(data))
        return install_answer(await apps.create(data))

    @post(
        "/import",
        guards=[requires("apps:write")],
        operation_id="ImportApp",
        summary="Make an app of a Compose file",
        responses={
            200: ResponseSpec(AppPlan, description="With `dry_run=true`: what would happen", generate_examples=False)
        },
    )
    async def import_app(
        self, request: AppRequest, apps: NamedDependency[AppService], data: JSONBody[AppImport], dry_run: Flag = False
    ) -> Response[AppOut | AppPlan]:
        """What of the file is not supported or not safe is listed whole, each with its line, and nothing is made.
        Values of `env`, and those that the file itself gives to names such as `DB_PASSWORD`, are sealed and masked from
        then on, and can be changed under the same names.
        """
        if dry_run:
            return await planned_answer(request, await importing.plan(apps, data))
        return install_answer(await importing.create(apps, data))

    @post(
        "/adopt",
        guards=[requires("*")],
        operation_id="AdoptProject",
        summary="Make an app of a Compose project that runs",
    )
    async def adopt_project(
        self, request: AppRequest, apps: NamedDependency[AppService], data: JSONBody[AppAdopt]
    ) -> Response[AppOut]:
        """Its containers run on as they are; what Compose named and labelled them keeps its name, and is the app's from
        then on. A later change or update makes its containers anew as those of any app, over the same volumes. What of
        it an app may not have is listed whole, by container, and nothing is changed. For administrators: whoever works
        on apps could get into what others run on this machine by it.
        """
        found = await adopting.look(request.app.state.runtime, data)
        return made_answer(await adopting.adopt(apps, request.app.state.runtime, found, data))

    @get("/{app_id:str}", guards=[requires("apps:read")], operation_id="GetApp", summary="One app in full")
    async def get_app(self, request: AppRequest, app_id: AppId) -> Response[AppOut]:
        return full_answer(await read_app(request.app.state.database, principal_of(request), app_id))

    @delete(
        "/{app_id:str}",
        guards=[requires("apps:write")],
        operation_id="DeleteApp",
        summary="Uninstall an app",
        status_code=204,
        responses={
            200: ResponseSpec(
                AppOut, description="Still being removed; the job of `job_id` goes on", generate_examples=False
            )
        },
    )
    async def delete_app(
        self, request: AppRequest, app_id: AppId, keep_data: Flag = False, purge: Flag = False
    ) -> Response[None]:
        """Waits until the app is gone: into the trash, with its data, from where `undelete` brings it back for as many
        days as the setting `apps.trash_days` says. With `purge=true` its data goes at once (of an app that is in the
        trash already, too); with `keep_data=true` the app goes for good and its volumes stay on the engine.
        """
        return await uninstall_answer(request, app_id, keep_data=keep_data, purge=purge)

    @post(
        "/{app_id:str}/undelete",
        guards=[requires("apps:write")],
        operation_id="UndeleteApp",
        summary="Bring an app back from the trash",
        status_code=200,
    )
    async def undelete_app(self, apps: NamedDependency[AppService], app_id: AppId) -> Response[AppOut]:
        """As it was: with its data, config and ports, and started if it ran. Ports that were found for it and are taken
        by now are exchanged; a name or a port that was chosen and is taken by now is a 409.
        """
        return full_answer(await undelete(apps, app_id))

    @post(
        "/{app_id:str}/start",
        guards=[requires("apps:operate")],
        operation_id="StartApp",
        summary="Start an app",
        status_code=200,
    )
    async def start_app(self, apps: NamedDependency[AppService], app_id: AppId) -> Response[AppOut]:
        """Nothing is done to an app that runs. One whose install failed is installed again."""
        return full_answer(await apps.start(app_id))

    @post(
        "/{app_id:str}/stop",
        guards=[requires("apps:operate")],
        operation_id="StopApp",
        summary="Stop an app",
        status_code=200,
    )
    async def stop_app(self, apps: NamedDependency[AppService], app_id: AppId) -> Response[AppOut]:
        """Nothing is done to an app that is stopped."""
        return full_answer(await apps.stop(app_id))

    @post(
        "/{app_id:str}/restart",
        guards=[requires("apps:operate")],
        operation_id="RestartApp",
        summary="Restart an app",
        status_code=200,
    )
    async def restart_app(self, apps: NamedDependency[AppService], app_id: AppId) -> Response[AppOut]:
        """Stops what runs and starts everything."""
        return full_answer(await apps.restart(app_id))

    @post(
        "/{app_id:str}/clone",
        guards=[requires("apps:write")],
        operation_id="CloneApp",
        summary="Copy an app with its data",
        responses={
            200: ResponseSpec(AppPlan, description="With `dry_run=true`: what would happen", generate_examples=False)
        },
    )
    async def clone_app(
        self,
        request: AppRequest,
        apps: NamedDependency[AppService],
        app_id: AppId,
        data: JSONBody[AppClone],
        dry_run: Flag = False,
    ) -> Response[AppOut | AppPlan]:
        """A new app with the same config and secrets, a copy of the data, and free host ports of its own. An app that
        runs and has data is stopped while that is copied, so that the copy is whole, and is started again whatever
        becomes of the clone; meanwhile it is `restarting`, one that stands still `stopping`. The domain is not copied.
        """
        if dry_run:
            return await planned_answer(request, await cloning.plan(apps, app_id, data))
        return install_answer(await cloning.clone(apps, app_id, data))

    @patch(
        "/{app_id:str}",
        guards=[requires("apps:write")],
        operation_id="ChangeApp",
        summary="Change an app",
    )
    async def change_app(
        self, apps: NamedDependency[AppService], app_id: AppId, data: JSONBody[AppPatch]
    ) -> Response[AppOut]:
        """What needs other containers is done by the job of `job_id`, with the status `updating`; the data stays, and
        when it fails the former containers run again. An app that is stopped has its change at its next start.

        A secret may be set anew; `null` for one that is generated makes up another.
        """
        return full_answer(await changes.patch(apps, app_id, data))

    @post(
        "/{app_id:str}/update",
        guards=[requires("apps:deploy")],
        operation_id="UpdateApp",
        summary="Update an app",
        status_code=200,
    )
    async def update_app(
        self,
        request: AppRequest,
        apps: NamedDependency[AppService],
        app_id: AppId,
        data: JSONBody[AppUpdate] = TO_THE_NEWEST,
        dry_run: Flag = False,
    ) -> Response[AppOut | UpdatePlan]:
        """To the newest version or the one that is named; an app that has it gets the images that its tags mean now.

        New images are pulled first, then the app is stopped, its data copied, its containers made anew. Unless all
        services are well in time, the former version runs again with the data that it had; the job says why.

        With `dry_run=true` the registries are asked what the images are by now, and nothing is done.
        """
        if dry_run:
            return await update_plan_answer(request, await changes.plan_update(apps, app_id, data))
        return updated_answer(await changes.update(apps, app_id, data))

    @post(
        "/{app_id:str}/check-updates",
        guards=[requires("apps:deploy")],
        operation_id="CheckAppUpdates",
        summary="Look for something newer now",
        status_code=200,
    )
    async def check_app_updates(self, request: AppRequest, app_id: AppId) -> Response[AppOut]:
        """Asks the catalogue and the registries of the app's images, as is done by itself once a day, and answers when
        they have, or after 20 seconds: then a job goes on with it. `available_update` says what there is; a registry
        that gave no answer is in `update_check`.
        """
        return await checked_answer(request, app_id)

    @post(
        "/{app_id:str}/rollback",
        guards=[requires("apps:deploy")],
        operation_id="RollbackApp",
        summary="Go back to the version before",
        status_code=200,
    )
    async def rollback_app(self, apps: NamedDependency[AppService], app_id: AppId) -> Response[AppOut]:
        """Images, config and data are those from before the last update; a rollback can be taken back by another."""
        return full_answer(await changes.roll_back(apps, app_id))

    @get(
        "/{app_id:str}/export",
        guards=[requires("apps:read")],
        operation_id="ExportApp",
        operation_class=ExportOperation,
        summary="An app as plain Compose, with its data",
        responses={
            200: ResponseSpec(str, description="The file", media_type=YAML, generate_examples=False),
            # Of its data, and of what this release can't read.
            409: ResponseSpec(None, description="The app is busy or was never installed", generate_examples=False),
            422: ResponseSpec(None, description="The app can't be read", generate_examples=False),
        },
    )
    async def export_app(
        self,
        request: AppRequest,
        app_id: AppId,
        with_data: Annotated[bool, QueryParameter(name="data")] = False,
        secrets: MaybeFlag = None,
        extension: Flag = False,
    ) -> Response[Any]:
        """A file that `docker compose up` takes as it is, and `POST /api/apps/import` too. Secrets stand in it for a
        caller with the scope `apps:secrets`, unless `secrets=false`; else `${NAME:?…}` stands for each. With
        `extension=true` it has an `x-quazzar` block and keeps its `${name}`s, with the present values as defaults.

        With `data=true` (which needs `apps:secrets`) it is a tar with `compose.yaml`, `.env` and all volumes below
        `volumes/`, sent while it is read. Stop the app first if its data has to be that of one moment.
        """
        return await export_answer(request, app_id, Wanted(data=with_data, secrets=secrets, extension=extension))

    @get("/{app_id:str}/logs", guards=[requires("apps:read")], operation_id="GetAppLogs", summary="What an app says")
    async def get_app_logs(
        self,
        request: AppRequest,
        app_id: AppId,
        tail: Annotated[int, QueryParameter(ge=0, le=10_000, description="How many lines at most.")] = 200,
        since: Annotated[str | None, QueryParameter(description="From this time on.", schema_extra=TIME)] = None,
        until: Annotated[str | None, QueryParameter(description="Up to this time.", schema_extra=TIME)] = None,
        service: Annotated[str | None, QueryParameter(min_length=1, max_length=63)] = None,
        q: Annotated[str | None, QueryParameter(min_length=1, max_length=200, description="Part of the line.")] = None,
        timestamps: Flag = True,
        follow: Flag = False,
    ) -> Response[list[LogLineOut]]:
        """The last `tail` lines of all services (or of `service`) that hold `q`, in order of time; letter case does
        not matter to `q`. Without `timestamps` the field `time` is left out. With `follow=true` server-sent events,
        one for each line, until the caller leaves.
        """
        times = times_of(since=since, until=until)
        query = LogQuery(tail=tail, service=service, q=q, timestamps=timestamps, follow=follow, **times)
        return await logs_answer(request, app_id, query)

    @get(
        "/{app_id:str}/stats",
        guards=[requires("apps:read")],
        operation_id="GetAppStats",
        summary="What an app uses, now or over time",
    )
    async def get_app_stats(
        self,
        request: AppRequest,
        app_id: AppId,
        range: Annotated[  # noqa: A002 - the name of the parameter
            Range | None, QueryParameter(description="Points over this time instead of now.")
        ] = None,
        follow: Flag = False,
    ) -> Response[AppStats | AppHistory]:
        """Sums and one entry for each running service. With `follow=true` server-sent events, one every two seconds.

        With `range` points instead, oldest first: minutes up to `24h`, hours up to `30d`, days for `1y`. A step without
        a point is a gap: nothing was measured in it.
        """
        return await stats_answer(request, app_id, span=range, follow=follow)

    @get(
        "/{app_id:str}/events",
        guards=[requires("apps:read")],
        operation_id="ListAppEvents",
        summary="What happened to an app",
        responses={200: ResponseSpec(list[EventOut], description="Events, newest first", generate_examples=False)},
    )
    async def list_app_events(
        self,
        request: AppRequest,
        session: NamedDependency[AsyncSession],
        app_id: AppId,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[EventOut]]:
        """Newest first; kept for 90 days. The types are those of the feed, `GET /api/events`, which can be followed."""
        page = page_of(limit, cursor, key=EVENT_ID.pattern)
        return await events_answer(request, session, app_id, page)
