"""Ids: a type prefix and 128 bits, sortable by creation time."""

import secrets
import time

# The letters of RFC 4648 base32 in lower case, put into ASCII order so that ids sort by time as plain bytes.
ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
LENGTH = 26


def new_id(prefix: str) -> str:
    """`prefix`, `_` and 26 characters: 48 bits of milliseconds since 1970, then 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return prefix + "_" + "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
