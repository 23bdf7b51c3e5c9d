"""Registration tokens: one string that tells an instance where its panel is, how to know it, and lets it in once.

`qze_` is followed by base64url of a msgpack array and six characters of checksum, so that a scanner can tell a real
one and a typing error is found before anything is dialled.
"""

import base64
import binascii
import hashlib
import re
import secrets
import zlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta

PREFIX: Final = "qze_"
TOKEN_PATTERN: Final = r"^qze_[A-Za-z0-9_-]{106,606}$"  # noqa: S105 - a pattern
"""For secret scanners. The last six characters are the CRC-32 of those between, as base64url."""
SECRET_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
_FORM: Final = re.compile(r"qze_([A-Za-z0-9_-]{100,600})([A-Za-z0-9_-]{6})")
_VERSION: Final = 1

_Exact32 = Annotated[bytes, Meta(min_length=32, max_length=32)]


class TokenProblem(ValueError):
    """The text is not a registration token; says what is wrong with it without showing it."""


class RegistrationToken(msgspec.Struct, frozen=True, array_like=True):
    """`fingerprint` is the SHA-256 of the panel's CA certificate (DER); `secret` is known to nobody else."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    fingerprint: _Exact32
    tenant_id: Annotated[str, Meta(pattern=r"^ten_[a-z2-7]{20,40}\Z")]
    secret: _Exact32
    version: int = _VERSION

    def __repr__(self) -> str:
        return f"RegistrationToken(host={self.host!r}, port={self.port})"

    @property
    def digest(self) -> bytes:
        """What the panel keeps: SHA-256 is enough for 256 random bits."""
        return hashlib.sha256(PREFIX.encode() + self.secret).digest()

    def encode(self) -> str:
        body = base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")
        return f"{PREFIX}{body}{_checksum(body)}"


def new_token(*, host: str, port: int, fingerprint: bytes, tenant_id: str) -> RegistrationToken:
    """A token with a fresh secret."""
    return RegistrationToken(host, port, fingerprint, tenant_id, secrets.token_bytes(SECRET_BYTES))


def parse_token(text: str) -> RegistrationToken:
    """Raises `TokenProblem` for anything that `encode` of this or a later release can't have given."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise TokenProblem("A registration token begins with qze_ and is one unbroken line")
    if _checksum(match[1]) != match[2]:
        raise TokenProblem("The registration token is not complete, or was mistyped")
    try:
        plain = base64.b64decode(match[1] + "=" * (-len(match[1]) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(plain, type=RegistrationToken)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise TokenProblem("The registration token can't be read by this release") from None


def _checksum(body: str) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(body.encode()).to_bytes(4, "big")).decode().rstrip("=")
