"""Within a tenant's transaction only the tenant's rows are there, and those of the process itself are not.

Who works in no tenant sees the rows of none. What is written may still be nobody's: a mail that a tenant's change sends
is a job of the process.
"""

from alembic import op

revision = "0028"
down_revision = "0027"

_VISIBLE = (
    "tenant_id IS NOT DISTINCT FROM NULLIF(current_setting('app.tenant', true), '') "
    "OR current_setting('app.worker', true) = 'on'"
)
_POLICIES = (
    ("jobs", "jobs_scope"),
    ("audit_records", "audit_records_scope"),
    ("events", "events_scope"),
    ("webhooks", "webhooks_scope"),
    ("webhook_deliveries", "webhook_deliveries_scope"),
    ("invitations", "scope"),
    ("notification_channels", "scope"),
    ("api_keys", "scope"),
)
# As the first release has it, an instance's sessions are everybody's; they are of no tenant.
_SESSIONS = "tenant_id IS NOT DISTINCT FROM NULLIF(current_setting('app.tenant', true), '')"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    for table, policy in _POLICIES:
        op.execute(f"ALTER POLICY {policy} ON {table} USING ({_VISIBLE})")
    op.execute(f"ALTER POLICY tenant ON sessions USING ({_SESSIONS}) WITH CHECK ({_SESSIONS})")
