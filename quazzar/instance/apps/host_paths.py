"""Which folders of the host a trusted template may mount: none that holds the system, its secrets or our own."""

import posixpath
from collections.abc import Iterable
from typing import Final

from quazzar.instance.apps.spec import HostSpec

SOCKETS: Final = ("docker.sock", "containerd.sock", "podman.sock", "crio.sock")
DENIED: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin", "/sys",
    "/usr", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/kubelet", "/var/lib/quazzar",
    "/var/run",
)  # fmt: skip
"""With all that lies below, and all above: who has `/var` has `/var/lib/docker`."""


def host_path(text: str, *, denied: Iterable[str] = ()) -> str:
    """An absolute path in its normal form, outside `DENIED` and `denied`. Raises ValueError with a sentence part."""
    if not text.startswith("/") or len(text) > 1000 or not text.isprintable() or ":" in text:
        raise ValueError("must be an absolute path of the host")
    path = text.rstrip("/") or "/"
    if posixpath.normpath(path) != path or path.startswith("//"):
        raise ValueError("must be a path without '.', '..' or doubled slashes")
    if any(name in path for name in SOCKETS):
        raise ValueError("must not be the engine's socket: who has it has the host")
    for one in (*DENIED, *denied):
        if path == one or path.startswith(one.rstrip("/") + "/") or one.startswith(path.rstrip("/") + "/"):
            raise ValueError(f"must not be {one}, nor lie in it or above it")
    return path


def device_path(text: str) -> str:
    """A device of the host, or a folder of them. Raises ValueError with a sentence part."""
    if not text.startswith("/dev/") or len(text) > 255 or not text.isprintable() or ":" in text:
        raise ValueError("must be a device such as /dev/dri")
    if posixpath.normpath(text) != text:
        raise ValueError("must be a path without '.', '..' or doubled slashes")
    return text


def told(service: str, host: HostSpec) -> list[str]:
    """What a service has of the host, in sentences."""
    binds = [
        f"{service} {'reads' if one.read_only else 'has'} the folder {one.source} of the host as {one.target}"
        for one in host.binds
    ]
    devices = [f"{service} has the device {one.source} of the host" for one in host.devices]
    others = {
        "every right of the host": host.privileged,
        "the network of the host": host.network,
        "the processes of the host": host.pid,
        "the shared memory of the host": host.ipc,
        f"the groups {', '.join(host.groups)}": host.groups,
        f"the security options {', '.join(host.security_opts)}": host.security_opts,
        f"the kernel settings {', '.join(host.sysctls)}": host.sysctls,
    }
    return [*binds, *devices, *(f"{service} has {what}" for what, has in others.items() if has)]
