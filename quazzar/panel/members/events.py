"""What happens to the members of a tenant, as it is announced; the subject of each is the member or invitation."""

from quazzar.core.records import Event


class MemberInvited(Event):
    """Somebody was invited; `role` is a built-in one or the id of an own one."""

    type = "member.invited"
    invitation_id: str
    email: str
    role: str


class MemberJoined(Event):
    """An invitation was accepted."""

    type = "member.joined"
    member_id: str
    user_id: str
    role: str


class MemberUpdated(Event):
    """A member has another role, or is bound to other instances."""

    type = "member.updated"
    member_id: str
    user_id: str
    role: str


class MemberRemoved(Event):
    """A member has left or was removed, and is out."""

    type = "member.removed"
    member_id: str
    user_id: str
