"""The data of volumes on an engine: read, written, copied and kept aside, through containers that never start.

An engine gives and takes what is in a container's folders as a tar, whether the container runs or not. So a container
of an image without content, with one volume mounted, is the door to it: no program runs, and no byte of an app's image
is needed. What is there of a snapshot is told by the engine's objects alone: an empty volume is made last and removed
first, and while it is there the copies are whole.
"""

import contextlib
import re
import secrets
import tarfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from quazzar.instance.apps.runtimes.base import (
    VOLUME_ROOT,
    ImageNotFound,
    RegistryUnreachable,
    Report,
    RuntimeFailure,
    SnapshotNotFound,
    VolumeNotFound,
)
from quazzar.instance.apps.runtimes.engine import objects
from quazzar.instance.apps.runtimes.engine.adopted import Adopted
from quazzar.instance.apps.runtimes.engine.connection import CHANGE_SECONDS, HEAVY_SECONDS, SILENCE_SECONDS, Engine
from quazzar.instance.apps.runtimes.engine.containers import delete_container
from quazzar.instance.apps.runtimes.engine.failures import Gone

_IMAGE: Final = ("quazzar-door", "1")
_END: Final = bytes(1024)
"""What every whole tar ends with."""
_REPORT_SECONDS: Final = 0.25
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_MIB: Final = 1024 * 1024


