"""Updates that nobody asks for: what owners may say of them, when they begin, and what is never tried twice."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from quazzar.core.crypto import Keyring
from quazzar.instance.apps import changing
from quazzar.instance.apps.auto_updating import CANARY_HOURS, AutoUpdater
from quazzar.instance.apps.runtimes.base import RegistryUnreachable, RuntimeFailure
from quazzar.instance.apps.runtimes.memory import Behaviour, MemoryEngine
from tests.conftest import RunningApp
from tests.factories.apps import (
    SECRET,
    add_template,
    audited,
    begin_install,
    events_of,
    job_of,
    key_client,
    show,
    unique,
    until,
    web_file,
)
from tests.instance.apps.test_changes import (  # noqa: F401 - the fixture is for all tests here
    _at_once,
    assert_old,
    changed,
    forget_images,
    old_app,
    two_versions,
)
from tests.instance.apps.test_update_checks import now, sql

EVERY_MINUTE = {"cron": "* * * * *", "timezone": "UTC", "duration_minutes": 60}
OFF: dict[str, Any] = {"enabled": False, "window": None, "hold_version": None, "skip_versions": [], "canary_app": None}
NEW = "sha256:" + "7" * 64


@pytest.fixture(autouse=True)
async def _nobody_else(app: RunningApp) -> None:
    await sql(app, "DELETE FROM app_auto_updates")


@pytest.fixture
def updater(app: RunningApp, keyring: Keyring) -> AutoUpdater:
    return AutoUpdater(app.database, keyring, app.settings)


async def wish(client: httpx.AsyncClient, app_id: str, **auto_update: Any) -> dict[str, Any]:
    answer = await client.patch(f"/api/apps/{app_id}", json={"auto_update": auto_update})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def refused(client: httpx.AsyncClient, app_id: str, auto_update: Any) -> dict[str, str]:
    answer = await client.patch(f"/api/apps/{app_id}", json={"auto_update": auto_update})
    assert answer.status_code == 422, answer.text
    details: dict[str, str] = answer.json()["details"]
    return {name.removeprefix("auto_update.").removeprefix("auto_update"): text for name, text in details.items()}


async def ready(client: httpx.AsyncClient, engine: MemoryEngine, **auto_update: Any) -> dict[str, Any]:
    """An app of 1.0 that knows of 2.0 and is to be updated by itself."""
    made = await old_app(client, engine)
    await wish(client, made["id"], enabled=True, **auto_update)
    return await now(client, made["id"])


async def finished(client: httpx.AsyncClient, app_id: str) -> dict[str, Any]:
    """The job of the update that has begun, once it has ended."""
    return await job_of(client, (await show(client, app_id))["job_id"])


# What may be said


async def test_what_is_said_is_shown_and_laid_over(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    made, canary = await old_app(admin, engine), None
    app_id = made["id"]
    assert made["auto_update"] == OFF
    assert made["auto_update_state"] == {"opens_at": None, "waits_for": None, "skipped": []}
    canary = await old_app(admin, engine, made["template"])
    window = {"cron": "30 3 * * 6", "timezone": "Europe/Berlin"}
    said = {"enabled": True, "window": window, "hold_version": "2.0", "skip_versions": ["1.5", "1.5", NEW]}
    shown = await wish(admin, app_id, **said, canary_app=canary["id"])
    whole = {
        "enabled": True,
        "window": window | {"duration_minutes": 60},
        "hold_version": "2.0",
        "skip_versions": ["1.5", NEW],
        "canary_app": canary["id"],
    }
    assert (shown["auto_update"], shown["status"]) == (whole, "running")
    opens_at = datetime.fromisoformat(shown["auto_update_state"]["opens_at"])
    assert opens_at > datetime.now(UTC) - timedelta(hours=1)
    # What is shown can be sent back, and what is left out stays.
    assert (await wish(admin, app_id, **whole))["auto_update"] == whole
    assert (await wish(admin, app_id, skip_versions=None))["auto_update"] == whole | {"skip_versions": []}
    assert (await wish(admin, app_id, window=None))["auto_update"]["window"] is None
    assert (await show(admin, app_id))["auto_update_state"]["opens_at"] is None
    answer = await admin.patch(f"/api/apps/{app_id}", json={"auto_update": None})
    assert answer.json()["auto_update"] == OFF
    records = [after for action, _, after in await audited(app, app_id) if action == "app.patch"]
    assert records[0] is not None
    assert records[0]["auto_update"] == whole


async def test_all_that_is_wrong_is_told_by_field(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made, other = await old_app(admin, engine), await old_app(admin, engine)
    app_id = made["id"]
    window = {"cron": "61 * * * *", "timezone": "Mars/Phobos"}
    problems = await refused(admin, app_id, {"window": window, "hold_version": "9.9", "canary_app": other["id"]})
    assert problems.keys() == {"window.cron", "window.timezone", "hold_version", "canary_app"}
    assert "same template" in problems["canary_app"]
    body = {"config": {"motto": "x" * 41}, "labels": {"A b": "x"}, "auto_update": {"canary_app": app_id}}
    answer = await admin.patch(f"/api/apps/{app_id}", json=body)
    assert answer.json()["details"].keys() == {"config.motto", "labels.A b", "auto_update.canary_app"}
    assert (await refused(admin, app_id, {"canary_app": "app_nope"}))["canary_app"] == "There is no such app"
    for wrong, field in (
        ({"enabled": "yes"}, "enabled"),
        ({"enabled": None}, "enabled"),
        ({"window": {"cron": "* * * * *"}}, "window.timezone"),
        ({"window": EVERY_MINUTE | {"duration_minutes": 0}}, "window.duration_minutes"),
        ({"window": EVERY_MINUTE | {"duration_minutes": 1441}}, "window.duration_minutes"),
        ({"window": EVERY_MINUTE | {"seconds": 1}}, "window.seconds"),
        ({"window": "nightly"}, "window"),
        ({"skip_versions": ["a b"]}, "skip_versions.0"),
        ({"skip_versions": ["sha256:7"]}, "skip_versions.0"),
        ({"skip_versions": ["1"] * 201}, "skip_versions"),
        ({"hold_version": "../x"}, "hold_version"),
        ({"when": "now"}, "when"),
        ("on", ""),
    ):
        assert (await refused(admin, app_id, wrong)).keys() == {field}, wrong
    assert (await show(admin, app_id))["auto_update"] == OFF


async def test_canaries_wait_for_nobody_who_waits_for_them(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine
) -> None:
    first = await old_app(admin, engine)
    second, third = [await old_app(admin, engine, first["template"]) for _ in range(2)]
    await wish(admin, second["id"], canary_app=first["id"])
    await wish(admin, third["id"], canary_app=second["id"])
    assert "itself" in (await refused(admin, first["id"], {"canary_app": third["id"]}))["canary_app"]
    async with key_client(app, admin, ["apps:write"], resources=[third["id"]]) as bound:
        hidden = await refused(bound, third["id"], {"canary_app": first["id"]})
        assert hidden == {"canary_app": "There is no such app"}
        assert (await bound.patch(f"/api/apps/{first['id']}", json={"auto_update": {}})).status_code == 404
    async with key_client(app, admin, ["apps:deploy"]) as deployer:
        answer = await deployer.patch(f"/api/apps/{first['id']}", json={"auto_update": {"enabled": True}})
        assert answer.status_code == 403


async def test_an_imported_app_has_images_but_no_versions(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    body = {"name": unique("im"), "compose": f"services: {{web: {{image: '{image}'}}}}"}
    made = (await admin.post("/api/apps/import", json=body)).json()
    await until(admin, made["id"], "running")
    problems = await refused(admin, made["id"], {"hold_version": "1", "canary_app": made["id"]})
    assert problems.keys() == {"hold_version", "canary_app"}
    assert (await wish(admin, made["id"], enabled=True))["auto_update"]["enabled"]


# When it begins


async def test_an_update_in_its_window(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine, window=EVERY_MINUTE)
    assert await updater.look(datetime.now(UTC)) == made["id"]
    assert (await finished(admin, made["id"]))["status"] == "completed"
    after = await show(admin, made["id"])
    assert (after["version"], after["status"], after["available_update"]) == ("2.0", "running", None)
    news = [data for kind, data in await events_of(app, made["id"]) if kind == "app.updated"]
    assert [one["automatic"] for one in news] == [True]
    assert ("app.update", "system") in [one[:2] for one in await audited(app, made["id"])]


async def test_no_update_outside_of_its_window(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=5)
    window = {"cron": f"0 {start.hour} * * *", "timezone": "UTC", "duration_minutes": 30}
    made = await ready(admin, engine, window=window)
    for minutes in (-1, 31, 60):  # before, and too late: nothing was running in between
        assert await updater.look(start + timedelta(minutes=minutes)) is None
    state = (await show(admin, made["id"]))["auto_update_state"]
    assert datetime.fromisoformat(state["opens_at"]) == start + timedelta(days=1)
    assert await updater.look(start + timedelta(days=1, minutes=-1)) is None
    assert await updater.look(start + timedelta(days=1, minutes=29)) == made["id"]
    await finished(admin, made["id"])


async def test_at_most_one_update_in_a_window(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    # Still open where the hour ends meanwhile.
    window = {"cron": f"0 {start.hour} * * *", "timezone": "UTC", "duration_minutes": 120}
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    made = await old_app(admin, engine, slug)
    await wish(admin, made["id"], enabled=True, window=window)
    for digit in "78":
        engine.moved_tags[image] = "sha256:" + digit * 64
        await now(admin, made["id"])
        began = await updater.look(start + timedelta(minutes=10))
        assert (began is not None) == (digit == "7")
        await finished(admin, made["id"])
    assert await updater.look(start + timedelta(days=1)) == made["id"]
    await finished(admin, made["id"])


async def test_without_a_window_at_any_time_but_not_again_and_again(
    admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine)
    moment = datetime.now(UTC)
    forget_images(engine)
    engine.fail("pull:nginx:1.28", RegistryUnreachable("The registry is not reachable"))
    assert await updater.look(moment) == made["id"]
    assert (await finished(admin, made["id"]))["status"] == "failed"
    after = await show(admin, made["id"])
    assert after["auto_update_state"]["skipped"] == [], "it is not the version's fault"
    assert await updater.look(moment + timedelta(minutes=59)) is None
    assert await updater.look(moment + timedelta(minutes=61)) == made["id"]
    assert (await finished(admin, made["id"]))["status"] == "completed"


async def test_one_at_a_time_and_never_beside_another_operation(
    admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    first, second = await ready(admin, engine), await ready(admin, engine)
    arrived, let_go = engine.hold("create:web")
    moment = datetime.now(UTC)
    assert await updater.look(moment) in {first["id"], second["id"]}
    await asyncio.wait_for(arrived.wait(), 10)
    assert await updater.look(moment) is None
    let_go.set()
    for one in (first, second):
        await until(admin, one["id"], "running")
    assert await updater.look(moment) in {first["id"], second["id"]}
    for one in (first, second):
        assert (await until(admin, one["id"], "running"))["version"] == "2.0"
    third = await ready(admin, engine)
    arrived, let_go = engine.hold("stop:web")
    await admin.post(f"/api/apps/{third['id']}/restart")
    await asyncio.wait_for(arrived.wait(), 10)
    assert await updater.look(moment) is None
    let_go.set()
    await until(admin, third["id"], "running")
    await admin.post(f"/api/apps/{third['id']}/stop")
    await until(admin, third["id"], "stopped")
    assert await updater.look(moment) is None, "what stands still is left alone"


@pytest.mark.parametrize("skip", [{"skip_versions": ["2.0"]}, {"hold_version": "1.0"}])
async def test_held_and_skipped(
    admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater, skip: dict[str, Any]
) -> None:
    made = await ready(admin, engine, **skip)
    assert await updater.look(datetime.now(UTC)) is None
    after = await show(admin, made["id"])
    assert after["version"] == "1.0"
    assert after["update_available"], "it is there all the same"
    assert after["auto_update_state"]["waits_for"]
    await wish(admin, made["id"], skip_versions=[], hold_version=None)
    assert (await show(admin, made["id"]))["auto_update_state"]["waits_for"] is None
    assert await updater.look(datetime.now(UTC)) == made["id"]
    await finished(admin, made["id"])


async def test_up_to_the_version_that_is_held(
    admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine, hold_version="2.0")
    newest = web_file(made["template"], version="3.0", image="nginx:1.28")
    assert (await admin.put(f"/api/templates/{made['template']}", json={"compose": newest})).status_code == 200
    assert (await now(admin, made["id"]))["available_update"]["version"] == "3.0"
    assert await updater.look(datetime.now(UTC)) == made["id"]
    await finished(admin, made["id"])
    assert (await now(admin, made["id"]))["version"] == "2.0"
    assert await updater.look(datetime.now(UTC) + timedelta(hours=2)) is None
    assert "held at version 2.0" in (await show(admin, made["id"]))["auto_update_state"]["waits_for"]


async def test_a_canary_first(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine)
    canary = await old_app(admin, engine, made["template"])
    await wish(admin, made["id"], canary_app=canary["id"])
    moment = datetime.now(UTC)

    async def waits(of: datetime = moment) -> str:
        assert await updater.look(of) is None
        reason = (await show(admin, made["id"]))["auto_update_state"]["waits_for"]
        return str(reason)

    assert "has not been updated" in await waits()
    await changed(admin, canary["id"], "update")
    later = datetime.now(UTC) + timedelta(hours=CANARY_HOURS)
    assert "has to be well" in await waits(later - timedelta(minutes=1))
    await admin.post(f"/api/apps/{canary['id']}/stop")
    await until(admin, canary["id"], "stopped")
    assert "is stopped" in await waits(later + timedelta(days=1))
    await admin.post(f"/api/apps/{canary['id']}/start")
    await until(admin, canary["id"], "running")
    # From its start on it counts anew.
    again = datetime.now(UTC) + timedelta(hours=CANARY_HOURS)
    assert "has to be well" in await waits(again - timedelta(minutes=1))
    assert await updater.look(again) == made["id"]
    assert (await finished(admin, made["id"]))["status"] == "completed"
    other = await ready(admin, engine)
    lost = await old_app(admin, engine, other["template"])
    await wish(admin, other["id"], canary_app=lost["id"])
    await admin.delete(f"/api/apps/{lost['id']}")
    assert await updater.look(again) is None
    assert (await show(admin, other["id"]))["auto_update_state"]["waits_for"] == "Its canary is not there any more"


async def test_a_canary_for_images(admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    made, canary = [await old_app(admin, engine, slug) for _ in range(2)]
    await wish(admin, made["id"], enabled=True, canary_app=canary["id"])
    engine.moved_tags[image] = NEW
    await now(admin, made["id"])
    later = datetime.now(UTC) + timedelta(hours=CANARY_HOURS + 1)
    assert await updater.look(later) is None
    await changed(admin, canary["id"], "update")
    assert await updater.look(later) == made["id"]
    await finished(admin, made["id"])
    assert engine.container(made["id"], "web").image_digest == NEW


# What is not tried twice


async def test_what_went_back_is_not_tried_each_night(
    app: RunningApp,
    admin: httpx.AsyncClient,
    engine: MemoryEngine,
    updater: AutoUpdater,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changing, "STEADY_SECONDS", 1.0)
    before = await ready(admin, engine, window=EVERY_MINUTE)
    engine.behaviours["nginx:1.28"] = Behaviour(exit_code=3)
    assert await updater.look(datetime.now(UTC)) == before["id"]
    job = await finished(admin, before["id"])
    assert job["status"] == "failed"
    after = await show(admin, before["id"])
    assert_old(engine, before, after)
    assert after["auto_update"]["skip_versions"] == ["2.0"]
    [told] = after["auto_update_state"]["skipped"]
    assert (told["version"], told["digests"], told["reason"]) == ("2.0", [], job["error"])
    news = await events_of(app, before["id"])
    assert [kind for kind, _ in news][-2:] == ["app.update_failed", "app.update_skipped"]
    assert news[-2][1]["automatic"]
    assert news[-1][1] == {
        "app_id": before["id"],
        "name": before["name"],
        "version": "2.0",
        "digests": [],
        "reason": job["error"],
    }
    assert await updater.look(datetime.now(UTC) + timedelta(days=1)) is None
    # Sent back as it is shown it stays, taken out it is tried again.
    assert (await wish(admin, before["id"], **after["auto_update"]))["auto_update_state"]["skipped"] == [told]
    engine.behaviours.clear()
    lifted = await wish(admin, before["id"], skip_versions=[])
    assert lifted["auto_update_state"]["skipped"] == []
    assert await updater.look(datetime.now(UTC) + timedelta(days=1)) == before["id"]
    assert (await finished(admin, before["id"]))["status"] == "completed"


async def test_images_that_went_back_are_known_by_their_digests(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    image = f"registry.example.com/team/web:{unique('t')}"
    slug = str((await add_template(admin, web_file(unique("web"), image=image)))["slug"])
    made = await old_app(admin, engine, slug)
    await wish(admin, made["id"], enabled=True)
    engine.moved_tags[image] = NEW
    await now(admin, made["id"])
    engine.fail("start:web", RuntimeFailure("The program of the image can't be run on this machine"))
    await updater.look(datetime.now(UTC))
    assert (await finished(admin, made["id"]))["status"] == "failed"
    later = datetime.now(UTC) + timedelta(days=1)
    assert (await show(admin, made["id"]))["auto_update"]["skip_versions"] == [NEW]
    await now(admin, made["id"])
    assert await updater.look(later) is None
    engine.moved_tags[image] = "sha256:" + "8" * 64
    await now(admin, made["id"])
    assert await updater.look(later) == made["id"]
    assert (await finished(admin, made["id"]))["status"] == "completed"


async def test_a_version_that_somebody_rolled_back_is_not_given_again(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine)
    await updater.look(datetime.now(UTC))
    await finished(admin, made["id"])
    back = await changed(admin, made["id"], "rollback")
    assert back["auto_update"]["skip_versions"] == ["2.0"]
    assert back["auto_update_state"]["skipped"][0]["reason"] == "The app was rolled back from it"
    await now(admin, made["id"])
    assert await updater.look(datetime.now(UTC) + timedelta(days=1)) is None
    assert [kind for kind, _ in await events_of(app, made["id"])][-2:] == ["app.updated", "app.update_skipped"]


async def test_what_asks_for_a_value_needs_its_owner(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    made = await ready(admin, engine)
    asking = web_file(made["template"], version="3.0").replace(
        "  web: {service: web",
        "    - {name: token, label: Token, type: password, required: true}\n  web: {service: web",
    )
    answer = await admin.put(f"/api/templates/{made['template']}", json={"compose": asking})
    assert answer.status_code == 200, answer.text
    await now(admin, made["id"])
    assert await updater.look(datetime.now(UTC)) is None
    after = await show(admin, made["id"])
    assert (after["version"], after["status"]) == ("1.0", "running")
    assert after["auto_update"]["skip_versions"] == ["3.0"]
    assert "Token is required" in after["auto_update_state"]["skipped"][0]["reason"]
    assert "app.update" not in [action for action, _, _ in await audited(app, made["id"])]


async def test_a_change_that_is_not_taken_back_yet_waits(
    admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    """What could not be taken back at once is not tried again either, once it has been."""
    made = await ready(admin, engine)
    engine.fail("start:web", RuntimeFailure("The device is busy"), times=2)
    await updater.look(datetime.now(UTC))
    assert (await finished(admin, made["id"]))["status"] == "failed"
    assert (await show(admin, made["id"]))["status"] == "failed"
    await admin.post(f"/api/apps/{made['id']}/start")
    after = await until(admin, made["id"], "running")
    assert (after["version"], after["auto_update"]["skip_versions"]) == ("1.0", ["2.0"])


async def test_a_clone_is_not_updated_by_itself(admin: httpx.AsyncClient, engine: MemoryEngine) -> None:
    made = await ready(admin, engine, window=EVERY_MINUTE)
    copy = (await admin.post(f"/api/apps/{made['id']}/clone", json={"name": unique("copy")})).json()
    assert (await until(admin, copy["id"], "running"))["auto_update"] == OFF
    fresh = await begin_install(admin, await two_versions(admin), version="1.0", config={"admin_password": SECRET})
    assert (await until(admin, fresh["id"], "running"))["auto_update"] == OFF


async def test_the_loop_outlives_what_it_can_not_read(
    app: RunningApp, admin: httpx.AsyncClient, engine: MemoryEngine, updater: AutoUpdater
) -> None:
    bad, good = await ready(admin, engine), await ready(admin, engine)
    window = '{"cron": "no", "timezone": "UTC", "duration_minutes": 1}'
    statement = 'UPDATE app_auto_updates SET "window" = CAST(:window AS jsonb), opens_at = now() WHERE app_id = :id'
    await sql(app, statement, window=window, id=bad["id"])
    assert await updater.look(datetime.now(UTC)) == good["id"]
    await finished(admin, good["id"])
