"""The own account: what lies outside of tenants is the caller's alone."""

from tests.panel.isolation.matrix import UNIQUE, Ref, Side, row, thing

PUBLIC = "it is for everybody, and says nothing of any tenant"
OWN = "it is about the caller's own account alone"


@thing
async def session(side: Side) -> str:
    body = {"email": side.user.name, "password": "correct horse battery staple"}
    answer = await side.client.post("/panel/api/auth/login", json=body)
    listed = await side.client.get(
        "/panel/api/auth/sessions", headers={"Authorization": f"Bearer {answer.json()['access_token']}"}
    )
    return next(str(one["id"]) for one in listed.json() if one["current"])


for name in ("health", "ready", "openapi.json", "docs"):
    row(f"GET /api/{name}", no_ids=PUBLIC)
row("GET /api/docs/assets/{name}", "asset", own=None, of_user=True)


@thing
async def asset(side: Side) -> str:
    return "x_" + side.tenant_id


for name in ("register", "login", "refresh", "totp/verify", "forgot-password", "reset-password", "verify-email"):
    row(f"POST /api/auth/{name}", body={}, own=None, no_ids="its caller is not known yet")
for name in ("change-password", "totp/enable", "totp/disable"):
    row(f"POST /api/auth/{name}", body={}, own=None, no_ids=OWN)
row("POST /api/auth/logout", own=None, no_ids=OWN)
row("PUT /api/auth/profile", body={"timezone": "UTC"}, no_ids=OWN)
row("GET /api/auth/me", shows="tenant", of_user=True)
row("GET /api/auth/sessions", shows="session", of_user=True)
row("DELETE /api/auth/sessions/{session_id}", "session", of_user=True)
row("POST /api/auth/switch-tenant", body={"tenant_id": Ref("tenant", 404)}, own=None, of_user=True)
row("POST /api/invitations/accept", body={"token": UNIQUE}, own=None, no_ids="its token is the proof")
