"""Mail to a real server: sent once it is committed, sealed until then, and tried again for a day."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from quazzar.cli import doctor
from quazzar.core.crypto import Keyring
from quazzar.core.db import Database, see_all_tenants
from quazzar.core.jobs import KEYRING, Resources, Worker, enqueued, wait_for
from quazzar.core.records import Caller
from quazzar.core.secret import Secret
from quazzar.mail.jobs import MAIL_PAUSES, MAIL_SERVER, deliver
from quazzar.mail.message import Mail, compose
from quazzar.mail.service import mail_configured, reseal, send_mail
from quazzar.mail.smtp import MailServer, MailUnsent
from quazzar.settings import Server, Settings, Smtp, load_settings
from tests.mail.server import PASSWORD, USERNAME, Certificates, MailBox, certificates, mail_server, trusting

TO = "ada@example.com"


@pytest.fixture
def box() -> MailBox:
    return MailBox()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
async def _fresh(database: Database, keyring: Keyring) -> AsyncIterator[None]:
    database.session_info["keyring"] = keyring
    async with database.begin() as session:
        await see_all_tenants(session)
        await session.execute(text("DELETE FROM pgqueuer"))
        await session.execute(text("DELETE FROM jobs"))
    yield
    database.session_info.clear()


def settings_of(port: int, **given: Any) -> Settings:
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "sender": "Quazzar <q@panel.example.com>",
    }
    return Settings(smtp=Smtp(**values | given))


def with_login(port: int, tls: str = "starttls", password: str = PASSWORD) -> Settings:
    return settings_of(port, tls=tls, username=USERNAME, password=Secret(password))


@contextlib.asynccontextmanager
async def working(
    database: Database, keyring: Keyring, settings: Settings, pauses: tuple[float, ...] = (0.05, 0.05, 0.2, 0.5, 1, 2)
) -> AsyncIterator[Worker]:
    resources = Resources()
    resources[KEYRING] = keyring
    resources[MAIL_PAUSES] = pauses
    if mail_configured(settings):
        resources[MAIL_SERVER] = MailServer(settings)
    worker = Worker(database, resources, kinds={deliver.kind: deliver}, schedules={})
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(0.2)


async def send(database: Database, **values: Any) -> str:
    """Gives the id of the job."""
    async with database.begin() as session:
        await send_mail(
            session, **{"to": TO, "subject": "Hello", "text": "A link:\n\nhttps://x/#token=canary\n"} | values
        )
        (job_id,) = enqueued(session)
    return job_id


async def rows(database: Database) -> Any:
    async with database.begin() as session:
        await see_all_tenants(session)
        return (await session.execute(text("SELECT * FROM jobs ORDER BY id"))).all()


async def ended(database: Database, job_id: str) -> Any:
    await wait_for(database, job_id, 20)
    (row,) = [row for row in await rows(database) if row.id == job_id]
    return row


async def test_a_mail_arrives_as_it_was_written(database: Database, keyring: Keyring, box: MailBox) -> None:
    async with mail_server(box), working(database, keyring, settings_of(box.port)):
        body = "Grüße aus Köln 🐘\n.\n..dots\n" + "long " * 500 + "\n"
        row = await ended(database, await send(database, subject="Grüße, Ada 🐘", text=body))
    assert (row.status, row.error, row.attempts) == ("completed", None, 1)
    (mail,) = box.mails
    assert (mail.sender, mail.to) == ("q@panel.example.com", [TO])
    assert mail.text.replace("\r\n", "\n") == body
    headers = dict(mail.message.items())
    assert headers["Subject"] == "Grüße, Ada 🐘"
    assert headers["From"] == "Quazzar <q@panel.example.com>"
    assert headers["To"] == TO
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["Message-ID"] == f"<{row.args['mail_id']}@panel.example.com>"
    assert headers["Date"].datetime.tzinfo is not None


async def test_it_is_sent_with_its_transaction_or_not_at_all(database: Database) -> None:
    async def fail() -> None:
        async with database.begin() as session:
            await send_mail(session, to=TO, subject="x", text="x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await rows(database) == []


async def test_nobody_reads_it_while_it_waits(database: Database) -> None:
    async with database.begin(tenant="ten_a", user="usr_a") as session:
        session.info["caller"] = Caller(kind="user", id="usr_a", realm="panel", tenant_id="ten_a")
        await send_mail(session, to=TO, subject="The canary subject", text="https://x/#token=canary")
    (row,) = await rows(database)
    told = json.dumps({name: str(value) for name, value in row._mapping.items()})
    assert "canary" not in told
    assert "ada" not in told
    # It belongs to the process: no tenant sees in its list of jobs whom the panel has written to.
    assert (row.realm, row.tenant_id, row.actor, row.subject) == ("instance", None, None, None)
    async with database.begin() as session:
        queued = (await session.execute(text("SELECT * FROM pgqueuer"))).one()
    assert "canary" not in str(queued)


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_over_tls_with_a_login(
    database: Database, keyring: Keyring, box: MailBox, given: Certificates, tls: Any
) -> None:
    with trusting(given.authority):
        async with (
            mail_server(box, tls=tls, given=given),
            working(database, keyring, with_login(box.port, tls)),
        ):
            row = await ended(database, await send(database))
    assert (row.status, row.error) == ("completed", None)
    assert box.logins == [USERNAME]
    assert len(box.mails) == 1


async def test_a_certificate_that_is_not_trusted_gets_no_password(
    database: Database, keyring: Keyring, box: MailBox, given: Certificates
) -> None:
    for tls in ("starttls", "tls"):
        async with mail_server(box, tls=tls, given=given):
            with pytest.raises(MailUnsent, match="certificate is not trusted"):
                await MailServer(with_login(box.port, tls)).probe()
    with trusting(given.authority):
        async with mail_server(box, tls="starttls", given=given):
            # The right authority, but for another name than the one that was dialled.
            settings = settings_of(box.port, host="localhost", tls="starttls")
            with pytest.raises(MailUnsent, match="certificate is not trusted"):
                await MailServer(settings).probe()
    assert box.logins == []


async def test_a_server_without_starttls_gets_nothing(database: Database, keyring: Keyring, box: MailBox) -> None:
    async with mail_server(box):
        with pytest.raises(MailUnsent, match="no STARTTLS"):
            await MailServer(with_login(box.port)).send(Mail("mail_x", TO, "x", "x"))
    assert (box.mails, box.logins) == ([], [])


async def test_a_refused_address_is_told_at_once_and_without_it(
    database: Database, keyring: Keyring, box: MailBox
) -> None:
    box.refuse = f"550 No such user {TO}"
    async with mail_server(box), working(database, keyring, settings_of(box.port)):
        row = await ended(database, await send(database))
    assert (row.status, row.attempts) == ("failed", 1)
    assert row.error == "The mail server refuses the address (550)"


async def test_what_is_refused_for_now_is_sent_later(database: Database, keyring: Keyring, box: MailBox) -> None:
    box.refuse = "451 Greylisted, come again"
    async with mail_server(box), working(database, keyring, settings_of(box.port)):
        job_id = await send(database)
        async with asyncio.timeout(20):
            while (found := (await rows(database))[0]).error is None:
                await asyncio.sleep(0.02)
        assert found.error == "The mail server refuses the address (451)"
        box.refuse = None
        row = await ended(database, job_id)
    assert row.status == "completed"
    assert row.attempts > 1
    assert len(box.mails) == 1


async def test_a_server_that_is_down_and_comes_up(database: Database, keyring: Keyring, box: MailBox) -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))  # ours, though nobody listens there yet
    async with working(database, keyring, settings_of(bound.getsockname()[1])):
        job_id = await send(database)
        async with asyncio.timeout(20):
            while (found := (await rows(database))[0]).error is None:
                await asyncio.sleep(0.02)
        assert found.error == "The mail server can't be reached, or the connection broke"
        async with mail_server(box, bound=bound):
            row = await ended(database, job_id)
    assert row.status == "completed"
    assert len(box.mails) == 1


async def test_a_wrong_login_is_tried_again_and_told(
    database: Database, keyring: Keyring, box: MailBox, given: Certificates
) -> None:
    with trusting(given.authority):
        async with mail_server(box, tls="starttls", given=given):
            settings = with_login(box.port, password="canary-wrong")
            async with working(database, keyring, settings, pauses=(0.01,)):
                row = await ended(database, await send(database))
    assert (row.status, row.attempts) == ("failed", deliver.max_attempts)
    assert row.error == "The mail server refuses the login (535); see smtp.username and smtp.password"


async def test_a_server_that_falls_silent(
    database: Database, keyring: Keyring, box: MailBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quazzar.mail.smtp.STEP_SECONDS", 0.2)
    box.silent = True
    async with mail_server(box), working(database, keyring, settings_of(box.port)):
        job_id = await send(database)
        await box.wait_for(TO)
        async with asyncio.timeout(20):
            while (await rows(database))[0].error != "The mail server does not answer in time":
                await asyncio.sleep(0.02)
        box.silent = False
        row = await ended(database, job_id)
    assert row.status == "completed"
    # It may have been taken each time: its receiver knows the copies by their one name.
    assert len(box.mails) >= 2
    assert len({mail.message["Message-ID"] for mail in box.mails}) == 1


async def test_a_process_that_ends_in_the_middle(database: Database, keyring: Keyring, box: MailBox) -> None:
    """The worker dies between the server's taking the mail and its own note of it: the next one sends it again."""
    box.silent = True
    async with mail_server(box):
        async with working(database, keyring, settings_of(box.port)) as first:
            job_id = await send(database)
            await box.wait_for(TO)
            for active in list(first._active.values()):
                active.stop("shutdown")
        box.silent = False
        async with working(database, keyring, settings_of(box.port)):
            row = await ended(database, job_id)
    assert row.status == "completed"
    assert len(box.mails) == 2
    assert len({mail.message["Message-ID"] for mail in box.mails}) == 1


