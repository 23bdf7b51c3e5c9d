"""A lab for each runtime: the same services, run by busybox on a real engine or played by the one in memory."""

import asyncio
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import msgspec
import pytest

from quazzar.core.ids import new_id
from quazzar.core.secret import Secret
from quazzar.instance.apps.runtimes.base import AppState, RegistryLogin, Runtime, ServiceState, Stream
from quazzar.instance.apps.runtimes.configs import DockerConfig, SwarmConfig
from quazzar.instance.apps.runtimes.docker import DockerRuntime
from quazzar.instance.apps.runtimes.memory import Behaviour, MemoryRuntime
from quazzar.instance.apps.runtimes.swarm import SwarmRuntime
from quazzar.instance.apps.spec import AppSpec, HealthSpec, ServiceSpec
from tests.components import DockerEngine, Registry, docker_engine, registry

T = TypeVar("T")

IMAGE = "quazzar-test/busybox:1"
BOB = RegistryLogin(username="bob", password=Secret("secret-of-bob"))
USERS = {"bob": "$2b$04$8Rnx2jpj3CG1em0w9DppjusmoJiP8p4vvgaHuXYqF0js2kB0fkHya"}
HEALTH = HealthSpec(test=("CMD-SHELL", "test -e /tmp/ok"), interval_seconds=0.3, timeout_seconds=5, retries=3)
PATIENT = msgspec.structs.replace(HEALTH, retries=100)
"""Of a service that gets healthy, however late it does what makes it so."""


class Progress:
    """A report that remembers, and aborts at a step that it is told."""

    def __init__(self, *, abort_at: str | None = None) -> None:
        self.values: list[float] = []
        self.steps: list[str] = []
        self._abort_at = abort_at

    async def __call__(self, done: float, step: str) -> None:
        self.values.append(done)
        self.steps.append(step)
        if self._abort_at is not None and self._abort_at in step:
            raise Aborted(step)


class Aborted(Exception):
    pass


class Lab:
    """What a test of the promise needs besides the runtime itself."""

    runtime: Runtime
    unknown_image: str
    """A name that no registry has an image for."""

    def service(
        self,
        name: str,
        *,
        lines: tuple[tuple[Stream, str], ...] = (),
        exit_code: int | None = None,
        exit_after: float = 0,
        healthy_after: float | None = 0,
        deaf: bool = False,
        **fields: Any,
    ) -> ServiceSpec:
        """A service that prints, gets healthy (None: never) and ends as told; a deaf one must be killed."""
        raise NotImplementedError

    async def kill(self, app_id: str, service: str) -> None:
        """Somebody else kills the container."""
        raise NotImplementedError

    async def vanish(self, app_id: str, service: str) -> None:
        """Somebody else removes the container."""
        raise NotImplementedError

    def remote(self) -> str:
        """The name of an image that a registry has and the engine has not."""
        raise NotImplementedError

    def private(self) -> tuple[str, RegistryLogin]:
        """The same in a registry that asks for a login, with the login."""
        raise NotImplementedError

    def move_tag(self, image: str) -> None:
        """The registry gets another image under the name."""
        raise NotImplementedError

    def project(self) -> str:
        """The name of a Compose project that runs, with the services `a` and `b`, which has the volume `data`."""
        raise NotImplementedError

    async def state(self, app_id: str) -> AppState:
        state = await self.runtime.get(app_id)
        assert state is not None
        return state

    async def one(self, app_id: str, service: str) -> ServiceState:
        return next(one for one in (await self.state(app_id)).services if one.name == service)

    async def running(self, *services: ServiceSpec, **fields: Any) -> AppSpec:
        """An app that is up."""
        spec = app_spec(*services, **fields)
        await self.runtime.pull(spec, Progress())
        await self.runtime.up(spec, Progress())
        return spec


