"""What is done to containers in more than one place."""

import asyncio
import contextlib
from typing import Final

from quazzar.instance.apps.runtimes.engine.connection import CHANGE_SECONDS, HEAVY_SECONDS, Engine
from quazzar.instance.apps.runtimes.engine.failures import Gone, Taken

_POLL_SECONDS: Final = 0.25


async def delete_container(engine: Engine, container_id: str, *, nameless_volumes: bool = True) -> None:
    """Remove a container, with its nameless volumes unless told otherwise, running or not.

    Waits where somebody else removes it already.
    """
    with contextlib.suppress(Gone):
        try:
            async with engine.call(HEAVY_SECONDS) as client:
                await client.containers.container(container_id).delete(force=True, v=nameless_volumes)
        except Taken:
            async with engine.call(CHANGE_SECONDS) as client:
                while True:
                    await client.containers.container(container_id).show()
                    await asyncio.sleep(_POLL_SECONDS)
