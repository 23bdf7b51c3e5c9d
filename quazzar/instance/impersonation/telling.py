"""What the panel is told of the sessions of its users: all that the audit log has of them, until it has it too."""

from datetime import timedelta
from typing import Any, Final

from quazzar.core.db import Database
from quazzar.instance.impersonation import store
from quazzar.link.messages import MOST_DEEDS, Deed, Deeds, Noted

_LAST_DEEDS: Final = timedelta(minutes=10)
"""What goes on when a session ends, as a terminal, is recorded when it stops a little later."""


async def untold(database: Database, instance_id: str) -> list[Deeds]:
    """What is to be sent now, one message for each session; the same again until it was `noted`."""
    messages = []
    async with database.begin() as session:
        for row in await store.find_untold(session, instance_id):
            records = await store.find_deeds(session, row.id, after=row.told_number, limit=MOST_DEEDS)
            if records:
                messages.append(Deeds(impersonation_id=row.token_id, deeds=[_deed(record) for record in records]))
            elif row.ended_at is not None:
                await store.mark_all_told(session, row.id, ended_for=_LAST_DEEDS)
    return messages


async def noted(database: Database, message: Noted) -> None:
    """The panel has written it down."""
    async with database.begin() as session:
        await store.mark_told(session, message.impersonation_id, message.number)


def _deed(record: Any) -> Deed:
    return Deed(
        number=record.number,
        at=record.created_at,
        action=record.action[:100],
        subject=None if record.subject is None else record.subject[:100],
        outcome=record.outcome,
        by_guest=record.actor_kind == "panel",
    )
