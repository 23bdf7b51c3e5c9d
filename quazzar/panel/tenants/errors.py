"""What can go wrong with tenants and what is given within them."""

from quazzar.core.errors import Conflict, Forbidden, NotFound


class TenantNotFound(NotFound):
    code = "tenant_not_found"
    message = "There is no such organization"


class TooManyTenants(Conflict):
    code = "tenant_limit"
    message = "You own as many organizations as are allowed; delete one first"


class NotAnMsp(Conflict):
    code = "not_an_msp"
    message = "Only an organization of the kind msp has client organizations; change its kind first"


class TenantHasClients(Conflict):
    code = "tenant_has_clients"
    message = "There are client organizations below this one; delete them first"


class TenantInUse(Conflict):
    code = "tenant_in_use"
    message = "There are still servers in this organization; remove them first"


class ParentAccessForeign(Forbidden):
    code = "parent_access_foreign"
    message = "What the parent may do in a client organization is for the client's own members to say"


class PermissionExceeded(Forbidden):
    code = "scope_exceeded"
    message = "You can't give or take more than you are allowed yourself"