async def test_without_a_mail_server_the_job_says_so(database: Database, keyring: Keyring) -> None:
    async with working(database, keyring, Settings()):
        row = await ended(database, await send(database))
    assert (row.status, row.error) == ("failed", "No mail server is configured (smtp.host)")


@pytest.mark.parametrize(
    "values",
    [
        {"to": "ada@example.com\r\nBcc: eve@example.com"},
        {"to": "ada@example.com, eve@example.com"},
        {"to": "Ada <ada@example.com>"},
        {"to": "ada"},
        {"to": "ada@exa mple.com"},
        {"to": "ada@example.com\x00"},
        {"to": '"ada eve"@example.com'},
        {"subject": "x\r\nBcc: eve@example.com"},
        {"subject": "x\nBcc: eve@example.com"},
        {"subject": "x\x00"},
        {"subject": "x\u2028y"},
        {"subject": "\u202egnp"},
        {"subject": "x" * 401},
        {"text": "x\x00"},
        {"text": "x\r\ny"},
        {"text": "x\x1b[2J"},
        {"text": "\ud800"},
        {"text": "x" * 100_001},
    ],
)
async def test_nothing_breaks_out_of_its_place(database: Database, values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="A mail"):
        await send(database, **values)
    assert await rows(database) == []


@pytest.mark.parametrize("to", ["a..b@example.com", ".a@example.com", "a+b@example.com", "a=b%c@x-y.example"])
async def test_addresses_that_the_panel_takes_are_sent_to(
    database: Database, keyring: Keyring, box: MailBox, to: str
) -> None:
    async with mail_server(box):
        await MailServer(settings_of(box.port)).send(Mail("mail_x", to, "x", "x"))
    assert [mail.to for mail in box.mails] == [[to]]


