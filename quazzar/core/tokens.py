"""What callers carry: signed tokens of several classes, opaque tokens, and API keys with a checksum."""

import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal, NoReturn

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from quazzar.core.crypto import Keyring
from quazzar.core.errors import Unauthorized
from quazzar.core.ids import new_id

LEEWAY_SECONDS: Final = 30
_MAX_TOKEN_BYTES: Final = 4096


class TokenClass(msgspec.Struct, frozen=True):
    """One kind of signed token. Each has a key, a `typ`, an issuer and an audience of its own and one algorithm only,
    so that none is ever taken for another (RFC 8725, sections 3.1, 3.9, 3.11, 3.12).
    """

    name: str
    algorithm: Literal["HS256", "EdDSA"]
    typ: str
    issuer: str
    audience: str


INSTANCE_ACCESS: Final = TokenClass("instance-access", "HS256", "at+jwt", "quazzar:instance", "quazzar:instance")
PANEL_ACCESS: Final = TokenClass("panel-access", "EdDSA", "at+jwt", "quazzar:panel", "quazzar:panel")
INSTANCE_STEP: Final = TokenClass("instance-step", "HS256", "mfa+jwt", "quazzar:instance", "quazzar:instance:mfa")
PANEL_STEP: Final = TokenClass("panel-step", "HS256", "mfa+jwt", "quazzar:panel", "quazzar:panel:mfa")


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says; times in Unix seconds. `sid` is the session, `tid` the tenant on the panel."""

    sub: str
    sid: str
    jti: str
    exp: int
    tid: str | None = None


_HEADER: Final = frozenset({"alg", "kid", "typ"})
_REQUIRED: Final = ["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"]
_JWT: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class Tokens:
    """Signs with the current key and verifies with any key of the ring (after a rotation, the former ones too)."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._signing_key = lru_cache(32)(self._load_signing_key)
        self._verifying_key = lru_cache(32)(self._load_verifying_key)

    def sign(
        self, kind: TokenClass, *, subject: str, session_id: str, seconds: int, tenant_id: str | None = None
    ) -> str:
        """A token that is good for `seconds` from now."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": kind.issuer,
            "aud": kind.audience,
            "sub": subject,
            "sid": session_id,
            "jti": new_id("jti"),
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
        }
        if tenant_id is not None:
            claims["tid"] = tenant_id
        key_id = self._keyring.current
        return jwt.encode(
            claims, self._signing_key(kind, key_id), kind.algorithm, headers={"kid": key_id, "typ": kind.typ}
        )

    def verify(self, kind: TokenClass, token: bytes) -> Claims:
        """The claims of a token of just this kind.

        Raises `Unauthorized`: `token_expired` when nothing else is wrong with it, else `unauthorized`.
        """
        if len(token) > _MAX_TOKEN_BYTES or _JWT.fullmatch(token) is None:
            _refuse()
        try:
            header = jwt.get_unverified_header(token)
            # A closed list: `crit`, `jku`, `jwk`, `x5u` and whatever comes next are not asked what they mean.
            if header.keys() != _HEADER or header["typ"] != kind.typ or header["alg"] != kind.algorithm:
                _refuse()
            if header["kid"] not in self._keyring.key_ids:
                _refuse()
            claims = jwt.decode(
                token,
                self._verifying_key(kind, header["kid"]),
                algorithms=[kind.algorithm],
                audience=kind.audience,
                issuer=kind.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": _REQUIRED, "strict_aud": True},
            )
            return msgspec.convert(claims, Claims, strict=True)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("The token has expired", code="token_expired") from None
        except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError):
            _refuse()

    def _load_signing_key(self, kind: TokenClass, key_id: str) -> bytes | Ed25519PrivateKey:
        secret = self._keyring.derive(f"jwt/{kind.name}", key_id)
        return secret if kind.algorithm == "HS256" else Ed25519PrivateKey.from_private_bytes(secret)

    def _load_verifying_key(self, kind: TokenClass, key_id: str) -> bytes | Ed25519PublicKey:
        key = self._signing_key(kind, key_id)
        return key if isinstance(key, bytes) else key.public_key()


def _refuse() -> NoReturn:
    raise Unauthorized("The token is not valid") from None


# --- opaque tokens ---

_OPAQUE: Final = re.compile(r"qz[a-z]{1,3}_[A-Za-z0-9_-]{43}")


def new_opaque(prefix: str) -> str:
    """`prefix`, `_` and 32 random bytes in base64url."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def opaque_digest(prefix: str, token: str) -> bytes | None:
    """What is stored of an opaque token (SHA-256 is enough for 256 random bits); None when it has not the form."""
    if _OPAQUE.fullmatch(token) is None or not token.startswith(f"{prefix}_"):
        return None
    return hashlib.sha256(token.encode()).digest()


# --- API keys ---

API_KEY_PREFIX: Final[Mapping[str, str]] = {"instance": "qzr", "panel": "qzp"}
"""How the keys of each realm begin, so that none is ever asked for in the other."""

API_KEY_PATTERN: Final = r"^qzr_[0-9A-Za-z]{42}$"
PANEL_KEY_PATTERN: Final = r"^qzp_[0-9A-Za-z]{42}$"
"""For secret scanners. The last six characters are the CRC-32 of the 36 before them, in base 62."""

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_API_KEY: Final = re.compile(rb"([a-z]{3})_([0-9A-Za-z]{36})([0-9A-Za-z]{6})")


def _checksum(text: bytes) -> bytes:
    number = zlib.crc32(text)
    letters = []
    for _ in range(6):
        number, digit = divmod(number, 62)
        letters.append(_BASE62[digit])
    return "".join(reversed(letters)).encode()


def new_api_key(prefix: str = "qzr") -> str:
    """`prefix`, `_`, 36 random base-62 characters (214 bits) and their checksum."""
    random = "".join(secrets.choice(_BASE62) for _ in range(36))
    return f"{prefix}_{random}{_checksum(random.encode()).decode()}"


def api_key_digest(key: bytes, prefix: str = "qzr") -> bytes | None:
    """What is stored of an API key; None when its form or checksum is wrong, so that no database need be asked."""
    match = _API_KEY.fullmatch(key)
    if match is None or match[1] != prefix.encode() or _checksum(match[2]) != match[3]:
        return None
    return hashlib.sha256(key).digest()
