"""What 1,000 followers of one feed cost in memory: `python -m benchmarks followers`."""

import asyncio
from urllib.parse import urlsplit

from benchmarks.load import rss_mib

FOLLOWERS = 1000


async def _follow(base: str, authorization: str) -> asyncio.StreamWriter:
    """Open one stream and read until it has begun."""
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"GET /api/events?follow=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"A follower was refused: {answer.splitlines()[0].decode()}")
    return writer


async def measure(base: str, authorization: str, pid: int) -> None:
    """Opens the streams one hundred at a time, and prints what the server has grown by."""
    # What the first stream loads is no cost of the others.
    first = await _follow(base, authorization)
    await asyncio.sleep(1)
    before = rss_mib(pid)
    writers = [first]
    for _ in range(0, FOLLOWERS, 100):
        writers += await asyncio.gather(*(_follow(base, authorization) for _ in range(100)))
    await asyncio.sleep(2)
    grown = rss_mib(pid) - before
    for writer in writers:
        writer.close()
    print(f"\n{FOLLOWERS} followers of one feed: +{grown:.1f} MiB (100 MiB at most)", flush=True)
