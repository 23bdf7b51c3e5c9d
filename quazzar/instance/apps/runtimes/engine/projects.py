"""A Compose project that is on an engine, told again in Compose's own words.

What a container was made with is all there is: of the file that it came from nothing is read. What its image says by
itself is left out, so that only what somebody asked for is judged. Settings of the engine that no key of Compose stands
for are problems of their own, also those that a later engine may bring.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from quazzar.instance.apps.runtimes.base import (
    AdoptedNetwork,
    AdoptedVolume,
    ImageNotFound,
    PortState,
    Project,
    ServiceState,
)
from quazzar.instance.apps.runtimes.engine import objects
from quazzar.instance.apps.runtimes.engine.adopted import COMPOSE_PROJECT
from quazzar.instance.apps.runtimes.engine.connection import Engine
from quazzar.instance.apps.runtimes.engine.failures import Gone
from quazzar.instance.apps.runtimes.engine.images import Images

_SERVICE: Final = "com.docker.compose.service"
_ONE_OFF: Final = "com.docker.compose.oneoff"
_DEPENDS: Final = "com.docker.compose.depends_on"
_VOLUME: Final = "com.docker.compose.volume"
_NETWORK: Final = "com.docker.compose.network"
_NAMELESS: Final = re.compile(r"[0-9a-f]{64}")
_IMAGE_ID: Final = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}")
_SHM_BYTES: Final = 64 * 1024 * 1024
_READABLE_LOGS: Final = frozenset({"json-file", "local", "journald"})
_NOBODYS: Final = frozenset({"host", "none", "bridge"})
"""Networks that every engine has; who is on one says so with `network_mode`."""


async def survey(engine: Engine, images: Images, project: str) -> Project | None:
    """See `Runtime.survey`."""
    label = {"label": [f"{COMPOSE_PROJECT}={project}"]}
    listed = await _list(engine, "containers/json", {"all": "1"}, label)
    containers = []
    for one in sorted(listed, key=lambda one: (one["Created"], one["Names"])):
        try:
            containers.append(await engine.ask("GET", f"containers/{one['Id']}/json"))
        except Gone:
            continue
    if not containers:
        return None
    found = _Found(project, await engine.ask("GET", "info"))
    for network in await _list(engine, "networks", {}, label):
        found.networks.append(await engine.ask("GET", f"networks/{network['Id']}"))
    for name in sorted({mount["Name"] for one in containers for mount in _mounts(one) if mount["Type"] == "volume"}):
        found.volumes[name] = await engine.ask("GET", f"volumes/{name}")
        users = await _list(engine, "containers/json", {"all": "1"}, {"volume": [name]})
        found.note_users(name, users, containers)
    for one in containers:
        try:
            image = await images.inspect_id(one["Image"])
        except ImageNotFound:
            image = {}
        digest = await images.digest_of(one["Image"], one["Config"]["Image"])
        found.add(one, image, digest)
    return found.project()


async def _list(
    engine: Engine, path: str, params: Mapping[str, str], filters: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    return list(await engine.ask("GET", path, params={**params, "filters": msgspec.json.encode(filters).decode()}))


def _mounts(container: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return container.get("Mounts") or ()


class _Found:
    """What was found of a project, and what is said of it."""

    def __init__(self, name: str, info: Mapping[str, Any]) -> None:
        self.name = name
        self.info = info
        self.networks: list[Mapping[str, Any]] = []
        self.volumes: dict[str, Mapping[str, Any]] = {}
        self._services: dict[str, dict[str, Any]] = {}
        self._containers: dict[str, tuple[str, str]] = {}
        self._states: dict[str, ServiceState] = {}
        self._ports: list[PortState] = []
        self._images: dict[str, str] = {}
        self._adopted_volumes: dict[str, AdoptedVolume] = {}
        self._declared: dict[str, dict[str, Any]] = {}
        self._foreign_networks: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, str] = {}
        self._taken = False

    # Objects

    def note_users(self, volume: str, users: Iterable[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
        ids = {one["Id"] for one in own}
        others = sorted(
            _name(one["Names"][0] if one.get("Names") else one["Id"]) for one in users if one["Id"] not in ids
        )
        if others:
            said = f"It is used by the container {others[0]} too, which is not of this project"
            self._problems[f"volumes.{volume}"] = said

    def add(self, container: Mapping[str, Any], image: Mapping[str, Any], digest: str) -> None:
        labels = container["Config"].get("Labels") or {}
        name, service = _name(container["Name"]), labels.get(_SERVICE, "")
        where = f"containers.{name}"
        if objects.APP in labels:
            self._taken = True
        if labels.get(_ONE_OFF, "").lower() == "true":
            self._problems[where] = "It was made by `docker compose run`; remove it first"
        elif not service:
            self._problems[where] = "It does not say which service it is"
        elif service in self._services:
            other = self._containers[service][1]
            self._problems[where] = f"{other} is of the same service, and each service is one container here"
        else:
            self._containers[service] = (container["Id"], name)
            told = self._service(where, service, container, image)
            self._services[service] = told
            self._images[str(told["image"])] = digest
            noted = objects.labels("", {objects.SERVICE: service, objects.IMAGE: str(told["image"])})
            config = {**container["Config"], "Labels": noted}
            held = objects.held({**container, "Config": config}, image_digest=digest)
            self._states[service] = held.state
            self._ports += held.ports

    def project(self) -> Project:
        networks: dict[str, AdoptedNetwork] = {}
        declared: dict[str, dict[str, Any]] = dict(self._foreign_networks)
        for one in self.networks:
            short = (one.get("Labels") or {}).get(_NETWORK, "")
            if not short:
                continue
            networks[one["Id"]] = AdoptedNetwork(name=short, engine_name=one["Name"])
            declared[short] = _network(one)
            ids = {container_id for container_id, _ in self._containers.values()}
            for container_id, endpoint in (one.get("Containers") or {}).items():
                if container_id not in ids:
                    said = (
                        f"The container {endpoint.get('Name', container_id)} is on it too, which is not of this project"
                    )
                    self._problems[f"networks.{short}"] = said
        compose: dict[str, Any] = {"services": _escaped(self._services)}
        if self._declared:
            compose["volumes"] = _escaped(self._declared)
        if declared and declared != {"default": {}}:
            compose["networks"] = _escaped(declared)
        return Project(
            name=self.name,
            compose=compose,
            containers=self._containers,
            states=self._states,
            ports=tuple(self._ports),
            images=self._images,
            networks=networks,
            volumes=self._adopted_volumes,
            problems=self._problems,
            taken=self._taken,
        )

    # One service

    def _service(
        self, where: str, service: str, container: Mapping[str, Any], image: Mapping[str, Any]
    ) -> dict[str, Any]:
        config, host, own = container["Config"], container["HostConfig"], image.get("Config") or {}
        written: dict[str, Any] = {"image": _image_name(config["Image"], image)}
        written |= _process(container, own)
        written |= _limits(host)
        for key, value in host.items():
            compose = _REFUSED.get(key)
            if compose is not None and not _says_nothing(key, value):
                written[compose] = value if compose in _KEPT else True
            elif compose is None and key not in _KNOWN and not _says_nothing(key, value):
                self._problems[f"{where}.{key}"] = f"The engine's setting {key} is not known here"
        written |= self._reach(host, config)
        self._logs(where, host)
        depends = _depends_on((config.get("Labels") or {}).get(_DEPENDS, ""))
        mounts = [one for mount in _mounts(container) if (one := self._mount(service, mount, own)) is not None]
        lists = {
            "ports": _ports(container),
            "depends_on": depends,
            "volumes": [*mounts, *_tmpfs_mounts(host)],
            "tmpfs": [f"{path}:{options}" if options else path for path, options in (host.get("Tmpfs") or {}).items()],
            "networks": self._networks_of(service, container),
        }
        return written | {key: value for key, value in lists.items() if value}

    def _reach(self, host: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Ways out of the container, each as Compose says it; the validator judges them."""
        written: dict[str, Any] = {}
        mode = str(host.get("NetworkMode") or "")
        if mode in {"host", "none", "bridge", "default"} or mode.startswith("container:"):
            written["network_mode"] = "bridge" if mode == "default" else mode
        if (ipc := str(host.get("IpcMode") or "")) not in {"", "private", "shareable"}:
            written["ipc"] = ipc
        if (pid := str(host.get("PidMode") or "")) != "":
            written["pid"] = pid
        if host.get("CgroupnsMode") == "host" and str(self.info.get("CgroupVersion")) == "2":
            written["cgroup"] = "host"
        if host.get("Runtime") not in {None, "", self.info.get("DefaultRuntime")}:
            written["runtime"] = host["Runtime"]
        options = [str(one) for one in host.get("SecurityOpt") or ()]
        if not host.get("Privileged") and "MaskedPaths" in host and not host["MaskedPaths"]:
            options.append("systempaths=unconfined")
        if options:
            written["security_opt"] = options
        if devices := host.get("Devices"):
            written["devices"] = [
                ":".join((one["PathOnHost"], one["PathInContainer"], one["CgroupPermissions"])) for one in devices
            ]
        for key, compose in (("Tty", "tty"), ("OpenStdin", "stdin_open"), ("Domainname", "domainname")):
            if config.get(key):
                written[compose] = config[key]
        return written

    def _logs(self, where: str, host: Mapping[str, Any]) -> None:
        driver = (host.get("LogConfig") or {}).get("Type", "")
        if driver not in _READABLE_LOGS:
            self._problems[f"{where}.logging"] = f"Its logs go to {driver or 'nowhere'}, from where they can't be read"
        if host.get("AutoRemove"):
            self._problems[where] = "It is removed by the engine when it stops"
        if host.get("PublishAllPorts"):
            self._problems[f"{where}.ports"] = "All ports of its image are published; name those that shall be"

    def _mount(self, service: str, mount: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any] | None:
        target, read_only = mount["Destination"], not mount.get("RW", True)
        written = {"type": mount["Type"], "target": target, **({"read_only": True} if read_only else {})}
        if mount["Type"] != "volume":
            propagation = mount.get("Propagation") or "rprivate"
            more = {"bind": {"propagation": propagation}} if propagation != "rprivate" else {}
            return written | {"source": str(mount.get("Source", ""))} | more
        name = mount["Name"]
        volume = self.volumes[name]
        labels = volume.get("Labels") or {}
        if labels.get(COMPOSE_PROJECT) == self.name and labels.get(_VOLUME):
            short = str(labels[_VOLUME])
            self._declared[short] = _volume(volume)
        elif _NAMELESS.fullmatch(name) and COMPOSE_PROJECT not in labels:
            if target in (own.get("Volumes") or {}) and not read_only:
                # What an image declares as its data needs no word in the file.
                self._adopt(objects.image_volume_name(service, target), name, labels)
                return None
            short = f"nameless-{service}-{sha256(target.encode()).hexdigest()[:8]}"
            self._declared[short] = _volume(volume)
        else:
            self._declared[name] = {"external": True}
            return written | {"source": name}
        self._adopt(short, name, labels)
        return written | {"source": short}

    def _adopt(self, short: str, engine_name: str, labels: Mapping[str, str]) -> None:
        self._adopted_volumes[engine_name] = AdoptedVolume(name=short, labels=dict(labels))

    def _networks_of(self, service: str, container: Mapping[str, Any]) -> dict[str, Any]:
        names = {one["Id"]: one for one in self.networks} | {one["Name"]: one for one in self.networks}
        own = {service, _name(container["Name"]), container["Id"][:12]}
        found: dict[str, Any] = {}
        for name, endpoint in ((container.get("NetworkSettings") or {}).get("Networks") or {}).items():
            if name in _NOBODYS:
                continue
            network = names.get(endpoint.get("NetworkID") or "") or names.get(name)
            short = ((network or {}).get("Labels") or {}).get(_NETWORK)
            if short is None:
                short = name
                self._foreign_networks[name] = {"external": True}
            told: dict[str, Any] = {}
            aliases = sorted({str(one) for one in endpoint.get("Aliases") or ()} - own)
            if aliases:
                told["aliases"] = aliases
            address = endpoint.get("IPAMConfig") or {}
            for key, compose in (("IPv4Address", "ipv4_address"), ("IPv6Address", "ipv6_address")):
                if address.get(key):
                    told[compose] = address[key]
            if endpoint.get("DriverOpts"):
                told["driver_opts"] = endpoint["DriverOpts"]
            found[short] = told
        return {} if found == {"default": {}} else found


