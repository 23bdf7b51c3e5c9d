"""What goes wrong with the embedded PostgreSQL, told in one sentence."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


class PostgresError(Exception):
    """The embedded PostgreSQL can't be had; the text is a sentence for the console."""


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PostgresError(sentence(error, path)) from error


def sentence(error: OSError, path: Path) -> str:
    subject = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk that holds {path} is full."
        case errno.EROFS:
            return f"{subject} is on a read-only file system: choose another data folder with --data-dir."
        case errno.EACCES | errno.EPERM:
            return f"Permission is denied for {subject}: run Quazzar as its owner, or choose another --data-dir."
        case errno.ENOTDIR | errno.EEXIST:
            return f"{subject} is in the way: {path} has to be a folder."
        case errno.ENOLCK:
            return f"{path} is on a file system without locks, on which a database is not safe."
        case _:
            return f"{subject}: {error.strerror}."
