"""What `doctor` looks at for `mode="write_behind"`: how far Postgres may be behind, and what Redis keeps of it."""

from __future__ import annotations

from langgraph_checkpoint_cached.cli.checks.findings import Finding, PostgresTarget, RedisTarget
from langgraph_checkpoint_cached.cli.checks.redis import of_node, parse_numbers
from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.cli.output import span
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES

LEASE_SECONDS_MAX = 3600.0
"""A lease ends five seconds after its last write, or ten after its process: one so old is worth a look."""
WAITAOF_VERSION_MIN = (7, 2)


async def count_leases(patient: PostgresTarget) -> int:
    """How many there are, of this prefix."""
    if (await patient.row("select to_regclass(%s) as t", (LEASES,)))["t"] is None:
        return 0
    sql = "select count(*) as many from checkpoint_cache_leases where prefix = %s"
    return int((await patient.row(sql, (patient.servers.prefix,)))["many"])


async def leases(patient: PostgresTarget) -> list[Finding]:
    """On how many threads Postgres may be behind, and for how long."""
    if (await patient.row("select to_regclass(%s) as t", (LEASES,)))["t"] is None:
        return []  # `tables` says it
    row = await patient.row(
        "select count(*) as many, extract(epoch from now() - min(since))::float8 as oldest"
        " from checkpoint_cache_leases where prefix = %s",
        (patient.servers.prefix,),
    )
    if not row["many"]:
        return [Finding("leases", "ok", "none: Postgres holds all that was acknowledged")]
    says = f"{row['many']:,} threads, the oldest for {span(row['oldest'])}: Postgres may be behind on them"
    if row["oldest"] < LEASE_SECONDS_MAX:
        return [Finding("leases", "ok", says)]
    advice = (
        "one is so old only where writes never pause for five seconds, or where no process of this prefix runs "
        "that reaches both servers. `langgraph-cached flush --all` has Postgres follow, or says why it cannot"
    )
    return [Finding("leases", "warning", says, advice)]


async def durability(patient: RedisTarget) -> list[Finding]:
    """What Redis does to keep what it alone holds. Nothing, if nobody writes behind."""
    return [await _durability(node) for node in patient.nodes] if patient.writes_behind else []


async def _durability(node: Node) -> Finding:
    persistence, replication = await node.info("persistence"), await node.info("replication")
    append_only, replicas = persistence.get("aof_enabled", "?"), replication.get("connected_slaves", "?")
    saved = persistence.get("rdb_last_bgsave_status", "?")
    says = f"append-only file {'on' if append_only == '1' else 'off' if append_only == '0' else 'unknown'}, "
    says += f"last snapshot {saved}, {replicas} replicas; redis_durability {await _choices(node)}"
    if saved == "err":
        advice = "by default it refuses writes until a snapshot succeeds: look at its log, and at its disk"
        return of_node(node, "redis durability", "warning", says, advice)
    if append_only == "0" and replicas == "0":
        advice = (
            "what it loses by a restart, while the process that wrote it dies too, is lost: appendonly yes, or a "
            "replica"
        )
        return of_node(node, "redis durability", "ok", says, advice)
    return of_node(node, "redis durability", "ok", says)


async def _choices(node: Node) -> str:
    """Which settings of `redis_durability` this server and this user allow."""
    found = ['"as_is"']
    if await node.may("WAIT", 0, 1):
        found.append('"replica"')
    if parse_numbers(await node.info("server")) >= WAITAOF_VERSION_MIN and await node.may("WAITAOF", 0, 0, 1):
        found.append('"disk"')
    return ", ".join(found)
