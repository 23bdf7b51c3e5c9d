"""Commands over HTTP: who may give which to whom, and what is said about them."""

import asyncio
import re
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from quazzar.core.crypto import Keyring, SealBroken
from quazzar.core.db import Database, see_all_tenants
from quazzar.instance.enrolment.keys import signing_request
from quazzar.link.commands import COMMANDS as KINDS
from quazzar.link.messages import Enrol, Facts
from quazzar.panel.commands.jobs import KEPT_DAYS
from quazzar.panel.commands.sealing import open_args
from quazzar.panel.commands.service import reseal
from quazzar.panel.commands.upkeep import prune_commands
from quazzar.panel.fleet.enrolment import enrol
from tests.conftest import RunningApp
from tests.factories.accounts import headers_of, make_colleague
from tests.panel.commands.instances import COMMANDS, ask, change, give, make_group, make_instance, set_instance
from tests.panel.fleet.conftest import Tenant

UNKNOWN = "inst_" + "a" * 26


async def count(database: Database, tenant: Tenant) -> int:
    return int((await ask(database, "SELECT count(*) FROM fleet_commands WHERE tenant_id = :id", id=tenant.id))[0][0])


async def happened(database: Database, command_id: str) -> list[str]:
    rows = await ask(database, "SELECT type FROM events WHERE subject = :id ORDER BY position", id=command_id)
    return [row[0] for row in rows]


async def audited(database: Database, command_id: str) -> list[Any]:
    return await ask(
        database, "SELECT action, actor_id, after FROM audit_records WHERE subject = :id ORDER BY number", id=command_id
    )


async def client_of(app: RunningApp, tenant: Tenant, role: str, resources: list[str] | None = None) -> Tenant:
    """Somebody else of the tenant, maybe bound to some of what is there."""
    user = await make_colleague(app.database, tenant.id, role)
    if resources is not None:
        async with app.database.begin(tenant=tenant.id) as session:
            await session.execute(
                text("UPDATE memberships SET resources = :resources WHERE user_id = :id"),
                {"resources": resources, "id": user.id},
            )
    http = app.client()
    http.headers.update(await headers_of(http, user))
    http.base_url = "http://localhost/panel"
    return Tenant(tenant.id, http, user.id)


async def test_a_command_is_given_to_instances(ada: Tenant, database: Database) -> None:
    first, second = await make_instance(database, ada.id, name="a"), await make_instance(database, ada.id, name="b")
    answer = await ada.http.post(
        COMMANDS, json={"kind": "app.restart", "args": {"app": "cloud"}, "targets": {"instances": [second, first]}}
    )
    made = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/panel/api/fleet/commands/{made['id']}"
    assert made["id"].startswith("cmd_")
    assert (made["kind"], made["status"], made["args"]) == ("app.restart", "running", {"app": "cloud"})
    assert [(one["instance_id"], one["status"]) for one in made["instances"]] == [
        (first, "pending"),
        (second, "pending"),
    ]
    assert made["instances"][0].keys() >= {"output", "error", "started_at", "finished_at"}
    assert made["units"] == dict.fromkeys(made["units"], 0) | {"pending": 2}
    assert [(batch["number"], batch["canary"], batch["status"]) for batch in made["batches"]] == [(1, False, "running")]
    life = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < life <= timedelta(hours=24)
    assert (await ada.http.get(f"{COMMANDS}/{made['id']}")).json() == made
    (listed,) = [one for one in (await ada.http.get(COMMANDS)).json() if one["id"] == made["id"]]
    assert listed == {key: made[key] for key in listed}
    assert made.keys() - listed.keys() == {"targets", "batches", "instances"}
    assert await happened(database, made["id"]) == ["command.created"]
    ((action, actor, after),) = await audited(database, made["id"])
    assert (action, actor, after["instances"]) == ("command.create", ada.user_id, 2)


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_every_kind_is_taken(ada: Tenant, database: Database, kind: str) -> None:
    args = {"app": "cloud"} if kind != "instance.refresh" else {}
    if kind == "app.install":
        args = {"template": "gitea", "name": "git"}
    made = await give(ada.http, [await make_instance(database, ada.id)], kind=kind, args=args)
    assert made["kind"] == kind


