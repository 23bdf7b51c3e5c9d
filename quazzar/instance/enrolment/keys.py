"""The instance's key, and what its certificate says. Loaded once the line is dialled: what a server that is in no panel
does not need should not take its memory.
"""

import contextlib
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from quazzar.core.crypto import read_private, write_private
from quazzar.instance.enrolment.dialling import KEY_FILE


def renewal_at(certificate_pem: str) -> datetime:
    """When two thirds of a certificate's life are over."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + life * 2 / 3


def opens_lines(certificate_pem: str, ca_pem: str, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether this CA has issued the certificate for this key: with another one no line could be opened any more."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return certificate.public_key() == key.public_key()


def tenant_of(certificate_pem: str) -> str:
    """The tenant of the panel that a certificate of this server names; empty where it names none."""
    names = x509.load_pem_x509_certificate(certificate_pem.encode()).subject
    return next((str(name.value) for name in names.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)), "")


def own_key(data_dir: Path) -> ec.EllipticCurvePrivateKey:
    """The instance's key, made at the first use, in a file of mode 0600 that is kept when a panel is left: with it the
    machine is known again.
    """
    path = data_dir / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return _load(read_private(path))
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with contextlib.suppress(FileExistsError):
        write_private(path, pem.decode(), exclusive=True)
    return _load(read_private(path))


def _load(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def signing_request(key: ec.EllipticCurvePrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Quazzar instance")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()
