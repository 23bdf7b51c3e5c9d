"""All settings, read once at start: defaults < quazzar.toml < environment < flags.

A setting is one line here: its type, its default, and in `Meta` the sentence that `docs/operating.md` shows.
"""

import difflib
import ipaddress
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from quazzar.core.secret import Secret

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Check: TypeAlias = Callable[[Any], str | None]

SYSTEM_CONFIG: Path = Path("/etc/quazzar/quazzar.toml")
_SECRET_FILE_BYTES = 64 * 1024
_PREFIX = "QUAZZAR_"

# Variables with our prefix that are not settings: the config file's own, and those of the test and bench tools.
_OTHER_VARIABLES = re.compile(
    r"QUAZZAR_(CONFIG|REQUIRE_COMPONENTS|COMPONENT_PATH|TORTURE|FUZZ\w*|TEST_\w+|BENCH_\w+"
    # A Kubernetes service that is called "quazzar" puts these into every container of its namespace.
    r"|SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)\w*)?)"
)


# --- what a value must be like, beyond its type: each gives the reason when it is not -----------------------------


def _host(value: str) -> str | None:
    if _is_address(value) or _HOST_NAME.fullmatch(value):
        return None
    return "must be an IP address or a host name"


def _host_names(value: tuple[str, ...]) -> str | None:
    if all(_is_address(item.strip("[]")) or _HOST_NAME.fullmatch(item) for item in value):
        return None
    return "must be host names or addresses without scheme, port or path"


def _addresses(value: tuple[str, ...]) -> str | None:
    for item in value:
        parts = _split(f"//{item}")
        if parts is None or parts.port is None or parts.netloc != item or _host(parts.hostname or "") is not None:
            return "must be addresses with their ports, such as panel.example.com:8443"
    return None if len(value) <= 32 else "must be at most 32 addresses"


def _web_url(value: str) -> str | None:
    parts = _split(value)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must be an http:// or https:// address"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "must not hold a user name, a query or a fragment"
    return None


def _origins(value: tuple[str, ...]) -> str | None:
    for item in value:
        parts = _split(item)
        if _web_url(item) or parts is None or parts.path:
            return "must be origins such as https://panel.example.com, without a path"
    return None


def _database_url(value: Secret) -> str | None:
    parts = _split(value.reveal())
    if parts is None or parts.scheme not in {"postgresql", "postgres"} or " " in value.reveal():
        return "must begin with postgresql://"
    if not parts.path.strip("/"):
        return "must name a database, as in postgresql://user:password@host:5432/quazzar"
    return None


def _rate(value: str) -> str | None:
    from limits import parse_many  # noqa: PLC0415 - only where a limit is really set

    try:
        items = parse_many(value)
    except ValueError:
        return "must be a limit such as 100/minute"
    if len(items) != 1 or items[0].amount < 1:
        return "must be one limit of at least 1, such as 100/minute"
    return None


def _rate_storage(value: Secret) -> str | None:
    text = value.reveal()
    parts = _split(text)
    if text in {"memory", "postgres"}:
        return None
    if parts is not None and parts.scheme in {"redis", "rediss", "valkey", "valkeys"} and parts.hostname:
        return None
    return "must be memory, postgres, redis://… or valkey://…"


def _docker_host(value: str) -> str | None:
    if value.startswith(("/", "unix:///")):
        return None
    parts = _split(value)
    if parts is not None and parts.scheme in {"tcp", "http", "https"} and parts.hostname:
        return None
    return "must be the path of a socket, unix:///… or tcp://…"


def _registration_token(value: Secret) -> str | None:
    return None if re.fullmatch(r"qze_[A-Za-z0-9_-]+", value.reveal()) else "must be a token that begins with qze_"


def _retry_schedule(value: tuple[float, ...]) -> str | None:
    if not 1 <= len(value) <= 50 or any(not 0 <= pause <= 7 * 86400 for pause in value):
        return "must be 1 to 50 pauses of 0 to 604800 seconds"
    return None


def _absolute(value: Path | tuple[Path, ...]) -> str | None:
    paths = value if isinstance(value, tuple) else (value,)
    return None if all(path.is_absolute() for path in paths) else "must be absolute paths"


def _mail_address(value: str) -> str | None:
    return None if _MAIL_SENDER.fullmatch(value) else "must be a mail address, or a name and one as in `Name <address>`"


