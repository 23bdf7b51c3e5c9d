"""The rules of templates: the packaged catalogue, own templates over it, and their versions."""

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, unique_or
from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.paging import Page
from quazzar.core.records import audit
from quazzar.instance.templates import store
from quazzar.instance.templates.catalogue import Packaged, catalogue, find_packaged
from quazzar.instance.templates.compose import parse_template
from quazzar.instance.templates.errors import (
    TemplateExists,
    TemplateNotFound,
    TemplateOfSource,
    TemplatePackaged,
    TemplateVersionNotFound,
)
from quazzar.instance.templates.fields import Field
from quazzar.instance.templates.schemas import FieldOut, NeedsOut, TemplateOut, TemplateSummary, WebOut
from quazzar.instance.templates.template import Template

_REF = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_VERSION = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}\Z")


def _summary_values(template: Template) -> dict[str, Any]:
    return {
        "slug": template.slug,
        "version": template.version,
        "title": template.title,
        "description": template.description,
        "category": template.category,
        "icon": template.icon,
        "website": template.website,
        "fields": [_field(field) for field in template.fields],
        "services": list(template.services),
        "volumes": list(template.volumes),
        "web": WebOut(service=template.web.service, port=template.web.port) if template.web else None,
        "needs": NeedsOut(memory_bytes=template.needs.memory_bytes, disk_bytes=template.needs.disk_bytes),
        "trusted": template.trusted,
    }


def _field(field: Field) -> FieldOut:
    values = {name: getattr(field, name) for name in FieldOut.__struct_fields__}
    return FieldOut(**values | {"options": list(field.options)})


def _of_packaged(packaged: Packaged) -> TemplateSummary:
    return TemplateSummary(
        id=packaged.id, source="packaged", created_at=None, updated_at=None, **_summary_values(packaged.template)
    )


def _version_of(template: Template, compose: str | bytes) -> dict[str, str | bool]:
    """What the audit log keeps of a version: not its text, in which people may have written a password."""
    text = compose.encode() if isinstance(compose, str) else compose
    return {
        "slug": template.slug,
        "version": template.version,
        "compose_sha256": hashlib.sha256(text).hexdigest(),
        "trusted": template.trusted,
    }


_decode_definition = msgspec.json.Decoder(Template).decode


def _of_row(row: store.SummaryRow) -> TemplateSummary:
    values = _summary_values(_decode_definition(bytes(row.definition)))
    return TemplateSummary(
        id=row.id, source=row.source_id or "own", created_at=row.created_at, updated_at=row.updated_at, **values
    )


async def list_templates(
    database: Database, page: Page, *, q: str | None = None, category: str | None = None
) -> list[TemplateSummary]:
    """The packaged and the own templates by slug, as many as `page` is to fetch.

    An own template hides a packaged one that a later release brought under the same slug.
    """
    packaged = await ready_catalogue()
    words = q.lower() if q else None
    after, limit = page.after or "", page.fetch
    own = {
        one.slug: one
        for one in map(
            _of_row, await store.find_templates(database, limit=limit, after=after, q=words, category=category)
        )
    }
    found = dict(own)
    shadowed = await store.find_slugs(database, list(packaged))
    for one in packaged.values():
        if one.template.slug > after and one.template.slug not in shadowed and _fits(one.template, words, category):
            found[one.template.slug] = _of_packaged(one)
    return [found[slug] for slug in sorted(found)][:limit]


def _fits(template: Template, words: str | None, category: str | None) -> bool:
    if category is not None and template.category != category:
        return False
    texts: Iterable[str] = (template.slug, template.title.lower(), template.description.lower())
    return words is None or any(words in text for text in texts)


async def ready_catalogue() -> Mapping[str, Packaged]:
    """The packaged templates, read in a thread when they are first needed."""
    return catalogue() if catalogue.cache_info().currsize else await asyncio.to_thread(catalogue)


