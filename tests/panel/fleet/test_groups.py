"""Groups: trees without rings, each tenant's own."""

import asyncio
import uuid
from typing import Any

from tests.panel.fleet.conftest import Tenant


async def make(tenant: Tenant, parent: str | None = None) -> dict[str, Any]:
    answer = await tenant.http.post("/api/fleet/groups", json={"name": uuid.uuid4().hex, "parent_id": parent})
    assert answer.status_code == 201, answer.text
    group: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/panel/api/fleet/groups/{group['id']}"
    return group


async def test_groups_nest_and_never_in_a_ring(ada: Tenant) -> None:
    top = await make(ada)
    middle = await make(ada, top["id"])
    low = await make(ada, middle["id"])
    for parent in (top["id"], middle["id"], low["id"]):
        answer = await ada.http.patch(f"/api/fleet/groups/{top['id']}", json={"parent_id": parent})
        assert (answer.status_code, answer.json()["code"]) == (409, "group_cycle")
    moved = await ada.http.patch(f"/api/fleet/groups/{low['id']}", json={"parent_id": None})
    assert (moved.status_code, moved.json()["parent_id"]) == (200, None)
    unnamed = await ada.http.patch(f"/api/fleet/groups/{low['id']}", json={"name": "x" * 30})
    assert (unnamed.json()["name"], unnamed.json()["parent_id"]) == ("x" * 30, None)
    assert (await ada.http.delete(f"/api/fleet/groups/{top['id']}")).json()["code"] == "group_not_empty"
    for group in (middle, top, low):
        assert (await ada.http.delete(f"/api/fleet/groups/{group['id']}")).status_code == 204
        assert (await ada.http.get(f"/api/fleet/groups/{group['id']}")).status_code == 404


async def test_two_moves_at_once_make_no_ring(ada: Tenant) -> None:
    for _ in range(5):
        one, other = await make(ada), await make(ada)
        answers = await asyncio.gather(
            ada.http.patch(f"/api/fleet/groups/{one['id']}", json={"parent_id": other["id"]}),
            ada.http.patch(f"/api/fleet/groups/{other['id']}", json={"parent_id": one["id"]}),
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_depth_and_names_are_bounded(ada: Tenant) -> None:
    parent = None
    for _ in range(10):
        parent = (await make(ada, parent))["id"]
    answer = await ada.http.post("/api/fleet/groups", json={"name": "deep", "parent_id": parent})
    assert (answer.status_code, set(answer.json()["details"])) == (422, {"parent_id"})
    group = await make(ada)
    again = await ada.http.post("/api/fleet/groups", json={"name": group["name"]})
    assert (again.status_code, again.json()["code"]) == (409, "group_name_taken")


async def test_foreign_groups_do_not_exist(ada: Tenant, eve: Tenant) -> None:
    mine, foreign = await make(eve), await make(ada)
    path, nowhere = f"/api/fleet/groups/{foreign['id']}", "/api/fleet/groups/grp_" + "a" * 26
    for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
        answer = await eve.http.request(method, path, json=body)
        unknown = await eve.http.request(method, nowhere, json=body)
        assert answer.status_code == unknown.status_code == 404
        assert answer.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    for call in (
        eve.http.post("/api/fleet/groups", json={"name": "x", "parent_id": foreign["id"]}),
        eve.http.patch(f"/api/fleet/groups/{mine['id']}", json={"parent_id": foreign["id"]}),
    ):
        assert (await call).status_code == 422
    assert foreign["id"] not in {one["id"] for one in (await eve.http.get("/api/fleet/groups?limit=200")).json()}
    # A name that another tenant uses is free.
    assert (await eve.http.post("/api/fleet/groups", json={"name": foreign["name"]})).status_code == 201
