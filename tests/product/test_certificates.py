"""Who gets a line by which certificate, over real TLS: its time, use, key and renewal; many at one token, odd lines."""

import asyncio
import contextlib
import ssl
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from quazzar.core.ids import new_id
from quazzar.instance.enrolment import dialling
from quazzar.instance.enrolment.dialling import send_enrolment, trusting
from quazzar.instance.enrolment.errors import PanelNotTrusted
from quazzar.instance.enrolment.keys import renewal_at, signing_request
from quazzar.link.messages import (
    CLOSE_MALFORMED,
    CLOSE_PROTOCOL,
    CLOSE_REFUSED,
    PROTOCOL,
    Certificate,
    Enrol,
    Enrolled,
    Heartbeat,
    Hello,
    LinkProblem,
    Renew,
    Welcome,
    pack,
    unpack_from_instance,
    unpack_from_panel,
)
from quazzar.link.tokens import RegistrationToken, parse_token
from quazzar.panel.fleet import authority as authorities
from quazzar.panel.fleet import hub
from quazzar.panel.fleet.authority import Authority, private_pem, read_request
from tests.factories.facts import server_facts
from tests.factories.halves import Halves
from tests.link.test_versions import FROM_INSTANCE

Key = ec.EllipticCurvePrivateKey

REFUSALS = (ssl.SSLError, OSError, InvalidMessage, ConnectionClosed)
"""In TLS 1.3 who is refused learns of it at its next write, at its next read, or as the end of the line."""


class Server:
    """Another server of the fleet, which speaks for itself."""

    def __init__(self, halves: Halves, folder: Path, tenant_id: str, instance_id: str, key: Key) -> None:
        self.halves = halves
        self.tenant_id = tenant_id
        self.instance_id = instance_id
        self.key = key
        self._folder = folder

    async def issued(self, *, key: Key | None = None, tenant_id: str | None = None) -> str:
        """A certificate for it of the panel's own CA; for another key or tenant where given."""
        authority = await self.halves.fleet.authority()
        request = read_request(signing_request(key or self.key))
        names = {"instance_id": self.instance_id, "tenant_id": tenant_id or self.tenant_id}
        return authority.issue_client(request, **names).certificate

    async def dial(self, certificate: str, *, key: Key | None = None) -> Any:
        context = trusting((await self.halves.fleet.authority()).pem)
        file = self._folder / f"{uuid.uuid4().hex}.pem"
        file.write_text(private_pem(key or self.key) + certificate)
        context.load_cert_chain(file)
        url = f"wss://127.0.0.1:{self.halves.fleet.port}/agent/connect"
        return connect(url, ssl=context, compression=None, proxy=None)

    async def greet(self, line: ClientConnection, *, protocol: int = PROTOCOL, **more: Any) -> Any:
        hello = Hello(
            instance_id=self.instance_id, protocol=protocol, version="9.9.9", sent_at=datetime.now(UTC), state_hash=""
        )
        await line.send(msgspec.msgpack.encode(msgspec.to_builtins(hello, builtin_types=(datetime,)) | more))
        return await heard(line)


async def heard(line: ClientConnection) -> Any:
    """What the panel says next, or the code that it ends the line with."""
    try:
        return unpack_from_panel(await asyncio.wait_for(line.recv(), 30))
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


async def new_token(halves: Halves, **body: Any) -> str:
    answer = await halves.http.post("/panel/api/fleet/tokens", json={"name": "x"} | body, headers=halves.owner)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def ask_to_join(written: str, ca: str, key: Key) -> tuple[int, dict[str, Any]]:
    """Blocks. As often as the panel is too busy."""
    token = parse_token(written)
    body = msgspec.json.encode(Enrol(token=written, csr=signing_request(key), facts=server_facts()))
    while True:
        status, answer = dialling._call(token, trusting(ca), "POST", "/agent/enroll", body)
        if status != 503:
            found: dict[str, Any] = msgspec.json.decode(answer)
            return status, found


