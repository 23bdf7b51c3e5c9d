"""Reaching a panel before there is a line to it: the CA by its fingerprint first, then the token over that CA's TLS."""

import contextlib
import hashlib
import http.client
import ssl
from typing import Any

import msgspec
from websockets.exceptions import InvalidProxy
from websockets.headers import build_authorization_basic
from websockets.proxy import get_proxy, parse_proxy
from websockets.uri import WebSocketURI

from quazzar.instance.enrolment.errors import PanelNotTrusted, PanelRefused, PanelUnreachable
from quazzar.link.messages import Enrol, Enrolled
from quazzar.link.tokens import RegistrationToken

KEY_FILE = "panel-link.key"
"""Where the instance keeps its key, in the data folder."""

_SECONDS = 15.0
_MOST_BYTES = 64 * 1024


def places(link: Any) -> list[tuple[str, int]]:
    """Host and port of every listener of the panel that is known: the one that the token named, and those that it told
    of later.
    """
    told = (address.rpartition(":") for address in link.addresses)
    found = [(link.host, link.port), *((host.strip("[]"), int(port)) for host, _, port in told)]
    return list(dict.fromkeys(found))


def trusting(ca_pem: str) -> ssl.SSLContext:
    """TLS that believes this CA alone. The CA signs nobody but its panel's listeners as servers, so no name is asked
    for: an address may change, and a line may lead through a forwarder.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca_pem)
    return context


def fetch_ca(token: RegistrationToken) -> str:
    """The panel's CA certificate, if it is the one that the token names. Nothing is sent but the question, since
    anyone may sit at the other end. Blocks. Raises `PanelUnreachable`, `PanelNotTrusted`.
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    status, body = _call(token, blind, "GET", "/agent/ca")
    try:
        pem = body.decode("ascii")
        matches = status == 200 and hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest() == token.fingerprint
    except ValueError:
        matches = False
    if not matches:
        raise PanelNotTrusted
    return pem


def send_enrolment(token: RegistrationToken, ca_pem: str, data: Enrol) -> Enrolled:
    """Blocks. Raises `PanelRefused` with the panel's reason, `PanelUnreachable`, `PanelNotTrusted`."""
    status, body = _call(token, trusting(ca_pem), "POST", "/agent/enroll", msgspec.json.encode(data))
    try:
        if status == 201:
            return msgspec.json.decode(body, type=Enrolled)
        answer: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        reason = str(answer["error"])[:300]
    except (msgspec.DecodeError, KeyError):
        raise PanelUnreachable("The panel's answer can't be read") from None
    raise PanelRefused(f"The panel refused: {reason}")


def is_local(host: str) -> bool:
    """Whether no proxy can be between this machine and that host."""
    return host in ("127.0.0.1", "::1", "localhost")


def _connection(token: RegistrationToken, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    """By the proxy of the environment, if there is one, as the line goes later. Raises `PanelUnreachable`."""
    place = WebSocketURI(secure=True, host=token.host, port=token.port, path="/", query="")
    proxy = None if is_local(token.host) else get_proxy(place)
    if proxy is None:
        return http.client.HTTPSConnection(token.host, token.port, context=context, timeout=_SECONDS)
    try:
        via = parse_proxy(proxy)
    except InvalidProxy:
        via = None
    if via is None or via.scheme != "http":
        raise PanelUnreachable("The proxy that the environment names can't be used: its address must be http://…")
    headers = {} if via.user_info is None else {"Proxy-Authorization": build_authorization_basic(*via.user_info)}
    connection = http.client.HTTPSConnection(via.host, via.port, context=context, timeout=_SECONDS)
    connection.set_tunnel(token.host, token.port, headers)
    return connection


def _call(
    token: RegistrationToken, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    try:
        with contextlib.closing(_connection(token, context)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)
    except ssl.SSLCertVerificationError:
        raise PanelNotTrusted from None
    except (OSError, http.client.HTTPException, ValueError):
        raise PanelUnreachable(f"Nothing that speaks like a panel answers at {token.host}:{token.port}") from None
