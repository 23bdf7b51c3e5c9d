"""The one door: serves, or runs a command; every failure is one sentence and an exit code."""

import sys
from collections.abc import Sequence

from quazzar.cli.arguments import USAGE_ERROR, parse
from quazzar.core.memory import keep_little
from quazzar.settings import SettingsError

FAILED = 1
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 could not, 2 misunderstood (command line or settings), 130 interrupted."""
    arguments = parse(argv)
    try:
        return arguments.run()
    except SettingsError as error:
        for problem in error.problems:
            _say(str(problem))
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; Python would complain again while closing it.
        sys.stderr.close()
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last door: a person gets a sentence, the log the rest
        return _explain(error)


def start() -> int:
    """`main` of a process that is nothing else; its memory is kept small, which would not do inside another program."""
    keep_little()
    return main()


def _explain(error: Exception) -> int:
    from quazzar.core.errors import AppError  # noqa: PLC0415 - only on the way out
    from quazzar.core.logs import get_logger, redact  # noqa: PLC0415
    from quazzar.core.postgres import PostgresError  # noqa: PLC0415
    from quazzar.core.server import StartFailed  # noqa: PLC0415
    from quazzar.process import StartProblem  # noqa: PLC0415

    match error:
        case StartProblem() | StartFailed() | PostgresError():
            _say(str(error))
        case AppError():
            _say("; ".join(error.details.values()) or error.message)
        case OSError() if error.strerror:
            place = f"{error.filename}: " if error.filename else ""
            _say(f"{place}{error.strerror}")
        case _:
            get_logger("quazzar").error("Stopped by an error of its own", exc_info=error)
            _say(f"stopped by an error of its own ({type(error).__name__}: {redact(str(error))[:200]})")
    return FAILED


def _say(sentence: str) -> None:
    sys.stderr.write(f"quazzar: {sentence}\n")


if __name__ == "__main__":
    sys.exit(start())
