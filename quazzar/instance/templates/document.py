"""The parts of a Compose file together: what is declared, what refers to it, and in which order services can start."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quazzar.instance.apps.spec import NetworkSpec, PortSpec, ServiceSpec
from quazzar.instance.templates import refusals
from quazzar.instance.templates.compose_services import DEFAULT_NETWORK, Declared, ReadService, ServiceReader
from quazzar.instance.templates.names import RESOURCE, SERVICE
from quazzar.instance.templates.ports import OpenPort, long_form
from quazzar.instance.templates.problems import join, shown
from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Entry, Node, Scalar, from_plain, plain
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode

MAX_SERVICES = 50
MAX_RESOURCES = 100
"""Volumes, networks, configs and secrets, each."""
SECTIONS = ("services", "volumes", "networks", "configs", "secrets")
TOP_KEYS = ("name", "version", *SECTIONS)

NamePort = Callable[[str, str, str], str]
"""Service, container port and protocol → the text that stands for a host port that is yet to be found."""

_WILDCARDS = {"", "0.0.0.0", "::"}  # noqa: S104 - compared with, not bound to


@dataclass(slots=True, frozen=True)
class Document:
    """The sections of a file as they were read; a missing one is an empty mapping."""

    services: MappingNode
    volumes: MappingNode
    networks: MappingNode
    configs: MappingNode
    secrets: MappingNode
    trusted: bool


@dataclass(slots=True, frozen=True)
class ReadApp:
    services: tuple[ServiceSpec, ...]
    """In an order in which they can start: each after what it depends on, else as in the file."""
    networks: tuple[NetworkSpec, ...]
    volumes: tuple[str, ...]


def top_sections(reader: Reader, root: Node, *, trusted: bool) -> Document | None:
    """The sections of a file whose top is `root`; problems for everything else that stands there."""
    if not isinstance(root, MappingNode):
        reader.problem("compose", root.line, "The file must be a mapping with services")
        return None
    found: dict[str, MappingNode] = {}
    for key, line, value, path in reader.mapping(root, ""):
        if key in SECTIONS:
            if isinstance(value, MappingNode):
                found[key] = value
            elif not refusals.says_nothing(value):
                reader.expected(value, path, "a mapping")
        elif key in {"name", "version"}:
            if not isinstance(value, Scalar):
                reader.expected(value, path, "a string")
        elif key in refusals.REFUSED_AT_TOP:
            refusals.refuse(reader, key, line, path, refusals.REFUSED_AT_TOP[key], trusted=trusted)
        elif key in refusals.UNSUPPORTED_AT_TOP:
            refusals.unsupported(reader, key, line, path, refusals.UNSUPPORTED_AT_TOP[key])
        else:
            reader.unknown(key, line, path, TOP_KEYS)
    if "services" not in found or not found["services"].entries:
        if refusals.says_nothing(root.entries["services"].node if "services" in root.entries else Scalar(None, 0)):
            reader.problem("services", root.line, "services is required: an app has at least one", "missing")
        return None
    empty = MappingNode({}, root.line)
    return Document(**{key: found.get(key, empty) for key in SECTIONS}, trusted=trusted)


def with_long_ports(reader: Reader, document: Document, open_port: NamePort) -> Document:
    """`document` with every port in its long form; `open_port(service, target, protocol)` names those left open."""
    entries: dict[str, Entry] = {}
    for name, entry in list(document.services.entries.items())[: MAX_SERVICES + 1]:
        service = entry.node
        ports = service.entries.get("ports") if isinstance(service, MappingNode) else None
        if isinstance(service, MappingNode) and ports is not None and not refusals.says_nothing(ports.node):
            path = join(join(join("", "services"), name), "ports")
            long = long_form(reader, ports.node, path, _for_service(open_port, name))
            changed = {**service.entries, "ports": Entry(ports.line, long)}
            entry = Entry(entry.line, MappingNode(changed, service.line))  # noqa: PLW2901 - the changed entry is kept
        entries[name] = entry
    return replace(document, services=MappingNode(entries, document.services.line))


def _for_service(open_port: NamePort, service: str) -> OpenPort:
    return lambda target, protocol: open_port(service, target, protocol)


def read_app(reader: Reader, document: Document) -> ReadApp:
    """Everything checked and filled in as far as `reader` knows; with problems, the answer is not to be used."""
    _check_names(reader, document)
    networks = _networks(reader, document)
    volumes = _volumes(reader, document)
    declared = Declared(
        services=frozenset(document.services.entries),
        volumes=frozenset(volumes),
        networks=frozenset(networks),
        configs=_contents(reader, document.configs, "configs", trusted=document.trusted),
        secrets=_contents(reader, document.secrets, "secrets", trusted=document.trusted),
        trusted=document.trusted,
    )
    services = ServiceReader(reader, declared)
    found: dict[str, ReadService] = {}
    for name, entry in document.services.entries.items():
        if reader.problems.full:
            break
        service = services.read(name, entry.node, join("services", name), entry.line)
        if service is not None:
            found[name] = service
    _check_ports(reader, found.values())
    _check_health(reader, document, found)
    used = {one.network for service in found.values() for one in service.spec.networks}
    if DEFAULT_NETWORK in used:
        networks.setdefault(DEFAULT_NETWORK, NetworkSpec(name=DEFAULT_NETWORK))
    return ReadApp(
        services=_in_order(reader, document, found), networks=tuple(networks.values()), volumes=tuple(volumes)
    )


def _check_names(reader: Reader, document: Document) -> None:
    for section in SECTIONS:
        node: MappingNode = getattr(document, section)
        most = MAX_SERVICES if section == "services" else MAX_RESOURCES
        if len(node.entries) > most:
            reader.problem(section, node.line, f"{section} has more than {most} entries", "too_large")
        rule = SERVICE if section == "services" else RESOURCE
        dots = "" if section == "services" else "'.', "
        for name, entry in node.entries.items():
            if not rule.fullmatch(name):
                said = f"{shown(name)} must be 1 to 63 letters, digits, {dots}'-' and '_', without a sign at either end"
                reader.problem(join(section, name), entry.line, said)


def _volumes(reader: Reader, document: Document) -> list[str]:
    for name, entry in document.volumes.entries.items():
        path = join("volumes", name)
        known = ("driver", "labels")
        refused = refusals.REFUSED_IN_VOLUME
        found = refusals.entries(reader, entry.node, path, known, refused, trusted=document.trusted)
        _driver(reader, found.get("driver"), f"{path}.driver", "local", trusted=document.trusted)
        _ignored_labels(reader, found.get("labels"), f"{path}.labels")
    return list(document.volumes.entries)


def _networks(reader: Reader, document: Document) -> dict[str, NetworkSpec]:
    networks: dict[str, NetworkSpec] = {}
    for name, entry in document.networks.entries.items():
        path = join("networks", name)
        known = ("driver", "labels", "internal")
        refused = refusals.REFUSED_IN_NETWORK
        found = refusals.entries(reader, entry.node, path, known, refused, trusted=document.trusted)
        _driver(reader, found.get("driver"), f"{path}.driver", "bridge", trusted=document.trusted)
        _ignored_labels(reader, found.get("labels"), f"{path}.labels")
        internal = "internal" in found and reader.boolean(found["internal"], f"{path}.internal")
        networks[name] = NetworkSpec(name=name, internal=internal)
    return networks


def _driver(reader: Reader, node: Node | None, path: str, only: str, *, trusted: bool) -> None:
    if node is None or refusals.says_nothing(node):
        return
    text = reader.string(node, path)
    if text is not None and text != only:
        refusals.refuse(reader, "driver", node.line, path, f"only the driver {only} is taken", trusted=trusted, at=node)


def _ignored_labels(reader: Reader, node: Node | None, path: str) -> None:
    if node is not None and not refusals.says_nothing(node):
        reader.note(path, node.line, "are ignored: only services carry labels")


def _contents(reader: Reader, section: MappingNode, name: str, *, trusted: bool) -> Mapping[str, Node]:
    contents: dict[str, Node] = {}
    for key, entry in section.entries.items():
        path = join(name, key)
        refused = refusals.REFUSED_IN_FILE
        found = refusals.entries(reader, entry.node, path, ("content", "labels"), refused, trusted=trusted)
        _ignored_labels(reader, found.get("labels"), f"{path}.labels")
        content = found.get("content")
        if content is None:
            if not isinstance(entry.node, MappingNode) or not refused.keys() & entry.node.entries.keys():
                reader.problem(f"{path}.content", entry.line, "content is required", "missing")
            content = Scalar(None, entry.line)
        elif not isinstance(content, Scalar) or not isinstance(content.value, str):
            reader.expected(content, f"{path}.content", "a string; put it in quotes")
        contents[key] = content
    return contents


def _check_ports(reader: Reader, services: Iterable[ReadService]) -> None:
    """No two services, and no two lines of one, want the same port of the host."""
    taken: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for service in services:
        for path, line, port in service.fixed_ports:
            others = taken.setdefault((port.host_port, port.protocol), [])
            clash = next((other for other, address in others if _same_address(address, port)), None)
            if clash is not None:
                reader.problem(path, line, f"The host port is already published by {clash}")
            others.append((path, port.host_ip))


def _same_address(address: str, port: PortSpec) -> bool:
    return address == port.host_ip or address in _WILDCARDS or port.host_ip in _WILDCARDS


def _check_health(reader: Reader, document: Document, found: Mapping[str, ReadService]) -> None:
    for name, service in found.items():
        for one in service.spec.depends_on:
            target = found.get(one.service)
            if one.condition != "service_healthy" or target is None:
                continue
            path, line = join(join("services", name), "depends_on"), document.services.entries[name].line
            check = target.spec.healthcheck
            if check is None:
                reader.note(path, line, f"waits until {one.service} runs, where its image has no health check either")
            elif check.test == ("NONE",):
                said = f"{one.service} can never become healthy: its health check is switched off"
                reader.problem(path, line, said)


def _in_order(reader: Reader, document: Document, found: Mapping[str, ReadService]) -> tuple[ServiceSpec, ...]:
    waiting = {name: {one.service for one in read.spec.depends_on} & found.keys() for name, read in found.items()}
    order: list[ServiceSpec] = []
    while waiting:
        ready = next((name for name, needs in waiting.items() if not needs), None)
        if ready is None:
            names = ", ".join(sorted(waiting))
            first = next(iter(waiting))
            path, line = join(join("services", first), "depends_on"), document.services.entries[first].line
            reader.problem(path, line, f"These services wait for each other in a circle: {shown(names)}")
            break
        order.append(found[ready].spec)
        del waiting[ready]
        for needs in waiting.values():
            needs.discard(ready)
    return tuple(order)


def to_plain(section: MappingNode) -> dict[str, dict[str, Any]]:
    """A section for storing; an entry of nothing (`data:`) becomes an empty mapping."""
    return {name: plain(entry.node) or {} for name, entry in section.entries.items()}


def from_stored(section: Mapping[str, Any]) -> MappingNode:
    node = from_plain(dict(section))
    assert isinstance(node, MappingNode)
    return node
