"""A process that owns an embedded PostgreSQL, for tests that kill it: `python -m tests.core.postgres_owner FOLDER`.

Prints one line of JSON when the server is up, or `{"error": …}`. Ends in order when its input ends.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import asyncpg

from quazzar.core import logs
from quazzar.core.postgres import EmbeddedPostgres, PostgresError


async def own(folder: Path) -> None:
    embedded = EmbeddedPostgres(folder)
    try:
        urls = await embedded.start()
    except PostgresError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    connection = await asyncpg.connect(urls.owner)
    user = await connection.fetchval("SELECT current_user")
    await connection.close()
    print(json.dumps({"pid": embedded.pid, "owner": urls.owner, "user": user, "me": os.getpid()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await embedded.stop()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(own(Path(sys.argv[1])))
