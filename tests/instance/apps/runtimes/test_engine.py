"""The pure parts of the Engine API: lines, numbers, names and refusals, against recorded and made-up answers."""

import itertools
from collections.abc import AsyncGenerator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.apps.images import Image
from quazzar.instance.apps.runtimes import DockerConfig, MemoryConfig, RuntimeConfig, make_runtime
from quazzar.instance.apps.runtimes.base import LINE_LIMIT_BYTES, RuntimeFailure, RuntimeUnavailable, service_digest
from quazzar.instance.apps.runtimes.engine.failures import failure
from quazzar.instance.apps.runtimes.engine.images import _Layers
from quazzar.instance.apps.runtimes.engine.logs import Line, LineReader, Memory, merged
from quazzar.instance.apps.runtimes.engine.objects import (
    IMAGE,
    Sample,
    container_config,
    cpu_percent,
    sample,
    service_stats,
)
from quazzar.instance.apps.runtimes.engine.services import service_body
from quazzar.instance.apps.runtimes.memory import MemoryRuntime
from quazzar.instance.apps.spec import AppSpec, NetworkSpec, PortSpec, RestartSpec, ServiceSpec

SECOND = 1_790_000_000
STAMP = "2026-09-21T14:13:20"


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4) + data


def stamped(text: bytes, nanoseconds: int = 0) -> bytes:
    return f"{STAMP}.{nanoseconds:09d}Z ".encode() + text


def read(data: bytes, cuts: list[int], *, tty: bool = False) -> list[Line]:
    reader = LineReader(tty=tty)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    lines = [line for a, b in itertools.pairwise(edges) for line in reader.feed(data[a:b])]
    return lines + reader.finish()


@given(times=st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=3))
async def test_lines_are_merged_by_time_though_a_container_s_streams_overtake_each_other(
    times: list[list[int]],
) -> None:
    async def told(key: int, base: list[int]) -> AsyncGenerator[Line, None]:
        for at, jitter in enumerate(base):
            # As an engine writes it down: a line comes after another of at most a few lines later.
            yield Line(at * 10 + jitter, "stdout", f"{key}-{at}")

    sources = [(str(key), told(key, base)) for key, base in enumerate(times)]
    found = [line async for _, line in merged(sources)]
    assert [line.at for line in found] == sorted(line.at for line in found)
    assert len(found) == sum(map(len, times))


@given(
    lines=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    cuts=st.lists(st.integers(min_value=0), max_size=10),
)
def test_lines_are_the_same_however_the_bytes_arrive(lines: list[tuple[int, bytes]], cuts: list[int]) -> None:
    clean = [(stream, text.replace(b"\n", b"")) for stream, text in lines]
    data = b"".join(frame(stream, stamped(text + b"\n", index)) for index, (stream, text) in enumerate(clean))
    assert read(data, cuts) == [
        Line(
            SECOND * 10**9 + index,
            "stdout" if stream == 1 else "stderr",
            text.removesuffix(b"\r").decode(errors="replace"),
        )
        for index, (stream, text) in enumerate(clean)
    ]


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(data: bytes, tty: bool) -> None:
    read(data, [7, 30], tty=tty)


def test_the_pieces_of_a_long_line_are_put_together() -> None:
    data = frame(1, stamped(b"a" * 16384, 1)) + frame(2, stamped(b"err\n", 2)) + frame(1, stamped(b"b\n", 3))
    assert read(data, []) == [
        Line(SECOND * 10**9 + 2, "stderr", "err"),
        Line(SECOND * 10**9 + 1, "stdout", "a" * 16384 + "b"),
    ]
    endless = b"".join(frame(1, stamped(b"x" * 16384, at)) for at in range(100))
    lines = read(endless, [])
    assert {len(line.text) for line in lines} == {LINE_LIMIT_BYTES}


def test_a_terminal_has_one_stream_without_frames() -> None:
    data = stamped(b"one\r\n", 1) + stamped(b"two\r\n", 2) + stamped(b"open", 3)
    for cuts in ([], [5], [40, 41, 42]):
        assert [(line.stream, line.text) for line in read(data, cuts, tty=True)] == [
            ("stdout", "one"),
            ("stdout", "two"),
            ("stdout", "open"),
        ]


