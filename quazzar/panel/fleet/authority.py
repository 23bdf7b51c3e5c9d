"""The panel's own certificate authority: instances prove by it who they are, and know their panel by it."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.crypto import Keyring
from quazzar.link.impersonation import Impersonation, sign_impersonation
from quazzar.link.messages import Order
from quazzar.link.orders import OrderBody, sign_order
from quazzar.panel.fleet.errors import RequestRefused
from quazzar.panel.fleet.models import PanelAuthority

CLIENT_DAYS: Final = 90
SERVER_DAYS: Final = 90
_AUTHORITY_DAYS: Final = 20 * 365
_BACK: Final = timedelta(days=2)
"""Certificates count from a little before they are made: clocks of servers may be a day behind."""
_CONTEXT: Final = "panel_authority.key"
_SIGNING_CONTEXT: Final = "panel_authority.signing_key"
_MOST_CSR_BYTES: Final = 4096


class Identity(msgspec.Struct, frozen=True):
    """Whom a client certificate of ours names; `public_key_hash` is the SHA-256 of its key (DER)."""

    instance_id: str
    tenant_id: str
    serial: str
    public_key_hash: bytes


class Issued(msgspec.Struct, frozen=True):
    certificate: str
    serial: str
    expires_at: datetime


class Authority:
    """The CA with its keys opened. Curve P-256 and SHA-256: every TLS stack takes them."""

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, signer: Ed25519PrivateKey
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._signer = signer
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.fingerprint = certificate.fingerprint(hashes.SHA256())
        self.signing_public_key = signer.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Ed25519, as instances check it with the key that they were given at enrolment."""
        return self._signer.sign(message)

    def sign_impersonation(self, claims: Impersonation) -> str:
        """A token by which a panel's user opens a session on the instance that the claims name."""
        return sign_impersonation(claims, self._signer)

    def sign_order(self, body: OrderBody) -> Order:
        return sign_order(body, self._signer)

    def issue_client(self, request: x509.CertificateSigningRequest, *, instance_id: str, tenant_id: str) -> Issued:
        """A certificate by which the holder of the request's key is `instance_id`; nothing else of it is taken over."""
        names = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant_id),
            x509.NameAttribute(NameOID.COMMON_NAME, instance_id),
        ]
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        made = self._issue(x509.Name(names), key, ExtendedKeyUsageOID.CLIENT_AUTH, CLIENT_DAYS, ())
        return Issued(made.public_bytes(serialization.Encoding.PEM).decode(), serial_of(made), made.not_valid_after_utc)

    def issue_server(self, hosts: Sequence[str]) -> str:
        """A fresh key and certificate for a listener, and the CA's own, in one PEM text."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Quazzar panel")])
        made = self._issue(subject, key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, SERVER_DAYS, hosts)
        return private_pem(key) + made.public_bytes(serialization.Encoding.PEM).decode() + self.pem

    def _issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        days: int,
        hosts: Sequence[str],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        issuer = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACK, self._certificate.not_valid_before_utc))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), False)
        return builder.sign(self._key, hashes.SHA256())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def serial_of(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def key_hash(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize()


def identity_of(pem: str) -> Identity | None:
    """Whom a certificate names that the handshake has found to be signed by our CA; None for one of another role."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        return None
    instance = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    tenant = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(instance) != 1 or len(tenant) != 1:
        return None
    return Identity(str(instance[0].value), str(tenant[0].value), serial_of(certificate), key_hash(certificate))


def read_request(pem: str) -> x509.CertificateSigningRequest:
    """A signing request for a P-256 key, signed with that key. Raises `RequestRefused`."""
    if len(pem) > _MOST_CSR_BYTES:
        raise RequestRefused(details={"csr": "Csr is too long"})
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        good = isinstance(request.public_key(), ec.EllipticCurvePublicKey) and request.is_signature_valid
        curve = request.public_key().curve if good else None  # type: ignore[union-attr]
    except Exception:  # noqa: BLE001 - the parser has many ways to say no, and none of them is our fault
        raise RequestRefused(details={"csr": "Csr must be a certificate signing request in PEM form"}) from None
    if not isinstance(curve, ec.SECP256R1):
        raise RequestRefused(details={"csr": "Csr must be for a key on the curve P-256 and be signed with it"})
    return request


def new_authority() -> Authority:
    """A CA that nobody knows yet."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Quazzar panel CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key, Ed25519PrivateKey.generate())


_ADD = text(
    "INSERT INTO panel_authority (id, certificate, sealed_key, signing_public_key, sealed_signing_key) "
    "VALUES (1, :certificate, :key, :public, :signing) ON CONFLICT (id) DO NOTHING"
)
_SEALED = select(PanelAuthority.certificate, PanelAuthority.sealed_key, PanelAuthority.sealed_signing_key)


async def ensure_authority(session: AsyncSession, keyring: Keyring) -> Authority:
    """The panel's CA, made now if there is none; of several processes that begin at once, all get the same one.

    Raises `SealBroken` when its key was sealed with a master key that is gone.
    """
    row = (await session.execute(_SEALED)).one_or_none()
    if row is None:
        made = new_authority()
        values = {
            "certificate": made.pem,
            "key": keyring.seal(private_pem(made._key).encode(), context=_CONTEXT),  # noqa: SLF001 - its own module
            "public": made.signing_public_key,
            "signing": keyring.seal(made._signer.private_bytes_raw(), context=_SIGNING_CONTEXT),  # noqa: SLF001
        }
        # Waits for another process that is just making one; what that has committed is what all of them read.
        await session.execute(_ADD, values)
        row = (await session.execute(_SEALED)).one()
    key = serialization.load_pem_private_key(keyring.open(row.sealed_key, context=_CONTEXT), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signer = Ed25519PrivateKey.from_private_bytes(keyring.open(row.sealed_signing_key, context=_SIGNING_CONTEXT))
    return Authority(x509.load_pem_x509_certificate(row.certificate.encode()), key, signer)


async def reseal(session: AsyncSession, keyring: Keyring) -> int:
    """Seal the CA's keys anew under the ring's current key; gives how many. Raises `SealBroken`."""
    row = (await session.execute(_SEALED.with_for_update())).one_or_none()
    if row is None:
        return 0
    await session.execute(
        update(PanelAuthority).values(
            sealed_key=keyring.seal(keyring.open(row.sealed_key, context=_CONTEXT), context=_CONTEXT),
            sealed_signing_key=keyring.seal(
                keyring.open(row.sealed_signing_key, context=_SIGNING_CONTEXT), context=_SIGNING_CONTEXT
            ),
        )
    )
    return 2
