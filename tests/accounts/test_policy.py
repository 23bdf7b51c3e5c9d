"""Which new passwords are taken."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.accounts.errors import PasswordRefused
from quazzar.accounts.policy import check_password, is_common


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery staple",
        "another horse battery staple",
        "xK9#mPq2vL$w",
        "83749201938475610293",
        "dragon8374920193847561",
        "пароль-длинный-1",
        "Donaudampfschiff",
        "日本語のパスワードは長いです",
        "tr0ub4dor&3xyz",
        "a" * 5 + "bcxyz" * 4 + "!",
        "x7" * 6 + "qpw",
    ],
)
def test_taken(password: str) -> None:
    check_password(password, field="password")


@pytest.mark.parametrize(
    "password",
    [
        "password1234",
        "Password2024!!",
        "P@ssw0rd1234",
        "@dministrat0r",
        "administrator",
        "qwertyuiop12",
        "asdfghjklzxc",
        "123456789012",
        "210987654321",
        "abcdefghijklm",
        "mlkjihgfedcb",
        "aaaaaaaaaaaa",
        "            ",
        "abababababab",
        "abcabcabcabc",
        "passwordpassword",
        "admin admin admin",
        "qwerty qwerty",
        "iloveyou1234",
        "letmein!!!!!",
        "changeme1234",
        "1qaz2wsx3edc",
        "zaq1zaq1zaq1",
        "quazzar12345",
        "Quazzar-2026!",
        "QUAZZARQUAZZAR",
        "welcome2welcome2",
        "correcthorsebatterystaple",
    ],
)
def test_common_ones_are_refused(password: str) -> None:
    with pytest.raises(PasswordRefused) as caught:
        check_password(password, field="new_password")
    assert caught.value.details.keys() == {"new_password"}
    assert password not in str(caught.value.details)


def test_length_counts_characters() -> None:
    for password in ("ab cd ef gh", "ä" * 11):
        with pytest.raises(PasswordRefused, match="Validation failed"):
            check_password(password, field="password")
    with pytest.raises(PasswordRefused):
        check_password("ab cd ef gh ij " * 9, field="password")
    check_password("äöü ßéè ñçø å", field="password")


@pytest.mark.parametrize("password", ["Wilhelmina-B", "wilhelmina-b99", "!!Wilhelmina-B"])
def test_the_own_name_is_refused(password: str) -> None:
    with pytest.raises(PasswordRefused):
        check_password(password, field="password", own=("wilhelmina-b", ""))
    check_password(password + " and more", field="password", own=("wilhelmina-b",))


@given(st.text(max_size=140))
def test_any_text_is_judged(password: str) -> None:
    assert is_common(password) in {True, False}


def test_random_ones_are_taken() -> None:
    numbers = random.Random(7)
    letters = string.ascii_lowercase + string.digits
    assert not any(is_common("".join(numbers.choices(letters, k=14))) for _ in range(300))
