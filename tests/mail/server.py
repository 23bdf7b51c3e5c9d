"""A real mail server for tests, in this process, on loopback, with TLS and logins as wanted and faults on command."""

import asyncio
import contextlib
import datetime as dt
import email
import email.policy
import ipaddress
import re
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

with warnings.catch_warnings():
    # It looks for a module of Python that is on its way out.
    warnings.simplefilter("ignore")
    from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

USERNAME, PASSWORD = "quazzar", "canary-of-the-mail-server"


class Received(msgspec.Struct):
    """A mail as it came in: the envelope's addresses and what stands in it."""

    sender: str
    to: list[str]
    message: EmailMessage

    @property
    def text(self) -> str:
        body = self.message.get_body(("plain",))
        assert body is not None
        return str(body.get_content())


class MailBox:
    """What was sent to it. `refuse` is its answer to recipients; while `silent` it takes mails without a word."""

    def __init__(self) -> None:
        self.mails: list[Received] = []
        self.logins: list[str] = []
        self.port = 0
        self.refuse: str | None = None
        self.silent = False
        self._arrived = asyncio.Condition()

    async def handle_RCPT(  # noqa: N802 - the library calls it so
        self, _: Any, __: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if self.refuse is not None:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - as above
        self, _: Any, __: Any, envelope: Any
    ) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(Received(envelope.mail_from, envelope.rcpt_tos, message))
        async with self._arrived:
            self._arrived.notify_all()
        if self.silent:
            await asyncio.sleep(3600)
        return "250 OK"

    async def wait_for(self, to: str, count: int = 1, *, seconds: float = 20) -> list[Received]:
        """The mails to an address, once there are `count` of them."""
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(lambda: len(self.of(to)) >= count)
        return self.of(to)

    def of(self, to: str) -> list[Received]:
        return [mail for mail in self.mails if mail.to == [to]]


class Certificates(msgspec.Struct):
    authority: Path
    server: ssl.SSLContext


def certificates(folder: Path) -> Certificates:
    """An authority, and a server context with a certificate of it for 127.0.0.1."""
    now = dt.datetime.now(dt.UTC)

    def issue(name: str, key: Any, issuer: str, signing: Any, *extensions: tuple[Any, bool]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(signing, hashes.SHA256())

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = issue(
        "Tests", authority_key, "Tests", authority_key, (x509.BasicConstraints(ca=True, path_length=0), True)
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = issue("mail", key, "Tests", authority_key, (names, False))
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    return Certificates(folder / "authority.pem", context)


def authenticate(box: MailBox) -> Any:
    def judge(_: Any, __: Any, ___: Any, mechanism: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        good = (given.login, given.password) == (USERNAME.encode(), PASSWORD.encode())
        box.logins.append(given.login.decode())
        return AuthResult(success=good, handled=False)

    return judge


@contextlib.asynccontextmanager
async def mail_server(
    box: MailBox,
    *,
    tls: Literal["none", "starttls", "tls"] = "none",
    given: Certificates | None = None,
    port: int = 0,
    bound: socket.socket | None = None,
) -> AsyncIterator[None]:
    """Serves `box`, at its port of before where `port` says so, or where `bound` has held one. With TLS it asks for the
    login.
    """
    options: dict[str, Any] = {"hostname": "mail.test", "enable_SMTPUTF8": True}
    context = given.server if given is not None else None
    if tls != "none":
        options |= {"authenticator": authenticate(box), "auth_required": True}
    if tls == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    elif tls == "tls":
        options |= {"auth_require_tls": False}
    loop = asyncio.get_running_loop()
    protocols: list[SMTP] = []

    def made() -> SMTP:
        with warnings.catch_warnings():
            # It does not know that with implicit TLS all of the connection is encrypted.
            warnings.simplefilter("ignore")
            protocols.append(SMTP(box, loop=loop, **options))
        return protocols[-1]

    where: dict[str, Any] = {"host": "127.0.0.1", "port": port} if bound is None else {"sock": bound}
    server = await loop.create_server(made, **where, ssl=context if tls == "tls" else None)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        for protocol in protocols:
            if protocol.transport is not None:
                protocol.transport.close()
            if (handler := getattr(protocol, "_handler_coroutine", None)) is not None:
                handler.cancel()
                await asyncio.gather(handler, return_exceptions=True)


@contextlib.contextmanager
def trusting(authority: Path) -> Iterator[None]:
    """This process trusts the authority as it would one of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        yield


def link_in(mail: Received) -> str:
    """The one link of a mail."""
    (found,) = re.findall(r"https?://\S+", mail.text)
    return str(found)
