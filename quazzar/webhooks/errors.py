"""What can be wrong with a call about webhooks."""

from quazzar.core.errors import Conflict, Forbidden, NotFound


class WebhookNotFound(NotFound):
    code = "webhook_not_found"
    message = "There is no such webhook"


class WebhookDeliveryNotFound(NotFound):
    code = "webhook_delivery_not_found"
    message = "There is no such delivery"


class WebhookInactive(Conflict):
    code = "webhook_inactive"
    message = "The webhook is not active; make it active first"


class TooManyWebhooks(Conflict):
    code = "webhook_limit_reached"
    message = "There are as many webhooks as there may be; delete one first"


class WebhookKeyBound(Forbidden):
    code = "key_bound"
    message = "A key that is bound to apps can't make a webhook, which hears of everything"
