"""A newcomer's first minutes, with real sockets: the panel sees its own server, and who is not let in."""

import contextlib
import http.client
import json
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from quazzar.core.crypto import write_private
from quazzar.instance.enrolment.dialling import fetch_ca, send_enrolment, trusting
from quazzar.instance.enrolment.errors import PanelNotTrusted, PanelRefused
from quazzar.instance.enrolment.keys import own_key, signing_request
from quazzar.link.messages import PROTOCOL, Enrol, Enrolled, Heartbeat, Hello, pack, unpack_from_panel
from quazzar.link.tokens import RegistrationToken, parse_token
from quazzar.panel.fleet.authority import new_authority, read_request
from tests.factories.facts import server_facts
from tests.product.process import PASSWORD, Product, product


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = tmp_path_factory.mktemp("link")
    with product(
        folder / "data", QUAZZAR_AGENT_HEARTBEAT_SECONDS="1", QUAZZAR_AGENT_PUBLIC_HOST="127.0.0.1"
    ) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def owner(one: Product) -> dict[str, str]:
    """Of whoever registered first at the machine itself; a stranger who came before, by a proxy, gets no server."""
    stranger = {"email": "eve@example.com", "password": PASSWORD, "name": "Eve", "organization": "Elsewhere"}
    came_by = {"X-Forwarded-For": "203.0.113.9"}
    assert one.http.post("/panel/api/auth/register", json=stranger, headers=came_by).status_code == 201
    return one.register()


class Machine:
    """Another server that joins, as a bare client."""

    def __init__(self, folder: Path, one: Product, owner: dict[str, str], *, path: str = "/panel/api") -> None:
        folder.mkdir()
        self.folder = folder
        self.key = own_key(folder)
        answer = one.http.post(f"{path}/fleet/tokens", json={"name": "x"}, headers=owner)
        assert answer.status_code == 201, answer.text
        self.text: str = answer.json()["token"]
        self.token: RegistrationToken = parse_token(self.text)
        self.ca = fetch_ca(self.token)
        self.machine_id = uuid.uuid4().hex * 2

    def enrol(self, *, key: ec.EllipticCurvePrivateKey | None = None) -> Enrolled:
        facts = server_facts("other", machine_id=self.machine_id)
        data = Enrol(token=self.text, csr=signing_request(key or self.key), facts=facts)
        return send_enrolment(self.token, self.ca, data)

    def context(self, certificate: str) -> ssl.SSLContext:
        context = trusting(self.ca)
        write_private(self.folder / "crt", certificate)
        context.load_cert_chain(self.folder / "crt", self.folder / "panel-link.key")
        return context

    def dial(self, certificate: str) -> Any:
        url = f"wss://127.0.0.1:{self.token.port}/agent/connect"
        return connect(url, ssl=self.context(certificate), compression=None, proxy=None)


@pytest.fixture
def machine(tmp_path: Path, one: Product, owner: dict[str, str]) -> Machine:
    return Machine(tmp_path / "machine", one, owner)


def hello(instance_id: str, *, ahead_seconds: float = 0, protocol: int = PROTOCOL) -> bytes:
    moment = datetime.now(UTC) + timedelta(seconds=ahead_seconds)
    return pack(Hello(instance_id=instance_id, protocol=protocol, version="0.1.0", sent_at=moment, state_hash=""))


def closed_with(line: Any) -> int | None:
    with pytest.raises(ConnectionClosed) as closed:
        line.recv(timeout=30)
    return closed.value.rcvd.code if closed.value.rcvd is not None else None


def test_the_panel_sees_its_own_server(one: Product, owner: dict[str, str]) -> None:
    def online() -> Any:
        return one.http.get("/panel/api/fleet/instances?status=online", headers=owner).json()

    (instance,) = until(online)
    assert instance["cpu_cores"] >= 1
    assert instance["last_seen_at"] is not None
    # With both halves in one process, both are found at the same place.
    assert instance["url"] == one.url
    status = one.http.get("/api/auth/cp-status").json()
    assert (status["connected"], status["instance_id"]) == (True, instance["id"])
    assert one.http.get("/panel/api/fleet/summary", headers=owner).json()["status"]["online"] == 1
    assert (one.data_dir / "panel-link.key").stat().st_mode & 0o077 == 0
    one.kill()
    one.start()
    until(lambda: one.http.get("/api/auth/cp-status").json()["connected"])
    assert len(one.http.get("/panel/api/fleet/instances", headers=owner).json()) == 1


