"""Delivers webhooks in the background: reads the feed, works on the lanes of endpoints, writes down what came back.

One task for each endpoint with something to send, so a slow or dead one holds up nobody else. The database decides what
is to be done and who does it; notifications only make it soon.
"""

import asyncio
import contextlib
import functools
import hashlib
import random
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence

import asyncpg
import msgspec
from sqlalchemy.exc import SQLAlchemyError

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.errors import AppError
from quazzar.core.jobs.line import LineClosed, WorkerLine
from quazzar.core.logs import get_logger
from quazzar.core.outbound import OutboundPolicy
from quazzar.core.outbound_http import OutboundHttp
from quazzar.webhooks import lanes
from quazzar.webhooks.dispatcher import Dispatched, dispatch
from quazzar.webhooks.lanes import CIRCUIT_FAILURES, GIVE_UP_DAYS, Due, Health, Load, Result
from quazzar.webhooks.sending import Message, Outcome, delay_before, send
from quazzar.webhooks.service import disable, place
from quazzar.webhooks.store import CHANNEL, Scope

log = get_logger(__name__)

FEED_CHANNEL = "events"
POLL_SECONDS = 5.0
"""How long anything waits to be noticed when no notification comes."""
BEAT_SECONDS = 5.0
SUSPECT_SECONDS = 2.0
"""How long a process's lock must be free before it counts as dead: it may be about to reconnect."""
PER_ENDPOINT = 2
"""Requests to one endpoint at a time."""
MOST_LANES = 200
"""Endpoints that one process works on at a time; half of them may be failing ones."""
BATCH = 50
LONGEST_PAUSE_SECONDS = 60.0
GATHER_SECONDS = 0.01
"""Results of so short a time are written down together."""


class _Lane:
    """An endpoint that this process works on."""

    def __init__(self, webhook_id: str, failures: int) -> None:
        self.webhook_id = webhook_id
        self.failures = failures
        self.changed = False
        self.succeeded = False
        self.lost = False
        self.give_up: str | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def tripped(self) -> bool:
        return self.failures >= CIRCUIT_FAILURES

    def note(self, outcome: Outcome) -> None:
        if outcome.arrived:
            self.changed |= self.failures > 0
            self.succeeded |= self.failures > 0
            self.failures = 0
        else:
            self.changed = True
            self.failures += 1
        if outcome.gone:
            self.give_up = "The endpoint answered 410: it is gone"


