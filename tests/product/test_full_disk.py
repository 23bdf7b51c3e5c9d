"""A disk that fills while the process works: what was acknowledged stays and is told, what is refused is refused
cleanly, and once there is space again all goes on without a restart.
"""

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.product.process import Product, product
from tests.webhooks.receiver import receiving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")]


def keys_until_refused(one: Product, headers: dict[str, str], seconds: float) -> tuple[set[str], set[int]]:
    """Make and revoke API keys, each an event and two audit records, until the database takes nothing any more."""
    made: set[str] = set()
    refused: set[int] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(refused) == 0:
        answer = one.http.post("/api/auth/api-keys", json={"name": "k" * 60, "scopes": ["apps:read"]}, headers=headers)
        if answer.status_code == 201:
            made.add(answer.json()["id"])
            answer = one.http.delete(f"/api/auth/api-keys/{answer.json()['id']}", headers=headers)
        if answer.status_code >= 400:
            assert set(answer.json()) <= {"error", "code", "request_id", "details"}
            refused.add(answer.status_code)
    return made, refused


def announced(one: Product, headers: dict[str, str]) -> set[str]:
    """The keys whose making the feed tells."""
    found: set[str] = set()
    link = "/api/events?type=auth.api_key_created&limit=200"
    while link:
        answer = one.http.get(link, headers=headers)
        answer.raise_for_status()
        found |= {event["data"]["key_id"] for event in answer.json()}
        link = answer.links.get("next", {}).get("url", "")
    return found


async def test_a_disk_that_fills_while_it_works(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600m,mode=755", "tmpfs", str(disk)]
    done = await asyncio.to_thread(subprocess.run, mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"can't mount: {done.stderr.strip()}")
    options = {"QUAZZAR_WEBHOOKS_ALLOW_NETWORKS": "127.0.0.0/8", "QUAZZAR_WEBHOOKS_RETRY_SCHEDULE": "0,1,1,1,1,1,1,1"}
    try:
        async with receiving() as receiver:
            with product(disk / "data", mode="instance", **options) as one:
                one.log = tmp_path / "product.log"
                await asyncio.to_thread(one.start)
                await fill_and_free(one, disk, receiver)
                assert await asyncio.to_thread(one.stop) == 0
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(disk)], check=True)


async def fill_and_free(one: Product, disk: Path, receiver: Any) -> None:
    await asyncio.to_thread(one.setup)
    headers = one.authorized((await asyncio.to_thread(one.login))["access_token"])
    body = {"url": receiver.url("/hook"), "events": ["auth.api_key_created"]}
    hook = await asyncio.to_thread(one.http.post, "/api/webhooks", json=body, headers=headers)
    assert hook.status_code == 201, hook.text
    before, refused = await asyncio.to_thread(keys_until_refused, one, headers, 1)
    assert not refused

    ballast = disk / "ballast"
    left = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
    during, refused = await asyncio.to_thread(keys_until_refused, one, headers, 120)
    assert refused <= {500, 503}, refused
    assert refused, "the disk was never full"
    assert one.process is not None
    assert one.process.poll() is None, one.tail()

    ballast.unlink()
    end = time.monotonic() + 120
    while True:
        try:
            ready = await asyncio.to_thread(one.http.get, "/api/auth/me", headers=headers)
            if ready.status_code == 200:
                after, refused = await asyncio.to_thread(keys_until_refused, one, headers, 0.5)
                if after and not refused:
                    break
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, one.tail()
        await asyncio.sleep(0.2)

    acknowledged = before | during | after
    assert acknowledged <= await asyncio.to_thread(announced, one, headers)
    verified = await asyncio.to_thread(one.http.get, "/api/audit/verify", headers=headers)
    assert verified.json()["valid"], verified.text
    delivered: set[str] = set()
    while not acknowledged <= delivered:
        delivered = {msgspec.json.decode(request.body)["data"]["key_id"] for request in receiver.of("/hook")}
        assert time.monotonic() < end + 60, f"{len(acknowledged - delivered)} deliveries are missing"
        await asyncio.sleep(0.2)
    jobs = await asyncio.to_thread(one.http.get, "/api/jobs?status=running", headers=headers)
    assert jobs.status_code == 200
