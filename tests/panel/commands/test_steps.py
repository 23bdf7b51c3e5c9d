"""Rollouts step by step on the database: each step is made by calling it, and time is what the rows say."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import text

from quazzar.accounts.store import KeyPlace, add_api_key
from quazzar.core.auth import Principal
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.ids import new_id
from quazzar.core.records import Caller
from quazzar.link.messages import Report
from quazzar.panel.commands import engine, upkeep
from quazzar.panel.commands.delivery import Delivery
from quazzar.panel.commands.schemas import CommandCreate, CommandOut, Strategy, Targets, UnitOut
from quazzar.panel.commands.service import CommandService
from quazzar.panel.fleet.authority import Identity
from quazzar.panel.fleet.hub import Socket
from quazzar.settings import Settings
from tests.factories.accounts import MadeUser, make_colleague, make_member
from tests.panel.commands.instances import PanelProcess, ask, change, make_instance, set_instance

HOUR = timedelta(hours=1)


class Rollout:
    """A command of a fresh tenant, the panel that carries it on, and its instances by their place in the rollout."""

    def __init__(self, process: PanelProcess, user: MadeUser, keyring: Keyring) -> None:
        assert user.tenant_id is not None
        self.tenant_id = user.tenant_id
        self.database: Database = process.database
        self.delivery: Delivery = process.delivery
        self.instances: list[str] = []
        self.id = ""
        self._keyring = keyring
        self._principal = Principal(
            realm="panel", user_id=user.id, client="x", scopes=frozenset("*"), tenant_id=user.tenant_id
        )

    async def begin(
        self, total: int, *, offline_ones: tuple[int, ...] = (), offline: Any = "queue", **more: Any
    ) -> CommandOut:
        """A command to so many instances, those of `offline_ones` offline from the moment on that it is given."""
        for number in range(total):
            self.instances.append(await make_instance(self.database, self.tenant_id, name=f"{number:03}"))
        # Named first, then offline: so that they keep their places.
        schedule = more.pop("schedule", None) or (datetime.now(UTC) + HOUR if offline_ones else None)
        made = await self.do("create", self.asked(offline=offline, schedule=schedule, **more))
        self.id = made.id
        for number in offline_ones:
            await set_instance(self.database, self.instances[number], status="offline")
        if offline_ones:
            await self.pass_time(HOUR)
        return await self.now()

    def asked(self, **more: Any) -> CommandCreate:
        wanted = {name: more.pop(name) for name in ("expires_in_seconds", "schedule", "offline") if name in more}
        return CommandCreate(
            kind="app.restart",
            args={"app": "cloud"},
            targets=Targets(instances=self.instances),
            strategy=Strategy(**more),
            **wanted,
        )

    async def given_by(self, user: MadeUser, *, key: bool = False) -> str | None:
        """From now on this user does everything, with a key of theirs if so; gives its id."""
        key_id = new_id("key") if key else None
        if key_id is not None:
            place = KeyPlace(user.id, self.tenant_id)
            values = {"id": key_id, "name": "x", "key_hash": key_id.encode(), "prefix": "x", "suffix": "x"}
            async with self.database.begin(tenant=self.tenant_id) as session:
                expires_at = datetime.now(UTC) + HOUR
                await add_api_key(session, place, scopes=["fleet:operate"], expires_at=expires_at, **values)
        self._principal = structs.replace(self._principal, user_id=user.id, key_id=key_id)
        return key_id

    async def do(self, verb: str, *args: Any) -> CommandOut:
        async with self.database.begin(tenant=self.tenant_id) as session:
            session.info["caller"] = Caller(kind="user", realm="panel", tenant_id=self.tenant_id)
            service = CommandService(session, self._principal, self._keyring)
            made: CommandOut = await getattr(service, verb)(*(args or (self.id,)))
        return made

    async def now(self) -> CommandOut:
        return await self.do("get", self.id)

    async def pass_time(self, by: timedelta) -> CommandOut:
        """All moments of the command are that much nearer, and somebody looks."""
        command = ("next_at", "step_at", "expires_at", "scheduled_at")
        unit = ("sent_at", "tried_at", "heard_at", "settles_at")
        for table, key, names in (("fleet_commands", "id", command), ("fleet_command_units", "command_id", unit)):
            sets = ", ".join(f"{name} = {name} - CAST(:by AS interval)" for name in names)
            await change(self.database, f"UPDATE {table} SET {sets} WHERE {key} = :id", by=by, id=self.id)
        return await self.look()

    async def look(self) -> CommandOut:
        await change(self.database, "UPDATE fleet_commands SET step_at = now() WHERE id = :id", id=self.id)
        await self.delivery.tick()
        return await self.now()

    async def send(self) -> dict[int, str]:
        """Mark what would leave now as sent; gives the orders by place."""
        async with self.database.begin() as session:
            await see_all_tenants(session)
            await upkeep.lock_commands(session, [self.id])
            rows = await upkeep.mark_sent(session, [self.id], self.instances, [])
        return {self.instances.index(row.instance_id): row.order_id for row in rows if not row.cancelling}

    async def say(self, order_id: str, status: Any, *, sequence: int = 1, at: int | None = None, **more: Any) -> bool:
        """A report of the instance that the order is for, or of the one at the place `at`."""
        if at is None:
            query = "SELECT instance_id FROM fleet_command_units WHERE order_id = :id"
            instance_id = (await ask(self.database, query, id=order_id))[0][0]
        else:
            instance_id = self.instances[at]
        socket = Socket(Identity(instance_id, self.tenant_id, "1", b""), None)  # type: ignore[arg-type]
        values = {"order_id": order_id, "sequence": sequence, "status": status, "at": datetime.now(UTC)}
        return await self.delivery.apply([(socket, Report(**values | more))]) == [True]

    async def end(self, orders: dict[int, str], status: str = "completed", **more: Any) -> CommandOut:
        for order_id in orders.values():
            assert await self.say(order_id, status, **more)
        return await self.now()

    async def units(self) -> str:
        """A letter for each unit, in the order of their turns: small letters have not ended."""
        letters = {"pending": "p", "running": "r", "completed": "C", "failed": "F"}
        letters |= {"expired": "E", "cancelled": "X", "skipped": "S"}
        return "".join(letters[unit.status] for unit in await self.list_units())

    async def list_units(self) -> list[UnitOut]:
        return sorted((await self.now()).instances, key=lambda unit: self.instances.index(unit.instance_id))

    async def finished(self) -> list[dict[str, Any]]:
        query = "SELECT data FROM events WHERE subject = :id AND type = 'command.finished' ORDER BY position"
        return [row[0] for row in await ask(self.database, query, id=self.id)]

    async def refused(self, command_id: str) -> None:
        """The audit log of the tenant says once that the panel refused the command, and why."""
        query = "SELECT actor_kind, outcome, chain, after ->> 'reason' IS NOT NULL FROM audit_records"
        found = await ask(self.database, f"{query} WHERE subject = :id AND action = 'command.refuse'", id=command_id)
        assert [tuple(row) for row in found] == [("system", "refused", f"panel:{self.tenant_id}", True)]


@pytest.fixture
async def rollout(settings: Settings, keyring: Keyring, database: Database) -> Rollout:
    """Nothing runs in the background: what happens is what a test calls."""
    return Rollout(PanelProcess(settings, keyring, database), await make_member(database), keyring)


async def test_without_a_strategy_all_begin_at_once(rollout: Rollout) -> None:
    made = await rollout.begin(5)
    assert made.status == "running"
    orders = await rollout.send()
    assert sorted(orders) == [0, 1, 2, 3, 4]
    assert await rollout.send() == {}
    assert (await rollout.end({0: orders[0]}, "running", progress=40, step="pulling")).units.running == 1
    unit = (await rollout.list_units())[0]
    assert (unit.progress, unit.step, unit.finished_at) == (40, "pulling", None)
    assert unit.started_at is not None
    await rollout.end(orders, sequence=2, output="done")
    done = await rollout.now()
    assert (done.status, done.units.completed, done.reason) == ("completed", 5, None)
    assert {unit.output for unit in done.instances} == {"done"}
    assert all(unit.finished_at is not None for unit in done.instances)
    assert done.finished_at is not None
    (event,) = await rollout.finished()
    assert event == {
        "command_id": rollout.id,
        "kind": "app.restart",
        "status": "completed",
        "reason": None,
        "completed": 5,
        "failed": 0,
        "expired": 0,
        "cancelled": 0,
        "skipped": 0,
    }


async def test_batches_follow_one_another_with_a_pause(rollout: Rollout) -> None:
    await rollout.begin(5, batch_size=2, pause_seconds=60)
    orders = await rollout.send()
    assert sorted(orders) == [0, 1]
    await rollout.end({0: orders[0]})
    assert await rollout.send() == {}
    await rollout.end({1: orders[1]})
    assert await rollout.send() == {}
    await rollout.pass_time(timedelta(seconds=30))
    assert await rollout.send() == {}
    await rollout.pass_time(timedelta(seconds=31))
    orders = await rollout.send()
    assert sorted(orders) == [2, 3]
    await rollout.end(orders)
    await rollout.pass_time(timedelta(seconds=61))
    done = await rollout.end(await rollout.send())
    assert done.status == "completed"
    assert [(batch.number, batch.status, batch.units.completed) for batch in done.batches] == [
        (1, "ended", 2),
        (2, "ended", 2),
        (3, "ended", 1),
    ]
    assert all(batch.started_at is not None and batch.finished_at is not None for batch in done.batches)


async def test_a_canary_goes_first_and_its_failure_ends_it_all(rollout: Rollout) -> None:
    await rollout.begin(6, canary=1, batch_size=5, max_failures=5)
    orders = await rollout.send()
    assert sorted(orders) == [0]
    done = await rollout.end(orders, "failed", error="no", error_code="app_not_found")
    assert await rollout.units() == "FXXXXX"
    assert (done.status, done.reason) == ("failed", "A canary failed")
    unit = (await rollout.list_units())[0]
    assert (unit.error, unit.error_code) == ("no", "app_not_found")
    assert done.batches[0].canary
    assert (await rollout.finished())[0]["cancelled"] == 5


async def test_a_canary_counts_once_its_instance_has_stayed_well(rollout: Rollout) -> None:
    await rollout.begin(3, canary=1, health_wait_seconds=60)
    shown = await rollout.end(await rollout.send(), output="fine")
    assert await rollout.units() == "rpp"
    assert shown.instances[0].output == "fine"
    assert await rollout.send() == {}
    await rollout.pass_time(timedelta(seconds=30))
    assert await rollout.send() == {}
    await rollout.pass_time(timedelta(seconds=31))
    assert await rollout.units() == "Cpp"
    orders = await rollout.send()
    assert sorted(orders) == [1, 2]
    await rollout.end(orders)
    assert await rollout.units() == "Crr"
    await rollout.pass_time(timedelta(seconds=61))
    assert (await rollout.now()).status == "completed"


@pytest.mark.parametrize("worse", [{"status": "offline", "health_score": 0}, {"health_score": 74}])
async def test_a_canary_that_is_worse_than_before_has_failed(rollout: Rollout, worse: dict[str, Any]) -> None:
    await rollout.begin(3, canary=1, health_wait_seconds=60)
    await set_instance(rollout.database, rollout.instances[0], health_score=75)
    await change(
        rollout.database, "UPDATE fleet_command_units SET health_before = 75 WHERE batch = 1 AND command_id = :id",
        id=rollout.id,
    )  # fmt: skip
    await rollout.end(await rollout.send(), output="fine")
    # As it was is good enough.
    await rollout.look()
    assert await rollout.units() == "rpp"
    await set_instance(rollout.database, rollout.instances[0], **worse)
    done = await rollout.look()
    assert await rollout.units() == "FXX"
    assert done.status == "failed"
    unit = (await rollout.list_units())[0]
    assert (unit.error_code, unit.output) == ("health_worse", "fine")


async def test_nothing_begins_once_the_limit_is_reached(rollout: Rollout) -> None:
    await rollout.begin(8, batch_size=4, max_failures=2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "failed")
    assert (await rollout.now()).status == "running"
    # Within the batch: what has not been sent by then is not sent any more.
    await change(rollout.database, "UPDATE fleet_command_units SET sent_at = NULL WHERE order_id = :id", id=orders[3])
    stopping = await rollout.end({1: orders[1]}, "failed")
    assert (stopping.status, stopping.reason) == ("stopping", "2 of 8 failed, and the limit is 2")
    assert await rollout.units() == "FFpXXXXX"
    assert await rollout.send() == {}
    # What is under way goes on to its end.
    assert await rollout.say(orders[2], "running")
    done = await rollout.end({2: orders[2]}, sequence=2)
    assert await rollout.units() == "FFCXXXXX"
    assert done.status == "failed"
    assert [event["status"] for event in await rollout.finished()] == ["failed"]


async def test_a_paused_rollout_begins_nothing(rollout: Rollout) -> None:
    await rollout.begin(4, batch_size=2)
    orders = await rollout.send()
    paused = await rollout.do("pause")
    assert paused.status == "paused"
    await rollout.end(orders)
    assert await rollout.units() == "CCpp"
    assert await rollout.send() == {}
    await rollout.look()
    assert await rollout.send() == {}
    resumed = await rollout.do("resume")
    assert resumed.status == "running"
    done = await rollout.end(await rollout.send())
    assert done.status == "completed"


async def test_what_was_called_and_not_sent_waits_while_it_is_paused(rollout: Rollout) -> None:
    await rollout.begin(2)
    await rollout.do("pause")
    assert await rollout.send() == {}
    await rollout.do("resume")
    assert sorted(await rollout.send()) == [0, 1]


async def test_cancel_ends_what_has_not_begun_and_asks_what_has(rollout: Rollout) -> None:
    await rollout.begin(4, batch_size=2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]})
    stopping = await rollout.do("cancel")
    assert (stopping.status, stopping.reason) == ("stopping", "It was cancelled")
    assert await rollout.units() == "CpXX"
    assert (await rollout.do("cancel")).status == "stopping"
    done = await rollout.end({1: orders[1]}, "cancelled")
    assert (done.status, await rollout.units()) == ("cancelled", "CXXX")


async def test_what_began_and_was_cancelled_has_its_times(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "running")
    await rollout.do("cancel")
    await rollout.end(orders, "cancelled", sequence=2)
    began, never = await rollout.list_units()
    assert began.started_at is not None
    assert never.started_at is None
    assert None not in (began.finished_at, never.finished_at)


async def test_an_instance_that_is_faster_than_its_cancellation_has_completed(rollout: Rollout) -> None:
    await rollout.begin(1)
    orders = await rollout.send()
    await rollout.do("cancel")
    done = await rollout.end(orders)
    assert (done.status, await rollout.units()) == ("cancelled", "C")


async def test_a_limit_that_was_reached_can_still_be_cancelled(rollout: Rollout) -> None:
    await rollout.begin(3, max_failures=1)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "failed")
    assert (await rollout.do("cancel")).status == "stopping"
    done = await rollout.end({1: orders[1], 2: orders[2]}, "cancelled")
    assert done.status == "cancelled"


async def test_retry_is_for_the_failed_and_the_expired_alone(rollout: Rollout) -> None:
    await rollout.begin(5, offline_ones=(2,), expires_in_seconds=600)
    orders = await rollout.send()
    await rollout.end({0: orders[0], 4: orders[4]})
    await rollout.end({1: orders[1]}, "failed", error="no", output="text")
    await rollout.end({3: orders[3]}, "cancelled")
    await rollout.pass_time(timedelta(seconds=601))
    assert await rollout.units() == "CFEXC"
    assert (await rollout.now()).status == "failed"
    await set_instance(rollout.database, rollout.instances[2], status="online")
    again = await rollout.do("retry")
    assert (again.status, again.finished_at, again.reason) == ("running", None, None)
    assert again.expires_at > datetime.now(UTC) + timedelta(seconds=500)
    assert await rollout.units() == "CppXC"
    unit = (await rollout.list_units())[1]
    assert (unit.attempt, unit.error, unit.output, unit.finished_at) == (2, None, None, None)
    fresh = await rollout.send()
    assert sorted(fresh) == [1, 2]
    assert not set(fresh.values()) & set(orders.values())
    # A late word about the former order is heard by nobody, and is nobody else's either.
    assert await rollout.say(orders[1], "completed", sequence=9, at=1)
    assert await rollout.units() == "CppXC"
    done = await rollout.end(fresh)
    assert (done.status, await rollout.units()) == ("completed", "CCCXC")
    assert [event["status"] for event in await rollout.finished()] == ["failed", "completed"]


async def test_a_retry_of_a_failed_canary_is_a_canary_again(rollout: Rollout) -> None:
    await rollout.begin(3, canary=1, batch_size=1)
    await rollout.end(await rollout.send(), "failed")
    assert await rollout.units() == "FXX"
    await rollout.do("retry")
    done = await rollout.end(await rollout.send())
    # The others had been cancelled, and are not what is tried again.
    assert (done.status, await rollout.units()) == ("completed", "CXX")


async def test_a_revoked_instance_is_not_tried_again(rollout: Rollout) -> None:
    await rollout.begin(2)
    await rollout.end(await rollout.send(), "failed")
    await set_instance(rollout.database, rollout.instances[0], status="revoked")
    await rollout.do("retry")
    assert await rollout.units() == "Fp"


async def test_it_begins_at_its_moment(rollout: Rollout) -> None:
    made = await rollout.begin(2, schedule=datetime.now(UTC) + HOUR, expires_in_seconds=600)
    assert (made.status, made.started_at) == ("pending", None)
    assert made.scheduled_at is not None
    assert made.expires_at == made.scheduled_at + timedelta(seconds=600)
    await rollout.look()
    assert await rollout.send() == {}
    await rollout.do("pause")
    assert (await rollout.do("resume")).status == "pending"
    await rollout.do("pause")
    await rollout.pass_time(HOUR)
    assert await rollout.send() == {}
    assert (await rollout.do("resume")).status == "running"
    done = await rollout.end(await rollout.send())
    assert done.status == "completed"


async def test_a_scheduled_one_can_be_cancelled_and_runs_out(rollout: Rollout) -> None:
    await rollout.begin(2, schedule=datetime.now(UTC) + HOUR)
    assert (await rollout.do("cancel")).status == "cancelled"
    assert await rollout.units() == "XX"


@pytest.mark.parametrize(
    ("change_of_giver", "reason"),
    [
        ("DELETE FROM memberships WHERE user_id = :user", "Who gave it is no member any more"),
        ("UPDATE memberships SET role = 'viewer' WHERE user_id = :user", "Who gave it does not have fleet:operate"),
        ("UPDATE memberships SET resources = ARRAY[:other] WHERE user_id = :user", "Who gave it is bound to other"),
        ("DELETE FROM api_keys WHERE user_id = :user", "The API key that it was given with is not valid"),
        ("UPDATE api_keys SET expires_at = now() WHERE user_id = :user", "The API key that it was given with is not"),
        ("UPDATE api_keys SET scopes = ARRAY['fleet:read'] WHERE user_id = :user", "Who gave it does not have fleet"),
    ],
)
async def test_what_waits_dies_with_the_right_to_give_it(rollout: Rollout, change_of_giver: str, reason: str) -> None:
    """Both what waits for its moment and what waits for an instance; what is under way comes to its end."""
    giver = await make_colleague(rollout.database, rollout.tenant_id, "operator")
    key_id = await rollout.given_by(giver, key="api_keys" in change_of_giver)
    first = await rollout.begin(3, offline_ones=(2,))
    orders = await rollout.send()
    later = await rollout.do("create", rollout.asked(schedule=datetime.now(UTC) + HOUR))
    async with rollout.database.begin(tenant=rollout.tenant_id) as session:
        values = {"user": giver.id, "other": rollout.instances[0]}
        names = {name: value for name, value in values.items() if f":{name}" in change_of_giver}
        await session.execute(text(change_of_giver), names)
    assert (await rollout.look()).status == "running", "nothing is to begin yet"
    await set_instance(rollout.database, rollout.instances[2], status="online")
    assert ((await rollout.look()).status, await rollout.units()) == ("stopping", "ppX")
    done = await rollout.end(orders)
    assert (done.status, await rollout.units()) == ("cancelled", "CCX")
    assert (done.reason or "").startswith(reason)
    await rollout.refused(first.id)
    rollout.id = later.id
    refused = await rollout.pass_time(HOUR)
    assert (refused.status, await rollout.units()) == ("cancelled", "XXX")
    assert (refused.reason or "").startswith(reason)
    assert refused.created_by == (key_id or giver.id)
    assert await rollout.send() == {}
    assert [event["reason"] for event in await rollout.finished()] == [refused.reason]
    await rollout.refused(later.id)


async def test_who_comes_from_the_parent_gives_commands_while_they_may_enter(
    rollout: Rollout, database: Database
) -> None:
    """Whoever's transaction takes the step: here that of a report, and that of one who does not see the parent."""
    guest = await make_member(database)
    values = {"parent": guest.tenant_id, "tenant": rollout.tenant_id, "user": guest.id, "id": new_id("mem")}
    become = "UPDATE tenants SET kind = 'client', parent_id = :parent, parent_access = 'operator' WHERE id = :tenant"
    enter = "INSERT INTO memberships (tenant_id, user_id, parent_id, id) VALUES (:tenant, :user, :parent, :id)"
    async with database.begin(tenant=rollout.tenant_id) as session:
        await session.execute(text(become), values)
        await session.execute(text(enter), values)
    await rollout.given_by(guest)
    await rollout.begin(2, batch_size=1)
    await rollout.end(await rollout.send())
    await rollout.do("pause")
    await rollout.given_by(await make_colleague(database, rollout.tenant_id, "operator"))
    await rollout.do("resume")
    done = await rollout.end(await rollout.send())
    assert (done.status, done.reason, await rollout.units()) == ("completed", None, "CC")


