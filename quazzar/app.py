"""The one place of assembly: from settings to the ASGI application of a mode."""

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import psutil
import structlog
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin
from sqlalchemy.exc import SQLAlchemyError

import quazzar.alerts.events
import quazzar.instance.backups.events
import quazzar.instance.domains.events
import quazzar.instance.vpn.events  # declaring an event is what makes it one that can be subscribed to
import quazzar.invitations.jobs
import quazzar.webhooks.jobs  # noqa: F401 - declaring a job is what schedules it
from quazzar import __version__
from quazzar.accounts.process import Accounts
from quazzar.accounts.tenancy import Tenancy
from quazzar.audit.refusals import Refusals
from quazzar.audit.routes import handlers as audit_handlers
from quazzar.core.auth import Principal, Realm
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.envelope import exception_handlers, remember_error
from quazzar.core.errors import AppError
from quazzar.core.exchange import App
from quazzar.core.gate import BodyRule, Gate, GateConfig, LogRequest
from quazzar.core.http import JsonRequest, provide_session
from quazzar.core.idempotency import Replay
from quazzar.core.jobs import KEYRING, SETTINGS, Resources, Worker
from quazzar.core.logs import AccessLog
from quazzar.core.openapi import build_document
from quazzar.core.outbound import OutboundPolicy
from quazzar.core.ratelimit import limiter_for, parse_bucket
from quazzar.core.records import Caller, publish
from quazzar.core.routing import renew_options
from quazzar.core.sse import streams_of
from quazzar.events.events import SystemStarted
from quazzar.events.feed import Feed
from quazzar.events.routes import handlers as event_handlers
from quazzar.health.routes import handlers as health_handlers
from quazzar.instance.apps.adopting import Adoptions
from quazzar.instance.apps.auto_updating import AutoUpdater
from quazzar.instance.apps.claims import Claims
from quazzar.instance.apps.disks import DiskMeter
from quazzar.instance.apps.exec import Terminals
from quazzar.instance.apps.exec_routes import ExecController
from quazzar.instance.apps.history import Collector
from quazzar.instance.apps.reconciler import Reconciler
from quazzar.instance.apps.room import MachineWatch
from quazzar.instance.apps.routes import AppController
from quazzar.instance.apps.runtimes import DockerConfig, MemoryConfig, RuntimeConfig, SwarmConfig, make_runtime
from quazzar.instance.apps.runtimes.engine.connection import engine_url
from quazzar.instance.apps.store import count_apps
from quazzar.instance.apps.usage import Usage
from quazzar.instance.apps.work import RUNTIME
from quazzar.instance.auth.routes import handlers as instance_account_handlers
from quazzar.instance.auth.service import ensure_setup_token
from quazzar.instance.enrolment.joining import Joining
from quazzar.instance.enrolment.line import Line
from quazzar.instance.enrolment.routes import handlers as panel_link_handlers
from quazzar.instance.enrolment.service import PanelLinkService, dial, is_linked_or_left
from quazzar.instance.impersonation.guests import PanelGuests
from quazzar.instance.impersonation.routes import handlers as impersonation_handlers
from quazzar.instance.orders.jobs import MACHINE, TELL_STATE
from quazzar.instance.registries.routes import RegistryController
from quazzar.instance.system.jobs import DATA_DIR
from quazzar.instance.template_sources.jobs import OUTBOUND
from quazzar.instance.template_sources.routes import TemplateSourceController
from quazzar.instance.templates.routes import TemplateController
from quazzar.jobs.jobs import DEFAULT_RETENTION_DAYS, RETENTION_DAYS
from quazzar.jobs.routes import handlers as job_handlers
from quazzar.jobs.store import count_jobs
from quazzar.mail.allowance import MailAllowance
from quazzar.mail.jobs import MAIL_SERVER
from quazzar.mail.service import mail_configured
from quazzar.mail.smtp import MailServer
from quazzar.reference.routes import handlers as reference_handlers
from quazzar.settings import Settings
from quazzar.webhooks.engine import Webhooks
from quazzar.webhooks.routes import handlers as webhook_handlers
from quazzar.webhooks.store import count_waiting

if TYPE_CHECKING:
    from quazzar.health.metrics import Metrics
    from quazzar.panel.commands.delivery import Delivery
    from quazzar.panel.fleet.process import Fleet

log = structlog.get_logger(__name__)

