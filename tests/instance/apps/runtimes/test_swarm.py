"""What only a swarm shows: that there is none, what it can't do, its secrets, and services of somebody else."""

import hashlib
from typing import Any

import msgspec
import pytest

from quazzar.cli.doctor import lost_nodes, swarm_problem
from quazzar.core.ids import new_id
from quazzar.instance.apps.runtimes import SwarmConfig, make_runtime
from quazzar.instance.apps.runtimes.base import RuntimeFailure, RuntimeUnavailable
from quazzar.instance.apps.runtimes.engine.failures import failure
from quazzar.instance.apps.runtimes.engine.services import FILE_LIMIT_BYTES, isolated, names, pinned_image
from quazzar.instance.apps.runtimes.swarm import SwarmRuntime
from quazzar.instance.apps.spec import (
    AppSpec,
    FileSpec,
    MountSpec,
    PortSpec,
    ResourceSpec,
    ServiceSpec,
    TmpfsSpec,
    UlimitSpec,
)
from tests.components import DockerEngine
from tests.instance.apps.runtimes.conftest import IMAGE, Progress, SwarmLab, app_spec, until

component = pytest.mark.component("docker")


def test_the_config_says_swarm() -> None:
    assert isinstance(make_runtime(SwarmConfig(host="/x.sock")), SwarmRuntime)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to', "is in no swarm"),
        ("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state", "a worker"),
        ("Swarm is encrypted and needs to be unlocked before it can be used.", "locked"),
        ("rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few", "no leader"),
        ("something else", "The container engine is not reachable"),
    ],
)
def test_why_an_engine_can_not_speak_for_its_swarm(message: str, reason: str) -> None:
    found = failure(503, message)
    assert isinstance(found, RuntimeUnavailable)
    assert reason in found.message


@pytest.mark.parametrize(
    ("swarm", "problem"),
    [
        ({"LocalNodeState": "active", "ControlAvailable": True}, None),
        ({"LocalNodeState": "active", "ControlAvailable": False}, "only a worker"),
        ({"LocalNodeState": "inactive", "ControlAvailable": False}, "docker swarm init"),
        ({"LocalNodeState": "locked"}, "docker swarm unlock"),
        ({"LocalNodeState": "pending"}, "can't join"),
        ({}, "docker swarm init"),
    ],
)
def test_the_doctor_says_what_is_wrong(swarm: dict[str, Any], problem: str | None) -> None:
    found = swarm_problem(swarm)
    assert found == problem if problem is None else found is not None and problem in found


def test_the_doctor_names_nodes_that_are_lost() -> None:
    def node(name: str, state: str = "ready", availability: str = "active") -> dict[str, Any]:
        description, spec = {"Hostname": name}, {"Availability": availability}
        return {"ID": f"id-{name}", "Description": description, "Status": {"State": state}, "Spec": spec}

    assert lost_nodes([]) == []
    assert lost_nodes([node("a"), node("b", "down"), node("c", availability="drain"), {"ID": "d"}]) == ["b", "c", "d"]


def test_names_of_services_are_valid_and_short() -> None:
    service = ServiceSpec(name="s" * 63, image=IMAGE)
    spec = AppSpec(app_id=new_id("app"), project="p" * 63, services=(service,))
    assert [len(one) <= 63 for one in names(spec, service)] == [True]
    short = msgspec.structs.replace(service, name="a.b")
    assert names(msgspec.structs.replace(spec, project="shop"), short)[0] == "shop-a-b"


def test_every_node_runs_the_same_image() -> None:
    one, two = (f"127.0.0.1:5000/team/app@sha256:{digit * 64}" for digit in "12")
    inspected = {"Id": "sha256:" + "9" * 64, "RepoDigests": [one, two, "other@sha256:" + "3" * 64]}
    assert pinned_image(inspected, "127.0.0.1:5000/team/app:1") == (one, True)
    assert pinned_image(inspected, "127.0.0.1:5000/team/app:1", "sha256:" + "2" * 64) == (two, True)
    assert pinned_image(inspected, "local:1") == (inspected["Id"], False)


