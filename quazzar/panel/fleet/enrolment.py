"""How a server joins the fleet: a registration token, a key of its own, and a certificate for it."""

from cryptography import x509
from sqlalchemy.ext.asyncio import AsyncSession

from quazzar.core.errors import Invalid
from quazzar.core.ids import new_id
from quazzar.core.records import Caller, audit, publish
from quazzar.link.messages import Enrol
from quazzar.link.tokens import TokenProblem, parse_token
from quazzar.panel.fleet import store
from quazzar.panel.fleet.authority import Authority, Issued, key_hash, read_request
from quazzar.panel.fleet.errors import InstanceKnown, TokenExpired, TokenRefused, TokenUsedUp
from quazzar.panel.fleet.events import InstanceEnrolled
from quazzar.panel.fleet.service import end_membership
from quazzar.panel.fleet.store import Found


def tenant_of(data: Enrol) -> str:
    """The tenant that the token is of. Raises `Invalid` for a text that is no token."""
    try:
        return parse_token(data.token).tenant_id
    except TokenProblem as problem:
        raise Invalid(details={"token": str(problem)}) from None


async def enrol(
    session: AsyncSession, tenant_id: str, authority: Authority, data: Enrol, *, address: str | None
) -> tuple[str, Issued]:
    """The instance's id and certificate; `session` is within the scope of the token's tenant.

    The machine that has joined by this token with this key gets the answer again, so a lost one burns no token. A known
    machine keeps its id when it comes with its own key. Raises `RequestRefused`, `TokenRefused`, `TokenExpired`,
    `TokenUsedUp`, `InstanceKnown`.
    """
    request = read_request(data.csr)
    digest = parse_token(data.token).digest
    known = await store.find_machine(session, tenant_id, data.facts.machine_id)
    own_key = known is not None and known.public_key_hash == key_hash(request)
    token = await store.get_token(session, tenant_id, digest)
    if token is None:
        raise TokenRefused
    again = known is not None and own_key and known.token_id == token.id
    if not again and await store.use_token(session, tenant_id, digest) is None:
        raise TokenExpired if token.expired else TokenUsedUp
    if known is not None and not own_key:
        raise InstanceKnown
    session.info["caller"] = Caller(kind="system", realm="panel", tenant_id=tenant_id, address=address)
    instance_id = known.id if known is not None else new_id("inst")
    issued = authority.issue_client(request, instance_id=instance_id, tenant_id=tenant_id)
    if known is None:
        await _add(session, tenant_id, instance_id, token, data, request, issued, address)
    else:
        # It may have been wiped: what was meant for it as it was is over.
        await end_membership(session, tenant_id, instance_id)
        await store.update_instance(
            session,
            tenant_id,
            instance_id,
            token_id=token.id,
            ip=address,
            certificate_serial=issued.serial,
            certificate_expires_at=issued.expires_at,
        )
    after = {"name": data.facts.name, "token_id": token.id, "certificate_serial": issued.serial}
    audit(session, "instance.enrol", subject=instance_id, after=after)
    publish(
        session,
        InstanceEnrolled(instance_id=instance_id, name=data.facts.name, again=known is not None),
        subject=instance_id,
    )
    return instance_id, issued


async def _add(
    session: AsyncSession,
    tenant_id: str,
    instance_id: str,
    token: Found,
    data: Enrol,
    request: x509.CertificateSigningRequest,
    issued: Issued,
    address: str | None,
) -> None:
    facts = data.facts
    await store.add_instance(
        session,
        tenant_id,
        id=instance_id,
        name=facts.name,
        status="offline",
        status_reason="It has joined and was not heard yet",
        tags=token.tags,
        group_id=token.group_id,
        token_id=token.id,
        version=facts.version,
        hostname=facts.hostname,
        os=facts.os,
        arch=facts.arch,
        cpu_cores=facts.cpu_cores,
        memory_bytes=facts.memory_bytes,
        disk_bytes=facts.disk_bytes,
        ip=address,
        url=facts.url,
        machine_id=facts.machine_id,
        public_key_hash=key_hash(request),
        certificate_serial=issued.serial,
        certificate_expires_at=issued.expires_at,
    )
