"""What a Compose file may say and a template may not: key by key, with the reason that its author reads."""

from collections.abc import Mapping

from quazzar.instance.templates.reader import Reader
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar, Sequence

_HOST = "it reaches out of the container into the host"
_FILE = "it reads a file of the host"

REFUSED_IN_SERVICE: Mapping[str, str] = {
    "privileged": "it gives the container every right of the host",
    "network_mode": "every app has networks of its own; use networks",
    "pid": "it shows the processes of the host or of another container",
    "ipc": "it shares memory with the host or another container",
    "uts": "it shares the host's name",
    "userns_mode": _HOST,
    "cgroup": _HOST,
    "cgroup_parent": "it takes the container out of its limits",
    "devices": "it gives the container devices of the host",
    "device_cgroup_rules": "it gives the container devices of the host",
    "gpus": "it gives the container devices of the host",
    "volumes_from": "it takes the volumes of another container",
    "external_links": "it reaches containers that are not of this app",
    "runtime": "it chooses another program to run the container with",
    "isolation": "it changes how the container is kept apart",
    "sysctls": "it changes settings of the kernel",
    "oom_kill_disable": "it lets one app take all memory of the host",
    "oom_score_adj": "it makes the host end other programs first",
    "extends": _FILE,
    "env_file": f"{_FILE}; use environment",
    "label_file": f"{_FILE}; use labels",
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
    "attach": "it means nothing here",
    "blkio_config": "use mem_limit, cpus and pids_limit",
    "cpu_count": "use cpus",
    "cpu_percent": "use cpus",
    "cpu_period": "use cpus",
    "cpu_quota": "use cpus",
    "cpu_rt_period": "use cpus",
    "cpu_rt_runtime": "use cpus",
    "cpu_shares": "use cpus",
    "cpuset": "use cpus",
    "dns": "the engine's name servers are used",
    "dns_opt": "the engine's name servers are used",
    "dns_search": "the engine's name servers are used",
    "domainname": "use hostname",
    "extra_hosts": "services reach each other by their names",
    "group_add": "use user",
    "links": "services reach each other by their names",
    "logging": "logs are kept and shown by the platform",
    "mac_address": "addresses are given by the engine",
    "mem_swappiness": "use mem_limit",
    "memswap_limit": "use mem_limit",
    "models": "it is not part of an app here",
    "profiles": "all services of an app run",
    "pull_refresh_after": "images are pulled by an update",
    "scale": "each service is one container",
    "stdin_open": "a terminal is opened by the platform",
    "storage_opt": "it is the engine's own setting",
    "tty": "a terminal is opened by the platform",
}

REFUSED_AT_TOP: Mapping[str, str] = {"include": _FILE}
UNSUPPORTED_AT_TOP: Mapping[str, str] = {"models": "it is not part of an app here"}

REFUSED_IN_VOLUME: Mapping[str, str] = {
    "driver_opts": "its options can mount any folder of the host",
    "external": "an app only has volumes of its own",
    "name": "volumes are named by the platform, so that no app takes another's data",
}
REFUSED_IN_NETWORK: Mapping[str, str] = {
    "driver_opts": "its options can join interfaces of the host",
    "external": "an app only has networks of its own",
    "name": "networks are named by the platform, so that no app joins another's",
    "ipam": "addresses are given by the engine",
    "attachable": "only this app's containers are on its networks",
    "enable_ipv4": "addresses are given by the engine",
    "enable_ipv6": "addresses are given by the engine",
}
REFUSED_IN_FILE: Mapping[str, str] = {
    "file": f"{_FILE}; write its text as content",
    "environment": "it reads the environment of the host; write content: ${NAME}",
    "external": "an app only has files of its own; write its text as content",
    "driver": "it fetches the file from elsewhere; write its text as content",
    "driver_opts": "it fetches the file from elsewhere; write its text as content",
    "template_driver": "it runs the text as a program; use ${name}",
    "name": "files are named by the platform",
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
    """`privileged: false`, `devices: []`, `external:`: the key is there and asks for nothing."""
    match node:
        case Scalar():
            return node.value is None or node.value is False
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
