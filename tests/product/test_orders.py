"""Both halves in one process: the panel's own key signs an order, its own hub sends it, and the server obeys."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.link.orders import OrderActor, OrderBody, sign_order
from tests.factories.apps import unique
from tests.factories.halves import both_halves, until


async def test_an_order_of_the_own_panel(tmp_path: Path, keyring: Keyring, database: Database) -> None:
    async with both_halves(tmp_path, keyring, database) as halves:
        http = halves.http
        halves.begin()
        await halves.set_up()
        instance = await halves.online()
        (socket,) = halves.fleet.hub.sockets.values()
        assert halves.line._socket is not None
        assert halves.line._socket.response is not None
        assert "Date" in halves.line._socket.response.headers, "the panel tells what time it is there"
        authority = await halves.fleet.authority()
        name, now = unique("app"), datetime.now(UTC)
        order = OrderBody(
            order_id=new_id("ord"),
            command_id=new_id("cmd"),
            tenant_id=socket.identity.tenant_id,
            instance_id=instance["id"],
            kind="app.install",
            args={"template": "hello", "name": name},
            actor=OrderActor(user_id="usr_ada", name="Ada"),
            issued_at=now,
            expires_at=now + timedelta(minutes=10),
        )
        await socket.send(sign_order(order, authority._signer))

        async def done() -> bool:
            async with database.begin() as session:
                query = text("SELECT status FROM panel_orders WHERE order_id = :id")
                return (await session.execute(query, {"id": order.order_id})).scalar_one_or_none() == "completed"

        await until(done)
        (made,) = [one for one in (await http.get("/api/apps", headers=halves.admin)).json() if one["name"] == name]
        assert made["status"] == "running"

        async def shown() -> bool:
            answer = await http.get(f"/panel/api/fleet/instances/{instance['id']}", headers=halves.owner)
            return name in [one["name"] for one in answer.json()["apps"]]

        await until(shown)