def test_times_of_any_precision() -> None:
    for text, expected in (("", 0), (".5", 500_000_000), (".000000001", 1)):
        data = frame(1, f"{STAMP}{text}Z hello\n".encode())
        assert read(data, []) == [Line(SECOND * 10**9 + expected, "stdout", "hello")]
    assert read(frame(1, b"no time at all\n"), [])[0].text == "no time at all"


def test_a_log_taken_up_again_repeats_nothing() -> None:
    memory = Memory()
    lines = [Line(SECOND * 10**9 + at * 10_000_000, "stdout", f"{at % 3}") for at in range(10)]
    for line in lines:
        memory.note(line)
    start = memory.take_up()
    assert start == lines[-1].at - 50_000_000
    offered = [line for line in lines if line.at >= start]
    assert not any(memory.is_news(line) for line in offered)
    twin = lines[-1]._replace(text="late twin")
    assert memory.is_news(twin)
    assert memory.is_news(lines[-1]), "printed twice in one instant is two lines"


V2 = {
    "read": "2026-09-21T14:13:21.5Z",
    "cpu_stats": {"cpu_usage": {"total_usage": 3_000_000_000}, "system_cpu_usage": 1, "online_cpus": 2},
    "memory_stats": {"usage": 50_000_000, "limit": 100_000_000, "stats": {"inactive_file": 20_000_000, "file": 1}},
    "pids_stats": {"current": 7, "limit": 512},
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 254, "minor": 0, "op": "read", "value": 100},
            {"major": 254, "minor": 0, "op": "write", "value": 30},
            {"major": 254, "minor": 16, "op": "read", "value": 11},
        ],
        "io_serviced_recursive": None,
    },
    "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 6}, "eth1": {"rx_bytes": 50, "tx_bytes": 60}},
}
V1 = V2 | {
    "memory_stats": {
        "usage": 50_000_000,
        "max_usage": 60_000_000,
        "limit": 100_000_000,
        "stats": {"total_inactive_file": 20_000_000, "inactive_file": 1, "cache": 2},
    },
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 254, "minor": 0, "op": "Read", "value": 111},
            {"major": 254, "minor": 0, "op": "Write", "value": 30},
            {"major": 254, "minor": 0, "op": "Total", "value": 141},
        ]
    },
}


@pytest.mark.parametrize("stats", [V1, V2], ids=["cgroup-v1", "cgroup-v2"])
def test_numbers_of_both_cgroup_versions(stats: dict[str, object]) -> None:
    found = service_stats("web", stats, cpu=1.5)
    assert (found.name, found.cpu_percent, found.pids) == ("web", 1.5, 7)
    assert (found.memory_bytes, found.memory_limit_bytes) == (30_000_000, 100_000_000)
    assert (found.network_rx_bytes, found.network_tx_bytes) == (55, 66)
    assert (found.disk_read_bytes, found.disk_write_bytes) == (111, 30)


@pytest.mark.parametrize(
    "stats",
    [
        {},
        {"blkio_stats": {"io_service_bytes_recursive": None}, "networks": None, "memory_stats": {}},
        {"blkio_stats": {}, "pids_stats": {}, "cpu_stats": {"cpu_usage": {}}},
    ],
)
def test_missing_numbers_are_zero(stats: dict[str, object]) -> None:
    found = service_stats("web", stats, cpu=0)
    assert msgspec.to_builtins(found) == {"name": "web"} | {
        name: 0 for name in found.__struct_fields__ if name != "name"
    }
    assert sample(stats).used == 0


def test_cpu_is_in_percent_of_one_core() -> None:
    before = Sample(at=0, used=0)
    assert cpu_percent(before, Sample(at=2_000_000_000, used=3_000_000_000)) == 150.0
    assert cpu_percent(before, Sample(at=0, used=5)) == 0
    assert cpu_percent(Sample(at=0, used=9), Sample(at=1, used=5)) == 0, "started anew in between"


