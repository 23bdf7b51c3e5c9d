"""`quazzar openapi`: the documents of the two APIs, made from the handlers."""

import sys
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from quazzar.cli.arguments import USAGE_ERROR, Arguments
from quazzar.reference.routes import document_path

Realm: TypeAlias = Literal["instance", "panel"]


def run(arguments: Arguments) -> int:
    mode = arguments.settings().server.mode
    realms: tuple[Realm, ...] = ("instance", "panel") if mode == "all" else (mode,)
    if arguments.check:
        return _check(realms)
    if arguments.output is not None:
        for realm in realms:
            _write(realm, arguments.output)
        return 0
    if len(realms) > 1:
        sys.stderr.write("quazzar: there is one document per API; choose --mode=instance or --mode=panel\n")
        return USAGE_ERROR
    sys.stdout.write(generate(realms[0]).decode())
    return 0


def generate(realm: Realm) -> bytes:
    """The document as it is checked in: indented, ending in a newline, the same for the same handlers."""
    from quazzar.app import api_document  # noqa: PLC0415 - loads every handler

    return msgspec.json.format(msgspec.json.encode(api_document(realm), order="deterministic"), indent=2) + b"\n"


def _write(realm: Realm, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / document_path(realm).name).write_bytes(generate(realm))


def _check(realms: tuple[Realm, ...]) -> int:
    stale = [realm for realm in realms if not _is_current(realm)]
    if stale:
        sys.stderr.write(f"quazzar: the packaged document of {' and '.join(stale)} is old; run `make openapi`\n")
    return 1 if stale else 0


def _is_current(realm: Realm) -> bool:
    path = document_path(realm)
    return path.is_file() and path.read_bytes() == generate(realm)
