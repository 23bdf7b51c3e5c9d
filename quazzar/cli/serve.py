"""`quazzar` and `quazzar migrate`: the process itself, and the schema on its own."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from quazzar.cli.arguments import Arguments
from quazzar.core import logs
from quazzar.settings import Settings

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the loop that the server uses, and give what it gives."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def serve(arguments: Arguments) -> int:
    settings = arguments.settings()
    logs.configure(settings.log.level, settings.log.format)
    return run_async(_serve(settings))


async def _serve(settings: Settings) -> int:
    from quazzar import process  # noqa: PLC0415 - settings are judged before the rest is loaded

    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def give_up(*_: object) -> None:
        loop.call_soon_threadsafe(task.cancel)

    # Until the server takes signals itself, SIGTERM means: undo what was started so far, and end well. Not by the
    # loop's own handlers: those would go on beside the server's and cut its orderly end off.
    signal.signal(signal.SIGTERM, give_up)
    try:
        return await process.serve(settings)
    except asyncio.CancelledError:
        return 0


def migrate(arguments: Arguments) -> int:
    settings = arguments.settings()
    logs.configure(settings.log.level, settings.log.format)
    from quazzar import process  # noqa: PLC0415

    revision = run_async(process.migrate(settings))
    print(f"The database is at schema {revision}")
    return 0
