"""Roles, and the tables of the core: idempotent answers and shared rate limits."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    # The app works under a role that owns nothing. Where this user may not make roles (a managed database), an
    # administrator makes it beforehand; doctor says so.
    op.execute(
        """
        DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'quazzar_app') THEN
                CREATE ROLE quazzar_app NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
            END IF;
            IF NOT pg_has_role(current_user, 'quazzar_app', 'MEMBER') THEN
                EXECUTE format('GRANT quazzar_app TO %I', current_user);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END $$
        """
    )
    op.execute("GRANT USAGE ON SCHEMA public TO quazzar_app")
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO quazzar_app"
    )
    op.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO quazzar_app")
    op.execute("GRANT SELECT ON alembic_version TO quazzar_app")
    op.create_table(
        "idempotent_answers",
        sa.Column("scope", sa.Text(collation="C"), primary_key=True),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.create_index("ix_idempotent_answers_created_at", "idempotent_answers", ["created_at"])
    op.execute(
        "CREATE UNLOGGED TABLE rate_limits (key text COLLATE \"C\" NOT NULL, window_start bigint NOT NULL, "
        "count integer NOT NULL, PRIMARY KEY (key, window_start))"
    )
