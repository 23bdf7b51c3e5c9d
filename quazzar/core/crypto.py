"""The master keyring: what signing keys are derived from and what secrets at rest are sealed with."""

import base64
import binascii
import contextlib
import os
import secrets
import stat
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE_BYTES = 12


class KeyProblem(Exception):
    """The master key can't be used; the text is one sentence for the console and never shows the key."""


class SealBroken(Exception):
    """A sealed value was changed, moved to another place or sealed with a key that is gone."""


class Keyring:
    """Master keys by key id, the current one first. Old ones stay for reading until they are taken out."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys:
            raise KeyProblem("There is no master key")
        self._keys = dict(keys)
        self.current = next(iter(self._keys))
        self.derive = lru_cache(maxsize=64)(self._derive)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """All key ids, the current one first."""
        return tuple(self._keys)

    def _derive(self, purpose: str, key_id: str) -> bytes:
        """32 bytes for one purpose (HKDF, RFC 5869) from the master key `key_id`; KeyError for an unknown id."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"quazzar/" + purpose.encode()).derive(self._keys[key_id])

    def seal(self, plain: bytes, *, context: str) -> bytes:
        """AES-256-GCM under the current key; `context` names the place (table, column, row) and opens it again."""
        key_id = self.current.encode()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = bytes([1, len(key_id)]) + key_id
        sealed = AESGCM(self.derive("seal", self.current)).encrypt(nonce, plain, head + context.encode())
        return head + nonce + sealed

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """The plain bytes. Raises `SealBroken` when the value, its place or its key is not what was sealed."""
        try:
            length = sealed[1]
            head, rest = sealed[: 2 + length], sealed[2 + length :]
            key = self.derive("seal", head[2:].decode())
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + context.encode())
        except (IndexError, KeyError, UnicodeDecodeError, InvalidTag, ValueError) as error:
            raise SealBroken from error

    def dump(self) -> str:
        """The form that `parse_keys` reads; only for writing the key file."""
        return ",".join(f"{key_id}:{base64.b64encode(key).decode()}" for key_id, key in self._keys.items())

    def rotated(self) -> "Keyring":
        """A new keyring with a fresh current key before all the former ones."""
        return Keyring({new_key_id(): _random_key()} | self._keys)


def new_key_id() -> str:
    return "k" + secrets.token_hex(4)


def parse_keys(text: str) -> Keyring:
    """`kid:base64,kid:base64`, the current key first, or one bare key of 32 bytes in base64 or hex.

    Raises `KeyProblem` for anything weaker: fewer than 32 bytes, a repeated byte, or text typed by hand.
    """
    keys: dict[str, bytes] = {}
    for part in filter(None, (item.strip() for item in text.replace("\n", ",").split(","))):
        key_id, colon, value = part.partition(":")
        if not colon:
            key_id, value = "k0", part
        key = _decode(value)
        if len(key) != KEY_BYTES:
            raise KeyProblem(f"auth.secret_key must be {KEY_BYTES} random bytes in base64 or hex")
        if len(set(key)) < 12 or key.isascii():
            raise KeyProblem("auth.secret_key is too weak: it must be random bytes, not text")
        if key_id in keys or not (key_id.isascii() and key_id.isalnum() and len(key_id) <= 32):
            raise KeyProblem("auth.secret_key holds a key id that is not allowed or stands there twice")
        keys[key_id] = key
    if not keys:
        raise KeyProblem("auth.secret_key is empty")
    return Keyring(keys)


def _decode(value: str) -> bytes:
    with contextlib.suppress(ValueError):
        if len(value) == 2 * KEY_BYTES:
            return bytes.fromhex(value)
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyProblem("auth.secret_key is neither base64 nor hex") from error


def load_keyring(secret_key: str | None, data_dir: Path) -> Keyring:
    """From the setting when given, else from `data_dir/secret.key`, which is made at the first start with mode 0600.

    Raises `KeyProblem` when the key is weak or its file can be read by others.
    """
    if secret_key is not None:
        return parse_keys(secret_key)
    path = data_dir / "secret.key"
    try:
        return parse_keys(read_private(path))
    except FileNotFoundError:
        keyring = Keyring({new_key_id(): _random_key()})
        with contextlib.suppress(FileExistsError):
            write_private(path, keyring.dump() + "\n", exclusive=True)
        return parse_keys(read_private(path))


def _random_key() -> bytes:
    # 32 random bytes are all ASCII once in 2^32 times; parse_keys would take that for typed text.
    while (key := secrets.token_bytes(KEY_BYTES)).isascii() or len(set(key)) < 12:
        pass
    return key


def read_private(path: Path) -> str:
    """A secret's file. Raises `KeyProblem` when its mode lets group or others in, `FileNotFoundError` when absent."""
    with path.open() as file:
        if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise KeyProblem(f"{path.name} can be read by others; set its mode to 0600")
        return file.read()


def write_private(path: Path, text: str, *, exclusive: bool = False) -> None:
    """Write a file of mode 0600 whole or not at all; `exclusive` raises `FileExistsError` when it is there already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