async def test_nothing_begins_after_its_time(rollout: Rollout) -> None:
    await rollout.begin(4, batch_size=2, expires_in_seconds=600)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "running")
    await rollout.pass_time(timedelta(seconds=601))
    # What has been sent may have begun: only its instance knows.
    assert await rollout.units() == "rpEE"
    await rollout.end({0: orders[0]}, sequence=2)
    done = await rollout.end({1: orders[1]}, "expired", error="too late", error_code="expired")
    assert (done.status, await rollout.units()) == ("expired", "CEEE")


async def test_a_paused_one_runs_out_too(rollout: Rollout) -> None:
    await rollout.begin(2, batch_size=1, expires_in_seconds=600)
    await rollout.end(await rollout.send())
    await rollout.do("pause")
    assert (await rollout.pass_time(timedelta(seconds=601))).status == "expired"
    assert await rollout.units() == "CE"


@pytest.mark.parametrize(
    ("offline", "expected", "status"),
    [("queue", "CpC", "running"), ("skip", "CSC", "completed"), ("fail", "CFC", "failed")],
)
async def test_who_is_offline_is_dealt_with_as_was_asked(
    rollout: Rollout, offline: str, expected: str, status: str
) -> None:
    await rollout.begin(3, offline_ones=(1,), offline=offline, batch_size=2)
    await rollout.end(await rollout.send())
    await rollout.end(await rollout.send())
    assert await rollout.units() == expected
    assert (await rollout.now()).status == status