def test_the_sender() -> None:
    def sender(public_url: str | None = None, **values: Any) -> str:
        return MailServer(Settings(server=Server(public_url=public_url), smtp=Smtp(host="x", **values))).sender

    assert sender(sender="a@b.example", username="c@d.example") == "a@b.example"
    assert sender(username="c@d.example") == "c@d.example"
    assert sender("https://panel.example.com", username="c") == "quazzar@panel.example.com"
    assert sender("https://192.0.2.1").startswith("quazzar@")
    assert "192" not in sender("https://192.0.2.1")
    assert compose(Mail("mail_x", TO, "x", "x"), sender())["Message-ID"].startswith("<mail_x@")


async def test_mails_are_sealed_anew_with_the_other_secrets(database: Database, keyring: Keyring, box: MailBox) -> None:
    job_id = await send(database)
    async with database.begin() as session:
        await session.execute(
            text("INSERT INTO jobs (id, realm, kind, max_attempts) VALUES ('job_x', 'instance', 'mail.send', 1)")
        )
    rotated = keyring.rotated()
    async with database.begin() as session:
        assert await reseal(session, rotated) == 1
    only_new = Keyring({rotated.current: rotated._keys[rotated.current]})
    async with mail_server(box), working(database, only_new, settings_of(box.port)):
        assert (await ended(database, job_id)).status == "completed"
        database.session_info["keyring"] = keyring
        row = await ended(database, await send(database))
    assert row.error == "The mail can't be opened: the key that it was sealed with is gone"
    assert row.status == "failed"


