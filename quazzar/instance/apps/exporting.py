"""An app as plain Compose, with its data where that is asked for: nobody is locked in."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.datastructures import State
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType

from quazzar.core import tars
from quazzar.core.auth import Principal, principal_of
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.downloads import CutOff, download
from quazzar.core.errors import Forbidden, Unavailable
from quazzar.core.http import caller_of
from quazzar.core.records import audit
from quazzar.instance.apps import changes_store
from quazzar.instance.apps.building import open_config, plain_spec, template_of
from quazzar.instance.apps.errors import AppBusy, AppNotFound, AppNotInstalled, ChangePending
from quazzar.instance.apps.locks import reading
from quazzar.instance.apps.models import TRANSITIONAL
from quazzar.instance.apps.runtimes.base import VOLUME_ROOT, Runtime, RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.service import visible
from quazzar.instance.apps.spec import AppSpec
from quazzar.instance.apps.store import Held
from quazzar.instance.templates.config import secret_fields
from quazzar.instance.templates.extension import KEY
from quazzar.instance.templates.fields import Setting, config_texts
from quazzar.instance.templates.template import Template
from quazzar.instance.templates.writing import compose_file, extension_block, yaml_text

log = structlog.get_logger(__name__)

YAML: Final = "application/yaml"
TAR: Final = "application/x-tar"
SECRETS_SCOPE: Final = "apps:secrets"
MOST_AT_ONCE: Final = 4
"""Exports with data that are sent at once: each keeps the engine reading."""
_PLAIN: Final = re.compile(r"[^\x00-\x1f'\\\x7f]+\Z")
"""What stands between single quotes in an environment file as it is."""
_INERT: Final = re.compile(r"[^\x00-\x1f${}\x7f]+\Z")
"""What can be the default in a `${name:-default}`."""


@dataclass
class ExportOperation(Operation):
    """Documents the second form of the answer."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse):
            # Of YAML a schema tells what it says, not how it is written.
            text = OpenAPIMediaType(schema=Schema(type=OpenAPIType.OBJECT, examples=[_EXAMPLE]))
            tar = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, examples=["…"]))
            answer.content = {YAML: text, TAR: tar}


_EXAMPLE: Final = {
    "name": "blog",
    "services": {"web": {"image": "nginx:1.27", "ports": ["8088:80"], "restart": "unless-stopped"}},
}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """`secrets` None: those that the caller may see."""

    data: bool = False
    secrets: bool | None = None
    extension: bool = False


async def export_answer(request: Request[Any, Any, State], app_id: str, wanted: Wanted) -> Response[Any]:
    """The file, or an archive with it and all data, sent while it is read.

    Raises `AppNotFound`, `Forbidden` for secrets or data without the scope, and where data is asked for
    `AppNotInstalled`, `AppBusy`, `RuntimeUnavailable`.
    """
    state, principal = request.app.state, principal_of(request)
    secrets = _may_see_secrets(principal, wanted)
    app = await _read(request, state.database, principal, app_id, wanted, secrets=secrets)
    template, config = template_of(app), open_config(app, state.keyring)
    spec = plain_spec(app, state.keyring)
    if wanted.data:
        return await _archive_answer(request, state.runtime, app, spec, state.keyring, wanted, secrets=secrets)
    kept = {} if secrets else _asked_for(app, template, config)
    if wanted.extension:
        kept = _defaults(template, config) | kept
    text = _file(template, config, spec, kept=kept, extension=wanted.extension)
    name = f'attachment; filename="{app.name}.compose.yaml"'
    return Response(text, media_type=YAML, headers={"Content-Disposition": name})


def _may_see_secrets(principal: Principal, wanted: Wanted) -> bool:
    allowed = principal.allows(SECRETS_SCOPE)
    if (wanted.secrets or wanted.data) and not allowed:
        raise Forbidden(f"This needs the scope {SECRETS_SCOPE}", code="scope_missing")
    return allowed if wanted.secrets is None else wanted.secrets


