"""What only a real engine shows: its absence and its crashes, pulls, isolation, limits, files, logs and numbers."""

import asyncio
import contextlib
import gc
import hashlib
import json
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from quazzar.core.ids import new_id
from quazzar.instance.apps.runtimes import docker as driver
from quazzar.instance.apps.runtimes import make_runtime
from quazzar.instance.apps.runtimes.base import (
    ImageNotFound,
    LogLine,
    PortInUse,
    RegistryUnreachable,
    RuntimeEvent,
    RuntimeFailure,
    RuntimeUnavailable,
    ServiceStats,
)
from quazzar.instance.apps.runtimes.configs import DockerConfig
from quazzar.instance.apps.runtimes.docker import DockerRuntime
from quazzar.instance.apps.runtimes.engine import images, objects
from quazzar.instance.apps.runtimes.engine.connection import engine_url
from quazzar.instance.apps.spec import (
    AttachmentSpec,
    DependencySpec,
    FileSpec,
    MountSpec,
    NetworkSpec,
    PortSpec,
    ResourceSpec,
    RestartSpec,
    ServiceSpec,
    TmpfsSpec,
    UlimitSpec,
)
from tests.components import faulty_line
from tests.instance.apps.runtimes.conftest import IMAGE, DockerLab, Progress, app_spec, until
from tests.product.process import free_port

pytestmark = pytest.mark.component("docker")


