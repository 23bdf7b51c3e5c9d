"""An instance renews its certificate at two thirds of its life, on a line that lasts too, and for its key alone."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from quazzar.instance.enrolment import line as lines
from quazzar.instance.enrolment.keys import renewal_at, signing_request
from quazzar.link.messages import Certificate
from quazzar.panel.fleet import authority
from quazzar.panel.fleet.authority import Authority, new_authority, read_request
from tests.conftest import RunningApp
from tests.factories.fake_panel import FakePanel, fake_panel
from tests.instance.orders.conftest import join, line_of


@pytest.fixture
async def panel(app: RunningApp, tmp_path: Path) -> AsyncIterator[FakePanel]:
    async with fake_panel(tmp_path) as made:
        made.heartbeat_seconds = 1.0
        yield made
        async with app.database.begin() as session:
            await session.execute(text("DELETE FROM panel_link"))
        await line_of(app).hang_up()


class Ahead:
    """A clock by which two thirds of ninety days are over."""

    @staticmethod
    def now(tz: tzinfo) -> datetime:
        return datetime.now(tz) + timedelta(days=61)


async def kept(app: RunningApp) -> str:
    async with app.database.begin() as session:
        return str((await session.execute(text("SELECT certificate FROM panel_link"))).scalar_one())


def issued(panel: FakePanel, csr: str, *, by: Authority | None = None) -> str:
    ca = by or panel.authority
    return ca.issue_client(read_request(csr), instance_id=panel.instance_id, tenant_id=panel.tenant_id).certificate


def test_two_thirds() -> None:
    ca = new_authority()
    csr = read_request(signing_request(ec.generate_private_key(ec.SECP256R1())))
    made = ca.issue_client(csr, instance_id="inst_a", tenant_id="ten_a")
    left = renewal_at(made.certificate) - datetime.now(UTC)
    # Certificates count from two days before they are made.
    assert timedelta(days=59) < left < timedelta(days=60)


async def test_a_line_opens_late_in_the_life_of_its_certificate(
    app: RunningApp, panel: FakePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(authority, "CLIENT_DAYS", 0.5)
        await join(app, panel)
    await panel.until(lambda: panel.renewals)
    await panel.until(lambda: len(panel.heartbeats) > 2)
    assert len(panel.renewals) == 1, "it is asked for once, and waited for"
    before = await kept(app)
    csr = panel.renewals[0].csr
    # What could not open the next line is not kept, and ends nothing.
    stranger = ec.generate_private_key(ec.SECP256R1())
    for odd in ("", "x", issued(panel, csr, by=new_authority()), issued(panel, signing_request(stranger))):
        await panel.send(Certificate(certificate=odd))
    seen = len(panel.heartbeats)
    await panel.until(lambda: len(panel.heartbeats) > seen + 1)
    assert (await kept(app), panel.lines) == (before, 1)
    fresh = issued(panel, csr)
    await panel.send(Certificate(certificate=fresh))
    async with asyncio.timeout(30):
        while await kept(app) != fresh:
            await asyncio.sleep(0.02)
    await panel.cut()
    await panel.until(lambda: panel.lines == 2)
    assert panel.presented[-1] == ssl.PEM_cert_to_DER_cert(fresh)
    seen = len(panel.heartbeats)
    await panel.until(lambda: len(panel.heartbeats) > seen + 1)
    assert len(panel.renewals) == 1


async def test_a_line_that_lasts_outlives_its_certificate(
    app: RunningApp, panel: FakePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await join(app, panel)
    await panel.until(lambda: len(panel.heartbeats) > 1)
    assert panel.renewals == []
    monkeypatch.setattr(lines, "datetime", Ahead)
    await panel.until(lambda: panel.renewals)
    assert panel.lines == 1