def test_an_instance_that_falls_silent_is_offline_and_a_deleted_one_is_cut(
    one: Product, owner: dict[str, str], machine: Machine
) -> None:
    made = machine.enrol()
    path = f"/panel/api/fleet/instances/{made.instance_id}"
    with machine.dial(made.certificate) as line:
        line.send(hello(made.instance_id, ahead_seconds=86_400))
        welcome = unpack_from_panel(line.recv(timeout=30))
        assert welcome is not None
        line.send(pack(Heartbeat(sent_at=datetime.now(UTC), state_hash="", measured=[1.0])))
        # It is so for two and a half seconds; what was announced stays.
        news = f"/panel/api/events?subject={made.instance_id}&type=instance.degraded"
        (event,) = until(lambda: one.http.get(news, headers=owner).json())
        assert "clock" in event["data"]["reason"]
        until(lambda: one.http.get(path, headers=owner).json()["status"] == "offline")
        assert one.http.delete(path, headers=owner).status_code == 204
        assert closed_with(line) == 4401
    with pytest.raises(InvalidStatus) as refused, machine.dial(made.certificate):
        pass
    assert refused.value.response.status_code == 401
    assert one.http.get(path, headers=owner).json()["status"] == "revoked"


def test_one_token_lets_one_machine_in_and_a_lost_answer_burns_nothing(machine: Machine) -> None:
    first, again = machine.enrol(), machine.enrol()
    assert first.instance_id == again.instance_id
    with pytest.raises(PanelRefused, match="used as often"):
        machine.enrol(key=ec.generate_private_key(ec.SECP256R1()))
    machine.machine_id = uuid.uuid4().hex * 2
    with pytest.raises(PanelRefused, match="used as often"):
        machine.enrol()


def test_a_known_machine_needs_its_old_key(
    one: Product, owner: dict[str, str], machine: Machine, tmp_path: Path
) -> None:
    made = machine.enrol()
    thief = Machine(tmp_path / "thief", one, owner)
    thief.machine_id = machine.machine_id
    with pytest.raises(PanelRefused, match="belongs to the fleet already"):
        thief.enrol()
    with machine.dial(made.certificate) as line:
        line.send(hello(made.instance_id))
        assert unpack_from_panel(line.recv(timeout=30)) is not None


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("text", 4400),
        (b"", 4400),
        (b"\xc1", 4400),
        (b"\x91" * 100_000, 4400),
        (msgspec.msgpack.encode({"type": "hello", "instance_id": 2**63}), 4400),
        (msgspec.msgpack.encode({"type": "heartbeat", "sent_at": "never"}), 4400),
        (msgspec.msgpack.encode({"type": "of_a_later_release"}), 4403),
        (b"x" * 2_000_000, 1009),
        (hello("inst_" + "a" * 26), 4403),
        (hello("", protocol=PROTOCOL + 2), 4403),
    ],
    ids=[str(number) for number in range(10)],
)
def test_odd_frames_end_their_own_line_only(machine: Machine, frame: Any, code: int) -> None:
    made = machine.enrol()
    with machine.dial(made.certificate) as good:
        good.send(hello(made.instance_id))
        assert unpack_from_panel(good.recv(timeout=30)) is not None
    with machine.dial(made.certificate) as line:
        with contextlib.suppress(ConnectionClosed):
            line.send(frame)
        assert closed_with(line) in (code, None if code == 1009 else code)


def test_foreign_and_missing_certificates_are_refused(machine: Machine) -> None:
    made = machine.enrol()
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(
            f"wss://127.0.0.1:{machine.token.port}/agent/connect",
            ssl=trusting(machine.ca),
            compression=None,
            proxy=None,
        ),
    ):
        pass
    assert refused.value.response.status_code == 401
    # Everything in it is right but the signature: another CA has made it. In TLS 1.3 the client has finished its part
    # when the server looks, so it learns of the refusal at its next write, at its next read, or as the end of the line.
    forged = new_authority().issue_client(
        read_request(signing_request(machine.key)),
        instance_id=made.instance_id,
        tenant_id=machine.token.tenant_id,
    )
    refusals = (ssl.SSLError, OSError, InvalidMessage, ConnectionClosed)
    with pytest.raises(refusals), machine.dial(forged.certificate):
        pass


def test_a_panel_that_lies_about_its_ca_learns_no_token(machine: Machine) -> None:
    wrong = RegistrationToken(
        machine.token.host, machine.token.port, bytes(32), machine.token.tenant_id, machine.token.secret
    )
    with pytest.raises(PanelNotTrusted):
        fetch_ca(wrong)
    # One that shows the right CA and has not its key: the token is not sent.
    with pytest.raises(PanelNotTrusted):
        send_enrolment(machine.token, new_authority().pem, Enrol(token="x", csr="x", facts=server_facts()))


def test_the_listener_serves_nothing_else(machine: Machine) -> None:
    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPSConnection("127.0.0.1", machine.token.port, context=trusting(machine.ca))
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return answer.status, found

    assert ask("GET", "/api/health")[1]["code"] == "not_found"
    assert ask("GET", "/agent/enroll")[0] == 405
    status, answer = ask("POST", "/agent/enroll", b"{}")
    assert (status, set(answer["details"])) == (422, {"token", "csr", "facts"})
    with socket.create_connection(("127.0.0.1", machine.token.port)) as plain:
        plain.settimeout(30)
        plain.sendall(b"GET /agent/ca HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(100)