def verbs(runtime: DockerRuntime) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every call of the promise, each of which must see that the engine is not there."""
    spec = app_spec(ServiceSpec(name="a", image=IMAGE))
    return {
        "info": runtime.info,
        "measure": runtime.measure,
        "execute": lambda: runtime.execute(spec.app_id, "a", None, exec_id=new_id("exec")),
        "end_execution": lambda: runtime.end_execution(spec.app_id, new_id("exec")),
        "pull": lambda: runtime.pull(spec, Progress()),
        "remote_digest": lambda: runtime.remote_digest(IMAGE),
        "up": lambda: runtime.up(spec, Progress()),
        "start": lambda: runtime.start(spec.app_id),
        "stop": lambda: runtime.stop(spec.app_id),
        "remove": lambda: runtime.remove(spec.app_id, keep_volumes=False),
        "find": runtime.find,
        "get": lambda: runtime.get(spec.app_id),
        "logs": lambda: anext(runtime.logs(spec.app_id)),
        "follow": lambda: anext(runtime.logs(spec.app_id, follow=True)),
        "stats": lambda: runtime.stats(spec.app_id),
        "events": lambda: anext(runtime.events()),
        "snapshot": lambda: runtime.snapshot(spec.app_id, "s", Progress()),
        "restore": lambda: runtime.restore(spec.app_id, "s", Progress()),
        "discard": lambda: runtime.discard(spec.app_id, "s"),
        "snapshots": lambda: runtime.snapshots(spec.app_id),
        "clone_volumes": lambda: runtime.clone_volumes(spec.app_id, spec, Progress()),
        "read_volume": lambda: anext(runtime.read_volume(spec.app_id, "data")),
        "write_volume": lambda: runtime.write_volume(spec.app_id, "data", runtime.read_volume("app_x", "data")),
        "free_ports": lambda: runtime.free_ports(1),
    }


async def outcome(call: Callable[[], Awaitable[object]]) -> tuple[str, float]:
    began = time.monotonic()
    try:
        await call()
    except RuntimeUnavailable as error:
        assert error.code == "runtime_unavailable"
        assert error.headers == {"Retry-After": "5"}
        return "unavailable", time.monotonic() - began
    return "answered", time.monotonic() - began


async def test_no_engine_is_told_at_once(tmp_path: Path) -> None:
    runtime = DockerRuntime(DockerConfig(host=str(tmp_path / "none.sock")))
    for name, call in verbs(runtime).items():
        assert (name, *(await outcome(call))[:1]) == (name, "unavailable")
    await runtime.close()
    nobody = DockerRuntime(DockerConfig(host=f"tcp://127.0.0.1:{free_port()}"))
    assert (await outcome(nobody.info))[0] == "unavailable"
    await nobody.close()


@contextlib.asynccontextmanager
async def fake_engine(tmp_path: Path, answer: Callable[[str], bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server on a socket that gives `answer(path)` as it stands; with the paths that were asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked.append(head.split()[1].decode())
                writer.write(answer(asked[-1]))
                await writer.drain()
        writer.close()

    path = tmp_path / "fake.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    async with server:
        yield f"unix://{path}", asked


def http(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        http(b"<html>hello</html>", "text/html"),
        http(b"not json"),
        http(b"{}"),
        http(b'{"ApiVersion": "many"}'),
        http(b'{"ApiVersion": "1.40", "MinAPIVersion": "1.12"}'),
        http(b"{", status="500 Internal Server Error"),
        b"\x00\x01\x02\r\n\r\n",
        http(b'{"message": "starting"}', status="503 Service Unavailable"),
    ],
)
async def test_what_is_no_engine_is_none(tmp_path: Path, answer: bytes) -> None:
    async with fake_engine(tmp_path, lambda _: answer) as (host, _):
        runtime = DockerRuntime(DockerConfig(host=host))
        for call in (runtime.info, runtime.find):
            assert (await outcome(call))[0] == "unavailable"
        await runtime.close()


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.45", "1.24", "1.45"), ("1.52", "1.44", "1.47"), ("1.60", "1.50", "1.50")],
)
async def test_the_newest_version_that_both_know_is_spoken(
    tmp_path: Path, newest: str, oldest: str, spoken: str
) -> None:
    body = json.dumps({"Version": "29.0", "ApiVersion": newest, "MinAPIVersion": oldest}).encode()
    async with fake_engine(tmp_path, lambda _: http(body)) as (host, asked):
        runtime = DockerRuntime(DockerConfig(host=host))
        assert (await runtime.info()).api_version == spoken
        assert asked[-1] == f"/v{spoken}/version"
        await runtime.close()


async def test_a_container_that_the_engine_can_not_tell_of_hides_no_other(tmp_path: Path) -> None:
    """As after a disk that has lost a layer: it stays in the list, and every look at it is an error for ever."""
    ids = {"a": new_id("app"), "b": new_id("app")}
    listed = [
        {"Id": one, "Image": IMAGE, "State": "exited", "Labels": {objects.APP: app_id, objects.SERVICE: "web"}}
        for one, app_id in ids.items()
    ]
    whole = {
        "Id": "b",
        "Image": "sha256:b",
        "Config": {"Image": IMAGE, "Labels": listed[1]["Labels"]},
        "State": {"Status": "running"},
        "HostConfig": {},
    }
    lost = http(b'{"message": "RWLayer of container a is unexpectedly nil"}', status="500 Internal Server Error")

    def answer(path: str) -> bytes:
        match path.partition("?")[0].rsplit("/", 2)[-2:]:
            case [_, "version"]:
                return http(b'{"ApiVersion": "1.45", "MinAPIVersion": "1.24"}')
            case ["containers", "json"]:
                return http(json.dumps(listed).encode())
            case ["b", "json"]:
                return http(json.dumps(whole).encode())
            case [_, "networks"]:
                return http(b"[]")
            case [_, "volumes"]:
                return http(b'{"Volumes": null}')
            case _:
                return lost

    async with fake_engine(tmp_path, answer) as (host, _):
        runtime = DockerRuntime(DockerConfig(host=host))
        found = {state.app_id: state.services[0].status for state in await runtime.find()}
        assert found == {ids["a"]: "exited", ids["b"]: "running"}
        await runtime.close()


def test_where_the_engine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert engine_url(None) == "unix:///var/run/docker.sock"
    assert engine_url("/run/x.sock") == "unix:///run/x.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    assert engine_url(None) == "tcp://127.0.0.1:2375"
    assert engine_url("unix:///run/x.sock") == "unix:///run/x.sock"
    for wrong in ("ssh://root@host", "http://x", "npipe://x", "docker.sock"):
        with pytest.raises(ValueError, match="unix:/// or tcp://"):
            make_runtime(DockerConfig(host=wrong))


def test_the_client_library_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, quazzar.instance.apps.runtimes as r; r.make_runtime(r.DockerConfig(host='/x'));"
        "assert not {'aiodocker', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_frozen_engine_is_told_in_time_and_taken_back(
    docker: DockerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_PING_SECONDS", 0.3)
    spec = await docker.running(docker.service("a"))
    async with contextlib.aclosing(docker.runtime.events()) as events:
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        docker.engine.freeze()
        try:
            calls = verbs(docker.runtime)
            outcomes = await asyncio.gather(*(outcome(call) for call in calls.values()))
            for name, (result, seconds) in zip(calls, outcomes, strict=True):
                assert (name, result) == (name, "unavailable")
                # What is quick is given up after four seconds, all else after twenty at the soonest.
                assert seconds < 15, name
            with pytest.raises(RuntimeUnavailable):
                await waiting
        finally:
            docker.engine.thaw()
    assert (await docker.one(spec.app_id, "a")).status == "running"


async def test_an_engine_that_dies_in_the_middle_of_up(docker: DockerLab) -> None:
    spec = app_spec(
        docker.service("a", lines=(("stdout", "hello"),)),
        docker.service("b", files=(FileSpec(target="/etc/b", content="b"),)),
    )
    await docker.runtime.up(msgspec.structs.replace(spec, services=spec.services[:1]), Progress())
    before = await docker.one(spec.app_id, "a")

    async def broken(stream: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(stream):
            async for _ in stream:
                pass

    streams = [
        asyncio.ensure_future(broken(docker.runtime.events())),
        asyncio.ensure_future(broken(docker.runtime.logs(spec.app_id, follow=True))),
    ]
    await asyncio.sleep(0.3)

    async def killing(_: float, step: str) -> None:
        if step == "Starting b":
            docker.engine.kill()

    try:
        with pytest.raises(RuntimeUnavailable):
            await docker.runtime.up(spec, killing)
        assert (await outcome(docker.runtime.find))[0] == "unavailable"
        for stream in streams:
            with pytest.raises(RuntimeUnavailable):
                await stream
    finally:
        docker.engine.start()
    assert (await docker.one(spec.app_id, "b")).status == "created"
    await docker.runtime.up(spec, Progress())
    a, b = (await docker.state(spec.app_id)).services
    assert (a.container_id, a.started_at, a.status) == (before.container_id, before.started_at, "running")
    assert b.status == "running"


async def test_memory_eaten_up_is_seen_as_such(docker: DockerLab) -> None:
    began = time.time()
    spec = await docker.running(
        docker.service(
            "hog",
            command=("sh", "-c", "tail /dev/zero"),
            init=False,
            restart=RestartSpec(policy="no"),
            resources=ResourceSpec(memory_bytes=16 * 1024 * 1024),
        )
    )

    async def over() -> bool:
        # An engine hears of the memory and of the end on two ways.
        hog = await docker.one(spec.app_id, "hog")
        return hog.status == "exited" and hog.oom_killed

    await until(over)
    assert (await docker.one(spec.app_id, "hog")).exit_code == 137
    async with asyncio.timeout(15):
        actions: list[str] = []
        async with contextlib.aclosing(docker.runtime.events(since=_at(began))) as events:
            async for event in events:
                if event.app_id == spec.app_id:
                    actions.append(event.action)
                    if {"oom", "die"} <= set(actions):
                        break


def _at(seconds: float) -> Any:
    from datetime import UTC, datetime  # noqa: PLC0415

    return datetime.fromtimestamp(seconds, UTC)


async def test_a_port_of_somebody_else_is_in_use(docker: DockerLab) -> None:
    port = free_port()
    listen = f"import socket, time; s = socket.create_server(('', {port})); print(flush=True); time.sleep(1000)"
    command = docker.engine.namespace.command(sys.executable, "-c", listen)
    listener = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        listener.stdout.readline()
        spec = app_spec(docker.service("a", ports=(PortSpec(container_port=80, host_port=port),)))
        with pytest.raises(PortInUse, match=f"^Port {port} is already in use$"):
            await docker.runtime.up(spec, Progress())
    finally:
        listener.kill()
        listener.communicate()
    await docker.runtime.up(spec, Progress())


async def test_an_app_is_reached_by_its_port_and_by_its_names(docker: DockerLab) -> None:
    port = free_port()
    web = docker.service(
        "web",
        command=("httpd", "-f", "-p", "8080", "-h", "/etc"),
        ports=(PortSpec(container_port=8080, host_port=port),),
        networks=(AttachmentSpec(network="default"), AttachmentSpec(network="inner", aliases=("alias.inner",))),
    )
    ask = "for name in web alias.inner; do wget -qO- http://$name:8080/passwd | head -1; done; sleep 1000"
    asking = docker.service("ask", command=("sh", "-c", ask), networks=(AttachmentSpec(network="inner"),))
    spec = await docker.running(
        web,
        docker.service("hidden"),
        asking,
        networks=(NetworkSpec(name="default"), NetworkSpec(name="inner", internal=True)),
    )

    async def said() -> list[str]:
        return [line.line async for line in docker.runtime.logs(spec.app_id, services=["ask"])]

    async def both() -> bool:
        return len(await said()) >= 2

    await until(both)
    assert await said() == ["root:x:0:0:root:/root:/bin/sh"] * 2
    reader, writer = await asyncio.open_connection(docker.engine.address, port)
    writer.write(b"GET /passwd HTTP/1.0\r\n\r\n")
    assert b"root:x:0:0" in await reader.read()
    writer.close()
    await writer.wait_closed()


# Images


async def test_a_real_pull(docker: DockerLab) -> None:
    name = f"{docker.registry.name}/team/app:{new_id('t')[-8:]}"
    docker.engine.push(IMAGE, name)
    docker.engine.remove_image(name)
    spec = app_spec(docker.service("a", image=name), docker.service("b", image=name))
    with pytest.raises(ImageNotFound, match="is not present"):
        await docker.runtime.up(spec, Progress())
    progress = Progress()
    digests = await docker.runtime.pull(spec, progress)
    assert progress.values == sorted(progress.values)
    assert (progress.values[0], progress.values[-1]) == (0, 1)
    assert set(progress.steps) == {f"Pulling {name}"}
    digest = digests[name]
    assert digest.startswith("sha256:")
    assert digest != docker.engine.ok("GET", f"/images/{name}/json")["Id"]

    again = Progress()
    assert await docker.runtime.pull(spec, again) == digests
    assert again.values == [1]
    pinned = f"{name.rpartition(':')[0]}@{digest}"
    assert await docker.runtime.pull(app_spec(docker.service("c", image=pinned)), Progress()) == {pinned: digest}
    await docker.runtime.up(spec, Progress())
    assert [one.image_digest for one in (await docker.state(spec.app_id)).services] == [digest, digest]


async def test_pulls_that_fail_say_why(docker: DockerLab) -> None:
    repository = f"{docker.registry.name}/team/other"
    docker.engine.push(IMAGE, f"{repository}:1")
    absent = "@sha256:" + "0" * 64
    for name in (f"{repository}:2", f"{docker.registry.name}/nothing:1", repository + absent):
        said = re.escape(f"The registry {docker.registry.name} has no image {name}, or none that can be seen without")
        with pytest.raises(ImageNotFound, match=said):
            await docker.runtime.pull(app_spec(docker.service("a", image=name)), Progress())
        with pytest.raises(ImageNotFound, match=said):
            await docker.runtime.remote_digest(name)
    for name in ("UPPER", "a b", "../../containers/json?x=", "x:", "", "a" * 600, "x@sha256:12", "-v/:/h"):
        with pytest.raises(ImageNotFound, match=r"^The name of the image is not valid$"):
            await docker.runtime.pull(app_spec(docker.service("a", image=name)), Progress())
        with pytest.raises(ImageNotFound, match=r"^The name of the image is not valid$"):
            await docker.runtime.up(app_spec(docker.service("a", image=name)), Progress())
        with pytest.raises(ImageNotFound, match=r"^The name of the image is not valid$"):
            await docker.runtime.remote_digest(name)
    with pytest.raises(RegistryUnreachable, match=r"^The registry 127\.0\.0\.1:1 is not reachable$"):
        await docker.runtime.pull(app_spec(docker.service("a", image="127.0.0.1:1/x:1")), Progress())
    with pytest.raises(RegistryUnreachable, match=r"^The registry 127\.0\.0\.1:1 is not reachable$"):
        await docker.runtime.remote_digest("127.0.0.1:1/x:1")


@pytest.mark.parametrize("fault", ["silence", "stall"])
async def test_a_registry_that_says_no_more_is_told(
    docker: DockerLab, monkeypatch: pytest.MonkeyPatch, fault: Literal["silence", "stall"]
) -> None:
    """The engine itself would wait for ever; it stops pulling when we do."""
    path = f"team/large:{new_id('t')[-8:]}"
    docker.engine.publish(f"{docker.registry.name}/{path}")
    with faulty_line(docker.engine, docker.registry) as line:
        name = f"{line.name}/{path}"
        spec = app_spec(docker.service("a", image=name))
        line.fault = fault
        with monkeypatch.context() as patch:
            patch.setattr(images, "SILENCE_SECONDS", 2.0)
            patch.setattr(images, "REGISTRY_SECONDS", 2.0)
            with pytest.raises(RegistryUnreachable, match=f"^The registry {line.name} does not answer any more$"):
                await docker.runtime.pull(spec, Progress())
            if fault == "silence":
                with pytest.raises(RegistryUnreachable, match=f"^The registry {line.name} does not answer any more$"):
                    await docker.runtime.remote_digest(name)
        line.fault = None
        digests = await docker.runtime.pull(spec, Progress())
        assert digests[name] == await docker.runtime.remote_digest(name)
        docker.engine.remove_image(name)


async def test_a_server_that_is_no_registry_does_not_show_what_it_says(docker: DockerLab) -> None:
    """Anybody who may install can name an address; what answers there is not theirs to read."""
    with faulty_line(docker.engine, docker.registry) as line:
        line.fault = "page"
        name = f"{line.name}/inner/page:1"
        spec = app_spec(docker.service("a", image=name))
        for call in (docker.runtime.pull(spec, Progress()), docker.runtime.remote_digest(name)):
            with pytest.raises(RuntimeFailure, match=re.escape(line.name)) as caught:
                await call
            assert "canary" not in caught.value.reason


# Isolation


async def test_s34_nothing_foreign_is_ever_touched(docker: DockerLab) -> None:
    engine = docker.engine
    spec = app_spec(docker.service("web", mounts=(MountSpec(volume="data", target="/data"),)), volumes=("data",))
    tail = spec.app_id[-8:]
    stranger = {"Image": IMAGE, "Cmd": ["sleep", "100000"], "Labels": {"com.example": "io.quazzar.app"}}
    foreign = engine.ok("POST", "/containers/create", params={"name": f"{spec.project}-web-1"}, body=stranger)["Id"]
    engine.ok("POST", f"/containers/{foreign}/start")
    stopped = engine.ok("POST", "/containers/create", body=stranger)["Id"]
    volume = engine.ok("POST", "/volumes/create", body={"Name": f"foreign-{tail}"})["Name"]
    network = engine.ok("POST", "/networks/create", body={"Name": f"foreign-{tail}"})["Id"]
    image = engine.import_busybox(f"foreign/{tail}:1")

    def there() -> list[Any]:
        return [
            engine.ok("GET", f"/containers/{foreign}/json")["State"],
            engine.ok("GET", f"/containers/{stopped}/json")["State"],
            engine.ok("GET", f"/volumes/{volume}"),
            engine.ok("GET", f"/networks/{network}"),
            engine.ok("GET", f"/images/{image}/json"),
        ]

    before = there()
    try:
        await docker.runtime.up(spec, Progress())
        assert docker.container(spec.app_id, "web")["Name"] == f"/{spec.app_id}-web-1"
        changed = docker.service("web", environment={"A": "1"})
        await docker.runtime.up(msgspec.structs.replace(spec, services=(changed,)), Progress())
        await docker.runtime.stop(spec.app_id)
        await docker.runtime.start(spec.app_id)

        # Somebody plugs their container into our network.
        ours = engine.ok("GET", f"/networks/{spec.app_id}_default")["Id"]
        engine.ok("POST", f"/networks/{ours}/connect", body={"Container": foreign})
        with pytest.raises(RuntimeFailure, match="in use by a container that is not part of it") as caught:
            await docker.runtime.remove(spec.app_id, keep_volumes=False)
        assert caught.value.code == "network_in_use"
        engine.ok("POST", f"/networks/{ours}/disconnect", body={"Container": foreign})

        for unknown in (foreign, stopped, spec.project, f"{spec.project}-web-1", volume, network):
            assert await docker.runtime.get(unknown) is None
            await docker.runtime.remove(unknown, keep_volumes=False)
        assert all(one.app_id == spec.app_id for one in await docker.runtime.find())
        await docker.runtime.remove(spec.app_id, keep_volumes=False)
        assert await docker.runtime.get(spec.app_id) is None
        assert there() == before
    finally:
        for one in (foreign, stopped):
            engine.ok("DELETE", f"/containers/{one}", params={"force": "1"})
        engine.ok("DELETE", f"/volumes/{volume}")
        engine.ok("DELETE", f"/networks/{network}")
        engine.remove_image(f"foreign/{tail}:1")


async def test_what_somebody_runs_from_a_commit_of_ours_is_theirs(docker: DockerLab) -> None:
    """`docker commit` puts a container's labels on the image, and so on all that is run from it."""
    spec = await docker.running(docker.service("a"))
    tail, made = spec.app_id[-8:], docker.container(spec.app_id, "a")["Id"]
    docker.engine.ok("POST", "/commit", params={"container": made, "repo": f"debug/{tail}", "tag": "1"})
    theirs = docker.engine.ok("POST", "/containers/create", body={"Image": f"debug/{tail}:1"})["Id"]
    docker.engine.ok("POST", f"/containers/{theirs}/start")
    try:
        assert [one.container_id for one in (await docker.state(spec.app_id)).services] == [made]
        await docker.runtime.stop(spec.app_id)
        await docker.runtime.start(spec.app_id)
        await docker.runtime.remove(spec.app_id, keep_volumes=False)
        assert await docker.runtime.find() == []
        assert docker.engine.ok("GET", f"/containers/{theirs}/json")["State"]["Running"]
    finally:
        docker.engine.ok("DELETE", f"/containers/{theirs}", params={"force": "1"})
        docker.engine.remove_image(f"debug/{tail}:1")


