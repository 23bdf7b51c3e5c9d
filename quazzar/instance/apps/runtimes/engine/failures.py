"""What an engine refused, said in a sentence for the user."""

import re
from collections.abc import Callable

from quazzar.instance.apps.runtimes.base import (
    ImageNotFound,
    LoginRefused,
    PortInUse,
    RegistryUnreachable,
    RuntimeFailure,
    RuntimeUnavailable,
)


class Gone(RuntimeFailure):
    """The engine has no such object (any more)."""


class Taken(RuntimeFailure):
    """The name is taken, or the object is in a state or in a use that forbids the call."""


UNKNOWN = frozenset({"gone", "engine_conflict", "invalid_configuration", "runtime_failed"})
"""Codes of refusals that no pattern knows, so that their reasons may end in words of the engine's."""

_PORT = re.compile(r"(?:[0-9.]+|\[[0-9a-fA-F:]*\]):(\d{1,5})(?!\d)")
_PROGRAM = re.compile(r'exec: "([^"]{1,80})"')


def _port_in_use(message: str, service: str | None) -> RuntimeFailure:
    found = _PORT.search(message)
    return PortInUse(f"Port {found[1]} is already in use" if found else "A port is already in use", service=service)


def _no_program(message: str, service: str | None) -> RuntimeFailure:
    found = _PROGRAM.search(message)
    program = f"the program “{found[1]}”" if found and "/" not in found[1] else "the program that it should run"
    return RuntimeFailure(f"The image has not {program}", code="command_not_found", service=service)


def _image_not_found(_: str, service: str | None) -> RuntimeFailure:
    return ImageNotFound("The image does not exist, or it is private and needs a login", service=service)


def _login_refused(_: str, service: str | None) -> RuntimeFailure:
    return LoginRefused("The registry of the image asks for another login", service=service)


def _registry_unreachable(_: str, service: str | None) -> RuntimeFailure:
    return RegistryUnreachable("The registry is not reachable", service=service)


def _registry_broke_off(_: str, service: str | None) -> RuntimeFailure:
    return RegistryUnreachable("The registry broke off its answer", service=service)


def _plain(reason: str, code: str) -> Callable[[str, str | None], RuntimeFailure]:
    return lambda _, service: RuntimeFailure(reason, code=code, service=service)


# The first pattern that is found decides. Engines of all ages word the same refusal differently.
_KNOWN: tuple[tuple[re.Pattern[str], Callable[[str, str | None], RuntimeFailure]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), make)
    for pattern, make in (
        (r"port is already allocated|address already in use|failed to bind host port", _port_in_use),
        (
            (
                r"no such image|manifest unknown|manifest for .* not found|pull access denied|repository does not exist"
                r"|requested access to the resource is denied|name unknown"
            ),
            _image_not_found,
        ),
        (r"unauthorized|no basic auth credentials|incorrect username or password", _login_refused),
        (
            r"no matching manifest|does not match the (?:specified|detected) .*platform",
            _plain("The image does not exist for this kind of machine", "image_wrong_platform"),
        ),
        (
            r"toomanyrequests|rate limit",
            _plain("The registry takes no more pulls from this address right now", "registry_rate_limited"),
        ),
        (
            r"invalid reference format|must be lowercase",
            lambda _, service: ImageNotFound("The name of the image is not valid", service=service),
        ),
        (r"no space left on device|disk quota exceeded", _plain("The disk of the engine is full", "disk_full")),
        (
            r"could not find an available.*address pool|all predefined address pools",
            _plain("The engine has no more address ranges for networks", "network_pool_exhausted"),
        ),
        (r"executable file not found|no such file or directory.*exec|exec:.*no such file", _no_program),
        (
            r"exec.*permission denied|exec format error",
            _plain("The program of the image can't be run on this machine", "command_not_runnable"),
        ),
        (
            r"setting rlimit|rlimits? type",
            _plain("The engine may not set the limits (ulimits) that the service asks for", "ulimit_refused"),
        ),
        (
            r"bind source path does not exist|invalid mount config for type \"bind\"",
            _plain("A folder of the host that the app mounts is not there", "host_path_missing"),
        ),
        (
            r"error gathering device information|no such device",
            _plain("A device of the host that the app asks for is not there", "device_missing"),
        ),
        (
            r"unable to find (?:user|group)|no matching entries in passwd",
            _plain("The image has no such user", "user_not_found"),
        ),
        (
            r"rootfs is marked read-only|volume is (?:marked )?read-only|read-only file system",
            _plain("A file of the service lies in a place that is read-only", "read_only"),
        ),
        (
            r"has active endpoints",
            _plain("A network of the app is in use by a container that is not part of it", "network_in_use"),
        ),
        (
            r"volume is in use",
            _plain("A volume of the app is in use by a container that is not part of it", "volume_in_use"),
        ),
        (
            r"processing tar file",
            _plain("The engine could not unpack the data of a volume", "volume_unreadable"),
        ),
        (
            (
                r"dial tcp|no such host|connection refused|i/o timeout|tls handshake|x509|network is unreachable"
                r"|request canceled|server gave http response"
            ),
            _registry_unreachable,
        ),
        (r"unexpected eof|\beof\b|connection reset|broken pipe", _registry_broke_off),
    )
)


# Why an engine can't speak for its swarm, and what helps.
_NO_SWARM: tuple[tuple[str, str], ...] = (
    (
        "worker nodes can't",
        "This machine is a worker of its swarm, and only managers can run apps: promote it, or use a manager",
    ),
    (
        "not a swarm manager",
        "The container engine is in no swarm: run `docker swarm init` there, or set runtime.driver to docker",
    ),
    ("needs to be unlocked", "The swarm is locked: run `docker swarm unlock` on this machine"),
    ("certificates have expired", "The certificates of the swarm have expired: leave it and join again"),
    ("does not have a leader", "The swarm has no leader: too few of its managers are up"),
    ("no elected primary", "The swarm has no leader: too few of its managers are up"),
)


def _unavailable(message: str) -> RuntimeUnavailable:
    found = (reason for sign, reason in _NO_SWARM if sign in message.lower())
    return RuntimeUnavailable(next(found, None))


def failure(status: int, message: str, service: str | None = None) -> RuntimeFailure | RuntimeUnavailable:
    """The exception for a refusal with HTTP `status`; 0 is one that came inside of a stream.

    The engine's own text holds paths and addresses of the machine, so of what is not known only a short last clause
    without any is passed on. The text stays in the log through the exception's cause.
    """
    if status == 503 or "containerd.sock" in message:
        return _unavailable(message)
    for pattern, make in _KNOWN:
        if pattern.search(message):
            return make(message, service)
    reason = "The container engine refused" + _clause(message)
    if status == 404:
        return Gone(reason, code="gone", service=service)
    if status == 409:
        return Taken(reason, code="engine_conflict", service=service)
    if status == 400:
        return RuntimeFailure(reason, code="invalid_configuration", service=service)
    return RuntimeFailure(reason, service=service)


def _clause(message: str) -> str:
    last = message.strip().rsplit(" desc = ", 1)[-1].rsplit(": ", 1)[-1].rstrip(".").strip()
    fit = 3 <= len(last) <= 160 and not re.search(r"[/\\\n\x00-\x1f]|[0-9a-f]{32}", last)
    return f": {last}" if fit else ""
