"""The agent listener: what instances dial, with mutual TLS once they have a certificate."""

import ssl
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from quazzar.core.auth import Principal, Realm
from quazzar.core.errors import MethodNotAllowed, NotFound, Unauthorized
from quazzar.core.exchange import App, Receive, Scope, Send
from quazzar.core.gate import BodyRule, Gate, GateConfig
from quazzar.core.ratelimit import RateLimiter, parse_bucket
from quazzar.core.schema import decode_body
from quazzar.link.messages import Enrol, Enrolled
from quazzar.panel.fleet.authority import Identity, identity_of
from quazzar.panel.fleet.enrolment import enrol, tenant_of
from quazzar.panel.fleet.process import Fleet

_METHODS = {"/agent/ca": "GET", "/agent/enroll": "POST"}
_ENROL_BYTES = 32 * 1024


class _NoBearer:
    """Instances have certificates; a bearer token counts for nothing here."""

    def cached(self, realm: Realm, authorization: bytes, address: str) -> Principal | None:
        del realm, authorization, address
        return None

    async def resolve(self, realm: Realm, authorization: bytes, address: str) -> NoReturn:
        del realm, authorization, address
        raise Unauthorized


def agent_app(fleet: Fleet, limiter: RateLimiter) -> App:
    """The ASGI app of the listener, behind a gate of its own."""
    config = GateConfig(
        mode="panel",
        # Many instances may share one address; what is scarce here is guesses at tokens.
        limits={"panel": parse_bucket("agent", "100000/minute")},
        strict={("panel", "/agent/enroll"): parse_bucket("enroll", fleet.settings.rate_limit.auth)},
        allowed_hosts=("*",),
        bodies={("panel", "/agent/enroll"): BodyRule(limit=_ENROL_BYTES)},
    )
    return Gate(_AgentApp(fleet), config, _NoBearer(), limiter)


class _AgentApp:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._connect(scope, receive, send)
            return
        path = scope["path"]
        method = _METHODS.get(path)
        if method is None:
            raise NotFound
        if scope["method"] != method:
            raise MethodNotAllowed(headers={"Allow": method})
        if path == "/agent/ca":
            authority = await self._fleet.authority()
            await _answer(send, 200, authority.pem.encode(), b"application/x-pem-file")
        else:
            data = decode_body((await receive()).get("body", b""), Enrol)
            made = await self._enrol(data, scope["state"].get("address"))
            await _answer(send, 201, msgspec.json.encode(made), b"application/json")

    async def _enrol(self, data: Enrol, address: str | None) -> Enrolled:
        fleet = self._fleet
        authority = await fleet.authority()
        tenant_id = tenant_of(data)
        async with fleet.database.begin(tenant=tenant_id) as session:
            instance_id, issued = await enrol(session, tenant_id, authority, data, address=address)
        return Enrolled(
            instance_id=instance_id,
            certificate=issued.certificate,
            panel_url=fleet.panel_url(),
            heartbeat_seconds=fleet.settings.agent.heartbeat_seconds,
            signing_key=authority.signing_public_key,
        )

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/agent/connect":
            raise NotFound
        identity = presented(scope)
        # Before the upgrade: who is not let in gets an answer and no socket.
        await self._fleet.hub.check(identity)
        await receive()
        await send({"type": "websocket.accept"})
        authority = await self._fleet.authority()
        await self._fleet.hub.hold(identity, authority, receive, send, scope["state"].get("address"))


def presented(scope: Scope) -> Identity:
    """Whom the caller's certificate names. Raises `Unauthorized` without one of ours."""
    chain = (scope.get("extensions") or {}).get("tls", {}).get("client_cert_chain")
    identity = identity_of(chain[0]) if chain else None
    if identity is None:
        raise Unauthorized("A client certificate of this panel is needed")
    return identity


async def _answer(send: Send, status: int, body: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def server_tls(fleet: Fleet, data_dir: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer with a fresh certificate of our CA. Client certificates are asked for, and one that our CA has
    not signed ends the handshake; only joining works without one.
    """
    authority = await fleet.authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=authority.pem)
    context.num_tickets = 0
    load_server_certificate(context, authority.issue_server([(await fleet.address()).host]), data_dir)
    return context


def load_server_certificate(context: ssl.SSLContext, pem: str, data_dir: Path) -> None:
    """`ssl` reads keys from files only: this one is there for a moment, with mode 0600."""
    with tempfile.NamedTemporaryFile("w", dir=data_dir, prefix=".agent-tls-") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)


async def renew_tls(fleet: Fleet, context: ssl.SSLContext, data_dir: Path) -> Any:
    """A new certificate for connections from now on; called once a day, long before the old one ends."""
    authority = await fleet.authority()
    load_server_certificate(context, authority.issue_server([(await fleet.address()).host]), data_dir)
