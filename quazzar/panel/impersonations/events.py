"""Members who open sessions on instances, as webhooks and the live feed hear of it."""

from quazzar.core.records import Event


class InstanceImpersonated(Event):
    """A member was given a token for a session on an instance. The subject is the instance."""

    type = "instance.impersonated"
    instance_id: str
    impersonation_id: str
    user_id: str
    reason: str
