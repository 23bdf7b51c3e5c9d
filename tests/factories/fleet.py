"""Instances of a fleet as rows, and the instance of the running app linked to its own panel."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, insert

from quazzar.core.db import Database
from quazzar.core.ids import new_id
from quazzar.instance.enrolment.keys import signing_request
from quazzar.instance.enrolment.models import PanelLink
from quazzar.link.messages import Enrol, Facts
from quazzar.link.tokens import new_token
from quazzar.panel.fleet.authority import Authority, read_request
from quazzar.panel.fleet.enrolment import enrol
from quazzar.panel.fleet.models import FleetToken


def facts(**values: Any) -> Facts:
    known: dict[str, Any] = {
        "name": "berlin-1",
        "hostname": "berlin-1",
        "machine_id": uuid.uuid4().hex * 2,
        "version": "0.1.0",
        "os": "Linux",
        "arch": "x86_64",
        "cpu_cores": 1,
        "memory_bytes": 1,
        "disk_bytes": 1,
    }
    return Facts(**known | values)


async def make_instance(database: Database, authority: Authority, tenant_id: str, **values: Any) -> str:
    """An instance that has joined by a token of its own; gives its id."""
    token = new_token(host="panel.example.com", port=8443, fingerprint=authority.fingerprint, tenant_id=tenant_id)
    data = Enrol(
        token=token.encode(), csr=signing_request(ec.generate_private_key(ec.SECP256R1())), facts=facts(**values)
    )
    async with database.begin(tenant=tenant_id) as session:
        row = insert(FleetToken).values(
            id=new_id("tok"),
            tenant_id=tenant_id,
            name="test",
            token_hash=token.digest,
            max_uses=1,
            tags=[],
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        await session.execute(row)
        instance_id, _ = await enrol(session, tenant_id, authority, data, address="192.0.2.7")
    return instance_id


async def link(database: Database, authority: Authority, instance_id: str, tenant_id: str, **values: Any) -> None:
    """Make the app's own instance be this one; nothing is dialled."""
    request = read_request(signing_request(ec.generate_private_key(ec.SECP256R1())))
    certificate = authority.issue_client(request, instance_id=instance_id, tenant_id=tenant_id).certificate
    known: dict[str, Any] = {
        "id": 1,
        "instance_id": instance_id,
        "panel_url": "http://localhost",
        "host": "127.0.0.1",
        "port": 1,
        "ca_certificate": authority.pem,
        "certificate": certificate,
        "signing_key": authority.signing_public_key,
    }
    async with database.begin() as session:
        await session.execute(delete(PanelLink))
        await session.execute(insert(PanelLink).values(**known | values))
