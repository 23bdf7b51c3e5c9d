"""Requests to addresses that a user chose: the URL read strictly, every address checked, the checked one dialled.

A name is resolved once for each connection and the connection goes to an address that was checked, so a name that
changes its mind between check and dial gains nothing. The TLS name stays the name that the user wrote.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection, Sequence
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = frozenset({80, 443, 8443})
"""Ports that may be dialled on public addresses; in networks that a setting allows, any port may."""
RESOLVE_SECONDS = 5.0

# The IANA special-purpose registries (RFC 6890 and successors) with multicast and the reserved rest. Written out here,
# since the standard library's `is_global` takes multicast and several translated ranges for global.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ]
)
# Only global unicast is considered at all; these parts of it are not.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in ["2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"]
)
# Forms that carry an IPv4 address: mapped (RFC 4291) and NAT64 (RFC 6052).
_CARRIES_V4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]@:/?#\\\s]+)(?::(?P<port>[0-9]{1,5}))?\Z")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xff\\<>\"^`{|}]|[^\x00-\x7f]")


class OutboundRefused(Exception):
    """The address may not be asked; `reason` is a sentence for the user and never shows what was resolved."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Target(msgspec.Struct, frozen=True):
    """A URL that was read strictly. `host` is lower-case, without brackets; `path` has the query with it."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    address: Address | None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == default else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class OutboundPolicy:
    """Which addresses may be dialled: public ones, and the networks that a setting allows."""

    def __init__(self, allow_networks: Collection[Network] = (), *, own_ports: Collection[int] = ()) -> None:
        self._allowed = tuple(allow_networks)
        self._own_ports = frozenset(own_ports)

    def read(self, url: str) -> Target:
        """Read `url` and refuse what can be refused without asking anybody. Raises `OutboundRefused`."""
        if len(url) > 2000 or _FORBIDDEN.search(url):
            raise OutboundRefused("The address holds characters that an address can't have")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise OutboundRefused("The address can't be read") from error
        if parts.scheme not in {"http", "https"}:
            raise OutboundRefused("The address must begin with https://")
        if parts.fragment or "#" in url:
            raise OutboundRefused("The address must not have a fragment")
        target = _target(parts)
        if target.address is not None:
            self.check(target.address, target.port)
        elif target.port not in PORTS and not self._allowed:
            raise OutboundRefused(f"The port must be one of {', '.join(map(str, sorted(PORTS)))}")
        if target.scheme == "http" and not self._allowed:
            raise OutboundRefused("The address must begin with https://")
        return target

    def check(self, address: Address, port: int) -> None:
        """Raises `OutboundRefused` when a connection to `address` and `port` is not allowed."""
        inner = embedded(address)
        if any(
            one in network for network in self._allowed for one in (address, inner) if one.version == network.version
        ):
            if port in self._own_ports and (inner.is_loopback or address.is_loopback):
                raise OutboundRefused("The address leads to this server itself")
            return
        if not is_public(address):
            raise OutboundRefused("The address is not a public one")
        if port not in PORTS:
            raise OutboundRefused(f"The port must be one of {', '.join(map(str, sorted(PORTS)))}")

    async def resolve(self, target: Target) -> Sequence[Address]:
        """The addresses that may be dialled for `target`; refused as a whole when any one of them is not allowed.

        Raises `OutboundRefused`, or OSError when the name is not known.
        """
        if target.address is not None:
            self.check(target.address, target.port)
            return [target.address]
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
        addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
        if not addresses:
            raise OSError("The name has no address")
        for address in addresses:
            self.check(address, target.port)
        return addresses


def embedded(address: Address) -> Address:
    """The IPv4 address that a mapped or NAT64 address carries, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _CARRIES_V4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether `address` is global unicast and of none of the special ranges."""
    address = embedded(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


def origin_of(url: str) -> str:
    """Where an address leads, without its path and query: those are often secrets of their receivers."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…"


def _target(parts: SplitResult) -> Target:
    if "@" in parts.netloc:
        raise OutboundRefused("The address must not hold a user name")
    match = _AUTHORITY.match(parts.netloc)
    if match is None:
        raise OutboundRefused("The address has no host that can be read")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    port = int(match["port"]) if match["port"] else {"http": 80, "https": 443}[scheme]
    if not 1 <= port <= 65535:
        raise OutboundRefused("The port must be between 1 and 65535")
    host = match["host"].lower()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if host.startswith("["):
        try:
            address: Address = ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise OutboundRefused("The address has no host that can be read") from error
        return Target(scheme, host[1:-1], port, path, address)
    host = host.removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > 253 or not all(_LABEL.match(label) for label in labels):
        raise OutboundRefused("The address has no host that can be read")
    # What ends in a number is an IPv4 address to many parsers (WHATWG URL, "ends in a number"): only the plain
    # form with four decimal parts is read; octal, hexadecimal and shortened ones are refused, not guessed.
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        try:
            return Target(scheme, host, port, path, ipaddress.IPv4Address(host))
        except ValueError as error:
            raise OutboundRefused("The address has no host that can be read") from error
    if host == "localhost" or host.endswith(".localhost"):
        return Target(scheme, host, port, path, ipaddress.IPv4Address("127.0.0.1"))
    return Target(scheme, host, port, path, None)
