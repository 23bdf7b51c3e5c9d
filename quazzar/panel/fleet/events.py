"""What happens to instances, as webhooks and the live feed hear of it. The subject of each is the instance's id."""

from quazzar.core.records import Event


class InstanceEnrolled(Event):
    """A server has joined the fleet; `again` when it was known and came with its own key."""

    type = "instance.enrolled"
    instance_id: str
    name: str
    again: bool = False


class InstanceOnline(Event):
    """An instance that was offline is heard again."""

    type = "instance.online"
    instance_id: str
    name: str


class InstanceOffline(Event):
    """Nothing was heard of an instance for two and a half heartbeats."""

    type = "instance.offline"
    instance_id: str
    name: str
    reason: str


class InstanceDegraded(Event):
    """An instance is online, but a check of its health fails."""

    type = "instance.degraded"
    instance_id: str
    name: str
    reason: str


class InstanceRevoked(Event):
    """An instance was deleted: its certificate counts no more and its line is cut."""

    type = "instance.revoked"
    instance_id: str
    name: str
    reason: str
