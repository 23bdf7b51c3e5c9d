"""Impersonation tokens: by one, once and within a minute, a user of the panel opens a session on the instance named.

They are signed with the key that signs orders, which every instance has pinned at its enrolment. Neither is ever taken
for the other: what is signed of a token begins with base64url text (RFC 7515, section 5.1), what is signed of an order
with `quazzar order 1` and a NUL, which no base64url text has.
"""

import re
import time
from datetime import datetime
from typing import Annotated, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

SECONDS: Final = 60
"""How long a token is good; the session that it opens lasts longer."""
AHEAD_SECONDS: Final = 30
"""How far the panel's clock may be ahead."""
MOST_TOKEN: Final = 4096
MOST_REASON: Final = 300
_ALGORITHM: Final = "EdDSA"
_TYPE: Final = "imp+jwt"
_ISSUER: Final = "quazzar:panel"
_HEADER: Final = {"alg": _ALGORITHM, "typ": _TYPE}
_REQUIRED: Final = ["iss", "aud", "sub", "act", "tid", "jti", "iat", "nbf", "exp", "reason"]
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+\Z")]
_Line = Annotated[str, Meta(max_length=MOST_REASON, pattern=r"^[^\x00-\x1f\x7f\x80-\x9f\u2028\u2029]*\Z")]


class TokenRefused(ValueError):
    """Not a token of this panel for this instance, or not any more; the text says nothing of it."""


class TokenOver(TokenRefused):
    """It would be one, but its minute has passed."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """The panel's user."""

    sub: _Id
    name: _Line


class Impersonation(msgspec.Struct, frozen=True, kw_only=True):
    """The claims (RFC 7519; `act` as in RFC 8693): `aud` is the instance, `tid` the tenant, `jti` the impersonation."""

    aud: _Id
    sub: _Id
    act: Actor
    tid: _Id
    jti: _Id
    iat: int
    nbf: int
    exp: int
    reason: _Line
    iss: str = _ISSUER


def new_impersonation(
    *, impersonation_id: str, instance_id: str, tenant_id: str, user_id: str, name: str, reason: str
) -> Impersonation:
    """Good from now on."""
    now = int(time.time())
    return Impersonation(
        aud=instance_id,
        sub=user_id,
        act=Actor(sub=user_id, name=name),
        tid=tenant_id,
        jti=impersonation_id,
        iat=now,
        nbf=now,
        exp=now + SECONDS,
        reason=reason,
    )


def sign_impersonation(claims: Impersonation, key: Ed25519PrivateKey) -> str:
    # In UTF-8: `jwt.encode` would write twelve characters for one that is no ASCII, beyond what fits into an address.
    return jwt.PyJWS().encode(msgspec.json.encode(claims), key, _ALGORITHM, headers=_HEADER)


def open_impersonation(token: str, key: bytes, *, instance_id: str, now: datetime) -> Impersonation:
    """What a panel with this raw Ed25519 public key has signed for this instance less than a minute ago; its tenant,
    and whether it was used before, are for the caller to look at. `now` is the time by the panel's clock, as far as
    that is known. Raises `TokenRefused`, `TokenOver`.
    """
    if len(token) > MOST_TOKEN or _FORM.fullmatch(token) is None:
        raise TokenRefused
    try:
        # A closed list: `crit`, `jku`, `jwk`, `kid`, `x5u` and whatever comes next are not asked what they mean.
        if jwt.get_unverified_header(token) != _HEADER:
            raise TokenRefused
        plain = jwt.decode(
            token,
            Ed25519PublicKey.from_public_bytes(key),
            algorithms=[_ALGORITHM],
            audience=instance_id,
            issuer=_ISSUER,
            # The times are looked at below: the leeway is for a panel whose clock is ahead, not for an old token.
            options={
                "require": _REQUIRED,
                "strict_aud": True,
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
        claims = msgspec.convert(plain, Impersonation, strict=True)
    except (jwt.InvalidTokenError, msgspec.ValidationError, ValueError):
        raise TokenRefused from None
    seconds, begins = now.timestamp(), max(claims.iat, claims.nbf)
    if claims.exp - claims.iat > SECONDS or begins - AHEAD_SECONDS > seconds or claims.sub != claims.act.sub:
        raise TokenRefused
    if seconds >= claims.exp:
        raise TokenOver
    return claims