_AUTH_BYTES = 64 * 1024
_DAY_SECONDS = 86_400
_LOOK_SECONDS = 2.0
_STRICT = {
    "instance": ("setup", "login", "refresh", "totp/verify"),
    "panel": (
        "register",
        "login",
        "refresh",
        "totp/verify",
        "forgot-password",
        "reset-password",
        "verify-email",
    ),
}
_TRANSACTION = {"session": Provide(provide_session)}
_COMPOSE = BodyRule(types=("application/json", "application/yaml"))


def instance_router(prefix: str = "") -> Router:
    """The Cloud OS API."""
    return Router(
        f"{prefix}/api",
        dependencies=_TRANSACTION,
        route_handlers=[
            *health_handlers,
            *reference_handlers,
            *instance_account_handlers,
            *panel_link_handlers,
            *impersonation_handlers,
            TemplateController,
            AppController,
            ExecController,
            RegistryController,
            TemplateSourceController,
            *job_handlers,
            *event_handlers,
            *audit_handlers,
            *webhook_handlers,
        ],
    )


def panel_router(prefix: str = "") -> Router:
    """The Control Panel API; its modules are loaded where it is served, so that a mere instance stays small."""
    import quazzar.panel.commands.jobs  # noqa: F401, PLC0415 - declaring a job is what schedules it
    from quazzar.channels.routes import handlers as channel_handlers  # noqa: PLC0415
    from quazzar.panel.accounts.routes import handlers as panel_account_handlers  # noqa: PLC0415
    from quazzar.panel.alerts.routes import handlers as alert_handlers  # noqa: PLC0415
    from quazzar.panel.commands.routes import handlers as command_handlers  # noqa: PLC0415
    from quazzar.panel.fleet.routes import handlers as fleet_handlers  # noqa: PLC0415
    from quazzar.panel.impersonations.routes import handlers as panel_impersonation_handlers  # noqa: PLC0415
    from quazzar.panel.keys.routes import handlers as key_handlers  # noqa: PLC0415
    from quazzar.panel.members.routes import handlers as member_handlers  # noqa: PLC0415
    from quazzar.panel.roles.routes import handlers as role_handlers  # noqa: PLC0415
    from quazzar.panel.tenants.routes import handlers as tenant_handlers  # noqa: PLC0415

    return Router(
        f"{prefix}/api",
        dependencies=_TRANSACTION,
        route_handlers=[
            *health_handlers,
            *reference_handlers,
            *panel_account_handlers,
            *tenant_handlers,
            *member_handlers,
            *role_handlers,
            *key_handlers,
            *fleet_handlers,
            *panel_impersonation_handlers,
            *command_handlers,
            *alert_handlers,
            *channel_handlers,
            *job_handlers,
            *event_handlers,
            *audit_handlers,
            *webhook_handlers,
        ],
    )


def realms_of(mode: Literal["instance", "panel", "all"]) -> dict[Realm, str]:
    """The APIs of a mode, each with the prefix before `/api`."""
    match mode:
        case "instance":
            return {"instance": ""}
        case "panel":
            return {"panel": ""}
        case "all":
            return {"instance": "", "panel": "/panel"}


def api_document(realm: Realm) -> dict[str, Any]:
    """The OpenAPI document of one API, as it is checked in."""
    if realm == "instance":
        return build_document(
            instance_router(), title="Quazzar Cloud OS API", description="Runs on each server: apps and what they need."
        )
    return build_document(
        panel_router(), title="Quazzar Control Panel API", description="The central plane for many servers and tenants."
    )


class _Part(Protocol):
    """Something that works for as long as the app does."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class _Litestar(Litestar):
    """Litestar without what it would load for pydantic's and attrs' classes, of which no handler has any: 2 MB."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


