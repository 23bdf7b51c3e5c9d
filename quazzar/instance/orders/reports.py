"""What the panel is told of an order, within the bounds of a message."""

from collections.abc import Sequence

from quazzar.core.errors import AppError
from quazzar.core.jobs.run import clean_line
from quazzar.link.messages import MOST_OUTPUT


def sentence(error: AppError) -> str:
    """The reason of a refusal, with what is wrong with each field."""
    # The field comes last: what stands behind `password:` looks like one, and would be masked.
    wrong = "; ".join(f"{text} ({name})" for name, text in error.details.items())
    return clean_line(f"{error.message}: {wrong}" if wrong else error.message)


def output_of(lines: Sequence[str]) -> str | None:
    """The end of a job's log in at most 64 KiB of UTF-8, cut at a line; None where it said nothing.

    Lines of logs have no control characters but tabs.
    """
    text = "\n".join(lines)
    packed = text.encode()
    if len(packed) > MOST_OUTPUT:
        text = packed[-MOST_OUTPUT:].decode(errors="ignore").partition("\n")[2]
    return text or None
