"""Container runtimes: one promise (`base`), one file for each engine that keeps it."""

from typing import assert_never

from quazzar.instance.apps.runtimes.base import Runtime
from quazzar.instance.apps.runtimes.docker import DockerConfig, DockerRuntime
from quazzar.instance.apps.runtimes.memory import MemoryConfig, MemoryRuntime
from quazzar.instance.apps.runtimes.swarm import SwarmConfig, SwarmRuntime

__all__ = [
    "DockerConfig",
    "DockerRuntime",
    "MemoryConfig",
    "MemoryRuntime",
    "Runtime",
    "RuntimeConfig",
    "SwarmConfig",
    "SwarmRuntime",
    "make_runtime",
]

RuntimeConfig = DockerConfig | SwarmConfig | MemoryConfig


def make_runtime(config: RuntimeConfig) -> Runtime:
    """The driver for a config. Connects to nothing yet; raises ValueError for an address of no known kind."""
    match config:
        case DockerConfig():
            return DockerRuntime(config)
        case SwarmConfig():
            return SwarmRuntime(config)
        case MemoryConfig():
            return MemoryRuntime(config)
        case _:
            assert_never(config)