class Application:
    """The app of one process. `asgi` is what the server calls; its lifespan starts and ends what works beside it."""

    def __init__(self, settings: Settings, keyring: Keyring, database: Database) -> None:
        self.settings = settings
        self.database = database
        database.session_info["keyring"] = keyring
        modes = realms_of(settings.server.mode)
        self.limiter = limiter_for(settings.rate_limit.storage.reveal(), postgres=database.small_pool)
        tenancy: Tenancy | None = None
        if "panel" in modes:
            from quazzar.panel.members.service import has_proved  # noqa: PLC0415
            from quazzar.panel.tenants.tenancy import PanelTenancy  # noqa: PLC0415

            tenancy = PanelTenancy()
            allowance = MailAllowance(settings.rate_limit, self.limiter, is_proved=has_proved)
            database.session_info["mail_allowance"] = allowance
        self.accounts = Accounts(settings, keyring, database, self.limiter, tenancy=tenancy, guests=PanelGuests())
        resources = Resources()
        resources[KEYRING] = keyring
        resources[RETENTION_DAYS] = DEFAULT_RETENTION_DAYS
        resources[SETTINGS] = settings
        if mail_configured(settings):
            resources[MAIL_SERVER] = MailServer(settings)
        policy = outbound_policy(settings)
        resources[OUTBOUND] = policy
        resources[DATA_DIR] = settings.server.data_dir
        self._runtime = make_runtime(runtime_config(settings)) if "instance" in modes else None
        self._reconciler: Reconciler | None = None
        self._terminals: Terminals | None = None
        self._machine: MachineWatch | None = None
        usage = Usage()
        on_engine: list[_Part] = []
        first: list[_Part] = []
        if self._runtime is not None:
            resources[RUNTIME] = self._runtime
            first = [Adoptions(database, self._runtime), Claims(database, keyring)]
            limits = settings.runtime
            self._reconciler = Reconciler(database, self._runtime)
            self._terminals = Terminals(
                database, self._runtime, most=limits.terminals, idle_seconds=limits.terminal_idle_minutes * 60
            )
            collector = Collector(database, self._runtime)
            usage = collector.usage
            self._machine = resources[MACHINE] = MachineWatch(self._runtime)
            updater = AutoUpdater(database, keyring, settings, self._machine)
            meters = (collector, DiskMeter(database, self._runtime), self._machine)
            on_engine = [self._reconciler, *meters, self._terminals, updater]
        if "panel" in modes:
            # Declared before there is a worker, which looks for kinds of jobs only once.
            from quazzar.channels.jobs import SENDING, Sending  # noqa: PLC0415

            resources[SENDING] = Sending(policy, settings.webhooks.retry_schedule)
            import quazzar.panel.accounts.jobs  # noqa: PLC0415
            import quazzar.panel.alerts.jobs  # noqa: PLC0415
            import quazzar.panel.commands.jobs  # noqa: F401, PLC0415
        identity = None if settings.database.url is not None else str(settings.server.data_dir)
        self.worker = Worker(database, resources, identity=identity)
        self.feed = Feed(database)
        self.fleet: Fleet | None = None
        self.agents: App | None = None
        self.commands: Delivery | None = None
        watch: list[_Part] = []
        if "panel" in modes:
            from quazzar.panel.alerts.process import Watch  # noqa: PLC0415
            from quazzar.panel.commands import delivery  # noqa: PLC0415
            from quazzar.panel.fleet import listener, process  # noqa: PLC0415

            self.fleet = process.Fleet(settings, keyring, database)
            self.commands = self.fleet.hub.work = delivery.Delivery(self.fleet)
            self.agents = listener.agent_app(self.fleet, self.limiter)
            watch = [Watch(database, settings, self.fleet.panel_url)]
        hub = self.fleet.hub if self.fleet is not None else None
        self.panel_line: Line | None = None
        joining: Joining | None = None
        if "instance" in modes:
            # With both halves in one process, people find both at the same place.
            url = settings.server.public_url or (self.fleet.panel_url() if self.fleet is not None else None)
            self.panel_line = Line(database, settings.server.data_dir, keyring, usage, url=url)
            resources[TELL_STATE] = self.panel_line.tell_state
            if (token := settings.panel.token) is not None:
                joining = Joining(self.panel_line, self.accounts.authenticator, token.reveal())
        on_line: list[_Part] = [part for part in (self.commands, hub, self.panel_line, joining) if part is not None]
        self.webhooks = Webhooks(database, keyring, policy, settings.webhooks.retry_schedule, identity=identity)
        # In the order of their start; they end in the opposite one.
        parts: list[_Part] = [self.accounts, self.feed, *first, self.worker, self.webhooks]
        self._parts = [*parts, *on_line, *on_engine, *watch]
        self.litestar = _Litestar(
            route_handlers=[
                instance_router(prefix) if realm == "instance" else panel_router(prefix)
                for realm, prefix in modes.items()
            ],
            request_class=JsonRequest,
            exception_handlers={**exception_handlers, Replay: lambda _, replay: replay.response},
            after_exception=[remember_error, Refusals().record],
            # Bodies are limited by the gate, path by path; Litestar's own cap would come before a larger one.
            request_max_body_size=None,
            lifespan=[self._running],
            openapi_config=None,
            logging_config=None,
            state=State(
                {
                    "settings": settings,
                    "keyring": keyring,
                    "database": database,
                    "accounts": self.accounts,
                    "runtime": self._runtime,
                    "reconciler": self._reconciler,
                    "terminals": self._terminals,
                    "machine": self._machine,
                    "worker": self.worker,
                    "feed": self.feed,
                    "fleet": self.fleet,
                    "commands": self.commands,
                    "panel_line": self.panel_line,
                    "webhooks": self.webhooks,
                    "authenticator": self.accounts.authenticator,
                    "draining": False,
                }
            ),
        )
        renew_options(self.litestar)
        self.metrics = make_metrics(settings) if settings.metrics.port is not None else None
        log = self.metrics.observing(AccessLog()) if self.metrics is not None else None
        self.asgi = Gate(self.litestar, gate_config(settings, log), self.accounts.authenticator, self.limiter)

    @property
    def limit_per_minute(self) -> int:
        """The limit of this process's first API, for answers that are given before the gate."""
        realm = next(iter(realms_of(self.settings.server.mode)))
        return parse_bucket(realm, getattr(self.settings.rate_limit, realm)).amount

    async def agent_tls(self) -> ssl.SSLContext:
        """What the agent listener shows of itself and asks of instances."""
        from quazzar.panel.fleet.listener import server_tls  # noqa: PLC0415

        assert self.fleet is not None
        return await server_tls(self.fleet, self.settings.server.data_dir)

    async def renew_agent_tls(self, context: ssl.SSLContext) -> None:
        """Give the agent listener a new certificate each day, until cancelled."""
        from quazzar.panel.fleet.listener import renew_tls  # noqa: PLC0415

        assert self.fleet is not None
        while True:
            await asyncio.sleep(_DAY_SECONDS)
            await renew_tls(self.fleet, context, self.settings.server.data_dir)

    async def link_halves(self) -> None:
        """With both halves in one process: once somebody has registered on the panel at this machine, its instance
        joins their tenant, by a token and over TLS as any other server. One that was linked before is left alone, and
        one that is to join another panel by `panel.token`.
        """
        if self.fleet is None or self.panel_line is None or self.settings.panel.token is not None:
            return
        while True:
            try:
                if await is_linked_or_left(self.panel_line) or await self._link_halves(self.fleet, self.panel_line):
                    return
            except (AppError, OSError, SQLAlchemyError) as error:
                log.warning("This server could not join its own panel yet", cause=str(error)[:200])
            await asyncio.sleep(_LOOK_SECONDS)

    async def _link_halves(self, fleet: "Fleet", line: Line) -> bool:
        from quazzar.panel.fleet.schemas import TokenCreate  # noqa: PLC0415
        from quazzar.panel.fleet.service import FleetService  # noqa: PLC0415
        from quazzar.panel.fleet.upkeep import first_tenant  # noqa: PLC0415

        async with self.database.begin() as session:
            tenant_id = await first_tenant(session)
        if tenant_id is None:
            return False
        address = await fleet.local_address()
        me = Principal(realm="panel", user_id="system", client="system", scopes=frozenset("*"), tenant_id=tenant_id)
        async with self.database.begin(tenant=tenant_id) as session:
            session.info["caller"] = Caller(kind="system", realm="panel", tenant_id=tenant_id)
            made = await FleetService(session, me).create_token(TokenCreate(name="This server"), address)
        joined = await dial(line, made.token)
        async with self.database.begin() as session:
            await PanelLinkService(session, line, self.accounts.authenticator).create(joined)
        return True

    def drain(self) -> None:
        """From now on the process says that it is not ready, and open streams end."""
        self.litestar.state.draining = True
        self.worker.drain()
        self.webhooks.drain()
        streams_of(self.litestar.state).close()

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """What the server runs around its own life; for tests that have no server."""
        return self.litestar.lifespan()

    @contextlib.asynccontextmanager
    async def _running(self, _: Litestar) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.limiter.close)
            if self._runtime is not None:
                stack.push_async_callback(self._runtime.close)
            for part in self._parts:
                await part.start()
                stack.push_async_callback(part.stop)
            if self._runtime is not None:
                await self._announce_setup()
                async with self.database.begin() as session:
                    publish(session, SystemStarted(version=__version__, mode=self.settings.server.mode))
            yield

    async def _announce_setup(self) -> None:
        """Until there is an admin, tell whoever sees the console how to make one from another machine."""
        async with self.database.begin() as session:
            token = await ensure_setup_token(self.settings.server.data_dir, session)
        if token is not None:
            # Past the log, whose filter would mask it: this line is how the token reaches its reader.
            sys.stderr.write(f"Not set up yet. From another machine, setup needs this token, once: {token}\n")
            sys.stderr.flush()


