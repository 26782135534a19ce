"""Checks of Postgres. None needs more rights than the saver's own user has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached.cli.checks.findings import Check, Finding, Level, PostgresTarget
from langgraph_checkpoint_cached.cli.output import span
from langgraph_checkpoint_cached.stores.postgres import server_check
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES
from langgraph_checkpoint_cached.stores.postgres.processes import TABLE as PROCESSES
from langgraph_checkpoint_cached.stores.postgres.schema import OWN_TABLES
from langgraph_checkpoint_cached.stores.postgres.server_check import POSTGRES_VERSION_MIN
from langgraph_checkpoint_cached.stores.postgres.stale_threads import TABLE as STALE_THREADS

RIGHTS: Mapping[str, tuple[str, ...]] = {
    "checkpoint_migrations": ("SELECT",),
    "checkpoints": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "checkpoint_blobs": ("SELECT", "INSERT", "DELETE"),
    "checkpoint_writes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    STALE_THREADS: ("SELECT", "INSERT", "UPDATE", "DELETE"),
    LEASES: ("SELECT", "INSERT", "UPDATE", "DELETE"),
    PROCESSES: ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
INDEXES = ("checkpoints_thread_id_idx", "checkpoint_blobs_thread_id_idx", "checkpoint_writes_thread_id_idx")
POOLER_ATTEMPTS_MAX = 5
CONNECTIONS_SHARE = 0.8
DEAD_SHARE, DEAD_ROWS_MIN = 0.3, 10_000
STALE_THREAD_SECONDS_MAX = 60.0
SETUP = "run `await saver.setup()` once, as a role that may create tables"


async def version(target: PostgresTarget) -> list[Finding]:
    """Check that Postgres is recent enough, takes writes that are durable, and encodes text."""
    number = target.conn.info.server_version
    row = await target.row(
        "select current_setting('server_version') as text, pg_is_in_recovery() as standby,"
        " current_setting('default_transaction_read_only') as read_only,"
        " current_setting('synchronous_commit') as synchronous, current_schema() as schema"
    )
    found = [Finding("postgres version", "ok", f"PostgreSQL {row['text']}, schema {row['schema']}")]
    if number < POSTGRES_VERSION_MIN:
        found = [Finding("postgres version", "problem", f"PostgreSQL {row['text']}", "12 or later is needed")]
    if row["standby"] or row["read_only"] == "on":
        message = "it is a standby" if row["standby"] else "transactions are read-only by default"
        found.append(Finding("postgres writes", "problem", message, "use the address of the primary"))
    elif row["synchronous"] == "off":
        found.append(Finding("postgres writes", "warning", server_check.NOT_DURABLE, server_check.DURABLE_ADVICE))
    else:
        found.append(Finding("postgres writes", "ok", f"a primary, synchronous_commit {row['synchronous']}"))
    if server_check.lacks_encoding(target.conn):
        found.append(Finding("encoding", "problem", server_check.NO_ENCODING, server_check.ENCODING_ADVICE))
    return found


async def pooler(target: PostgresTarget) -> list[Finding]:
    """Find out whether there is a pooler in between, and in which mode.

    A pooler accepts connections itself, with a process id that is not the server's. If two connections are served
    by one process of the server, the pooler changes it between transactions.
    """
    pid = "select pg_backend_pid() as pid"
    if (await target.row(pid))["pid"] == target.conn.info.backend_pid:
        return [Finding("pooler", "ok", "none: prepared statements are safe")]
    async with AsyncExitStack() as stack:

        async def connect() -> PostgresTarget:
            connection = await stack.enter_async_context(await target.options.connect_postgres())
            return PostgresTarget(target.options, connection)

        if not await server_check.has_transactions((await connect()).conn):
            return [Finding("pooler", "problem", server_check.NO_TRANSACTIONS, server_check.TRANSACTION_ADVICE)]
        other = await connect()
        for _ in range(POOLER_ATTEMPTS_MAX):
            if (await target.row(pid))["pid"] == (await other.row(pid))["pid"]:
                advice = (
                    "from_conn_string finds out by itself; for a pool of your own pass prepare_threshold=None, "
                    "unless the pooler is PgBouncer 1.21 or later with max_prepared_statements"
                )
                return [
                    Finding("pooler", "ok", "one in transaction mode: prepared statements are not safe", advice)
                ]
    return [Finding("pooler", "ok", "one in session mode, as far as can be seen: prepared statements are safe")]


async def tables(target: PostgresTarget) -> list[Finding]:
    """Check that all tables exist, migrated as far as this package expects."""
    missing = [t for t in RIGHTS if (await target.row("select to_regclass(%s) as t", (t,)))["t"] is None]
    found = []
    if upstream := [table for table in missing if table not in OWN_TABLES]:
        found.append(Finding("tables", "problem", f"missing: {', '.join(upstream)}", SETUP))
    if STALE_THREADS in missing:
        advice = f"{SETUP}; until then, other processes do not learn of what a process writes without Redis"
        found.append(Finding("tables", "problem", f"missing: {STALE_THREADS}", advice))
    if PROCESSES in missing:
        advice = (
            f"{SETUP}; until then a process that stands still, or that another Redis answers, may serve old state"
        )
        found.append(Finding("tables", "problem", f"missing: {PROCESSES}", advice))
    if LEASES in missing:
        level: Level = "problem" if target.writes_behind else "warning"
        found.append(
            Finding("tables", level, f"missing: {LEASES}", f"{SETUP}; until then no process writes behind")
        )
    if "checkpoint_migrations" in missing:
        return found
    if not (await target.row("select has_table_privilege('checkpoint_migrations', 'SELECT') as may"))["may"]:
        return [*found, Finding("tables", "unknown", "the version cannot be read", "see postgres rights")]
    at = (await target.row("select max(v) as v from checkpoint_migrations"))["v"]
    expected = len(BasePostgresSaver.MIGRATIONS) - 1
    if at is None or at < expected:
        found.append(Finding("tables", "problem", f"at version {at}, not {expected}", SETUP))
    elif at > expected:
        advice = "some process uses a newer langgraph-checkpoint-postgres than is installed here: upgrade"
        found.append(Finding("tables", "warning", f"at version {at}, newer than {expected}", advice))
    return found or [Finding("tables", "ok", f"all exist, at version {at}")]


async def rights(target: PostgresTarget) -> list[Finding]:
    """Check that this role may do what the savers do."""
    missing: list[str] = []
    there = False
    for table, needed in RIGHTS.items():
        row = await target.row(
            "select to_regclass(%s) is null as missing, current_user as role,"
            " array(select r from unnest(%s::text[]) r where not has_table_privilege(to_regclass(%s)::oid, r))"
            " as lacks",
            (table, list(needed), table),
        )
        there |= not row["missing"]
        if not row["missing"] and row["lacks"]:
            missing.append(f"GRANT {', '.join(row['lacks'])} ON {table} TO {row['role']}")
    if missing:
        return [Finding("postgres rights", "problem", f"{len(missing)} tables lack rights", "; ".join(missing))]
    return [Finding("postgres rights", "ok", "all that are needed")] if there else []


async def indexes(target: PostgresTarget) -> list[Finding]:
    """Check that every index of the tables exists and is used."""
    rows = await target.conn.execute(
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
    exists = (await target.row("select to_regclass('checkpoints') is not null as there"))["there"]
    for name in sorted(set(INDEXES) - there) if exists else ():
        advice = f"CREATE INDEX CONCURRENTLY {name} ON {name.removesuffix('_thread_id_idx')} (thread_id)"
        found.append(Finding("indexes", "warning", f"{name} is missing: deletes are slow", advice))
    return found or ([Finding("indexes", "ok", f"{len(there)}, all valid")] if there else [])


async def vacuum(target: PostgresTarget) -> list[Finding]:
    """Check that dead rows are removed."""
    rows = await target.conn.execute(
        "select relname, n_live_tup as live, n_dead_tup as dead from pg_stat_user_tables"
        " where relid = any(array(select to_regclass(t)::oid from unnest(%s::text[]) t))",
        (list(RIGHTS),),
    )
    found = []
    for row in await rows.fetchall():
        if row["dead"] > DEAD_ROWS_MIN and row["dead"] > DEAD_SHARE * (row["live"] + row["dead"]):
            message = f"{row['relname']}: {row['dead']:,} dead rows beside {row['live']:,}"
            advice = (
                f"VACUUM (ANALYZE) {row['relname']}, and find out why autovacuum does not: a long transaction?"
            )
            found.append(Finding("dead rows", "warning", message, advice))
    return found or [Finding("dead rows", "ok", "few")]


async def connections(target: PostgresTarget) -> list[Finding]:
    """Check that there are connections left."""
    row = await target.row(
        "select count(*) filter (where backend_type = 'client backend' or backend_type is null) as used,"
        " current_setting('max_connections')::int as most from pg_stat_activity"
    )
    message = f"{row['used']} of {row['most']} used"
    level: Level = "ok" if row["used"] < CONNECTIONS_SHARE * row["most"] else "warning"
    advice = "" if level == "ok" else "use PgBouncer, or make pool_max_size smaller"
    return [Finding("connections", level, message, advice)]


async def stale_threads(target: PostgresTarget) -> list[Finding]:
    """Find threads that wait to be invalidated in Redis."""
    if (await target.row("select to_regclass(%s) as t", (STALE_THREADS,)))["t"] is None:
        return []  # `tables` reports it
    row = await target.row(
        "select count(*) as many, extract(epoch from now() - min(since))::float8 as oldest"
        " from checkpoint_cache_stale_threads where prefix = %s",
        (target.options.prefix,),
    )
    if not row["many"]:
        return [Finding("stale threads", "ok", "none waits to be invalidated in Redis")]
    message = f"{row['many']:,} threads, the oldest for {span(row['oldest'])}"
    if row["oldest"] < STALE_THREAD_SECONDS_MAX:
        advice = "a process has just written without Redis; the others invalidate these threads within a second"
        return [Finding("stale threads", "warning", message, advice)]
    advice = (
        "no process of this prefix can reach both servers, or none runs. They are invalidated when one starts, "
        "or by `langgraph-cached verify`"
    )
    return [Finding("stale threads", "warning", message, advice)]


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
