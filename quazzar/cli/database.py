"""The database for a command that works beside a running Quazzar, or without one."""

import contextlib
from collections.abc import AsyncIterator

import asyncpg

from quazzar.core.db import Database
from quazzar.core.migrations import schema_state
from quazzar.core.postgres import EmbeddedPostgres
from quazzar.process import StartProblem, open_database
from quazzar.settings import Settings

_POOL = 2


@contextlib.asynccontextmanager
async def usable_database(settings: Settings) -> AsyncIterator[Database]:
    """The database of `settings`: of the Quazzar that runs on this data folder, or opened for as long as the block.

    Raises `StartProblem`; makes nothing where nothing is.
    """
    urls = None
    if settings.database.url is None:
        folder = settings.server.data_dir
        if not (folder / "postgres").is_dir():
            raise StartProblem(f"There is no Quazzar in {folder}; say by --data-dir where it keeps its data")
        urls = await EmbeddedPostgres.running_urls(folder)
    if urls is None:
        async with open_database(settings) as opened:
            await _require_schema(opened.database)
            yield opened.database
        return
    database = Database(urls.app, pool_size=_POOL)
    try:
        await _require_schema(database)
        yield database
    finally:
        await database.close()


async def _require_schema(database: Database) -> None:
    try:
        connection = await database.connect()
        try:
            state = await schema_state(connection)
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        why = "run this command as the user that Quazzar runs as"
        raise StartProblem(f"The database lets this command not in ({type(error).__name__}); {why}") from error
    if not state.is_current:
        raise StartProblem("The database has another schema than this release; start Quazzar, or run `quazzar migrate`")
