"""The name of a registry, as image names carry it."""

import ipaddress
import re

from quazzar.instance.apps.images import HUB_NAMES, Image

_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")
_SCHEME = re.compile(r"\Ahttps?://", re.IGNORECASE)
_ROOT = re.compile(r"(?:/v[12])?/?\Z")
_PORT = re.compile(r"(?<!:):([0-9]{1,5})\Z")


def registry_host(text: str) -> str:
    """`text` in the one form that names of images are compared with. Raises ValueError with a sentence part."""
    host = text.lower()
    if "/" in host:
        raise ValueError("must be the registry alone, such as registry.example.com:5000, without https:// and path")
    image = Image.parse(f"{host}/x")
    # Without a dot, a colon or the name localhost it would be a folder of docker.io.
    if image is None or (image.registry != host and host not in HUB_NAMES):
        raise ValueError("must be a registry such as registry.example.com, registry.example.com:5000 or docker.io")
    port = _PORT.search(host)
    if port is not None and not 1 <= int(port[1]) <= 65535:
        raise ValueError("must have a port between 1 and 65535")
    _check_address(_PORT.sub("", host))
    return image.registry


def registry_host_of_url(text: str) -> str:
    """As `registry_host`, of an address as clients know it: with a scheme, and the API's root as its path."""
    return registry_host(_ROOT.sub("", _SCHEME.sub("", text)))


def _check_address(name: str) -> None:
    """Numbers are read in their plain form only, and nobody's registry is where the cloud keeps its metadata."""
    if not name.startswith("[") and not _NUMERIC.match(name.rpartition(".")[2]):
        return
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        raise ValueError("must have an address in its plain form, such as 192.0.2.1 or [2001:db8::1]") from None
    inner = getattr(address, "ipv4_mapped", None) or address
    if inner.is_link_local or inner.is_multicast or inner.is_unspecified:
        raise ValueError("must have an address that a registry can have")
