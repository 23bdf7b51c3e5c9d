"""The panel's CA: one for all processes, sealed at rest, and strict about what it signs."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import text

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database
from quazzar.panel.fleet import authority
from quazzar.panel.fleet.errors import RequestRefused


def request_for(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    # What a request asks for beyond its key is not given.
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM).decode()


async def make(database: Database, keyring: Keyring) -> authority.Authority:
    async with database.begin() as session:
        return await authority.ensure_authority(session, keyring)


async def test_of_many_that_begin_at_once_all_get_the_same(database: Database, keyring: Keyring) -> None:
    made = await asyncio.gather(*(make(database, keyring) for _ in range(8)))
    assert len({one.fingerprint for one in made}) == 1
    assert len({one.signing_public_key for one in made}) == 1


async def test_its_keys_are_sealed_and_sealed_anew(database: Database, keyring: Keyring) -> None:
    before = await make(database, keyring)
    rotated = keyring.rotated()
    try:
        async with database.begin() as session:
            assert await authority.reseal(session, rotated) == 2
            sealed = (await session.execute(text("SELECT sealed_key FROM panel_authority"))).scalar_one()
        assert b"PRIVATE KEY" not in sealed
        with pytest.raises(SealBroken):
            await make(database, keyring)
        after = await make(database, rotated)
        assert after.fingerprint == before.fingerprint
        assert after.signing_public_key == before.signing_public_key
    finally:
        async with database.begin() as session:
            await session.execute(text("DELETE FROM panel_authority"))


def test_a_certificate_says_what_we_know_and_nothing_that_was_asked_for() -> None:
    ca = authority.new_authority()
    key = ec.generate_private_key(ec.SECP256R1())
    request = authority.read_request(request_for(key, "inst_of_somebody_else"))
    issued = ca.issue_client(request, instance_id="inst_me", tenant_id="ten_mine")
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.pem.encode()))
    identity = authority.identity_of(issued.certificate)
    assert identity is not None
    assert (identity.instance_id, identity.tenant_id) == ("inst_me", "ten_mine")
    assert identity.public_key_hash == authority.key_hash(request)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    left = issued.expires_at - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    # For a server whose clock is a day behind all of them count already.
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert certificate.not_valid_before_utc < yesterday
    assert x509.load_pem_x509_certificate(ca.pem.encode()).not_valid_before_utc < yesterday
    server = ca.issue_server(["127.0.0.1", "panel.example.com"])
    listener = server[server.index("-----BEGIN CERTIFICATE") :]
    assert authority.identity_of(listener) is None
    assert x509.load_pem_x509_certificate(listener.encode()).not_valid_before_utc < yesterday


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "x",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 5000,
        request_for(rsa.generate_private_key(65537, 2048), "x"),
        request_for(ed25519.Ed25519PrivateKey.generate(), "x"),
        request_for(ec.generate_private_key(ec.SECP384R1()), "x"),
    ],
)
def test_other_requests_are_refused(pem: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        authority.read_request(pem)
    assert set(refused.value.details) == {"csr"}


def test_a_request_that_was_changed_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = bytearray(
        x509.load_pem_x509_csr(request_for(key, "x" * 20).encode()).public_bytes(serialization.Encoding.DER)
    )
    place = der.index(b"x" * 20)
    der[place] = ord("y")
    changed = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(RequestRefused):
        authority.read_request(changed)
