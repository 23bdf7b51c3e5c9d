"""What instances tell of the sessions of members, into the audit log of their tenant."""

from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.records import Caller, audit
from quazzar.link.messages import Deed, Deeds, Noted
from quazzar.panel.impersonations import store

MOST_DEEDS: Final = 10_000
"""Of one session: nobody does more in a quarter of an hour, and no instance fills the log."""
_OWN_ACTIONS: Final = frozenset({"impersonation.begin", "impersonation.end"})


async def note(session: AsyncSession, tenant_id: str, instance_id: str, message: Deeds) -> Noted:
    """Record what is new; told again, it is recorded once. Whose deeds they are is what the panel itself has noted when
    it gave the token: of a session that it knows nothing of, an instance tells it nothing.
    """
    last = max((deed.number for deed in message.deeds), default=0)
    answer = Noted(impersonation_id=message.impersonation_id, number=last)
    row = await store.get_impersonation(session, tenant_id, instance_id, message.impersonation_id)
    if row is None:
        return answer
    fresh = sorted((deed for deed in message.deeds if deed.number > row.last_number), key=lambda deed: deed.number)
    taken = fresh[: max(0, MOST_DEEDS - row.deeds)]
    for deed in taken:
        _record(session, tenant_id, instance_id, row, message.impersonation_id, deed)
    if fresh:
        await store.update_impersonation(
            session, tenant_id, message.impersonation_id, last_number=last, deeds=row.deeds + len(taken)
        )
    return answer


def _record(
    session: AsyncSession, tenant_id: str, instance_id: str, row: Any, impersonation_id: str, deed: Deed
) -> None:
    """The panel's user as the actor, but for what others have done to the session, as its end by an admin there."""
    who = Caller(kind="system", realm="panel", tenant_id=tenant_id)
    if deed.by_guest:
        who = Caller(kind="user", id=row.user_id, realm="panel", tenant_id=tenant_id)
    after = {"impersonation_id": impersonation_id, "at": deed.at.isoformat(), "number": deed.number}
    action = deed.action
    if action not in _OWN_ACTIONS:
        action = "impersonation.act"
        after |= {"action": deed.action, "subject": deed.subject}
    audit(session, action, subject=instance_id, after=after, outcome=deed.outcome, caller=who)