@pytest.mark.parametrize(
    ("name", "registry", "repository", "reference"),
    [
        ("nginx", "docker.io", "nginx", "latest"),
        ("gitea/gitea:1.22.3", "docker.io", "gitea/gitea", "1.22.3"),
        ("ghcr.io/a/b/c:v1", "ghcr.io", "ghcr.io/a/b/c", "v1"),
        ("localhost/x", "localhost", "localhost/x", "latest"),
        ("127.0.0.1:5000/x:1", "127.0.0.1:5000", "127.0.0.1:5000/x", "1"),
        ("[::1]:5000/x", "[::1]:5000", "[::1]:5000/x", "latest"),
        ("Registry.Example.com/x", "registry.example.com", "Registry.Example.com/x", "latest"),
        ("index.docker.io/library/x:2", "docker.io", "index.docker.io/library/x", "2"),
        ("x:1@sha256:" + "0" * 64, "docker.io", "x", "sha256:" + "0" * 64),
    ],
)
def test_names_of_images(name: str, registry: str, repository: str, reference: str) -> None:
    assert Image.parse(name) == Image(registry, repository, reference)


@pytest.mark.parametrize(
    "name", ["", "A", "a//b", "a:", "a/../b", "a?x", "a#x", "-a", "a b", "a\n", "http://a/b", "Team/app", "a@sha256:1"]
)
def test_what_is_not_the_name_of_an_image(name: str) -> None:
    assert Image.parse(name) is None


OCI = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "


@pytest.mark.parametrize(
    ("status", "message", "code", "reason"),
    [
        (
            500,
            "driver failed programming external connectivity on endpoint p-web-1 (" + "ab" * 32 + "): "
            "Bind for 0.0.0.0:8080 failed: port is already allocated",
            "port_in_use",
            "Port 8080 is already in use",
        ),
        (
            500,
            (
                "driver failed programming external connectivity on endpoint x (00): Error starting userland proxy: "
                "listen tcp4 0.0.0.0:443: bind: address already in use"
            ),
            "port_in_use",
            "Port 443 is already in use",
        ),
        (500, "failed to bind host port for [::]:53:172.17.0.2:53/udp", "port_in_use", "Port 53 is already in use"),
        (404, "No such image: nginx:1", "image_not_found", None),
        (
            404,
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "image_not_found",
            None,
        ),
        (0, "toomanyrequests: You have reached your pull rate limit.", "registry_rate_limited", None),
        (0, "no matching manifest for linux/arm64/v8 in the manifest list entries", "image_wrong_platform", None),
        (500, "write /var/lib/docker/tmp/x: no space left on device", "disk_full", None),
        (
            500,
            "could not find an available, non-overlapping IPv4 address pool among the defaults to assign",
            "network_pool_exhausted",
            None,
        ),
        (
            400,
            OCI + 'exec: "serve": executable file not found in $PATH: unknown',
            "command_not_found",
            "The image has not the program “serve”",
        ),
        (
            400,
            OCI + 'exec: "/usr/bin/secret": stat /usr/bin/secret: no such file or directory: unknown',
            "command_not_found",
            "The image has not the program that it should run",
        ),
        (500, OCI + "error setting rlimits for ready process: operation not permitted", "ulimit_refused", None),
        (
            400,
            "Minimum memory limit allowed is 6MB.",
            "invalid_configuration",
            "The container engine refused: Minimum memory limit allowed is 6MB",
        ),
        (500, "open /var/lib/docker/containers/x: too many open files", "runtime_failed", None),
        (500, "error at /var/lib/docker", "runtime_failed", "The container engine refused"),
        (500, "", "runtime_failed", "The container engine refused"),
    ],
)
def test_refusals_become_sentences(status: int, message: str, code: str, reason: str | None) -> None:
    found = failure(status, message, "web")
    assert isinstance(found, RuntimeFailure)
    assert (found.code, found.service) == (code, "web")
    assert reason is None or found.reason == reason
    assert "/var" not in found.reason
    assert len(found.reason) < 250


def test_an_engine_without_its_containerd_is_not_there() -> None:
    message = 'connection error: desc = "transport: dial unix /run/containerd/containerd.sock: connect: refused"'
    assert isinstance(failure(500, message), RuntimeUnavailable)


