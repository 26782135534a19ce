"""Checks for `mode="write_behind"`: leases, and the durability of what Redis alone holds."""

from __future__ import annotations

from langgraph_checkpoint_cached.cli.checks.findings import Finding, PostgresTarget, RedisTarget
from langgraph_checkpoint_cached.cli.checks.redis import node_finding, parse_numbers
from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.cli.output import span
from langgraph_checkpoint_cached.stores.postgres.leases import TABLE as LEASES

LEASE_SECONDS_MAX = 3600.0
"""Age from which a lease is suspicious. It is closed 5 s after its last write, or 10 s after its process died."""
WAITAOF_VERSION_MIN = (7, 2)


async def count_leases(target: PostgresTarget) -> int:
    """Return how many leases of this prefix there are."""
    if (await target.row("select to_regclass(%s) as t", (LEASES,)))["t"] is None:
        return 0
    sql = "select count(*) as many from checkpoint_cache_leases where prefix = %s"
    return int((await target.row(sql, (target.options.prefix,)))["many"])


async def leases(target: PostgresTarget) -> list[Finding]:
    """Find leases: threads that may have unflushed writes."""
    if (await target.row("select to_regclass(%s) as t", (LEASES,)))["t"] is None:
        return []  # `tables` reports it
    row = await target.row(
        "select count(*) as many, extract(epoch from now() - min(since))::float8 as oldest"
        " from checkpoint_cache_leases where prefix = %s",
        (target.options.prefix,),
    )
    if not row["many"]:
        return [Finding("leases", "ok", "none: Postgres holds all acknowledged writes")]
    message = f"{row['many']:,} threads, the oldest for {span(row['oldest'])}: they may have unflushed writes"
    if row["oldest"] < LEASE_SECONDS_MAX:
        return [Finding("leases", "ok", message)]
    advice = (
        "a lease gets so old only if its thread is written to without a pause of five seconds, or if no process "
        "of this prefix can reach both servers. `langgraph-cached flush --all` flushes, or says why it cannot"
    )
    return [Finding("leases", "warning", message, advice)]


async def durability(target: RedisTarget) -> list[Finding]:
    """Check the durability of Redis, if any process writes behind."""
    return [await _durability(node) for node in target.nodes] if target.writes_behind else []


async def _durability(node: Node) -> Finding:
    persistence, replication = await node.info("persistence"), await node.info("replication")
    append_only, replicas = persistence.get("aof_enabled", "?"), replication.get("connected_slaves", "?")
    saved = persistence.get("rdb_last_bgsave_status", "?")
    message = f"append-only file {'on' if append_only == '1' else 'off' if append_only == '0' else 'unknown'}, "
    message += f"last snapshot {saved}, {replicas} replicas; redis_durability {await _durabilities(node)}"
    if saved == "err":
        advice = "by default it refuses writes until a snapshot succeeds: check its log and its disk"
        return node_finding(node, "redis durability", "warning", message, advice)
    if append_only == "0" and replicas == "0":
        advice = (
            "unflushed writes are lost if it restarts while the process that wrote them dies too: set appendonly "
            "yes, or add a replica"
        )
        return node_finding(node, "redis durability", "ok", message, advice)
    return node_finding(node, "redis durability", "ok", message)


async def _durabilities(node: Node) -> str:
    """Return the settings of `redis_durability` that this server and this user allow."""
    found = ['"as_is"']
    if await node.allows("WAIT", 0, 1):
        found.append('"replica"')
    if parse_numbers(await node.info("server")) >= WAITAOF_VERSION_MIN and await node.allows("WAITAOF", 0, 0, 1):
        found.append('"disk"')
    return ", ".join(found)
