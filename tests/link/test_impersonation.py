"""Impersonation tokens: who has signed one, for whom, how long ago; and that no other signature makes one (S-17)."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jwt
import msgspec
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from quazzar.link import orders
from quazzar.link.impersonation import (
    MOST_REASON,
    Actor,
    Impersonation,
    TokenOver,
    TokenRefused,
    new_impersonation,
    open_impersonation,
    sign_impersonation,
)

NOW = 1_800_000_000
KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
INSTANCE = "inst_" + "a" * 26


def claims(**values: Any) -> Impersonation:
    made = new_impersonation(
        impersonation_id="imp_" + "b" * 26,
        instance_id=INSTANCE,
        tenant_id="ten_" + "c" * 26,
        user_id="usr_" + "d" * 26,
        name="Ada <ada@example.com>",
        reason="Because",
    )
    return msgspec.structs.replace(made, **values)


def signed(payload: Any = None, *, key: Any = KEY, algorithm: str = "EdDSA", **header: Any) -> str:
    given = msgspec.to_builtins(claims()) if payload is None else payload
    return jwt.encode(given, key, algorithm, headers={"typ": "imp+jwt"} | header)


def read(token: str, instance_id: str = INSTANCE, key: bytes = PUBLIC) -> Impersonation:
    return open_impersonation(token, key, instance_id=instance_id, now=datetime.now(UTC))


@pytest.fixture(autouse=True)
def clock() -> Any:
    with time_machine.travel(NOW, tick=False) as travelling:
        yield travelling


def test_a_token_says_what_was_signed() -> None:
    made = claims()
    assert read(sign_impersonation(made, KEY)) == made
    assert (made.exp - made.iat, made.aud, made.act.sub) == (60, INSTANCE, made.sub)


def test_the_longest_that_can_be_said_is_read_too() -> None:
    """Whatever the script: a reason and a name of as many characters as there may be, four bytes each."""
    made = claims(reason="\U0001f4be" * MOST_REASON, act=Actor(sub=claims().sub, name="\U0001f468" * MOST_REASON))
    assert read(sign_impersonation(made, KEY)) == made


def test_it_is_good_for_a_minute_and_for_a_panel_whose_clock_is_ahead(clock: Any) -> None:
    token = signed()
    clock.move_to(NOW + 59)
    read(token)
    for later in (60, 3600):
        clock.move_to(NOW + later)
        with pytest.raises(TokenOver):
            read(token)
    clock.move_to(NOW - 30)
    read(token)
    clock.move_to(NOW - 31)
    with pytest.raises(TokenRefused):
        read(token)


def payload(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(claims())
    change(plain)
    return plain


@pytest.mark.parametrize(
    "change",
    [
        *(lambda plain, name=name: plain.pop(name) for name in msgspec.to_builtins(claims())),
        lambda plain: plain.update(aud="inst_" + "z" * 26),
        lambda plain: plain.update(aud=[INSTANCE]),
        lambda plain: plain.update(aud=[INSTANCE, "inst_other"]),
        lambda plain: plain.update(iss="quazzar:instance"),
        lambda plain: plain.update(exp=NOW + 61),
        lambda plain: plain.update(exp=NOW + 10**9),
        lambda plain: plain.update(iat=NOW + 3600, nbf=NOW + 3600, exp=NOW + 3660),
        lambda plain: plain.update(nbf=NOW + 3600),
        lambda plain: plain.update(exp=str(NOW + 60)),
        lambda plain: plain.update(iat=float(NOW)),
        lambda plain: plain.update(exp=None),
        lambda plain: plain.update(sub="usr_" + "e" * 26),
        lambda plain: plain.update(act="usr_" + "d" * 26),
        lambda plain: plain["act"].update(name="a\nb"),
        lambda plain: plain.update(reason="x" * 301),
        lambda plain: plain.update(jti="'; DROP TABLE"),
        lambda plain: plain.update(jti=7),
    ],
)
def test_other_claims_are_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    token = signed(payload(change))
    with pytest.raises(TokenRefused):
        read(token)


def test_s17_what_is_not_signed_by_the_panels_key_is_refused() -> None:
    pem_of_public = base64.b64encode(PUBLIC).decode()
    body = msgspec.to_builtins(claims())
    forged = [
        jwt.encode(body, "", "none", headers={"typ": "imp+jwt"}),
        # Signed with what everybody may know, as if it were a shared secret.
        jwt.encode(body, PUBLIC, "HS256", headers={"typ": "imp+jwt"}),
        jwt.encode(body, pem_of_public, "HS256", headers={"typ": "imp+jwt"}),
        signed(key=Ed25519PrivateKey.generate()),
        signed(typ="at+jwt"),
        signed(typ="JWT"),
        signed(kid="k1"),
        signed(jku="https://example.com/keys"),
        signed(crit=["exp"]),
        signed(jwk={"kty": "OKP", "crv": "Ed25519", "x": pem_of_public}),
    ]
    head, middle, signature = signed().split(".")
    other = base64.urlsafe_b64encode(json.dumps(body | {"sub": "usr_evil"}).encode()).rstrip(b"=").decode()
    forged += [
        f"{head}.{other}.{signature}",
        f"{head}.{middle}.",
        f"{head}.{middle}",
        f"{head}.{middle}.{signature}.{signature}",
        f" {head}.{middle}.{signature}",
        f"{head}.{middle}.{signature}\n",
        "",
        ".",
        "..",
        "x" * 5000,
    ]
    for token in forged:
        with pytest.raises(TokenRefused):
            read(token)
    with pytest.raises(TokenRefused):
        read(signed(), key=Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_an_order_is_no_token_and_a_token_no_order() -> None:
    """Both are signed with one key: what is signed of the one never begins as what is signed of the other."""
    token = signed()
    signing_input = token.rpartition(".")[0].encode()
    assert signing_input.startswith(b"eyJ")
    assert not signing_input.startswith(orders._CONTEXT)
    assert b"\0" in orders._CONTEXT
    assert b" " in orders._CONTEXT


@given(st.text(max_size=200))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(TokenRefused):
        read(text)