def _foreign(container: str) -> str:
    return f"The container {container} uses it too, which is not of this project"


def _name(text: str) -> str:
    return text.removeprefix("/")


def _image_name(name: str, image: Mapping[str, Any]) -> str:
    """As somebody named it; for a bare id one of the names that the image has."""
    tags = [str(one) for one in image.get("RepoTags") or ()]
    return tags[0] if _IMAGE_ID.fullmatch(name) and tags else name


def _process(container: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What runs and how, as far as the image does not say it."""
    config, host = container["Config"], container["HostConfig"]
    written: dict[str, Any] = {}
    entrypoint, command = config.get("Entrypoint"), config.get("Cmd")
    if entrypoint != own.get("Entrypoint"):
        written["entrypoint"] = list(entrypoint or [])
        if command:
            written["command"] = list(command)
    elif command != own.get("Cmd"):
        written["command"] = list(command or [])
    inherited = set(own.get("Env") or ())
    environment = dict(one.split("=", 1) for one in config.get("Env") or () if one not in inherited and "=" in one)
    if environment:
        written["environment"] = environment
    base = own.get("Labels") or {}
    labels = {
        name: value
        for name, value in (config.get("Labels") or {}).items()
        if base.get(name) != value and not name.startswith("com.docker.")
    }
    if labels:
        written["labels"] = labels
    for key, compose in (("User", "user"), ("WorkingDir", "working_dir")):
        if config.get(key) and config[key] != own.get(key):
            written[compose] = config[key]
    if config.get("StopSignal") not in {None, "", "SIGTERM", own.get("StopSignal")}:
        written["stop_signal"] = config["StopSignal"]
    if config.get("StopTimeout") is not None:
        written["stop_grace_period"] = f"{config['StopTimeout']}s"
    if config.get("Hostname") not in {None, "", container["Id"][:12]}:
        written["hostname"] = config["Hostname"]
    if (check := config.get("Healthcheck")) and check != own.get("Healthcheck"):
        written["healthcheck"] = _healthcheck(check)
    if host.get("Init"):
        written["init"] = True
    if host.get("ReadonlyRootfs"):
        written["read_only"] = True
    policy = host.get("RestartPolicy") or {}
    retries = f":{policy['MaximumRetryCount']}" if policy.get("MaximumRetryCount") else ""
    written["restart"] = (policy.get("Name") or "no") + retries
    return written


def _healthcheck(check: Mapping[str, Any]) -> dict[str, Any]:
    test = list(check.get("Test") or ())
    if test[:1] == ["NONE"]:
        return {"disable": True}
    written: dict[str, Any] = {"test": test}
    for key, compose in (("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period")):
        if check.get(key):
            written[compose] = f"{check[key] // 1000}us"
    if check.get("Retries"):
        written["retries"] = check["Retries"]
    return written


def _limits(host: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if host.get("Memory"):
        written["mem_limit"] = host["Memory"]
    if host.get("MemoryReservation"):
        written["mem_reservation"] = host["MemoryReservation"]
    if host.get("NanoCpus"):
        written["cpus"] = f"{host['NanoCpus'] / 1e9:g}"
    elif host.get("CpuQuota", 0) > 0:
        written["cpus"] = f"{host['CpuQuota'] / (host.get('CpuPeriod') or 100_000):.3g}"
    if (host.get("PidsLimit") or 0) > 0:
        written["pids_limit"] = host["PidsLimit"]
    if host.get("ShmSize") not in {None, 0, _SHM_BYTES}:
        written["shm_size"] = host["ShmSize"]
    if host.get("Ulimits"):
        written["ulimits"] = {one["Name"]: {"soft": one["Soft"], "hard": one["Hard"]} for one in host["Ulimits"]}
    return written


def _ports(container: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Published ports; one that the engine has found itself is told as it is now."""
    now = (container.get("NetworkSettings") or {}).get("Ports") or {}
    written: list[dict[str, Any]] = []
    for key, bindings in sorted((container["HostConfig"].get("PortBindings") or {}).items()):
        target, _, protocol = key.partition("/")
        for at, one in enumerate(bindings or ()):
            published = one.get("HostPort") or ""
            if published in {"", "0"}:
                published = next((found["HostPort"] for found in (now.get(key) or ())[at:]), "")
            port = {"target": int(target), "protocol": protocol or "tcp"}
            port |= {"published": published} if published else {}
            port |= {"host_ip": one["HostIp"]} if one.get("HostIp") else {}
            written.append(port)
    return written


def _depends_on(text: str) -> dict[str, Any]:
    """The label's `service:condition:restart`, as every Compose of today writes it."""
    found: dict[str, Any] = {}
    for one in filter(None, text.split(",")):
        service, condition, *_ = [*one.split(":"), ""]
        found[service] = {"condition": condition} if condition else {}
    return found


def _tmpfs_mounts(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the long form; they are not among what the engine tells as mounted."""
    written: list[dict[str, Any]] = []
    for one in host.get("Mounts") or ():
        if one.get("Type") == "tmpfs":
            size = (one.get("TmpfsOptions") or {}).get("SizeBytes")
            more = {"tmpfs": {"size": size}} if size else {}
            written.append({"type": "tmpfs", "target": one["Target"], **more})
    return written


def _volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if volume.get("Driver") not in {None, "", "local"}:
        written["driver"] = volume["Driver"]
    if volume.get("Options"):
        written["driver_opts"] = volume["Options"]
    return written


def _network(network: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if network.get("Driver") not in {None, "", "bridge"}:
        written["driver"] = network["Driver"]
    if network.get("Options"):
        written["driver_opts"] = network["Options"]
    if network.get("Internal"):
        written["internal"] = True
    if network.get("EnableIPv6"):
        written["enable_ipv6"] = True
    return written


def _says_nothing(key: str, value: Any) -> bool:
    """Whether a setting has its default, as far as it is not looked at by itself."""
    if key == "MemorySwappiness":
        return value in {None, -1}
    if key == "Isolation":
        return value in {None, "", "default"}
    if key == "ConsoleSize":
        return True
    return not value


def _escaped(value: Any) -> Any:
    """`value` as Compose writes it: a dollar sign in it begins nothing."""
    match value:
        case str():
            return value.replace("$", "$$")
        case Mapping():
            return {name: _escaped(one) for name, one in value.items()}
        case list() | tuple():
            return [_escaped(one) for one in value]
        case _:
            return value


_REFUSED: Final[Mapping[str, str]] = {
    "BlkioDeviceReadBps": "blkio_config",
    "BlkioDeviceReadIOps": "blkio_config",
    "BlkioDeviceWriteBps": "blkio_config",
    "BlkioDeviceWriteIOps": "blkio_config",
    "BlkioWeight": "blkio_config",
    "BlkioWeightDevice": "blkio_config",
    "CapAdd": "cap_add",
    "CapDrop": "cap_drop",
    "Cgroup": "cgroup",
    "CgroupParent": "cgroup_parent",
    "CpuRealtimePeriod": "cpu_rt_period",
    "CpuRealtimeRuntime": "cpu_rt_runtime",
    "CpuShares": "cpu_shares",
    "CpusetCpus": "cpuset",
    "CpusetMems": "cpuset",
    "DeviceCgroupRules": "device_cgroup_rules",
    "DeviceRequests": "gpus",
    "Dns": "dns",
    "DnsOptions": "dns_opt",
    "DnsSearch": "dns_search",
    "ExtraHosts": "extra_hosts",
    "GroupAdd": "group_add",
    "Isolation": "isolation",
    "Links": "links",
    "MemorySwappiness": "mem_swappiness",
    "OomKillDisable": "oom_kill_disable",
    "OomScoreAdj": "oom_score_adj",
    "Privileged": "privileged",
    "StorageOpt": "storage_opt",
    "Sysctls": "sysctls",
    "UTSMode": "uts",
    "UsernsMode": "userns_mode",
    "VolumesFrom": "volumes_from",
}
"""Settings that Compose has a key for: the validator says what it thinks of that."""
_KEPT: Final = frozenset({"cap_add", "cap_drop", "privileged", "sysctls", "group_add"})
"""Keys whose value the validator reads; of the others it only says why not."""
_KNOWN: Final = frozenset(
    {
        "Annotations", "AutoRemove", "Binds", "CgroupnsMode", "ConsoleSize", "ContainerIDFile", "CpuCount",
        "CpuPercent", "CpuPeriod", "CpuQuota", "Devices", "IOMaximumBandwidth", "IOMaximumIOps", "Init", "IpcMode",
        "KernelMemory", "KernelMemoryTCP", "LogConfig", "MaskedPaths", "Memory", "MemoryReservation", "MemorySwap",
        "Mounts", "NanoCpus", "NetworkMode", "PidMode", "PidsLimit", "PortBindings", "PublishAllPorts",
        "ReadonlyPaths", "ReadonlyRootfs", "RestartPolicy", "Runtime", "SecurityOpt", "ShmSize", "Tmpfs", "Ulimits",
        "VolumeDriver",
    },
)  # fmt: skip
"""Settings that are looked at by themselves, or that say nothing on Linux."""
