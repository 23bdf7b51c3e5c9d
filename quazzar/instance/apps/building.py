"""From a template and a config to what is stored of an app and what an engine is told: no query, no engine."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil

from quazzar.core.crypto import Keyring
from quazzar.core.errors import Unavailable
from quazzar.instance.apps.errors import AppUnreadable
from quazzar.instance.apps.ports import is_listened_on, pick_ports
from quazzar.instance.apps.room import Claim, claim_of
from quazzar.instance.apps.schemas import AppCreate
from quazzar.instance.apps.spec import AppSpec, RestartSpec
from quazzar.instance.apps.store import Held, HeldPort
from quazzar.instance.apps.truth import expected_services
from quazzar.instance.templates.config import check_config, mask_config, ports_wanted, secret_fields, with_ports
from quazzar.instance.templates.fields import AUTO, Setting
from quazzar.instance.templates.rendering import Limits, render
from quazzar.instance.templates.template import Template
from quazzar.settings import Settings

Config = dict[str, Setting]
UrlOf = Callable[[int], str]

_MEMORY_STEP_BYTES = 64 * 1024 * 1024


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An app before it is written down. `refusals` maps a field of the request to why it can't be had."""

    app_id: str
    template: Template
    spec: AppSpec
    row: dict[str, Any]
    held_ports: list[HeldPort]
    refusals: dict[str, str]
    claim: Claim


def draft_app(
    template: Template,
    data: AppCreate,
    *,
    app_id: str,
    keyring: Keyring,
    held: Sequence[HeldPort],
    reserved: frozenset[int],
    url: UrlOf,
    catalogued: bool = True,
    known_images: Collection[str] = (),
) -> Draft:
    """`held` are the host ports of other apps, `reserved` those of this process, `known_images` those of other apps.

    An app that is not `catalogued` names no template and no version.

    Raises `Invalid` with every `config.<field>` that fails, `Unavailable` when no port is free.
    """
    config, auto = _with_free_ports(template, check_config(template, data.config), held, reserved)
    resources = msgspec.to_builtins(data.resources) if data.resources is not None else {}
    resources = {name: value for name, value in resources.items() if value is not None}
    spec = _spec(template, config, resources, app_id=app_id, project=data.name)
    ports = _ports_held(spec, template, config, auto)
    claim = claim_by(template, config, resources, known_images=known_images)
    row = {
        "id": app_id,
        "name": data.name,
        "template": template.slug if catalogued else None,
        "version": template.version if catalogued else None,
        "definition": msgspec.to_builtins(template),
        "resources": resources,
        "domain": data.domain,
        "status": "installing",
        "expected": msgspec.to_builtins(expected_services(spec)),
        "claim": msgspec.to_builtins(claim),
    }
    row |= stored_config(template, config, app_id=app_id, keyring=keyring)
    row |= shown_ports(template, spec, url)
    return Draft(
        app_id=app_id,
        template=template,
        spec=spec,
        row=row,
        held_ports=list({(port.host_port, port.protocol): port for port in ports}.values()),
        refusals=_refusals(ports, held, reserved),
        claim=claim,
    )


def claim_by(
    template: Template, config: Config, resources: Mapping[str, Any], *, known_images: Collection[str] = ()
) -> Claim:
    """What an app of this template and config reserves: limits that only we would set count nothing."""
    asked = _limits(resources)
    spec = render(template, config, app_id="", project="", resources=asked)
    return claim_of(spec, template.needs, asked=asked, known_images=known_images)


def plain_spec(app: Held, keyring: Keyring) -> AppSpec:
    """As `build_spec`, without the limits that only we would set, and with images as they are named."""
    return render(
        template_of(app),
        open_config(app, keyring),
        app_id=app.id,
        project=app.name,
        resources=_limits(app.resources),
        restart_policy=_restart(app.restart_policy),
    )


def claim_of_app(app: Held, keyring: Keyring) -> Claim:
    """What a stored app reserves, as far as that is not on the disk yet. Raises as `build_spec` does."""
    return claim_by(template_of(app), open_config(app, keyring), app.resources, known_images=app.images)


