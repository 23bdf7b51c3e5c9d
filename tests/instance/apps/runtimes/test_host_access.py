"""What a trusted template has of the host, on a real engine: that, and nothing that a link would lead to."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quazzar.instance.apps.runtimes.base import RuntimeFailure
from quazzar.instance.apps.runtimes.configs import DockerConfig
from quazzar.instance.apps.runtimes.docker import DockerRuntime
from quazzar.instance.apps.runtimes.engine.objects import container_config
from quazzar.instance.apps.spec import BindSpec, DeviceSpec, HostSpec, ServiceSpec
from tests.components import DockerEngine
from tests.instance.apps.runtimes.conftest import DockerLab, Progress, SwarmLab, app_spec, until

pytestmark = pytest.mark.component("docker")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of the host that an app may mount."""
    with TemporaryDirectory(prefix="qz-shared-") as name:
        yield Path(name)


@pytest.fixture
async def guarded(engine: DockerEngine, shared: Path) -> AsyncIterator[DockerRuntime]:
    """A runtime that keeps apps out of `ours`, a folder of the shared one."""
    (shared / "ours").mkdir()
    runtime = DockerRuntime(DockerConfig(host=engine.host, denied=(str(shared / "ours"),)))
    yield runtime
    await runtime.close()


def bind(source: Path | str, **fields: bool) -> HostSpec:
    return HostSpec(binds=(BindSpec(source=str(source), target="/shared", **fields),))


async def test_a_folder_of_the_host_is_mounted(docker: DockerLab, shared: Path) -> None:
    (shared / "in").write_text("from the host")
    script = "cat /shared/in; echo; echo app > /shared/out || echo read-only; echo end; sleep 1000"
    command = ("sh", "-c", script)
    for read_only in (True, False):
        spec = await docker.running(docker.service("a", command=command, host=bind(shared, read_only=read_only)))

        async def said(app_id: str = spec.app_id) -> list[str]:
            lines = [line.line async for line in docker.runtime.logs(app_id) if line.stream == "stdout"]
            return lines if "end" in lines else []

        lines = await until(said)
        assert "from the host" in lines
        assert ("read-only" in lines) is read_only
        assert (shared / "out").exists() is not read_only
        await docker.runtime.remove(spec.app_id, keep_volumes=False)
    assert (shared / "in").exists(), "what is the host's stays the host's"


async def test_links_and_our_own_folders_are_refused(
    docker: DockerLab, guarded: DockerRuntime, engine: DockerEngine, shared: Path
) -> None:
    (shared / "link").symlink_to("/etc")
    (shared / "inner").symlink_to(shared)
    for source, said in (
        (shared / "link", "/etc"),
        (shared / "link" / "ssl", "/etc"),
        (shared / "inner" / "x", "through a link"),
        (shared / "ours", "ours"),
        (shared / "ours" / "x", "ours"),
        (shared, "ours"),
        (engine.folder / "data", "data"),
        (engine.folder, "data"),
    ):
        spec = app_spec(docker.service("a", host=bind(source)))
        with pytest.raises(RuntimeFailure, match="can't be mounted") as caught:
            await guarded.up(spec, Progress())
        assert caught.value.code == "host_path_refused"
        assert said in caught.value.reason
        assert await docker.runtime.get(spec.app_id) is None
    missing = app_spec(docker.service("a", host=bind(shared / "missing")))
    with pytest.raises(RuntimeFailure, match="not there") as caught:
        await guarded.up(missing, Progress())
    assert caught.value.code == "host_path_missing"
    assert not (shared / "missing").exists(), "none is made"
    await docker.runtime.remove(missing.app_id, keep_volumes=False)


async def test_all_the_rest(docker: DockerLab) -> None:
    host = HostSpec(
        devices=(DeviceSpec(source="/dev/zero", target="/dev/other", permissions="r"),),
        groups=("109",),
        network=True,
        pid=True,
        ipc=True,
        security_opts=("seccomp=unconfined", "no-new-privileges=false"),
    )
    spec = await docker.running(
        docker.service("a", host=host),
        docker.service("b", host=HostSpec(sysctls={"net.core.somaxconn": "99"})),
        docker.service("c"),
    )
    found = docker.container(spec.app_id, "a")["HostConfig"]
    assert (found["NetworkMode"], found["PidMode"], found["IpcMode"]) == ("host", "host", "host")
    assert found["SecurityOpt"][:1] == ["seccomp=unconfined"], "an engine adds what goes with it"
    assert found["GroupAdd"] == ["109"]
    assert [one["PathInContainer"] for one in found["Devices"]] == ["/dev/other"]
    other = docker.container(spec.app_id, "b")["HostConfig"]
    assert (other["Privileged"], other["Sysctls"]) == (False, {"net.core.somaxconn": "99"})
    plain = docker.container(spec.app_id, "c")["HostConfig"]
    assert (plain["Privileged"], plain["PidMode"], plain["IpcMode"]) == (False, "", "private")
    assert plain["SecurityOpt"] == ["no-new-privileges"]
    await docker.runtime.up(spec, Progress())
    absent = HostSpec(devices=(DeviceSpec(source="/dev/no-such", target="/dev/no-such"),))
    with pytest.raises(RuntimeFailure) as caught:
        await docker.running(docker.service("a", host=absent))
    assert caught.value.code == "device_missing"


def test_a_privileged_container() -> None:
    """Not run: the test's machine has not every right itself."""
    service = ServiceSpec(name="a", image="x", host=HostSpec(privileged=True))
    assert container_config(service, container_labels={}, volumes=[])["HostConfig"]["Privileged"] is True


async def test_a_swarm_gives_folders_and_nothing_else(swarm: SwarmLab, shared: Path) -> None:
    (shared / "in").write_text("from the host")
    spec = await swarm.running(swarm.service("a", host=bind(shared)))
    [mount] = swarm.container(spec.app_id, "a")["HostConfig"]["Mounts"]
    assert (mount["Type"], mount["Source"]) == ("bind", str(shared))
    assert swarm.service_of(spec.app_id, "a")["Spec"]["TaskTemplate"]["Placement"]["Constraints"], "it stays here"
    with pytest.raises(RuntimeFailure, match="nothing of the host but folders"):
        await swarm.runtime.pull(app_spec(swarm.service("a", host=HostSpec(privileged=True))), Progress())
