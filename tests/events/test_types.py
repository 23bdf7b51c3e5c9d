"""Every type that people may subscribe to exists, with words and a schema."""

import quazzar.app  # noqa: F401 - loads every domain, and with it every event
from quazzar.cli.events import schema_of
from quazzar.core.records import event_types

PROMISED = [
    "app.installed",
    "app.started",
    "app.stopped",
    "app.restarted",
    "app.crashed",
    "app.updated",
    "app.update_failed",
    "app.uninstalled",
    "backup.started",
    "backup.completed",
    "backup.failed",
    "backup.restored",
    "domain.added",
    "domain.verified",
    "certificate.issued",
    "certificate.renewed",
    "certificate.expiring",
    "certificate.failed",
    "vpn.peer_added",
    "vpn.peer_removed",
    "alert.fired",
    "alert.resolved",
    "auth.login",
    "auth.login_failed",
    "auth.api_key_created",
    "system.started",
    "system.disk_low",
    "webhook.test",
    "webhook.disabled",
]


def test_every_promised_type_is_there() -> None:
    assert set(PROMISED) <= set(event_types())


def test_every_type_is_described() -> None:
    for name, kind in event_types().items():
        if not kind.__module__.startswith("quazzar."):
            continue
        assert kind.__doc__, name
        schema = schema_of(kind)
        assert schema["type"] == "object", name
        assert schema["properties"], name
