"""What happens to webhooks themselves."""

from quazzar.core.records import Event


class WebhookTested(Event):
    """Sent to one endpoint alone, when a user asks for it."""

    type = "webhook.test"
    webhook_id: str


class WebhookDisabled(Event):
    """An endpoint gets nothing any more until a user makes it active again."""

    type = "webhook.disabled"
    webhook_id: str
    reason: str
