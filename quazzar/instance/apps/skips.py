"""Updates that an app is not given a second time by itself."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.records import publish
from quazzar.instance.apps import updates_store
from quazzar.instance.apps.events import AppUpdateSkipped
from quazzar.instance.apps.schemas import SkippedOut


async def skip(
    session: AsyncSession, app_id: str, name: str, *, version: str | None, digests: list[str], reason: str
) -> None:
    """Update the app no more by itself to `version`, or to images with the `digests`, and say so.

    Nothing for an app that is not to be updated by itself anyway.
    """
    skipped = SkippedOut(version=version, digests=digests, reason=reason, skipped_at=datetime.now(UTC))
    if await updates_store.add_skip(session, app_id, skipped):
        news = AppUpdateSkipped(app_id=app_id, name=name, version=version, digests=digests, reason=reason)
        publish(session, news, subject=app_id)


def new_digests(former: Mapping[str, str], images: Mapping[str, str]) -> list[str]:
    """The digests of `images` that `former` has not under the same name."""
    return [digest for name, digest in images.items() if former.get(name) != digest]
