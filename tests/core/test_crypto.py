"""The keyring: weak keys are refused, sealed values open in their own place only."""

import base64
import secrets
from pathlib import Path

import pytest

from quazzar.core.crypto import KeyProblem, Keyring, SealBroken, load_keyring, parse_keys, write_private


def key_text() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def test_a_sealed_value_opens_in_its_own_place_only() -> None:
    keyring = parse_keys(f"k1:{key_text()}")
    sealed = keyring.seal(b"canary", context="users.totp:usr_1")
    assert b"canary" not in sealed
    assert keyring.open(sealed, context="users.totp:usr_1") == b"canary"
    with pytest.raises(SealBroken):
        keyring.open(sealed, context="users.totp:usr_2")
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(SealBroken):
            keyring.open(bytes(changed), context="users.totp:usr_1")
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            keyring.open(sealed[:length], context="users.totp:usr_1")


def test_rotation_reads_the_old_and_writes_the_new() -> None:
    old = parse_keys(f"k1:{key_text()}")
    sealed = old.seal(b"x", context="c")
    new = parse_keys(old.rotated().dump())
    assert new.current != "k1"
    assert new.open(sealed, context="c") == b"x"
    with pytest.raises(SealBroken):
        old.open(new.seal(b"x", context="c"), context="c")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "secret",
        "change-me-change-me-change-me-32",
        base64.b64encode(b"0123456789abcdef").decode(),
        base64.b64encode(b"a" * 32).decode(),
        base64.b64encode(b"this is a sentence of 32 letters").decode(),
        "00" * 32,
        ",".join(f"k1:{base64.b64encode(bytes(range(low, low + 32))).decode()}" for low in (100, 150)),
        f"k 1:{base64.b64encode(bytes(range(100, 132))).decode()}",
    ],
)
def test_s17_a_weak_or_misspelt_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(KeyProblem) as caught:
        parse_keys(text)
    for part in text.replace(",", ":").split(":"):
        assert len(part) < 16 or part not in str(caught.value)


def test_the_key_file_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = load_keyring(None, tmp_path)
    path = tmp_path / "secret.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_keyring(None, tmp_path).dump() == first.dump()
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]
    path.chmod(0o644)
    with pytest.raises(KeyProblem, match="can be read by others"):
        load_keyring(None, tmp_path)


def test_write_private_replaces_whole_or_refuses(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "a")
    write_private(path, "b")
    assert path.read_text() == "b"
    with pytest.raises(FileExistsError):
        write_private(path, "c", exclusive=True)
    assert path.read_text() == "b"
    assert len(list(tmp_path.iterdir())) == 1


def test_derived_keys_differ_by_purpose_and_key() -> None:
    keyring = Keyring({"a": secrets.token_bytes(32), "b": secrets.token_bytes(32)})
    derived = {keyring.derive(purpose, key) for purpose in ("jwt", "seal") for key in ("a", "b")}
    assert len(derived) == 4
    assert all(len(key) == 32 for key in derived)