def test_progress_of_a_pull_never_goes_back() -> None:
    layers = _Layers()
    seen = []
    for message in (
        {"status": "Pulling from team/app", "id": "1"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "a"},
        {"status": "Downloading", "progressDetail": {"current": 50, "total": 100}, "id": "a"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "b"},
        {"status": "Download complete", "progressDetail": {}, "id": "a"},
        {"status": "Downloading", "progressDetail": {"current": 50}, "id": "b"},
        {"status": "Extracting", "progressDetail": {"current": 1, "total": 2}, "id": "a"},
        {"status": "Pull complete", "progressDetail": {}, "id": "a"},
        {"status": "Already exists", "progressDetail": {}, "id": "b"},
        {"status": "Digest: sha256:0"},
    ):
        layers.note(message)
        seen.append(layers.progress())
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1)
    assert 0.3 < seen[2] < 0.5


def test_the_digest_of_a_service_changes_with_what_makes_its_container() -> None:
    def digest(service: ServiceSpec, **fields: object) -> str:
        values = {"app_id": "app_1", "project": "p", "services": (service,)} | fields
        return service_digest(AppSpec(**values), service)  # type: ignore[arg-type]

    web = ServiceSpec(name="web", image="nginx:1", environment={"B": "2", "A": "1"})
    same = ServiceSpec(
        name="web", image="nginx:1", environment={"A": "1", "B": "2"}, restart=RestartSpec(policy="unless-stopped")
    )
    decoded = msgspec.json.decode(msgspec.json.encode(web), type=ServiceSpec)
    assert digest(web) == digest(same) == digest(decoded)
    assert digest(web) == digest(web, volumes=("data",), services=(web, ServiceSpec(name="x", image="y")))
    others = {
        digest(msgspec.structs.replace(web, image="nginx:2")),
        digest(msgspec.structs.replace(web, environment={"A": "1"})),
        digest(msgspec.structs.replace(web, restart=RestartSpec(policy="no"))),
        digest(web, networks=(NetworkSpec(name="default", internal=True),)),
        digest(web, project="q"),
        digest(web),
    }
    assert len(others) == 6


def test_what_a_service_leaves_open_is_left_to_the_engine() -> None:
    ports = (PortSpec(container_port=80, host_port=8080), PortSpec(container_port=81, host_port=81, host_ip="0.0.0.0"))
    service = ServiceSpec(name="web", image="x", entrypoint=(), ports=ports)
    config = container_config(service, container_labels={}, volumes=[])
    # One empty string instead would take the image's command away too, and there would be nothing to run.
    assert (config["Entrypoint"], "Cmd" in config) == ([], False)
    # Without an address the engine publishes by IPv6 too.
    assert config["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "81/tcp": [{"HostIp": "0.0.0.0", "HostPort": "81"}],
    }


@pytest.mark.parametrize(("command", "arguments"), [(None, ["serve"]), ((), []), (("run",), ["run"])])
def test_a_swarm_is_told_the_command_of_an_image_whose_entrypoint_is_taken_away(
    command: tuple[str, ...] | None, arguments: list[str]
) -> None:
    """One empty string, which is how a swarm hears of no entrypoint, takes the image's command away too."""
    service = ServiceSpec(name="web", image="x", entrypoint=(), command=command)
    body = service_body(
        AppSpec(app_id="app_x", project="p", services=(service,)),
        service,
        labels={IMAGE: "x"},
        image={"Id": "sha256:1", "Config": {"Entrypoint": ["/init"], "Cmd": ["serve"]}},
        image_digest="",
        mounts=(),
        secrets=(),
        node="n",
        node_cpus=2.0,
        no_new_privileges=False,
        runs_once=False,
    )
    container = body["TaskTemplate"]["ContainerSpec"]
    assert (container["Command"], container["Args"]) == ([""], arguments)


def test_the_config_says_which_driver() -> None:
    assert isinstance(make_runtime(MemoryConfig()), MemoryRuntime)
    decoded = msgspec.convert({"driver": "docker", "host": "unix:///x.sock"}, RuntimeConfig)
    assert decoded == DockerConfig(host="unix:///x.sock")
    assert msgspec.convert({"driver": "memory"}, RuntimeConfig) == MemoryConfig()
