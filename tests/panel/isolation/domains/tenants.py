"""Tenants, members, roles and keys."""

from sqlalchemy import text

from tests.factories.accounts import make_colleague
from tests.panel.isolation.matrix import UNIQUE, Ref, Side, row, thing

EMAIL = f"{UNIQUE}@example.com"


@thing
async def tenant(side: Side) -> str:
    return side.tenant_id


@thing
async def client(side: Side) -> str:
    """One whose members are others."""
    client_id = await side.post("/tenants", {"name": "Client", "kind": "client"})
    async with side.database.begin(tenant=client_id) as session:
        await session.execute(text("DELETE FROM memberships WHERE tenant_id = :id"), {"id": client_id})
    return client_id


row("GET /api/tenants", shows="tenant", of_user=True)
row("POST /api/tenants", body={"name": UNIQUE}, no_ids="a tenant is made of words, for the caller")
row("GET /api/tenants/{tenant_id}", "tenant", of_user=True)
row("PATCH /api/tenants/{tenant_id}", "client|tenant", body={"name": UNIQUE})
row("DELETE /api/tenants/{tenant_id}", "client|tenant")


@thing
async def member(side: Side) -> str:
    colleague = await make_colleague(side.database, side.tenant_id, "viewer")
    listed = await side.client.get("/panel/api/members?limit=200", headers=side.session)
    return next(str(one["id"]) for one in listed.json() if one["user_id"] == colleague.id)


@thing
async def invitation(side: Side) -> str:
    return await side.post("/members", {"email": EMAIL, "role": "viewer"})


@thing
async def role(side: Side) -> str:
    return await side.post("/roles", {"name": UNIQUE, "permissions": ["fleet:read"]})


SCOPE = {"groups": [Ref("group"), Ref("other_group")], "instances": [Ref("instance")]}

row("GET /api/members", shows=("member", "invitation"))
row("POST /api/members", body={"email": EMAIL, "role": Ref("role"), "scope": SCOPE})
row("GET /api/members/{member_id}", "member|invitation")
row("PATCH /api/members/{member_id}", "member|invitation", body={"role": Ref("role"), "scope": SCOPE})
row("DELETE /api/members/{member_id}", "member|invitation")

row("GET /api/roles", shows="role")
row("POST /api/roles", body={"name": UNIQUE, "permissions": ["fleet:read"]}, no_ids="a role is made of words")
row("GET /api/roles/{role_id}", "role")
row("PATCH /api/roles/{role_id}", "role", body={"name": UNIQUE})
row("DELETE /api/roles/{role_id}", "role")


@thing
async def key(side: Side) -> str:
    return await side.post("/api-keys", {"name": UNIQUE, "permissions": ["fleet:read"]})


row("GET /api/api-keys", shows="key")
row(
    "POST /api/api-keys",
    body={"name": UNIQUE, "permissions": ["fleet:read"], "resources": [Ref("group"), Ref("instance")]},
)
row("GET /api/api-keys/{key_id}", "key")
row("DELETE /api/api-keys/{key_id}", "key")
