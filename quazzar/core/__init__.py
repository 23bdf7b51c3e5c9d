"""Mechanism that every domain stands on; knows no domain."""

import sys

# Where rich is installed, structlog loads it (5 MB) for tracebacks that show local variables, which no log of ours may
# do. This package is imported before any module that uses structlog, so the choice is made here.
if "structlog" not in sys.modules and "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
