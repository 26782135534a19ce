"""What `doctor` looks at in Redis. Nothing here needs more than the saver's own Redis user may do."""

from __future__ import annotations

from glob import escape as glob_escape

from redis.exceptions import RedisError, ResponseError

from langgraph_checkpoint_cached.cli.checks.findings import Check, Finding, Level, RedisTarget
from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.cli.output import size
from langgraph_checkpoint_cached.stores.redis.client import reason
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua
from langgraph_checkpoint_cached.stores.redis.server_check import REDIS_VERSION_MIN

TRY_COMMANDS = Script(lua("try_commands"))
GOOD_POLICIES = ("allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu", "volatile-ttl")
FULL_SHARE = 0.95
GRANT = "grant it: ACL SETUSER as in the README, Security"


async def version(patient: RedisTarget) -> list[Finding]:
    """Whether every server is recent enough, and a primary that tells its replication id."""
    found = []
    for node in patient.nodes:
        info = await node.info("server")
        text = info.get("valkey_version") or info.get("redis_version", "?")
        kind = "Valkey" if "valkey_version" in info else "Redis"
        numbers = parse_numbers(info)
        if not numbers:
            found.append(of_node(node, "redis version", "unknown", "it does not tell its version"))
        elif numbers < REDIS_VERSION_MIN:
            found.append(of_node(node, "redis version", "problem", f"{kind} {text}", "6.2 or later is needed"))
        else:
            found.append(of_node(node, "redis version", "ok", f"{kind} {text}"))
    return found


async def role(patient: RedisTarget) -> list[Finding]:
    """Whether every server is a primary, and tells its server epoch."""
    found = []
    for node in patient.nodes:
        info = await node.info("replication")
        if info.get("role") not in (None, "master"):
            advice = "give the primary's address, or redis+sentinel:// for the one that the Sentinels name"
            found.append(of_node(node, "redis role", "problem", f"it is a {info['role']}", advice))
        elif "master_replid" not in info:
            advice = "a Redis that hides it in INFO replication is not used: choose another one"
            found.append(of_node(node, "redis role", "problem", "it does not tell its master_replid", advice))
        else:
            replicas = info.get("connected_slaves", "?")
            found.append(of_node(node, "redis role", "ok", f"a primary, {replicas} replicas"))
    return found


async def commands(patient: RedisTarget) -> list[Finding]:
    """Whether this user may do all that the savers do, on keys of this prefix."""
    found = []
    for node in patient.nodes:
        reply = await node.run(TRY_COMMANDS)
        refused = {
            name.decode(): error.decode(errors="replace")
            for name, error in zip(reply[::2], reply[1::2], strict=True)
        }
        try:
            await node.scan_some(glob_escape(patient.servers.prefix) + ":*")
        except ResponseError as exc:
            refused["SCAN"] = str(exc)
        if not refused:
            found.append(of_node(node, "redis commands", "ok", f"all are allowed on {patient.servers.prefix}:*"))
        elif all("maxmemory" in error or error.startswith("OOM") for error in refused.values()):
            found.append(of_node(node, "redis commands", "warning", "it is full", "see redis memory"))
        else:
            says = f"refused: {', '.join(sorted(refused))} ({reason(RedisError(next(iter(refused.values()))))})"
            found.append(of_node(node, "redis commands", "problem", says, GRANT))
    return found


async def memory(patient: RedisTarget) -> list[Finding]:
    """Whether it has a limit, and what it does there."""
    return [_memory(node, await node.info("memory"), patient.writes_behind) for node in patient.nodes]


def _memory(node: Node, info: dict[str, str], writes_behind: bool) -> Finding:
    policy, limit, used = (info.get(name) for name in ("maxmemory_policy", "maxmemory", "used_memory"))
    if policy is None or limit is None or used is None or not limit.isdecimal() or not used.isdecimal():
        return of_node(
            node, "redis memory", "unknown", "it tells neither its limit nor its policy", "ask its provider"
        )
    says = f"{size(int(used))} used of {size(int(limit)) if int(limit) else 'no limit'}, {policy}"
    best = "volatile-lru" if writes_behind else "allkeys-lru"
    if not int(limit):
        advice = f"set maxmemory, with {best}: without a limit it grows until the machine has no memory"
        return of_node(node, "redis memory", "warning", says, advice)
    if writes_behind and not policy.startswith("volatile-") and policy != "noeviction":
        advice = (
            "it may evict what it alone holds, so that savers write through instead: set maxmemory-policy "
            "volatile-lru or noeviction"
        )
        return of_node(node, "redis memory", "problem", says, advice)
    if policy not in GOOD_POLICIES:
        advice = (
            f"a full Redis caches nothing new: set maxmemory-policy {best}"
            if policy == "noeviction"
            else f"it evicts threads that are in use: set maxmemory-policy {best}"
        )
        level: Level = "warning"
        if policy == "noeviction" and int(used) >= FULL_SHARE * int(limit):
            level = "problem"
        return of_node(node, "redis memory", level, says, advice)
    return of_node(node, "redis memory", "ok", says)


async def evictions(patient: RedisTarget) -> list[Finding]:
    """Whether memory is short, since the server started."""
    found = []
    for node in patient.nodes:
        info = await node.info("stats")
        evicted, expired = (int(info.get(name, "0")) for name in ("evicted_keys", "expired_keys"))
        says = f"{evicted:,} keys evicted, {expired:,} expired since it started"
        if evicted > expired:
            advice = "entries mostly go for want of memory: raise maxmemory, or shorten ttl"
            found.append(of_node(node, "redis evictions", "warning", says, advice))
        else:
            found.append(of_node(node, "redis evictions", "ok", says))
    return found


def parse_numbers(info: dict[str, str]) -> tuple[int, ...]:
    """The first two numbers of a version, in what INFO says of the server; none if it does not."""
    return tuple(int(part) for part in info.get("redis_version", "").split(".")[:2] if part.isdecimal())


def of_node(node: Node, check: str, level: Level, says: str, advice: str = "") -> Finding:
    """What was found at one of perhaps several servers."""
    return Finding(check, level, f"{node.name}: {says}" if node.name else says, advice)


REDIS_CHECKS: tuple[Check[RedisTarget], ...] = (version, role, commands, memory, evictions)
