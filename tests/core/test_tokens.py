"""Signed tokens of several classes, opaque tokens and API keys, and every way to mistake one for another."""

import base64
import json
import re
import secrets
import time
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core import tokens as module
from quazzar.core.crypto import KeyProblem, Keyring, parse_keys
from quazzar.core.errors import Unauthorized
from quazzar.core.tokens import (
    API_KEY_PATTERN,
    INSTANCE_ACCESS,
    INSTANCE_STEP,
    PANEL_ACCESS,
    PANEL_STEP,
    TokenClass,
    Tokens,
    api_key_digest,
    new_api_key,
    new_opaque,
    opaque_digest,
)

CLASSES = [INSTANCE_ACCESS, PANEL_ACCESS, INSTANCE_STEP, PANEL_STEP]


def fresh_keyring() -> Keyring:
    return parse_keys(f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}")


KEYRING = fresh_keyring()
TOKENS = Tokens(KEYRING)


def make(kind: TokenClass = INSTANCE_ACCESS, **options: Any) -> bytes:
    values: dict[str, Any] = {"subject": "usr_a", "session_id": "ses_a", "seconds": 900}
    return TOKENS.sign(kind, **values | options).encode()


def refused(token: bytes, kind: TokenClass = INSTANCE_ACCESS, *, code: str = "unauthorized") -> None:
    with pytest.raises(Unauthorized) as caught:
        TOKENS.verify(kind, token)
    assert caught.value.code == code


def forge(header: dict[str, Any], claims: dict[str, Any], key: Any, algorithm: str | None = None) -> bytes:
    """A token with any header, signed by hand so that the library's own checks can't soften it."""

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part(header) + b"." + part(claims)
    name = algorithm or header.get("alg", "HS256")
    signature = b"" if name == "none" else jwt.get_algorithm_by_name(name).sign(signed, key)
    return signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def claims_of(kind: TokenClass, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "iss": kind.issuer,
        "aud": kind.audience,
        "sub": "usr_a",
        "sid": "ses_a",
        "jti": "jti_a",
        "iat": now,
        "nbf": now,
        "exp": now + 900,
    }
    return {name: value for name, value in (claims | changes).items() if value is not ...}


def key_of(kind: TokenClass) -> Any:
    return TOKENS._signing_key(kind, "k1")


def head(kind: TokenClass = INSTANCE_ACCESS, **changes: Any) -> dict[str, Any]:
    header = {"alg": kind.algorithm, "kid": "k1", "typ": kind.typ} | changes
    return {name: value for name, value in header.items() if value is not ...}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.name)
def test_round_trip(kind: TokenClass) -> None:
    before = time.time()
    claims = TOKENS.verify(kind, make(kind, tenant_id="ten_a"))
    assert (claims.sub, claims.sid, claims.tid) == ("usr_a", "ses_a", "ten_a")
    assert before - 2 < claims.exp - 900 < time.time() + 2
    assert TOKENS.verify(kind, forge(head(kind), claims_of(kind), key_of(kind))).tid is None


