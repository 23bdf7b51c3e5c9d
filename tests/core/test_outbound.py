"""The guard before every request to an address that a user chose (S-31)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quazzar.core.outbound import OutboundPolicy, OutboundRefused, is_public

PRIVATE = [
    "http://127.0.0.1/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://0/",
    "https://0.0.0.0/",
    "https://127.0.0.1./",
    "https://127.255.255.254/",
    "https://[::1]/",
    "https://[::]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b:1::1]/",
    "https://[2002:7f00:1::]/",
    "https://[2002:a00:1::1]/",
    "https://[2001:0:7f00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd12:3456::1]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[2001:db8::1]/",
    "https://[100::1]/",
    "https://[3fff::1]/",
    "https://10.0.0.1/",
    "https://10.255.255.255/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.0.1/",
    "https://192.168.255.255/",
    "https://169.254.169.254/latest/meta-data/",
    "https://169.254.0.1/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",
    "https://192.0.0.192/",
    "https://192.0.2.1/",
    "https://198.18.0.1/",
    "https://198.19.255.255/",
    "https://198.51.100.1/",
    "https://203.0.113.1/",
    "https://224.0.0.1/",
    "https://239.255.255.255/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://localhost./",
    "https://a.localhost/",
    "https://localhost:443/",
    "https://3232235521/",
    "https://0xc0a80001/",
    "https://0300.0250.0.1/",
    "https://192.168.1/",
    "https://10.1/",
    "https://1/",
    "https://0x7f.1/",
    "https://127.0.0.0x1/",
    "https://256.256.256.256/",
    "https://1.2.3.4.5/",
    "https://0x/",
]

ODD = [
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "//example.com/",
    "example.com",
    "",
    "https://",
    "https:///path",
    "https://user@example.com/",
    "https://user:pass@example.com/",
    "https://example.com@127.0.0.1/",
    "https://127.0.0.1#@example.com/",
    "https://127.0.0.1\\@example.com/",
    "https://example.com:22/",
    "https://example.com:5432/",
    "https://example.com:99999/",
    "https://example.com:0/",
    "https://example.com:https/",
    "https://exa mple.com/",
    "https://example.com/\r\nX: y",
    "https://example.com/\x00",
    "https://ex\u00e4mple.com/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://127\u30020\u30020\u30021/",
    "https://[::1/",
    "https://::1/",
    "https://-a.example.com/",
    "https://a..example.com/",
    "https://" + "a" * 64 + ".example.com/",
    "https://example.com/#part",
    "http://example.com/",
    "https://example.com/" + "a" * 3000,
]


def test_there_are_at_least_sixty_spellings() -> None:
    assert len(set(PRIVATE)) >= 60


@pytest.mark.parametrize("url", [*PRIVATE, *ODD])
def test_s31_refused_when_it_is_read(url: str) -> None:
    with pytest.raises(OutboundRefused) as caught:
        OutboundPolicy().read(url)
    assert caught.value.reason


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("https://Example.COM:8443/a?b=c", "example.com", 8443, "/a?b=c"),
        ("https://example.com./x", "example.com", 443, "/x"),
        ("https://93.184.216.34/", "93.184.216.34", 443, "/"),
        ("https://[2606:2800:220:1::1]/", "2606:2800:220:1::1", 443, "/"),
        ("https://xn--exmple-cua.com/", "xn--exmple-cua.com", 443, "/"),
        ("https://1password.com/", "1password.com", 443, "/"),
    ],
)
def test_public_addresses_are_read(url: str, host: str, port: int, path: str) -> None:
    target = OutboundPolicy().read(url)
    assert (target.host, target.port, target.path) == (host, port, path)


def test_an_allowed_network_opens_itself_and_nothing_else() -> None:
    policy = OutboundPolicy([ipaddress.ip_network("127.0.0.0/8")], own_ports=[8080])
    assert policy.read("http://127.0.0.1:9000/").port == 9000
    assert policy.read("http://[::ffff:127.0.0.1]:9000/").port == 9000
    for url in ("http://10.0.0.1:9000/", "http://169.254.169.254/", "http://127.0.0.1:8080/", "http://[::1]:9000/"):
        with pytest.raises(OutboundRefused):
            policy.read(url)


@pytest.mark.parametrize(
    ("answers", "allowed"),
    [
        (["93.184.216.34"], True),
        (["93.184.216.34", "127.0.0.1"], False),
        (["::ffff:10.0.0.1"], False),
        (["fe80::1%eth0"], False),
        (["2606:2800:220:1::1", "93.184.216.34"], True),
    ],
)
async def test_every_resolved_address_is_checked(
    answers: list[str], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio  # noqa: PLC0415

    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(None, None, None, "", (answer, 443)) for answer in answers]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    target = OutboundPolicy().read("https://example.com/")
    if allowed:
        assert len(await OutboundPolicy().resolve(target)) == len(answers)
    else:
        with pytest.raises(OutboundRefused):
            await OutboundPolicy().resolve(target)


@given(st.ip_addresses())
def test_whatever_the_library_calls_private_is_not_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for url in (text, "https://" + text):
        try:
            target = OutboundPolicy().read(url)
        except OutboundRefused:
            continue
        assert target.address is None or is_public(target.address)
