"""`quazzar keys …`: a new master key in front of the old ones, and what was sealed with those sealed with it."""

from quazzar.cli.arguments import Arguments
from quazzar.cli.database import usable_database
from quazzar.cli.serve import run_async
from quazzar.core.crypto import Keyring, SealBroken, parse_keys, write_private
from quazzar.process import StartProblem, open_keyring, prepare_data_dir
from quazzar.settings import Settings


def rotate(arguments: Arguments) -> int:
    settings = arguments.settings()
    given = settings.auth.secret_key
    if given is not None:
        # What a setting says can't be changed from here, so the new value is handed over for its place.
        print(parse_keys(given.reveal()).rotated().dump())
        return 0
    prepare_data_dir(settings)
    keyring = open_keyring(settings).rotated()
    write_private(settings.server.data_dir / "secret.key", keyring.dump() + "\n")
    older = len(keyring.key_ids) - 1
    print(f"Key {keyring.current} signs and seals from the next start; {older} older kept for reading")
    return 0


def reseal(arguments: Arguments) -> int:
    """Every running process must know the current key already, so this comes after the restart, not with `rotate`."""
    settings = arguments.settings()
    keyring = open_keyring(settings)
    try:
        count = run_async(_reseal(settings, keyring))
    except SealBroken:
        raise StartProblem(
            "A secret can't be opened with any key that is here; nothing was changed. Put the key that is missing back"
        ) from None
    print(f"{count} secrets are sealed with key {keyring.current}")
    return 0


async def _reseal(settings: Settings, keyring: Keyring) -> int:
    from quazzar.accounts import service as accounts  # noqa: PLC0415 - `rotate` needs neither
    from quazzar.channels import service as channels  # noqa: PLC0415
    from quazzar.instance.apps import service as apps  # noqa: PLC0415
    from quazzar.instance.orders import service as orders  # noqa: PLC0415
    from quazzar.instance.registries import service as registries  # noqa: PLC0415
    from quazzar.mail import service as mail  # noqa: PLC0415
    from quazzar.panel.commands import service as commands  # noqa: PLC0415
    from quazzar.panel.fleet import authority  # noqa: PLC0415
    from quazzar.webhooks import service as webhooks  # noqa: PLC0415

    domains = (accounts, apps, authority, channels, commands, mail, orders, registries, webhooks)
    async with usable_database(settings) as database, database.begin() as session:
        return sum([await domain.reseal(session, keyring) for domain in domains])