async def test_who_comes_back_in_time_gets_its_order(rollout: Rollout) -> None:
    await rollout.begin(3, offline_ones=(0,), batch_size=1)
    orders = await rollout.send()
    assert sorted(orders) == [1]
    await rollout.end(orders)
    # Heard again, before its first heartbeat has made it online.
    await change(
        rollout.database,
        "UPDATE fleet_presence SET last_seen_at = clock_timestamp() WHERE instance_id = :id",
        id=rollout.instances[0],
    )
    orders = await rollout.send()
    assert sorted(orders) == [2]
    await rollout.look()
    assert await rollout.send() == {}
    await rollout.end(orders)
    orders = await rollout.send()
    assert sorted(orders) == [0]
    assert (await rollout.end(orders)).status == "completed"


async def test_who_goes_offline_before_the_order_has_left_is_offline(rollout: Rollout) -> None:
    await rollout.begin(2, offline="skip")
    await set_instance(rollout.database, rollout.instances[0], status="offline")
    await rollout.look()
    assert await rollout.units() == "Sp"


async def test_no_more_fail_for_being_offline_than_the_limit(rollout: Rollout) -> None:
    await rollout.begin(6, offline_ones=(0, 1, 2, 3), offline="fail", max_failures=2)
    assert await rollout.units() == "FFXXXX"
    units = await rollout.list_units()
    assert units[0].error_code == "instance_offline"


