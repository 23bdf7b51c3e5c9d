"""Runs revisions over one connection that `quazzar.core.migrations` has opened and locked."""

import re

from alembic import context

import quazzar.tables  # noqa: F401 - registers every table on the metadata
from quazzar.core.db import Base


def include_object(_object: object, name: str | None, kind: str, reflected: bool, _compare_to: object) -> bool:
    """No model describes the job queue's tables (they are its library's), the counts of rate limits (plain SQL) and
    partitions of a day, which come and go.
    """
    own = name is None or not (name.startswith("pgqueuer") or name == "rate_limits" or re.search(r"_\d{8}$", name))
    return own or not (kind == "table" and reflected)


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    transaction_per_migration=True,
    include_object=include_object,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