_MAIL_ADDRESS = r"[^\s<>@\",;:\\]+@[^\s<>@\",;:\\]+"
_MAIL_SENDER = re.compile(rf'(?:"[^"\\]*"|[^<>@",;:\\]*)\s*<{_MAIL_ADDRESS}>|{_MAIL_ADDRESS}')
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9_-]{0,62})*\.?")


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _split(value: str) -> "typing.Any":
    """`urlsplit`, or None for what it can't read (a bad port, an open bracket)."""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        return None
    return parts


def _as(check: Check, *, shown: str | None = None, alias: str | None = None) -> dict[str, Any]:
    return {"check": check} | _shown(shown, alias=alias)


def _shown(default: str | None, *, alias: str | None = None) -> dict[str, Any]:
    """How the table writes a default that is found at run time; `alias` is a variable of the field that also counts."""
    return {key: value for key, value in (("shown", default), ("alias", alias)) if value is not None}


def default_data_dir() -> Path:
    """`/var/lib/quazzar` as root, else `quazzar` in the user's data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/quazzar")
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "quazzar"


Mode: TypeAlias = Literal["instance", "panel", "all"]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]


class Server(msgspec.Struct, frozen=True, kw_only=True):
    mode: Annotated[
        Mode, Meta(description="Which APIs this process serves: the Cloud OS, the Control Panel, or both on one port.")
    ] = "all"
    host: Annotated[str, Meta(description="Address to listen on.", extra=_as(_host))] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port to listen on; 0 takes any free one.", ge=0, le=65535)] = 8080
    data_dir: Annotated[
        Path,
        Meta(
            description="Folder of everything that this process keeps on disk.",
            extra=_as(_absolute, shown="`/var/lib/quazzar` as root, else the user's data folder"),
        ),
    ] = field(default_factory=default_data_dir)
    public_url: Annotated[
        str | None, Meta(description="Address that links and webhooks give for this server.", extra=_as(_web_url))
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Names that a Host header may carry, besides those that are always right.",
            extra=_as(_host_names, shown="loopback names, own addresses, configured domains"),
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[Network, ...], Meta(description="Networks of reverse proxies whose X-Forwarded-For counts.")
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="Origins of web pages that may call the API from a browser.", extra=_as(_origins)),
    ] = ()
    max_connections: Annotated[
        int, Meta(description="Connections held open at once; more are turned away.", ge=10, le=1_000_000)
    ] = 2000


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    url: Annotated[
        Secret | None,
        Meta(
            description="PostgreSQL 16 or newer to use, as `postgresql://…`, instead of the embedded one.",
            extra=_as(_database_url, shown="embedded PostgreSQL in `data_dir/postgres`"),
        ),
    ] = None
    pool_size: Annotated[int, Meta(description="Connections to the database for requests.", ge=2, le=1000)] = 10


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    secret_key: Annotated[
        Secret | None,
        Meta(
            description="Master key, from which signing and encryption keys are derived: 32 random bytes in base64 or"
            " hex, or `id:base64` pairs separated by commas, the current one first.",
            extra=_shown("made at first start in `data_dir/secret.key`"),
        ),
    ] = None
    access_minutes: Annotated[int, Meta(description="Life of an access token in minutes.", ge=1, le=1440)] = 15
    refresh_days: Annotated[
        int,
        Meta(
            description="Longest life of a session in days; one that is not used for 7 days ends before.", ge=1, le=365
        ),
    ] = 30


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    instance: Annotated[str, Meta(description="Requests per client of the Cloud OS API.", extra=_as(_rate))] = (
        "100/minute"
    )
    panel: Annotated[str, Meta(description="Requests per tenant of the Control Panel API.", extra=_as(_rate))] = (
        "200/minute"
    )
    auth: Annotated[
        str,
        Meta(
            description="Attempts at login, setup, refresh and TOTP per address and per account name.",
            extra=_as(_rate),
        ),
    ] = "10/minute"
    mail: Annotated[
        str,
        Meta(
            description="Mails that the people of one tenant may cause: alerts, tests of channels, invitations.",
            extra=_as(_rate),
        ),
    ] = "200/hour"
    mail_address: Annotated[
        str,
        Meta(
            description="Such mails that one address gets of all tenants in which nobody has confirmed it.",
            extra=_as(_rate),
        ),
    ] = "60/hour"
    storage: Annotated[
        Secret,
        Meta(
            description="Where counts are kept; several processes share them in `postgres`, `redis://…` or"
            " `valkey://…`.",
            extra=_as(_rate_storage, shown="`memory`"),
        ),
    ] = Secret("memory")


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    driver: Annotated[
        Literal["docker", "swarm", "memory"],
        Meta(description="Container runtime; `memory` runs nothing and is for trying out."),
    ] = "docker"
    docker_host: Annotated[
        str,
        Meta(
            description="Socket of the container engine.",
            extra=_as(_docker_host, shown="`DOCKER_HOST`, else `/var/run/docker.sock`", alias="DOCKER_HOST"),
        ),
    ] = "/var/run/docker.sock"

    terminals: Annotated[int, Meta(description="Terminals in services that may be open at once.", ge=0, le=1000)] = 20
    terminal_idle_minutes: Annotated[
        int,
        Meta(description="Minutes after which a terminal ends in which nothing is typed or printed.", ge=1, le=1440),
    ] = 30

    @property
    def docker_url(self) -> str:
        """`docker_host` as a URL: `unix:///…` where it is a path."""
        return f"unix://{self.docker_host}" if self.docker_host.startswith("/") else self.docker_host


class Apps(msgspec.Struct, frozen=True, kw_only=True):
    trash_days: Annotated[
        int,
        Meta(
            description="Days that a deleted app stays in the trash with its data; 0 removes it at once.", ge=0, le=3650
        ),
    ] = 7
    update_check_hours: Annotated[
        int,
        Meta(
            description="Hours between two questions to the registries of apps' images for newer ones; 0 asks only when"
            " told to.",
            ge=0,
            le=720,
        ),
    ] = 24
    memory_overcommit: Annotated[
        float,
        Meta(
            description="How often the memory limits of all apps may promise the machine's memory; 0 checks none.",
            ge=0,
            le=1000,
        ),
    ] = 2.0
    cpu_overcommit: Annotated[
        float,
        Meta(
            description="How often the CPU limits of all apps may promise the machine's cores; 0 checks none.",
            ge=0,
            le=1000,
        ),
    ] = 10.0


class Webhooks(msgspec.Struct, frozen=True, kw_only=True):
    allow_networks: Annotated[
        tuple[Network, ...], Meta(description="Private networks that webhooks may reach all the same.")
    ] = ()
    retry_schedule: Annotated[
        tuple[float, ...],
        Meta(description="Seconds before each attempt to deliver a webhook.", extra=_as(_retry_schedule)),
    ] = (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)


class Backups(msgspec.Struct, frozen=True, kw_only=True):
    local_roots: Annotated[
        tuple[Path, ...],
        Meta(
            description="Folders under which local backup targets may lie.",
            extra=_as(_absolute, shown="`data_dir/backups`"),
        ),
    ] = ()


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    host: Annotated[str, Meta(description="Address on which the panel listens for instances.", extra=_as(_host))] = (
        "0.0.0.0"  # noqa: S104 - instances come from elsewhere; mutual TLS guards it
    )
    port: Annotated[int, Meta(description="Port on which the panel listens for instances.", ge=0, le=65535)] = 8443
    public_host: Annotated[
        str | None,
        Meta(
            description="Host that registration tokens tell instances to dial.",
            extra=_as(_host, shown="host of `server.public_url`, else `agent.host`"),
        ),
    ] = None
    public_addresses: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses with ports of all listeners of a panel of several processes; instances are told them"
            " and take another one where one does not answer.",
            extra=_as(_addresses),
        ),
    ] = ()
    heartbeat_seconds: Annotated[
        int, Meta(description="Seconds between two signs of life of an instance.", ge=1, le=3600)
    ] = 30


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    token: Annotated[
        Secret | None,
        Meta(
            description="Registration token of the panel that this server joins at its start, unless it has joined or"
            " left one before.",
            extra=_as(_registration_token),
        ),
    ] = None


class Smtp(msgspec.Struct, frozen=True, kw_only=True):
    host: Annotated[str | None, Meta(description="Mail server; without one no mail is sent.", extra=_as(_host))] = None
    port: Annotated[int, Meta(description="Port of the mail server.", ge=1, le=65535)] = 587
    username: Annotated[str | None, Meta(description="User name at the mail server.")] = None
    password: Annotated[Secret | None, Meta(description="Password at the mail server.")] = None
    sender: Annotated[
        str | None,
        Meta(
            description="Address that mails come from, also as `Name <address>`.",
            extra=_as(_mail_address, shown="`smtp.username` if that is an address, else `quazzar@` this server's name"),
        ),
    ] = field(default=None, name="from")
    tls: Annotated[
        Literal["starttls", "tls", "none"],
        Meta(description="How the connection to the mail server is protected; certificates are checked."),
    ] = "starttls"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    port: Annotated[
        int | None,
        Meta(description="Port on loopback that serves Prometheus metrics.", ge=1, le=65535, extra=_shown("off")),
    ] = None


class Log(msgspec.Struct, frozen=True, kw_only=True):
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least severe lines that are written.")
    ] = "info"
    format: Annotated[
        Literal["console", "json"] | None,
        Meta(description="Form of a log line.", extra=_shown("`console` on a terminal, else `json`")),
    ] = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    server: Server = field(default_factory=Server)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    auth: Auth = field(default_factory=Auth)
    rate_limit: RateLimits = field(default_factory=RateLimits)
    runtime: Runtime = field(default_factory=Runtime)
    apps: Apps = field(default_factory=Apps)
    webhooks: Webhooks = field(default_factory=Webhooks)
    backups: Backups = field(default_factory=Backups)
    agent: Agent = field(default_factory=Agent)
    panel: Panel = field(default_factory=Panel)
    smtp: Smtp = field(default_factory=Smtp)
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=Log)

    @property
    def data_dir(self) -> Path:
        return self.server.data_dir

    @property
    def backup_roots(self) -> tuple[Path, ...]:
        """Folders under which local backup targets may lie."""
        return self.backups.local_roots or (self.server.data_dir / "backups",)

    @property
    def agent_public_host(self) -> str:
        """The host that registration tokens tell instances to dial."""
        if self.agent.public_host is not None:
            return self.agent.public_host
        if self.server.public_url is not None:
            return urlsplit(self.server.public_url).hostname or self.agent.host
        return self.agent.host


class Setting(msgspec.Struct, frozen=True):
    """One key, as the documentation and the readers see it. `default` is Markdown, empty when there is none."""

    key: str
    attribute: str
    kind: Any
    meaning: str
    default: str
    secret: bool
    least: int | None
    most: int | None
    check: Check | None
    alias: str | None

    @property
    def variable(self) -> str:
        return _PREFIX + self.key.replace(".", "_").upper()


class Problem(msgspec.Struct, frozen=True):
    """A key (or variable, or file) that can't be used, where it came from, and why; never its value."""

    name: str
    reason: str
    source: str = ""

    def __str__(self) -> str:
        origin = f" ({self.source})" if self.source and self.source != self.name else ""
        return f"{self.name}{origin} {self.reason}"


