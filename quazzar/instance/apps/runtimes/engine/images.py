"""Images on an engine: what is there, and pulling what is not."""

import contextlib
import time
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from quazzar.instance.apps.images import Image, pinned
from quazzar.instance.apps.runtimes.base import (
    ImageNotFound,
    LoginRefused,
    RegistryLogin,
    RegistryUnreachable,
    RuntimeFailure,
    RuntimeUnavailable,
)
from quazzar.instance.apps.runtimes.engine.connection import SILENCE_SECONDS, Engine
from quazzar.instance.apps.runtimes.engine.failures import UNKNOWN, Gone, failure

REGISTRY_SECONDS: Final = 60.0
"""For a question that the engine hands on to a registry."""
_REPORT_SECONDS: Final = 0.25
_CACHED: Final = 1024
_DOWNLOAD_SHARE: Final = 0.7


class Images:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._digests: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._labels: OrderedDict[str, dict[str, str]] = OrderedDict()

    async def inspect(self, name: str, *, service: str | None = None) -> dict[str, Any]:
        """The engine's word on a present image. Raises `ImageNotFound`."""
        # The name becomes a part of a URL, so what is not a name never gets there.
        if Image.parse(name) is None:
            raise ImageNotFound("The name of the image is not valid", service=service)
        try:
            async with self._engine.call(service=service) as client:
                return await client.images.inspect(name)
        except (Gone, ImageNotFound) as error:
            raise ImageNotFound(f"The image {name} is not present", service=service) from error

    async def inspect_id(self, image_id: str) -> dict[str, Any]:
        """The engine's word on the image that a container was made from. Raises `ImageNotFound`."""
        try:
            return dict(await self._engine.ask("GET", f"images/{image_id}/json"))
        except (Gone, ImageNotFound) as error:
            raise ImageNotFound("The image of a container is not present any more") from error

    async def resolve(self, name: str, digest: str | None, *, service: str | None = None) -> tuple[str, dict[str, Any]]:
        """What to call a present image by, and the engine's word on it. Raises `ImageNotFound`.

        With a digest (or the id of an image that came from no registry) it is that image and no other.
        """
        if digest is None:
            return name, await self.inspect(name, service=service)
        for reference in (name, pinned(name, digest), digest):
            with contextlib.suppress(ImageNotFound):
                inspected = await self.inspect(reference, service=service)
                if digest in {_digest(inspected, name), inspected["Id"]}:
                    return reference, inspected
        raise ImageNotFound(f"The image {name} is not present as it was when it was pulled", service=service)

    async def digest(self, name: str, wanted: str | None = None) -> str | None:
        """The digest of a present image (or its id where it came from no registry); None when it is not there."""
        try:
            _, inspected = await self.resolve(name, wanted)
        except ImageNotFound:
            return None
        return wanted or _digest(inspected, name)

    async def digest_of(self, image_id: str, name: str) -> str:
        """The digest of the image that a container was made from; its id when the engine has no more of it."""
        key = (image_id, name)
        if key not in self._digests:
            try:
                self._digests[key] = _digest(await self.inspect_id(image_id), name)
            except RuntimeFailure:
                # It is gone, or its layers are: that must not hide the container.
                return image_id
            if len(self._digests) > _CACHED:
                self._digests.popitem(last=False)
        self._digests.move_to_end(key)
        return self._digests[key]

    async def labels_of(self, image_id: str) -> Mapping[str, str]:
        """The labels of an image; none when the engine can't tell of it any more."""
        if image_id not in self._labels:
            try:
                inspected = await self.inspect_id(image_id)
            except RuntimeFailure:
                return {}
            self._labels[image_id] = (inspected.get("Config") or {}).get("Labels") or {}
            if len(self._labels) > _CACHED:
                self._labels.popitem(last=False)
        self._labels.move_to_end(image_id)
        return self._labels[image_id]

    async def pull(self, name: str, login: RegistryLogin | None, progress: Callable[[float], Awaitable[None]]) -> None:
        """Pull one image; `progress` gets 0 to 1 and never goes back. Leaving in the middle ends the pull."""
        image = _parsed(name)
        layers = _Layers()
        reported = time.monotonic()
        chunks = self._engine.chunks(
            "POST",
            "images/create",
            params={"fromImage": image.repository, "tag": image.reference},
            headers=login_header(image, login),
            silence=SILENCE_SECONDS,
        )
        async with self._registry_named(name, image, login), contextlib.aclosing(messages(chunks)) as told:
            async for message in told:
                if "error" in message or "errorDetail" in message:
                    detail = message.get("errorDetail") or {}
                    raise failure(0, str(detail.get("message") or message.get("error")))
                layers.note(message)
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    await progress(layers.progress())

    async def remote_digest(self, name: str, login: RegistryLogin | None) -> str:
        """The digest that the registry has under the name now."""
        image = _parsed(name)
        # A registry may take long, an engine that is not there should not.
        await self._engine.version()
        path = f"distribution/{name}/json"
        chunks = self._engine.chunks(
            "GET", path, params={}, headers=login_header(image, login), silence=REGISTRY_SECONDS
        )
        async with self._registry_named(name, image, login), contextlib.aclosing(messages(chunks)) as told:
            async for message in told:
                return str(message["Descriptor"]["digest"])
        raise RuntimeUnavailable

    @contextlib.asynccontextmanager
    async def _registry_named(self, name: str, image: Image, login: RegistryLogin | None) -> AsyncIterator[None]:
        """Failures inside say which registry and which image they are about."""
        try:
            yield
        except ImageNotFound as error:
            login_hint = "with the login that is stored for it" if login else "without a login"
            reason = f"The registry {image.registry} has no image {name}, or none that can be seen {login_hint}"
            raise ImageNotFound(reason) from error
        except LoginRefused as error:
            refused = "refused the login that is stored for it" if login else "asks for a login, and none is stored"
            raise LoginRefused(f"The registry {image.registry} {refused}") from error
        except RegistryUnreachable as error:
            raise RegistryUnreachable(error.reason.replace("registry", f"registry {image.registry}", 1)) from error
        except RuntimeFailure as error:
            known = error.code not in UNKNOWN
            # What is not known may be any text that answers at the address that somebody gave for a registry.
            reason = error.reason if known else f"The registry {image.registry} gives an answer that can't be used"
            raise RuntimeFailure(f"{reason} (image {name})", code=error.code if known else "registry_failed") from error
        except RuntimeUnavailable as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            # Silence: the engine may be gone, or it may wait for the registry like us.
            await self._engine.version()
            raise RegistryUnreachable(f"The registry {image.registry} does not answer any more") from error