class MemoryLab(Lab):
    def __init__(self) -> None:
        self.runtime: MemoryRuntime = MemoryRuntime()
        self.unknown_image = "quazzar-test/unknown:1"
        self.runtime.engine.unknown_images.add(self.unknown_image)

    def service(
        self,
        name: str,
        *,
        lines: tuple[tuple[Stream, str], ...] = (),
        exit_code: int | None = None,
        exit_after: float = 0,
        healthy_after: float | None = 0,
        deaf: bool = False,
        **fields: Any,
    ) -> ServiceSpec:
        self.runtime.engine.behaviours[name] = Behaviour(
            lines=lines,
            exit_code=exit_code,
            exit_after_seconds=exit_after,
            healthy_after_seconds=healthy_after,
            stop_seconds=3600 if deaf else 0,
        )
        return ServiceSpec(**{"name": name, "image": IMAGE} | fields)

    async def kill(self, app_id: str, service: str) -> None:
        self.runtime.engine.stopped(self.runtime.engine.container(app_id, service), exit_code=137)

    async def vanish(self, app_id: str, service: str) -> None:
        self.runtime.engine.remove_behind_our_back(app_id, service)

    def remote(self) -> str:
        return f"registry.example.com/team/app:{new_id('t')[-8:]}"

    def private(self) -> tuple[str, RegistryLogin]:
        name = self.remote()
        self.runtime.engine.private_images[name] = ("bob", "secret-of-bob")
        return name, BOB

    def move_tag(self, image: str) -> None:
        self.runtime.engine.moved_tags[image] = "sha256:" + secrets.token_hex(32)

    def project(self) -> str:
        services = {"a": {"image": IMAGE}, "b": {"image": IMAGE, "volumes": ["data:/data"]}}
        name = f"p{new_id('t')[-8:]}"
        return self.runtime.engine.compose_up(name, {"services": services, "volumes": {"data": {}}}).name


class DockerLab(Lab):
    def __init__(self, engine: DockerEngine, registry: Registry, private: Registry) -> None:
        self.engine = engine
        self.registry = registry
        self.private_registry = private
        self.unknown_image = f"{registry.name}/unknown:1"
        self.runtime: DockerRuntime = DockerRuntime(DockerConfig(host=engine.host))

    def service(
        self,
        name: str,
        *,
        lines: tuple[tuple[Stream, str], ...] = (),
        exit_code: int | None = None,
        exit_after: float = 0,
        healthy_after: float | None = 0,
        deaf: bool = False,
        **fields: Any,
    ) -> ServiceSpec:
        script = [f"echo {shlex.quote(line)}" + (" >&2" if stream == "stderr" else "") for stream, line in lines]
        if healthy_after is not None:
            script += [f"sleep {healthy_after}"] * (healthy_after > 0) + ["touch /tmp/ok"]
        script += [f"sleep {exit_after}"] * (exit_after > 0)
        if exit_code is not None:
            script.append(f"exit {exit_code}")
        elif deaf:
            script.append("trap '' TERM; while true; do sleep 0.1; done")
        else:
            script.append("exec sleep 100000")
        return ServiceSpec(**{"name": name, "image": IMAGE, "command": ("sh", "-c", "; ".join(script))} | fields)

    def container(self, app_id: str, service: str) -> dict[str, Any]:
        """The engine's own word on a service's container."""
        found = self.engine.ok(
            "GET",
            "/containers/json",
            params={
                "all": "1",
                "filters": f'{{"label":["io.quazzar.app={app_id}","io.quazzar.service={service}"]}}',
            },
        )
        inspected: dict[str, Any] = self.engine.ok("GET", f"/containers/{found[0]['Id']}/json")
        return inspected

    async def kill(self, app_id: str, service: str) -> None:
        self.engine.ok("POST", f"/containers/{self.container(app_id, service)['Id']}/kill")

    async def vanish(self, app_id: str, service: str) -> None:
        self.engine.ok("DELETE", f"/containers/{self.container(app_id, service)['Id']}", params={"force": "1"})

    def remote(self) -> str:
        name = f"{self.registry.name}/team/app:{new_id('t')[-8:]}"
        self.engine.push(IMAGE, name)
        self.engine.remove_image(name)
        return name

    def private(self) -> tuple[str, RegistryLogin]:
        name = f"{self.private_registry.name}/team/app:{new_id('t')[-8:]}"
        self.engine.push(IMAGE, name, username=BOB.username, password=BOB.password.reveal())
        self.engine.remove_image(name)
        return name, BOB

    def move_tag(self, image: str) -> None:
        other = f"quazzar-test/other:{new_id('t')[-8:]}"
        self.engine.import_busybox(other, files={"etc/mark": other.encode()})
        self.engine.push(other, image)
        self.engine.remove_image(image)

    def project(self) -> str:
        name = f"p{new_id('t')[-8:]}"
        of_project = {"com.docker.compose.project": name}
        network, volume = {"com.docker.compose.network": "default"}, {"com.docker.compose.volume": "data"}
        body = {"Name": f"{name}_default", "Labels": of_project | network}
        self.engine.ok("POST", "/networks/create", body=body)
        self.engine.ok("POST", "/volumes/create", body={"Name": f"{name}_data", "Labels": of_project | volume})
        for service, mounts in (("a", []), ("b", [f"{name}_data:/data"])):
            labels = of_project | {"com.docker.compose.service": service}
            host = {"NetworkMode": f"{name}_default", "Binds": mounts}
            config = {
                "Image": IMAGE,
                "Cmd": ["sleep", "100000"],
                "StopTimeout": 1,
                "Labels": labels,
                "HostConfig": host,
            }
            made = self.engine.ok("POST", "/containers/create", params={"name": f"{name}-{service}-1"}, body=config)
            self.engine.ok("POST", f"/containers/{made['Id']}/start")
        return name