async def test_what_nothing_is_heard_of_for_a_day_has_failed(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "running")
    await rollout.pass_time(timedelta(hours=23))
    assert await rollout.units() == "rp"
    # It is asked after meanwhile, and answers as before: that is no news, but it is a word.
    assert await rollout.say(orders[0], "running")
    await rollout.pass_time(timedelta(hours=2))
    assert await rollout.units() == "rF"
    assert (await rollout.list_units())[1].error_code == "no_answer"


async def test_a_report_counts_once_and_the_first_end_stands(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "running", sequence=2, output="new")
    await rollout.end({0: orders[0]}, "running", sequence=1, output="old")
    await rollout.end({0: orders[0]}, "running", sequence=2, output="odd")
    assert (await rollout.list_units())[0].output == "new"
    await rollout.end({0: orders[0]}, "failed", sequence=3, error="no")
    await rollout.end({0: orders[0]}, "completed", sequence=4)
    assert (await rollout.units())[0] == "F"
    assert (await rollout.list_units())[0].error == "no"


async def test_an_order_that_was_not_sent_is_not_reported_on(rollout: Rollout) -> None:
    await rollout.begin(1)
    query = "SELECT order_id FROM fleet_command_units WHERE command_id = :id"
    ((order_id,),) = await ask(rollout.database, query, id=rollout.id)
    assert await rollout.say(order_id, "completed")
    assert await rollout.units() == "p"


