"""One service of a Compose file as a `ServiceSpec`: the one validator, for a file as for a template with its config."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quazzar.instance.apps.spec import (
    AttachmentSpec,
    DependencySpec,
    HostSpec,
    PortSpec,
    ResourceSpec,
    RestartSpec,
    ServiceSpec,
    UlimitSpec,
)
from quazzar.instance.templates import quantities, refusals
from quazzar.instance.templates.commands import Word, check_shell_words, filled_words, read_words
from quazzar.instance.templates.health import read_healthcheck
from quazzar.instance.templates.host_access import TRUSTED
from quazzar.instance.templates.mounts import Mounts
from quazzar.instance.templates.names import (
    DEFAULT_CAPABILITIES,
    SAFE_CAPABILITIES,
    ULIMITS,
    capability,
    container_path,
    environment_name,
    image_reference,
    label_name,
    network_alias,
    stop_signal,
    user_name,
)
from quazzar.instance.templates.pairs import read_pairs
from quazzar.instance.templates.ports import LongPort, is_fixed, port_spec
from quazzar.instance.templates.problems import join, shown
from quazzar.instance.templates.reader import Reader, known, last
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar

DEFAULT_NETWORK = "default"
MAX_PIDS = 65_536
OWN_NETWORKS = ("bridge", "default")
"""The values of `network_mode` that ask for no more than any network."""
NETWORK_MODES: Mapping[str, str] = {
    "none": "write networks: [inside] and networks: {inside: {internal: true}}",
    "service": "it shares the network of another service; left out, its traffic no longer goes through that one",
    "container": "it shares the network of another container; left out, its traffic no longer goes through that one",
}
"""Those where leaving it out would give the service more than the file does, and what to know of them."""
LOG_DRIVERS = ("json-file", "local")
"""Those that keep logs on this machine, as the platform does."""
RESTARTS = ("no", "always", "on-failure", "unless-stopped")
CONDITIONS = ("service_started", "service_healthy", "service_completed_successfully")
_PULL_POLICY = re.compile(r"always|never|missing|if_not_present|daily|weekly|every_(?:[0-9]{1,4}[wdhms])+")
_PLATFORM = re.compile(r"[a-z0-9]{1,20}(?:/[a-z0-9_]{1,20}(?:/[a-z0-9]{1,10})?)?")
_EXPOSED = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:/(?:tcp|udp))?")
_RETRIES = re.compile(r"on-failure:([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Declared:
    """What the file declares beside its services; `configs` and `secrets` map a name to its content."""

    services: frozenset[str]
    volumes: frozenset[str]
    networks: frozenset[str]
    configs: Mapping[str, Node]
    secrets: Mapping[str, Node]
    trusted: bool


@dataclass(slots=True)
class _Draft:
    """A service that is being read; keys come in any order, so what needs two of them waits for the end."""

    name: str
    path: str
    line: int
    values: dict[str, Any] = field(default_factory=dict)
    words: dict[str, list[Word]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    cap_add: frozenset[str] = frozenset()
    cap_drop: frozenset[str] = frozenset()
    container_name: str | None = None


@dataclass(slots=True, frozen=True)
class ReadService:
    """The spec, and which of its ports stand in the file as fixed numbers."""

    spec: ServiceSpec
    fixed_ports: tuple[tuple[str, int, PortSpec], ...]
    """Path, line and spec."""


class ServiceReader:
    """Reads the services of one file with one `Reader`."""

    def __init__(self, reader: Reader, declared: Declared) -> None:
        self.reader = reader
        self.declared = declared
        self._keys: Mapping[str, Callable[[_Draft, Node, str], None]] = {
            "image": self._image,
            "command": self._words,
            "entrypoint": self._words,
            "environment": self._environment,
            "ports": self._ports,
            "depends_on": self._depends_on,
            "healthcheck": self._healthcheck,
            "restart": self._restart,
            "user": self._user,
            "working_dir": self._simple("working_dir", container_path),
            "hostname": self._simple("hostname", network_alias),
            "stop_signal": self._simple("stop_signal", stop_signal),
            "read_only": self._flag("read_only"),
            "init": self._flag("init"),
            "cap_add": self._cap_add,
            "cap_drop": self._cap_drop,
            "stop_grace_period": self._stop_grace_period,
            "ulimits": self._ulimits,
            "shm_size": self._shm_size,
            "labels": self._labels,
            "networks": self._networks,
            "deploy": self._deploy,
            "mem_limit": self._limit("memory_bytes", quantities.memory_bytes),
            "mem_reservation": self._limit("memory_reservation_bytes", quantities.memory_bytes),
            "cpus": self._limit("cpus", quantities.cpu_count),
            "pids_limit": self._limit("pids", _pids),
            "container_name": self._container_name,
        }
        self._checks: Mapping[str, Callable[[Node, str], None]] = {
            "expose": self._expose,
            "platform": self._platform,
            "pull_policy": self._pull_policy,
            "security_opt": self._security_opt,
        }

    MOUNT_KEYS = ("volumes", "tmpfs", "configs", "secrets")

    def read(self, name: str, node: Node, path: str, line: int) -> ReadService | None:
        """The service `name`; None when it isn't even a mapping. After a problem, the spec is not to be used."""
        if not isinstance(node, MappingNode):
            self.reader.expected(node, path, "a mapping")
            return None
        draft = _Draft(name=name, path=path, line=line)
        for key, key_line, value, where in self.reader.mapping(node, path):
            self._key(draft, key, key_line, value, where)
        if "image" not in node.entries and "build" not in node.entries:
            self.reader.problem(f"{path}.image", line, "image is required", "missing")
        self._shell_words(draft)
        mounts = self._mounts(draft)
        if not self.reader.problems.full:
            self._attach_name(draft)
        reserved, most = (draft.resources.get(key) for key in ("memory_reservation_bytes", "memory_bytes"))
        if reserved is not None and most is not None and reserved > most:
            self.reader.problem(path, line, f"{name} reserves more memory than its limit")
        values = draft.values
        host = HostSpec(**draft.host, binds=tuple(mounts.binds))
        if host.network:
            self._check_host_network(draft)
        values.setdefault("networks", () if host.network else (AttachmentSpec(network=DEFAULT_NETWORK),))
        spec = ServiceSpec(
            name=name,
            image=values.pop("image", ""),
            mounts=tuple(mounts.volumes),
            tmpfs=tuple(mounts.tmpfs),
            files=tuple(mounts.files),
            cap_drop=("ALL",),
            cap_add=tuple(sorted(self._capabilities(draft))),
            resources=ResourceSpec(**draft.resources),
            init=values.pop("init", False),
            host=host,
            **{key: value for key, value in values.items() if key != "fixed_ports"},
        )
        return ReadService(spec=spec, fixed_ports=tuple(values.get("fixed_ports", ())))

    def _key(self, draft: _Draft, key: str, line: int, value: Node, path: str) -> None:
        if key in self.MOUNT_KEYS:
            draft.nodes[key] = value
        elif (said := _asks_for_nothing(key, value)) is not None:
            self.reader.note(path, line, said)
        elif key == "network_mode" and isinstance(value, Scalar) and (reason := _network_mode(value)):
            refusals.refuse(self.reader, key, line, path, reason, trusted=self.declared.trusted)
        elif self.declared.trusted and key in TRUSTED:
            if not refusals.says_nothing(value):
                TRUSTED[key](self.reader, draft.host, value, path)
        elif key in self._keys:
            if isinstance(value, Scalar) and value.value is None and key != "image":
                return  # as in Compose: a key without a value says nothing
            self._keys[key](draft, value, path)
        elif key in self._checks:
            if not refusals.says_nothing(value):
                self._checks[key](value, path)
        elif key in refusals.REFUSED_IN_SERVICE:
            if not refusals.says_nothing(value) or key in {"build", "extends"}:
                reason = refusals.REFUSED_IN_SERVICE[key]
                refusals.refuse(self.reader, key, line, path, reason, trusted=self.declared.trusted)
        elif key in refusals.UNSUPPORTED_IN_SERVICE:
            if not refusals.says_nothing(value):
                refusals.unsupported(self.reader, key, line, path, refusals.UNSUPPORTED_IN_SERVICE[key])
        else:
            self.reader.unknown(key, line, path, (*self._keys, *self._checks, *self.MOUNT_KEYS))

    # Plain values

    def _simple(self, name: str, parse: Callable[[str], str]) -> Callable[[_Draft, Node, str], None]:
        def read(draft: _Draft, node: Node, path: str) -> None:
            text = self.reader.parsed(node, path, parse, "")
            if text:
                draft.values[name] = text

        return read

    def _flag(self, name: str) -> Callable[[_Draft, Node, str], None]:
        def read(draft: _Draft, node: Node, path: str) -> None:
            draft.values[name] = self.reader.boolean(node, path)

        return read

    def _limit(self, name: str, parse: Callable[[str], Any]) -> Callable[[_Draft, Node, str], None]:
        def read(draft: _Draft, node: Node, path: str) -> None:
            self._set_limit(draft, name, node, path, parse)

        return read

    def _set_limit(self, draft: _Draft, name: str, node: Node, path: str, parse: Callable[[str], Any]) -> None:
        value = self.reader.parsed(node, path, parse, None, loose=True)
        if value is None:
            return
        if draft.resources.get(name, value) != value:
            self.reader.problem(path, node.line, f"{last(path)} and the same limit elsewhere differ", at=node)
        draft.resources[name] = value

    def _image(self, draft: _Draft, node: Node, path: str) -> None:
        draft.values["image"] = self.reader.parsed(node, path, image_reference, "")

    def _user(self, draft: _Draft, node: Node, path: str) -> None:
        user = self.reader.parsed(node, path, user_name, "", loose=True)
        if user:
            draft.values["user"] = user

    def _stop_grace_period(self, draft: _Draft, node: Node, path: str) -> None:
        draft.values["stop_grace_seconds"] = self.reader.parsed(
            node, path, quantities.duration_seconds, 10.0, loose=True
        )

    def _shm_size(self, draft: _Draft, node: Node, path: str) -> None:
        size = self.reader.parsed(node, path, quantities.size_bytes, 0, loose=True)
        if size:
            draft.values["shm_size_bytes"] = size

    def _restart(self, draft: _Draft, node: Node, path: str) -> None:
        text = known(self.reader.string(node, path))
        if text is None:
            return
        retries = _RETRIES.fullmatch(text)
        if retries is not None:
            draft.values["restart"] = RestartSpec(policy="on-failure", max_retries=int(retries[1]))
        elif text in RESTARTS:
            draft.values["restart"] = RestartSpec(policy=text)  # type: ignore[arg-type]
        else:
            self.reader.expected(node, path, f"one of: {', '.join(RESTARTS)}")

    def _container_name(self, draft: _Draft, node: Node, path: str) -> None:
        name = self.reader.parsed(node, path, network_alias, "")
        said = "is kept as a network alias only: containers are named by the platform, so that they never clash"
        self.reader.note(path, node.line, said)
        draft.container_name = name or None

    def _check_host_network(self, draft: _Draft) -> None:
        for key in ("networks", "ports"):
            if draft.values.get(key):
                said = f"{key} means nothing with network_mode: host, where all ports of the service are the host's"
                self.reader.problem(join(draft.path, key), draft.line, said)

    def _attach_name(self, draft: _Draft) -> None:
        """Other services of a file may know this one by its container's name, as Docker's own DNS allows."""
        name = draft.container_name
        if name is None or name in self.declared.services or draft.host.get("network"):
            return
        attachments = draft.values.get("networks", (AttachmentSpec(network=DEFAULT_NETWORK),))
        draft.values["networks"] = tuple(
            AttachmentSpec(network=one.network, aliases=(*one.aliases, name)) for one in attachments
        )

    def _platform(self, node: Node, path: str) -> None:
        text = known(self.reader.string(node, path))
        if text is not None and not _PLATFORM.fullmatch(text):
            self.reader.expected(node, path, "a platform such as linux/amd64")
        self.reader.note(path, node.line, "is ignored: images of the engine's own platform are used")

    def _pull_policy(self, node: Node, path: str) -> None:
        text = known(self.reader.string(node, path))
        if text == "build":
            reason = refusals.REFUSED_IN_SERVICE["build"]
            refusals.refuse(self.reader, "build", node.line, path, reason, trusted=self.declared.trusted)
        elif text is not None and not _PULL_POLICY.fullmatch(text):
            self.reader.expected(node, path, "one of: always, missing, never, daily, weekly, every_<duration>")
        elif text not in {"missing", "if_not_present"}:
            self.reader.note(path, node.line, "is ignored: images are pulled by an install and by an update")

    def _expose(self, node: Node, path: str) -> None:
        for item, where in self.reader.sequence(node, path):
            text = known(self.reader.text(item, where))
            if text is not None and not _EXPOSED.fullmatch(text):
                self.reader.expected(item, where, "a port such as 3000")

    def _security_opt(self, node: Node, path: str) -> None:
        for item, where in self.reader.sequence(node, path):
            text = known(self.reader.string(item, where))
            if text is not None and text.replace("=", ":") not in {"no-new-privileges", "no-new-privileges:true"}:
                reason = "only no-new-privileges is taken, and it is always on"
                refusals.refuse(
                    self.reader, "security_opt", item.line, where, reason, trusted=self.declared.trusted, at=item
                )

    # Command, entrypoint, health

    def _words(self, draft: _Draft, node: Node, path: str) -> None:
        key = last(path)
        draft.words[key] = list(read_words(self.reader, node, path))
        draft.values[key] = tuple(map(str, filled_words(self.reader, draft.words[key])))

    def _shell_words(self, draft: _Draft) -> None:
        entrypoint = draft.words.get("entrypoint", [])
        check_shell_words(self.reader, entrypoint)
        check_shell_words(self.reader, draft.words.get("command", []), after=entrypoint)

    def _healthcheck(self, draft: _Draft, node: Node, path: str) -> None:
        check = read_healthcheck(self.reader, node, path)
        if check is not None:
            draft.values["healthcheck"] = check

    # Maps and lists

    def _environment(self, draft: _Draft, node: Node, path: str) -> None:
        draft.values["environment"] = read_pairs(self.reader, node, path, environment_name, bare=self._bare)

    def _bare(self, node: Node, path: str, name: str) -> str | None:
        """`NAME` without a value takes the value of the field of that name, and isn't there where that has none."""
        if name in self.reader.names:
            return self.reader.values.get(name)
        if self.reader.from_environment:
            self.reader.note(path, node.line, "has no value and is left out; give it in env")
        else:
            said = f"{shown(name)} has no value; write {shown(name)}= for an empty one"
            self.reader.problem(path, node.line, said, "missing")
        return None

    def _labels(self, draft: _Draft, node: Node, path: str) -> None:
        draft.values["labels"] = read_pairs(self.reader, node, path, label_name, bare=lambda *_: "")

    def _ports(self, draft: _Draft, node: Node, path: str) -> None:
        specs: list[PortSpec] = []
        fixed: list[tuple[str, int, PortSpec]] = []
        for item, where in self.reader.sequence(node, path):
            place = item.place if isinstance(item, LongPort) else where
            spec = port_spec(self.reader, item, place)
            if spec is None:
                continue
            specs.append(spec)
            if is_fixed(item) or self.reader.final:
                fixed.append((place, item.line, spec))
        draft.values["ports"] = tuple(specs)
        draft.values["fixed_ports"] = fixed

    def _depends_on(self, draft: _Draft, node: Node, path: str) -> None:
        found: list[DependencySpec] = []
        if isinstance(node, MappingNode):
            for key, line, value, where in self.reader.named(node, path):
                if self._is_service(key, line, where, draft.name, value):
                    found.append(self._dependency(key, value, where))
        else:
            for item, where in self.reader.sequence(node, path, "a list of services or a mapping"):
                name = known(self.reader.string(item, where))
                if name is not None and self._is_service(name, item.line, where, draft.name, item):
                    found.append(DependencySpec(service=name))
        once = {one.service: one for one in found}
        if len(once) < len(found):
            self.reader.problem(path, node.line, "depends_on names a service more than once")
        draft.values["depends_on"] = tuple(once.values())

    def _is_service(self, name: str, line: int, path: str, own: str, at: Node) -> bool:
        if name == own:
            self.reader.problem(path, line, f"{self.reader.shown(name)} depends on itself", at=at)
            return False
        if name not in self.declared.services:
            self.reader.problem(path, line, f"There is no service {self.reader.shown(name)}", "unknown", at=at)
            return False
        return True

    def _dependency(self, name: str, node: Node, path: str) -> DependencySpec:
        if isinstance(node, Scalar) and node.value is None:
            return DependencySpec(service=name)
        found = self.reader.entries(node, path, ("condition", "required", "restart"))
        condition: Any = CONDITIONS[0]
        if "condition" in found:
            condition = self.reader.choice(found["condition"], f"{path}.condition", CONDITIONS) or condition
        if "restart" in found and self.reader.boolean(found["restart"], f"{path}.restart"):
            said = "is ignored: a restart of one service leaves the others as they are"
            self.reader.note(f"{path}.restart", found["restart"].line, said)
        required = self.reader.boolean(found["required"], f"{path}.required", True) if "required" in found else True
        return DependencySpec(service=name, condition=condition, required=required)

    def _networks(self, draft: _Draft, node: Node, path: str) -> None:
        found: dict[str, AttachmentSpec] = {}
        if isinstance(node, MappingNode):
            for key, line, value, where in self.reader.named(node, path):
                if self._is_network(key, line, where, value):
                    found[key] = AttachmentSpec(network=key, aliases=self._aliases(value, where))
        else:
            for item, where in self.reader.sequence(node, path, "a list of networks or a mapping"):
                name = known(self.reader.string(item, where))
                if name is not None and self._is_network(name, item.line, where, item):
                    found[name] = AttachmentSpec(network=name)
        if found:
            draft.values["networks"] = tuple(found.values())

    def _is_network(self, name: str, line: int, path: str, at: Node) -> bool:
        if name == DEFAULT_NETWORK or name in self.declared.networks:
            return True
        said = f"{self.reader.shown(name)} is not declared under networks"
        self.reader.problem(path, line, said, "unknown", at=at)
        return False

    def _aliases(self, node: Node, path: str) -> tuple[str, ...]:
        if isinstance(node, Scalar) and node.value is None:
            return ()
        found: dict[str, None] = {}
        for key, line, value, where in self.reader.mapping(node, path):
            if key == "aliases":
                for item, place in self.reader.sequence(value, where):
                    alias = self.reader.parsed(item, place, network_alias, "")
                    found |= {alias: None} if alias else {}
            elif key in {"priority", "gw_priority"}:
                self.reader.note(where, line, "is ignored")
            elif key in _NETWORK_ADDRESSES:
                refusals.unsupported(self.reader, key, line, where, "addresses are given by the engine; leave it out")
            else:
                self.reader.unknown(key, line, where, ("aliases",))
        return tuple(found)

    def _ulimits(self, draft: _Draft, node: Node, path: str) -> None:
        found: list[UlimitSpec] = []
        for key, line, value, where in self.reader.named(node, path):
            if key not in ULIMITS:
                self.reader.problem(
                    where, line, f"{shown(key)} must be one of: {', '.join(sorted(ULIMITS))}", "refused"
                )
                continue
            if isinstance(value, Scalar):
                soft = hard = self.reader.parsed(value, where, _ulimit, 0, loose=True)
            else:
                pair = self.reader.entries(value, where, ("soft", "hard"))
                if len(pair) < 2:
                    self.reader.problem(where, line, f"{key} needs soft and hard", "missing")
                    continue
                soft = self.reader.parsed(pair["soft"], f"{where}.soft", _ulimit, 0, loose=True)
                hard = self.reader.parsed(pair["hard"], f"{where}.hard", _ulimit, 0, loose=True)
            if hard != -1 and (soft > hard or soft == -1):
                self.reader.problem(where, line, f"{key}: soft must not be above hard", at=value)
            found.append(UlimitSpec(name=key, soft=soft, hard=hard))
        draft.values["ulimits"] = tuple(found)

    # Capabilities and limits

    def _cap_add(self, draft: _Draft, node: Node, path: str) -> None:
        found: set[str] = set()
        for item, where in self.reader.sequence(node, path):
            name = self.reader.parsed(item, where, capability, "")
            if not name:
                continue
            if name == "ALL" or (name not in SAFE_CAPABILITIES and not self.declared.trusted):
                said = (
                    f"cap_add is refused: of the capabilities only {', '.join(sorted(SAFE_CAPABILITIES))} can be added"
                )
                said += "" if name == "ALL" else ", unless the template is trusted"
                self.reader.problem(where, item.line, said, "refused", at=item)
                continue
            found.add(name)
        draft.cap_add = frozenset(found)

    def _cap_drop(self, draft: _Draft, node: Node, path: str) -> None:
        names = (self.reader.parsed(item, where, capability, "") for item, where in self.reader.sequence(node, path))
        draft.cap_drop = frozenset(name for name in names if name)

    def _capabilities(self, draft: _Draft) -> frozenset[str]:
        """All are dropped; these come back. What a template adds by name beats what it drops, as in the engine."""
        kept = frozenset() if "ALL" in draft.cap_drop else DEFAULT_CAPABILITIES - draft.cap_drop
        return kept | draft.cap_add

    def _deploy(self, draft: _Draft, node: Node, path: str) -> None:
        for key, line, value, where in self.reader.mapping(node, path):
            if key == "resources":
                self._deploy_resources(draft, value, where)
            elif isinstance(value, Scalar) and (key, str(value.value)) in _ONE_CONTAINER:
                continue
            elif key in _DEPLOY_KEYS:
                refusals.unsupported(self.reader, key, line, where, _DEPLOY_KEYS[key])
            else:
                self.reader.unknown(key, line, where, ("resources", *_DEPLOY_KEYS))

    def _deploy_resources(self, draft: _Draft, node: Node, path: str) -> None:
        found = self.reader.entries(node, path, ("limits", "reservations"))
        if "limits" in found:
            where = f"{path}.limits"
            limits = self.reader.entries(found["limits"], where, ("memory", "cpus", "pids"))
            for key, name, parse in _LIMITS:
                if key in limits:
                    self._set_limit(draft, name, limits[key], f"{where}.{key}", parse)
        if "reservations" not in found:
            return
        for key, line, value, where in self.reader.mapping(found["reservations"], f"{path}.reservations"):
            if key == "memory":
                self._set_limit(draft, "memory_reservation_bytes", value, where, quantities.memory_bytes)
            elif key == "cpus":
                self.reader.parsed(value, where, quantities.cpu_count, 1.0, loose=True)
                self.reader.note(where, line, "is ignored: CPU time is shared, and only limits hold")
            elif key in {"devices", "generic_resources"}:
                refusals.refuse(self.reader, key, line, where, refusals.DEVICES, trusted=self.declared.trusted)
            else:
                self.reader.unknown(key, line, where, ("memory", "cpus"))

    def _mounts(self, draft: _Draft) -> Mounts:
        mounts = Mounts(self.reader, self.declared.volumes, trusted=self.declared.trusted)
        for key in self.MOUNT_KEYS:
            node = draft.nodes.get(key)
            if node is None or (isinstance(node, Scalar) and node.value is None):
                continue
            path = join(draft.path, key)
            match key:
                case "volumes":
                    mounts.add_volumes(node, path)
                case "tmpfs":
                    mounts.add_tmpfs(node, path)
                case "configs":
                    mounts.add_files(node, path, self.declared.configs, folder="/")
                case _:
                    mounts.add_files(node, path, self.declared.secrets, folder="/run/secrets/")
        return mounts


