"""What `doctor` looks at in Postgres. Nothing here needs more rights than the saver's own user has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached.cli.checks.findings import Check, Finding, Level, PostgresTarget
from langgraph_checkpoint_cached.cli.output import span
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.schema import POSTGRES_VERSION_MIN
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS

RIGHTS: Mapping[str, tuple[str, ...]] = {
    "checkpoint_migrations": ("SELECT",),
    "checkpoints": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "checkpoint_blobs": ("SELECT", "INSERT", "DELETE"),
    "checkpoint_writes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    STALE_THREADS: ("SELECT", "INSERT", "UPDATE", "DELETE"),
    LEASES: ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
OWN_TABLES = (STALE_THREADS, LEASES)
INDEXES = ("checkpoints_thread_id_idx", "checkpoint_blobs_thread_id_idx", "checkpoint_writes_thread_id_idx")
POOLER_ATTEMPTS_MAX = 5
CONNECTIONS_SHARE = 0.8
DEAD_SHARE, DEAD_ROWS_MIN = 0.3, 10_000
STALE_THREAD_SECONDS_MAX = 60.0
SETUP = "run `await saver.setup()` once, as a role that may create tables"


async def version(patient: PostgresTarget) -> list[Finding]:
    """Whether it is recent enough, and takes writes that last."""
    number = patient.conn.info.server_version
    row = await patient.row(
        "select current_setting('server_version') as text, pg_is_in_recovery() as standby,"
        " current_setting('default_transaction_read_only') as read_only,"
        " current_setting('synchronous_commit') as synchronous, current_schema() as schema"
    )
    found = [Finding("postgres version", "ok", f"PostgreSQL {row['text']}, schema {row['schema']}")]
    if number < POSTGRES_VERSION_MIN:
        found = [Finding("postgres version", "problem", f"PostgreSQL {row['text']}", "12 or later is needed")]
    if row["standby"] or row["read_only"] == "on":
        says = "it is a standby" if row["standby"] else "transactions are read-only by default"
        found.append(Finding("postgres writes", "problem", says, "give the address of the primary"))
    elif row["synchronous"] == "off":
        advice = "a crash loses the last writes that were confirmed: set synchronous_commit = on for this role"
        found.append(Finding("postgres writes", "warning", "synchronous_commit is off", advice))
    else:
        found.append(Finding("postgres writes", "ok", f"a primary, synchronous_commit {row['synchronous']}"))
    return found


async def pooler(patient: PostgresTarget) -> list[Finding]:
    """Whether a pooler stands in between, and in which mode.

    A pooler answers a connection itself, with a process id that is not the server's. If two connections find
    themselves in one process of the server, it changes hands between their transactions.
    """
    pid = "select pg_backend_pid() as pid"
    if (await patient.row(pid))["pid"] == patient.conn.info.backend_pid:
        return [Finding("pooler", "ok", "none: prepared statements are safe")]
    async with AsyncExitStack() as stack:
        other = PostgresTarget(patient.servers, await stack.enter_async_context(await patient.servers.postgres()))
        for _ in range(POOLER_ATTEMPTS_MAX):
            if (await patient.row(pid))["pid"] == (await other.row(pid))["pid"]:
                advice = (
                    "from_conn_string sees to it; for a pool of your own pass prepare_threshold=None, unless it "
                    "is PgBouncer 1.21 or later with max_prepared_statements"
                )
                return [
                    Finding("pooler", "ok", "one in transaction mode: prepared statements are not safe", advice)
                ]
    return [Finding("pooler", "ok", "one in session mode, as far as can be seen: prepared statements are safe")]


async def tables(patient: PostgresTarget) -> list[Finding]:
    """Whether all tables are there, migrated as far as this package expects."""
    missing = [t for t in RIGHTS if (await patient.row("select to_regclass(%s) as t", (t,)))["t"] is None]
    found = []
    if upstream := [table for table in missing if table not in OWN_TABLES]:
        found.append(Finding("tables", "problem", f"missing: {', '.join(upstream)}", SETUP))
    if STALE_THREADS in missing:
        advice = f"{SETUP}; until then, what a process writes without Redis is not known to the others"
        found.append(Finding("tables", "problem", f"missing: {STALE_THREADS}", advice))
    if LEASES in missing:
        level: Level = "problem" if patient.writes_behind else "warning"
        found.append(
            Finding("tables", level, f"missing: {LEASES}", f"{SETUP}; until then nobody may write behind")
        )
    if "checkpoint_migrations" in missing:
        return found
    if not (await patient.row("select has_table_privilege('checkpoint_migrations', 'SELECT') as may"))["may"]:
        return [*found, Finding("tables", "unknown", "the version cannot be read", "see postgres rights")]
    at = (await patient.row("select max(v) as v from checkpoint_migrations"))["v"]
    expected = len(BasePostgresSaver.MIGRATIONS) - 1
    if at is None or at < expected:
        found.append(Finding("tables", "problem", f"at version {at}, not {expected}", SETUP))
    elif at > expected:
        advice = "this package comes with an older langgraph-checkpoint-postgres than some process uses: upgrade"
        found.append(Finding("tables", "warning", f"at version {at}, newer than {expected}", advice))
    return found or [Finding("tables", "ok", f"all are there, at version {at}")]


async def rights(patient: PostgresTarget) -> list[Finding]:
    """Whether this role may do what the savers do."""
    wanting: list[str] = []
    there = False
    for table, needed in RIGHTS.items():
        row = await patient.row(
            "select to_regclass(%s) is null as missing, current_user as role,"
            " array(select r from unnest(%s::text[]) r where not has_table_privilege(to_regclass(%s)::oid, r))"
            " as lacks",
            (table, list(needed), table),
        )
        there |= not row["missing"]
        if not row["missing"] and row["lacks"]:
            wanting.append(f"GRANT {', '.join(row['lacks'])} ON {table} TO {row['role']}")
    if wanting:
        return [Finding("postgres rights", "problem", f"{len(wanting)} tables lack some", "; ".join(wanting))]
    return [Finding("postgres rights", "ok", "all that are needed")] if there else []


async def indexes(patient: PostgresTarget) -> list[Finding]:
    """Whether every index of the tables is there and used."""
    rows = await patient.conn.execute(
        "select i.indexrelid::regclass::text as name, c.relname as plain, i.indisvalid and i.indisready as valid"
        " from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where i.indrelid = any(array(select to_regclass(t)::oid from unnest(%s::text[]) t))",
        (list(RIGHTS),),
    )
    found, there = [], set()
    for row in await rows.fetchall():
        there.add(row["plain"])
        if not row["valid"]:
            advice = f"its creation was interrupted: REINDEX INDEX CONCURRENTLY {row['name']}"
            found.append(Finding("indexes", "problem", f"{row['name']} is invalid, and not used", advice))
    exists = (await patient.row("select to_regclass('checkpoints') is not null as there"))["there"]
    for name in sorted(set(INDEXES) - there) if exists else ():
        advice = f"CREATE INDEX CONCURRENTLY {name} ON {name.removesuffix('_thread_id_idx')} (thread_id)"
        found.append(Finding("indexes", "warning", f"{name} is missing: deletes are slow", advice))
    return found or ([Finding("indexes", "ok", f"{len(there)}, all valid")] if there else [])


async def vacuum(patient: PostgresTarget) -> list[Finding]:
    """Whether dead rows are cleared away."""
    rows = await patient.conn.execute(
        "select relname, n_live_tup as live, n_dead_tup as dead from pg_stat_user_tables"
        " where relid = any(array(select to_regclass(t)::oid from unnest(%s::text[]) t))",
        (list(RIGHTS),),
    )
    found = []
    for row in await rows.fetchall():
        if row["dead"] > DEAD_ROWS_MIN and row["dead"] > DEAD_SHARE * (row["live"] + row["dead"]):
            says = f"{row['relname']}: {row['dead']:,} dead rows beside {row['live']:,}"
            advice = f"VACUUM (ANALYZE) {row['relname']}, and look why autovacuum does not: a long transaction?"
            found.append(Finding("dead rows", "warning", says, advice))
    return found or [Finding("dead rows", "ok", "few")]


async def connections(patient: PostgresTarget) -> list[Finding]:
    """Whether there are connections left."""
    row = await patient.row(
        "select count(*) filter (where backend_type = 'client backend' or backend_type is null) as used,"
        " current_setting('max_connections')::int as most from pg_stat_activity"
    )
    says = f"{row['used']} of {row['most']} used"
    level: Level = "ok" if row["used"] < CONNECTIONS_SHARE * row["most"] else "warning"
    advice = "" if level == "ok" else "put PgBouncer in between, or make pool_max_size smaller"
    return [Finding("connections", level, says, advice)]


async def stale_threads(patient: PostgresTarget) -> list[Finding]:
    """Whether threads wait to be invalidated in Redis, and for how long."""
    if (await patient.row("select to_regclass(%s) as t", (STALE_THREADS,)))["t"] is None:
        return []  # `tables` says it
    row = await patient.row(
        "select count(*) as many, extract(epoch from now() - min(since))::float8 as oldest"
        " from checkpoint_cache_stale_threads where prefix = %s",
        (patient.servers.prefix,),
    )
    if not row["many"]:
        return [Finding("stale_threads", "ok", "none: no thread waits to be invalidated in Redis")]
    says = f"{row['many']:,} threads, the oldest for {span(row['oldest'])}"
    if row["oldest"] < STALE_THREAD_SECONDS_MAX:
        advice = "a process has just written without Redis; the others invalidate them within a second"
        return [Finding("stale_threads", "warning", says, advice)]
    advice = (
        "nobody invalidates them: no process of this prefix reaches both servers, or none runs. They are "
        "invalidated when one starts, or by `langgraph-cached verify`"
    )
    return [Finding("stale_threads", "warning", says, advice)]


POSTGRES_CHECKS: tuple[Check[PostgresTarget], ...] = (
    version,
    pooler,
    tables,
    rights,
    indexes,
    vacuum,
    connections,
    stale_threads,
)