async def test_refused_is_failed_with_the_reason(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "refused", error="This server does not know it", error_code="kind_unsupported")
    await rollout.end({1: orders[1]}, "taken")
    assert await rollout.units() == "Fp"
    unit = (await rollout.list_units())[0]
    assert (unit.error_code, unit.started_at) == ("kind_unsupported", None)


async def test_text_is_text_and_has_an_end(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    await rollout.end({0: orders[0]}, "completed", output="a\x00b", step="\x00", error="x\x00")
    await rollout.end({1: orders[1]}, "completed", output="é" * 60_000 + "end")
    first, second = await rollout.list_units()
    assert (first.output, first.step, first.error) == ("ab", "", "x")
    assert second.output is not None
    assert len(second.output.encode()) <= 64 * 1024
    assert second.output.endswith("éend")


async def test_times_are_by_the_panels_clock(rollout: Rollout) -> None:
    await rollout.begin(2)
    orders = await rollout.send()
    before = datetime.now(UTC)
    for number, moment in ((0, datetime(9999, 12, 31, tzinfo=UTC)), (1, datetime(1, 1, 1, tzinfo=UTC))):
        report = Report(order_id=orders[number], sequence=5, status="completed", at=moment)
        socket = Socket(Identity(rollout.instances[number], rollout.tenant_id, "1", b""), None)  # type: ignore[arg-type]
        assert await rollout.delivery.apply([(socket, report)]) == [True]
    made = await rollout.now()
    assert made.created_at is not None
    for unit in made.instances:
        assert unit.finished_at is not None
        assert before - timedelta(seconds=5) < unit.finished_at <= datetime.now(UTC) + timedelta(seconds=5)


async def test_two_panels_that_look_at_once_begin_nothing_twice(rollout: Rollout, keyring: Keyring) -> None:
    await rollout.begin(20, batch_size=3)
    seen: list[int] = []
    while (await rollout.now()).status == "running":
        orders = await rollout.send()
        assert len(orders) <= 3
        seen += orders
        await asyncio.gather(*(rollout.say(order_id, "completed") for order_id in orders.values()))
        await asyncio.gather(*(rollout.look() for _ in range(3)))
    assert sorted(seen) == list(range(20))
    assert len(await rollout.finished()) == 1


async def test_a_step_that_is_broken_off_is_made_by_the_next_one(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not committed did not happen: the row of the report, the units that it lets begin, the event."""
    await rollout.begin(2, batch_size=1)
    orders = await rollout.send()
    with monkeypatch.context() as patch:
        patch.setattr("quazzar.panel.commands.engine.look_at", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await rollout.say(orders[0], "completed")
    assert await rollout.units() == "pp"
    assert await rollout.say(orders[0], "completed")
    assert await rollout.units() == "Cp"
    assert sorted(await rollout.send()) == [1]


async def test_a_command_that_can_not_be_looked_at_holds_up_no_other(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rollout.begin(1, schedule=datetime.now(UTC) + HOUR)
    await change(
        rollout.database,
        "UPDATE fleet_commands SET scheduled_at = now(), step_at = now() - interval '1 day' WHERE id = :id",
        id=rollout.id,
    )
    met: list[str] = []

    async def advance(session: Any, tenant_id: str, command_id: str) -> None:
        met.append(command_id)
        if command_id == "cmd_bad":
            raise RuntimeError("no")
        await engine.advance(session, tenant_id, command_id)

    async def due(*_: Any) -> Any:
        class Row:
            tenant_id = rollout.tenant_id

            def __init__(self, name: str) -> None:
                self.id = name

        return [Row("cmd_bad"), Row(rollout.id)]

    async def claim(*_: Any) -> bool:
        return True

    monkeypatch.setattr("quazzar.panel.commands.delivery.advance", advance)
    monkeypatch.setattr(upkeep, "find_due", due)
    monkeypatch.setattr(upkeep, "claim", claim)
    await rollout.delivery.tick()
    assert met == ["cmd_bad", rollout.id]
    assert (await rollout.now()).status == "running"
