"""Client addresses: which forwarded hop is believed, and what an address counts as."""

import pytest

from quazzar.core.addresses import TrustedProxies, is_loopback, parse_address, rate_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("192.0.2.1:port", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]x", None),
        ("192.0.2.01", None),
        ("0x7f000001", None),
        ("192.0.2.1\r\nX: y", None),
    ],
)
def test_parse(text: str, expected: str | None) -> None:
    parsed = parse_address(text)
    assert (None if parsed is None else str(parsed)) == expected


def test_rate_key() -> None:
    assert rate_key("192.0.2.7") == "192.0.2.7"
    assert rate_key("2001:db8:1:2:3:4:5:6") == rate_key("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert rate_key("2001:db8:1:3::1") != rate_key("2001:db8:1:2::1")
    assert rate_key("::ffff:192.0.2.7") == "192.0.2.7"
    assert rate_key("-") == "-"


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("192.0.2.1")
    assert not is_loopback("-")


PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8:f::/48", "192.0.2.53"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.1", [b"127.0.0.1"], "198.51.100.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", [b"203.0.113.9"], "203.0.113.9"),
        ("10.1.1.1", [b"127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("10.1.1.1", [b"127.0.0.1", b"203.0.113.9, 10.2.2.2"], "203.0.113.9"),
        ("10.1.1.1", [b"203.0.113.9,192.0.2.53,10.2.2.2"], "203.0.113.9"),
        ("10.1.1.1", [b"10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.1.1.1", [b"127.0.0.1, unknown"], "10.1.1.1"),
        ("10.1.1.1", [b"127.0.0.1, garbage, 10.2.2.2"], "10.2.2.2"),
        ("10.1.1.1", [b""], "10.1.1.1"),
        ("10.1.1.1", [b"\xff\xfe"], "10.1.1.1"),
        ("10.1.1.1", [b"[2001:db8::5]:4711"], "2001:db8::5"),
        ("2001:db8:f::1", [b"203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.1.1.1", [b"203.0.113.9"], "203.0.113.9"),
        ("-", [b"203.0.113.9"], "-"),
        ("10.1.1.1", [b"1.1.1.1," * 5000 + b"203.0.113.9"], "203.0.113.9"),
        ("10.1.1.1", [b"9.9.9.9" + b",10.2.2.2" * 40], "10.2.2.2"),
    ],
)
def test_client(peer: str, forwarded: list[bytes], expected: str) -> None:
    assert PROXIES.client(peer, forwarded) == expected


def test_nobody_is_trusted_by_default() -> None:
    proxies = TrustedProxies()
    assert not proxies
    assert proxies.client("127.0.0.1", [b"203.0.113.9"]) == "127.0.0.1"


def test_a_bad_network_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        TrustedProxies(["nonsense"])
