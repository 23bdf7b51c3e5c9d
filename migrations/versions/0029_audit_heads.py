"""Within a tenant's transaction only the head of the tenant's chain of audit records is there, to read and to write.

Whoever appends to a chain says in that statement whose it is.
"""

from alembic import op

revision = "0029"
down_revision = "0028"

# A chain is the realm, and on the panel `:` and the tenant behind it.
_VISIBLE = (
    "split_part(chain, ':', 2) = COALESCE(current_setting('app.tenant', true), '') "
    "OR current_setting('app.worker', true) = 'on'"
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    op.execute("ALTER TABLE audit_heads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY scope ON audit_heads USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
