"""Why there is no token for an instance."""

from quazzar.core.errors import Conflict


class InstanceUrlUnknown(Conflict):
    code = "instance_url_unknown"
    message = "The instance has not said where people find it; set server.public_url there"


class InstanceGone(Conflict):
    code = "instance_revoked"
    message = "The instance was revoked"