def create_app(settings: Settings, *, keyring: Keyring, database: Database) -> Application:
    """The application of `settings` on an open database; nothing is started before its lifespan begins."""
    return Application(settings, keyring, database)


def outbound_policy(settings: Settings) -> OutboundPolicy:
    """Where webhooks may go: public addresses and the allowed networks, but never to this process itself."""
    own = (settings.server.port, settings.agent.port, settings.metrics.port)
    return OutboundPolicy(settings.webhooks.allow_networks, own_ports=[port for port in own if port is not None])


def denied_paths(settings: Settings) -> tuple[str, ...]:
    """Folders of ours that no app may mount: all our data, the backups, and the engine's socket."""
    folders = [str(one) for one in (settings.server.data_dir, *settings.backups.local_roots)]
    socket_path = engine_url(settings.runtime.docker_url).removeprefix("unix://")
    return tuple(os.path.realpath(one) for one in (*folders, socket_path) if one.startswith("/"))


def runtime_config(settings: Settings) -> RuntimeConfig:
    match settings.runtime.driver:
        case "docker":
            return DockerConfig(host=settings.runtime.docker_url, denied=denied_paths(settings))
        case "swarm":
            return SwarmConfig(host=settings.runtime.docker_url, denied=denied_paths(settings))
        case "memory":
            return MemoryConfig()


