"""What happens to commands, as webhooks and the live feed hear of it. The subject of each is the command's id."""

from quazzar.core.records import Event


class CommandCreated(Event):
    """A command was given to instances; at once, or for a moment to come."""

    type = "command.created"
    command_id: str
    kind: str
    instances: int


class CommandFinished(Event):
    """A command has ended on all of its instances: `status` is `completed`, `failed`, `cancelled` or `expired`. It may
    be tried again, and ends again then.
    """

    type = "command.finished"
    command_id: str
    kind: str
    status: str
    reason: str | None
    completed: int
    failed: int
    expired: int
    cancelled: int
    skipped: int