async def test_labels_that_are_not_ours_confuse_nobody(docker: DockerLab) -> None:
    spec = await docker.running(docker.service("a"))
    app, other = spec.app_id, new_id("app")
    odd: list[dict[str, str]] = [
        {"io.quazzar.app": other},
        {"io.quazzar.app": other, "io.quazzar.service": "x", "io.quazzar.order": "first"},
        {"io.quazzar.app": other, "io.quazzar.service": "x", "io.quazzar.depends": "nonsense"},
        {"io.quazzar.app": other, "io.quazzar.service": "x", "io.quazzar.depends": "a:b:c"},
        {"io.quazzar.app": app + "x", "io.quazzar.service": "", "io.quazzar.order": "1"},
        {"io.quazzar.service": "a", "io.quazzar.order": "1"},
    ]
    body = {"Image": IMAGE, "Cmd": ["true"]}
    made = [docker.engine.ok("POST", "/containers/create", body=body | {"Labels": one})["Id"] for one in odd]
    try:
        assert [one.app_id for one in await docker.runtime.find()] == [app]
        assert await docker.runtime.get(other) is None
        await docker.runtime.remove(app, keep_volumes=False)
        assert await docker.runtime.find() == []
    finally:
        for one in made:
            docker.engine.ok("DELETE", f"/containers/{one}", params={"force": "1"})