class SettingsError(Exception):
    """The settings can't be used; `problems` names all that is wrong with them."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


class _Refused(Exception):
    """The reason why a value can't be read."""


def _catalogue() -> Iterator[Setting]:
    for section in msgspec.structs.fields(Settings):
        struct = section.type
        hints = typing.get_type_hints(struct, include_extras=True)
        for entry in msgspec.structs.fields(struct):
            kind, meta = get_args(hints[entry.name])
            extra: dict[str, Any] = meta.extra or {}
            yield Setting(
                key=f"{section.name}.{entry.encode_name}",
                attribute=entry.name,
                kind=kind,
                meaning=meta.description,
                default=extra.get("shown") or _written(entry.default),
                secret=Secret in (kind, *get_args(kind)),
                least=meta.ge,
                most=meta.le,
                check=extra.get("check"),
                alias=extra.get("alias"),
            )


def _written(value: Any) -> str:
    match value:
        case None | ():
            return ""
        case tuple():
            return "`" + ",".join(f"{item}" for item in value) + "`"
        case _:
            return f"`{value}`"


CATALOGUE: Final[Mapping[str, Setting]] = {setting.key: setting for setting in _catalogue()}
_BY_VARIABLE: Final[Mapping[str, Setting]] = {setting.variable: setting for setting in CATALOGUE.values()}


