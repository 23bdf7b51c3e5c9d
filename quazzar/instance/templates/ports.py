"""Published ports: every way to write them becomes Compose's long form, and that a `PortSpec`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from quazzar.instance.apps.spec import PortSpec
from quazzar.instance.templates.interpolation import split_parts, written
from quazzar.instance.templates.names import host_address
from quazzar.instance.templates.quantities import port_number
from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Entry, Mapping, Node, Scalar, Sequence

MAX_PORTS = 100
"""Of one service."""
KEYS = ("target", "published", "protocol", "host_ip", "mode", "name", "app_protocol")
PROTOCOLS = ("tcp", "udp")

_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_WRITTEN = re.compile(r"[^A-Za-z0-9_]")

OpenPort = Callable[[str, str], str]
"""Container port and protocol → the text that stands for a host port that is yet to be found."""


def long_form(reader: Reader, node: Node, path: str, open_port: OpenPort) -> Sequence:
    """`node` (the value of `ports`) with each entry in its long form: ranges written out, no host port left open."""
    items: list[Node] = []
    for item, where in reader.sequence(node, path):
        short = _short(reader, item, where) if isinstance(item, Scalar) else _long(reader, item, where)
        if short is not None:
            items.extend(_spread(reader, item, where, short, open_port))
        if len(items) > MAX_PORTS:
            reader.problem(path, node.line, f"ports publishes more than {MAX_PORTS} ports", "too_large")
            break
    return Sequence(tuple(items), node.line)


@dataclass(slots=True, eq=False, frozen=True)
class LongPort(Mapping):
    """The long form of an entry, and the path of what the file has there."""

    place: str


class _Port:
    """One entry, its parts not filled in."""

    def __init__(self, target: str, published: str = "", protocol: str = "tcp", host_ip: str = "") -> None:
        self.target, self.published, self.host_ip = target, published, host_ip
        self.protocol = protocol if "$" in protocol else protocol.lower()


def _short(reader: Reader, node: Scalar, path: str) -> _Port | None:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return _Port(str(node.value))
    if not isinstance(node.value, str):
        reader.expected(node, path, "a port such as 8080:80")
        return None
    text, host_ip = node.value, ""
    if text.startswith("["):
        host_ip, bracket, text = text[1:].partition("]:")
        if not bracket or "$" in host_ip:
            reader.expected(node, path, "a port such as [::1]:8080:80")
            return None
    parts = reader.parts(node, path, text)
    if parts is None:
        return None
    body, *protocol = split_parts(parts, "/", maximum=1)
    pieces = split_parts(body, ":")
    if len(pieces) > (2 if host_ip else 3) or not all((pieces[0] or len(pieces) == 1, pieces[-1])):
        reader.expected(node, path, "a port such as 8080:80 or 127.0.0.1:8080:80/udp")
        return None
    return _Port(
        written(pieces[-1]),
        written(pieces[-2]) if len(pieces) > 1 else "",
        written(protocol[0]) if protocol else "tcp",
        host_ip or (written(pieces[0]) if len(pieces) == 3 else ""),
    )


def _long(reader: Reader, node: Node, path: str) -> _Port | None:
    found = reader.entries(node, path, KEYS)
    if not isinstance(node, Mapping):
        return None
    if "target" not in found:
        reader.problem(f"{path}.target", node.line, "target is required", "missing")
        return None
    if "mode" in found and reader.choice(found["mode"], f"{path}.mode", ("ingress", "host")) == "host":
        reader.note(f"{path}.mode", found["mode"].line, "is ignored: ports are published by the engine's own means")
    for key in ("name", "app_protocol"):
        if key in found:
            reader.string(found[key], f"{path}.{key}")
    texts = {key: _as_written(reader, found.get(key), f"{path}.{key}") for key in KEYS[:4]}
    if None in texts.values():
        return None
    return _Port(texts["target"] or "", texts["published"] or "", texts["protocol"] or "tcp", texts["host_ip"] or "")


def _as_written(reader: Reader, node: Node | None, path: str) -> str | None:
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return ""
    if isinstance(node, Scalar) and isinstance(node.value, int) and not isinstance(node.value, bool):
        return str(node.value)
    if isinstance(node, Scalar) and isinstance(node.value, str):
        parts = reader.parts(node, path, node.value)
        return None if parts is None else written(parts)
    reader.expected(node, path, "a string or a whole number")
    return None


def _spread(reader: Reader, node: Node, path: str, port: _Port, open_port: OpenPort) -> list[Node]:
    targets, published = _numbers(port.target), _numbers(port.published)
    if len(targets) > MAX_PORTS or len(published) > MAX_PORTS:
        reader.problem(path, node.line, f"A range of ports has at most {MAX_PORTS}", "too_large")
        return []
    if not targets or (port.published and not published):
        reader.problem(path, node.line, "A range of ports must run upwards")
        return []
    if port.published and len(targets) != len(published):
        said = "A range of host ports needs as many container ports; leave the host port out to have a free one found"
        reader.problem(path, node.line, said)
        return []
    items: list[Node] = []
    for index, target in enumerate(targets):
        host = published[index] if port.published else open_port(target, port.protocol)
        texts = {"target": target, "published": host, "protocol": port.protocol, "host_ip": port.host_ip}
        entries = {key: Entry(node.line, Scalar(text, node.line)) for key, text in texts.items() if text}
        items.append(LongPort(entries, node.line, path))
    return items


def _numbers(text: str) -> list[str]:
    """The ports that a written range has; anything else is one entry and is checked when it is filled in."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return [text]
    return [str(number) for number in range(int(found[1]), min(int(found[2]), int(found[1]) + MAX_PORTS) + 1)]


def open_name(service: str, target: str, protocol: str) -> str:
    """A field's name for a host port that the file leaves open."""
    return _WRITTEN.sub("_", f"port_{service}_{target}" + ("_udp" if protocol == "udp" else ""))[:50]


def port_spec(reader: Reader, node: Node, path: str) -> PortSpec | None:
    """From the long form; None while a part isn't known yet, or after a problem."""
    if not isinstance(node, Mapping):
        return None
    found = {key: entry.node for key, entry in node.entries.items()}
    target = reader.parsed(found["target"], path, _container_port, 0)
    published = reader.parsed(found["published"], path, _host_port, 0)
    protocol = reader.parsed(found["protocol"], path, _protocol, "") if "protocol" in found else "tcp"
    host_ip = reader.parsed(found["host_ip"], path, host_address, "") if "host_ip" in found else ""
    if not target or not published or not protocol or ("host_ip" in found and not host_ip):
        return None
    spec = PortSpec(container_port=target, host_port=published, protocol="udp" if protocol == "udp" else "tcp")
    return msgspec.structs.replace(spec, host_ip=host_ip) if host_ip else spec


def _container_port(text: str) -> int:
    return _numbered(text, "must have a container port between 1 and 65535")


def _host_port(text: str) -> int:
    return _numbered(text, "must have a host port between 1 and 65535")


def _numbered(text: str, wrong: str) -> int:
    try:
        return port_number(text)
    except ValueError:
        raise ValueError(wrong) from None


def _protocol(text: str) -> str:
    if text not in PROTOCOLS:
        raise ValueError("must have the protocol tcp or udp")
    return text


def is_fixed(node: Node) -> bool:
    """Whether the host port stands in the file as a number, so that a second one of the same number is a mistake."""
    if not isinstance(node, Mapping):
        return False
    published = node.entries["published"].node
    return isinstance(published, Scalar) and "$" not in str(published.value)
