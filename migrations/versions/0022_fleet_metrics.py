"""What instances measure: samples and their sums in daily partitions, and what an instance keeps while it is cut off."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0022"
down_revision = "0021"

_VISIBLE = (
    "tenant_id = NULLIF(current_setting('app.tenant', true), '') OR current_setting('app.worker', true) = 'on'"
)

# The app's role owns nothing, so the one thing that it may do to these tables beyond reading and writing is here: make
# the partitions of some days, and drop those of days before `oldest`. Partitions are read through their table only,
# whose row-level security they do not have themselves. What the role may do to one itself is to add samples: COPY is
# how heartbeats are written, and it does not know row-level security.
_KEEP = """
CREATE FUNCTION fleet_keep_partitions(part text, oldest date, first date, last date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    day date;
    child text;
BEGIN
    IF part NOT IN ('fleet_samples', 'fleet_five_minutes', 'fleet_hours') THEN
        RAISE EXCEPTION 'There are no partitions of %', part;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('fleet_keep_partitions'));
    FOR day IN SELECT generate_series(first, last, interval '1 day')::date LOOP
        child := part || to_char(day, '_YYYYMMDD');
        IF to_regclass('public.' || child) IS NULL THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING STORAGE)', child, part);
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'quazzar_app') THEN
                EXECUTE format('REVOKE ALL ON public.%I FROM quazzar_app', child);
                IF part = 'fleet_samples' THEN
                    EXECUTE format('GRANT INSERT ON public.%I TO quazzar_app', child);
                END IF;
            END IF;
            EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                part, child, day || ' 00:00+00', day + 1 || ' 00:00+00');
        END IF;
    END LOOP;
    FOR child IN
        SELECT c.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
        WHERE h.inhparent = to_regclass('public.' || part) AND right(c.relname, 8) < to_char(oldest, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE public.%I', child);
    END LOOP;
END $$
"""


def _id(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def _at() -> sa.Column:
    return sa.Column("at", sa.DateTime(timezone=True), nullable=False)


def _doubles(name: str) -> sa.Column:
    return sa.Column(name, ARRAY(sa.Float(53)), nullable=False)


def _history(table: str, *values: sa.Column) -> None:
    op.create_table(
        table,
        _id("tenant_id"),
        _id("instance_id"),
        _id("app_id"),
        _at(),
        *values,
        sa.PrimaryKeyConstraint("instance_id", "app_id", "at", name=f"pk_{table}"),
        postgresql_partition_by="RANGE (at)",
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '1s'")
    _history("fleet_samples", _doubles("measured"))
    for table in ("fleet_five_minutes", "fleet_hours"):
        sums = (_doubles("minimum"), _doubles("average"), _doubles("maximum"))
        _history(table, *sums, sa.Column("counts", ARRAY(sa.Integer()), nullable=False))
    # Rows come in the order of their time, so a few bytes for each stretch of pages find those of five minutes or an hour.
    for table in ("fleet_samples", "fleet_five_minutes"):
        op.create_index(
            f"ix_{table}_at",
            table,
            ["at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on", "pages_per_range": "32"},
        )
    op.create_table(
        "fleet_late",
        _id("tenant_id"),
        _id("instance_id"),
        _at(),
        sa.PrimaryKeyConstraint("instance_id", "at", name="pk_fleet_late"),
    )
    op.create_table(
        "fleet_rollups",
        sa.Column("step_seconds", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("done_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("step_seconds", name="pk_fleet_rollups"),
    )
    for table in ("fleet_samples", "fleet_five_minutes", "fleet_hours", "fleet_late"):
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY {table}_scope ON {table} USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO quazzar_app")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON fleet_rollups TO quazzar_app")
    op.execute(_KEEP)
    op.execute("REVOKE ALL ON FUNCTION fleet_keep_partitions FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION fleet_keep_partitions TO quazzar_app")
    for table in ("fleet_samples", "fleet_five_minutes", "fleet_hours"):
        op.execute(
            f"SELECT fleet_keep_partitions('{table}', 'epoch', d - 2, d + 7) "
            "FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS d) AS today"
        )
    op.create_table(
        "panel_spool",
        sa.Column("number", sa.BigInteger(), sa.Identity(), nullable=False),
        _id("instance_id"),
        _at(),
        sa.Column("sample", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_panel_spool"),
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON panel_spool TO quazzar_app")
