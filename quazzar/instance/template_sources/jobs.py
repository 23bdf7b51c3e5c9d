"""The sync of a template source: fetched and checked outside of any transaction, taken in one."""

import asyncio
import base64
import hashlib
from urllib.parse import urljoin

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import func

from quazzar.core.jobs import JobFailed, JobRun, Resource, enqueue, job, schedule
from quazzar.core.outbound import OutboundPolicy, OutboundRefused
from quazzar.core.outbound_http import OutboundFailed, OutboundHttp
from quazzar.core.records import audit
from quazzar.instance.template_sources import store
from quazzar.instance.template_sources.schemas import Entry, Index
from quazzar.instance.templates.compose import TemplateInvalid, parse_template
from quazzar.instance.templates.service import take_source
from quazzar.instance.templates.template import Template

OUTBOUND: Resource[OutboundPolicy] = Resource("outbound policy")

INDEX_BYTES = 2 * 1024 * 1024
TEMPLATE_BYTES = 1024 * 1024
FETCH_SECONDS = 30.0
_AT_ONCE = 8


@schedule(every_seconds=86400)
@job("template_sources.sync_all", concurrency=1)
async def sync_all(run: JobRun) -> None:
    """One job for each source, once a day."""
    async with run.begin() as session:
        for source_id in await store.find_ids(session):
            await enqueue(session, sync, subject=source_id, source_id=source_id)


@job("template_sources.sync", concurrency=2, max_attempts=1, timeout_seconds=900)
async def sync(run: JobRun, source_id: str) -> None:
    """A failure leaves what was there; a template that is not right is left out by name."""
    async with run.begin() as session:
        source = await store.get_source(session, source_id)
    if source is None:
        return
    http = OutboundHttp(run.resources[OUTBOUND], total_seconds=FETCH_SECONDS)
    try:
        body, index = await _index(http, source)
        found, problems = await _templates(http, source.url, index)
    except (OutboundRefused, OutboundFailed) as error:
        await _fail(run, source_id, error.reason)
    except _NotTaken as error:
        await _fail(run, source_id, str(error))
    finally:
        await http.close()
    async with run.begin() as session:
        now = await store.get_source(session, source_id, lock=True)
        if now is None:
            return
        if now.digest != source.digest or (now.serial is not None and now.serial > index.serial):
            raise JobFailed("Another sync of this source was faster")
        publisher = source.public_key or source.url
        listed = {one.slug for one in index.templates}
        problems |= await take_source(session, source_id, publisher, found, listed=listed)
        after = {"serial": index.serial, "digest": _sha256(body), "templates": len(found)}
        values = {"serial": index.serial, "error": None, "problems": problems, "synced_at": func.clock_timestamp()}
        await store.update_source(session, source_id, **values)
        audit(session, "template_source.sync", subject=source_id, after=after)
    for slug, reason in problems.items():
        run.log(f"{slug}: {reason}")


class _NotTaken(Exception):
    """Why an index is not taken, for the user."""


async def _fail(run: JobRun, source_id: str, reason: str) -> None:
    async with run.begin() as session:
        await store.update_source(session, source_id, error=reason)
    raise JobFailed(reason)


async def _fetch(http: OutboundHttp, url: str, most: int, what: str) -> bytes:
    answer = await http.get(url, most_bytes=most)
    if answer.status != 200:
        raise _NotTaken(f"{what} is answered with status {answer.status}")
    if answer.truncated:
        raise _NotTaken(f"{what} is larger than {most} bytes")
    return answer.body


async def _index(http: OutboundHttp, source: store.Found) -> tuple[bytes, Index]:
    body = await _fetch(http, source.url, INDEX_BYTES, "The index")
    if source.public_key is not None:
        signature = await _fetch(http, source.url + ".sig", 1024, "The signature")
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(source.public_key))
            key.verify(base64.b64decode(signature.strip(), validate=True), body)
        except (ValueError, InvalidSignature):
            raise _NotTaken("The signature of the index is not that of the source's key") from None
    elif _sha256(body) != source.digest:
        raise _NotTaken(f"The index has changed: its digest is {_sha256(body)}; sync with that digest to take it")
    try:
        index = msgspec.json.decode(body, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _NotTaken("The index can't be read") from None
    if source.serial is not None and index.serial < source.serial:
        raise _NotTaken(f"The index has serial {index.serial}, older than {source.serial}, which was taken before")
    return body, index


async def _templates(http: OutboundHttp, base: str, index: Index) -> tuple[list[tuple[Template, str]], dict[str, str]]:
    gate = asyncio.Semaphore(_AT_ONCE)
    problems: dict[str, str] = {}

    async def one(entry: Entry) -> tuple[Template, str] | None:
        async with gate:
            body = await _fetch(http, urljoin(base, entry.url), TEMPLATE_BYTES, f"The template {entry.slug}")
        if hashlib.sha256(body).hexdigest() != entry.sha256:
            problems[entry.slug] = "Its bytes do not have the digest that the index names"
            return None
        try:
            template = await asyncio.to_thread(parse_template, body)
        except TemplateInvalid as error:
            where, said = next(iter((error.details or {"": error.message}).items()))
            problems[entry.slug] = f"{where}: {said}"[:500]
            return None
        if template.slug != entry.slug:
            problems[entry.slug] = "It has another slug than the index names"
            return None
        return template, body.decode()

    tasks = [asyncio.ensure_future(one(entry)) for entry in index.templates]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [each for each in found if each is not None], problems


def _sha256(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()