class TemplateService:
    """Built per request."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def find(self, ref: str, version: str | None = None) -> Template:
        """A template by slug or id, the default version unless one is named.

        Raises `TemplateNotFound` or `TemplateVersionNotFound`.
        """
        stored = await self._stored(ref, version)
        if stored is not None:
            return msgspec.convert(stored.definition, Template)
        return (await self._packaged(ref, version)).template

    async def find_newer(self, former: Template, version: str | None = None) -> Template:
        """As `find`, for an app that was made from `former`: what another publisher has under the same slug is none of
        its versions. Sources come and go, and no app may become by that what its admin has not chosen.
        """
        found = await self.find(former.slug, version)
        if found.publisher != former.publisher:
            raise TemplateNotFound
        return found

    async def get(self, ref: str, version: str | None = None) -> TemplateOut:
        """As `find`, in the form of an answer."""
        stored = await self._stored(ref, version)
        if stored is not None:
            template = msgspec.convert(stored.definition, Template)
            return TemplateOut(
                id=stored.id,
                source=stored.source_id or "own",
                created_at=stored.created_at,
                updated_at=stored.updated_at,
                versions=await store.find_versions(self.session, stored.id),
                first_steps=template.first_steps,
                notes=list(template.notes),
                compose=stored.compose,
                **_summary_values(template),
            )
        packaged = await self._packaged(ref, version)
        return TemplateOut(
            id=packaged.id,
            source="packaged",
            created_at=None,
            updated_at=None,
            versions=[packaged.template.version],
            first_steps=packaged.template.first_steps,
            notes=list(packaged.template.notes),
            compose=packaged.compose,
            **_summary_values(packaged.template),
        )

    async def _stored(self, ref: str, version: str | None) -> store.StoredTemplate | None:
        if _REF.match(ref) is None:
            raise TemplateNotFound
        if version is not None and _VERSION.match(version) is None:
            raise TemplateVersionNotFound
        stored = await store.get_template(self.session, ref, version)
        if stored is None and version is not None and await store.get_template(self.session, ref) is not None:
            raise TemplateVersionNotFound
        return stored

    async def _packaged(self, ref: str, version: str | None) -> Packaged:
        await ready_catalogue()
        packaged = find_packaged(ref)
        if packaged is None:
            raise TemplateNotFound
        if version is not None and version != packaged.template.version:
            raise TemplateVersionNotFound
        return packaged

    async def create(self, compose: str | bytes, trusted: bool) -> TemplateOut:
        """Raises `TemplateInvalid` with every problem of the file, or `TemplateExists`."""
        template = await asyncio.to_thread(parse_template, compose, trusted=trusted)
        await ready_catalogue()
        if find_packaged(template.slug) is not None:
            raise TemplateExists
        template_id = new_id("tpl")
        async with unique_or(TemplateExists()):
            await store.add_template(self.session, template_id, template.slug)
        audit(self.session, "template.create", subject=template_id, after=_version_of(template, compose))
        await self._put(template_id, template, compose)
        return await self.get(template_id, template.version)

    async def replace(self, ref: str, compose: str | bytes, trusted: bool) -> TemplateOut:
        """Add or replace the version that the file names; it must keep the template's slug."""
        if _REF.match(ref) is None:
            raise TemplateNotFound
        own = await store.lock_template(self.session, ref)
        if own is None:
            await self._packaged(ref, None)
            raise TemplatePackaged
        template_id, slug = own
        await self._refuse_of_source(template_id)
        template = await asyncio.to_thread(parse_template, compose, trusted=trusted)
        if template.slug != slug:
            raise Invalid(details={"x-quazzar.slug": f"Slug must stay {slug}"})
        former = await store.get_template(self.session, template_id, template.version)
        before = None if former is None else _version_of(msgspec.convert(former.definition, Template), former.compose)
        audit(
            self.session, "template.replace", subject=template_id, before=before, after=_version_of(template, compose)
        )
        await self._put(template_id, template, compose)
        return await self.get(template_id, template.version)

    async def _refuse_of_source(self, template_id: str) -> None:
        if await store.get_source_id(self.session, template_id) is not None:
            raise TemplateOfSource

    async def _put(self, template_id: str, template: Template, compose: str | bytes) -> None:
        text = compose if isinstance(compose, str) else compose.decode()
        definition = msgspec.to_builtins(template)
        await store.put_version(self.session, template_id, template.version, compose=text, definition=definition)

    async def delete(self, ref: str) -> None:
        """Forget an own template with all its versions; apps that were made from it live on."""
        if _REF.match(ref) is None:
            raise TemplateNotFound
        own = await store.lock_template(self.session, ref)
        if own is None:
            await self._packaged(ref, None)
            raise TemplatePackaged
        template_id, slug = own
        await self._refuse_of_source(template_id)
        before = {"slug": slug, "versions": await store.find_versions(self.session, template_id)}
        audit(self.session, "template.delete", subject=template_id, before=before)
        await store.delete_template(self.session, template_id)


async def slug_of(database: Database, ref: str) -> str:
    """The slug of the template that `ref` is the slug or id of; `ref` as it is where there is none."""
    if not ref.startswith("tpl_"):  # no slug does
        return ref
    await ready_catalogue()
    packaged = find_packaged(ref)
    return packaged.template.slug if packaged else await store.read_slug(database, ref) or ref


async def newest_versions(session: AsyncSession, slugs: Collection[str]) -> dict[tuple[str, str | None], str]:
    """Slug and publisher → the version that an install takes which names none; without those that are no template any
    more.
    """
    packaged = await ready_catalogue()
    own = await store.find_newest(session, slugs)
    found = {(slug, publisher): version for slug, (publisher, version) in own.items()}
    left = [slug for slug in slugs if slug in packaged and slug not in own]
    return found | {(slug, None): packaged[slug].template.version for slug in left}


async def take_source(
    session: AsyncSession, source_id: str, publisher: str, found: Iterable[tuple[Template, str]], *, listed: set[str]
) -> dict[str, str]:
    """Put the checked templates of a source into the catalogue and forget those that it no longer lists.

    Gives slug → reason for those whose slug is taken: what was there first stays.
    """
    await ready_catalogue()
    templates = list(found)
    wanted = {one.slug: new_id("tpl") for one, _ in templates if find_packaged(one.slug) is None}
    await store.forget_unlisted(session, source_id, listed)
    held = await store.claim_slugs(session, source_id, wanted)
    problems: dict[str, str] = {}
    for template, compose in templates:
        if template.slug not in held:
            problems[template.slug] = "Another template has this slug"
            continue
        definition = msgspec.to_builtins(msgspec.structs.replace(template, publisher=publisher))
        template_id = held[template.slug]
        await store.put_version(session, template_id, template.version, compose=compose, definition=definition)
    return problems