async def join(halves: Halves, folder: Path, written: str) -> Server:
    key = ec.generate_private_key(ec.SECP256R1())
    authority = await halves.fleet.authority()
    status, answer = await asyncio.to_thread(ask_to_join, written, authority.pem, key)
    assert status == 201, answer
    made = msgspec.convert(answer, Enrolled)
    return Server(halves, folder, parse_token(written).tenant_id, made.instance_id, key)


@pytest.fixture
async def server(halves: Halves, tmp_path: Path) -> Server:
    return await join(halves, tmp_path, await new_token(halves))


async def test_its_own_opens_a_line(server: Server) -> None:
    async with await server.dial(await server.issued()) as line:
        assert isinstance(await server.greet(line), Welcome)


def expired(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(authorities, "CLIENT_DAYS", -1)


def not_yet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(authorities, "_BACK", -timedelta(days=2))


@pytest.mark.parametrize("time", [expired, not_yet])
async def test_a_certificate_counts_in_its_time(
    time: Callable[[pytest.MonkeyPatch], None], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        time(patch)
        certificate = await server.issued()
    with pytest.raises(REFUSALS):
        async with await server.dial(certificate):
            pass


async def test_a_certificate_of_a_listener_is_none_of_an_instance(server: Server) -> None:
    authority: Authority = await server.halves.fleet.authority()
    pem = authority.issue_server(["127.0.0.1"])
    (key, _, certificates) = pem.partition("-----BEGIN CERTIFICATE")
    found = serialization.load_pem_private_key(key.encode(), password=None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    with pytest.raises((*REFUSALS, InvalidStatus)):
        async with await server.dial(f"-----BEGIN CERTIFICATE{certificates}", key=found):
            pass


async def test_s27_an_instance_can_not_pass_for_its_panel(server: Server, tmp_path: Path) -> None:
    """A certificate of the right CA and of the wrong role: nothing is said to who shows it."""
    heard_of: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard_of.append(await reader.read())

    file = tmp_path / "instance.pem"
    file.write_text(private_pem(server.key) + await server.issued())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    authority = await server.halves.fleet.authority()
    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as liar:
        port = liar.sockets[0].getsockname()[1]
        token = RegistrationToken("127.0.0.1", port, authority.fingerprint, server.tenant_id, bytes(32))
        data = Enrol(token=token.encode(), csr=signing_request(server.key), facts=server_facts())
        with pytest.raises(PanelNotTrusted):
            await asyncio.to_thread(send_enrolment, token, authority.pem, data)
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connect(f"wss://127.0.0.1:{port}/agent/connect", ssl=trusting(authority.pem), proxy=None):
                pass
    assert b"".join(heard_of) == b""


async def test_of_our_ca_and_yet_of_nobody(server: Server) -> None:
    """As after a machine was deleted and came back: its key is another, and the certificate before counts no more."""
    other = ec.generate_private_key(ec.SECP256R1())
    for certificate, key in (
        (await server.issued(key=other), other),
        (await server.issued(tenant_id=new_id("ten")), server.key),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with await server.dial(certificate, key=key):
                pass
        assert refused.value.response.status_code == 401


async def test_a_certificate_is_renewed_on_its_line(server: Server) -> None:
    former = await server.issued()
    async with await server.dial(former) as line:
        await server.greet(line)
        await line.send(pack(Renew(csr=signing_request(server.key))))
        answer = await heard(line)
    assert isinstance(answer, Certificate)
    assert renewal_at(answer.certificate) > datetime.now(UTC) + timedelta(days=50)
    shown = await server.halves.http.get(
        f"/panel/api/fleet/instances/{server.instance_id}", headers=server.halves.owner
    )
    left = datetime.fromisoformat(shown.json()["certificate_expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    # The answer may have been lost: the former one counts until its end.
    for certificate in (answer.certificate, former):
        async with await server.dial(certificate) as line:
            assert isinstance(await server.greet(line), Welcome)


@pytest.mark.parametrize("csr", ["", "x", "of another key"])
async def test_nothing_else_is_renewed(csr: str, server: Server) -> None:
    code = CLOSE_MALFORMED
    if csr == "of another key":
        csr, code = signing_request(ec.generate_private_key(ec.SECP256R1())), CLOSE_REFUSED
    async with await server.dial(await server.issued()) as line:
        await server.greet(line)
        await line.send(pack(Renew(csr=csr)))
        assert await heard(line) == code


async def test_one_release_apart_they_understand_each_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROTOCOL", 7)
    for protocol in (6, 7, 8):
        async with await server.dial(await server.issued()) as line:
            welcome = await server.greet(line, protocol=protocol, field_of_a_later_release={"a": [1]})
            assert isinstance(welcome, Welcome)
            assert welcome.protocol == 7
            # What only a later release knows is passed over, and the line goes on.
            await line.send(msgspec.msgpack.encode({"type": "of_a_later_release", "x": 1}))
            await line.send(pack(Heartbeat(sent_at=datetime.now(UTC), state_hash="")))
            await line.send(pack(Renew(csr=signing_request(server.key))))
            assert isinstance(await heard(line), Certificate)
    for protocol in (5, 9):
        async with await server.dial(await server.issued()) as line:
            assert await server.greet(line, protocol=protocol) == CLOSE_PROTOCOL


async def test_fifty_at_once_join_as_often_as_their_token_allows(halves: Halves) -> None:
    written = await new_token(halves, max_uses=7)
    ca = (await halves.fleet.authority()).pem
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(50)]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(50) as threads:
        answers = await asyncio.gather(*(loop.run_in_executor(threads, ask_to_join, written, ca, key) for key in keys))
    assert Counter((status, answer.get("code")) for status, answer in answers) == {
        (201, None): 7,
        (403, "token_used_up"): 43,
    }
    async with halves.app.database.begin(tenant=parse_token(written).tenant_id) as session:
        query = text("SELECT t.uses FROM fleet_tokens t JOIN fleet_instances i ON i.token_id = t.id WHERE max_uses = 7")
        assert (await session.execute(query)).scalars().all() == [7] * 7


def odd_frames() -> Iterator[Any]:
    """Each field of each message of each wrong kind, and what is no message at all."""
    yield from ("text", b"", b"\xc1", b"\x91" * 100_000, b"\xff" * 1000, b"x" * 2_000_000)
    wrong: list[Any] = [2**63, -1, float("nan"), "x" * 100_000, b"\x00", [[]], {"a": {}}, None]
    for message in FROM_INSTANCE:
        for name in message:
            for odd in wrong:
                frame = msgspec.msgpack.encode({**message, name: odd})
                if not is_message(frame):
                    yield frame


def is_message(frame: bytes) -> bool:
    try:
        unpack_from_instance(frame)
    except LinkProblem:
        return False
    return True


async def test_s28_an_odd_line_harms_no_other(halves: Halves, server: Server, tmp_path: Path) -> None:
    written = await new_token(halves, max_uses=20)
    others = [await join(halves, tmp_path, written) for _ in range(20)]
    certificate = await server.issued()
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(await other.dial(await other.issued())) for other in others]
        for other, line in zip(others, lines, strict=True):
            assert isinstance(await other.greet(line), Welcome)
        codes: Counter[int | None] = Counter()
        for frame in odd_frames():
            async with await server.dial(certificate) as line:
                await server.greet(line)
                with contextlib.suppress(ConnectionClosed):
                    await line.send(frame)
                codes[await heard(line)] += 1
        # By a code of ours, or by that of a frame that is too large; which may come too late to be read.
        assert set(codes) <= {CLOSE_MALFORMED, 1009, None}, codes
        assert codes[CLOSE_MALFORMED] > 100
        assert codes[1009] + codes[None] == 1
        for other, line in zip(others, lines, strict=True):
            await line.send(pack(Heartbeat(sent_at=datetime.now(UTC), state_hash="", measured=[1.0])))
            await line.send(pack(Renew(csr=signing_request(other.key))))
            assert isinstance(await heard(line), Certificate)
