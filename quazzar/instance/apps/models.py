"""Tables of installed apps and of the host ports that they hold."""

from datetime import datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from quazzar.core.db import Base

AppStatus = Literal[
    "installing",
    "starting",
    "running",
    "unhealthy",
    "stopping",
    "stopped",
    "restarting",
    "updating",
    "crashed",
    "failed",
    "uninstalling",
]
Desired = Literal["running", "stopped"]

TRANSITIONAL: Final[tuple[AppStatus, ...]] = (
    "installing",
    "starting",
    "stopping",
    "restarting",
    "updating",
    "uninstalling",
)
"""States that a job holds: each has a deadline, and nothing but its job or the reaper may end it."""

_STATUSES = ", ".join(f"'{status}'" for status in get_args(AppStatus))


class App(Base):
    """One installed app.

    `definition` is the checked template as it was at install, so that an app outlives it (JSON, not JSONB: the order
    of services means something). `config` is shown as it
    stands, with a mask for each secret; their values are sealed in `secrets`. `services`, `ports`, `volumes` and
    `urls` are the engine's last word in the form that answers show. `expected` tells the reconciler which services
    there should be. `installed_at` is None until the first install has gone through: until then a failure takes
    everything away again. `trashed_at` is there while the app is in the trash: then only its volumes are on the engine,
    its name and ports are free for others, and `trashed_ports` are those that it held (the fields of `AppPort`).
    `copies_from` is the app whose data has not been copied yet into this one, its clone. `claim` is what it reserves of
    the machine (`room.Claim`), while it is being changed the larger of what it was and what it is to become.
    """

    __tablename__ = "apps"
    __table_args__ = (
        CheckConstraint(f"status IN ({_STATUSES})", name="status"),
        Index("ix_apps_name", "name", unique=True, postgresql_where=text("trashed_at IS NULL")),
        Index("ix_apps_trashed_at", "trashed_at", postgresql_where=text("trashed_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    name: Mapped[str] = mapped_column(Text(collation="C"))
    template: Mapped[str | None] = mapped_column(Text(collation="C"))
    version: Mapped[str | None] = mapped_column(Text(collation="C"))
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    resources: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    domain: Mapped[str | None] = mapped_column(Text(collation="C"))
    status: Mapped[str] = mapped_column(Text(collation="C"))
    status_reason: Mapped[str | None] = mapped_column(Text)
    status_since: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    desired: Mapped[str] = mapped_column(Text(collation="C"), server_default=text("'running'"))
    job_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    deadline_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    installed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    expected: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    services: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    ports: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    volumes: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    urls: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    update_available: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    trashed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    copies_from: Mapped[str | None] = mapped_column(Text(collation="C"))
    trashed_ports: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    restart_policy: Mapped[str | None] = mapped_column(Text(collation="C"))
    images: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    labels: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    claim: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))


class _Shaped:
    """The columns of `App` that say what an app is made from: they change together, and go back together."""

    template: Mapped[str | None] = mapped_column(Text(collation="C"))
    version: Mapped[str | None] = mapped_column(Text(collation="C"))
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    resources: Mapped[dict[str, Any]] = mapped_column(JSONB)
    restart_policy: Mapped[str | None] = mapped_column(Text(collation="C"))
    images: Mapped[dict[str, Any]] = mapped_column(JSONB)


class AppRevision(_Shaped, Base):
    """What an app was before an update or a rollback; `snapshot` is the name of its data on the engine."""

    __tablename__ = "app_revisions"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    snapshot: Mapped[str] = mapped_column(Text(collation="C"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class AppChange(_Shaped, Base):
    """The journal of a change that is being made: what the app is to become, and how far that is.

    While the row is there the app's own row still says what it was, which is where a change that fails goes back to.
    `stopped` says that the app did not run. `snapshot` is the name of the data as it was, `revision` the number of the
    one that a rollback goes to, `reason` why a change goes back. An `automatic` one nobody asked for.
    """

    __tablename__ = "app_changes"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    kind: Mapped[str] = mapped_column(Text(collation="C"))
    phase: Mapped[str] = mapped_column(Text(collation="C"))
    stopped: Mapped[bool] = mapped_column(Boolean)
    snapshot: Mapped[str | None] = mapped_column(Text(collation="C"))
    revision: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str | None] = mapped_column(Text)
    automatic: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class AppUpdateCheck(Base):
    """What newer there is of an app, as far as the catalogue and the registries of its images were asked.

    `available` is an `updates_store.Available`, `announced` the keys of those that were an event already, oldest first.
    The registries are asked again at `due_at`; a row without one, or no row, is due now. `error` is why one of them
    gave no answer the last time.
    """

    __tablename__ = "app_update_checks"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    available: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    announced: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    checked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    due_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    error: Mapped[str | None] = mapped_column(Text)


class AppAutoUpdate(Base):
    """Whether and when an app is updated by itself, as its owner wants it.

    `skip_versions` are versions and digests of images that it does not take; those among them that it tried, or came
    back from, are told with the reason in `skipped` (`updates_store.Skipped`). `opens_at` is when it may be updated
    next: the start of the window that is open or of the next one, None for at any time. `waits_for` says what keeps it
    from an update that is there.
    """

    __tablename__ = "app_auto_updates"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    enabled: Mapped[bool] = mapped_column(Boolean)
    window: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    hold_version: Mapped[str | None] = mapped_column(Text(collation="C"))
    skip_versions: Mapped[list[str]] = mapped_column(JSONB, server_default=text("'[]'"))
    canary_app: Mapped[str | None] = mapped_column(Text(collation="C"))
    skipped: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    opens_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    waits_for: Mapped[str | None] = mapped_column(Text)


class RegistryPause(Base):
    """A registry that is not asked before `until_at`: it wanted fewer questions, or did not answer, `failures` times
    on end.
    """

    __tablename__ = "registry_pauses"

    host: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)
    until_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class AppAdoption(Base):
    """What of a Compose project is an app's without its labels; `objects` is a `runtimes.base.Adoption`."""

    __tablename__ = "app_adoptions"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    project: Mapped[str] = mapped_column(Text(collation="C"), unique=True)
    objects: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class AppPort(Base):
    """A host port that an app holds, from its install to its end, whether the app runs or not.

    `auto` ones were chosen by us and may be exchanged until the app is installed.
    """

    __tablename__ = "app_ports"

    host_port: Mapped[int] = mapped_column(Integer, primary_key=True)
    protocol: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    app_id: Mapped[str] = mapped_column(Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    field: Mapped[str | None] = mapped_column(Text(collation="C"))
    auto: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class AppPoint(Base):
    """What an app used in one step of `step_seconds` (a minute, an hour, a day in UTC) that begins at `at`.

    CPU, memory and its limit are means over `samples`; network, disk and restarts are sums; the rest is the most.
    """

    __tablename__ = "app_points"
    __table_args__ = (Index("ix_app_points_at", "step_seconds", "at"),)

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    step_seconds: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    samples: Mapped[int] = mapped_column(Integer)
    cpu_percent: Mapped[float] = mapped_column(Double)
    cpu_percent_max: Mapped[float] = mapped_column(Double)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_bytes_max: Mapped[int] = mapped_column(BigInteger)
    memory_limit_bytes: Mapped[int] = mapped_column(BigInteger)
    network_rx_bytes: Mapped[int] = mapped_column(BigInteger)
    network_tx_bytes: Mapped[int] = mapped_column(BigInteger)
    disk_read_bytes: Mapped[int] = mapped_column(BigInteger)
    disk_write_bytes: Mapped[int] = mapped_column(BigInteger)
    pids: Mapped[int] = mapped_column(Integer)
    restarts: Mapped[int] = mapped_column(Integer)


class AppExec(Base):
    """A command that somebody runs in a service, from before its start until it is known to be over.

    It outlives its app, so that its end is recorded in any case. `ended_at` is set once the end is recorded, while the
    engine could not be told yet to end the command.
    """

    __tablename__ = "app_execs"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    app_id: Mapped[str] = mapped_column(Text(collation="C"))
    service: Mapped[str] = mapped_column(Text(collation="C"))
    actor_id: Mapped[str] = mapped_column(Text(collation="C"))
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class AppDisk(Base):
    """What an app had on the engine's disk when it was measured last; `volumes` are bytes by short name."""

    __tablename__ = "app_disks"

    app_id: Mapped[str] = mapped_column(
        Text(collation="C"), ForeignKey("apps.id", ondelete="CASCADE"), primary_key=True
    )
    volumes: Mapped[dict[str, int]] = mapped_column(JSONB)
    containers_bytes: Mapped[int] = mapped_column(BigInteger)
    measured_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