async def test_a_foreign_volume_with_the_name_of_ours_is_not_taken(docker: DockerLab) -> None:
    spec = app_spec(docker.service("a"), volumes=("data",))
    name = f"{spec.app_id}_data"
    docker.engine.ok("POST", "/volumes/create", body={"Name": name})
    try:
        with pytest.raises(RuntimeFailure) as caught:
            await docker.runtime.up(spec, Progress())
        assert caught.value.code == "name_taken"
        await docker.runtime.remove(spec.app_id, keep_volumes=False)
        assert docker.engine.ok("GET", f"/volumes/{name}")["Name"] == name
    finally:
        docker.engine.ok("DELETE", f"/volumes/{name}")


async def test_containers_have_no_more_rights_than_they_ask_for(docker: DockerLab) -> None:
    spec = await docker.running(
        docker.service(
            "web",
            command=("sh", "-c", "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; id -u; exec sleep 1000"),
            user="65534",
            read_only=True,
            cap_add=("NET_BIND_SERVICE", "CHOWN"),
            cap_drop=("CHOWN",),
            tmpfs=(TmpfsSpec(target="/tmp", size_bytes=1024 * 1024),),
            labels={"io.quazzar.app": "app_other", "team": "blue"},
            restart=RestartSpec(policy="always"),
            stop_grace_seconds=2.5,
            stop_signal="SIGINT",
            shm_size_bytes=1024 * 1024,
            ulimits=(UlimitSpec(name="nofile", soft=512, hard=1024),),
            resources=ResourceSpec(memory_bytes=32 * 1024 * 1024, cpus=64, pids=50),
        )
    )
    found = docker.container(spec.app_id, "web")
    host = found["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, True, True)
    assert (host["PidMode"], host["IpcMode"], host["UTSMode"]) == ("", "private", "")
    assert (host["PidsLimit"], host["Memory"], host["MemorySwap"]) == (50, 32 * 1024 * 1024, 32 * 1024 * 1024)
    assert host["CpuQuota"] / host["CpuPeriod"] == 64
    assert host["Binds"] is None
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 512, "Hard": 1024}]
    # Not `always`: an engine would start a stopped app again at its own start.
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert (found["Config"]["StopTimeout"], found["Config"]["StopSignal"]) == (3, "SIGINT")
    labels = found["Config"]["Labels"]
    assert (labels["io.quazzar.app"], labels["io.quazzar.service"], labels["team"]) == (spec.app_id, "web", "blue")
    assert labels["io.quazzar.project"] == spec.project
    assert found["Name"] == f"/{spec.project}-web-1"

    async def said() -> list[str]:
        lines = [line.line async for line in docker.runtime.logs(spec.app_id)]
        return lines if len(lines) == 4 else []

    assert await until(said) == ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "65534"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"command": ("/nonesuch",)}, "command_not_found"),
        ({"command": ("/etc/passwd",)}, "command_not_runnable"),
        ({"user": "nobodyhere"}, "user_not_found"),
        ({"resources": ResourceSpec(memory_bytes=1)}, "invalid_configuration"),
        ({"ulimits": (UlimitSpec(name="nofile", soft=10**6, hard=10**9),)}, "ulimit_refused"),
    ],
)
async def test_what_an_engine_refuses_is_said_plainly(docker: DockerLab, fields: dict[str, Any], code: str) -> None:
    spec = app_spec(docker.service("web", init=False, **fields))
    with pytest.raises(RuntimeFailure) as caught:
        await docker.runtime.up(spec, Progress())
    assert (caught.value.code, caught.value.service) == (code, "web")
    assert not any(one in caught.value.reason for one in ("/", "OCI", "\n", "0x")), caught.value.reason


