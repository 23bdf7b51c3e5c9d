"""`quazzar admin …`: ways back in for who has a shell on the server. They work beside a running Quazzar too."""

import getpass
import sys

from quazzar.cli.arguments import USAGE_ERROR, Arguments
from quazzar.cli.database import usable_database
from quazzar.cli.serve import run_async
from quazzar.core.auth import Realm
from quazzar.settings import Settings


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


def reset_link(arguments: Arguments) -> int:
    """For panels that send no mail, or whose mail does not arrive: the link is handed over by other means."""
    settings = arguments.settings()
    if settings.server.mode == "instance":
        return _refuse("links are for users of the panel; here `quazzar admin reset-password` sets a password")
    print(run_async(_make_link(settings, arguments.email)))
    sys.stderr.write("It works once, within an hour\n")
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


def _realm(settings: Settings, name: str | None) -> Realm:
    """Where a name is known: the panel's people log in by address, and only an instance has a single admin."""
    if settings.server.mode == "all":
        return "panel" if name is not None and "@" in name else "instance"
    return settings.server.mode


async def _only_admin(settings: Settings) -> str | None:
    """What the one admin logs in as; None when there is none, or a choice."""
    from quazzar.accounts.service import AccountService  # noqa: PLC0415 - after the arguments are judged

    async with usable_database(settings) as database, database.begin() as session:
        names = await AccountService(session, _realm(settings, None)).admin_names()
    return names[0] if len(names) == 1 else None


async def _reset(settings: Settings, name: str, password: str, *, disable_totp: bool) -> None:
    from quazzar.accounts.service import AccountService  # noqa: PLC0415

    realm = _realm(settings, name)
    async with usable_database(settings) as database:
        async with database.begin() as session:
            user_id = await AccountService(session, realm).user_id(name)
        # Sessions are seen by their user alone, so the work is done in that user's scope.
        async with database.begin(user=user_id) as session:
            await AccountService(session, realm).reset_password(name, password, disable_totp=disable_totp)


async def _make_link(settings: Settings, email: str) -> str:
    from quazzar.panel.accounts.links import reset_link as make  # noqa: PLC0415

    async with usable_database(settings) as database, database.begin() as session:
        return await make(session, settings, email)


async def _renew_token(settings: Settings) -> str | None:
    from quazzar.instance.auth.service import renew_setup_token  # noqa: PLC0415

    async with usable_database(settings) as database, database.begin() as session:
        return await renew_setup_token(settings.server.data_dir, session)
