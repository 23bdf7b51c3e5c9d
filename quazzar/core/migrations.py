"""The schema's version: which revision the code knows, which the database has, and the way from one to the other."""

import asyncio
import os
import re
import sys
from functools import cache
from pathlib import Path

import asyncpg
import msgspec

FOLDER = Path(__file__).resolve().parents[2] / "migrations"
_LOCK = 0x51415A5A41520001
"""Advisory lock of the one migration that may run; any fixed number would do."""


class MigrationProblem(Exception):
    """The schema can't be brought to, or is not at, the revision that this release needs; one sentence."""


class SchemaState(msgspec.Struct, frozen=True):
    """`current` is None on an empty database. `known` tells whether this release has heard of `current` at all."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        return self.current == self.head

    @property
    def is_known(self) -> bool:
        return self.current is None or self.current in revisions()


@cache
def revisions() -> tuple[str, ...]:
    """All revisions in order. Read from the files' own lines, so that starting needs no migration library in memory."""
    after: dict[str | None, str] = {}
    for file in (FOLDER / "versions").glob("*.py"):
        source = file.read_text()
        revision = re.search(r'^revision = "(.+)"$', source, re.MULTILINE)
        down = re.search(r'^down_revision = (?:"(.+)"|None)$', source, re.MULTILINE)
        if revision and down:
            after[down.group(1)] = revision.group(1)
    order: list[str] = []
    while (following := after.get(order[-1] if order else None)) is not None:
        order.append(following)
    return tuple(order)


async def schema_state(connection: "asyncpg.Connection[object]") -> SchemaState:
    head = revisions()[-1]
    if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
        return SchemaState(None, head)
    return SchemaState(await connection.fetchval("SELECT version_num FROM alembic_version"), head)


async def upgrade(url: str) -> None:
    """Bring the database at `url` (its user must own the schema) to the newest revision; does nothing when it is there.

    Runs in a child process: the migration library stays out of the memory of the server. Raises `MigrationProblem`.
    """
    connection = await asyncpg.connect(url, timeout=10)
    try:
        state = await schema_state(connection)
    finally:
        await connection.close()
    if state.is_current:
        return
    if not state.is_known:
        raise MigrationProblem(
            f"The database is at schema {state.current}, which this release does not know; install a newer release"
        )
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "quazzar.core.migrations",
        cwd=FOLDER.parent,
        env=os.environ | {"QUAZZAR_MIGRATION_URL": url},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await child.communicate()
    except asyncio.CancelledError:
        child.terminate()
        raise
    if child.returncode != 0:
        # Of a traceback, the line that names the error: it begins at the left and has a colon after the class.
        named = re.findall(r"^[\w.]+(?:Error|Exception|Timeout)\b: .*", errors.decode(errors="replace"), re.MULTILINE)
        raise MigrationProblem(f"The migration failed: {named[-1] if named else f'exit code {child.returncode}'}")


async def _run(url: str, *, check: bool = False) -> None:
    from alembic import command  # noqa: PLC0415 - only the child process and `make check` load it
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import text  # noqa: PLC0415
    from sqlalchemy.engine import Connection  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    from quazzar.core.db import sqlalchemy_url  # noqa: PLC0415

    def work(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(FOLDER))
        config.attributes["connection"] = connection
        if check:
            command.check(config)
        else:
            command.upgrade(config, "head")

    engine = create_async_engine(sqlalchemy_url(url), poolclass=NullPool)
    async with engine.connect() as guard:
        await guard.execution_options(isolation_level="AUTOCOMMIT")
        await guard.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        async with engine.connect() as connection:
            await connection.run_sync(work)
            await connection.commit()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_run(os.environ["QUAZZAR_MIGRATION_URL"], check="--check" in sys.argv))
