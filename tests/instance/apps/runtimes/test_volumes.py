"""The data of volumes, as every driver keeps it: read, written, copied, kept aside and put back."""

import asyncio
import contextlib
import io
import resource
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from quazzar.core.ids import new_id
from quazzar.instance.apps.runtimes.base import (
    VOLUME_ROOT,
    Runtime,
    RuntimeFailure,
    RuntimeUnavailable,
    SnapshotNotFound,
    VolumeNotFound,
)
from quazzar.instance.apps.runtimes.engine import containers, volumes
from quazzar.instance.apps.spec import AppSpec, MountSpec
from tests.instance.apps.runtimes.conftest import Aborted, DockerLab, Lab, Progress, app_spec, until

NOON = 1_700_000_000


class Entry(NamedTuple):
    kind: bytes = tarfile.REGTYPE
    content: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    link: str = ""
    at: int = NOON


Tree = dict[str, Entry]

# Whatever a volume may hold that a careless copy loses.
RICH: Tree = {
    "": Entry(tarfile.DIRTYPE, mode=0o2751, owner=(7, 8)),
    "empty": Entry(tarfile.DIRTYPE, mode=0o700, owner=(1000, 1001)),
    "file": Entry(content=b"hello\0" * 5000, mode=0o4755, owner=(1000, 1001)),
    "folder": Entry(tarfile.DIRTYPE, mode=0o1777),
    "folder/" + "long" * 40: Entry(content=b"deep", mode=0o600),
    "hard": Entry(tarfile.LNKTYPE, mode=0o4755, owner=(1000, 1001), link="file"),
    "nothing": Entry(),
    "pipe": Entry(tarfile.FIFOTYPE, mode=0o600),
    "secret": Entry(tarfile.DIRTYPE, mode=0o000),
    "symbolic": Entry(tarfile.SYMTYPE, mode=0o777, link="../../etc/passwd"),
    "zz ü 'quoted' \\ name": Entry(content=b"x", at=NOON + 86400),
}


def plain(text: str) -> Tree:
    return {"": Entry(tarfile.DIRTYPE, mode=0o755), "file": Entry(content=text.encode())}


