"""Time-based codes (RFC 6238: SHA-1, six digits, 30 seconds, one step either side) and recovery codes."""

import base64
import hashlib
import hmac
import io
import re
import secrets
from typing import Final

import pyotp

STEP_SECONDS: Final = 30
RECOVERY_CODES: Final = 10

_SECRET_BASE32: Final = 32  # 20 bytes, the length that RFC 4226 recommends
_RECOVERY_BYTES: Final = 10  # 80 bits
_CODE: Final = re.compile(r"[0-9]{6}")
_RECOVERY: Final = re.compile(r"[a-z2-7]{16}")


def new_secret() -> str:
    """20 random bytes in base32, the form that authenticator apps take."""
    return pyotp.random_base32(_SECRET_BASE32)


def provisioning_url(secret: str, account: str, issuer: str) -> str:
    """The `otpauth://` address that an authenticator app scans."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)


def qr_svg(text: str) -> str:
    """`text` as a QR code in SVG. Takes some milliseconds of CPU."""
    out = io.BytesIO()
    import segno  # noqa: PLC0415 - 2 MB for what happens once in the life of an account

    segno.make(text, error="m", micro=False).save(out, kind="svg", scale=4, xmldecl=False, nl=False)
    return out.getvalue().decode()


def accepted_step(secret: str, code: str, now: float, *, after: int | None) -> int | None:
    """The time step that `code` belongs to, if it is one that may be used now: within one step, and later than `after`.

    None when it is not exactly six ASCII digits, wrong, or of a step that was used already.
    """
    if _CODE.fullmatch(code) is None:
        return None
    hotp = pyotp.HOTP(secret)
    current = int(now // STEP_SECONDS)
    found = None
    for step in (current - 1, current, current + 1):
        # All three are always compared, so that the time does not tell which one it was.
        matches = hmac.compare_digest(hotp.at(step), code)
        if matches and found is None and (after is None or step > after):
            found = step
    return found


def new_recovery_codes() -> list[str]:
    """Ten codes of 80 random bits, `xxxx-xxxx-xxxx-xxxx` in base32."""
    return [_recovery_code() for _ in range(RECOVERY_CODES)]


def _recovery_code() -> str:
    text = base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def recovery_digest(user_id: str, code: str) -> bytes | None:
    """What is stored of a recovery code, bound to its user; None when it has not the form. Dashes and case are free."""
    plain = code.replace("-", "").replace(" ", "").lower()
    if _RECOVERY.fullmatch(plain) is None:
        return None
    return hashlib.sha256(f"{user_id}:{plain}".encode()).digest()
