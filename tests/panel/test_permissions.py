"""What the built-in roles allow, and that handlers only ask for what can be given."""

from quazzar.core.auth import Guard
from quazzar.panel.tenants.permissions import BUILT_IN, PERMISSIONS, common, is_within, permissions_of
from tests.test_architecture import operations


def test_every_scope_that_the_panel_asks_for_is_a_permission() -> None:
    for name, handler in operations("panel"):
        for guard in handler.resolve_guards():
            if isinstance(guard, Guard) and guard.scope is not None:
                assert guard.scope in PERMISSIONS, f"{name} asks for {guard.scope}, which no role can have"


def test_the_built_in_roles_are_made_of_permissions() -> None:
    assert set(BUILT_IN) == {"owner", "admin", "operator", "viewer", "billing"}
    assert permissions_of("owner") == {"*"}
    for role, permissions in BUILT_IN.items():
        assert role == "owner" or permissions <= PERMISSIONS
    assert all(name.endswith(":read") for name in permissions_of("viewer"))
    assert permissions_of("unknown") == frozenset()


def test_nobody_hands_on_more_than_they_have() -> None:
    owner, admin, operator = (permissions_of(role) for role in ("owner", "admin", "operator"))
    assert is_within(owner, owner)
    assert is_within(admin, owner)
    assert not is_within(owner, admin)
    assert is_within(operator, admin)
    assert not is_within(admin, operator)
    assert is_within(frozenset({"fleet:operate"}), frozenset({"fleet:write"}))
    assert not is_within(frozenset({"fleet:write"}), frozenset({"fleet:operate"}))


def test_what_two_have_in_common() -> None:
    assert common(permissions_of("owner"), permissions_of("viewer")) == permissions_of("viewer")
    assert common(frozenset({"fleet:write"}), frozenset({"fleet:operate", "jobs:read"})) == {"fleet:operate"}
    assert common(permissions_of("billing"), permissions_of("operator")) == {"tenant:read", "members:read"}
