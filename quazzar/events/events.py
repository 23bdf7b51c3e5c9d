"""Events of the process itself."""

from quazzar.core.records import Event


class SystemStarted(Event):
    """The process is up and about to take requests."""

    type = "system.started"
    version: str
    mode: str