# Files and volumes


CONTENT = "first line\n\tünï ✓ \x7f “quotes” $HOME `id`\r\nno line end"


@pytest.mark.parametrize("read_only", [False, True])
async def test_files_are_there_byte_for_byte(docker: DockerLab, *, read_only: bool) -> None:
    files = (
        FileSpec(target="/etc/app/deep/config.toml", content=CONTENT, mode=0o640, uid=1000, gid=1001),
        FileSpec(target="/run/secrets/password", content="s3cret", mode=0o400),
        FileSpec(target="/etc/group", content="replaced"),
        FileSpec(target="/data/in-volume", content="x" * 100_000),
    )
    script = (
        'for f in "$@"; do sha256sum $f | cut -d" " -f1; stat -c "%a %u %g" $f; done;'
        "ls /etc/passwd; touch /etc/app/new 2>/dev/null && echo writable; echo end; exec sleep 1000"
    )
    service = docker.service(
        "a",
        command=("sh", "-c", script, "-", *(one.target for one in files)),
        files=files,
        read_only=read_only,
        cap_add=("DAC_OVERRIDE",),
        mounts=(MountSpec(volume="data", target="/data"),),
        tmpfs=(TmpfsSpec(target="/run"),),
    )
    spec = await docker.running(service, volumes=("data",))

    async def said() -> list[str]:
        lines = [line.line async for line in docker.runtime.logs(spec.app_id)]
        return lines if lines[-1:] == ["end"] else []

    expected = []
    for one in files:
        expected += [hashlib.sha256(one.content.encode()).hexdigest(), f"{one.mode:o} {one.uid} {one.gid}"]
    assert await until(said) == expected + ["/etc/passwd"] + ([] if read_only else ["writable"]) + ["end"]
    assert (await docker.state(spec.app_id)).volumes == ("data",)

    # Another content is another container; what carried the files goes with the app, or with the service.
    before = await docker.one(spec.app_id, "a")
    await docker.runtime.up(spec, Progress())
    assert await docker.one(spec.app_id, "a") == before
    other = msgspec.structs.replace(service, files=(*files[1:], FileSpec(target="/run/secrets/more", content="2")))
    await docker.runtime.up(msgspec.structs.replace(spec, services=(other,)), Progress())
    assert (await docker.one(spec.app_id, "a")).container_id != before.container_id
    await docker.runtime.remove(spec.app_id, keep_volumes=True)
    left = docker.engine.ok("GET", "/volumes", params={"filters": f'{{"label":["io.quazzar.app={spec.app_id}"]}}'})
    assert [one["Name"] for one in left["Volumes"]] == [f"{spec.app_id}_data"]


