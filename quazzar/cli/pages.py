"""Pages of the documentation that are made from the code."""

import sys

from quazzar.cli.arguments import Arguments


def put(arguments: Arguments, page: str, *, target: str) -> int:
    """Writes the page to `--output`, else to standard output; with `--check` 1 when that file is another, and a
    sentence that names the `make` target which renews it.
    """
    if arguments.output is None:
        sys.stdout.write(page)
        return 0
    if not arguments.check:
        arguments.output.write_text(page, encoding="utf-8")
        return 0
    if arguments.output.is_file() and arguments.output.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"quazzar: {arguments.output} is old; run `make {target}`\n")
    return 1
