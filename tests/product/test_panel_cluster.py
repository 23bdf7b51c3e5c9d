"""Three processes of one panel behind Caddy: what one knows all know, and what one holds another can take over."""

import contextlib
import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from quazzar.link.tokens import parse_token
from tests.core.servers import redis_server
from tests.product.panels import Database, caddy, database, migrate, new_key
from tests.product.process import PASSWORD, Product, free_port, product
from tests.product.test_link import Machine, closed_with, hello, until

pytestmark = [pytest.mark.slow, pytest.mark.component("redis"), pytest.mark.component("caddy")]

LIMIT = 400
"""Requests of a tenant in a day, counted over all processes."""


class Cluster:
    """`one`, `two` and `three` are asked directly, `web` through Caddy."""

    def __init__(self, shared: Database, key: str, panels: list[Product], web: httpx.Client) -> None:
        self.shared = shared
        self.key = key
        self.panels = panels
        self.one, self.two, self.three = panels
        self.web = web

    def kill(self, *panels: Product) -> None:
        """They are gone, as with their machines: nothing of theirs has to be tidied up."""
        for panel in panels:
            panel.kill()
            panel.process = None

    def tenant(self) -> tuple[str, dict[str, str]]:
        """The address of the owner of a new tenant, and the headers of a session that began at the first process."""
        email = f"{uuid.uuid4().hex}@example.com"
        body = {"email": email, "password": PASSWORD, "name": "Ada", "organization": "Engines"}
        assert self.one.http.post("/api/auth/register", json=body).status_code == 201
        return email, self.log_in(self.one, email)

    def log_in(self, panel: Product, email: str) -> dict[str, str]:
        answer = panel.http.post("/api/auth/login", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return panel.authorized(answer.json()["access_token"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        shared = stack.enter_context(database(folder / "database"))
        key = new_key()
        migrate(shared.url, key, folder / "migrating")
        ports = [free_port() for _ in range(3)]
        panels = []
        for number, port in enumerate(ports):
            environment = {
                "QUAZZAR_DATABASE_URL": shared.url,
                "QUAZZAR_AUTH_SECRET_KEY": key,
                "QUAZZAR_RATE_LIMIT_STORAGE": f"redis://127.0.0.1:{redis}/0",
                "QUAZZAR_RATE_LIMIT_PANEL": f"{LIMIT}/day",
                "QUAZZAR_SERVER_TRUSTED_PROXIES": "127.0.0.1",
                "QUAZZAR_AGENT_PORT": str(port),
                "QUAZZAR_AGENT_PUBLIC_HOST": "127.0.0.1",
                "QUAZZAR_AGENT_PUBLIC_ADDRESSES": ",".join(f"127.0.0.1:{one}" for one in ports),
                "QUAZZAR_AGENT_HEARTBEAT_SECONDS": "1",
            }
            panels.append(stack.enter_context(product(folder / f"panel-{number}", mode="panel", **environment)))
        # All at once on an empty database: they make the CA only once all the same.
        for panel in panels:
            panel.start(wait=False)
        for panel in panels:
            panel.wait_ready()
        address = stack.enter_context(caddy(folder, panels))
        yield Cluster(shared, key, panels, stack.enter_context(httpx.Client(base_url=address, timeout=30)))


@pytest.fixture(autouse=True)
def alive(cluster: Cluster) -> None:
    """Whoever was killed by the test before is back."""
    gone = [panel for panel in cluster.panels if panel.process is None]
    for panel in gone:
        panel.start(wait=False)
    for panel in gone:
        panel.wait_ready()


def test_however_many_begin_at_once_they_have_one_ca(cluster: Cluster) -> None:
    _, ada = cluster.tenant()
    tokens = []
    for panel in cluster.panels:
        answer = panel.http.post("/api/fleet/tokens", json={"name": "x"}, headers=ada)
        assert answer.status_code == 201, answer.text
        tokens.append(parse_token(answer.json()["token"]))
    assert len({token.fingerprint for token in tokens}) == 1
    # Each names its own listener: that one is there, since it answers.
    assert [str(token.port) for token in tokens] == [one.environment["QUAZZAR_AGENT_PORT"] for one in cluster.panels]


def test_a_session_counts_everywhere_and_ends_everywhere(cluster: Cluster) -> None:
    email, ada = cluster.tenant()
    for client in (cluster.one.http, cluster.two.http, cluster.three.http, cluster.web):
        assert client.get("/api/auth/me", headers=ada).json()["user"]["email"] == email
    assert cluster.two.http.post("/api/auth/logout", headers=ada).status_code == 204
    until(lambda: cluster.one.http.get("/api/auth/me", headers=ada).status_code == 401)
    until(lambda: cluster.three.http.get("/api/auth/me", headers=ada).status_code == 401)
    pair = cluster.one.http.post("/api/auth/login", json={"email": email, "password": PASSWORD}).json()
    again = cluster.three.http.post("/api/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    assert again.status_code == 200
    # The refresh token was used up at another process: presented again, it ends the session at all of them.
    assert cluster.two.http.post("/api/auth/refresh", json={"refresh_token": pair["refresh_token"]}).status_code == 401
    newest = cluster.one.authorized(again.json()["access_token"])
    until(lambda: cluster.one.http.get("/api/auth/me", headers=newest).status_code == 401)


def test_an_answer_is_kept_for_all(cluster: Cluster) -> None:
    _, ada = cluster.tenant()
    headers = ada | {"Idempotency-Key": uuid.uuid4().hex}
    first = cluster.one.http.post("/api/fleet/tokens", json={"name": "x"}, headers=headers)
    second = cluster.two.http.post("/api/fleet/tokens", json={"name": "x"}, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert len(cluster.three.http.get("/api/fleet/tokens", headers=ada).json()) == 1


def test_s36_requests_are_counted_once_over_all(cluster: Cluster) -> None:
    _, ada = cluster.tenant()

    def ask(number: int) -> int:
        client = (cluster.one.http, cluster.two.http, cluster.three.http, cluster.web)[number % 4]
        return client.get("/api/auth/me", headers=ada).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(LIMIT + 40)))
    assert {status: statuses.count(status) for status in set(statuses)} == {200: LIMIT, 429: 40}


class Feed:
    """A stream that is read beside the test; `next` gives its events."""

    def __init__(self, client: httpx.Client, headers: dict[str, str]) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._client = client
        self._headers = headers
        self._opened = threading.Event()
        self._socket: Any = None
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        assert self._opened.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever waits for the next line is woken by that.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def _read(self) -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            self._client.stream("GET", "/api/events?follow=true", headers=self._headers, timeout=60) as stream,
        ):
            assert stream.status_code == 200
            self._socket = stream.extensions["network_stream"].get_extra_info("socket")
            for line in stream.iter_lines():
                self._opened.set()
                if line.startswith("data: "):
                    self._events.put(json.loads(line.removeprefix("data: ")))

    def next(self) -> dict[str, Any]:
        return self._events.get(timeout=30)

    def nothing(self) -> bool:
        return self._events.empty()


def invite(panel: Product, headers: dict[str, str]) -> str:
    email = f"{uuid.uuid4().hex}@example.com"
    answer = panel.http.post("/api/members", json={"email": email, "role": "viewer"}, headers=headers)
    assert answer.status_code == 201, answer.text
    return email


def test_the_live_feed_crosses_processes_stays_in_its_tenant_and_resumes_at_another(cluster: Cluster) -> None:
    _, ada = cluster.tenant()
    _, eve = cluster.tenant()
    with Feed(cluster.one.http, ada) as mine, Feed(cluster.web, ada) as through, Feed(cluster.three.http, eve) as hers:
        email = invite(cluster.two, ada)
        seen, other = mine.next(), through.next()
        assert seen["type"] == "member.invited"
        assert seen["data"]["email"] == other["data"]["email"] == email
        invite(cluster.one, eve)
        assert hers.next()["data"]["email"] != email
        assert mine.nothing()
        assert hers.nothing()
    # What comes while nobody follows, from every process; then another process goes on where the first one was left.
    missed = [invite(panel, ada) for panel in (*cluster.panels, *cluster.panels)]
    invite(cluster.two, eve)
    with Feed(cluster.three.http, ada | {"Last-Event-ID": seen["id"]}) as resumed:
        missed.append(invite(cluster.one, ada))
        assert [resumed.next()["data"]["email"] for _ in missed] == missed
        assert resumed.nothing()


def test_a_line_at_one_process_is_cut_by_another(cluster: Cluster, tmp_path: Path) -> None:
    _, ada = cluster.tenant()
    machine = Machine(tmp_path / "machine", cluster.one, ada, path="/api")
    made = machine.enrol()
    with machine.dial(made.certificate) as line:
        line.send(hello(made.instance_id))
        line.recv(timeout=30)
        assert cluster.three.http.delete(f"/api/fleet/instances/{made.instance_id}", headers=ada).status_code == 204
        assert closed_with(line) == 4401


def test_a_process_with_another_key_does_not_join_them(cluster: Cluster, tmp_path: Path) -> None:
    """Rather than to serve what it can't read, and to sign what the others refuse."""
    environment = cluster.one.environment | {"QUAZZAR_AUTH_SECRET_KEY": new_key(), "QUAZZAR_AGENT_PORT": "0"}
    with product(tmp_path / "stranger", mode="panel", **environment) as stranger:
        with pytest.raises(AssertionError, match="The master key is not the one that this database was written with"):
            stranger.start()
        stranger.process = None


def test_caddy_passes_over_a_process_that_is_gone(cluster: Cluster) -> None:
    email, ada = cluster.tenant()
    cluster.kill(cluster.two)
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda _: cluster.web.get("/api/auth/me", headers=ada), range(40)))
    assert {answer.status_code for answer in asked} == {200}
    assert cluster.log_in(cluster.three, email)


