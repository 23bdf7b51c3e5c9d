"""Whom a connection comes from: the client's address behind trusted proxies, and what the rate limit counts it as."""

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

# Longer chains are nobody's real path; the rest of a forged header is not worth parsing.
_MAX_HOPS = 32

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(4096)
def parse_address(text: str) -> Address | None:
    """The address in `text`, None when it is none. Ports, brackets and zones are dropped; `::ffff:a.b.c.d` is IPv4."""
    host = text.strip()
    if host.startswith("["):
        host, bracket, port = host[1:].partition("]")
        if not bracket or not _is_port(port):
            return None
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        if not _is_port(":" + port):
            return None
    host = host.partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_port(text: str) -> bool:
    return text == "" or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6)


@lru_cache(4096)
def rate_key(address: str) -> str:
    """What a client without a credential is counted as: an IPv4 address, or the /64 that an IPv6 address lies in.

    One customer of a provider usually owns a whole /64, so counting single addresses would count nothing. Text that
    is no address (a Unix socket's peer) is counted as itself.
    """
    parsed = parse_address(address)
    if parsed is None:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def is_loopback(address: str) -> bool:
    """Whether `address` is this machine itself; False for what is no address."""
    parsed = parse_address(address)
    return parsed is not None and parsed.is_loopback


class TrustedProxies:
    """The networks whose `X-Forwarded-For` is believed.

    Raises `ValueError` for a network that can't be read; a single address counts as its own network.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network.strip(), strict=False) for network in networks)
        # Per instance, since the answer depends on the networks; the same few peers ask again and again.
        self.trusts = lru_cache(1024)(self._trusts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _trusts(self, address: str) -> bool:
        """Whether `address` lies in one of the networks."""
        parsed = parse_address(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._networks
        )

    def client(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """The address of the client whose connection ends at `peer`.

        `forwarded` holds the values of all `X-Forwarded-For` lines in order. They count only when `peer` is trusted,
        and then from the right: the first hop that is not trusted is the client. Everything to the left of it was
        written by that client. An entry that can't be read ends the walk at the hop that reported it.
        """
        if not forwarded or not self.trusts(peer):
            return peer
        address = peer
        hops = b",".join(forwarded).decode("latin-1").rsplit(",", _MAX_HOPS)
        if len(hops) > _MAX_HOPS:
            hops = hops[1:]
        for hop in reversed(hops):
            parsed = parse_address(hop)
            if parsed is None:
                break
            address = str(parsed)
            if not self.trusts(address):
                break
        return address
