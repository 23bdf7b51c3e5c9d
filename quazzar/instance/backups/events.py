"""What backups announce; the subject is the backup."""

from quazzar.core.records import Event


class BackupStarted(Event):
    """A backup has begun, by a call or by its schedule."""

    type = "backup.started"
    backup_id: str
    target_id: str
    schedule_id: str | None
    apps: list[str]


class BackupCompleted(Event):
    """A backup is whole: what was written has been read back and is right."""

    type = "backup.completed"
    backup_id: str
    target_id: str
    schedule_id: str | None
    apps: list[str]
    size_bytes: int
    duration_seconds: float


class BackupFailed(Event):
    """A backup did not get done; what earlier ones hold is untouched."""

    type = "backup.failed"
    backup_id: str
    target_id: str
    schedule_id: str | None
    apps: list[str]
    reason: str


class BackupRestored(Event):
    """Apps run on the data of a backup, in place or as copies."""

    type = "backup.restored"
    backup_id: str
    apps: list[str]
    mode: str
