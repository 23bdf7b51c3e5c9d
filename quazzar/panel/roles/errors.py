"""What can go wrong with roles."""

from quazzar.core.errors import Conflict, NotFound


class RoleNotFound(NotFound):
    code = "role_not_found"
    message = "There is no such role"


class RoleNameTaken(Conflict):
    code = "role_name_taken"
    message = "There is a role of this name already"


class RoleBuiltIn(Conflict):
    code = "role_built_in"
    message = "The built-in roles stay as they are; make one of your own"


class RoleInUse(Conflict):
    code = "role_in_use"
    message = "Members or invitations have this role; give them another one first"


class TooManyRoles(Conflict):
    code = "role_limit"
    message = "There are as many roles as are allowed; delete one first"
