"""The rules of template sources: pinned by a key or a digest, synced by jobs."""

import base64
import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import unique_or
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.jobs import enqueue
from quazzar.core.outbound import OutboundPolicy, OutboundRefused
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.instance.template_sources import jobs, store
from quazzar.instance.template_sources.errors import TemplateSourceExists, TemplateSourceNotFound
from quazzar.instance.template_sources.schemas import TemplateSourceCreate, TemplateSourceSync
from quazzar.instance.template_sources.store import Found

SOURCE_ID = re.compile(r"tsrc_[2-7a-z]{26}")


class TemplateSourceService:
    """Built per request."""

    def __init__(self, session: AsyncSession, policy: OutboundPolicy) -> None:
        self.session = session
        self._policy = policy

    async def find(self, page: Page) -> Sequence[Found]:
        return await store.find_sources(self.session, page)

    async def get(self, source_id: str, *, lock: bool = False) -> Found:
        known = SOURCE_ID.fullmatch(source_id) is not None
        row = await store.get_source(self.session, source_id, lock=lock) if known else None
        if row is None:
            raise TemplateSourceNotFound
        return row

    async def create(self, data: TemplateSourceCreate) -> Found:
        """Raises `Invalid` with all that is wrong, `TemplateSourceExists`; begins the first sync."""
        problems: dict[str, str] = {}
        try:
            self._policy.read(data.url)
        except OutboundRefused as refused:
            problems["url"] = refused.reason
        if (data.public_key is None) == (data.digest is None):
            problems["public_key"] = "Either public_key or digest is required: it says which index is the right one"
        elif data.public_key is not None and not _is_key(data.public_key):
            problems["public_key"] = "Public key must be the 32 bytes of an Ed25519 key in base64"
        if problems:
            raise Invalid(details=problems)
        source_id = new_id("tsrc")
        values: dict[str, Any] = {"name": data.name, "url": data.url, "public_key": data.public_key}
        values["digest"] = data.digest
        async with unique_or(TemplateSourceExists(details={"name": f"The name {data.name} is taken"})):
            await store.add_source(self.session, id=source_id, **values)
        audit(self.session, "template_source.create", subject=source_id, after=values)
        return await self._enqueue(source_id)

    async def sync(self, source_id: str, data: TemplateSourceSync) -> Found:
        """Begin a sync; `digest` is the new pin of a source that is pinned so."""
        row = await self.get(source_id, lock=True)
        if data.digest is not None and row.public_key is not None:
            raise Invalid(details={"digest": "This source is pinned by its key"})
        if data.digest is not None and data.digest != row.digest:
            await store.update_source(self.session, source_id, digest=data.digest)
            before, after = {"digest": row.digest}, {"digest": data.digest}
            audit(self.session, "template_source.update", subject=source_id, before=before, after=after)
        return await self._enqueue(source_id)

    async def delete(self, source_id: str) -> None:
        """Its templates go with it; apps that were made from them live on."""
        row = await self.get(source_id, lock=True)
        await store.delete_source(self.session, source_id)
        audit(self.session, "template_source.delete", subject=source_id, before={"name": row.name, "url": row.url})

    async def _enqueue(self, source_id: str) -> Found:
        job_id = await enqueue(self.session, jobs.sync, subject=source_id, source_id=source_id)
        await store.update_source(self.session, source_id, job_id=job_id)
        return await self.get(source_id)


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except ValueError:
        return False
