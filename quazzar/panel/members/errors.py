"""What can go wrong with members."""

from quazzar.core.errors import Conflict, NotFound


class MemberNotFound(NotFound):
    code = "member_not_found"
    message = "There is no such member or invitation"


class MemberExists(Conflict):
    code = "member_exists"
    message = "This address belongs to a member already"


class LastOwner(Conflict):
    code = "last_owner"
    message = "An organization needs an owner; make somebody else one first"


class MemberOfParent(Conflict):
    code = "member_of_parent"
    message = "Members of the parent organization have what `parent_access` lets them have"