async def _read(
    request: Request[Any, Any, State],
    database: Database,
    principal: Principal,
    app_id: str,
    wanted: Wanted,
    *,
    secrets: bool,
) -> Held:
    """The app; that its secrets or its data are read is recorded."""
    async with database.begin(user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        ids = visible(principal)
        found = await changes_store.find_app(session, app_id) if ids is None or app_id in ids else None
        if found is None:
            raise AppNotFound
        if wanted.data and found.held.installed_at is None:
            raise AppNotInstalled
        if wanted.data and found.status in TRANSITIONAL:
            raise AppBusy.with_status(found.status)
        if wanted.data and await changes_store.has_change(session, app_id):
            raise ChangePending
        if wanted.data or (secrets and found.held.secrets is not None):
            after = {"secrets": secrets, "data": wanted.data}
            audit(session, "app.export", subject=app_id, after=after)
    return found.held


def _file(
    template: Template,
    config: Mapping[str, Setting],
    spec: AppSpec,
    *,
    kept: Mapping[str, str],
    extension: bool,
    folders: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    document = compose_file(template, config, spec, kept=kept, folders=folders)
    if extension:
        document = {KEY: extension_block(template, config)} | document
    asked = sorted(name for name, text in kept.items() if ":?" in text)
    comment = [f"Left out are the secrets {', '.join(asked)}; give them in the environment."] if asked else []
    return yaml_text(document, comment=comment)


def _asked_for(app: Held, template: Template, config: Mapping[str, Setting]) -> dict[str, str]:
    """What stands in the place of each secret that is left out."""
    hidden = sorted(name for name in secret_fields(template) if config.get(name))
    return {name: f"${{{name}:?is a secret of {app.name}}}" for name in hidden}


def _defaults(template: Template, config: Mapping[str, Setting]) -> dict[str, str]:
    """`${name:-value}` for each field whose value may stand there."""
    values = config_texts(template.fields, config)
    return {name: f"${{{name}:-{value}}}" for name, value in values.items() if _INERT.match(value)}


# With its data


async def _archive_answer(
    request: Request[Any, Any, State],
    runtime: Runtime,
    app: Held,
    spec: AppSpec,
    keyring: Keyring,
    wanted: Wanted,
    *,
    secrets: bool,
) -> Response[Any]:
    state = request.app.state
    if _turns(state).locked():
        raise Unavailable("Several exports with data are under way", code="exports_busy", retry_after=30)
    try:
        # Before the answer begins, so that a missing engine is a 503 and not a broken file.
        found = await runtime.get(app.id)
        folders = await runtime.image_folders(_held_to(spec, app))
    except RuntimeFailure as failure:
        raise RuntimeUnavailable(failure.reason) from failure
    volumes = found.volumes if found is not None else ()
    template, config = template_of(app), open_config(app, keyring)
    # What can't be written into an environment file stands in the file itself.
    environment = {
        name: text
        for name, text in config_texts(template.fields, config).items()
        if secrets and name in secret_fields(template) and _PLAIN.match(text)
    }
    present = {
        service: {name: path for name, path in some.items() if name in volumes} for service, some in folders.items()
    }
    text = _file(
        template,
        config,
        spec,
        kept={name: f"${{{name}}}" for name in environment} if secrets else _asked_for(app, template, config),
        extension=wanted.extension,
        folders=present,
    )
    files = {"compose.yaml": text, ".env": "".join(f"{name}='{value}'\n" for name, value in environment.items())}
    cut = asyncio.Event()
    chunks = _counted(state, app.id, cut, archive(runtime, app.id, app.name, files, volumes))
    return download(request, chunks, media_type=TAR, name=f"{app.name}.tar", cut=cut)


def _held_to(spec: AppSpec, app: Held) -> AppSpec:
    """`spec` with the images that the app has, whatever their tags mean by now."""
    services = [msgspec.structs.replace(one, digest=app.images.get(one.image)) for one in spec.services]
    return msgspec.structs.replace(spec, services=tuple(services))


async def _counted(
    state: State, app_id: str, cut: asyncio.Event, chunks: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    # Those that came while this one asked the engine have been let in as well: they wait here.
    async with _turns(state):
        with reading(app_id, cut):
            if cut.is_set():
                # An operation has begun since the app was looked at: half of what it changes is nobody's data.
                raise CutOff("The app is in another operation by now")
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk


def _turns(state: State) -> asyncio.Semaphore:
    found: asyncio.Semaphore | None = getattr(state, "exports", None)
    if found is None:
        found = state.exports = asyncio.Semaphore(MOST_AT_ONCE)
    return found


async def archive(
    runtime: Runtime, app_id: str, name: str, files: Mapping[str, str], volumes: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """A tar: the folder `name` with `files` and, below `volumes`, what each volume holds. One chunk is in memory.

    Raises `CutOff` in its middle when a volume can't be read to its end.
    """
    now = time.time()
    yield tars.folder(f"{name}/", mode=0o700, at=now)
    for file, text in files.items():
        yield tars.entry(f"{name}/{file}", text.encode(), mode=0o600, at=now)
    if volumes:
        yield tars.folder(f"{name}/volumes/", mode=0o700, at=now)
    try:
        for volume in volumes:
            chunks = runtime.read_volume(app_id, volume)
            placed = tars.moved(chunks, root=VOLUME_ROOT, to=f"{name}/volumes/{volume}")
            async with contextlib.aclosing(chunks), contextlib.aclosing(placed):
                async for chunk in placed:
                    yield chunk
    except (RuntimeFailure, RuntimeUnavailable, tars.TarBroken) as error:
        log.warning("apps.export_cut_off", app_id=app_id, volume=volume, reason=str(error))
        raise CutOff("The data of a volume could not be read to its end") from error
    yield tars.END
