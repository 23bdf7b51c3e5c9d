"""Client tenants, own roles, members who are bound to some instances, and those who come from the parent tenant."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0009"
down_revision = "0008"

_TENANT = "NULLIF(current_setting('app.tenant', true), '')"
_USER = "NULLIF(current_setting('app.user', true), '')"
_MINE = f"SELECT tenant_id FROM memberships WHERE user_id = {_USER}"  # noqa: S608


def _text(name: str, *, nullable: bool = False, **options: object) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=nullable, **options)


def _time(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.add_column("tenants", _text("kind", server_default=sa.text("'standard'")))
    op.add_column("tenants", _text("parent_id", nullable=True))
    op.add_column("tenants", _text("parent_access", server_default=sa.text("'none'")))
    op.create_check_constraint("ck_tenants_kind", "tenants", "kind IN ('standard', 'msp', 'client')")
    op.create_check_constraint("ck_tenants_parent", "tenants", "(kind = 'client') = (parent_id IS NOT NULL)")
    op.create_check_constraint(
        "ck_tenants_parent_access", "tenants", "parent_access IN ('none', 'viewer', 'operator', 'admin')"
    )
    op.create_foreign_key("fk_tenants_parent_id", "tenants", "tenants", ["parent_id"], ["id"])
    op.create_unique_constraint("uq_tenants_id_parent_id", "tenants", ["id", "parent_id"])
    op.create_index("ix_tenants_parent_id", "tenants", ["parent_id"])
    op.create_table(
        "roles",
        _text("tenant_id"),
        _text("id"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("permissions", ARRAY(sa.Text()), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_roles"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_roles_tenant_id_name"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_roles_tenant_id", ondelete="CASCADE"),
    )
    op.alter_column("memberships", "role", nullable=True)
    op.add_column("memberships", _text("role_id", nullable=True))
    op.add_column("memberships", _text("parent_id", nullable=True))
    op.add_column("memberships", sa.Column("resources", ARRAY(sa.Text()), nullable=True))
    op.create_check_constraint("ck_memberships_role", "memberships", "num_nonnulls(role, role_id, parent_id) = 1")
    op.create_foreign_key(
        "fk_memberships_role_id", "memberships", "roles", ["tenant_id", "role_id"], ["tenant_id", "id"]
    )
    # Who is here because of the parent tenant: it must be the parent, and whoever leaves that leaves this as well.
    op.create_foreign_key(
        "fk_memberships_parent", "memberships", "tenants", ["tenant_id", "parent_id"], ["id", "parent_id"]
    )
    op.create_foreign_key(
        "fk_memberships_parent_member",
        "memberships",
        "memberships",
        ["parent_id", "user_id"],
        ["tenant_id", "user_id"],
        ondelete="CASCADE",
    )
    op.create_index("ix_memberships_role_id", "memberships", ["tenant_id", "role_id"])
    op.create_index("ix_memberships_parent_id", "memberships", ["parent_id", "user_id"])

    # Endpoints of a tenant end with it.
    op.create_foreign_key("fk_webhooks_tenant_id", "webhooks", "tenants", ["tenant_id"], ["id"], ondelete="CASCADE")

    op.execute("ALTER TABLE roles ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant ON roles USING (tenant_id = {_TENANT}) WITH CHECK (tenant_id = {_TENANT})"
    )
    op.execute(f"CREATE POLICY own ON roles FOR SELECT USING (tenant_id IN ({_MINE}))")
    op.execute(f"CREATE POLICY clients ON tenants FOR SELECT USING (parent_id = {_TENANT})")