def test_a_service_on_no_network_is_alone_on_its_own() -> None:
    spec = app_spec(ServiceSpec(name="a", image=IMAGE), ServiceSpec(name="b", image=IMAGE), networks=())
    found = isolated(spec)
    assert [(one.name, one.internal) for one in found.networks] == [("alone-a", True), ("alone-b", True)]
    assert [one.networks[0].network for one in found.services] == ["alone-a", "alone-b"]
    assert isolated(app_spec(ServiceSpec(name="a", image=IMAGE))).networks[0].name == "default"


@component
async def test_an_engine_without_a_swarm_says_so(engine: DockerEngine) -> None:
    runtime = SwarmRuntime(SwarmConfig(host=engine.host))
    spec = app_spec(ServiceSpec(name="a", image=IMAGE))
    for call in (
        runtime.info,
        runtime.find,
        lambda: runtime.get(spec.app_id),
        lambda: runtime.up(spec, Progress()),
        lambda: runtime.start(spec.app_id),
        lambda: runtime.stop(spec.app_id),
        lambda: runtime.remove(spec.app_id, keep_volumes=False),
        lambda: runtime.free_ports(1),
        lambda: anext(runtime.events()),
        lambda: anext(runtime.logs(spec.app_id)),
    ):
        with pytest.raises(RuntimeUnavailable, match="is in no swarm"):
            await call()
    await runtime.close()


@component
async def test_what_a_swarm_can_not_do_is_refused_by_name(swarm: SwarmLab) -> None:
    inner = PortSpec(container_port=80, host_port=20080, host_ip="127.0.0.1")
    large = FileSpec(target="/etc/large", content="x" * (FILE_LIMIT_BYTES + 1))
    for fields, named in (({"ports": (inner,)}, "ports: 127.0.0.1"), ({"files": (large,)}, "/etc/large")):
        spec = app_spec(swarm.service("web", **fields))
        for call in (swarm.runtime.pull, swarm.runtime.up):
            with pytest.raises(RuntimeFailure, match=named) as caught:
                await call(spec, Progress())
            assert (caught.value.code, caught.value.service) == ("unsupported", "web")
        assert await swarm.runtime.get(spec.app_id) is None
    capabilities = (await swarm.runtime.info()).capabilities
    assert {"stats.here", "exec.here", "volumes.here"} <= capabilities
    assert "spread" not in capabilities, "there is one node"


@component
async def test_a_container_is_as_closed_as_a_swarm_can_make_it(swarm: SwarmLab) -> None:
    files = (
        FileSpec(target="/etc/app/deep/config", content="ünï “quotes” $HOME {{.Service.Name}}\r\nno end", mode=0o440),
        FileSpec(target="/run/secrets/empty", content="", mode=0o400, uid=65534, gid=65534),
        FileSpec(target="/data/in-volume", content="x" * 100_000),
    )
    script = (
        'for f in "$@"; do sha256sum $f | cut -d" " -f1; stat -c "%a %u %g" $f; done; ulimit -n;'
        " df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; grep CapBnd /proc/self/status; echo end; sleep 1000"
    )
    spec = await swarm.running(
        swarm.service(
            "a",
            command=("sh", "-c", script, "-", *(one.target for one in files)),
            files=files,
            read_only=True,
            user="65534",
            cap_add=("NET_BIND_SERVICE",),
            mounts=(MountSpec(volume="data", target="/data"),),
            tmpfs=(TmpfsSpec(target="/run", size_bytes=1024 * 1024),),
            shm_size_bytes=1024 * 1024,
            ulimits=(UlimitSpec(name="nofile", soft=512, hard=1024),),
            resources=ResourceSpec(memory_bytes=32 * 1024 * 1024, cpus=64, pids=50),
        ),
        volumes=("data",),
    )

    async def said() -> list[str]:
        # What it complains of on the other stream may be stored after its end.
        logged = swarm.runtime.logs(spec.app_id, tail=None)
        lines = [line.line async for line in logged if line.stream == "stdout"]
        return lines if "end" in lines else []

    expected: list[str] = []
    for index, one in enumerate(files):
        digest = hashlib.sha256(one.content.encode()).hexdigest()
        # The first is root's and its group's alone.
        expected += [digest] if index else []
        expected.append(f"{one.mode:o} {one.uid} {one.gid}")
    lines = await until(said, seconds=60)
    assert lines == [*expected, "512", "1024", "CapBnd:\t0000000000000400", "end"]
    host = swarm.container(spec.app_id, "a")["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"], host["IpcMode"]) == (False, True, True, "private")
    assert (host["PidsLimit"], host["Memory"]) == (50, 32 * 1024 * 1024)
    await swarm.runtime.remove(spec.app_id, keep_volumes=False)
    assert not [one for one in swarm.engine.ok("GET", "/v1.41/secrets") if spec.app_id in one["Spec"]["Name"]]


