"""Reports: kept until the panel has them, sent again after a break, and never in the way of heartbeats."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from quazzar.core.errors import AppError, Invalid
from quazzar.core.ids import new_id
from quazzar.instance.orders.reports import output_of, sentence
from quazzar.link.messages import MOST_OUTPUT, Report, Reported
from tests.conftest import RunningApp
from tests.factories.apps import add_one, begin_install, engine_of, install, show, unique, until
from tests.factories.fake_panel import FakePanel
from tests.instance.orders.conftest import named


async def ended_orders(app: RunningApp, count: int) -> list[str]:
    """Orders that ended while nobody was there to be told, oldest first."""
    ids = [new_id("ord") for _ in range(count)]
    query = text(
        "INSERT INTO panel_orders (order_id, status, output, reported_at, finished_at) "
        "SELECT id, 'completed', :output, now() + number * interval '1 ms', now() "
        "FROM UNNEST(CAST(:ids AS text[])) WITH ORDINALITY AS listed (id, number)"
    )
    async with app.database.begin() as session:
        await session.execute(query, {"ids": ids, "output": "x" * MOST_OUTPUT})
    return ids


async def unacknowledged(app: RunningApp) -> int:
    async with app.database.begin() as session:
        query = text("SELECT count(*) FROM panel_orders WHERE acknowledged < sequence")
        return int((await session.execute(query)).scalar_one())


async def test_a_result_comes_after_the_line_was_cut_between_run_and_result(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    arrived, go_on = engine_of(app).hold("create:web")
    name = unique("app")
    order_id = await panel.order("app.install", {"template": await add_one(admin), "name": name})
    await arrived.wait()
    await panel.until(lambda: panel.of(order_id))
    await panel.stop()
    await panel.cut()
    go_on.set()
    made = await named(admin, name)
    await until(admin, made["id"], "running")
    await panel.start()
    assert (await panel.end_of(order_id, seconds=40)).status == "completed"
    await asyncio.sleep(0.7)
    sequences = [report.sequence for report in panel.of(order_id)]
    assert sequences == sorted(set(sequences)), "exactly once each"
    assert await unacknowledged(app) == 0


async def test_what_is_not_acknowledged_is_sent_once_a_line_in_order(app: RunningApp, panel: FakePanel) -> None:
    panel.acknowledges = False
    ids = [await panel.order("instance.refresh", {}) for _ in range(5)]
    for order_id in ids:
        await panel.end_of(order_id)
    for line in (2, 3):
        await panel.cut()
        panel.reports.clear()
        await panel.until(lambda: panel.lines == line)  # noqa: B023 - waited for at once
        await panel.until(lambda: len(panel.reports) == 5)
        await asyncio.sleep(0.7)
        assert [report.order_id for report in panel.reports] == ids
    for report in panel.reports:
        await panel.send(Reported(order_id=report.order_id, sequence=report.sequence))
    await panel.until(lambda: panel.reports)
    for _ in range(400):
        if await unacknowledged(app) == 0:
            break
        await asyncio.sleep(0.05)
    panel.reports.clear()
    await panel.cut()
    await panel.until(lambda: panel.lines == 4)
    await asyncio.sleep(0.7)
    assert panel.reports == []


async def test_an_acknowledgement_of_what_was_never_said_counts_for_nothing(app: RunningApp, panel: FakePanel) -> None:
    panel.acknowledges = False
    order_id = await panel.order("instance.refresh", {})
    end = await panel.end_of(order_id)
    await panel.send(Reported(order_id=order_id, sequence=end.sequence + 1))
    await panel.send(Reported(order_id=order_id, sequence=end.sequence - 1))
    await asyncio.sleep(0.3)
    assert await unacknowledged(app) == 1


async def test_all_results_of_a_long_absence_come_without_starving_heartbeats(
    app: RunningApp, panel: FakePanel
) -> None:
    await panel.stop()
    await panel.cut()
    ids = await ended_orders(app, 100)
    panel.heartbeat_seconds = 1
    panel.acknowledges = False
    panel.heartbeats.clear()
    await panel.start()
    await panel.until(lambda: len(panel.reports) == 16, seconds=40)
    # Nothing more until the panel has taken what it was sent; meanwhile the heart beats.
    beats = len(panel.heartbeats)
    await panel.until(lambda: len(panel.heartbeats) >= beats + 2)
    assert len(panel.reports) == 16
    panel.acknowledges = True
    for report in list(panel.reports):
        await panel.send(Reported(order_id=report.order_id, sequence=report.sequence))
    await panel.until(lambda: len(panel.reports) == 100)
    assert [report.order_id for report in panel.reports] == ids


async def test_an_order_whose_end_can_not_be_known_is_interrupted(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    arrived, go_on = engine_of(app).hold("create:web")
    order_id = await panel.order("app.install", {"template": await add_one(admin), "name": unique("app")})
    await arrived.wait()
    async with app.database.begin() as session:
        await session.execute(
            text("DELETE FROM jobs WHERE id = (SELECT job_id FROM panel_orders WHERE order_id = :id)"), {"id": order_id}
        )
    end = await panel.end_of(order_id)
    assert (end.status, end.error_code) == ("failed", "interrupted")
    go_on.set()


@pytest.mark.parametrize(
    ("order", "job", "status", "code"),
    [
        ("running", "completed", "completed", None),
        ("running", "failed", "failed", "operation_failed"),
        ("running", "cancelled", "cancelled", None),
        ("running", None, "failed", "interrupted"),
        ("taken", "failed", "failed", "internal_error"),
        ("taken", "cancelled", "cancelled", None),
        ("taken", "completed", "failed", "interrupted"),
        ("taken", None, "failed", "interrupted"),
    ],
)
async def test_how_a_job_s_end_is_told(
    order: str, job: str | None, status: str, code: str | None, app: RunningApp, panel: FakePanel
) -> None:
    await panel.stop()
    await panel.cut()
    order_id, job_id = new_id("ord"), new_id("job")
    finished = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    values: dict[str, Any] = {"order": order_id, "job": job_id, "status": order, "at": finished, "ended": job}
    async with app.database.begin() as session:
        if job is not None:
            added = "INSERT INTO jobs (id, realm, kind, status, max_attempts, error, finished_at) VALUES "
            await session.execute(
                text(added + "(:job, 'instance', 'x.y', :ended, 1, 'It\x1b[31m went so', :at)"), values
            )
            for number in range(3):
                line = "INSERT INTO job_logs (job_id, number, attempt, line) VALUES (:job, :number, 1, :line)"
                await session.execute(text(line), values | {"number": number, "line": f"line {number}"})
        await session.execute(
            text("INSERT INTO panel_orders (order_id, status, job_id) VALUES (:order, :status, :job)"), values
        )
    await panel.start()
    end = await panel.end_of(order_id, seconds=40)
    assert (end.status, end.error_code) == (status, code)
    if job is not None:
        assert end.at == finished
        assert end.output == ("line 0\nline 1\nline 2" if order == "running" else None)


async def test_progress_waits_for_the_panel_and_the_latest_wins(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await begin_install(admin, await add_one(admin))
    await until(admin, made["id"], "running")
    panel.acknowledges = False
    arrived, go_on = engine_of(app).hold("stop:web")
    order_id = await panel.order("app.restart", {"app": made["id"]})
    await arrived.wait()
    await panel.until(lambda: "running" in [one.status for one in panel.of(order_id)])
    said = len(panel.of(order_id))
    async with app.database.begin() as session:
        for progress in (0.2, 0.3, 0.4):
            query = "UPDATE jobs SET progress = :progress WHERE subject = :app AND status = 'running'"
            await session.execute(text(query), {"progress": progress, "app": made["id"]})
    await asyncio.sleep(1.2)
    assert len(panel.of(order_id)) == said, "the one before is still on its way"
    panel.acknowledges = True
    last = panel.of(order_id)[-1]
    await panel.send(Reported(order_id=order_id, sequence=last.sequence))
    moved = await panel.until(lambda: next((one for one in panel.of(order_id) if one.progress == 40), None))
    assert moved.sequence == last.sequence + 1
    go_on.set()
    assert (await panel.end_of(order_id)).status == "completed"
    assert (await show(admin, made["id"]))["status"] == "running"


def test_output_is_the_end_of_the_log_in_64_kib() -> None:
    assert output_of([]) is None
    assert output_of(["one", "two"]) == "one\ntwo"
    lines = [f"{number} " + "ä€😀" * 40 for number in range(2_000)]
    cut = output_of(lines)
    assert cut is not None
    assert len(cut.encode()) <= MOST_OUTPUT
    assert len(cut.encode()) > MOST_OUTPUT - 500
    assert cut.split("\n") == lines[-len(cut.split("\n")) :], "whole lines only"
    report = Report(order_id="x", sequence=1, status="completed", at=datetime.now(UTC), output=cut)
    assert report.output == cut


async def test_what_an_app_prints_can_not_play_tricks(
    app: RunningApp, admin: httpx.AsyncClient, panel: FakePanel
) -> None:
    made = await install(admin, await add_one(admin))
    arrived, go_on = engine_of(app).hold("stop:web")
    order_id = await panel.order("app.stop", {"app": made["id"]})
    await arrived.wait()
    worker = app.asgi.app.state.worker
    (active,) = [one for one in worker._active.values() if one.run.subject == made["id"]]
    active.run.log("red \x1b[31mtext\r\n\x00 \u202egnp.exe\ttab")
    go_on.set()
    end = await panel.end_of(order_id)
    assert end.output is not None
    assert not set("\x1b\r\x00\u202e") & set(end.output)
    assert "\ttab" in end.output


def test_a_refusal_names_its_fields_and_is_not_taken_for_a_secret() -> None:
    details = {"config.admin_password": "Admin password is required", "config.no": "Unknown field"}
    assert sentence(Invalid(details=details)) == (
        "Validation failed: Admin password is required (config.admin_password); Unknown field (config.no)"
    )
    assert sentence(AppError("It is gone")) == "It is gone"
