"""What a Compose file may say and a template may not: key by key, with the reason that its author reads."""

from collections.abc import Mapping

from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence

_HOST = "it reaches out of the container into the host"
_FILE = "it reads a file of the host"
DEVICES = "it gives the container devices of the host"

REFUSED_IN_SERVICE: Mapping[str, str] = {
    "privileged": "it gives the container every right of the host; only a trusted file may have it",
    "network_mode": "every app has networks of its own; leave it out and use ports (a trusted file may have host)",
    "pid": "it shows the processes of the host or of another container; only a trusted file may have host",
    "ipc": "it shares memory with the host or another container; only a trusted file may have host",
    "uts": "it shares the host's name",
    "userns_mode": _HOST,
    "cgroup": _HOST,
    "cgroup_parent": "it takes the container out of its limits",
    "devices": f"{DEVICES}; only a trusted file may have them",
    "device_cgroup_rules": DEVICES,
    "gpus": DEVICES,
    "volumes_from": "it takes the volumes of another container; name the same volumes in both services",
    "external_links": "it reaches containers that are not of this app; use the ports that they publish",
    "runtime": "it chooses another program to run the container with; leave it out",
    "isolation": "it changes how the container is kept apart",
    "sysctls": "it changes settings of the kernel; only a trusted file may have them",
    "oom_kill_disable": "it lets one app take all memory of the host",
    "oom_score_adj": "it makes the host end other programs first",
    "extends": f"{_FILE}; use an anchor and a merge, such as <<: *base",
    "env_file": f"{_FILE}; write its lines under environment",
    "label_file": f"{_FILE}; write its lines under labels",
    "build": "images are pulled, not built; name an image that is in a registry",
    "develop": "it watches files of the host",
    "credential_spec": _FILE,
    "provider": "it runs a program on the host",
    "use_api_socket": "it hands over the engine's socket, and with it the host",
    "pre_start": "hooks are not run",
    "post_start": "hooks are not run",
    "pre_stop": "hooks are not run",
}
"""Dangerous, or a way to something dangerous."""

TRUSTED_IN_SERVICE = ("privileged", "network_mode", "pid", "ipc", "devices", "sysctls")
"""Those of them that a trusted template may have; all others are refused to it too."""

UNSUPPORTED_IN_SERVICE: Mapping[str, str] = {
    "annotations": "use labels",
    "attach": "it means nothing here; leave it out",
    "blkio_config": "use mem_limit, cpus and pids_limit",
    "cpu_count": "use cpus",
    "cpu_percent": "use cpus",
    "cpu_period": "use cpus",
    "cpu_quota": "use cpus",
    "cpu_rt_period": "use cpus",
    "cpu_rt_runtime": "use cpus",
    "cpu_shares": "use cpus",
    "cpuset": "use cpus",
    "dns": "the engine's name servers are used; leave it out",
    "dns_opt": "the engine's name servers are used; leave it out",
    "dns_search": "the engine's name servers are used; leave it out",
    "domainname": "use hostname",
    "extra_hosts": "services reach each other by their names, this and other machines by their addresses",
    "group_add": "use user",
    "links": "services reach each other by their names; an order is for depends_on, an alias for networks",
    "logging": "logs are kept and shown by the platform; leave it out",
    "mac_address": "addresses are given by the engine; leave it out",
    "mem_swappiness": "use mem_limit",
    "memswap_limit": "use mem_limit",
    "models": "it is not part of an app here",
    "profiles": "all services of an app run; leave it out, and the services that you don't want",
    "pull_refresh_after": "images are pulled by an update",
    "scale": "each service is one container",
    "stdin_open": "a terminal is opened by the platform; leave it out",
    "storage_opt": "it is the engine's own setting; leave it out",
    "tty": "a terminal is opened by the platform; leave it out",
}

REFUSED_AT_TOP: Mapping[str, str] = {"include": f"{_FILE}; write its services here"}
UNSUPPORTED_AT_TOP: Mapping[str, str] = {"models": "it is not part of an app here"}

REFUSED_IN_VOLUME: Mapping[str, str] = {
    "driver_opts": "its options can mount any folder of the host; leave them out",
    "external": "an app only has volumes of its own; leave it out, and copy the data in once the app is there",
    "name": "volumes are named by the platform, so that no app takes another's data; leave it out",
}
REFUSED_IN_NETWORK: Mapping[str, str] = {
    "driver_opts": "its options can join interfaces of the host; leave them out",
    "external": "an app only has networks of its own; leave it out, and reach other apps at their published ports",
    "name": "networks are named by the platform, so that no app joins another's; leave it out",
    "ipam": "addresses are given by the engine; leave it out",
    "attachable": "only this app's containers are on its networks; leave it out",
    "enable_ipv4": "addresses are given by the engine; leave it out",
    "enable_ipv6": "addresses are given by the engine; leave it out",
}
REFUSED_IN_FILE: Mapping[str, str] = {
    "file": f"{_FILE}; write its text as content",
    "environment": "it reads the environment of the host; write content: ${NAME}",
    "external": "an app only has files of its own; write its text as content",
    "driver": "it fetches the file from elsewhere; write its text as content",
    "driver_opts": "it fetches the file from elsewhere; write its text as content",
    "template_driver": "it runs the text as a program; use ${name}",
    "name": "files are named by the platform; leave it out",
}


def refuse(
    reader: Reader, key: str, line: int, path: str, reason: str, *, trusted: bool, at: Node | None = None
) -> None:
    """`at` is the value, where it may have come from a config."""
    hint = " (to a trusted template too)" if trusted else ""
    reader.problem(path, line, f"{key} is refused: {reason}{hint}", "refused", at=at)


def unsupported(reader: Reader, key: str, line: int, path: str, reason: str) -> None:
    reader.problem(path, line, f"{key} is not supported: {reason}", "unsupported")


def says_nothing(node: Node) -> bool:
    """`privileged: false`, `devices: []`, `pid: ""`, `external:`: the key is there and asks for nothing."""
    match node:
        case Scalar():
            return node.value is None or node.value is False or node.value == ""
        case Sequence():
            return not node.items
        case MappingNode():
            return not node.entries


def entries(
    reader: Reader, node: Node, path: str, known: tuple[str, ...], refused: Mapping[str, str], *, trusted: bool
) -> dict[str, Node]:
    """The known entries of a mapping or of nothing at all; every other one is refused or unknown, with its line."""
    if isinstance(node, Scalar) and node.value is None:
        return {}
    found: dict[str, Node] = {}
    for key, line, value, where in reader.mapping(node, path):
        if key in known:
            found[key] = value
        elif key in refused:
            if not says_nothing(value):
                refuse(reader, key, line, where, refused[key], trusted=trusted)
        else:
            reader.unknown(key, line, where, (*known, *refused))
    return found
