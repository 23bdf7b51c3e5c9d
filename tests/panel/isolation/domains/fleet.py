"""Instances, groups and registration tokens."""

from tests.factories.panel import make_instance
from tests.panel.isolation.matrix import UNIQUE, Ref, Side, row, thing


@thing
async def group(side: Side) -> str:
    return await side.post("/fleet/groups", {"name": UNIQUE})


@thing
async def other_group(side: Side) -> str:
    return await group(side)


@thing
async def instance(side: Side) -> str:
    return await make_instance(side.database, side.tenant_id)


@thing
async def reachable(side: Side) -> str:
    return await make_instance(side.database, side.tenant_id, url="https://os.example.com")


@thing
async def token(side: Side) -> str:
    return await side.post("/fleet/tokens", {"name": UNIQUE})


row("GET /api/fleet/groups", shows="group")
row("POST /api/fleet/groups", body={"name": UNIQUE, "parent_id": Ref("group")})
row("GET /api/fleet/groups/{group_id}", "group")
row("PATCH /api/fleet/groups/{group_id}", "group", body={"name": UNIQUE, "parent_id": Ref("other_group")})
row("DELETE /api/fleet/groups/{group_id}", "group")

row("GET /api/fleet/instances", shows="instance", query={"group": Ref("group")})
row("GET /api/fleet/instances/{instance_id}", "instance")
row("PATCH /api/fleet/instances/{instance_id}", "instance", body={"name": UNIQUE, "group_id": Ref("group")})
row("DELETE /api/fleet/instances/{instance_id}", "instance")
# The side has no second factor: who reaches an own instance is told so, and of another's that there is none.
row("POST /api/fleet/instances/{instance_id}/impersonate", "reachable", body={"reason": UNIQUE}, own=403)
row("GET /api/fleet/summary", no_ids="it is numbers; the tests of the fleet compare them")
row("GET /api/fleet/health", shows="instance")
row("GET /api/fleet/metrics/{instance_id}", "instance")
row("GET /api/fleet/instances/{instance_id}/metrics/history", "instance")

row("GET /api/fleet/tokens", shows="token")
row(
    "POST /api/fleet/tokens",
    body={"name": UNIQUE, "group_id": Ref("group"), "tenant_id": Ref("tenant", 404)},
)
row("GET /api/fleet/tokens/{token_id}", "token")
row("DELETE /api/fleet/tokens/{token_id}", "token")