def _with_free_ports(
    template: Template, config: Config, held: Iterable[HeldPort], reserved: Collection[int]
) -> tuple[Config, frozenset[str]]:
    """`config` with free ports for `auto`, and the names of the fields that have got one."""
    auto = frozenset(name for name, value in config.items() if value == AUTO and _is_port(template, name))
    avoid = {port.host_port for port in held} | set(reserved)
    avoid |= {value for name, value in config.items() if isinstance(value, int) and _is_port(template, name)}
    try:
        found = pick_ports(ports_wanted(template, config), avoid=avoid)
    except LookupError:
        raise Unavailable("There are not enough free ports on this machine", code="no_free_port") from None
    return with_ports(template, config, found), auto


def _is_port(template: Template, name: str) -> bool:
    return any(field.name == name and field.type == "port" for field in template.fields)


def _ports_held(spec: AppSpec, template: Template, config: Config, auto: Collection[str]) -> list[HeldPort]:
    names = {
        config[field.name]: field.name for field in template.fields if field.type == "port" and field.name in config
    }
    return [
        HeldPort(
            host_port=port.host_port,
            protocol=port.protocol,
            app_id=spec.app_id,
            field=names.get(port.host_port),
            auto=names.get(port.host_port) in auto,
        )
        for service in spec.services
        for port in service.ports
    ]


def _refusals(ports: Sequence[HeldPort], held: Iterable[HeldPort], reserved: Collection[int]) -> dict[str, str]:
    taken = {(port.host_port, port.protocol) for port in held}
    refusals: dict[str, str] = {}
    seen: set[tuple[int, str]] = set()
    for port in ports:
        key = (port.host_port, port.protocol)
        where = _place(port)
        if key in taken:
            refusals[where] = f"Port {port.host_port} is held by another app"
        elif port.host_port in reserved and port.protocol == "tcp":
            refusals[where] = f"Port {port.host_port} is used by this system itself"
        elif key in seen:
            refusals[where] = f"Port {port.host_port} is asked for twice"
        seen.add(key)
    return refusals


def in_use(ports: Iterable[HeldPort]) -> dict[str, str]:
    """Refusals of host ports that another program of this machine has at this moment."""
    found = [port for port in ports if is_listened_on(port.host_port, port.protocol)]
    return {_place(port): f"Port {port.host_port} is in use by another program" for port in found}


def _place(port: HeldPort) -> str:
    return f"config.{port.field}" if port.field is not None else "ports"


def shown_ports(template: Template, spec: AppSpec, url: UrlOf) -> dict[str, Any]:
    """The columns `ports` and `urls`."""
    ports: list[dict[str, Any]] = [
        {
            "service": service.name,
            "container_port": port.container_port,
            "host_port": port.host_port,
            "protocol": port.protocol,
        }
        for service in spec.services
        for port in service.ports
    ]
    web = template.web
    urls = [
        url(port["host_port"])
        for port in ports
        if web is not None
        and (port["service"], port["container_port"], port["protocol"]) == (web.service, web.port, "tcp")
    ]
    return {"ports": ports, "urls": urls[:1]}


def url_of(settings: Settings) -> UrlOf:
    """How people reach a published port: by the host of `server.public_url`, else on this machine."""
    host = urlsplit(settings.server.public_url or "").hostname or "localhost"
    shown = f"[{host}]" if ":" in host else host
    return lambda port: f"http://{shown}:{port}"


def stored_config(template: Template, config: Config, *, app_id: str, keyring: Keyring) -> dict[str, Any]:
    """The columns `config` (as it is shown) and `secrets` (sealed for this row)."""
    names = secret_fields(template)
    values = {name: value for name, value in config.items() if name in names}
    sealed = keyring.seal(msgspec.json.encode(values), context=_context(app_id)) if values else None
    return {"config": mask_config(template, config), "secrets": sealed}


def open_config(app: Held, keyring: Keyring) -> Config:
    """The config with its secrets. Raises `SealBroken` when they were sealed for another row or with a lost key."""
    if app.secrets is None:
        return dict(app.config)
    values: Config = msgspec.json.decode(keyring.open(app.secrets, context=_context(app.id)))
    return {**app.config, **values}


def sealed_anew(app_id: str, sealed: bytes, keyring: Keyring) -> bytes:
    """`sealed` under the ring's current key. Raises `SealBroken`, as `open_config` does."""
    context = _context(app_id)
    return keyring.seal(keyring.open(sealed, context=context), context=context)


def _context(app_id: str) -> str:
    return f"apps.secrets:{app_id}"


