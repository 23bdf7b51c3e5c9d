"""Durations, sizes and numbers as Compose writes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.instance.templates.quantities import (
    cpu_count,
    duration_seconds,
    memory_bytes,
    number_text,
    port_number,
    size_bytes,
    whole_number,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1m30s", 90),
        ("1h5m30s20ms", 3930.02),
        ("500ms", 0.5),
        ("10us", 0.00001),
        ("1.5h", 5400),
        ("0s", 0),
        ("24h", 86400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1d", "1 s", "1s ", "25h", "1.5.5s", "1e3s", "\u0661s", "9" * 50 + "s", "1s" * 500]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1b", 1),
        ("512k", 512 << 10),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("1g", 1 << 30),
        ("1gb", 1 << 30),
        ("1GiB", 1 << 30),
        ("1.5g", 3 << 29),
        ("2 g", 2 << 30),
        ("1t", 1 << 40),
        ("1048576", 1 << 20),
        ("1pb", 1 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1x", "m", "1mm", "1.5.5m", "1e3", "2p", "0.1b", " 1m", "1m ", "\u0661m", "9" * 60]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        size_bytes(text)


def test_memory_has_the_least_that_the_engine_takes() -> None:
    assert memory_bytes("6m") == 6 << 20
    with pytest.raises(ValueError, match="at least 6m"):
        memory_bytes("5m")


@pytest.mark.parametrize("text", ["0", "0.001", "-1", "nan", "inf", "1e3", "2000", ""])
def test_what_is_no_number_of_cpus(text: str) -> None:
    with pytest.raises(ValueError, match="CPUs"):
        cpu_count(text)


def test_cpus_ports_and_whole_numbers() -> None:
    assert cpu_count("0.5") == 0.5
    assert port_number("65535") == 65535
    assert whole_number("-1", -1, 5) == -1
    for text in ("0", "65536", "-1", "8080x", "\u0668", "1.0", ""):
        with pytest.raises(ValueError, match="port"):
            port_number(text)
    for text in ("6", "", "1.5", "0x1", "1_0", "+1"):
        with pytest.raises(ValueError, match="whole number"):
            whole_number(text, 0, 5)


# Go: fmt.Sprint(float64(x)).
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.1, "1.1"),
        (1.0, "1"),
        (0.5, "0.5"),
        (100000.0, "100000"),
        (1000000.0, "1e+06"),
        (1234567.5, "1.2345675e+06"),
        (123456.75, "123456.75"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (0.0000123, "1.23e-05"),
        (1e100, "1e+100"),
        (-2.5, "-2.5"),
        (-0.0, "-0"),
        (0.0, "0"),
        (1e-320, "1e-320"),
        (5, "5"),
        (-7, "-7"),
        (10**15, "1000000000000000"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_numbers_of_an_environment(number: float, text: str) -> None:
    assert number_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_written_numbers_keep_their_value(number: float) -> None:
    assert float(number_text(number)) == number


@given(st.integers(1, 1 << 50))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert size_bytes(str(size)) == size_bytes(f"{size}b") == size


@given(st.integers(1, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    found = duration_seconds(f"{hours}h{minutes}m{seconds}s{milliseconds}ms")
    assert math.isclose(found, hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)


@given(st.text(max_size=40))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    for parse in (duration_seconds, size_bytes, memory_bytes, cpu_count, port_number):
        try:
            amount = parse(text)
        except ValueError:
            continue
        assert amount >= 0
