"""An app on two machines: each an engine in a network of its own, joined by a cable to one swarm."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from quazzar.core.ids import new_id
from quazzar.instance.apps.runtimes.base import RuntimeEvent, RuntimeFailure
from quazzar.instance.apps.runtimes.configs import SwarmConfig
from quazzar.instance.apps.runtimes.swarm import SwarmRuntime
from quazzar.instance.apps.spec import AppSpec, MountSpec, ServiceSpec
from tests.components import DockerEngine, Registry, docker_engine, link_between, registry, same_registry, wait_for
from tests.instance.apps.runtimes.conftest import IMAGE, Progress, app_spec, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.component("docker"),
    pytest.mark.component("docker-registry"),
    pytest.mark.timeout(300),
]


class Pair(NamedTuple):
    manager: DockerEngine
    worker: DockerEngine
    image: str
    """Of a registry that both have."""

    def nodes(self) -> dict[str, str]:
        """Node → state."""
        return {one["ID"]: one["Status"]["State"] for one in self.manager.ok("GET", "/v1.41/nodes")}

    def node_of(self, engine: DockerEngine) -> str:
        return str(engine.ok("GET", "/v1.41/info")["Swarm"]["NodeID"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("pair")
        manager = stack.enter_context(docker_engine(folder / "manager", live_restore=False))
        worker = stack.enter_context(docker_engine(folder / "worker", live_restore=False))
        here, there = stack.enter_context(link_between(manager.namespace, worker.namespace))
        manager.import_busybox(IMAGE)
        images: Registry = stack.enter_context(registry(folder / "images", manager))
        stack.enter_context(same_registry(worker, images))
        image = f"{images.name}/team/app:1"
        manager.push(IMAGE, image)
        manager.remove_image(image)
        manager.init_swarm(here)
        quick_to_notice(manager)
        worker.join_swarm(there, manager, here)
        found = Pair(manager, worker, image)
        wait_for(lambda: list(found.nodes().values()) == ["ready", "ready"], what="both nodes")
        yield found


def quick_to_notice(manager: DockerEngine) -> None:
    """A node is lost after three heartbeats, which are five seconds apart unless somebody says otherwise."""
    swarm = manager.ok("GET", "/v1.41/swarm")
    # Soon, and not by a hiccup of the machine that both run on.
    spec = swarm["Spec"] | {"Dispatcher": {"HeartbeatPeriod": 2_000_000_000}}
    params = {"version": str(swarm["Version"]["Index"])}
    manager.ok("POST", "/v1.41/swarm/update", params=params, body=spec)


@pytest.fixture
async def runtime(pair: Pair) -> AsyncIterator[SwarmRuntime]:
    found = SwarmRuntime(SwarmConfig(host=pair.manager.host))
    yield found
    for state in await found.find():
        await found.remove(state.app_id, keep_volumes=False)
    await found.close()


def places(pair: Pair, app_id: str) -> dict[str, str]:
    """Service → node, of what runs."""
    names = {
        one["ID"]: one["Spec"]["Labels"]["io.quazzar.service"]
        for one in pair.manager.ok("GET", "/v1.41/services")
        if one["Spec"]["Labels"].get("io.quazzar.app") == app_id
    }
    tasks = pair.manager.ok("GET", "/v1.41/tasks")
    return {
        names[one["ServiceID"]]: one["NodeID"]
        for one in tasks
        if one["ServiceID"] in names and one["DesiredState"] == "running" and one["Status"]["State"] == "running"
    }


async def spread_app(pair: Pair, runtime: SwarmRuntime) -> AppSpec:
    """One service with data, which stays, and two that the swarm places as it likes."""

    def roaming(name: str) -> ServiceSpec:
        return ServiceSpec(
            name=name, image=pair.image, command=("sh", "-c", f"echo hello of {name}; exec sleep 100000")
        )

    mount = MountSpec(volume="data", target="/data")
    stays = ServiceSpec(name="stays", image=pair.image, command=("sleep", "100000"), mounts=(mount,))
    spec = app_spec(stays, roaming("one"), roaming("two"), volumes=("data",))
    await runtime.pull(spec, Progress())
    await runtime.up(spec, Progress())
    return spec


async def test_the_services_of_an_app_land_on_both_machines(pair: Pair, runtime: SwarmRuntime) -> None:
    assert "spread" in (await runtime.info()).capabilities
    spec = await spread_app(pair, runtime)
    here, there = pair.node_of(pair.manager), pair.node_of(pair.worker)
    found = places(pair, spec.app_id)
    assert found["stays"] == here
    assert set(found.values()) == {here, there}
    state = await runtime.get(spec.app_id)
    assert state is not None
    assert {one.name: one.status for one in state.services} == dict.fromkeys(("stays", "one", "two"), "running")
    assert len({one.image_digest for one in state.services}) == 1

    async def lines() -> set[str]:
        return {line.line async for line in runtime.logs(spec.app_id)}

    async def all_lines() -> bool:
        return await lines() >= {"hello of one", "hello of two"}

    await until(all_lines)
    away = next(name for name, node in found.items() if node == there)
    with pytest.raises(RuntimeFailure, match="another node") as caught:
        await runtime.execute(spec.app_id, away, ["true"], exec_id=new_id("exec"))
    assert caught.value.code == "unsupported"
    assert away not in {one.name for one in await runtime.stats(spec.app_id)}
    await runtime.stop(spec.app_id)
    assert places(pair, spec.app_id) == {}
    await runtime.start(spec.app_id)
    wait_for(lambda: places(pair, spec.app_id).keys() == {"stays", "one", "two"}, what="all to run again")
    await runtime.remove(spec.app_id, keep_volumes=False)
    assert await runtime.get(spec.app_id) is None

    def left() -> list[str]:
        found = pair.worker.ok("GET", "/containers/json", params={"all": "1"})
        return [one["Id"] for one in found if spec.app_id in str(one["Labels"])]

    # The swarm takes away what has ended on other machines in its own time.
    wait_for(lambda: left() == [], what="the containers on the other machine to be gone")


async def test_a_machine_that_is_lost_is_told_and_its_services_run_elsewhere(pair: Pair, runtime: SwarmRuntime) -> None:
    spec = await spread_app(pair, runtime)
    here, there = pair.node_of(pair.manager), pair.node_of(pair.worker)
    away = [name for name, node in places(pair, spec.app_id).items() if node == there]
    assert away
    began, seen = datetime.now(UTC), set[str]()

    async def watch() -> None:
        async for event in runtime.events(since=began):
            note: RuntimeEvent = event
            if note.app_id == spec.app_id and note.action == "start":
                seen.add(note.service)

    watching = asyncio.create_task(watch())
    try:
        pair.worker.kill()
        wait_for(lambda: pair.nodes()[there] == "down", seconds=30, what="the loss to be noticed")
        assert "spread" not in (await runtime.info()).capabilities

        async def elsewhere() -> bool:
            return places(pair, spec.app_id) == dict.fromkeys(("stays", "one", "two"), here)

        await until(elsewhere, seconds=60)
        state = await runtime.get(spec.app_id)
        assert state is not None
        assert {one.name: one.status for one in state.services} == dict.fromkeys(("stays", "one", "two"), "running")

        async def told() -> bool:
            return seen >= set(away)

        await until(told)
        # Nobody waits for what is not there: an app is stopped and removed without the machine.
        await runtime.stop(spec.app_id)
        await runtime.remove(spec.app_id, keep_volumes=False)
        assert await runtime.get(spec.app_id) is None
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        pair.worker.start()
    wait_for(lambda: pair.nodes()[there] == "ready", seconds=60, what="the machine to be back")
    assert "spread" in (await runtime.info()).capabilities