@pytest.mark.parametrize("made", CLASSES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("taken", CLASSES, ids=lambda kind: kind.name)
def test_s17_no_class_is_taken_for_another(made: TokenClass, taken: TokenClass) -> None:
    if made != taken:
        refused(make(made), taken)
        # Not even with the other's name tags on it: the keys differ.
        refused(forge(head(taken), claims_of(taken), key_of(made), made.algorithm), taken)


def test_s17_no_algorithm_and_swapped_algorithms() -> None:
    for kind in CLASSES:
        refused(forge(head(kind, alg="none"), claims_of(kind), None), kind)
        refused(forge(head(kind, alg="None"), claims_of(kind), None, "none"), kind)
        refused(forge(head(kind, alg="HS512"), claims_of(kind), secrets.token_bytes(64)), kind)
    private = key_of(PANEL_ACCESS)
    assert isinstance(private, Ed25519PrivateKey)
    public = private.public_key()
    for encoding, form in ((Encoding.Raw, PublicFormat.Raw), (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
        secret = public.public_bytes(encoding, form)
        refused(forge(head(PANEL_ACCESS, alg="HS256"), claims_of(PANEL_ACCESS), secret), PANEL_ACCESS)
        refused(forge(head(PANEL_ACCESS), claims_of(PANEL_ACCESS), secret, "HS256"), PANEL_ACCESS)


@pytest.mark.parametrize(
    "extra",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"jku": "https://example.com/keys"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"x5u": "https://example.com/cert"},
        {"x5c": ["AAAA"]},
        {"b64": False},
        {"typ": "JWT"},
        {"typ": "AT+JWT"},
        {"typ": None},
        {"typ": ...},
        {"kid": "k2"},
        {"kid": "../k1"},
        {"kid": ["k1"]},
        {"kid": 1},
        {"kid": ...},
        {"zip": "DEF"},
    ],
    ids=str,
)
def test_s17_headers_that_mean_something_else(extra: dict[str, Any]) -> None:
    refused(forge(head(**extra), claims_of(INSTANCE_ACCESS), key_of(INSTANCE_ACCESS)))


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"])
@pytest.mark.parametrize("value", [..., None, 1.5, ["quazzar:instance"], {"a": 1}, "x", ""], ids=str)
def test_s17_claims_that_are_missing_or_wrong(name: str, value: Any) -> None:
    if (name in {"sub", "sid", "jti"} and isinstance(value, str)) or (name in {"iat", "nbf"} and value == 1.5):
        return  # any text is a name, and these two lie in the past
    claims = claims_of(INSTANCE_ACCESS, **{name: value})
    code = "token_expired" if name == "exp" and value == 1.5 else "unauthorized"
    refused(forge(head(), claims, key_of(INSTANCE_ACCESS)), code=code)


def test_s17_other_keys_and_broken_texts() -> None:
    good = make()
    refused(Tokens(fresh_keyring()).sign(INSTANCE_ACCESS, subject="a", session_id="b", seconds=9).encode())
    for broken in (b"", b".", b"..", b"a.b.c", good[:-1], good + b"A", good + b"=", b" " + good, good * 20, b"\xff"):
        refused(broken)
    first, second, third = good.split(b".")
    refused(b".".join((first, third, second)))
    refused(b".".join((first, second, b"")))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(token: bytes) -> None:
    refused(token)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_bit_may_change(position: int, flip: int) -> None:
    token = bytearray(_ONE)
    token[position % len(token)] ^= flip
    try:
        claims = TOKENS.verify(INSTANCE_ACCESS, bytes(token))
    except Unauthorized:
        return
    # The last letter of base64 has bits that mean nothing.
    assert claims == TOKENS.verify(INSTANCE_ACCESS, _ONE)
    assert position % len(token) == len(token) - 1


_ONE = make(seconds=86400)


def test_expiry_has_its_own_code_and_some_leeway() -> None:
    with time_machine.travel(time.time(), tick=False) as clock:
        token = make(seconds=60)
        clock.shift(60 + module.LEEWAY_SECONDS - 5)
        TOKENS.verify(INSTANCE_ACCESS, token)
        clock.shift(10)
        refused(token, code="token_expired")
        clock.shift(-60 - module.LEEWAY_SECONDS - 5 - 60)
        refused(token)


def test_after_a_rotation_old_tokens_hold_and_new_ones_use_the_new_key() -> None:
    rotated = KEYRING.rotated()
    after = Tokens(rotated)
    for kind in CLASSES:
        assert after.verify(kind, make(kind)).sub == "usr_a"
        new = after.sign(kind, subject="usr_b", session_id="ses_b", seconds=60)
        assert jwt.get_unverified_header(new)["kid"] == rotated.current
        refused(new.encode(), kind)


def test_s17_a_weak_master_key_is_no_key() -> None:
    for weak in (secrets.token_bytes(16), b"a" * 32, bytes(32)):
        with pytest.raises(KeyProblem):
            parse_keys(base64.b64encode(weak).decode())


def test_opaque_tokens() -> None:
    one, two = new_opaque("qzt"), new_opaque("qzt")
    assert one != two
    digest = opaque_digest("qzt", one)
    assert digest is not None
    assert len(digest) == 32
    assert one.encode() not in digest
    for wrong in ("", one[:-1], one + "A", one.replace("qzt", "qzs"), one[:-1] + "ä", one + "\n", "qzt_"):
        assert opaque_digest("qzt", wrong) is None


def test_api_keys_have_the_published_form_and_a_checksum() -> None:
    key = new_api_key()
    assert re.fullmatch(API_KEY_PATTERN, key)
    assert api_key_digest(key.encode()) is not None
    assert api_key_digest(key.encode() + b"\n") is None
    for position in range(4, len(key)):
        other = "A" if key[position] != "A" else "B"
        assert api_key_digest((key[:position] + other + key[position + 1 :]).encode()) is None


def test_the_checksum_is_the_crc_that_scanners_know() -> None:
    # Worked out by hand: CRC-32 of 36 zeros in base 62 with the digits first.
    import zlib  # noqa: PLC0415

    number, text = zlib.crc32(b"0" * 36), ""
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    while number:
        text = alphabet[number % 62] + text
        number //= 62
    assert api_key_digest(b"qzr_" + b"0" * 36 + text.rjust(6, "0").encode()) is not None


@given(st.binary(max_size=60))
def test_hardly_any_text_is_an_api_key(text: bytes) -> None:
    assert api_key_digest(text) is None