async def test_what_may_be_secret_is_masked_and_sealed(ada: Tenant, database: Database) -> None:
    canary = uuid.uuid4().hex
    args = {"template": "gitea", "name": "git", "config": {"password": canary}}
    made = await give(ada.http, [await make_instance(database, ada.id)], kind="app.install", args=args)
    assert made["args"]["config"] == {"password": "********"}
    for query in (
        "SELECT CAST(c AS text) FROM fleet_commands c WHERE id = :id",
        "SELECT CAST(u AS text) FROM fleet_command_units u WHERE command_id = :id",
        "SELECT CAST(e AS text) FROM events e WHERE subject = :id",
        "SELECT CAST(a AS text) FROM audit_records a WHERE subject = :id",
    ):
        rows = await ask(database, query, id=made["id"])
        assert rows
        assert all(canary not in row[0] and canary.encode().hex() not in row[0] for row in rows)


async def test_all_that_is_wrong_is_said_at_once(ada: Tenant, database: Database) -> None:
    instance = await make_instance(database, ada.id)
    before = await count(database, ada)

    async def details(**body: Any) -> dict[str, str]:
        wanted = {"kind": "app.restart", "args": {"app": "a"}, "targets": {"instances": [instance]}}
        answer = await ada.http.post(COMMANDS, json=wanted | body)
        assert answer.status_code == 422, answer.text
        found: dict[str, str] = answer.json()["details"]
        return found

    assert (await details(kind="sh", args={"x": 1})).keys() == {"kind"}
    assert (await details(kind="app.install", args={"nane": 1})).keys() == {"args.template", "args.name", "args.nane"}
    both = {"batch_size": 1, "percent": 10}
    found = await details(args={}, targets={}, strategy=both, schedule="2020-01-01T00:00:00Z")
    assert found.keys() == {"args.app", "targets", "strategy.percent", "schedule"}
    found = await details(
        kind=1,
        args=[],
        targets={"instances": ["x"], "tags": ["Ä"], "groups": [1], "alll": True},
        strategy={"canary": -1, "max_failures": "1", "pause": 3},
        offline="wait",
        expires_in_seconds=0,
        status="running",
    )
    assert found.keys() == {
        "kind",
        "args",
        "targets.instances.0",
        "targets.tags.0",
        "targets.groups.0",
        "targets.alll",
        "strategy.canary",
        "strategy.max_failures",
        "strategy.pause",
        "offline",
        "expires_in_seconds",
        "status",
    }
    late = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    assert (await details(schedule=late)).keys() == {"schedule"}
    assert (await details(targets={"tags": ["nobody"]})).keys() == {"targets"}
    big = {"template": "a", "name": "a", "config": {str(number): "x" * 32_000 for number in range(10)}}
    assert (await details(kind="app.install", args=big)).keys() == {"args"}
    assert await count(database, ada) == before


async def test_s14_a_container_is_no_app(ada: Tenant, database: Database) -> None:
    instance = await make_instance(database, ada.id)
    for app in ("0f3b2c1d4e5f", "0f3b" * 16, "../x", "a;id"):
        body = {"kind": "app.stop", "args": {"app": app}, "targets": {"instances": [instance]}}
        answer = await ada.http.post(COMMANDS, json=body)
        assert (answer.status_code, answer.json()["details"].keys()) == (422, {"args.app"})


