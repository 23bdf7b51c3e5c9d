"""The promise of `Runtime`, held by every driver."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from quazzar.core.ids import new_id
from quazzar.core.secret import Secret
from quazzar.instance.apps.runtimes.base import (
    DependencyFailed,
    Execution,
    ImageNotFound,
    LoginRefused,
    LogLine,
    PortInUse,
    RegistryLogin,
    RuntimeEvent,
    RuntimeFailure,
)
from quazzar.instance.apps.spec import (
    AppSpec,
    AttachmentSpec,
    DependencySpec,
    MountSpec,
    NetworkSpec,
    PortSpec,
    RestartSpec,
    ServiceSpec,
)
from tests.instance.apps.runtimes.conftest import (
    HEALTH,
    IMAGE,
    PATIENT,
    Aborted,
    Lab,
    Progress,
    app_spec,
    until,
)
from tests.product.process import free_port


def changed(spec: AppSpec, *services: ServiceSpec) -> AppSpec:
    return msgspec.structs.replace(spec, services=services)


async def texts(lines: AsyncGenerator[LogLine, None]) -> list[str]:
    async with contextlib.aclosing(lines):
        return [line.line async for line in lines]


async def first(stream: AsyncGenerator[LogLine, None], count: int) -> list[str]:
    found: list[str] = []
    async with asyncio.timeout(15):
        async for line in stream:
            found.append(line.line)
            if len(found) == count:
                break
    return found


async def test_the_engine_says_what_it_is(lab: Lab) -> None:
    info = await lab.runtime.info()
    assert info.driver in {"memory", "docker", "swarm"}
    assert info.version
    assert info.api_version


async def test_what_is_there_is_told_before_anything_is_made(lab: Lab) -> None:
    machine = await lab.runtime.machine()
    if (await lab.runtime.info()).driver != "memory":
        assert (machine.memory_bytes or 0) > 2**28
        assert (machine.cpus or 0) >= 1
        assert (machine.pids or 0) > 1000
        assert (machine.disk_free_bytes or 0) > 0
        assert machine.data_root is not None
    spec = app_spec(lab.service("a"), lab.service("b", image=lab.unknown_image))
    digests = await lab.runtime.pull(changed(spec, spec.services[0]), Progress())
    assert await lab.runtime.present(spec) == {IMAGE: digests[IMAGE], lab.unknown_image: None}


async def test_an_app_comes_up_and_is_told_whole(lab: Lab) -> None:
    port = free_port()
    spec = app_spec(
        lab.service("db", mounts=(MountSpec(volume="data", target="/data"),)),
        lab.service(
            "web", ports=(PortSpec(container_port=80, host_port=port),), depends_on=(DependencySpec(service="db"),)
        ),
        volumes=("data", "spare"),
    )
    progress = Progress()
    digests = await lab.runtime.pull(spec, progress)
    assert digests.keys() == {IMAGE}
    assert digests[IMAGE].startswith("sha256:")
    assert progress.values[-1] == 1
    progress = Progress()
    await lab.runtime.up(spec, progress)
    assert progress.values == sorted(progress.values)
    assert (progress.values[0], progress.values[-1]) == (0, 1)
    assert any("web" in step for step in progress.steps)

    state = await lab.state(spec.app_id)
    assert [one.name for one in state.services] == ["db", "web"]
    for one in state.services:
        assert one.status == "running"
        assert (one.image, one.image_digest) == (IMAGE, digests[IMAGE])
        assert (one.restarts, one.exit_code, one.oom_killed, one.health) == (0, None, False, "none")
        assert one.started_at is not None
        assert abs(datetime.now(UTC) - one.started_at) < timedelta(minutes=1)
        assert one.finished_at is None
    assert [(one.service, one.container_port, one.host_port, one.protocol) for one in state.ports] == [
        ("web", 80, port, "tcp")
    ]
    assert state.volumes == ("data", "spare")
    assert state in list(await lab.runtime.find())


async def test_up_again_changes_nothing_and_mends_what_is_missing(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"), lab.service("b"))
    before = await lab.state(spec.app_id)
    await lab.runtime.up(spec, Progress())
    assert await lab.state(spec.app_id) == before

    await lab.vanish(spec.app_id, "a")
    await lab.kill(spec.app_id, "b")
    assert [one.name for one in (await lab.state(spec.app_id)).services] == ["b"]
    await lab.runtime.up(spec, Progress())
    after = await lab.state(spec.app_id)
    assert [one.status for one in after.services] == ["running", "running"]
    assert after.services[0].container_id != before.services[0].container_id
    assert after.services[1].container_id == before.services[1].container_id


async def test_up_recreates_what_differs_and_removes_what_is_no_longer_there(lab: Lab) -> None:
    mount = (MountSpec(volume="data", target="/data"),)
    spec = await lab.running(
        lab.service("same"), lab.service("other", mounts=mount), lab.service("old"), volumes=("data",)
    )
    before = {one.name: one.container_id for one in (await lab.state(spec.app_id)).services}
    spec = changed(
        spec,
        lab.service("same"),
        lab.service("other", mounts=mount, environment={"COLOUR": "blue"}),
        lab.service("new"),
    )
    await lab.runtime.up(spec, Progress())
    state = await lab.state(spec.app_id)
    after = {one.name: one.container_id for one in state.services}
    assert [one.name for one in state.services if one.status == "running"] == ["same", "other", "new"]
    assert after["same"] == before["same"]
    assert after["other"] != before["other"]
    assert state.volumes == ("data",)


async def test_a_registry_says_what_it_has_now(lab: Lab) -> None:
    """The digest that an update is found by: the same as that of a pull, until the tag moves."""
    name = lab.remote()
    first = await lab.runtime.remote_digest(name)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first)
    spec = app_spec(lab.service("a", image=name))
    assert await lab.runtime.pull(spec, Progress()) == {name: first}
    assert await lab.runtime.remote_digest(name) == first
    lab.move_tag(name)
    moved = await lab.runtime.remote_digest(name)
    assert moved != first
    pinned = f"{name.rpartition(':')[0]}@{first}"
    assert await lab.runtime.remote_digest(pinned) == first
    with pytest.raises(ImageNotFound, match=re.escape(f"has no image {lab.unknown_image}")):
        await lab.runtime.remote_digest(lab.unknown_image)


async def test_a_digest_holds_an_image_while_its_tag_moves(lab: Lab) -> None:
    name = lab.remote()
    first = (await lab.runtime.pull(app_spec(lab.service("a", image=name)), Progress()))[name]
    lab.move_tag(name)
    second = await lab.runtime.remote_digest(name)

    def of(digest: str) -> AppSpec:
        return app_spec(lab.service("a", image=name, digest=digest))

    # A digest that is not there is pulled, whatever the tag here or there says.
    spec = of(first)
    assert await lab.runtime.pull(spec, Progress()) == {name: first}
    await lab.runtime.up(spec, Progress())
    other = changed(spec, lab.service("a", image=name, digest=second))
    with pytest.raises(ImageNotFound):
        await lab.runtime.up(other, Progress())
    for wanted, digest in ((other, second), (spec, first)):
        assert await lab.runtime.pull(wanted, Progress()) == {name: digest}
        await lab.runtime.up(wanted, Progress())
        service = await lab.one(spec.app_id, "a")
        assert (service.status, service.image, service.image_digest) == ("running", name, digest)
    with pytest.raises(ImageNotFound):
        await lab.runtime.up(of("sha256:" + "0" * 64), Progress())


async def test_a_private_registry_takes_the_login_of_its_name(lab: Lab) -> None:
    name, login = lab.private()
    registry = name.partition("/")[0]
    spec = app_spec(lab.service("a", image=name))
    wrong = RegistryLogin(username=login.username, password=Secret("wrong-canary"))
    for one in (None, wrong):
        with pytest.raises(LoginRefused, match=f"^The registry {registry} ") as caught:
            await lab.runtime.remote_digest(name, one)
        assert "canary" not in repr(caught.value)
    for logins in ({}, {registry: wrong}, {"docker.io": login}):
        with pytest.raises(LoginRefused, match=f"^The registry {registry} ") as caught:
            await lab.runtime.pull(spec, Progress(), logins=logins)
        assert "canary" not in repr(caught.value)
        assert "secret-of-bob" not in repr(caught.value)
    digest = await lab.runtime.remote_digest(name, login)
    assert await lab.runtime.pull(spec, Progress(), logins={registry: login}) == {name: digest}


async def test_networks_can_change(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    inner = (AttachmentSpec(network="inner", aliases=("b.internal",)), AttachmentSpec(network="default"))
    spec = msgspec.structs.replace(
        changed(spec, lab.service("a", networks=inner), lab.service("b")),
        networks=(NetworkSpec(name="default", internal=True), NetworkSpec(name="inner")),
    )
    await lab.runtime.up(spec, Progress())
    assert [one.status for one in (await lab.state(spec.app_id)).services] == ["running", "running"]


async def test_stop_and_start(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"), lab.service("b"))
    before = await lab.state(spec.app_id)
    await lab.runtime.stop(spec.app_id)
    await lab.runtime.stop(spec.app_id)
    stopped = await lab.state(spec.app_id)
    assert [(one.status, one.exit_code) for one in stopped.services] == [("exited", 143)] * 2
    assert all(one.finished_at for one in stopped.services)
    await lab.runtime.start(spec.app_id)
    await lab.runtime.start(spec.app_id)
    after = await lab.state(spec.app_id)
    assert [(one.status, one.exit_code) for one in after.services] == [("running", None)] * 2
    assert [one.container_id for one in after.services] == [one.container_id for one in before.services]


async def test_who_does_not_listen_is_killed_after_the_grace_period(lab: Lab) -> None:
    spec = await lab.running(lab.service("deaf", deaf=True, stop_grace_seconds=1, init=False))
    began = asyncio.get_running_loop().time()
    await lab.runtime.stop(spec.app_id)
    # An engine's own patience is ten seconds.
    assert 0.9 < asyncio.get_running_loop().time() - began < 9.9
    assert (await lab.one(spec.app_id, "deaf")).exit_code == 137


async def test_remove_keeps_or_takes_the_volumes_and_may_be_repeated(lab: Lab) -> None:
    mount = (MountSpec(volume="data", target="/data"),)
    spec = await lab.running(lab.service("a", mounts=mount), volumes=("data",))
    await lab.runtime.remove(spec.app_id, keep_volumes=True)
    state = await lab.state(spec.app_id)
    assert (state.services, state.ports, state.volumes) == ((), (), ("data",))
    await lab.runtime.up(spec, Progress())
    assert (await lab.one(spec.app_id, "a")).status == "running"
    for _ in range(2):
        await lab.runtime.remove(spec.app_id, keep_volumes=False)
        assert await lab.runtime.get(spec.app_id) is None
        assert spec.app_id not in {one.app_id for one in await lab.runtime.find()}


async def test_s14_an_app_that_is_not_there_is_nothing(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    container_id = (await lab.one(spec.app_id, "a")).container_id
    for unknown in (new_id("app"), "", container_id, container_id[:12], spec.project, f"{spec.project}-a-1"):
        assert await lab.runtime.get(unknown) is None
        await lab.runtime.start(unknown)
        await lab.runtime.stop(unknown)
        await lab.runtime.remove(unknown, keep_volumes=False)
        assert await texts(lab.runtime.logs(unknown, follow=True)) == []
        assert await lab.runtime.stats(unknown) == []
    assert await texts(lab.runtime.logs(spec.app_id, services=[container_id], follow=True)) == []
    assert (await lab.one(spec.app_id, "a")).status == "running"


async def test_a_service_waits_until_the_other_is_healthy(lab: Lab) -> None:
    spec = await lab.running(
        lab.service("db", healthcheck=PATIENT, healthy_after=0.4),
        lab.service("web", depends_on=(DependencySpec(service="db", condition="service_healthy"),)),
        lab.service("late", healthcheck=HEALTH, healthy_after=None),
    )
    state = await lab.state(spec.app_id)
    database, web, late = state.services
    assert (database.health, web.health) == ("healthy", "none")
    assert late.status == "running"
    assert database.started_at is not None
    assert web.started_at is not None
    assert web.started_at - database.started_at > timedelta(seconds=0.3)

    # The conditions hold for `start` as well, and dependents are stopped before what they depend on.
    await lab.runtime.stop(spec.app_id)
    stopped = {one.name: one.finished_at for one in (await lab.state(spec.app_id)).services}
    assert stopped["web"] is not None
    assert stopped["db"] is not None
    assert stopped["web"] < stopped["db"]
    await lab.runtime.start(spec.app_id)
    assert (await lab.one(spec.app_id, "db")).health == "healthy"
    assert (await lab.one(spec.app_id, "web")).status == "running"

    # One that somebody has removed is nobody's to wait for: what still ran is there again.
    await lab.vanish(spec.app_id, "db")
    await lab.runtime.stop(spec.app_id)
    await lab.runtime.start(spec.app_id)
    assert {one.name: one.status for one in (await lab.state(spec.app_id)).services} == {
        "web": "running",
        "late": "running",
    }


async def test_a_dependency_that_fails_is_named(lab: Lab) -> None:
    spec = app_spec(
        lab.service("db", healthcheck=HEALTH, healthy_after=None),
        lab.service("web", depends_on=(DependencySpec(service="db", condition="service_healthy"),)),
    )
    await lab.runtime.pull(spec, Progress())
    with pytest.raises(DependencyFailed) as caught:
        await lab.runtime.up(spec, Progress())
    assert caught.value.reason == "“db” is unhealthy, and “web” waits for it"
    assert (caught.value.code, caught.value.service) == ("dependency_failed", "web")
    assert (await lab.one(spec.app_id, "web")).status == "created"

    optional = DependencySpec(service="db", condition="service_healthy", required=False)
    await lab.runtime.up(changed(spec, spec.services[0], lab.service("web", depends_on=(optional,))), Progress())
    assert (await lab.one(spec.app_id, "web")).status == "running"


async def test_what_can_not_get_healthy_is_not_waited_for(lab: Lab) -> None:
    never = RestartSpec(policy="no")
    spec = app_spec(
        lab.service("db", restart=never, exit_code=3, healthcheck=HEALTH, healthy_after=None),
        lab.service("web", depends_on=(DependencySpec(service="db", condition="service_healthy"),)),
    )
    await lab.runtime.pull(spec, Progress())
    with pytest.raises(DependencyFailed, match="“db” exited with code 3, and “web” waits"):
        await lab.runtime.up(spec, Progress())


async def test_what_has_no_health_check_is_waited_for_until_it_runs(lab: Lab) -> None:
    healthy = DependencySpec(service="db", condition="service_healthy")
    spec = await lab.running(lab.service("db"), lab.service("web", depends_on=(healthy,)))
    db, web = (await lab.state(spec.app_id)).services
    assert (db.status, db.health, web.status) == ("running", "none", "running")
    assert db.started_at is not None
    assert web.started_at is not None
    assert web.started_at >= db.started_at


async def test_a_service_that_completes_runs_once(lab: Lab) -> None:
    done = DependencySpec(service="migrate", condition="service_completed_successfully")
    spec = await lab.running(
        lab.service("migrate", exit_code=0, exit_after=0.3), lab.service("web", depends_on=(done,))
    )
    migrate, web = (await lab.state(spec.app_id)).services
    assert (migrate.status, migrate.exit_code, migrate.restarts) == ("exited", 0, 0)
    assert web.started_at is not None
    assert migrate.finished_at is not None
    assert web.started_at >= migrate.finished_at
    await lab.runtime.up(spec, Progress())
    await lab.runtime.stop(spec.app_id)
    await lab.runtime.start(spec.app_id)
    again, web = (await lab.state(spec.app_id)).services
    assert again == migrate
    assert web.status == "running"

    spec = changed(spec, lab.service("migrate", exit_code=4), spec.services[1])
    with pytest.raises(DependencyFailed, match="“migrate” exited with code 4, and “web” waits for it"):
        await lab.runtime.up(msgspec.structs.replace(spec, app_id=new_id("app"), project="pfails"), Progress())


async def test_restart_policies(lab: Lab) -> None:
    spec = await lab.running(
        lab.service("tries", exit_code=7, restart=RestartSpec(policy="on-failure", max_retries=2)),
        lab.service("once", exit_code=5, restart=RestartSpec(policy="no")),
        lab.service("fine", exit_code=0, restart=RestartSpec(policy="on-failure", max_retries=2)),
        lab.service("forever", exit_code=0, exit_after=0.05, restart=RestartSpec(policy="always")),
    )

    async def settled() -> bool:
        tries, once, fine, forever = (await lab.state(spec.app_id)).services
        are_over = {one.status for one in (tries, once, fine)} == {"exited"}
        return are_over and tries.restarts == 2 and forever.restarts >= 2

    await until(settled, seconds=40)
    tries, once, fine, _ = (await lab.state(spec.app_id)).services
    assert (tries.exit_code, tries.restarts) == (7, 2)
    assert (once.status, once.exit_code, once.restarts) == ("exited", 5, 0)
    assert (fine.status, fine.exit_code, fine.restarts) == ("exited", 0, 0)
    await lab.runtime.stop(spec.app_id)
    await asyncio.sleep(0.3)
    assert (await lab.one(spec.app_id, "forever")).status == "exited"


async def test_an_update_to_an_image_that_is_not_there_stops_nothing(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    before = await lab.state(spec.app_id)
    broken = changed(spec, lab.service("a", image=lab.unknown_image))
    for call in (lab.runtime.pull, lab.runtime.up):
        with pytest.raises(ImageNotFound) as caught:
            await call(broken, Progress())
        assert caught.value.code == "image_not_found"
    assert await lab.state(spec.app_id) == before


async def test_a_port_belongs_to_one_app(lab: Lab) -> None:
    port = PortSpec(container_port=80, host_port=free_port())
    first = await lab.running(lab.service("a", ports=(port,)))
    second = app_spec(lab.service("b", ports=(port,)))
    with pytest.raises(PortInUse) as caught:
        await lab.runtime.up(second, Progress())
    assert caught.value.reason == f"Port {port.host_port} is already in use"
    assert (caught.value.code, caught.value.service) == ("port_in_use", "b")
    await lab.runtime.stop(first.app_id)
    await lab.runtime.up(second, Progress())
    assert (await lab.one(second.app_id, "b")).status == "running"
    with pytest.raises(PortInUse):
        await lab.runtime.start(first.app_id)


async def test_services_may_swap_their_ports(lab: Lab) -> None:
    one, two = (PortSpec(container_port=80, host_port=free_port()) for _ in range(2))
    spec = await lab.running(lab.service("a", ports=(one,)), lab.service("b", ports=(two,)))
    await lab.runtime.up(changed(spec, lab.service("a", ports=(two,)), lab.service("b", ports=(one,))), Progress())
    assert [port.host_port for port in (await lab.state(spec.app_id)).ports] == [two.host_port, one.host_port]


async def test_free_ports(lab: Lab) -> None:
    ports = await lab.runtime.free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 < port < 32768 for port in ports)
    held = ports[0]
    await lab.running(lab.service("a", ports=(PortSpec(container_port=80, host_port=held),)))
    avoid = frozenset(range(20000, 32768)) - {held, ports[1]}
    assert await lab.runtime.free_ports(1, avoid=avoid) == [ports[1]]


async def test_up_goes_on_where_it_was_left(lab: Lab) -> None:
    spec = app_spec(lab.service("a"), lab.service("b", depends_on=(DependencySpec(service="a"),)))
    await lab.runtime.pull(spec, Progress())
    for step in ("Looking", "Creating a", "Starting a", "Creating b", "Starting b", "Started"):
        with pytest.raises(Aborted):
            await lab.runtime.up(spec, Progress(abort_at=step))
        assert await lab.runtime.get(spec.app_id) is not None or step in {"Looking", "Creating a"}
    await lab.runtime.up(spec, Progress())
    assert [one.status for one in (await lab.state(spec.app_id)).services] == ["running", "running"]


async def test_logs_are_merged_by_time_and_cut_from_the_end(lab: Lab) -> None:
    spec = await lab.running(
        lab.service("a", lines=(("stdout", "one — ünï ✓"), ("stderr", "two"))),
        lab.service("b", lines=(("stdout", "three"), ("stdout", "four"))),
    )

    async def all_lines() -> list[LogLine] | None:
        lines = [line async for line in lab.runtime.logs(spec.app_id)]
        return lines if len(lines) == 4 else None

    lines = await until(all_lines)
    assert lines is not None
    assert [(line.service, line.line) for line in lines if line.stream == "stdout"] == [
        ("a", "one — ünï ✓"),
        ("b", "three"),
        ("b", "four"),
    ]
    assert [(line.service, line.line) for line in lines if line.stream == "stderr"] == [("a", "two")]
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert abs(datetime.now(UTC) - lines[0].time) < timedelta(minutes=1)
    ordered = [line.line for line in lines]
    assert await texts(lab.runtime.logs(spec.app_id, tail=3)) == ordered[1:]
    assert await texts(lab.runtime.logs(spec.app_id, tail=None)) == ordered
    assert await texts(lab.runtime.logs(spec.app_id, tail=0)) == []
    assert await texts(lab.runtime.logs(spec.app_id, services=["b"], tail=1)) == ["four"]
    middle = lines[2].time
    assert await texts(lab.runtime.logs(spec.app_id, since=middle)) == ordered[2:]
    before = middle - timedelta(microseconds=1)
    assert await texts(lab.runtime.logs(spec.app_id, until=before)) == ordered[:2]
    assert await texts(lab.runtime.logs(spec.app_id, until=before, tail=1)) == ordered[1:2]


async def test_followed_logs_outlive_a_restart_and_end_with_the_app(lab: Lab) -> None:
    spec = await lab.running(lab.service("a", lines=(("stdout", "hello"),)))

    async def said() -> list[str]:
        return await texts(lab.runtime.logs(spec.app_id))

    assert await until(said) == ["hello"]
    stream = lab.runtime.logs(spec.app_id, follow=True)
    assert await first(stream, 1) == ["hello"]
    following = asyncio.create_task(first(stream, 1))
    await asyncio.sleep(0.3)
    await lab.runtime.stop(spec.app_id)
    await lab.runtime.start(spec.app_id)
    assert await following == ["hello"]
    ending = asyncio.create_task(first(stream, 1))
    await lab.runtime.remove(spec.app_id, keep_volumes=False)
    assert await ending == []


async def test_following_only_what_is_new(lab: Lab) -> None:
    spec = await lab.running(lab.service("a", lines=(("stdout", "hello"),)))

    async def said() -> list[str]:
        return await texts(lab.runtime.logs(spec.app_id))

    await until(said)
    async with contextlib.aclosing(lab.runtime.logs(spec.app_id, tail=0, follow=True)) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(stream)


async def test_stats_tell_each_running_service(lab: Lab) -> None:
    once = lab.service("c", restart=RestartSpec(policy="no"))
    spec = await lab.running(lab.service("a"), lab.service("b"), once)
    await lab.kill(spec.app_id, "c")
    stats = await lab.runtime.stats(spec.app_id)
    assert [one.name for one in stats] == ["a", "b"]
    for one in stats:
        assert 0 <= one.cpu_percent < 100
        assert 0 < one.memory_bytes < one.memory_limit_bytes
        assert one.pids >= 1
        assert min(one.network_rx_bytes, one.network_tx_bytes, one.disk_read_bytes, one.disk_write_bytes) >= 0


async def test_one_look_measures_every_running_service_of_all_apps(lab: Lab) -> None:
    one = await lab.running(lab.service("a"), lab.service("b"))
    other = await lab.running(lab.service("c"))
    done = await lab.running(lab.service("d", exit_code=0, restart=RestartSpec(policy="no")))
    await until(lambda: has_ended(lab, done.app_id, "d"))
    before = {each.container_id: each for each in await lab.runtime.measure()}
    found = {(each.app_id, each.service): each for each in await lab.runtime.measure()}
    ids = {one.app_id, other.app_id, done.app_id}
    assert {key for key in found if key[0] in ids} == {
        (one.app_id, "a"),
        (one.app_id, "b"),
        (other.app_id, "c"),
    }
    for (app_id, service), each in found.items():
        if app_id in ids:
            assert each.container_id == (await lab.one(app_id, service)).container_id
            assert abs(datetime.now(UTC) - each.at) < timedelta(minutes=1)
            assert each.at >= before[each.container_id].at
            assert each.cpu_seconds >= before[each.container_id].cpu_seconds >= 0
            assert each.memory_bytes > 0
            assert each.pids >= 1


async def has_ended(lab: Lab, app_id: str, service: str) -> bool:
    return (await lab.one(app_id, service)).status == "exited"


async def test_events_tell_what_others_do(lab: Lab) -> None:
    began = datetime.now(UTC)
    spec = await lab.running(lab.service("a", healthcheck=PATIENT), lab.service("b"))
    stream = lab.runtime.events(since=began)
    seen: list[RuntimeEvent] = []

    async def read_until(action: str, service: str) -> RuntimeEvent:
        async with asyncio.timeout(15):
            async for event in stream:
                if event.app_id == spec.app_id:
                    seen.append(event)
                    if (event.action, event.service) == (action, service):
                        return event
        raise AssertionError(seen)

    async with contextlib.aclosing(stream):
        healthy = await read_until("health", "a")
        assert healthy.health == "healthy"
        await lab.kill(spec.app_id, "b")
        died = await read_until("die", "b")
        assert died.exit_code == 137
        assert abs(datetime.now(UTC) - died.at) < timedelta(minutes=1)
        await lab.vanish(spec.app_id, "a")
        await read_until("destroy", "a")
    of_b = [event.action for event in seen if event.service == "b"]
    assert of_b[:2] == ["create", "start"]
    assert of_b.index("die") > of_b.index("start")


async def printed(execution: Execution) -> dict[str, bytes]:
    """All that a command prints up to its end, by stream."""
    found = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(20):
        while (piece := await execution.read()) is not None:
            found[piece[0]] += piece[1]
    return found


async def code_of(execution: Execution) -> int:
    async def look() -> tuple[int] | None:
        code = await execution.exit_code()
        return None if code is None else (code,)

    found = await until(look)
    assert found is not None
    return found[0]


async def test_a_command_in_a_service(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    execution = await lab.runtime.execute(spec.app_id, "a", ["cat"], exec_id=new_id("exec"), tty=False)
    assert execution.container_id == (await lab.one(spec.app_id, "a")).container_id
    await execution.write(b"one\n")
    assert await execution.read() == ("stdout", b"one\n")
    assert await execution.exit_code() is None
    await execution.end_input()
    assert await printed(execution) == {"stdout": b"", "stderr": b""}
    assert await code_of(execution) == 0
    await execution.write(b"too late")
    await execution.resize(10, 10)
    await execution.close()
    for command, output, code in ((["echo", "a", "b"], b"a b\n", 0), (["false"], b"", 1)):
        execution = await lab.runtime.execute(spec.app_id, "a", command, exec_id=new_id("exec"), tty=False)
        assert (await printed(execution))["stdout"] == output
        assert await code_of(execution) == code
        await execution.close()


async def test_a_terminal_with_the_shell_that_there_is(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    execution = await lab.runtime.execute(spec.app_id, "a", None, exec_id=new_id("exec"), columns=90, rows=30)
    await execution.resize(100, 40)
    await execution.write(b"nonsense\n")
    await execution.write(b"exit 7\n")
    found = await printed(execution)
    assert b"nonsense: not found" in found["stdout"]
    assert found["stderr"] == b"", "a terminal has one stream"
    assert await code_of(execution) == 7
    await execution.close()


async def test_a_command_that_can_not_be_run(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    for app_id, service, command, code in (
        (spec.app_id, "a", ["no-such-program"], "command_not_found"),
        (spec.app_id, "b", ["true"], "service_not_running"),
        (new_id("app"), "a", ["true"], "service_not_running"),
    ):
        with pytest.raises(RuntimeFailure) as caught:
            await lab.runtime.execute(app_id, service, command, exec_id=new_id("exec"))
        assert caught.value.code == code
    await lab.runtime.stop(spec.app_id)
    with pytest.raises(RuntimeFailure) as caught:
        await lab.runtime.execute(spec.app_id, "a", ["true"], exec_id=new_id("exec"))
    assert caught.value.code == "service_not_running"


async def test_a_command_is_ended_and_no_other_one(lab: Lab) -> None:
    spec = await lab.running(lab.service("a"))
    ids = [new_id("exec") for _ in range(2)]
    first_, second = [await lab.runtime.execute(spec.app_id, "a", ["cat"], exec_id=one) for one in ids]
    await first_.close()
    await lab.runtime.end_execution(spec.app_id, ids[0])
    await lab.runtime.end_execution(spec.app_id, ids[0])
    assert await code_of(first_) > 128, "by a signal"
    assert await second.exit_code() is None
    assert (await lab.one(spec.app_id, "a")).status == "running"
    await lab.runtime.end_execution(spec.app_id, ids[1])
    await printed(second)
    assert await code_of(second) > 128
    await second.close()
    await lab.runtime.end_execution(new_id("app"), ids[1])


async def test_disks_are_measured_by_app_and_volume(lab: Lab) -> None:
    mount = (MountSpec(volume="data", target="/data"),)
    spec = await lab.running(lab.service("a", mounts=mount), volumes=("data", "spare"))
    found = next(one for one in await lab.runtime.measure_disks() if one.app_id == spec.app_id)
    assert found.volumes.keys() == {"data", "spare"}
    assert found.volumes["spare"] == 0
    assert found.containers_bytes >= 0
    await lab.runtime.remove(spec.app_id, keep_volumes=False)
    assert spec.app_id not in {one.app_id for one in await lab.runtime.measure_disks()}


async def test_a_project_is_owned_as_it_stands(lab: Lab) -> None:
    if (await lab.runtime.info()).driver == "swarm":
        with pytest.raises(RuntimeFailure) as caught:
            await lab.runtime.survey("any")
        assert caught.value.code == "unsupported"
        return
    assert await lab.runtime.survey("no-such-project") is None
    project = await lab.runtime.survey(lab.project())
    assert project is not None
    assert (project.problems, project.taken) == ({}, False)
    assert project.compose["services"].keys() == {"a", "b"}
    assert {one.status for one in project.states.values()} == {"running"}
    depends = (DependencySpec(service="a"),)
    spec = app_spec(
        ServiceSpec(name="a", image=IMAGE, command=("sleep", "100000"), stop_grace_seconds=1),
        ServiceSpec(
            name="b",
            image=IMAGE,
            command=("sleep", "100000"),
            stop_grace_seconds=1,
            depends_on=depends,
            mounts=(MountSpec(volume="data", target="/data"),),
        ),
        volumes=("data",),
    )
    assert await lab.runtime.get(spec.app_id) is None
    for _ in range(2):
        lab.runtime.own(spec.app_id, project.adoption(spec))
    state = await lab.state(spec.app_id)
    ids = {name: container_id for name, (container_id, _) in project.containers.items()}
    assert {one.name: one.container_id for one in state.services} == ids
    assert [one.name for one in state.services] == ["a", "b"]
    assert state.volumes == ("data",)
    assert state in list(await lab.runtime.find())
    await lab.runtime.up(spec, Progress())
    await lab.runtime.stop(spec.app_id)
    assert {one.status for one in (await lab.state(spec.app_id)).services} == {"exited"}
    await lab.runtime.start(spec.app_id)
    assert {one.name: one.container_id for one in (await lab.state(spec.app_id)).services} == ids
    assert {one.name for one in await lab.runtime.stats(spec.app_id)} == {"a", "b"}
    assert {one.service for one in await lab.runtime.measure() if one.app_id == spec.app_id} == {"a", "b"}
    [used] = [one for one in await lab.runtime.measure_disks() if one.app_id == spec.app_id]
    assert used.volumes.keys() == {"data"}
    began = datetime.now(UTC)
    await lab.runtime.stop(spec.app_id)
    async with asyncio.timeout(15), contextlib.aclosing(lab.runtime.events(since=began)) as stream:
        async for event in stream:
            if (event.app_id, event.service, event.action) == (spec.app_id, "a", "stop"):
                break
    # What changes is made anew as any container, over the same volume.
    other = changed(spec, spec.services[0], msgspec.structs.replace(spec.services[1], environment={"X": "1"}))
    await lab.runtime.up(other, Progress())
    after = {one.name: one.container_id for one in (await lab.state(spec.app_id)).services}
    assert (after["a"], after["b"] == ids["b"]) == (ids["a"], False)
    assert (await lab.state(spec.app_id)).volumes == ("data",)
    await lab.runtime.remove(spec.app_id, keep_volumes=False)
    assert await lab.runtime.get(spec.app_id) is None
    lab.runtime.disown(spec.app_id)
    lab.runtime.disown(spec.app_id)
    assert await lab.runtime.survey(project.name) is None or (await lab.runtime.info()).driver == "memory"