async def test_doctor_tries_the_mail_server(box: MailBox, given: Certificates) -> None:
    async with mail_server(box):
        found = await doctor.check_mail(settings_of(box.port))
        assert (found.level, found.sentence) == ("ok", f"127.0.0.1:{box.port} answers and lets us in")
    found = await doctor.check_mail(settings_of(box.port))
    assert (found.level, found.name) == ("fail", "mail")
    assert "can't be reached" in found.sentence
    with trusting(given.authority):
        async with mail_server(box, tls="starttls", given=given):
            assert (await doctor.check_mail(with_login(box.port))).level == "ok"
            found = await doctor.check_mail(with_login(box.port, password="canary-wrong"))
            assert "refuses the login (535)" in found.sentence
            assert "canary" not in found.sentence
    assert box.mails == []


def test_without_mail_its_library_is_not_loaded(tmp_path: Path) -> None:
    code = "import sys, quazzar.app, quazzar.mail.jobs; print('aiosmtplib' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_settings_say_whether_there_is_mail() -> None:
    assert not mail_configured(Settings())
    assert mail_configured(msgspec.structs.replace(Settings(), smtp=Smtp(host="mail.example.com")))


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        ("q@panel.example.com", "q@panel.example.com"),
        ("Quazzar <q@panel.example.com>", "q@panel.example.com"),
        ('"Engines, Inc." <q@panel.example.com>', "q@panel.example.com"),
        ("Grüße <q@panel.example.com>", "q@panel.example.com"),
    ],
)
async def test_a_sender_with_a_name(box: MailBox, sender: str, address: str) -> None:
    settings = load_settings({}, {"QUAZZAR_SMTP_HOST": "127.0.0.1", "QUAZZAR_SMTP_FROM": sender})
    async with mail_server(box):
        smtp = msgspec.structs.replace(settings.smtp, port=box.port, tls="none")
        await MailServer(msgspec.structs.replace(settings, smtp=smtp)).send(Mail("mail_x", TO, "x", "x"))
    (mail,) = box.mails
    assert mail.sender == address
    assert mail.message["From"].addresses[0].addr_spec == address
