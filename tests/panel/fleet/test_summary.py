"""The fleet in numbers."""

from datetime import UTC, datetime, timedelta

from quazzar.core.db import Database
from tests.panel.fleet.conftest import Tenant
from tests.panel.fleet.lines import make_instance


async def test_revoked_instances_count_by_status_alone(ada: Tenant, eve: Tenant, database: Database) -> None:
    fresh = datetime.now(UTC) - timedelta(hours=1)
    await make_instance(database, ada.id, status="online", version="1.0.0", backup_at=fresh)
    await make_instance(database, ada.id, status="degraded", version="1.0.0")
    await make_instance(database, ada.id, status="offline", version="0.9.0")
    await make_instance(database, ada.id, status="revoked", version="0.8.0")
    await make_instance(database, eve.id, status="online", version="2.0.0")
    answer = (await ada.http.get("/api/fleet/summary")).json()
    assert answer["status"] == {"online": 1, "degraded": 1, "offline": 1, "revoked": 1}
    assert (answer["instances"], answer["versions"]) == (3, {"0.9.0": 1, "1.0.0": 2})
    assert answer["backups"] == {"stale_instances": 2}
