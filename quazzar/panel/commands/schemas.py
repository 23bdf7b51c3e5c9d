"""Bodies of commands, in and out."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from quazzar.core.schema import In, Out, message
from quazzar.core.secret import MASK
from quazzar.link.commands import COMMANDS
from quazzar.panel.commands.models import CommandStatus, OfflinePolicy, UnitStatus
from quazzar.panel.commands.rollout import OVER
from quazzar.panel.fleet.models import InstanceStatus
from quazzar.panel.fleet.schemas import GroupRef, InstanceId, Tag

MOST_TARGETS: Final = 10_000
DEFAULT_LIFE_SECONDS: Final = 24 * 3600
LONGEST_LIFE_SECONDS: Final = 30 * 24 * 3600
_MASKED: Final = frozenset({"config"})
"""Arguments that may hold passwords: their values are sealed, and masked wherever they are shown."""

Kind = Annotated[str, Meta(max_length=64, examples=["app.restart"])]
_Known = Annotated[
    str,
    Meta(max_length=64, examples=["app.restart"], description=f"One of {', '.join(f'`{kind}`' for kind in COMMANDS)}"),
]
_Args = Annotated[dict[str, Any], Meta(examples=[{"app": "cloud"}], description="As the kind wants them")]
CommandRef = Annotated[str, Meta(examples=["cmd_23oc77vtak2bdwdlqw5ffwpz33"])]
InstanceRef = Annotated[
    str,
    Meta(
        pattern=r"^inst_[a-z2-7]{20,40}\Z",
        extra=message("{label} must be the id of an instance"),
        examples=["inst_23oc77vtak2bdwdlqw5ffwpz33"],
    ),
]
Seconds = Annotated[float, Meta(ge=0, le=7 * 24 * 3600)]


class Targets(In):
    """Every list adds to the others: instances by their ids, those that have one of the tags, those of the groups and
    of the groups below them. `all` are all that the caller may see.
    """

    instances: Annotated[
        list[InstanceRef], Meta(max_length=MOST_TARGETS, examples=[["inst_23oc77vtak2bdwdlqw5ffwpz33"]])
    ] = []
    tags: Annotated[list[Tag], Meta(max_length=50, examples=[["site:berlin"]])] = []
    groups: Annotated[list[GroupRef], Meta(max_length=200, examples=[["grp_23oc77vtak2bdwdlqw5ffwpz33"]])] = []
    all: bool = False


class Strategy(In):
    """Without one, every instance begins at once.

    `canary` instances begin first and alone; if one of them fails, nothing else begins. Then come batches of
    `batch_size` instances, or of `percent` of all, with `pause_seconds` between. A unit counts as completed once its
    instance has stayed online, and no worse than before, for `health_wait_seconds`. Before each unit is begun, the
    failures so far are compared with `max_failures`: once they are as many, nothing else begins.
    """

    batch_size: Annotated[int, Meta(ge=1, le=MOST_TARGETS, examples=[10])] | None = None
    percent: Annotated[Annotated[float, Meta(gt=0, le=100)] | None, Meta(examples=[None])] = None
    canary: Annotated[int, Meta(ge=0, le=MOST_TARGETS)] = 0
    max_failures: Annotated[int, Meta(ge=0, le=MOST_TARGETS)] | None = None
    pause_seconds: Seconds = 0
    health_wait_seconds: Seconds = 0


class CommandCreate(In):
    """`expires_in_seconds` (24 hours) counts from the moment of `schedule`, else from now: what has not begun by then
    never begins. An instance that is `offline` when its turn comes is waited for (`queue`), left out (`skip`), or
    counts as failed (`fail`). With `dry_run` the answer says what would happen, and nothing does.
    """

    kind: _Known
    targets: Targets
    args: _Args = {}
    strategy: Strategy | None = None
    expires_in_seconds: Annotated[int, Meta(ge=1, le=LONGEST_LIFE_SECONDS)] = DEFAULT_LIFE_SECONDS
    offline: OfflinePolicy = "queue"
    schedule: Annotated[datetime, Meta(tz=True, description="When to begin, within a year; default: now")] | None = None
    dry_run: bool = False


class UnitOut(Out):
    """The command on one instance. `output` is text of at most 64 KiB; where a command has many instances, only its
    beginning is shown (`output_cut`), unless `instance` asks for this one.
    """

    instance_id: InstanceId
    name: Annotated[str, Meta(examples=["berlin-1"])]
    status: UnitStatus
    batch: Annotated[int, Meta(examples=[1])]
    attempt: Annotated[int, Meta(examples=[1])]
    progress: Annotated[int | None, Meta(description="Percent, where the instance tells")]
    step: str | None
    output: str | None
    output_cut: bool
    error: str | None
    error_code: Annotated[str | None, Meta(examples=["app_not_found"])]
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> "UnitOut":
        values = {name: getattr(row, name) for name in cls.__struct_fields__}
        return cls(**values | {"status": shown_status(row.status)})


class UnitCounts(Out):
    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    skipped: int = 0


class BatchOut(Out):
    """What became of a batch; the first is the canary where there is one."""

    number: Annotated[int, Meta(examples=[1])]
    canary: bool
    status: Literal["pending", "running", "ended"]
    units: UnitCounts
    started_at: datetime | None
    finished_at: datetime | None


class StrategyOut(Out):
    """As it is carried out: percents are numbers of instances by now."""

    batch_size: int
    canary: int
    max_failures: int | None
    pause_seconds: float
    health_wait_seconds: float


class CommandSummary(Out):
    """A command without what became of it on each instance.

    `pending` waits for its moment. `stopping` begins nothing more, and its units that are under way come to their end;
    `reason` says why. At the end it is `failed` if a unit failed, else `expired` if one expired, `cancelled` if that
    was asked for or who gave it may not any more, and else `completed`. Values of `args` that may be secret are masked.
    """

    id: CommandRef
    kind: Kind
    status: CommandStatus
    reason: str | None
    args: Annotated[dict[str, Any], Meta(examples=[{"app": "cloud"}])]
    strategy: StrategyOut
    offline: OfflinePolicy
    units: UnitCounts
    created_by: Annotated[str, Meta(examples=["usr_23oc77vtak2bdwdlqw5ffwpz33"])]
    created_at: datetime
    scheduled_at: datetime | None
    expires_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def values_of(cls, row: Any, batches: Sequence[BatchOut]) -> dict[str, Any]:
        made = {"strategy", "units"}
        values = {name: getattr(row, name) for name in CommandSummary.__struct_fields__ if name not in made}
        return values | {
            "strategy": StrategyOut(**{name: getattr(row, name) for name in StrategyOut.__struct_fields__}),
            "units": summed(batch.units for batch in batches),
        }


class CommandOut(CommandSummary):
    """A command with a report of each batch and of each instance, in the order of their turns."""

    targets: Targets
    batches: list[BatchOut]
    instances: list[UnitOut]


class PlannedInstance(Out):
    instance_id: InstanceId
    name: Annotated[str, Meta(examples=["berlin-1"])]
    status: InstanceStatus
    online: bool


class PlannedBatch(Out):
    number: Annotated[int, Meta(examples=[1])]
    canary: bool
    instances: list[PlannedInstance]


class CommandPlan(Out):
    """What a command would do: which instances in which batches, and who of them is offline now."""

    dry_run: Annotated[bool, Meta(examples=[True])]
    kind: Kind
    total: Annotated[int, Meta(examples=[12])]
    offline: Annotated[list[InstanceId], Meta(description="Instances that would be dealt with as `offline` says")]
    batches: list[PlannedBatch]
    scheduled_at: datetime | None
    expires_at: datetime


def shown_status(status: str) -> UnitStatus:
    """A unit runs until its instance has been watched for long enough."""
    return "running" if status == "settling" else status  # type: ignore[return-value]


def batches_of(canary: int, rows: Iterable[Any]) -> list[BatchOut]:
    """Reports from rows of `batch, status, count, started_at, finished_at`, one for each batch and status."""
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(row.batch, []).append(row)
    return [_batch(number, canary > 0 and number == 1, found[number]) for number in sorted(found)]


def _batch(number: int, canary: bool, rows: Sequence[Any]) -> BatchOut:
    units = UnitCounts()
    for row in rows:
        name = shown_status(row.status)
        setattr(units, name, getattr(units, name) + row.count)
    started_at = min((row.started_at for row in rows if row.started_at is not None), default=None)
    finished_at = max((row.finished_at for row in rows if row.finished_at is not None), default=None)
    if all(row.status in OVER for row in rows):
        return BatchOut(number, canary, "ended", units, started_at, finished_at)
    return BatchOut(number, canary, "pending" if started_at is None else "running", units, started_at, None)


def summed(counts: Iterable[UnitCounts]) -> UnitCounts:
    total = UnitCounts()
    for one in counts:
        for name in UnitCounts.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total


def masked(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they may be shown and kept in the open."""
    return {
        name: dict.fromkeys(value, MASK) if name in _MASKED and isinstance(value, dict) else value
        for name, value in args.items()
    }
