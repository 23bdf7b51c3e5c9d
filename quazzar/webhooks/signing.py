"""Signatures of webhooks as the Standard Webhooks specification has them (standardwebhooks.com, symmetric, v1)."""

import base64
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def shown(secret: bytes) -> str:
    """The form in which the user gets it, once."""
    return PREFIX + base64.b64encode(secret).decode()


def sign(secrets_newest_first: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one `v1,…` for each live secret, so that receivers may hold any of them."""
    content = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, content, "sha256")).decode() for secret in secrets_newest_first
    )