class Webhooks:
    """The delivery engine of a process. Any number of processes may run one on the same database.

    `identity` names the place where only one process can be at a time, such as a locked data folder: what a killed
    process of the same place held is taken over at once.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        policy: OutboundPolicy,
        schedule: Sequence[float],
        *,
        identity: str | None = None,
        http: OutboundHttp | None = None,
    ) -> None:
        location = hashlib.sha256(identity.encode()).digest()[:8] if identity is not None else secrets.token_bytes(8)
        self.owner = uuid.UUID(bytes=location + secrets.token_bytes(8))
        self.http = http if http is not None else OutboundHttp(policy)
        self._database = database
        self._keyring = keyring
        self._schedule = tuple(schedule)
        self._line = WorkerLine(database, self.owner)
        self._line.on_connected = self._connected
        self._feed = asyncio.Event()
        self._due = asyncio.Event()
        self._lanes: dict[str, _Lane] = {}
        self._results: list[Result] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._something_to_write = asyncio.Event()
        self._suspects: dict[uuid.UUID, float] = {}
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin in the background; returns before the database has answered."""
        self._tasks = [
            asyncio.create_task(self._forever(self._keep), name="webhooks-keep"),
            asyncio.create_task(self._forever(self._dispatch), name="webhooks-dispatch"),
            asyncio.create_task(self._forever(self._claim), name="webhooks-claim"),
            asyncio.create_task(self._forever(self._write), name="webhooks-write"),
        ]

    def drain(self) -> None:
        """Begin no further request; those on their way go on until `stop`."""
        self._stopping.set()
        self._feed.set()
        self._due.set()

    async def stop(self, grace_seconds: float = 2.0) -> None:
        """End within twice `grace_seconds`; what was not answered by then is sent again by whoever comes next."""
        self.drain()
        working = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if working:
            await asyncio.wait(working, timeout=grace_seconds if self._line.connected else 0.1)
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        if self._tasks and self._line.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._written()
        self._line.stop_waiting()
        for running in self._tasks:
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._line.connected:
            with contextlib.suppress(LineClosed, asyncpg.PostgresError):
                await self._line.run(lambda connection: lanes.free(connection, [self.owner]))
        await self._line.close()
        await self.http.close()

    async def send(self, url: str, signing: Sequence[bytes], message: Message) -> Outcome:
        """One request now, outside any lane: for tests that a user asks for."""
        return await send(self.http, url, signing, message)

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except LineClosed:
                return
            except asyncpg.ForeignKeyViolationError:
                # A webhook was deleted meanwhile; the next look does not see it.
                continue
            except Exception as error:
                # The process serves requests and must outlive whatever goes wrong here: a full disk, say.
                if isinstance(error, asyncpg.PostgresError):
                    log.error("Webhooks are held up by the database", reason=type(error).__name__)
                else:
                    log.error("The delivery of webhooks failed and goes on", exc_info=error)
                await asyncio.sleep(1)

    async def _connected(self) -> None:
        self._suspects.clear()
        self._feed.set()
        self._due.set()

    # --- the feed ------------------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        self._feed.clear()
        if self._stopping.is_set():
            raise LineClosed
        delay = self._schedule[0] * random.uniform(1.1, 1.2)  # noqa: S311 - spreads attempts
        done: Dispatched = await self._line.run(lambda connection: dispatch(connection, delay))
        if done.deliveries:
            self._due.set()
        if not done.more:
            await _wait(self._feed, POLL_SECONDS)

    # --- lanes ---------------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        self._due.clear()
        if self._stopping.is_set():
            raise LineClosed
        room = MOST_LANES - len(self._lanes)
        pause: float | None = POLL_SECONDS
        if room > 0:
            pause = await self._line.run(lambda connection: self._claim_with(connection, room))
        if pause is None:
            pause = POLL_SECONDS
        elif pause <= 0:
            # Due, but not for us right now: locked by another process, or one failing endpoint too many.
            pause = 0.25
        await _wait(self._due, min(pause, POLL_SECONDS))

    async def _claim_with(self, connection: lanes.Connection, room: int) -> float | None:
        failing = sum(lane.tripped for lane in self._lanes.values())
        claimed = await lanes.claim(connection, self.owner, room, healthy_only=failing >= MOST_LANES // 2)
        # Registered before the connection is used for anything else, so that no beat takes them for strays.
        for each in claimed:
            lane = self._lanes[each.webhook_id] = _Lane(each.webhook_id, each.failures)
            lane.task = asyncio.create_task(self._work(lane), name=f"webhooks {each.webhook_id}")
        return await lanes.seconds_to_next(connection)

    async def _work(self, lane: _Lane) -> None:
        """Send what is due to one endpoint until nothing is, the circuit opens, or the lane is taken away."""
        try:
            while not (self._stopping.is_set() or lane.lost):
                size = 1 if lane.tripped else BATCH
                found: Load | None = await self._line.run(
                    functools.partial(lanes.load, owner=self.owner, webhook_id=lane.webhook_id, limit=size)
                )
                if found is None or (not found.due and await self._leave(lane, only_if_idle=True)):
                    return
                await self._send_all(lane, found)
                if lane.give_up is not None:
                    await self._give_up(lane, found)
                    return
                if lane.tripped:
                    await self._leave(lane, pause=self._pause(lane))
                    return
        except LineClosed:
            pass
        except (asyncpg.PostgresError, SQLAlchemyError, AppError, SealBroken, OSError) as error:
            log.error("A webhook is held up", webhook=lane.webhook_id, reason=type(error).__name__)
            await asyncio.sleep(1)
        finally:
            # A lane that is not in hand any more is given back by the next beat where it was not just now.
            if self._lanes.get(lane.webhook_id) is lane:
                del self._lanes[lane.webhook_id]
            self._due.set()

    async def _send_all(self, lane: _Lane, found: Load) -> None:
        signing = [self._keyring.open(sealed, context=place(secret_id)) for secret_id, sealed in found.sealed]
        waiting = iter(found.due)
        if len(found.due) == 1:
            await self._send_some(lane, found.url, signing, waiting)
        else:
            await asyncio.gather(*(self._send_some(lane, found.url, signing, waiting) for _ in range(PER_ENDPOINT)))
        await self._written()

    async def _send_some(self, lane: _Lane, url: str, signing: Sequence[bytes], waiting: Iterator[Due]) -> None:
        probing = lane.tripped
        for due in waiting:
            outcome = await send(self.http, url, signing, due.message)
            lane.note(outcome)
            self._note(lane, due, outcome)
            if probing or lane.tripped or lane.lost or lane.give_up is not None or self._stopping.is_set():
                return

    def _note(self, lane: _Lane, due: Due, outcome: Outcome) -> None:
        delay: float | None = None
        status = "delivered"
        if not outcome.arrived:
            delay = None if outcome.gone else delay_before(self._schedule, due.tries + 1, outcome.retry_after)
            status = "failed" if delay is None else "pending"
        attempt = msgspec.json.encode(outcome.attempt).decode()
        self._results.append(Result(due.id, lane.webhook_id, due.tries, status, attempt, delay))
        self._something_to_write.set()

    def _pause(self, lane: _Lane) -> float:
        """As the schedule grows, so do the pauses of an endpoint that only fails."""
        step = min(lane.failures - CIRCUIT_FAILURES + 1, len(self._schedule) - 1)
        return min(self._schedule[step], LONGEST_PAUSE_SECONDS) * random.uniform(1.0, 1.2)  # noqa: S311 - spreads

    async def _leave(self, lane: _Lane, *, pause: float | None = None, only_if_idle: bool = False) -> bool:
        left: bool = await self._line.run(
            lambda connection: lanes.leave(
                connection, self.owner, lane.webhook_id, pause=pause, only_if_idle=only_if_idle
            )
        )
        return left

    async def _give_up(self, lane: _Lane, found: Load) -> None:
        assert lane.give_up is not None
        async with self._database.begin() as session:
            await see_all_tenants(session)
            scope = Scope(realm=found.realm, tenant_id=found.tenant_id)
            if await disable(session, lane.webhook_id, scope, lane.give_up):
                log.warning("A webhook is disabled", webhook=lane.webhook_id, reason=lane.give_up)
        await self._leave(lane)

    # --- results -------------------------------------------------------------------------------------------------

    async def _written(self) -> None:
        """Wait until everything that came back so far is in the database."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._something_to_write.set()
        await waiter

    async def _write(self) -> None:
        await self._something_to_write.wait()
        await asyncio.sleep(GATHER_SECONDS)
        self._something_to_write.clear()
        results, self._results = self._results, []
        waiters, self._waiters = self._waiters, []
        changed = [lane for lane in self._lanes.values() if lane.changed]
        health = [Health(lane.webhook_id, lane.failures, lane.succeeded) for lane in changed]
        for lane in changed:
            lane.changed = lane.succeeded = False
        try:
            if results or health:
                worn_out: list[str] = await self._line.run(
                    lambda connection: lanes.record(connection, self.owner, results, health)
                )
                for webhook_id in worn_out:
                    if (worn := self._lanes.get(webhook_id)) is not None and worn.tripped:
                        worn.give_up = f"Nothing has arrived for {GIVE_UP_DAYS} days"
        except asyncpg.DataError as error:
            # Would fail for ever; what was sent is then sent again.
            log.error("Results of webhooks can't be written", exc_info=error)
        except BaseException:
            self._results[:0] = results
            self._waiters[:0] = waiters
            for lane, was in zip(changed, health, strict=True):
                lane.changed = True
                lane.succeeded |= was.succeeded
            self._something_to_write.set()
            raise
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- leases --------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        if not self._listening:
            await self._line.add_listener(FEED_CHANNEL, lambda _: self._feed.set())
            await self._line.add_listener(CHANNEL, lambda _: self._due.set())
            self._listening = True
        await self._line.ensure_lock()
        beating = dict(self._lanes)
        ours: set[str] = await self._line.run(lambda connection: lanes.renew(connection, self.owner, list(self._lanes)))
        for webhook_id, lane in beating.items():
            if webhook_id not in ours:
                lane.lost = True
        suspicious = await self._take_over()
        if await self._line.run(lanes.follow_clock):
            log.warning("The database's clock was set back")
            self._due.set()
        await asyncio.sleep((SUSPECT_SECONDS / 4 if suspicious else BEAT_SECONDS) * random.uniform(0.9, 1.1))  # noqa: S311 - spreads

    _listening = False

    async def _take_over(self) -> bool:
        """Free what dead processes held; true while one is suspected and the next look should come soon."""
        now = time.monotonic()
        others: dict[uuid.UUID, bool] = await self._line.run(
            lambda connection: lanes.other_owners(connection, self.owner)
        )
        dead: list[uuid.UUID] = []
        suspects: dict[uuid.UUID, float] = {}
        for owner, alive in others.items():
            if alive:
                continue
            since = self._suspects.get(owner, now)
            if owner.bytes[:8] == self.owner.bytes[:8] or now - since >= SUSPECT_SECONDS:
                dead.append(owner)
            else:
                suspects[owner] = since
        self._suspects = suspects
        if dead:
            await self._line.run(lambda connection: lanes.free(connection, dead))
            log.warning("Webhooks are taken over from a process that is gone")
            self._due.set()
        return bool(suspects)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
