"""Every query on own templates."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Integer, Text, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.db import Database, Query
from quazzar.instance.templates.models import Template, TemplateVersion

_newest = (
    select(func.max(TemplateVersion.number))
    .where(TemplateVersion.template_id == Template.id)
    .correlate(Template)
    .scalar_subquery()
)
_SUMMARY = (Template.id, TemplateVersion.definition, Template.created_at, Template.updated_at, Template.source_id)


class SummaryRow(msgspec.Struct):
    """The newest version of an own template, as lists show it."""

    id: str
    definition: msgspec.Raw
    created_at: datetime
    updated_at: datetime
    source_id: str | None


def _summaries() -> Query[SummaryRow]:
    words = bindparam("q", type_=Text)
    category = bindparam("category", type_=Text)
    definition = TemplateVersion.definition
    statement = (
        select(*_SUMMARY)
        .join(TemplateVersion, TemplateVersion.template_id == Template.id)
        .where(
            TemplateVersion.number == _newest,
            Template.slug > bindparam("after", type_=Text(collation="C")),
            or_(category.is_(None), definition["category"].astext == category),
            or_(
                words.is_(None),
                func.strpos(Template.slug, words) > 0,
                func.strpos(func.lower(func.coalesce(definition["title"].astext, "")), words) > 0,
                func.strpos(func.lower(func.coalesce(definition["description"].astext, "")), words) > 0,
            ),
        )
        .order_by(Template.slug)
        .limit(bindparam("limit", type_=Integer))
    )
    return Query(statement, SummaryRow, after="")


_LIST = _summaries()


async def find_templates(
    database: Database, *, limit: int, after: str = "", q: str | None = None, category: str | None = None
) -> list[SummaryRow]:
    """Own templates by slug, from the one behind `after` on; `q` is in lower case."""
    return await _LIST.all(database, limit=limit, after=after, q=q, category=category)


class StoredTemplate(msgspec.Struct):
    """One version of an own template in full."""

    id: str
    compose: str
    definition: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    source_id: str | None


async def get_template(session: AsyncSession, ref: str, version: str | None = None) -> StoredTemplate | None:
    """By id or slug; without `version` the newest one."""
    statement = (
        select(
            Template.id,
            TemplateVersion.compose,
            TemplateVersion.definition,
            Template.created_at,
            TemplateVersion.updated_at,
            Template.source_id,
        )
        .join(TemplateVersion, TemplateVersion.template_id == Template.id)
        .where(or_(Template.id == ref, Template.slug == ref))
        .order_by(TemplateVersion.number.desc())
        .limit(1)
    )
    if version is not None:
        statement = statement.where(TemplateVersion.version == version)
    row = (await session.execute(statement)).one_or_none()
    return StoredTemplate(*row) if row is not None else None


async def find_newest(session: AsyncSession, slugs: Collection[str]) -> dict[str, tuple[str | None, str]]:
    """Slug → publisher and default version of the own templates among `slugs`."""
    statement = (
        select(Template.slug, TemplateVersion.definition["publisher"].as_string(), TemplateVersion.version)
        .join(TemplateVersion, TemplateVersion.template_id == Template.id)
        .where(TemplateVersion.number == _newest, Template.slug.in_(slugs))
    )
    return {slug: (publisher, version) for slug, publisher, version in await session.execute(statement)}


async def find_versions(session: AsyncSession, template_id: str) -> list[str]:
    """All versions of an own template, the default one first."""
    statement = (
        select(TemplateVersion.version)
        .where(TemplateVersion.template_id == template_id)
        .order_by(TemplateVersion.number.desc())
    )
    return list((await session.execute(statement)).scalars())


async def lock_template(session: AsyncSession, ref: str) -> tuple[str, str] | None:
    """Id and slug of an own template, held against other changes until the transaction ends."""
    statement = select(Template.id, Template.slug).where(or_(Template.id == ref, Template.slug == ref))
    row = (await session.execute(statement.with_for_update())).one_or_none()
    return (row[0], row[1]) if row is not None else None


async def add_template(session: AsyncSession, template_id: str, slug: str, source_id: str | None = None) -> None:
    """The unique index on the slug decides who was first."""
    await session.execute(insert(Template), {"id": template_id, "slug": slug, "source_id": source_id})


async def claim_slugs(session: AsyncSession, source_id: str, wanted: dict[str, str]) -> dict[str, str]:
    """Make templates (slug → new id) for a source where nobody has the slug. Gives slug → id of all it has."""
    if wanted:
        rows = [{"id": one, "slug": slug, "source_id": source_id} for slug, one in wanted.items()]
        await session.execute(upsert(Template).on_conflict_do_nothing(index_elements=[Template.slug]), rows)
    held = select(Template.slug, Template.id).where(Template.source_id == source_id)
    return {row.slug: row.id for row in await session.execute(held)}


async def forget_unlisted(session: AsyncSession, source_id: str, listed: set[str]) -> None:
    """Templates of a source that its index no longer has."""
    await session.execute(delete(Template).where(Template.source_id == source_id, Template.slug.not_in(listed)))


async def get_source_id(session: AsyncSession, template_id: str) -> str | None:
    return (await session.execute(select(Template.source_id).where(Template.id == template_id))).scalar_one_or_none()


async def put_version(
    session: AsyncSession, template_id: str, version: str, *, compose: str, definition: dict[str, Any]
) -> None:
    """Add a version as the newest, or replace the text of one that is there, which keeps its place."""
    following = select(func.coalesce(func.max(TemplateVersion.number), 0) + 1).where(
        TemplateVersion.template_id == template_id
    )
    statement = upsert(TemplateVersion).values(
        template_id=template_id,
        version=version,
        number=following.scalar_subquery(),
        compose=compose,
        definition=definition,
    )
    statement = statement.on_conflict_do_update(
        index_elements=[TemplateVersion.template_id, TemplateVersion.version],
        set_={
            "compose": statement.excluded.compose,
            "definition": statement.excluded.definition,
            "updated_at": func.clock_timestamp(),
        },
    )
    await session.execute(statement)
    await session.execute(update(Template).where(Template.id == template_id).values(updated_at=func.clock_timestamp()))


async def delete_template(session: AsyncSession, ref: str) -> bool:
    """Forget an own template with all its versions; apps that were made from it keep their own copy."""
    statement = delete(Template).where(or_(Template.id == ref, Template.slug == ref)).returning(Template.id)
    return (await session.execute(statement)).first() is not None


_SLUGS = Query(select(Template.slug).where(Template.slug == func.any(bindparam("slugs", type_=ARRAY(Text)))), str)


async def find_slugs(database: Database, slugs: Sequence[str]) -> set[str]:
    """Which of `slugs` own templates have."""
    return set(await _SLUGS.all(database, slugs=slugs)) if slugs else set()


_SLUG = Query(select(Template.slug).where(Template.id == bindparam("id", type_=Text)), str)


async def read_slug(database: Database, template_id: str) -> str | None:
    """The slug of an own template."""
    return await _SLUG.one_or_none(database, id=template_id)
