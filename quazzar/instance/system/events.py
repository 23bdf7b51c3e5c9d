"""What the server says of itself."""

from quazzar.core.records import Event


class DiskLow(Event):
    """The disk of the data folder is nearly full; said again each day until it is not."""

    type = "system.disk_low"
    path: str
    free_bytes: int
    total_bytes: int
