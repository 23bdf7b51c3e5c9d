"""`quazzar admin …`: ways back in for who has a shell on the server. They work beside a running Quazzar too."""

import contextlib
import getpass
import sys
from collections.abc import AsyncIterator

from quazzar.cli.arguments import USAGE_ERROR, Arguments
from quazzar.cli.serve import run_async
from quazzar.core.auth import Realm
from quazzar.core.db import Database
from quazzar.settings import Settings

_POOL = 2


def reset_password(arguments: Arguments) -> int:
    """Asks for the new password, or reads it as one line where there is no terminal."""
    settings = arguments.settings()
    name = arguments.username or run_async(_only_admin(settings))
    if name is None:
        return _refuse("say whose password by --username")
    password = _read_password(name)
    if password is None:
        return _refuse("the two passwords differ; nothing was changed")
    run_async(_reset(settings, name, password, disable_totp=arguments.disable_totp))
    factor = " and the second factor is off" if arguments.disable_totp else ""
    print(f"The password of {name} is set, all of their sessions are ended{factor}")
    return 0


def setup_token(arguments: Arguments) -> int:
    settings = arguments.settings()
    token = run_async(_renew_token(settings))
    if token is None:
        sys.stderr.write("quazzar: this instance is set up already; see `quazzar admin reset-password`\n")
        return 1
    print(token)
    return 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"quazzar: {sentence}\n")
    return USAGE_ERROR


def _read_password(name: str) -> str | None:
    """None when the person did not type the same twice."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"New password of {name}: ")
    return password if getpass.getpass("Once more: ") == password else None


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    """The database of `settings`: of the Quazzar that runs on this data folder, or opened for as long as the block.

    Raises `StartProblem`; makes nothing where nothing is.
    """
    from quazzar.core.postgres import EmbeddedPostgres  # noqa: PLC0415 - after the arguments are judged
    from quazzar.process import StartProblem, open_database  # noqa: PLC0415

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
    import asyncpg  # noqa: PLC0415

    from quazzar.core.migrations import schema_state  # noqa: PLC0415
    from quazzar.process import StartProblem  # noqa: PLC0415

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


def _realm(settings: Settings, name: str | None) -> Realm:
    """Where a name is known: the panel's people log in by address, and only an instance has a single admin."""
    if settings.server.mode == "all":
        return "panel" if name is not None and "@" in name else "instance"
    return settings.server.mode


async def _only_admin(settings: Settings) -> str | None:
    """What the one admin logs in as; None when there is none, or a choice."""
    from quazzar.accounts.service import AccountService  # noqa: PLC0415 - after the arguments are judged

    async with _database(settings) as database, database.begin() as session:
        names = await AccountService(session, _realm(settings, None)).admin_names()
    return names[0] if len(names) == 1 else None


async def _reset(settings: Settings, name: str, password: str, *, disable_totp: bool) -> None:
    from quazzar.accounts.service import AccountService  # noqa: PLC0415

    realm = _realm(settings, name)
    async with _database(settings) as database:
        async with database.begin() as session:
            user_id = await AccountService(session, realm).user_id(name)
        # Sessions are seen by their user alone, so the work is done in that user's scope.
        async with database.begin(user=user_id) as session:
            await AccountService(session, realm).reset_password(name, password, disable_totp=disable_totp)


async def _renew_token(settings: Settings) -> str | None:
    from quazzar.instance.auth.service import renew_setup_token  # noqa: PLC0415

    async with _database(settings) as database, database.begin() as session:
        return await renew_setup_token(settings.server.data_dir, session)
