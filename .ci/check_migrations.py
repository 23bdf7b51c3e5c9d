"""Are the migrations and the models one schema? Asks Alembic, on a database that lives as long as the question."""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from quazzar.core.migrations import upgrade  # noqa: E402 - the checkout is not installed
from quazzar.core.postgres import EmbeddedPostgres  # noqa: E402


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="quazzar-check-") as folder:
        postgres = EmbeddedPostgres(Path(folder))
        urls = await postgres.start()
        try:
            await upgrade(urls.owner)
            check = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "quazzar.core.migrations", "--check"],
                cwd=ROOT,
                env=os.environ | {"QUAZZAR_MIGRATION_URL": urls.owner},
                check=False,
                capture_output=True,
                text=True,
            )
        finally:
            await postgres.stop()
    lines = (check.stdout + check.stderr).strip().splitlines()
    verdict = lines[-1] if lines else "The migrations give the schema that the models describe"
    sys.stdout.write(verdict.replace(", ('", ",\n  ('") + "\n")
    return check.returncode


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
