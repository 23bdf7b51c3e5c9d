"""Mails of the real process: `kill -9` before and in the middle of sending, and none is lost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.mail.server import MailBox, link_in, mail_server
from tests.product.process import PASSWORD, Product, free_port, product

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]


def register(one: Product, email: str) -> None:
    body = {"email": email, "password": PASSWORD, "name": "Ada", "organization": "Engines"}
    answer = one.http.post("/panel/api/auth/register", json=body)
    assert answer.status_code == 201, answer.text


async def test_no_mail_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    box = MailBox()
    port = free_port()
    options: dict[str, Any] = {
        "QUAZZAR_SMTP_HOST": "127.0.0.1",
        "QUAZZAR_SMTP_PORT": str(port),
        "QUAZZAR_SMTP_TLS": "none",
    }
    with product(tmp_path / "data", **options) as one:
        await asyncio.to_thread(one.start)
        # Nobody takes mails yet: what was acknowledged waits in the database.
        await asyncio.to_thread(register, one, "before@example.com")
        one.kill()
        box.silent = True
        async with mail_server(box, port=port):
            await asyncio.to_thread(one.start)
            await box.wait_for("before@example.com", seconds=60)
            # Taken by the server, which has not said so: the process ends before it knows.
            one.kill()
            box.silent = False
            await asyncio.to_thread(one.start)
            first, second = (await box.wait_for("before@example.com", 2, seconds=60))[:2]
            assert first.message["Message-ID"] == second.message["Message-ID"]
            assert link_in(first) == link_in(second)
            await asyncio.to_thread(register, one, "after@example.com")
            (mail,) = await box.wait_for("after@example.com", seconds=60)
            token = link_in(mail).rpartition("=")[2]
            done = await asyncio.to_thread(one.http.post, "/panel/api/auth/verify-email", json={"token": token})
            assert done.status_code == 204, done.text
            assert token not in one.log.read_text()
            assert await asyncio.to_thread(one.stop) == 0