def _parsed(name: str) -> Image:
    image = Image.parse(name)
    if image is None:
        raise ImageNotFound("The name of the image is not valid")
    return image


async def messages(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of a stream, one a line. Raises `RuntimeUnavailable` when it holds anything else."""
    rest = b""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _decode(line)
    if rest.strip():
        yield _decode(rest)


def _decode(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise RuntimeUnavailable from error


class _Layers:
    """How far a pull is, from the engine's messages on its layers."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}
        self._most = 0.0

    def note(self, message: Mapping[str, Any]) -> None:
        layer, status = message.get("id"), message.get("status", "")
        if not layer or status.startswith("Pulling from"):
            return
        detail = message.get("progressDetail") or {}
        share = min(1.0, (detail.get("current") or 0) / (detail.get("total") or float("inf")))
        match status:
            case "Downloading":
                done = share * _DOWNLOAD_SHARE
            case "Verifying Checksum" | "Download complete":
                done = _DOWNLOAD_SHARE
            case "Extracting":
                done = _DOWNLOAD_SHARE + share * (1 - _DOWNLOAD_SHARE)
            case "Pull complete" | "Already exists":
                done = 1.0
            case _:
                done = 0.0
        self._done[layer] = max(done, self._done.get(layer, 0.0))

    def progress(self) -> float:
        if self._done:
            self._most = max(self._most, sum(self._done.values()) / len(self._done))
        return self._most


def _digest(inspected: Mapping[str, Any], name: str) -> str:
    image = Image.parse(name)
    known = [one.rpartition("@") for one in inspected.get("RepoDigests") or ()]
    for repository, _, digest in known:
        if image is not None and repository == image.repository:
            return str(digest)
    return str(known[0][2] if known else inspected["Id"])


def login_header(image: Image, login: RegistryLogin | None) -> dict[str, str]:
    if login is None:
        return {}
    address = "https://index.docker.io/v1/" if image.registry == "docker.io" else image.registry
    body = {"username": login.username, "password": login.password.reveal(), "serveraddress": address}
    return {"X-Registry-Auth": urlsafe_b64encode(msgspec.json.encode(body)).decode()}
