"""Real servers for tests: each is started in a folder and a network of its own and leaves nothing behind.

`component("docker")` marks a test that needs one; where it is not installed the test is skipped with the way to install
it, or fails when `QUAZZAR_REQUIRE_COMPONENTS` is set.
"""

import asyncio
import base64
import contextlib
import ctypes
import http.client
import io
import ipaddress
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode

import pytest


class Component(NamedTuple):
    programs: tuple[str, ...]
    packages: str
    as_root: bool = False


COMPONENTS = {
    "docker": Component(
        ("dockerd", "containerd", "runc", "iptables", "ip", "nsenter", "/bin/busybox"),
        "docker.io iptables iproute2 util-linux busybox-static",
        as_root=True,
    ),
    "docker-compose": Component(("docker-compose",), "(.ci/newer_engine unpacks one)"),
    "docker-registry": Component(("docker-registry",), "docker-registry"),
    "redis": Component(("redis-server",), "redis-server"),
    "caddy": Component(("caddy",), "caddy"),
}

# `QUAZZAR_COMPONENT_PATH` comes first: a folder with another version of a component than the system's.
_PATH = os.pathsep.join(
    (os.environ.get("QUAZZAR_COMPONENT_PATH", ""), os.environ.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin")
).lstrip(os.pathsep)


def program(name: str) -> str:
    """Where a program is, also in the folders that only root's path has. Raises when it is not installed."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise FileNotFoundError(name)
    return found


def require(name: str) -> None:
    """Skip the running test, by name and with the install hint, unless the component is here."""
    component = COMPONENTS[name]
    missing = [one for one in component.programs if shutil.which(one, path=_PATH) is None]
    if not missing and not (component.as_root and os.geteuid() != 0):
        return
    hint = (
        f"{name}: {', '.join(missing)} not found; apt-get install -y --no-install-recommends {component.packages}"
        if missing
        else f"{name} needs root"
    )
    if os.environ.get("QUAZZAR_REQUIRE_COMPONENTS"):
        pytest.fail(hint, pytrace=False)
    pytest.skip(hint)


def wait_for(condition: Callable[[], object], *, seconds: float = 20, what: str = "the condition") -> None:
    """Poll until `condition` is true. Raises TimeoutError naming `what`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {seconds} s for {what}")
        time.sleep(0.02)


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [program(arguments[0]), *arguments[1:]], check=True, capture_output=True, text=True, timeout=30
    )
    return done.stdout


class Namespace(NamedTuple):
    """A network namespace with one link to ours: it is reached at `address` and reaches us at `gateway`."""

    name: str
    address: str
    gateway: str

    def command(self, *arguments: str) -> list[str]:
        # Not `ip netns exec`: that mounts /sys anew, and the cgroups are gone from it.
        return [program("nsenter"), f"--net=/run/netns/{self.name}", program(arguments[0]), *arguments[1:]]


@contextlib.contextmanager
def _own_network() -> Iterator[tuple[str, str]]:
    """Two addresses that no other test on this machine has meanwhile: of a /30 of the range for benchmarks of networks
    (RFC 2544), which no machine routes.
    """
    while True:
        number = random.SystemRandom().randrange(2**15)
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                # An abstract name: of one process at a time, and gone with it.
                claim.bind(f"\0quazzar-tests-network-{number}")
            except OSError:
                continue
            base = ipaddress.ip_address("198.18.0.0") + 4 * number
            yield str(base + 1), str(base + 2)
            return


@contextlib.contextmanager
def network_namespace() -> Iterator[Namespace]:
    name = "q" + secrets.token_hex(4)[:7]
    with _own_network() as (gateway, address):
        _run("ip", "netns", "add", name)
        try:
            yield _joined(name, gateway, address)
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", name)


def _joined(name: str, gateway: str, address: str) -> Namespace:
    _run("ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", f"{name}c", "netns", name)
    _run("ip", "addr", "add", f"{gateway}/30", "dev", f"{name}h")
    _run("ip", "link", "set", f"{name}h", "up")
    _run("ip", "-n", name, "addr", "add", f"{address}/30", "dev", f"{name}c")
    _run("ip", "-n", name, "link", "set", f"{name}c", "up")
    _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", name, "route", "add", "default", "via", gateway)
    return Namespace(name, address, gateway)


