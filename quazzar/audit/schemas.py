"""What the API shows of the audit log, and what it can be asked for."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from quazzar.core.errors import BadRequest
from quazzar.core.records import ActorKind, Outcome
from quazzar.core.schema import Meta, Out, read_time

ExportFormat = Literal["csv", "jsonl"]


class ActorOut(Out):
    """Who did it: `id` is the user's or the key's; a job, the system and an anonymous caller may have none."""

    kind: ActorKind
    id: Annotated[str | None, Meta(examples=["usr_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]


class AuditRecordOut(Out, omit_defaults=True):
    """One record of the chain. `number` counts without gaps; `hash` (SHA-256, hexadecimal) covers all else of it and
    `previous_hash`. Secrets are not in `before` and `after`. `impersonation` is the session of a panel's user in which
    it was done, or which it ended.
    """

    id: Annotated[str, Meta(examples=["aud_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    number: int
    created_at: datetime
    actor: ActorOut
    address: Annotated[str | None, Meta(examples=["203.0.113.7"])]
    request_id: Annotated[str | None, Meta(examples=["req_c6xk2m4v7q3n5t2a"])]
    action: Annotated[str, Meta(examples=["app.install"])]
    subject: Annotated[str | None, Meta(examples=["app_3k2m4v7q3n5t2ac6xk2m4v7q3n"])]
    outcome: Outcome
    before: Annotated[dict[str, Any] | None, Meta(examples=[{"status": "running"}])]
    after: Annotated[dict[str, Any] | None, Meta(examples=[{"status": "stopping"}])]
    previous_hash: Annotated[str, Meta(examples=["00" * 32])]
    hash: Annotated[str, Meta(examples=["5f" * 32])]
    impersonation: Annotated[str | None, Meta(examples=["ses_23oc77uaycj2w7ptpelxikk33k"])] = None

    @classmethod
    def of(cls, row: Any) -> "AuditRecordOut":
        return cls(
            id=row.id,
            number=row.number,
            created_at=row.created_at,
            actor=ActorOut(row.actor_kind, row.actor_id),
            address=row.address,
            request_id=row.request_id,
            action=row.action,
            subject=row.subject,
            outcome=row.outcome,
            before=row.before,
            after=row.after,
            previous_hash=row.previous_hash.hex(),
            hash=row.hash.hex(),
            impersonation=row.impersonation,
        )


class ChainCheckOut(Out):
    """Whether the chain is whole. `checked` is how many records are good before the first bad one.

    `first_bad` is the id of the first record that is not as it was written, or after which the chain is broken; null
    when all is well and when the bad record is gone. `first_bad_number` is its place in either case, `problem` one
    sentence.
    """

    valid: bool
    checked: int
    first_bad: str | None = None
    first_bad_number: int | None = None
    problem: str | None = None


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What the log is narrowed to; None narrows nothing. `actor` is an id or a kind of actor."""

    action: str | None = None
    subject: str | None = None
    actor: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def moments(**given: str | None) -> dict[str, datetime]:
    """Times in RFC 3339 form with a zone. Raises `BadRequest` naming each that is none."""
    found: dict[str, datetime] = {}
    problems: dict[str, str] = {}
    for name, value in given.items():
        try:
            if value is not None:
                found[name] = read_time(value)
        except msgspec.ValidationError:
            problems[name] = f"{name.capitalize()} must be a time in RFC 3339 form with a zone"
    if problems:
        raise BadRequest("A parameter can't be read", details=problems)
    return found
