"""What only a trusted template may say of a service: its ways out of the container, as a `HostSpec`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from quazzar.instance.apps.host_paths import device_path
from quazzar.instance.apps.spec import DeviceSpec
from quazzar.instance.templates.names import user_name
from quazzar.instance.templates.pairs import read_pairs
from quazzar.instance.templates.reader import Reader, known, last
from quazzar.instance.templates.yaml_nodes import Mapping as MappingNode
from quazzar.instance.templates.yaml_nodes import Node, Scalar

SECURITY_OPTS = (
    "apparmor=unconfined", "label=disable", "no-new-privileges=false", "seccomp=unconfined", "systempaths=unconfined",
)  # fmt: skip
_SYSCTL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_PERMISSIONS = re.compile(r"r?w?m?")

Read = Callable[[Reader, dict[str, Any], Node, str], None]
"""Puts what a key says into the values of a `HostSpec`."""


def _only_host(name: str) -> Read:
    def read(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
        if not _is_written_out(reader, node, path):
            return
        if reader.string(node, path) == "host":
            values[name] = True
        else:
            reader.expected(node, path, "host, or left out")

    return read


def _privileged(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
    if _is_written_out(reader, node, path):
        values["privileged"] = reader.boolean(node, path)


def _devices(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
    found: list[DeviceSpec] = []
    for item, where in reader.sequence(node, path, "a list such as [/dev/dri]"):
        if not _is_written_out(reader, item, where):
            continue
        device = reader.parsed(item, where, _device, None)
        if device is not None:
            found.append(device)
    values["devices"] = tuple(found)


def _device(text: str) -> DeviceSpec | None:
    source, _, rest = text.partition(":")
    target, _, permissions = rest.partition(":")
    if not _PERMISSIONS.fullmatch(permissions):
        raise ValueError("must have permissions of r, w and m")
    device_path(source)
    return DeviceSpec(source=source, target=device_path(target or source), permissions=permissions or "rwm")


def _sysctls(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
    if isinstance(node, MappingNode):
        places = [(entry.node, f"{path}.{name}") for name, entry in node.entries.items()]
    else:
        places = list(reader.sequence(node, path, "a mapping or a list of NAME=value"))
    if all(_is_written_out(reader, one, where) for one, where in places):
        values["sysctls"] = read_pairs(reader, node, path, _sysctl, bare=lambda *_: "")


def _sysctl(text: str) -> str:
    if not _SYSCTL.fullmatch(text):
        raise ValueError("must be a setting of the kernel such as net.core.somaxconn")
    return text


def _groups(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
    written = [(item, where) for item, where in reader.sequence(node, path) if _is_written_out(reader, item, where)]
    groups = [reader.parsed(item, where, _group, "", loose=True) for item, where in written]
    values["groups"] = tuple(group for group in groups if group)


def _group(text: str) -> str:
    if ":" in text:
        raise ValueError("must be a group such as video")
    return user_name(text)


def _security_opts(reader: Reader, values: dict[str, Any], node: Node, path: str) -> None:
    found: dict[str, None] = {}
    for item, where in reader.sequence(node, path):
        text = known(reader.string(item, where))
        option = text.replace(":", "=", 1) if text is not None and _is_written_out(reader, item, where) else None
        if option in SECURITY_OPTS:
            found[option] = None
        elif option is not None and option not in {"no-new-privileges", "no-new-privileges=true"}:
            reader.expected(item, where, f"one of: {', '.join(SECURITY_OPTS)}")
    values["security_opts"] = tuple(found)


def _is_written_out(reader: Reader, node: Node, path: str) -> bool:
    """Whoever trusts a template has read it: what it has of the host is no field's to say."""
    if isinstance(node, Scalar) and "$" in str(node.value):
        reader.problem(path, node.line, f"{last(path)} must be written out: no ${{name}} may stand in it", "refused")
        return False
    return True


TRUSTED: Mapping[str, Read] = {
    "privileged": _privileged,
    "network_mode": _only_host("network"),
    "pid": _only_host("pid"),
    "ipc": _only_host("ipc"),
    "devices": _devices,
    "sysctls": _sysctls,
    "group_add": _groups,
    "security_opt": _security_opts,
}
"""By key of a service."""
