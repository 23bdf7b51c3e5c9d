"""What tells the drivers apart: a config for each, read without loading its driver."""

import msgspec


class DockerConfig(msgspec.Struct, frozen=True, kw_only=True, tag_field="driver", tag="docker"):
    """`host` is `unix:///path`, a path, or `tcp://host:port` (with TLS as `DOCKER_TLS_VERIFY` says).

    Without one it is `DOCKER_HOST`, else `/var/run/docker.sock`. `denied` are folders of the host that no app may
    mount, besides those that none ever may.
    """

    host: str | None = None
    denied: tuple[str, ...] = ()


class SwarmConfig(msgspec.Struct, frozen=True, kw_only=True, tag_field="driver", tag="swarm"):
    """`host` is a manager of the swarm, in the form of `DockerConfig.host`; `denied` is as there."""

    host: str | None = None
    denied: tuple[str, ...] = ()


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, tag_field="driver", tag="memory"):
    """Nothing to say: the engine begins empty and ends with the process."""


RuntimeConfig = DockerConfig | SwarmConfig | MemoryConfig
