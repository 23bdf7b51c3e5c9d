"""Orders: what a panel tells an instance to do, signed so that whoever holds the line can't make one up."""

from typing import Annotated, Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from quazzar.link.messages import LinkProblem, Moment, Order, Short

_CONTEXT: Final = b"quazzar order 1\0"
"""Before what is signed, so that a signature for anything else is none for an order."""

_Id = Annotated[str, Meta(max_length=64)]


class OrderForged(LinkProblem):
    """An order that this panel has not signed."""


class OrderActor(msgspec.Struct, kw_only=True):
    """Who gave the order on the panel, for the audit log of the instance."""

    user_id: _Id
    name: Short


class OrderBody(msgspec.Struct, kw_only=True):
    """`order_id` is run at most once, however often it arrives, and not after `expires_at` by the instance's clock."""

    order_id: _Id
    command_id: _Id
    tenant_id: _Id
    instance_id: _Id
    kind: Annotated[str, Meta(max_length=64)]
    args: dict[str, Any]
    actor: OrderActor
    issued_at: Moment
    expires_at: Moment


class _Named(msgspec.Struct):
    order_id: _Id


_decode = msgspec.msgpack.Decoder(OrderBody).decode
_decode_name = msgspec.msgpack.Decoder(_Named).decode
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError, ValueError)


def sign_order(body: OrderBody, key: Ed25519PrivateKey) -> Order:
    packed = msgspec.msgpack.encode(body)
    return Order(body=packed, signature=key.sign(_CONTEXT + packed))


def open_order(order: Order, key: bytes) -> OrderBody:
    """The order of a panel with this raw Ed25519 public key. Raises `OrderForged` for one that it did not sign, and
    `LinkProblem` for one that can't be read; its instance, kind and time are for the caller to look at.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(order.signature, _CONTEXT + order.body)
        return _decode(order.body)
    except InvalidSignature:
        raise OrderForged("An order is not signed by this panel") from None
    except _UNREADABLE:
        raise LinkProblem("An order can't be read") from None


def claimed_id(order: Order) -> str | None:
    """The id that an order names, whoever has signed it and whatever else is in it; None where it names none."""
    try:
        return _decode_name(order.body).order_id
    except _UNREADABLE:
        return None
