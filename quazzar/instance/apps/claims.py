"""What apps reserve that were installed by a release which did not write that down."""

import msgspec
import structlog

from quazzar.core.crypto import Keyring
from quazzar.core.db import Database
from quazzar.instance.apps import room_store
from quazzar.instance.apps.building import claim_of_app

log = structlog.get_logger(__name__)


class Claims:
    """Works out the claims that are missing, from what is stored of the apps; before anybody asks for room."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    async def start(self) -> None:
        """An app that this release can't read goes on reserving nothing; it says so when it is changed."""
        async with self._database.begin() as session:
            for app in await room_store.find_unclaimed(session):
                try:
                    claim = claim_of_app(app, self._keyring)
                except Exception as error:  # noqa: BLE001 - no app keeps the process from starting
                    log.warning("apps.claim_unknown", app_id=app.id, reason=type(error).__name__)
                else:
                    await room_store.set_claim(session, app.id, msgspec.to_builtins(claim))

    async def stop(self) -> None:
        return
