"""`quazzar keys rotate`: a new master key, with the old ones kept for what was sealed and signed with them."""

from quazzar.cli.arguments import Arguments
from quazzar.core.crypto import parse_keys, write_private
from quazzar.process import open_keyring, prepare_data_dir


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