async def test_s06_s07_one_foreign_among_own_and_nobody_is_told_anything(
    ada: Tenant, eve: Tenant, database: Database
) -> None:
    own, foreign = await make_instance(database, ada.id), await make_instance(database, eve.id)
    group, foreign_group = await make_group(database, ada.id), await make_group(database, eve.id)
    await set_instance(database, own, group_id=group)
    before = await count(database, ada)
    answers = []
    for targets in ({"instances": [own, foreign]}, {"instances": [own, UNKNOWN]}):
        for dry_run in (False, True):
            body = {"kind": "app.stop", "args": {"app": "a"}, "targets": targets, "dry_run": dry_run}
            answers.append(await ada.http.post(COMMANDS, json=body))
    for groups in ([group, foreign_group], [group, "grp_" + "a" * 26]):
        body = {"kind": "app.stop", "args": {"app": "a"}, "targets": {"groups": groups}}
        answers.append(await ada.http.post(COMMANDS, json=body))
    assert {answer.status_code for answer in answers} == {404}
    shown = [answer.json() | {"request_id": ""} for answer in answers]
    assert all(one == shown[0] for one in shown[:4])
    assert shown[4] == shown[5]
    assert shown[0]["details"] == {"targets.instances.1": "There is no such instance"}
    assert await count(database, ada) == before
    # Nor does a tag that is in use elsewhere reach anybody there.
    await set_instance(database, foreign, tags=["far"])
    body = {"kind": "app.stop", "args": {"app": "a"}, "targets": {"tags": ["far"]}}
    assert (await ada.http.post(COMMANDS, json=body)).status_code == 422


