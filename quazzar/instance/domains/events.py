"""What domains and certificates announce; the subject is the domain or the certificate."""

from datetime import datetime

from quazzar.core.records import Event


class DomainAdded(Event):
    """A host name leads to an app from now on."""

    type = "domain.added"
    domain_id: str
    hostname: str
    app_id: str | None


class DomainVerified(Event):
    """The host name points to this server."""

    type = "domain.verified"
    domain_id: str
    hostname: str


class CertificateIssued(Event):
    """A host name has its first certificate, or one in place of another that was brought along."""

    type = "certificate.issued"
    certificate_id: str
    hostnames: list[str]
    issuer: str
    not_after: datetime


class CertificateRenewed(Event):
    """A certificate has taken the place of the one before it."""

    type = "certificate.renewed"
    certificate_id: str
    hostnames: list[str]
    issuer: str
    not_after: datetime


class CertificateExpiring(Event):
    """A certificate ends soon and has not been renewed."""

    type = "certificate.expiring"
    certificate_id: str
    hostnames: list[str]
    not_after: datetime


class CertificateFailed(Event):
    """A certificate could not be had; it is tried again."""

    type = "certificate.failed"
    certificate_id: str | None
    hostnames: list[str]
    reason: str
