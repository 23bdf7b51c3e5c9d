"""Container runtimes: one promise (`base`), one file for each engine that keeps it."""

from typing import assert_never

from quazzar.instance.apps.runtimes.base import Runtime
from quazzar.instance.apps.runtimes.configs import DockerConfig, MemoryConfig, RuntimeConfig, SwarmConfig

__all__ = ["DockerConfig", "MemoryConfig", "Runtime", "RuntimeConfig", "SwarmConfig", "make_runtime"]


def make_runtime(config: RuntimeConfig) -> Runtime:
    """The driver for a config. Connects to nothing yet; raises ValueError for an address of no known kind.

    Only the chosen driver is loaded.
    """
    match config:
        case DockerConfig():
            from quazzar.instance.apps.runtimes.docker import DockerRuntime  # noqa: PLC0415

            return DockerRuntime(config)
        case SwarmConfig():
            from quazzar.instance.apps.runtimes.swarm import SwarmRuntime  # noqa: PLC0415

            return SwarmRuntime(config)
        case MemoryConfig():
            from quazzar.instance.apps.runtimes.memory import MemoryRuntime  # noqa: PLC0415

            return MemoryRuntime(config)
        case _:
            assert_never(config)