def packed(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, entry in tree.items():
            made = tarfile.TarInfo(f"{VOLUME_ROOT}/{name}".rstrip("/"))
            made.type, made.mode, made.mtime, made.size = entry.kind, entry.mode, entry.at, len(entry.content)
            made.uid, made.gid = entry.owner
            made.linkname = f"{VOLUME_ROOT}/{entry.link}" if entry.kind == tarfile.LNKTYPE else entry.link
            tar.addfile(made, io.BytesIO(entry.content))
    return buffer.getvalue()


def unpacked(content: bytes) -> Tree:
    found: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for one in tar:
            top, _, name = one.name.partition("/")
            assert top == VOLUME_ROOT
            file = tar.extractfile(one) if one.isreg() else None
            link = one.linkname.removeprefix(f"{VOLUME_ROOT}/") if one.islnk() else one.linkname
            found[name] = Entry(
                kind=one.type,
                content=file.read() if file else b"",
                mode=one.mode & 0o7777,
                owner=(one.uid, one.gid),
                link=link,
                at=int(one.mtime),
            )
    assert next(iter(found)) == ""
    return found


async def pieces(content: bytes, size: int = 7001) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def fill(runtime: Runtime, app_id: str, volume: str, tree: Tree) -> None:
    await runtime.write_volume(app_id, volume, pieces(packed(tree)))


async def read(runtime: Runtime, app_id: str, volume: str) -> bytes:
    async with contextlib.aclosing(runtime.read_volume(app_id, volume)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def look(runtime: Runtime, app_id: str, volume: str) -> Tree:
    return unpacked(await read(runtime, app_id, volume))


def contents(tree: Tree) -> dict[str, Entry]:
    """A tree without the time of its root, which changes with what is written beside our back."""
    return {name: entry for name, entry in tree.items() if name}


async def stopped(lab: Lab, *volumes: str) -> AppSpec:
    """An app with these volumes, of which no container is there."""
    mounts = tuple(MountSpec(volume=one, target=f"/{one}") for one in volumes)
    spec = await lab.running(lab.service("a", mounts=mounts), volumes=volumes)
    await lab.runtime.remove(spec.app_id, keep_volumes=True)
    return spec


async def test_a_volume_is_read_as_it_was_written(lab: Lab) -> None:
    spec = await stopped(lab, "data")
    await fill(lab.runtime, spec.app_id, "data", plain("before"))
    await fill(lab.runtime, spec.app_id, "data", RICH)
    assert await look(lab.runtime, spec.app_id, "data") == RICH
    # What was read can be written, byte for byte, also into a volume that is new.
    content = await read(lab.runtime, spec.app_id, "data")
    await lab.runtime.write_volume(spec.app_id, "other", pieces(content, 64 * 1024))
    assert await read(lab.runtime, spec.app_id, "other") == content
    assert (await lab.state(spec.app_id)).volumes == ("data", "other")
    await lab.runtime.up(spec, Progress())
    assert (await lab.one(spec.app_id, "a")).status == "running"
    with pytest.raises(RuntimeFailure) as caught:
        await fill(lab.runtime, spec.app_id, "data", RICH)
    assert caught.value.code == "volume_in_use"
    assert await look(lab.runtime, spec.app_id, "data") == RICH


async def test_a_snapshot_is_put_back_whole(lab: Lab) -> None:
    spec = await stopped(lab, "data", "db")
    app_id = spec.app_id
    await fill(lab.runtime, app_id, "data", RICH)
    await fill(lab.runtime, app_id, "db", plain("one"))
    state = await lab.state(app_id)
    progress = Progress()
    await lab.runtime.snapshot(app_id, "before-2", progress)
    assert progress.values == sorted(progress.values)
    assert (progress.values[-1], await lab.runtime.snapshots(app_id)) == (1, ["before-2"])
    assert await lab.state(app_id) == state, "a copy counts as a volume of the app"

    await fill(lab.runtime, app_id, "data", plain("two"))
    await fill(lab.runtime, app_id, "new", plain("two"))
    # Repeating it takes no new one: what is whole stays what it is.
    await lab.runtime.snapshot(app_id, "before-2", Progress())
    await lab.runtime.up(spec, Progress())
    for _ in range(2):
        progress = Progress()
        await lab.runtime.restore(app_id, "before-2", progress)
        assert (progress.values, progress.values[-1]) == (sorted(progress.values), 1)
        after = await lab.state(app_id)
        assert (after.services, after.volumes) == ((), ("data", "db"))
        assert await look(lab.runtime, app_id, "data") == RICH
        assert await look(lab.runtime, app_id, "db") == plain("one")
    await lab.runtime.up(spec, Progress())
    assert (await lab.one(app_id, "a")).status == "running"

    for _ in range(2):
        await lab.runtime.discard(app_id, "before-2")
        assert await lab.runtime.snapshots(app_id) == []
    with pytest.raises(SnapshotNotFound) as caught:
        await lab.runtime.restore(app_id, "before-2", Progress())
    assert caught.value.code == "snapshot_not_found"
    assert (await lab.one(app_id, "a")).status == "running", "a restore that can't be stopped the app"


async def test_a_snapshot_that_was_broken_off_counts_for_nothing(lab: Lab) -> None:
    spec = await stopped(lab, "data", "db")
    app_id = spec.app_id
    await fill(lab.runtime, app_id, "data", plain("one"))
    await fill(lab.runtime, app_id, "db", RICH)
    with pytest.raises(Aborted):
        await lab.runtime.snapshot(app_id, "s", Progress(abort_at="db"))
    with pytest.raises(SnapshotNotFound):
        await lab.runtime.restore(app_id, "s", Progress())
    await fill(lab.runtime, app_id, "data", plain("two"))
    await lab.runtime.snapshot(app_id, "s", Progress())
    await fill(lab.runtime, app_id, "data", plain("three"))
    with pytest.raises(Aborted):
        await lab.runtime.restore(app_id, "s", Progress(abort_at="db"))
    await lab.runtime.restore(app_id, "s", Progress())
    assert await look(lab.runtime, app_id, "data") == plain("two")
    assert await look(lab.runtime, app_id, "db") == RICH


async def test_an_app_without_data_has_snapshots_too(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    await lab.runtime.snapshot(spec.app_id, "s", Progress())
    await lab.runtime.restore(spec.app_id, "s", Progress())
    await lab.runtime.up(spec, Progress())
    assert (await lab.one(spec.app_id, "a")).status == "running"
    assert (await lab.state(spec.app_id)).volumes == ()


async def test_snapshots_go_with_the_app_and_belong_to_it_alone(lab: Lab) -> None:
    one, other = await stopped(lab, "data"), await stopped(lab, "data")
    for spec in (one, other):
        await fill(lab.runtime, spec.app_id, "data", plain(spec.app_id))
        await lab.runtime.snapshot(spec.app_id, "s", Progress())
    await lab.runtime.remove(one.app_id, keep_volumes=True)
    assert await lab.runtime.snapshots(one.app_id) == ["s"]
    await lab.runtime.remove(one.app_id, keep_volumes=False)
    assert await lab.runtime.snapshots(one.app_id) == []
    assert await lab.runtime.get(one.app_id) is None
    await lab.runtime.restore(other.app_id, "s", Progress())
    assert await look(lab.runtime, other.app_id, "data") == plain(other.app_id)


async def test_volumes_are_cloned(lab: Lab) -> None:
    source = await stopped(lab, "data", "db")
    await fill(lab.runtime, source.app_id, "data", RICH)
    await lab.runtime.up(source, Progress())
    target = app_spec(lab.service("a", mounts=(MountSpec(volume="data", target="/data"),)), volumes=("data", "db"))
    for _ in range(2):
        await lab.runtime.clone_volumes(source.app_id, target, Progress())
        assert await look(lab.runtime, target.app_id, "data") == RICH
        assert (await lab.state(target.app_id)).volumes == ("data", "db")
    await lab.runtime.up(target, Progress())
    assert (await lab.one(source.app_id, "a")).status == "running"
    assert (await lab.one(target.app_id, "a")).status == "running"


async def test_what_is_no_volume_or_no_tar_is_refused(lab: Lab) -> None:
    spec = await stopped(lab, "data")
    for app_id, volume in ((spec.app_id, "other"), (new_id("app"), "data"), (spec.app_id, "../data")):
        with pytest.raises(VolumeNotFound):
            await read(lab.runtime, app_id, volume)
    whole = packed(RICH)
    for bad in (whole[: len(whole) // 2], whole[:512], b"", b"no tar at all" * 1000 + bytes(1024)):
        with pytest.raises(RuntimeFailure) as caught:
            await lab.runtime.write_volume(spec.app_id, "data", pieces(bad))
        assert caught.value.code == "volume_unreadable"
    await fill(lab.runtime, spec.app_id, "data", RICH)
    assert await look(lab.runtime, spec.app_id, "data") == RICH


async def test_what_a_source_raises_is_told_as_it_is(lab: Lab) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield packed(RICH)[:1024]
        raise ValueError("the source broke")

    spec = await stopped(lab, "data")
    with pytest.raises(ValueError, match="the source broke"):
        await lab.runtime.write_volume(spec.app_id, "data", broken())
    await fill(lab.runtime, spec.app_id, "data", plain("again"))
    assert contents(await look(lab.runtime, spec.app_id, "data")) == contents(plain("again"))


# What only a real engine shows.


def doors(docker: DockerLab) -> list[str]:
    found = docker.engine.ok("GET", "/containers/json", params={"all": "1", "filters": '{"label":["io.quazzar.door"]}'})
    return [one["Id"] for one in found]


def folder_of(docker: DockerLab, name: str) -> Path:
    return Path(docker.engine.ok("GET", f"/volumes/{name}")["Mountpoint"])


@pytest.mark.component("docker")
async def test_what_a_program_wrote_is_copied_as_it_is(docker: DockerLab) -> None:
    script = (
        "cd /data; chown 33:34 .; chmod 2770 .; mkdir empty; echo x > a; chown 1:2 a; chmod 6711 a; ln a b; ln -s a c;"
        "dd if=/dev/zero of=sparse bs=1 count=1 seek=8M 2>/dev/null; mkfifo pipe; touch ./-rf;"
        "touch \"$(printf 'new\\nline')\"; exec sleep 1000"
    )
    service = docker.service(
        "a",
        command=("sh", "-c", script),
        mounts=(MountSpec(volume="data", target="/data"),),
        cap_add=("CHOWN", "FOWNER", "FSETID", "DAC_OVERRIDE"),
    )
    spec = await docker.running(service, volumes=("data",))

    async def written() -> bool:
        return (folder_of(docker, f"{spec.app_id}_data") / "new\nline").exists()

    await until(written)
    before = await look(docker.runtime, spec.app_id, "data")
    assert before[""].owner == (33, 34)
    assert (before["a"].mode, before["a"].owner, before["b"].kind) == (0o6711, (1, 2), tarfile.LNKTYPE)
    assert len(before["sparse"].content) == 8 * 1024 * 1024 + 1
    await docker.runtime.snapshot(spec.app_id, "s", Progress())
    (folder_of(docker, f"{spec.app_id}_data") / "a").write_text("changed")
    await docker.runtime.restore(spec.app_id, "s", Progress())
    assert await look(docker.runtime, spec.app_id, "data") == before
    folder = folder_of(docker, f"{spec.app_id}_data")
    assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino
    assert doors(docker) == []


@pytest.mark.component("docker")
async def test_large_data_is_copied_with_little_memory(docker: DockerLab) -> None:
    spec = await stopped(docker, "data")
    size = 200 * 1024 * 1024
    with (folder_of(docker, f"{spec.app_id}_data") / "large").open("wb") as file:
        file.truncate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    progress = Progress()
    await docker.runtime.snapshot(spec.app_id, "s", progress)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 * 1024
    assert (folder_of(docker, f"snapshot_{spec.app_id}_s_data") / "large").stat().st_size == size


@pytest.mark.component("docker")
async def test_foreign_volumes_are_left_alone(docker: DockerLab) -> None:
    spec = await stopped(docker, "data")
    for name in (f"snapshot_{spec.app_id}_s_data", f"{spec.app_id}_other"):
        docker.engine.ok("POST", "/volumes/create", body={"Name": name})
        (folder_of(docker, name) / "mine").write_text("mine")
    with pytest.raises(RuntimeFailure) as caught:
        await docker.runtime.snapshot(spec.app_id, "s", Progress())
    assert caught.value.code == "name_taken"
    with pytest.raises(RuntimeFailure) as caught:
        await fill(docker.runtime, spec.app_id, "other", RICH)
    assert caught.value.code == "name_taken"
    await docker.runtime.discard(spec.app_id, "s")
    await docker.runtime.remove(spec.app_id, keep_volumes=False)
    for name in (f"snapshot_{spec.app_id}_s_data", f"{spec.app_id}_other"):
        assert (folder_of(docker, name) / "mine").read_text() == "mine"
        docker.engine.ok("DELETE", f"/volumes/{name}")


@pytest.mark.component("docker")
async def test_a_full_disk_is_told_and_nothing_counts(docker: DockerLab) -> None:
    spec = await stopped(docker, "data")
    (folder_of(docker, f"{spec.app_id}_data") / "large").write_bytes(bytes(8 * 1024 * 1024))
    name = f"{spec.app_id}_small"
    body = {
        "Name": name,
        "Driver": "local",
        "DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
        "Labels": {"io.quazzar.app": spec.app_id},
    }
    docker.engine.ok("POST", "/volumes/create", body=body)
    async with contextlib.aclosing(docker.runtime.read_volume(spec.app_id, "data")) as chunks:
        with pytest.raises(RuntimeFailure) as caught:
            await docker.runtime.write_volume(spec.app_id, "small", chunks)
    assert caught.value.code == "disk_full"
    assert doors(docker) == []
    docker.engine.ok("DELETE", f"/volumes/{name}")


@pytest.mark.component("docker")
async def test_what_a_killed_process_left_is_in_nobodys_way(docker: DockerLab) -> None:
    spec = await stopped(docker, "data")
    await fill(docker.runtime, spec.app_id, "data", RICH)
    await docker.runtime.snapshot(spec.app_id, "s", Progress())
    for name in (f"{spec.app_id}_data", f"snapshot_{spec.app_id}_s_data"):
        labels = {"io.quazzar.app": spec.app_id, "io.quazzar.door": name, "io.quazzar.service": ""}
        mount = {"Type": "volume", "Source": name, "Target": "/volume"}
        body = {"Image": "quazzar-door:1", "Cmd": ["none"], "Labels": labels, "HostConfig": {"Mounts": [mount]}}
        docker.engine.ok("POST", "/containers/create", body=body)
    assert (await docker.state(spec.app_id)).services == ()
    await docker.runtime.restore(spec.app_id, "s", Progress())
    assert await look(docker.runtime, spec.app_id, "data") == RICH
    await docker.runtime.discard(spec.app_id, "s")
    assert doors(docker) == []


@pytest.mark.component("docker")
async def test_tidying_takes_what_was_left_and_not_what_is_used(docker: DockerLab) -> None:
    spec = await stopped(docker, "data")
    (folder_of(docker, f"{spec.app_id}_data") / "large").write_bytes(bytes(8 * 1024 * 1024))
    labels = {"io.quazzar.app": spec.app_id, "io.quazzar.door": f"{spec.app_id}_data", "io.quazzar.service": ""}
    size = 0
    async with contextlib.aclosing(docker.runtime.read_volume(spec.app_id, "data")) as chunks:
        async for chunk in chunks:
            if size == 0:
                body = {"Image": "quazzar-door:1", "Cmd": ["none"], "Labels": labels}
                docker.engine.ok("POST", "/containers/create", body=body)
                assert len(doors(docker)) == 2
                await docker.runtime.tidy()
                assert len(doors(docker)) == 1
            size += len(chunk)
    assert size > 8 * 1024 * 1024
    assert doors(docker) == []


@pytest.mark.slow
@pytest.mark.component("docker")
async def test_an_engine_that_dies_or_freezes_in_a_copy_is_told(
    docker: DockerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await stopped(docker, "data")
    (folder_of(docker, f"{spec.app_id}_data") / "large").write_bytes(bytes(64 * 1024 * 1024))
    for breaks, mends in ((docker.engine.freeze, docker.engine.thaw), (docker.engine.kill, docker.engine.start)):
        broken = False

        async def report(_: float, step: str, breaks: object = breaks) -> None:
            nonlocal broken
            if "(16 MB)" in step and not broken:
                broken = True
                assert callable(breaks)
                breaks()

        with monkeypatch.context() as patch:
            patch.setattr(volumes, "SILENCE_SECONDS", 2.0)
            patch.setattr(containers, "HEAVY_SECONDS", 2.0)
            patch.setattr(volumes, "_REPORT_SECONDS", 0)
            try:
                with pytest.raises(RuntimeUnavailable):
                    await docker.runtime.snapshot(spec.app_id, "s", report)
            finally:
                await asyncio.to_thread(mends)
        assert broken
        await docker.runtime.snapshot(spec.app_id, "s", Progress())
        await docker.runtime.restore(spec.app_id, "s", Progress())
        assert (folder_of(docker, f"{spec.app_id}_data") / "large").stat().st_size == 64 * 1024 * 1024
        await docker.runtime.discard(spec.app_id, "s")
        assert doors(docker) == []