def make_metrics(settings: Settings) -> "Metrics":
    """What Prometheus may read; its library is loaded only where somebody wants that."""
    from quazzar.health.metrics import Metrics  # noqa: PLC0415

    metrics = Metrics(mode=settings.server.mode)
    metrics.watch("jobs", "Jobs that are known.", "status", count_jobs)
    metrics.watch("webhook_deliveries", "Deliveries that wait for an attempt.", "status", count_waiting)
    if settings.server.mode != "panel":
        metrics.watch("apps", "Installed apps.", "status", count_apps)
    return metrics


def gate_config(settings: Settings, log: LogRequest | None = None) -> GateConfig:
    strict = parse_bucket("auth", settings.rate_limit.auth)
    tests = parse_bucket("webhook_test", settings.rate_limit.auth)
    auth_body = BodyRule(limit=_AUTH_BYTES)
    bodies: dict[tuple[Realm, str], BodyRule] = {
        ("instance", "/api/templates"): _COMPOSE,
        ("instance", "/api/templates/{id}"): _COMPOSE,
    }
    realms: tuple[Realm, ...] = ("instance", "panel")
    for realm in realms:
        for name in (*_STRICT[realm], "totp/enable", "totp/disable", "change-password"):
            bodies[realm, f"/api/auth/{name}"] = auth_body
    bodies["panel", "/api/invitations/accept"] = auth_body
    return GateConfig(
        mode=settings.server.mode,
        limits={
            "instance": parse_bucket("instance", settings.rate_limit.instance),
            "panel": parse_bucket("panel", settings.rate_limit.panel),
        },
        strict={(realm, f"/api/auth/{name}"): strict for realm in realms for name in _STRICT[realm]}
        | {(realm, "/api/webhooks/{id}/test"): tests for realm in realms}
        | {("panel", "/api/notification-channels/{id}/test"): tests}
        | {("panel", "/api/invitations/accept"): strict},
        allowed_hosts=allowed_hosts(settings),
        trusted_proxies=tuple(str(network) for network in settings.server.trusted_proxies),
        cors_origins=frozenset(settings.server.cors_origins),
        bodies=bodies,
        log=log,
    )


def allowed_hosts(settings: Settings) -> tuple[str, ...]:
    """Loopback names, this machine's name and addresses, the public URL's host, and what the setting adds."""
    names = {"localhost", "127.0.0.1", "[::1]", socket.gethostname().lower()}
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            address = entry.address.partition("%")[0]
            if entry.family == socket.AF_INET:
                names.add(address)
            elif entry.family == socket.AF_INET6:
                names.add(f"[{address}]")
    if settings.server.public_url is not None and (host := urlsplit(settings.server.public_url).hostname):
        names.add(f"[{host}]" if ":" in host else host)
    return (*sorted(names), *settings.server.allowed_hosts)