class Joined:
    """A server of the fleet, by a token of the first process."""

    def __init__(self, process: Product, owner: dict[str, str]) -> None:
        self.process = process
        self.owner = owner

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.process.http.get("/api/auth/cp-status").json()
        return answer

    def listed(self, panel: Product) -> dict[str, Any]:
        (one,) = panel.http.get("/api/fleet/instances", headers=self.owner).json()
        return dict(one)

    def is_heard(self, panel: Product) -> bool:
        """Whether the process knows of a heartbeat that came just now."""
        before = self.listed(panel)["last_seen_at"]
        time.sleep(0.5)
        return bool(self.status()["connected"] and self.listed(panel)["last_seen_at"] != before)


@pytest.fixture(scope="module")
def joined(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    folder = tmp_path_factory.mktemp("instance")
    _, ada = cluster.tenant()
    made = cluster.one.http.post("/api/fleet/tokens", json={"name": "x"}, headers=ada).json()
    with product(folder / "instance", mode="instance", QUAZZAR_PANEL_TOKEN=made["token"]) as instance:
        instance.start()
        one = Joined(instance, ada)
        until(lambda: one.status()["connected"])
        yield one


def test_an_instance_finds_another_process_by_itself(cluster: Cluster, joined: Joined) -> None:
    # Whichever has held its line: with two gone, it is at the third.
    cluster.kill(cluster.one, cluster.two)
    until(lambda: joined.is_heard(cluster.three))
    until(lambda: joined.listed(cluster.three)["status"] == "online")
    cluster.one.start()
    cluster.kill(cluster.three)
    until(lambda: joined.is_heard(cluster.one))


@pytest.mark.timeout(240)
def test_an_instance_finds_a_restored_panel_by_itself(cluster: Cluster, joined: Joined, tmp_path: Path) -> None:
    """As docs/panel.md has it: a dump of the database and the master key are the whole panel."""
    until(lambda: joined.is_heard(cluster.one))
    instance_id = joined.status()["instance_id"]
    dump = tmp_path / "panel.dump"
    cluster.shared.program("pg_dump", "--format=custom", f"--file={dump}", "quazzar")
    cluster.kill(*cluster.panels)
    cluster.shared.program("createdb", "--owner=quazzar_owner", "restored")
    cluster.shared.program("pg_restore", "--dbname=restored", "--exit-on-error", str(dump))
    until(lambda: not joined.status()["connected"])
    # A new machine in the place of the old ones: an empty data folder, the restored database, the key.
    environment = cluster.one.environment | {"QUAZZAR_DATABASE_URL": cluster.shared.url_of("restored")}
    with product(tmp_path / "restored", mode="panel", **environment) as restored:
        restored.start()
        until(lambda: joined.status()["connected"])
        assert joined.status()["instance_id"] == instance_id == joined.listed(restored)["id"]
        until(lambda: joined.listed(restored)["status"] == "online")
        assert restored.http.get("/api/audit/verify", headers=joined.owner).json()["valid"] is True