class Volumes:
    def __init__(self, engine: Engine, adopted: Adopted) -> None:
        self._engine = engine
        self._open: set[str] = set()
        """The names of the doors that are in use, or are about to be."""
        self._adopted = adopted

    async def find(self, app_id: str | None, key: str) -> list[dict[str, Any]]:
        """Our volumes with the label `key`, of one app or of all."""
        found = await self._list(objects.filters(app_id, key))
        label, _, value = key.partition("=")
        names = self._adopted.volume_names(app_id) if label == objects.VOLUME else []
        if names:
            # An engine takes parts of names too; which are meant is seen by the whole.
            adopted = self._adopted.labelled(await self._list({"name": names}), app_id, "volume")
            found += [one for one in adopted if value in {"", one["Labels"][objects.VOLUME]}]
        return found

    async def _list(self, filters: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        async with self._engine.call() as client:
            answer = await client.volumes.list(filters=filters)  # type: ignore[no-untyped-call]
        return list(answer["Volumes"] or ())

    async def make(self, app_id: str, name: str, labels: Mapping[str, str]) -> str:
        """A volume of that engine name, which it gives back; one of ours that is there already stays as it is."""
        config = {"Name": name, "Labels": objects.labels(app_id, labels)}
        async with self._engine.call(CHANGE_SECONDS) as client:
            volume = await client.volumes.create(config)  # type: ignore[no-untyped-call]
            made = await volume.show()
        # An engine answers with the volume that has the name already, whoever's that is.
        if (made.get("Labels") or {}).get(objects.APP) != app_id:
            raise RuntimeFailure(f"There is a foreign volume with the name of “{name}”", code="name_taken")
        return name

    async def remove(self, name: str) -> None:
        with contextlib.suppress(Gone):
            async with self._engine.call(HEAVY_SECONDS) as client:
                await (await client.volumes.get(name)).delete()  # type: ignore[no-untyped-call]

    # Whole apps

    async def snapshot(self, app_id: str, name: str, report: Report) -> None:
        """See `Runtime.snapshot`."""
        if not _NAME.match(name):
            raise ValueError("A snapshot's name is made of a-z, 0-9 and -")
        if name in await self._whole(app_id):
            return
        await self._remove_copies(app_id, name)
        pairs = {}
        for volume in await self._of(app_id):
            copy = objects.snapshot_name(app_id, name, volume)
            await self.make(app_id, copy, {objects.SNAPSHOT: name, objects.COPY_OF: volume})
            pairs[volume] = (app_id, self._adopted.volume_name(app_id, volume), app_id, copy)
        await self._copy_all(pairs, report, "Saving the data of")
        await self.make(app_id, objects.snapshot_name(app_id, name), {objects.SNAPSHOT: name})

    async def restore(self, app_id: str, name: str, report: Report) -> None:
        """As `Runtime.restore`, once the app's containers are gone."""
        await self.require(app_id, name)
        copies = {
            one["Labels"][objects.COPY_OF]: one["Name"]
            for one in await self.find(app_id, f"{objects.SNAPSHOT}={name}")
            if objects.COPY_OF in one["Labels"]
        }
        for volume in {*await self._of(app_id), *copies}:
            await self._empty(app_id, volume, make=volume in copies)
        pairs = {
            volume: (app_id, copy, app_id, self._adopted.volume_name(app_id, volume)) for volume, copy in copies.items()
        }
        await self._copy_all(pairs, report, "Putting back the data of")

    async def require(self, app_id: str, name: str) -> None:
        """Raises `SnapshotNotFound` unless there is a whole one."""
        if name not in await self._whole(app_id):
            raise SnapshotNotFound

    async def discard(self, app_id: str, name: str) -> None:
        """See `Runtime.discard`."""
        # The mark goes first: half of a snapshot must never look like a whole one.
        await self._remove_ours(app_id, objects.snapshot_name(app_id, name), f"{objects.SNAPSHOT}={name}")
        await self._remove_copies(app_id, name)

    async def snapshots(self, app_id: str) -> list[str]:
        """See `Runtime.snapshots`."""
        return sorted({one["Labels"][objects.SNAPSHOT] for one in await self.find(app_id, objects.SNAPSHOT)})

    async def find_snapshots(self) -> dict[str, list[str]]:
        """See `Runtime.find_snapshots`."""
        found: dict[str, set[str]] = {}
        for one in await self.find(None, objects.SNAPSHOT):
            found.setdefault(one["Labels"][objects.APP], set()).add(one["Labels"][objects.SNAPSHOT])
        return {app_id: sorted(names) for app_id, names in found.items()}

    async def clone(self, source_app_id: str, app_id: str, report: Report) -> None:
        """See `Runtime.clone_volumes`."""
        volumes = await self._of(source_app_id)
        for volume in volumes:
            await self._empty(app_id, volume, make=True)
        pairs = {
            volume: (
                source_app_id,
                self._adopted.volume_name(source_app_id, volume),
                app_id,
                self._adopted.volume_name(app_id, volume),
            )
            for volume in volumes
        }
        await self._copy_all(pairs, report, "Copying the data of")

    # One volume

    async def read(self, app_id: str, volume: str) -> AsyncGenerator[bytes, None]:
        """See `Runtime.read_volume`."""
        if volume not in await self._of(app_id):
            raise VolumeNotFound(volume)
        async with contextlib.aclosing(self._read(app_id, self._adopted.volume_name(app_id, volume))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def write(self, app_id: str, volume: str, chunks: AsyncIterator[bytes]) -> None:
        """See `Runtime.write_volume`."""
        await self._empty(app_id, volume, make=True)
        async with contextlib.aclosing(_whole(chunks)) as whole:
            await self._write(app_id, self._adopted.volume_name(app_id, volume), whole)

    async def _of(self, app_id: str) -> list[str]:
        """The short names of an app's volumes."""
        return sorted({one["Labels"][objects.VOLUME] for one in await self.find(app_id, objects.VOLUME)})

    async def _whole(self, app_id: str) -> set[str]:
        found = await self.find(app_id, objects.SNAPSHOT)
        return {one["Labels"][objects.SNAPSHOT] for one in found if objects.COPY_OF not in one["Labels"]}

    async def _empty(self, app_id: str, volume: str, *, make: bool) -> None:
        """Remove a volume of the app, and make it anew, without content, if so told."""
        name = self._adopted.volume_name(app_id, volume)
        await self._remove_ours(app_id, name, f"{objects.VOLUME}={volume}")
        if make:
            await self.make(app_id, name, {objects.VOLUME: volume})

    async def _remove_ours(self, app_id: str, name: str, key: str) -> None:
        """Remove the volume `name` if it is the app's and carries the label `key`, and doors to it that were left."""
        if any(one["Name"] == name for one in await self.find(app_id, key)):
            await self._close_doors(app_id, name)
            await self.remove(name)

    async def _remove_copies(self, app_id: str, name: str) -> None:
        for one in await self.find(app_id, f"{objects.SNAPSHOT}={name}"):
            await self._close_doors(app_id, one["Name"])
            await self.remove(one["Name"])

    # Bytes

    async def _copy_all(self, pairs: Mapping[str, tuple[str, str, str, str]], report: Report, verb: str) -> None:
        """Copy volumes one after the other: short name → whose and which, to whose and which."""
        for index, (volume, (owner, source, new_owner, target)) in enumerate(pairs.items()):
            await report(index / len(pairs), f"{verb} {volume}")
            chunks = self._read(owner, source)
            told = _told(chunks, report, index / len(pairs), f"{verb} {volume}")
            async with contextlib.aclosing(chunks), contextlib.aclosing(told):
                await self._write(new_owner, target, told)
        await report(1, f"{verb} all volumes" if pairs else "There is no data")

    async def _read(self, app_id: str, name: str) -> AsyncGenerator[bytes, None]:
        async with self._door(app_id, name, read_only=True) as door:
            chunks = self._engine.chunks(
                "GET", f"containers/{door}/archive", params={"path": f"/{VOLUME_ROOT}"}, silence=SILENCE_SECONDS
            )
            async with contextlib.aclosing(chunks), contextlib.aclosing(_whole(chunks)) as whole:
                async for chunk in whole:
                    yield chunk

    async def _write(self, app_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        async with self._door(app_id, name, read_only=False) as door:
            try:
                await self._engine.upload(
                    "PUT",
                    f"containers/{door}/archive",
                    chunks,
                    params={"path": "/", "noOverwriteDirNonDir": "1"},
                    silence=SILENCE_SECONDS,
                    last=HEAVY_SECONDS,
                )
            except RegistryUnreachable as error:
                # Newer engines say no more than that something ended too soon; here it can only be the tar.
                reason = "The engine could not unpack the data of a volume"
                raise RuntimeFailure(reason, code="volume_unreadable") from error

    @contextlib.asynccontextmanager
    async def _door(self, app_id: str, name: str, *, read_only: bool) -> AsyncIterator[str]:
        config: dict[str, Any] = {
            "Image": ":".join(_IMAGE),
            "Cmd": ["none"],
            "Labels": objects.labels(app_id, {objects.DOOR: name, objects.SERVICE: ""}),
            "HostConfig": {
                "NetworkMode": "none",
                "Mounts": [objects.volume_mount(name, f"/{VOLUME_ROOT}", read_only=read_only)],
            },
        }
        door = f"quazzar-door-{secrets.token_hex(8)}"
        self._open.add(door)
        try:
            try:
                await self._create(config, door)
            except ImageNotFound:
                await self._make_image()
                await self._create(config, door)
            try:
                yield door
            finally:
                await delete_container(self._engine, door)
        finally:
            self._open.discard(door)

    async def _create(self, config: dict[str, Any], name: str) -> None:
        async with self._engine.call(CHANGE_SECONDS) as client:
            await client.containers.create(config, name=name)

    async def _make_image(self) -> None:
        repository, tag = _IMAGE
        await self._engine.upload(
            "POST",
            "images/create",
            _nothing(),
            params={"fromSrc": "-", "repo": repository, "tag": tag},
            silence=CHANGE_SECONDS,
            last=CHANGE_SECONDS,
        )

    async def close_doors(self) -> None:
        """Remove all that are not in use: a process left them that was killed while it copied, or the engine was."""
        await self._close(objects.filters(None, objects.DOOR))

    async def _close_doors(self, app_id: str, name: str) -> None:
        """Remove what keeps a volume from being removed."""
        await self._close(objects.filters(app_id, f"{objects.DOOR}={name}"))

    async def _close(self, filters: Mapping[str, Any]) -> None:
        async with self._engine.call() as client:
            found = await client.containers.list(all=True, filters=msgspec.json.encode(filters).decode())
        for one in found:
            names = {name.removeprefix("/") for name in one._container["Names"] or ()}  # noqa: SLF001 - no other door
            if not names & self._open:
                await delete_container(self._engine, one.id)


async def _whole(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """`chunks` of a tar, with an error where it is cut off.

    What goes wrong in the middle of reading an engine only logs, and the answer ends as if that were all; and one that
    is written it takes for whole wherever it ends.
    """
    end = b""
    async for chunk in chunks:
        end = (end + chunk[-len(_END) :])[-len(_END) :]
        yield chunk
    if end != _END:
        raise RuntimeFailure("The data of a volume could not be read to its end", code="volume_unreadable")


async def _nothing() -> AsyncGenerator[bytes, None]:
    """A tar without entries."""
    yield bytes(tarfile.RECORDSIZE)


async def _told(
    chunks: AsyncGenerator[bytes, None], report: Report, done: float, step: str
) -> AsyncGenerator[bytes, None]:
    """`chunks`, with a report now and then, which may raise to end it all."""
    copied, reported = 0, time.monotonic()
    async for chunk in chunks:
        copied += len(chunk)
        if time.monotonic() - reported >= _REPORT_SECONDS:
            reported = time.monotonic()
            await report(done, f"{step} ({copied // _MIB} MB)")
        yield chunk