@contextlib.contextmanager
def link_between(one: Namespace, other: Namespace) -> Iterator[tuple[str, str]]:
    """A cable from one namespace to the other; gives the address of each at its end."""
    name = "q" + secrets.token_hex(4)[:7]
    with _own_network() as addresses:
        ends = ((one, f"{name}a", addresses[0]), (other, f"{name}b", addresses[1]))
        pair = ("netns", one.name, "type", "veth", "peer", "name", f"{name}b", "netns", other.name)
        _run("ip", "link", "add", f"{name}a", *pair)
        for namespace, device, address in ends:
            _run("ip", "-n", namespace.name, "addr", "add", f"{address}/30", "dev", device)
            _run("ip", "-n", namespace.name, "link", "set", device, "up")
        try:
            yield addresses
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "-n", one.name, "link", "del", f"{name}a")


class EngineAnswer(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


_BREAKDOWNS = ("panic:", "fatal error:", "runtime:", "SIG", "unexpected fault")


class DockerEngine:
    """A Docker engine of one test run; its published ports are reached at `address`.

    containerd is a process of its own, so that containers outlive a killed engine, as on a real server. An engine that
    shall join a swarm can't have that: swarm mode refuses `live_restore`.
    """

    def __init__(
        self, folder: Path, namespace: Namespace, options: Sequence[str] = (), *, live_restore: bool = True
    ) -> None:
        self.folder = folder
        self.options = options
        self.namespace = namespace
        self._live_restore = live_restore
        self.address = namespace.address
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self._cgroup = f"/quazzar-{namespace.name}"
        self._containerd: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start what does not run and wait until the engine answers."""
        if self._containerd is None:
            config = self.folder / "containerd.toml"
            config.write_text(
                f'version = 2\nroot = "{self.folder}/c"\nstate = "{self.folder}/s"\n'
                'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs"]\n'
                f'[grpc]\naddress = "{self._containerd_socket}"\n'
            )
            self._containerd = self._spawn("containerd", [program("containerd"), "--config", str(config)])
            wait_for(self._containerd_socket.exists, what="containerd")
        for stale in (self.folder / "docker.pid", self.socket):
            stale.unlink(missing_ok=True)
        dockerd = self.namespace.command(
            "dockerd",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/docker.pid",
            f"--host={self.host}",
            f"--containerd={self._containerd_socket}",
            f"--cgroup-parent={self._cgroup}",
            *(["--live-restore"] if self._live_restore else []),
            "--shutdown-timeout=1",
            *self.options,
        )
        self._dockerd = self._spawn("dockerd", dockerd)
        wait_for(self._answers, seconds=40, what="dockerd")

    def kill(self) -> None:
        """The engine dies at once; its containers run on."""
        assert self._dockerd is not None
        self._dockerd.kill()
        self._dockerd.wait()
        self._dockerd = None

    def end(self) -> None:
        """The engine is stopped in order, as for an upgrade of it; its containers end too unless they live on."""
        assert self._dockerd is not None
        self._dockerd.terminate()
        self._dockerd.wait()
        self._dockerd = None

    def freeze(self) -> None:
        """The engine takes connections but answers nothing any more."""
        assert self._dockerd is not None
        self._dockerd.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._dockerd is not None
        self._dockerd.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        if self._dockerd is not None:
            self.kill()
        self.start()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> EngineAnswer:
        """One call of the Engine API behind the driver's back; `body` is bytes or something for JSON."""
        if words := self.last_words():
            raise RuntimeError(words)
        connection = _UnixConnection(str(self.socket), timeout)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
            connection.request(
                method,
                path + ("?" + urlencode(params) if params else ""),
                body=content,
                headers={"Content-Type": kind, **(headers or {})},
            )
            answer = connection.getresponse()
            return EngineAnswer(answer.status, answer.read())

    def ok(self, method: str, path: str, **options: Any) -> Any:
        """`request`, decoded; raises when the engine refuses."""
        answer = self.request(method, path, **options)
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body.decode(errors='replace')}")
        return answer.json() if answer.body[:1] in {b"{", b"["} and b"\n{" not in answer.body else answer.body

    def import_busybox(self, tag: str, *, changes: Sequence[str] = (), files: Mapping[str, bytes] | None = None) -> str:
        """Make the image `tag` of nothing but busybox; `changes` are lines of a Dockerfile. Gives its id."""
        repository, _, version = tag.rpartition(":") if ":" in tag.rpartition("/")[2] else (tag, "", "latest")
        query = [("fromSrc", "-"), ("repo", repository), ("tag", version), *(("changes", one) for one in changes)]
        answer = self.request("POST", "/images/create?" + urlencode(query), body=busybox_root(files or {}))
        if answer.status >= 400 or b'"error"' in answer.body:
            raise RuntimeError(answer.body.decode(errors="replace"))
        return str(self.ok("GET", f"/images/{quote(tag, safe=':/')}/json")["Id"])

    def init_swarm(self, address: str | None = None) -> None:
        """Make this engine the first manager of a swarm, at an address of its own, else at that in our network."""
        at = address or self.address
        self.ok("POST", "/v1.41/swarm/init", body={"ListenAddr": f"{at}:2377", "AdvertiseAddr": at})

    def join_swarm(self, address: str, manager: "DockerEngine", at: str) -> None:
        """Make this engine, at its `address`, a worker of the swarm whose manager listens `at`."""
        token = manager.ok("GET", "/v1.41/swarm")["JoinTokens"]["Worker"]
        where = {"ListenAddr": f"{address}:2377", "AdvertiseAddr": address, "RemoteAddrs": [f"{at}:2377"]}
        self.ok("POST", "/v1.41/swarm/join", body={**where, "JoinToken": token})

    def push(self, image: str, target: str, *, username: str = "", password: str = "") -> None:
        """Push a present image as `target` (host:port/name:tag)."""
        repository, _, tag = target.rpartition(":")
        self.ok("POST", f"/images/{image}/tag", params={"repo": repository, "tag": tag})
        login = {"username": username, "password": password}
        headers = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(login).encode()).decode()}
        answer = self.request("POST", f"/images/{repository}/push", params={"tag": tag}, headers=headers)
        if answer.status >= 400 or b'"error"' in answer.body:
            raise RuntimeError(answer.body.decode(errors="replace"))

    def publish(self, target: str, *, username: str = "", password: str = "", size: int = 200_000) -> None:
        """Put a fresh image of busybox and `size` bytes that can't be squeezed into a registry, and forget it here."""
        made = f"quazzar-test/fresh:{secrets.token_hex(8)}"
        self.import_busybox(made, changes=["CMD sleep 100000"], files={"data/noise": secrets.token_bytes(size)})
        self.push(made, target, username=username, password=password)
        self.remove_image(target)
        self.remove_image(made)

    def remove_image(self, name: str) -> None:
        self.ok("DELETE", f"/images/{name}", params={"force": "1"})

    def log(self) -> str:
        """What the engine itself wrote, for a test that has to be understood."""
        return (self.folder / "dockerd.log").read_text(errors="replace")

    def last_words(self) -> str | None:
        """Why an engine or its containerd is gone that nobody here has ended: the end of its log, else None."""
        for name, process in (("dockerd", self._dockerd), ("containerd", self._containerd)):
            if process is not None and process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
                # A Go program that breaks down says why first, and then what each of its many routines did.
                broken = next((at for at, line in enumerate(log) if line.startswith(_BREAKDOWNS)), len(log))
                lines = [*log[max(0, broken - 40) : broken + 60], "…", *log[-20:]]
                return f"{name} ended by itself with {process.returncode}:\n" + "\n".join(lines)
        return None

    def stop(self) -> None:
        """End everything: engine, containers, their keepers, mounts and cgroups."""
        if self._dockerd is not None:
            self._dockerd.send_signal(signal.SIGCONT)
            self._dockerd.kill()
            self._dockerd.wait()
        for group in self._cgroups():
            for process in group.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    for line in process.read_text().split():
                        os.kill(int(line), signal.SIGKILL)
        for pid in self._keepers():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self._containerd is not None:
            self._containerd.kill()
            self._containerd.wait()
        _unmount_below(self.folder)
        for group in self._cgroups():
            for folder in sorted((one for one in group.rglob("*") if one.is_dir()), reverse=True):
                _remove_cgroup(folder)
            _remove_cgroup(group)

    @property
    def _containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": _PATH, "TMPDIR": str(self.folder)},
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self._dockerd is not None
        if self._dockerd.poll() is not None:
            raise RuntimeError(f"dockerd ended:\n{self.log()[-2000:]}")
        try:
            return self.request("GET", "/_ping", timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _cgroups(self) -> list[Path]:
        root = Path("/sys/fs/cgroup")
        return [one for one in root.glob(f"*{self._cgroup}") if one.is_dir()] + [
            one for one in [root / self._cgroup.lstrip("/")] if one.is_dir()
        ]

    def _keepers(self) -> list[int]:
        """The shims of our containerd: they name its socket on their command line."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (process / "cmdline").read_bytes()
                    if b"containerd-shim" in command and str(self._containerd_socket).encode() in command:
                        found.append(int(process.name))
        return found


@contextlib.contextmanager
def docker_engine(
    tmp_path: Path, *options: str, live_restore: bool = True, disk_bytes: int | None = None
) -> Iterator[DockerEngine]:
    """A running engine in a network namespace of its own; everything of it is gone at the end.

    Its folder lies outside of `tmp_path`, whose name is too long for a socket; the engine's log is put there. With
    `disk_bytes` its images and volumes lie on a file system of their own of that size.
    """
    require("docker")
    folder = Path(tempfile.mkdtemp(prefix="qz-"))
    try:
        with network_namespace() as namespace:
            engine = DockerEngine(folder, namespace, options, live_restore=live_restore)
            if disk_bytes is not None:
                _mount_disk(folder, disk_bytes)
            try:
                engine.start()
                yield engine
            finally:
                words = engine.last_words()
                engine.stop()
            if words is not None:
                pytest.fail(words, pytrace=False)
    finally:
        tmp_path.mkdir(parents=True, exist_ok=True)
        for log in folder.glob("*.log"):
            shutil.copy(log, tmp_path / log.name)
        shutil.rmtree(folder, ignore_errors=True)


class Registry(NamedTuple):
    """`name` is how the engine calls it: on its loopback, where an engine accepts plain HTTP."""

    name: str
    config: Path = Path()


@contextlib.contextmanager
def same_registry(engine: DockerEngine, behind: Registry) -> Iterator[None]:
    """The images of a registry beside another engine too, under the same name."""
    command = engine.namespace.command("docker-registry", "serve", str(behind.config))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(process.pid, int(behind.name.rpartition(":")[2])), what="docker-registry")
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def registry(tmp_path: Path, engine: DockerEngine, *, users: Mapping[str, str] | None = None) -> Iterator[Registry]:
    """An image registry beside the engine. With `users` (name → bcrypt hash) it asks for a login."""
    require("docker-registry")
    port = random.SystemRandom().randrange(5000, 15000)
    folder = tmp_path / f"registry-{port}"
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if users:
        passwords = folder / "passwords"
        passwords.write_text("".join(f"{name}:{hashed}\n" for name, hashed in users.items()))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
    (folder / "config.yml").write_text(json.dumps(config))
    command = engine.namespace.command("docker-registry", "serve", str(folder / "config.yml"))
    with (folder / "registry.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: _listens(process.pid, port), what="docker-registry")
        yield Registry(f"127.0.0.1:{port}", folder / "config.yml")
    finally:
        process.kill()
        process.wait()


class Line(ABC):
    """A server in a thread of its own, between somebody and what is behind it."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(20)

    @abstractmethod
    async def _listen(self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> asyncio.Server:
        """The server that gives every connection to `accept`."""

    @abstractmethod
    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""

    def _work(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._pass_on(reader, writer)
            finally:
                running.discard(task)
                writer.close()

        server = await self._listen(accept)
        self._ready.set()
        await self._ending.wait()
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class FaultyLine(Line):
    """A line to a registry, in the engine's network namespace, that tests break; `name` is what images carry.

    `fault` may change at any time: None lets everything through; `silence` takes connections and says nothing; `page`
    answers with `PAGE`, as a server that is no registry does, and `busy` with 429, as one that wants fewer questions;
    `stall` and `drop` fall silent or hang up in the middle of a layer; `slow` lets a megabyte through in a second.
    `layers` counts the layers that were asked for.
    """

    PAGE = "internal page: canary-of-an-inner-server"
    HEAD_BYTES = 20_000
    """What still comes through of a broken layer."""

    def __init__(self, namespace: Namespace, behind: Registry) -> None:
        super().__init__()
        self.name = ""
        self.fault: Literal["silence", "page", "busy", "stall", "drop", "slow"] | None = None
        self.layers = 0
        self._namespace = namespace
        self._behind = int(behind.name.rpartition(":")[2])

    def _work(self) -> None:
        # A thread of its own can be in another network than the rest of the process; its sockets are there.
        with Path(f"/run/netns/{self._namespace.name}").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        super()._work()

    async def _listen(self, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> asyncio.Server:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (first := await reader.readexactly(1)) == b"\x16":
            return  # TLS, which an engine tries first; this is plain HTTP
        head = first + await reader.readuntil(b"\r\n\r\n")
        # One request for each connection, so that each is seen.
        head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        is_layer = head.startswith(b"GET ") and b"/blobs/" in head.partition(b"\r\n")[0]
        self.layers += is_layer
        if self.fault == "silence":
            await reader.read()
            return
        if self.fault == "page":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.PAGE)}\r\n\r\n{self.PAGE}".encode())
            await writer.drain()
            return
        if self.fault == "busy":
            body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "canary-of-a-busy-registry"}]}'
            fields = f"Content-Type: application/json\r\nRetry-After: 3600\r\nContent-Length: {len(body)}"
            writer.write(f"HTTP/1.1 429 Too Many Requests\r\n{fields}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            outer.write(head)
            passed = 0
            while data := await inner.read(4096):
                passed += len(data)
                if is_layer and passed > self.HEAD_BYTES and self.fault == "drop":
                    writer.transport.abort()
                    return
                if is_layer and passed > self.HEAD_BYTES and self.fault == "stall":
                    await reader.read()
                    return
                if is_layer and self.fault == "slow":
                    await asyncio.sleep(len(data) / 1_000_000)
                writer.write(data)
                await writer.drain()
        finally:
            outer.close()


@contextlib.contextmanager
def faulty_line(engine: DockerEngine, behind: Registry) -> Iterator[FaultyLine]:
    line = FaultyLine(engine.namespace, behind)
    line.start()
    try:
        yield line
    finally:
        line.stop()


def _listens(pid: int, port: int) -> bool:
    """Whether something listens on a TCP port in the network namespace of a process."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def busybox_root(files: Mapping[str, bytes]) -> bytes:
    """A tar of a root file system: busybox with its commands, the usual folders, and `files`."""
    busybox = Path("/bin/busybox")
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("data", 0o755), ("root", 0o700)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
        for path, content, mode in (
            ("bin/busybox", busybox.read_bytes(), 0o755),
            ("etc/passwd", files.get("/etc/passwd", passwd), 0o644),
            ("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644),
            *((path.lstrip("/"), content, 0o755) for path, content in files.items() if path != "/etc/passwd"),
        ):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name in names:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return buffer.getvalue()


def _mount_disk(folder: Path, size_bytes: int) -> None:
    disk = folder / "disk.ext4"
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    (folder / "data").mkdir()
    _run("mkfs.ext4", "-q", "-m", "0", str(disk))
    _run("mount", "-o", "loop", str(disk), str(folder / "data"))


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((one for one in mounts if one.startswith(f"{folder}/")), reverse=True):
        subprocess.run([program("umount"), "-l", mount], check=False, capture_output=True)


def _remove_cgroup(folder: Path) -> None:
    end = time.monotonic() + 3
    while folder.exists() and time.monotonic() < end:
        try:
            folder.rmdir()
        except OSError:  # its processes are still ending
            time.sleep(0.02)