class _Reader:
    """Collects values from all sources, later ones over earlier ones, and every problem on the way."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def take(self, setting: Setting, raw: object, source: str) -> None:
        try:
            value = _read(setting.kind, raw, setting)
            reason = setting.check(value) if setting.check is not None and value is not None else None
        except _Refused as refused:
            reason = str(refused)
        if reason is not None:
            self.problems.append(Problem(setting.key, reason, source))
        else:
            self.values[setting.key] = value

    def take_secret_file(self, setting: Setting, raw: object, source: str) -> None:
        if not isinstance(raw, str) or not raw:
            self.problems.append(Problem(setting.key, "must be the path of a file", source))
            return
        try:
            with Path(raw).open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
                    raise _Refused("is not a file")
                if stat.S_IMODE(status.st_mode) & 0o077:
                    raise _Refused("is in a file that others can read; set its mode to 0600 or 0400")
                text = file.read(_SECRET_FILE_BYTES + 1)
            if len(text) > _SECRET_FILE_BYTES:
                raise _Refused("is in a file of more than 64 KiB")
            self.take(setting, text.decode().strip(), source)
        except OSError as error:
            self.problems.append(Problem(setting.key, f"can't be read from its file: {error.strerror}", source))
        except UnicodeDecodeError:
            self.problems.append(Problem(setting.key, "is in a file that is not UTF-8 text", source))
        except _Refused as refused:
            self.problems.append(Problem(setting.key, str(refused), source))

    def unknown(self, name: str, source: str, known: list[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.problems.append(Problem(_printable(name), f"is not a setting{hint}", source))

    def read_file(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                others_can_read = bool(stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007)
                document = tomllib.loads(file.read().decode())
        except OSError as error:
            self.problems.append(Problem(str(path), f"can't be read: {error.strerror}"))
            return
        except UnicodeDecodeError:
            self.problems.append(Problem(str(path), "is not UTF-8 text"))
            return
        except tomllib.TOMLDecodeError as error:
            # The parser's own message may quote what stands there, which may be a secret.
            place = re.search(r"line \d+, column \d+", str(error))
            self.problems.append(Problem(str(path), f"is not valid TOML at {place[0] if place else 'its end'}"))
            return
        for section, content in document.items():
            if not isinstance(content, dict):
                self.unknown(section, path.name, _sections())
                continue
            for name, raw in content.items():
                self._take_key(f"{section}.{name}", raw, path, others_can_read=others_can_read)

    def _take_key(self, key: str, raw: object, path: Path, *, others_can_read: bool) -> None:
        from_file = CATALOGUE.get(key.removesuffix("_file")) if key.endswith("_file") else None
        if (setting := CATALOGUE.get(key)) is not None:
            if setting.secret and others_can_read and raw != "memory":
                reason = "stands in a file that others can read; set its mode to 0600"
                self.problems.append(Problem(key, reason, path.name))
            else:
                self.take(setting, raw, path.name)
        elif from_file is not None and from_file.secret:
            self.take_secret_file(from_file, raw, path.name)
        else:
            self.unknown(key, path.name, list(CATALOGUE))

    def read_environment(self, environ: Mapping[str, str]) -> None:
        for variable in sorted(name for name in environ if name.startswith(_PREFIX)):
            if (setting := _BY_VARIABLE.get(variable)) is not None:
                if setting.secret and f"{variable}_FILE" in environ:
                    reason = f"is given twice; keep one of {variable} and {variable}_FILE"
                    self.problems.append(Problem(setting.key, reason, "environment"))
                else:
                    self.take(setting, environ[variable], variable)
                continue
            from_file = _BY_VARIABLE.get(variable.removesuffix("_FILE"))
            if from_file is not None and from_file.secret:
                if from_file.variable not in environ:
                    self.take_secret_file(from_file, environ[variable], variable)
            elif not _OTHER_VARIABLES.fullmatch(variable):
                self.unknown(variable, "environment", list(_BY_VARIABLE))

    def finish(self) -> Settings:
        if self.problems:
            raise SettingsError(self.problems)
        sections = {}
        for section in msgspec.structs.fields(Settings):
            given = {
                setting.attribute: self.values[key]
                for key, setting in CATALOGUE.items()
                if key in self.values and key.startswith(f"{section.name}.")
            }
            sections[section.name] = section.type(**given)
        return Settings(**sections)


def _sections() -> list[str]:
    return list(Settings.__struct_fields__)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:80]


def _read(kind: Any, raw: object, setting: Setting) -> Any:
    """The value of type `kind` that `raw` (text, or what TOML gives) stands for. Raises `_Refused` with the reason."""
    if kind == Network:
        return _network(raw)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        optional = next(member for member in get_args(kind) if member is not types.NoneType)
        if setting.key == "metrics.port" and raw in ("off", 0, "0", False):
            return None
        return _read(optional, raw, setting)
    if origin is Literal:
        if raw not in (choices := get_args(kind)):
            raise _Refused(f"must be {', '.join(choices[:-1])} or {choices[-1]}")
        return raw
    if origin is tuple:
        if not isinstance(raw, str | list):
            raise _Refused("must be a list")
        items = [item.strip() for item in raw.split(",") if item.strip()] if isinstance(raw, str) else raw
        return tuple(_read(get_args(kind)[0], item, setting) for item in items)
    match kind:
        case type() if kind is int:
            return _number(raw, setting)
        case type() if kind is float:
            return _seconds(raw)
        case type() if kind is Path:
            return Path(_text(raw)).expanduser()
        case type() if kind is Secret:
            return Secret(_text(raw, lines=setting.key == "auth.secret_key"))
        case _:
            return _text(raw)


def _text(raw: object, *, lines: bool = False) -> str:
    if not isinstance(raw, str):
        raise _Refused("must be text")
    if not raw.strip():
        raise _Refused("is empty; leave it out instead")
    if any(letter < " " and not (lines and letter in "\r\n") for letter in raw.strip()):
        raise _Refused("must not hold control characters")
    return raw.strip()


def _number(raw: object, setting: Setting) -> int:
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,12}", raw.strip()):
        raw = int(raw)
    least, most = setting.least or 0, setting.most or 2**31
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise _Refused(f"must be a whole number from {least} to {most}")
    return raw


def _seconds(raw: object) -> float:
    if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", raw):
        raw = float(raw) if "." in raw else int(raw)
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise _Refused("must be numbers of seconds")
    return raw


def _network(raw: object) -> Network:
    try:
        return ipaddress.ip_network(_text(raw))
    except ValueError:
        raise _Refused("must be addresses or networks such as 10.0.0.0/8") from None


def load_settings(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    config_path: Path | None = None,
) -> Settings:
    """The settings of this process; `flags` maps keys (`server.port`, for a secret `panel.token_file`) to what the
    command line gave.

    One file is read: `config_path`, else the one `QUAZZAR_CONFIG` names, else `/etc/quazzar/quazzar.toml`, else
    `quazzar.toml` in the data folder. Raises `SettingsError` with all problems at once.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    if "server.data_dir" in given:
        # A person types paths from where they stand; a file or a unit has no such place.
        given["server.data_dir"] = str(Path(given["server.data_dir"]).expanduser().absolute())
    reader = _Reader()
    for setting in CATALOGUE.values():
        if setting.alias is not None and environ.get(setting.alias):
            reader.take(setting, environ[setting.alias], setting.alias)
    config = _config_file(given, environ, config_path)
    if config is not None:
        reader.read_file(config)
    reader.read_environment(environ)
    for key, value in given.items():
        if key in CATALOGUE:
            reader.take(CATALOGUE[key], value, "--" + key.partition(".")[2].replace("_", "-"))
        else:
            # A secret is never a flag, but the file that it is in may be one.
            flag = "--" + key.replace(".", "-").replace("_", "-")
            reader.take_secret_file(CATALOGUE[key.removesuffix("_file")], value, flag)
    return reader.finish()


def _config_file(flags: Mapping[str, str], environ: Mapping[str, str], named: Path | None) -> Path | None:
    """A file that was asked for by name (it must be there), else the first usual one that is there."""
    if named is not None:
        return named
    if environ.get("QUAZZAR_CONFIG"):
        return Path(environ["QUAZZAR_CONFIG"])
    data_dir = flags.get("server.data_dir") or environ.get("QUAZZAR_SERVER_DATA_DIR")
    own = (Path(data_dir) if data_dir else default_data_dir()) / "quazzar.toml"
    for candidate in (SYSTEM_CONFIG, own):
        try:
            if candidate.is_file():
                return candidate
        except OSError:
            # Its folder is closed to us: reading it says so, where passing over it would hide what the owner has set.
            return candidate
    return None