async def test_the_commands_of_others_do_not_exist(ada: Tenant, eve: Tenant, database: Database) -> None:
    made = await give(ada.http, [await make_instance(database, ada.id)])
    assert made["id"] not in {one["id"] for one in (await eve.http.get(COMMANDS)).json()}
    for method, path in (
        ("GET", ""),
        ("GET", "?follow=true"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/retry"),
    ):
        foreign = await eve.http.request(method, f"{COMMANDS}/{made['id']}{path}")
        unknown = await eve.http.request(method, f"{COMMANDS}/cmd_{'a' * 26}{path}")
        odd = await eve.http.request(method, f"{COMMANDS}/x{path}")
        assert foreign.status_code == unknown.status_code == odd.status_code == 404
        assert foreign.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
        assert foreign.json()["code"] == "command_not_found"
    assert (await ada.http.get(f"{COMMANDS}/{made['id']}")).json() == made
    # The wall in the database holds where the argument is wrong.
    async with database.begin(tenant=eve.id) as session:
        for table in ("fleet_commands", "fleet_command_units"):
            rows = await session.execute(text(f"SELECT 1 FROM {table} WHERE tenant_id = :id"), {"id": ada.id})
            assert rows.all() == []


async def test_roles(ada: Tenant, app: RunningApp, database: Database) -> None:
    instance = await make_instance(database, ada.id)
    made = await give(ada.http, [instance])
    body = {"kind": "app.stop", "args": {"app": "a"}, "targets": {"instances": [instance]}}
    for role, sees, acts in (("operator", True, True), ("viewer", True, False), ("billing", False, False)):
        who = await client_of(app, ada, role)
        assert (await who.http.get(COMMANDS)).status_code == (200 if sees else 403)
        assert (await who.http.get(f"{COMMANDS}/{made['id']}")).status_code == (200 if sees else 403)
        assert (await who.http.post(COMMANDS, json=body)).status_code == (201 if acts else 403)
        for verb in ("pause", "resume", "retry", "cancel"):
            answer = await who.http.post(f"{COMMANDS}/{made['id']}/{verb}")
            assert (answer.status_code == 403) is not acts
        await who.http.aclose()


async def test_who_is_bound_acts_within_the_bounds(ada: Tenant, app: RunningApp, database: Database) -> None:
    group = await make_group(database, ada.id)
    below = await make_group(database, ada.id, group)
    other_group = await make_group(database, ada.id)
    mine = await make_instance(database, ada.id, group_id=below, tags=["t1"])
    named = await make_instance(database, ada.id)
    other = await make_instance(database, ada.id, group_id=other_group, tags=["t1"])
    bound = await client_of(app, ada, "operator", [group, named])
    body: dict[str, Any] = {"kind": "app.stop", "args": {"app": "a"}}

    async def given(**targets: Any) -> set[str]:
        answer = await bound.http.post(COMMANDS, json=body | {"targets": targets})
        assert answer.status_code == 201, answer.text
        return {one["instance_id"] for one in answer.json()["instances"]}

    assert await given(all=True) == {mine, named}
    assert await given(tags=["t1"]) == {mine}
    assert await given(groups=[group]) == {mine}
    assert await given(groups=[below], instances=[named]) == {mine, named}
    for targets in ({"instances": [mine, other]}, {"groups": [other_group]}):
        answer = await bound.http.post(COMMANDS, json=body | {"targets": targets})
        assert answer.status_code == 404
    # Of what the owner gives, only the own part is seen, and nothing is done to the rest.
    both = await give(ada.http, [mine, other])
    foreign = await give(ada.http, [other])
    shown = (await bound.http.get(f"{COMMANDS}/{both['id']}")).json()
    assert [one["instance_id"] for one in shown["instances"]] == [mine]
    assert shown["targets"]["instances"] == [mine], "nor are others named"
    assert (shown["units"]["pending"], both["units"]["pending"]) == (1, 2)
    assert (await bound.http.get(f"{COMMANDS}/{foreign['id']}")).status_code == 404
    listed = {one["id"] for one in (await bound.http.get(COMMANDS)).json()}
    assert both["id"] in listed
    assert foreign["id"] not in listed
    for verb in ("pause", "resume", "retry", "cancel"):
        answer = await bound.http.post(f"{COMMANDS}/{both['id']}/{verb}")
        assert (answer.status_code, answer.json()["code"]) == (403, "command_out_of_reach")
        assert (await bound.http.post(f"{COMMANDS}/{foreign['id']}/{verb}")).status_code == 404
    assert (await ada.http.get(f"{COMMANDS}/{both['id']}")).json() == both
    await bound.http.aclose()


async def test_targets_add_up(ada: Tenant, new_tenant: Any, database: Database) -> None:
    one = await new_tenant()
    group = await make_group(database, one.id)
    inner = await make_group(database, one.id, group)
    in_group = await make_instance(database, one.id, group_id=inner)
    web = await make_instance(database, one.id, tags=["web", "eu"])
    mail = await make_instance(database, one.id, tags=["mail"])
    named = await make_instance(database, one.id)
    gone = await make_instance(database, one.id, status="revoked", tags=["web"])

    async def meant(**targets: Any) -> list[str]:
        made = await give(one.http, [], targets=targets)
        return sorted(unit["instance_id"] for unit in made["instances"])

    assert await meant(tags=["web", "mail"]) == sorted([web, mail])
    assert await meant(groups=[group], instances=[named, named, web], tags=["web"]) == sorted([in_group, named, web])
    assert await meant(all=True) == sorted([in_group, web, mail, named])
    body = {"kind": "app.stop", "args": {"app": "a"}, "targets": {"instances": [gone]}}
    answer = await one.http.post(COMMANDS, json=body)
    assert answer.status_code == 422
    assert answer.json()["details"] == {"targets.instances.0": "The instance was revoked"}


async def test_a_dry_run_says_who_and_makes_nothing(new_tenant: Any, database: Database) -> None:
    one = await new_tenant()
    ids = [await make_instance(database, one.id, name=name) for name in ("c", "a", "d", "b")]
    off = await make_instance(database, one.id, name="0", status="offline")
    body = {
        "kind": "app.stop",
        "args": {"app": "a"},
        "targets": {"all": True},
        "strategy": {"canary": 1, "percent": 40},
        "dry_run": True,
    }
    answer = await one.http.post(COMMANDS, json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["dry_run"], plan["total"], plan["offline"]) == (True, 5, [off])
    names = [[unit["name"] for unit in batch["instances"]] for batch in plan["batches"]]
    assert names == [["a"], ["b", "c"], ["d", "0"]]
    assert [batch["canary"] for batch in plan["batches"]] == [True, False, False]
    assert await count(database, one) == 0
    made = await give(one.http, ids, targets={"all": True}, strategy={"canary": 1, "percent": 40})
    assert [unit["batch"] for unit in made["instances"]] == [1, 2, 2, 3, 3]
    assert made["strategy"]["batch_size"] == 2


async def test_the_same_key_gives_one_command(ada: Tenant, database: Database) -> None:
    body = {"kind": "app.stop", "args": {"app": "a"}, "targets": {"instances": [await make_instance(database, ada.id)]}}
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    before = await count(database, ada)
    first = await ada.http.post(COMMANDS, json=body, headers=headers)
    again = await ada.http.post(COMMANDS, json=body, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert again.headers["idempotent-replayed"] == "true"
    assert await count(database, ada) == before + 1


async def test_pages_and_filters(new_tenant: Any, database: Database) -> None:
    one = await new_tenant()
    first, second = await make_instance(database, one.id), await make_instance(database, one.id)
    made = [await give(one.http, [first]), await give(one.http, [second], kind="app.stop")]
    cancelled = await one.http.post(f"{COMMANDS}/{made[0]['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"

    async def listed(query: str) -> list[str]:
        answer = await one.http.get(f"{COMMANDS}?{query}")
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()]

    ids = [item["id"] for item in made]
    assert await listed("") == ids[::-1]
    assert await listed("status=cancelled&status=failed") == ids[:1]
    assert await listed("kind=app.stop") == ids[1:]
    assert await listed(f"instance={first}") == ids[:1]
    answer = await one.http.get(f"{COMMANDS}?limit=1")
    assert answer.json()[0]["id"] == ids[1]
    assert "cursor=" in answer.headers["link"]
    for query in ("status=x", "limit=0", "cursor=x", "kind=%00", "instance=x"):
        assert (await one.http.get(f"{COMMANDS}?{query}")).status_code == 400


async def test_verbs_need_their_state(ada: Tenant, database: Database) -> None:
    instance = await make_instance(database, ada.id)

    async def do(verb: str, made: dict[str, Any]) -> tuple[int, str]:
        answer = await ada.http.post(f"{COMMANDS}/{made['id']}/{verb}")
        return answer.status_code, answer.json().get("code") or answer.json()["status"]

    made = await give(ada.http, [instance])
    assert await do("resume", made) == (409, "command_not_paused")
    assert await do("retry", made) == (409, "command_not_retryable")
    assert await do("pause", made) == (200, "paused")
    assert await do("pause", made) == (409, "command_not_pausable")
    assert await do("resume", made) == (200, "running")
    assert await do("cancel", made) == (200, "cancelled")
    for verb, code in (
        ("cancel", "command_ended"),
        ("pause", "command_not_pausable"),
        ("resume", "command_not_paused"),
        ("retry", "command_not_retryable"),
    ):
        assert await do(verb, made) == (409, code)
    actions = [row[0] for row in await audited(database, made["id"])]
    assert actions == ["command.create", "command.pause", "command.resume", "command.cancel"]
    assert await happened(database, made["id"]) == ["command.created", "command.finished"]


async def test_two_at_once_and_one_cancels(ada: Tenant, database: Database) -> None:
    made = await give(ada.http, [await make_instance(database, ada.id)])
    path = f"{COMMANDS}/{made['id']}/cancel"
    answers = await asyncio.gather(*(ada.http.post(path) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert await happened(database, made["id"]) == ["command.created", "command.finished"]


async def test_a_revoked_instance_has_nothing_left_to_do(ada: Tenant, database: Database) -> None:
    gone, stays = await make_instance(database, ada.id), await make_instance(database, ada.id)
    made = await give(ada.http, [gone, stays])
    only = await give(ada.http, [gone])
    assert (await ada.http.delete(f"/api/fleet/instances/{gone}")).status_code == 204
    shown = (await ada.http.get(f"{COMMANDS}/{made['id']}")).json()
    units = {one["instance_id"]: one for one in shown["instances"]}
    assert (shown["status"], units[stays]["status"]) == ("running", "pending")
    assert (units[gone]["status"], units[gone]["error_code"]) == ("cancelled", "instance_revoked")
    assert (await ada.http.get(f"{COMMANDS}/{only['id']}")).json()["status"] == "cancelled"
    # Forgetting it takes its units along, and the command goes on.
    assert (await ada.http.delete(f"/api/fleet/instances/{gone}")).status_code == 204
    shown = (await ada.http.get(f"{COMMANDS}/{made['id']}")).json()
    assert [one["instance_id"] for one in shown["instances"]] == [stays]


def test_the_page_about_commands_names_every_kind() -> None:
    page = (Path(__file__).parents[3] / "docs" / "commands.md").read_text()
    table = page.partition("## What can be done")[2].partition("##")[0]
    assert set(re.findall(r"`([a-z]+\.[a-z]+)`", table)) == set(KINDS)


async def test_arguments_are_sealed_anew_with_a_new_key(ada: Tenant, database: Database, keyring: Keyring) -> None:
    args = {"template": "gitea", "name": "git", "config": {"password": "x"}}
    made = await give(ada.http, [await make_instance(database, ada.id)], kind="app.install", args=args)
    rotated = keyring.rotated()
    async with database.begin() as session:
        assert await reseal(session, rotated) >= 1
        query = text("SELECT sealed_args FROM fleet_commands WHERE id = :id")
        sealed = (await session.execute(query, {"id": made["id"]})).scalar_one()
        assert open_args(rotated, made["id"], sealed) == args
        assert rotated.current.encode() in sealed
        with pytest.raises(SealBroken):
            open_args(rotated, "cmd_" + "a" * 26, sealed)
        with pytest.raises(SealBroken):
            await reseal(session, Keyring({"other": secrets.token_bytes(32)}))
        # The other tests know the former key alone.
        await session.rollback()


async def test_old_commands_are_forgotten(ada: Tenant, database: Database) -> None:
    instance = await make_instance(database, ada.id)
    old, young, running = [await give(ada.http, [instance]) for _ in range(3)]
    for made, days in ((old, 91), (young, 89)):
        await ada.http.post(f"{COMMANDS}/{made['id']}/cancel")
        await change(
            database,
            "UPDATE fleet_commands SET finished_at = now() - make_interval(days => :days) WHERE id = :id",
            id=made["id"],
            days=days,
        )
    async with database.begin() as session:
        await see_all_tenants(session)
        assert await prune_commands(session, days=KEPT_DAYS, most=10) == 1
    for made, status in ((old, 404), (young, 200), (running, 200)):
        assert (await ada.http.get(f"{COMMANDS}/{made['id']}")).status_code == status


async def test_a_machine_that_joins_anew_has_nothing_left_to_do(ada: Tenant, app: RunningApp) -> None:
    """It may have been wiped, and knows nothing of what it was told before."""
    database = app.database
    authority = await app.asgi.app.state.fleet.authority()
    key = ec.generate_private_key(ec.SECP256R1())
    token = (await ada.http.post("/api/fleet/tokens", json={"name": "x", "max_uses": 2})).json()["token"]
    facts = Facts(
        name="a", hostname="a", machine_id=secrets.token_hex(32), version="0.1.0", os="x", arch="x",
        cpu_cores=1, memory_bytes=1, disk_bytes=1,
    )  # fmt: skip
    data = Enrol(token=token, csr=signing_request(key), facts=facts)
    async with database.begin(tenant=ada.id) as session:
        instance_id, _ = await enrol(session, ada.id, authority, data, address=None)
    made = await give(ada.http, [instance_id])
    async with database.begin(tenant=ada.id) as session:
        assert (await enrol(session, ada.id, authority, data, address=None))[0] == instance_id
    shown = (await ada.http.get(f"{COMMANDS}/{made['id']}")).json()
    assert (shown["status"], shown["instances"][0]["status"]) == ("cancelled", "cancelled")
