"""The closed grammars of a template's names: images, services, paths, capabilities, labels, signals.

Every function takes the text, gives it back in its normal form, and raises ValueError with a sentence part that never
repeats the text: it may come from a secret.
"""

import ipaddress
import posixpath
import re
import signal

SERVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
RESOURCE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")

DEFAULT_CAPABILITIES = frozenset(
    {"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"},
)
"""What images that start as root and then drop to a user of their own need (postgres, nginx, mariadb, gitea): change
owners and modes of their data, switch the user, signal it, listen below 1024. Of the engine's own default set, MKNOD,
NET_RAW, AUDIT_WRITE, SETFCAP, SETPCAP, SYS_CHROOT and FSETID are left out. A template takes the rest away with
`cap_drop: [ALL]`."""

SAFE_CAPABILITIES = DEFAULT_CAPABILITIES | {
    "AUDIT_WRITE", "FSETID", "IPC_LOCK", "NET_RAW", "SETFCAP", "SETPCAP", "SYS_CHROOT",
}  # fmt: skip
"""What a template may add: nothing that reaches beyond the container's own processes, files and network."""

CAPABILITIES = SAFE_CAPABILITIES | {
    "AUDIT_CONTROL", "AUDIT_READ", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "IPC_OWNER",
    "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BROADCAST", "PERFMON",
    "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}  # fmt: skip

ULIMITS = frozenset(
    {"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "sigpending", "stack"},
)
"""Without nice, rtprio and rttime: real-time scheduling is not held back by CPU limits."""

RESERVED_LABELS = ("io.quazzar.", "com.docker.")

# The grammar of github.com/distribution/reference.
_DOMAIN_PART = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)"
_IMAGE = re.compile(
    rf"(?:(?P<domain>(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:]{{2,39}}\])(?::[0-9]{{1,5}})?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?"
)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,254}")
_LABEL = re.compile(r"[\x21-\x3c\x3e-\x7e]{1,255}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")
_PATH = re.compile(r"/[^:]{0,1023}")
_KERNEL = ("/proc", "/sys", "/dev")


def image_reference(text: str) -> str:
    """`[registry[:port]/]path[:tag][@digest]`, nothing that looks like an option, a flag or a shell word."""
    found = _IMAGE.fullmatch(text) if len(text) <= 500 else None
    if found is None or len(found["path"]) > 255 or _IMAGE_ID.fullmatch(text):
        raise ValueError("must be an image such as nginx:1.27 or registry.example.com/team/app:1.0")
    return text


def container_path(text: str) -> str:
    """An absolute path in a container, without `.`, `..` or a slash too many."""
    if not _PATH.fullmatch(text) or not text.isprintable():
        raise ValueError("must be an absolute path in the container")
    path = text.rstrip("/") or "/"
    if posixpath.normpath(path) != path or path.startswith("//"):
        raise ValueError("must be a path without '.', '..' or doubled slashes")
    return path


def mount_target(text: str) -> str:
    path = container_path(text)
    if path == "/" or any(path == one or path.startswith(one + "/") for one in _KERNEL):
        raise ValueError("must not be /, nor lie in /proc, /sys or /dev")
    return path


def host_name(text: str) -> str:
    if len(text) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError("must be a host name: labels of letters, digits and '-', joined by dots")
    return text


def network_alias(text: str) -> str:
    """A host name in which `_` may stand too: Compose files have used it in service names for ever."""
    if len(text) > 253 or not all(SERVICE.fullmatch(label) for label in text.split(".")):
        raise ValueError("must be a host name: labels of letters, digits, '-' and '_', joined by dots")
    return text


def host_address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError("must be an IP address of this host") from None
    if getattr(address, "scope_id", None) is not None or address.is_multicast:
        raise ValueError("must be an IP address of this host")
    return str(address)


def environment_name(text: str) -> str:
    if not _ENVIRONMENT.fullmatch(text):
        raise ValueError("must be named with letters, digits, '_', '.', ':' and '-', not beginning with a digit")
    return text


def label_name(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("must be named with 1 to 255 printable characters without spaces and '='")
    if text.lower().startswith(RESERVED_LABELS):
        raise ValueError(f"is refused: labels that begin with {' or '.join(RESERVED_LABELS)} are reserved")
    return text


def user_name(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError("must be a user such as 1000, 1000:1000 or www-data")
    return text


def stop_signal(text: str) -> str:
    """`SIGTERM`, `TERM` or `15`, as `SIGTERM`. Real-time signals (`SIGRTMIN+3`, which systemd wants) stay."""
    name = text.upper()
    if re.fullmatch(r"(?:SIG)?RTMIN\+(?:[0-9]|[12][0-9]|30)", name):
        return "SIG" + name.removeprefix("SIG")
    if re.fullmatch(r"[0-9]{1,2}", name):
        known = {int(one): one.name for one in signal.Signals}
        name = known.get(int(name), "")
    name = "SIG" + name.removeprefix("SIG")
    if name not in {one.name for one in signal.Signals}:
        raise ValueError("must be a signal such as SIGTERM")
    return name


def capability(text: str) -> str:
    """`CAP_NET_RAW` or `net_raw`, as `NET_RAW`; `ALL` stays."""
    name = text.upper().removeprefix("CAP_")
    if name != "ALL" and name not in CAPABILITIES:
        raise ValueError("must be a Linux capability such as NET_BIND_SERVICE")
    return name
