"""Webhooks over HTTP, the same in both APIs."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from litestar import Controller, Request, Response
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.auth import Principal, principal_of, requires, reserved
from quazzar.core.db import Database
from quazzar.core.http import caller_of
from quazzar.core.idempotency import begin_idempotent
from quazzar.core.paging import DEFAULT_LIMIT, Cursor, Limit, page_of, paged
from quazzar.core.routing import delete, get, post, put
from quazzar.webhooks.engine import Webhooks
from quazzar.webhooks.schemas import (
    DeliveryOut,
    DeliveryStatus,
    RedeliveredOut,
    RedeliverSince,
    WebhookCreate,
    WebhookOut,
    WebhookSecretOut,
    WebhookUpdate,
)
from quazzar.webhooks.service import DELIVERY_ID, WEBHOOK_ID, WebhookService, shown_to
from quazzar.webhooks.store import Scope

WebhookRequest = Request[Any, Any, State]
WebhookId = FromPath[Annotated[str, Meta(description="Id of a webhook.", examples=["wh_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]]
DeliveryId = FromPath[
    Annotated[str, Meta(description="Id of a delivery.", examples=["whd_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
]
Status = Annotated[DeliveryStatus | None, QueryParameter(description="Only deliveries in this state.")]


def _service(request: WebhookRequest, session: AsyncSession) -> WebhookService:
    engine: Webhooks = request.app.state.webhooks
    return WebhookService(session, Scope.of(principal_of(request)), request.app.state.keyring, engine.http.policy)


async def provide_webhooks(request: WebhookRequest, session: NamedDependency[AsyncSession]) -> WebhookService:
    return _service(request, session)


async def provide_tested(request: WebhookRequest, webhook_id: WebhookId) -> AsyncGenerator[DeliveryOut, None]:
    """A test as two short transactions: no transaction is open while the endpoint takes its time."""
    database: Database = request.app.state.database
    engine: Webhooks = request.app.state.webhooks
    principal: Principal = principal_of(request)
    async with database.begin(tenant=principal.tenant_id, user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        await begin_idempotent(request, session, request.app.state.keyring)
        test = await _service(request, session).begin_test(webhook_id)
    outcome = await engine.send(test.url, test.secrets, test.message)
    async with database.begin(tenant=principal.tenant_id, user=principal.user_id) as session:
        session.info["caller"] = caller_of(request)
        request.scope["state"]["idempotent"] = await begin_idempotent(request, session, request.app.state.keyring)
        yield DeliveryOut.of(await _service(request, session).end_test(test, outcome))


class WebhookController(Controller):
    path = "/webhooks"
    tags = ("Webhooks",)
    dependencies = {"webhooks": Provide(provide_webhooks)}

    @post(guards=[reserved("webhooks:write")], operation_id="CreateWebhook", summary="Add a webhook")
    async def create_webhook(
        self, request: WebhookRequest, webhooks: NamedDependency[WebhookService], data: JSONBody[WebhookCreate]
    ) -> Response[WebhookSecretOut]:
        """The answer holds the signing secret, which is shown once. How to check signatures: docs/webhooks.md."""
        made = await webhooks.create(data)
        return Response(made, headers={"Location": f"{request.scope['path'].rstrip('/')}/{made.id}"})

    @get(guards=[requires("webhooks:read")], operation_id="ListWebhooks", summary="All webhooks")
    async def list_webhooks(
        self,
        request: WebhookRequest,
        webhooks: NamedDependency[WebhookService],
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[WebhookOut]]:
        """Newest first."""
        page = page_of(limit, cursor, key=WEBHOOK_ID.pattern)
        shown = shown_to(principal_of(request))
        return paged(request, page, await webhooks.find(page), shown, lambda row: str(row.id))

    @get("/{webhook_id:str}", guards=[requires("webhooks:read")], operation_id="GetWebhook", summary="One webhook")
    async def get_webhook(
        self, request: WebhookRequest, webhooks: NamedDependency[WebhookService], webhook_id: WebhookId
    ) -> WebhookOut:
        return shown_to(principal_of(request))(await webhooks.get(webhook_id))

    @put(
        "/{webhook_id:str}",
        guards=[reserved("webhooks:write")],
        operation_id="UpdateWebhook",
        summary="Change a webhook",
    )
    async def update_webhook(
        self, webhooks: NamedDependency[WebhookService], webhook_id: WebhookId, data: JSONBody[WebhookUpdate]
    ) -> WebhookOut:
        """Fields that are left out stay. While it is not active nothing is sent; what waits then is sent later."""
        return WebhookOut.of(await webhooks.update(webhook_id, data))

    @delete(
        "/{webhook_id:str}",
        guards=[requires("webhooks:write")],
        operation_id="DeleteWebhook",
        summary="Remove a webhook",
        status_code=204,
    )
    async def delete_webhook(self, webhooks: NamedDependency[WebhookService], webhook_id: WebhookId) -> None:
        """Its deliveries go with it."""
        await webhooks.delete(webhook_id)

    @post(
        "/{webhook_id:str}/rotate-secret",
        guards=[reserved("webhooks:write")],
        operation_id="RotateWebhookSecret",
        summary="A new signing secret",
        status_code=200,
    )
    async def rotate_secret(self, webhooks: NamedDependency[WebhookService], webhook_id: WebhookId) -> WebhookSecretOut:
        """For 24 hours the secret before signs along; at most three sign at once."""
        return await webhooks.rotate_secret(webhook_id)

    @post(
        "/{webhook_id:str}/test",
        guards=[requires("webhooks:write")],
        operation_id="TestWebhook",
        summary="Send webhook.test now",
        status_code=200,
        dependencies={"tested": Provide(provide_tested)},
    )
    async def test_webhook(self, webhook_id: WebhookId, tested: NamedDependency[DeliveryOut]) -> DeliveryOut:
        """One attempt, active or not, whatever the webhook listens to; the answer says what came back."""
        del webhook_id
        return tested

    @get(
        "/{webhook_id:str}/deliveries",
        guards=[requires("webhooks:read")],
        operation_id="ListWebhookDeliveries",
        summary="What was sent to a webhook",
    )
    async def list_deliveries(
        self,
        request: WebhookRequest,
        webhooks: NamedDependency[WebhookService],
        webhook_id: WebhookId,
        status: Status = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> Response[list[DeliveryOut]]:
        """Newest first, with every attempt; kept for 30 days."""
        page = page_of(limit, cursor, key=DELIVERY_ID.pattern)
        found = await webhooks.deliveries(webhook_id, status, page)
        return paged(request, page, found, DeliveryOut.of, lambda row: str(row.id))

    @post(
        "/{webhook_id:str}/redeliver",
        guards=[requires("webhooks:write")],
        operation_id="RedeliverWebhook",
        summary="Send everything since a time again",
        status_code=200,
    )
    async def redeliver_since(
        self, webhooks: NamedDependency[WebhookService], webhook_id: WebhookId, data: JSONBody[RedeliverSince]
    ) -> RedeliveredOut:
        """Each under the id that it had, so that receivers can drop what they know. 409 while it is not active."""
        return await webhooks.redeliver_since(webhook_id, data)


class WebhookDeliveryController(Controller):
    path = "/webhook-deliveries"
    tags = ("Webhooks",)
    dependencies = {"webhooks": Provide(provide_webhooks)}

    @get(
        "/{delivery_id:str}",
        guards=[requires("webhooks:read")],
        operation_id="GetWebhookDelivery",
        summary="One delivery",
    )
    async def get_delivery(self, webhooks: NamedDependency[WebhookService], delivery_id: DeliveryId) -> DeliveryOut:
        """With every attempt."""
        return DeliveryOut.of(await webhooks.delivery(delivery_id))

    @post(
        "/{delivery_id:str}/redeliver",
        guards=[requires("webhooks:write")],
        operation_id="RedeliverWebhookDelivery",
        summary="Send one delivery again",
        status_code=200,
    )
    async def redeliver(self, webhooks: NamedDependency[WebhookService], delivery_id: DeliveryId) -> DeliveryOut:
        """At once, under the same id, with all attempts of the schedule. 409 while the webhook is not active."""
        return DeliveryOut.of(await webhooks.redeliver(delivery_id))


handlers: list[type[Controller]] = [WebhookController, WebhookDeliveryController]
