"""What many ask for at once, done as one: thousands of instances that come back together are a few statements."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Calls `work` with all that has come while it was busy with those before; who comes alone does not wait.

    `work` gives a result for each in their order. When it raises, all of its callers get that; when a caller goes
    away, the others are not touched.
    """

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, most: int = 500) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = asyncio.create_task(self._go())
        return await done

    async def _go(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._do(batch)
        finally:
            self._task = None

    async def _do(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        wanted = [(item, done) for item, done in batch if not done.done()]
        try:
            results = await self._work([item for item, _ in wanted])
        except BaseException as error:
            for _, done in wanted:
                if not done.done():
                    done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
        else:
            for (_, done), result in zip(wanted, results, strict=True):
                if not done.done():
                    done.set_result(result)
