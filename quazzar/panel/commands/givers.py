"""Whether who gave a command still may, when the turn of something in it comes: maybe long after it was given."""

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.accounts import store as accounts
from quazzar.accounts.roles import effective
from quazzar.accounts.store import KeyPlace
from quazzar.core.auth import scope_within
from quazzar.core.db import in_scope
from quazzar.panel.commands import store
from quazzar.panel.commands.store import Found
from quazzar.panel.fleet.service import reach_within
from quazzar.panel.tenants.service import TenantService

OPERATE: Final = "fleet:operate"


async def objection_to(session: AsyncSession, tenant_id: str, command: Found) -> str | None:
    """Why nothing more of a command may begin; None while its giver could act on all of it now: the member, and where
    it was given with an API key, that key. The transaction may be anybody's.
    """
    user_id, key = command.created_by, None
    if user_id.startswith("key_"):
        key = await accounts.get_api_key(session, KeyPlace(None, tenant_id), user_id)
        if key is None or key.expires_at <= command.now:
            return "The API key that it was given with is not valid any more"
        user_id = key.user_id
    async with in_scope(session, tenant=tenant_id, user=user_id):
        place = await TenantService(session).place(tenant_id, user_id)
    if place is None:
        return "Who gave it is no member any more"
    permissions = place.permissions if key is None else effective(frozenset(key.scopes), place.permissions)
    if not scope_within(OPERATE, permissions):
        return f"Who gave it does not have {OPERATE} any more"
    for resources in (place.resources, None if key is None else key.resources):
        reach = await reach_within(session, tenant_id, resources)
        if await store.is_beyond(session, tenant_id, reach, command.id):
            return "Who gave it is bound to other instances by now"
    return None