class SwarmLab(DockerLab):
    """The same engine's commands; what carries a service there is the swarm's service, and its container passes."""

    def __init__(self, engine: DockerEngine, registry: Registry, private: Registry) -> None:
        super().__init__(engine, registry, private)
        self.runtime: SwarmRuntime = SwarmRuntime(SwarmConfig(host=engine.host))

    def service_of(self, app_id: str, service: str) -> dict[str, Any]:
        filters = f'{{"label":["io.quazzar.app={app_id}","io.quazzar.service={service}"]}}'
        [found] = self.engine.ok("GET", "/v1.41/services", params={"filters": filters})
        return dict(found)

    async def vanish(self, app_id: str, service: str) -> None:
        self.engine.ok("DELETE", f"/v1.41/services/{self.service_of(app_id, service)['ID']}")


def app_spec(*services: ServiceSpec, **fields: Any) -> AppSpec:
    app_id = new_id("app")
    return AppSpec(**{"app_id": app_id, "project": f"p{app_id[-8:]}", "services": services} | fields)


async def until(look: Callable[[], Awaitable[T]], *, seconds: float = 15) -> T:
    """What `look` gives as soon as it gives something true."""
    end = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < end, f"Nothing within {seconds} s"
        await asyncio.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    with docker_engine(tmp_path_factory.mktemp("engine")) as running:
        running.import_busybox(IMAGE)
        yield running


@pytest.fixture(scope="session")
def images(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("images"), engine) as running:
        yield running


@pytest.fixture(scope="session")
def private_images(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that only knows `BOB`."""
    with registry(tmp_path_factory.mktemp("private"), engine, users=USERS) as running:
        yield running


@pytest.fixture
async def docker(engine: DockerEngine, images: Registry, private_images: Registry) -> AsyncIterator[DockerLab]:
    """A lab on the real engine; what its tests leave is removed."""
    lab = DockerLab(engine, images, private_images)
    yield lab
    for state in await lab.runtime.find():
        await lab.runtime.remove(state.app_id, keep_volumes=False)
    await lab.runtime.close()


@pytest.fixture(scope="session")
def swarm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """An engine that is the one node of a swarm."""
    with docker_engine(tmp_path_factory.mktemp("swarm"), live_restore=False) as running:
        running.import_busybox(IMAGE)
        running.init_swarm()
        yield running


@pytest.fixture(scope="session")
def swarm_registries(
    swarm_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Registry, Registry]]:
    folder = tmp_path_factory.mktemp("swarm-images")
    with registry(folder, swarm_engine) as public, registry(folder, swarm_engine, users=USERS) as private:
        yield public, private


@pytest.fixture
async def swarm(swarm_engine: DockerEngine, swarm_registries: tuple[Registry, Registry]) -> AsyncIterator[SwarmLab]:
    lab = SwarmLab(swarm_engine, *swarm_registries)
    yield lab
    for state in await lab.runtime.find():
        await lab.runtime.remove(state.app_id, keep_volumes=False)
    await lab.runtime.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("docker", marks=pytest.mark.component("docker")),
        pytest.param("swarm", marks=(pytest.mark.component("docker"), pytest.mark.slow)),
    ],
)
def lab(request: pytest.FixtureRequest) -> Lab:
    if request.param == "memory":
        return MemoryLab()
    found: Lab = request.getfixturevalue(request.param)
    return found