def template_of(app: Held) -> Template:
    """Raises `AppUnreadable`."""
    try:
        return msgspec.convert(app.definition, Template)
    except msgspec.ValidationError as error:
        raise AppUnreadable from error


def build_spec(app: Held, keyring: Keyring) -> AppSpec:
    """What the engine is told of a stored app. Raises `Invalid` when this release can't render its template."""
    spec = _spec(
        template_of(app),
        open_config(app, keyring),
        app.resources,
        app_id=app.id,
        project=app.name,
        restart_policy=app.restart_policy,
    )
    services = [msgspec.structs.replace(one, digest=app.images.get(one.image)) for one in spec.services]
    return msgspec.structs.replace(spec, services=tuple(services))


def _spec(
    template: Template,
    config: Config,
    resources: Mapping[str, Any],
    *,
    app_id: str,
    project: str,
    restart_policy: str | None = None,
) -> AppSpec:
    return render(
        template,
        config,
        app_id=app_id,
        project=project,
        resources=_limits(resources),
        defaults=default_limits(),
        restart_policy=_restart(restart_policy),
    )


def _limits(resources: Mapping[str, Any]) -> Limits:
    return Limits(**{name: resources.get(name) for name in Limits.__struct_fields__})


def _restart(policy: str | None) -> RestartSpec | None:
    if policy is None:
        return None
    name, _, retries = policy.partition(":")
    return msgspec.convert({"policy": name, "max_retries": int(retries or 0)}, RestartSpec)


class Reshaped(msgspec.Struct, frozen=True, kw_only=True):
    """An app as it is to become; `ports` are all that it then holds, `refusals` as in `Draft`."""

    app: Held
    spec: AppSpec
    ports: list[HeldPort]
    refusals: dict[str, str]


def reshape(
    app: Held,
    template: Template,
    config: Config,
    *,
    keyring: Keyring,
    held: Sequence[HeldPort],
    reserved: frozenset[int],
    **values: Any,
) -> Reshaped:
    """`app` with another template or config (checked already), and other `values` of its row.

    `held` are the host ports of all apps. Raises `Invalid` and `Unavailable` as `draft_app` does.
    """
    config, auto = _with_free_ports(template, config, held, reserved)
    values |= {"definition": msgspec.to_builtins(template)}
    values |= stored_config(template, config, app_id=app.id, keyring=keyring)
    changed = msgspec.structs.replace(app, **values)
    spec = build_spec(changed, keyring)
    auto |= frozenset(auto_fields(port for port in held if port.app_id == app.id))
    ports = _ports_held(spec, template, config, auto)
    others = [port for port in held if port.app_id != app.id]
    expected = msgspec.to_builtins(expected_services(spec))
    return Reshaped(
        app=msgspec.structs.replace(changed, expected=expected),
        spec=spec,
        ports=list({(port.host_port, port.protocol): port for port in ports}.values()),
        refusals=_refusals(ports, others, reserved),
    )


@cache
def default_limits() -> Limits:
    """For services that name no limit: three quarters of the machine's memory, so that one app can't take it all."""
    quarter = psutil.virtual_memory().total // 4 // _MEMORY_STEP_BYTES
    return Limits(memory_bytes=max(1, 3 * quarter) * _MEMORY_STEP_BYTES)


def exchange_ports(
    app: Held, keyring: Keyring, held: Sequence[HeldPort], found: Sequence[int], url: UrlOf
) -> tuple[dict[str, Any], list[HeldPort]]:
    """The columns and the ports of an app whose `auto` ports are exchanged for `found`.

    `held` are the app's own ports; `found` has one for each of its auto fields, see `auto_fields`.
    """
    template = template_of(app)
    names = auto_fields(held)
    config = {**open_config(app, keyring), **dict(zip(names, found, strict=True))}
    changed = msgspec.structs.replace(app, **stored_config(template, config, app_id=app.id, keyring=keyring))
    spec = build_spec(changed, keyring)
    columns = {"config": changed.config, "secrets": changed.secrets} | shown_ports(template, spec, url)
    return columns, _ports_held(spec, template, config, names)


def auto_fields(held: Iterable[HeldPort]) -> list[str]:
    """The fields whose ports we chose."""
    return sorted({port.field for port in held if port.auto and port.field is not None})
