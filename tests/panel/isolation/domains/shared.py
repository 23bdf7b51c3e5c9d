"""What both APIs have: jobs, events, the audit log and webhooks."""

from sqlalchemy import insert

from quazzar.core.ids import new_id
from quazzar.core.jobs.models import Job
from quazzar.webhooks.models import WebhookDelivery
from tests.panel.isolation.matrix import Ref, Side, row, thing


@thing
async def job(side: Side) -> str:
    """One that has failed, so that it stays as it is."""
    job_id = new_id("job")
    async with side.database.begin(tenant=side.tenant_id) as session:
        await session.execute(
            insert(Job).values(
                id=job_id,
                realm="panel",
                tenant_id=side.tenant_id,
                kind="jobs.prune",
                subject=await side.id_of("group"),
                status="failed",
                max_attempts=1,
            )
        )
    return job_id


row("GET /api/jobs", shows="job", query={"subject": Ref("group")})
row("GET /api/jobs/{job_id}", "job")
row("GET /api/jobs/{job_id}/logs", "job")
row("POST /api/jobs/{job_id}/cancel", "job", own=409)
row("POST /api/jobs/{job_id}/retry", "job")

row("GET /api/events", shows="tenant_news", query={"subject": Ref("invitation")})
row("GET /api/audit", shows="group", query={"subject": Ref("group"), "actor": Ref("user")})
row("GET /api/audit/export", shows="group", query={"subject": Ref("group"), "actor": Ref("user")})
row("GET /api/audit/verify", no_ids="it is numbers about the caller's own chain")


@thing
async def user(side: Side) -> str:
    return side.user.id


@thing
async def tenant_news(side: Side) -> str:
    """What an event of the tenant is about."""
    return await side.id_of("invitation")


@thing
async def webhook(side: Side) -> str:
    return await side.post("/webhooks", {"url": "https://hooks.example.invalid/x", "events": ["backup.completed"]})


@thing
async def delivery(side: Side) -> str:
    """One that has failed for good."""
    delivery_id = new_id("whd")
    async with side.database.begin(tenant=side.tenant_id) as session:
        await session.execute(
            insert(WebhookDelivery).values(
                id=delivery_id,
                webhook_id=await side.id_of("webhook"),
                realm="panel",
                tenant_id=side.tenant_id,
                event_id=new_id("evt"),
                type="backup.completed",
                body=b"{}",
                status="failed",
                tries=10,
            )
        )
    return delivery_id


CHANGE = {"url": "https://hooks.example.invalid/y"}
row("GET /api/webhooks", shows="webhook")
row("POST /api/webhooks", body=CHANGE | {"events": ["backup.completed"]}, no_ids="a webhook is made of words")
row("GET /api/webhooks/{webhook_id}", "webhook")
row("PUT /api/webhooks/{webhook_id}", "webhook", body=CHANGE)
row("DELETE /api/webhooks/{webhook_id}", "webhook")
row("POST /api/webhooks/{webhook_id}/rotate-secret", "webhook")
row("POST /api/webhooks/{webhook_id}/test", "webhook")
row("GET /api/webhooks/{webhook_id}/deliveries", "webhook", shows="delivery")
row("POST /api/webhooks/{webhook_id}/redeliver", "webhook", body={"since": "2026-01-01T00:00:00Z"})
row("GET /api/webhook-deliveries/{delivery_id}", "delivery")
row("POST /api/webhook-deliveries/{delivery_id}/redeliver", "delivery")