async def test_files_that_can_not_be_placed_are_refused(docker: DockerLab) -> None:
    for fields in (
        {"files": (FileSpec(target="/top", content=""),), "read_only": True},
        {
            "files": (FileSpec(target="/data/x", content=""),),
            "mounts": (MountSpec(volume="data", target="/data", read_only=True),),
        },
    ):
        with pytest.raises(RuntimeFailure) as caught:
            await docker.runtime.up(app_spec(docker.service("a", **fields)), Progress())
        assert (caught.value.code, caught.value.service) == ("read_only", "a")


async def test_data_outlives_an_update_even_where_only_the_image_declares_it(docker: DockerLab) -> None:
    image = f"quazzar-test/volume-{new_id('t')[-8:]}:1"
    docker.engine.import_busybox(image, changes=["VOLUME /data", "VOLUME /srv/files"])
    write = "cat /data/x /named/x; date > /data/x; date > /named/x; echo end; exec sleep 1000"
    mounts = (MountSpec(volume="named", target="/named"),)
    service = docker.service("a", image=image, command=("sh", "-c", write), mounts=mounts)
    spec = await docker.running(service, volumes=("named",))

    async def said() -> list[LogLine]:
        # Two streams are stored by two takers, so “end” need not be the last.
        lines = [line async for line in docker.runtime.logs(spec.app_id)]
        return [line for line in lines if line.line != "end"] if len(lines) == 3 else []

    assert {line.stream for line in await until(said)} == {"stderr"}
    state = await docker.state(spec.app_id)
    assert len(state.volumes) == 3
    update = msgspec.structs.replace(service, environment={"VERSION": "2"})
    await docker.runtime.up(msgspec.structs.replace(spec, services=(update,)), Progress())
    assert [line.stream for line in await until(said)] == ["stdout"] * 2
    assert (await docker.state(spec.app_id)).volumes == state.volumes
    await docker.runtime.remove(spec.app_id, keep_volumes=False)
    docker.engine.remove_image(image)


