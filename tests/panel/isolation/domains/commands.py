"""Commands."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from tests.panel.isolation.matrix import Ref, Side, row, thing


@thing
async def command(side: Side) -> str:
    """One whose moment is far away; nobody looks at it meanwhile."""
    moment = (datetime.now(UTC) + timedelta(days=300)).isoformat()
    command_id = await side.post("/fleet/commands", await _body(side) | {"schedule": moment})
    async with side.database.begin(tenant=side.tenant_id) as session:
        await session.execute(text("UPDATE fleet_commands SET step_at = NULL WHERE id = :id"), {"id": command_id})
    return command_id


@thing
async def paused_command(side: Side) -> str:
    command_id = await command(side)
    return await side.post(f"/fleet/commands/{command_id}/pause", None)


@thing
async def failed_command(side: Side) -> str:
    """Its instance was never heard of, and that counts as a failure."""
    return await side.post("/fleet/commands", await _body(side) | {"offline": "fail"})


async def _body(side: Side) -> dict[str, object]:
    return {"kind": "instance.refresh", "targets": {"instances": [await side.id_of("instance")]}}


# As with paths: what is meant and not there is told of as such.
INSTANCES = [Ref("instance", 404), Ref("reachable", 404)]
TARGETS = {"instances": INSTANCES, "groups": [Ref("group", 404), Ref("other_group", 404)]}

row("GET /api/fleet/commands", shows="command", query={"instance": Ref("instance")})
row("POST /api/fleet/commands", body={"kind": "instance.refresh", "targets": TARGETS})
row("GET /api/fleet/commands/{command_id}", "command", query={"instance": Ref("instance")})
row("POST /api/fleet/commands/{command_id}/cancel", "command")
row("POST /api/fleet/commands/{command_id}/pause", "command")
row("POST /api/fleet/commands/{command_id}/resume", "paused_command")
row("POST /api/fleet/commands/{command_id}/retry", "failed_command")