@component
async def test_s34_nothing_foreign_of_a_swarm_is_ever_touched(swarm: SwarmLab) -> None:
    engine, spec = swarm.engine, app_spec(swarm.service("web", files=(FileSpec(target="/x", content="x"),)))
    image = engine.ok("GET", f"/images/{IMAGE}/json")["Id"]
    task = {"ContainerSpec": {"Image": image, "Args": ["sleep", "1000"]}}
    body = {"Name": f"{spec.project}-web", "TaskTemplate": task, "EndpointSpec": {"Mode": "dnsrr"}}
    service = engine.ok("POST", "/v1.41/services/create", body=body)["ID"]
    secret = engine.ok("POST", "/v1.41/secrets/create", body={"Name": new_id("t"), "Data": "eA=="})["ID"]
    network = engine.ok("POST", "/v1.41/networks/create", body={"Name": new_id("t"), "Driver": "overlay"})["Id"]

    def there() -> list[Any]:
        return [
            engine.ok("GET", f"/v1.41/services/{service}")["Version"],
            engine.ok("GET", f"/v1.41/secrets/{secret}")["Version"],
            engine.ok("GET", f"/v1.41/networks/{network}")["Id"],
        ]

    before = there()
    try:
        await swarm.runtime.pull(spec, Progress())
        await swarm.runtime.up(spec, Progress())
        assert swarm.service_of(spec.app_id, "web")["Spec"]["Name"].startswith(f"{spec.app_id}-")
        await swarm.runtime.stop(spec.app_id)
        for foreign in (service, secret, network, "", f"{spec.project}-web"):
            assert await swarm.runtime.get(foreign) is None
            await swarm.runtime.remove(foreign, keep_volumes=False)
        assert [one.app_id for one in await swarm.runtime.find()] == [spec.app_id]
        await swarm.runtime.remove(spec.app_id, keep_volumes=False)
        assert there() == before
    finally:
        for path in (f"services/{service}", f"secrets/{secret}", f"networks/{network}"):
            engine.ok("DELETE", f"/v1.41/{path}")


@component
async def test_a_stop_that_was_cut_off_is_finished_by_the_next(swarm: SwarmLab) -> None:
    spec = await swarm.running(swarm.service("a", lines=(("stdout", "hello"),)))

    async def said() -> list[str]:
        return [line.line async for line in swarm.runtime.logs(spec.app_id)]

    assert await until(said) == ["hello"]
    found = swarm.service_of(spec.app_id, "a")
    # As after the first of the two changes that a stop makes.
    found["Spec"]["TaskTemplate"]["Placement"] = {"Constraints": ["node.labels.io.quazzar.stopped==true"]}
    params = {"version": str(found["Version"]["Index"])}
    swarm.engine.ok("POST", f"/v1.41/services/{found['ID']}/update", params=params, body=found["Spec"])
    await swarm.runtime.stop(spec.app_id)
    assert (await swarm.one(spec.app_id, "a")).status == "exited"
    assert await said() == ["hello"]
    await swarm.runtime.start(spec.app_id)
    assert (await swarm.one(spec.app_id, "a")).status == "running"