async def test_a_network_removed_by_somebody_else_is_mended(docker: DockerLab) -> None:
    spec = await docker.running(docker.service("a"))
    before = await docker.one(spec.app_id, "a")
    await docker.runtime.stop(spec.app_id)
    docker.engine.ok("DELETE", f"/networks/{spec.app_id}_default")
    with pytest.raises(RuntimeFailure):
        await docker.runtime.start(spec.app_id)
    await docker.runtime.up(spec, Progress())
    after = await docker.one(spec.app_id, "a")
    assert after.status == "running"
    assert after.container_id != before.container_id


async def test_a_paused_app_is_stopped_and_comes_up(docker: DockerLab) -> None:
    spec = await docker.running(docker.service("a"))
    for _ in range(2):
        docker.engine.ok("POST", f"/containers/{docker.container(spec.app_id, 'a')['Id']}/pause")
        assert (await docker.one(spec.app_id, "a")).status == "paused"
        if _ == 0:
            await docker.runtime.up(spec, Progress())
            assert (await docker.one(spec.app_id, "a")).status == "running"
    await docker.runtime.stop(spec.app_id)
    assert (await docker.one(spec.app_id, "a")).status == "exited"


# Logs and numbers


async def test_lines_of_all_kinds_come_whole(docker: DockerLab) -> None:
    script = (
        "printf 'caf\\303\\251 \\377 bad\\n'; printf 'carriage\\r\\n'; printf '\\n';"
        "head -c 100000 /dev/zero | tr '\\0' x; echo; printf '<script>\\033[31m' >&2; sleep 0.2; printf 'no end'"
    )
    spec = await docker.running(docker.service("a", command=("sh", "-c", script), restart=RestartSpec(policy="no")))

    async def over() -> bool:
        return (await docker.one(spec.app_id, "a")).status == "exited"

    await until(over)
    lines = [line async for line in docker.runtime.logs(spec.app_id)]
    out = [line.line for line in lines if line.stream == "stdout"]
    assert out[:3] == ["café � bad", "carriage", ""]
    assert "".join(out[3:-1]) == "x" * 100_000
    assert max(len(one) for one in out) < 64 * 1024 + 16 * 1024 + 1
    assert out[-1] == "no end"
    assert [line.line for line in lines if line.stream == "stderr"] == ["<script>\x1b[31m"]


async def test_a_large_log_costs_no_memory(docker: DockerLab) -> None:
    count = 40_000
    script = f"seq 1 {count} | sed 's/$/ {'x' * 300}/'"
    spec = await docker.running(docker.service("a", command=("sh", "-c", script), restart=RestartSpec(policy="no")))

    async def over() -> bool:
        return (await docker.one(spec.app_id, "a")).status == "exited"

    await until(over, seconds=60)
    gc.collect()
    tracemalloc.start()
    try:
        lines = [line.line async for line in docker.runtime.logs(spec.app_id, tail=200)]
        numbers = [int(line.split()[0]) for line in lines]
        assert numbers == list(range(count - 199, count + 1))
        total, last = 0, 0
        async for one in docker.runtime.logs(spec.app_id, tail=None):
            number = int(one.line.split()[0])
            assert number == last + 1 or last == 0
            total, last = total + 1, number
            if total > 5_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 12 * 1024 * 1024
    finally:
        tracemalloc.stop()


