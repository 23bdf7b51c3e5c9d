"""What the API shows of jobs."""

from datetime import datetime
from typing import Annotated, Any, Literal

from quazzar.core.schema import Meta, Out

JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]


class JobOut(Out):
    """A background job. `attempts` counts its starts; `error` is why it failed, or why its last attempt did."""

    id: str
    kind: str
    subject: str | None
    status: JobStatus
    progress: Annotated[float, Meta(ge=0, le=1)]
    step: str | None
    error: str | None
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> "JobOut":
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})


class JobLineOut(Out):
    """One line of a job's log; `number` counts up over all attempts."""

    number: int
    at: datetime
    line: str

    @classmethod
    def of(cls, row: Any) -> "JobLineOut":
        return cls(number=row.number, at=row.at, line=row.line)