_NETWORK_ADDRESSES = {
    "ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "driver_opts", "interface_name",
}  # fmt: skip


def _network_mode(node: Scalar) -> str | None:
    return NETWORK_MODES.get(str(node.value).partition(":")[0])


def _asks_for_nothing(key: str, node: Node) -> str | None:
    """What to say of a key that asks for no more than every app has."""
    match key, node:
        case "network_mode", Scalar() if node.value in OWN_NETWORKS:
            return "is ignored: every app has networks of its own"
        case "logging", MappingNode() if node.entries:
            driver = node.entries.get("driver")
            if driver is None or (isinstance(driver.node, Scalar) and driver.node.value in LOG_DRIVERS):
                return "is ignored: logs are kept and shown by the platform"
    return None


def _pids(text: str) -> int:
    return quantities.whole_number(text, 1, MAX_PIDS)


_LIMITS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("memory", "memory_bytes", quantities.memory_bytes),
    ("cpus", "cpus", quantities.cpu_count),
    ("pids", "pids", _pids),
)
_ONE_CONTAINER = {("replicas", "1"), ("mode", "replicated")}
_DEPLOY_KEYS: Mapping[str, str] = {
    "replicas": "each service is one container",
    "mode": "each service is one container",
    "endpoint_mode": "each service is one container",
    "labels": "use labels of the service",
    "placement": "an app runs where it is installed; leave it out",
    "restart_policy": "use restart",
    "update_config": "updates and rollbacks are the platform's; leave it out",
    "rollback_config": "updates and rollbacks are the platform's; leave it out",
}


def _ulimit(text: str) -> int:
    return quantities.whole_number(text, -1, 2**40)