async def test_a_slow_reader_of_a_fast_log_keeps_nobody_waiting(docker: DockerLab) -> None:
    spec = await docker.running(docker.service("a", command=("sh", "-c", "yes hello | head -n 300000; sleep 1000")))
    async with contextlib.aclosing(docker.runtime.logs(spec.app_id, follow=True, tail=1)) as stream:
        for _ in range(5):
            assert (await anext(stream)).line == "hello"
            # Who is kept waiting gives up after four seconds.
            assert (await docker.one(spec.app_id, "a")).status == "running"


async def test_followed_lines_come_once_each(docker: DockerLab) -> None:
    script = "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo $i; done; exec sleep 1000"
    spec = await docker.running(*(docker.service(name, command=("sh", "-c", script)) for name in ("a", "b")))
    seen: dict[str, list[int]] = {"a": [], "b": []}
    async with asyncio.timeout(20):
        async with contextlib.aclosing(docker.runtime.logs(spec.app_id, follow=True, tail=None)) as stream:
            async for line in stream:
                seen[line.service].append(int(line.line))
                if len(seen["a"]) + len(seen["b"]) == 3000:
                    break
    assert seen == {"a": list(range(1, 1501)), "b": list(range(1, 1501))}


async def test_the_numbers_of_a_busy_service_are_plausible(docker: DockerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 48 * 1024 * 1024
    busy = "head -c 8000000 /dev/zero > /dev/shm/x; while true; do :; done"
    spec = await docker.running(
        docker.service(
            "busy",
            command=("sh", "-c", busy),
            resources=ResourceSpec(memory_bytes=limit, cpus=0.3),
            shm_size_bytes=16 * 1024 * 1024,
        ),
        docker.service("idle"),
    )
    await docker.runtime.stats(spec.app_id)
    await asyncio.sleep(1.5)
    sample, asked = docker.runtime._stats, list[str]()

    async def noted(container_id: str, service: str) -> dict[str, Any]:
        asked.append(service)
        return await sample(container_id, service)

    monkeypatch.setattr(docker.runtime, "_stats", noted)

    async def plausible() -> ServiceStats | None:
        """On a machine that gives nobody any time for a moment, the next look tells."""
        asked.clear()
        found = {one.name: one for one in await docker.runtime.stats(spec.app_id)}
        assert sorted(asked) == ["busy", "idle"], "a fresh sample needs no second one"
        is_so = found["idle"].cpu_percent < 5 and 10 < found["busy"].cpu_percent < 45
        return found["busy"] if is_so and found["busy"].memory_bytes > 8_000_000 else None

    found = await until(plausible)
    assert found is not None
    assert found.memory_limit_bytes == limit
    assert found.memory_bytes < limit
    assert 2 <= found.pids <= 5


async def test_events_are_only_those_of_apps(docker: DockerLab) -> None:
    stream = docker.runtime.events(since=_at(time.time()))
    reading = asyncio.ensure_future(anext(stream))
    body = {"Image": IMAGE, "Cmd": ["true"], "Labels": {"io.quazzar.files": "x"}}
    foreign = docker.engine.ok("POST", "/containers/create", body=body)["Id"]
    image = f"quazzar-test/labels-{new_id('t')[-8:]}:1"
    docker.engine.import_busybox(image, changes=["LABEL io.quazzar.app=app_x io.quazzar.service=x"])
    docker.engine.ok("POST", f"/containers/{foreign}/start")
    docker.engine.ok("DELETE", f"/containers/{foreign}", params={"force": "1"})
    files = (FileSpec(target="/run/x", content=""),)
    spec = await docker.running(docker.service("a", image=image, files=files, read_only=True))
    event: RuntimeEvent = await reading
    await stream.aclose()
    assert (event.app_id, event.service, event.action) == (spec.app_id, "a", "create")
    await docker.runtime.remove(spec.app_id, keep_volumes=False)
    docker.engine.remove_image(image)


async def test_optional_dependency_on_what_is_not_there(docker: DockerLab) -> None:
    wants = DependencySpec(service="nothing", required=False)
    spec = await docker.running(docker.service("a", depends_on=(wants,)))
    assert (await docker.one(spec.app_id, "a")).status == "running"


async def test_what_is_written_shows_on_the_disk(docker: DockerLab) -> None:
    write = "dd if=/dev/urandom of={} bs=1M count=3 2>/dev/null"
    command = ("sh", "-c", f"{write.format('/data/x')}; {write.format('/tmp/x')}; exec sleep 100000")
    spec = await docker.running(
        ServiceSpec(name="a", image=IMAGE, command=command, mounts=(MountSpec(volume="data", target="/data"),)),
        volumes=("data",),
    )
    least = 3 * 1024 * 1024

    async def measured() -> bool:
        found = next(one for one in await docker.runtime.measure_disks() if one.app_id == spec.app_id)
        return found.volumes["data"] >= least and found.containers_bytes >= least

    await until(measured)
