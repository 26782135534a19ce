"""Checks of Redis. None needs more rights than the saver's own user has."""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

from langgraph_checkpoint_cached.cli.checks.findings import Check, Finding, Level, RedisTarget
from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.cli.output import size
from langgraph_checkpoint_cached.stores.redis.client import reason
from langgraph_checkpoint_cached.stores.redis.scan import escape_glob
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua
from langgraph_checkpoint_cached.stores.redis.server_check import REDIS_VERSION_MIN

TRY_COMMANDS = Script(lua("try_commands"))
GOOD_POLICIES = ("allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu", "volatile-ttl")
FULL_SHARE = 0.95
GRANT = "grant it: ACL SETUSER as in the README, Security"


async def version(target: RedisTarget) -> list[Finding]:
    """Check that every server is recent enough."""
    found = []
    for node in target.nodes:
        info = await node.info("server")
        text = info.get("valkey_version") or info.get("redis_version", "?")
        kind = "Valkey" if "valkey_version" in info else "Redis"
        numbers = parse_numbers(info)
        if not numbers:
            found.append(node_finding(node, "redis version", "unknown", "it does not show its version"))
        elif numbers < REDIS_VERSION_MIN:
            found.append(
                node_finding(node, "redis version", "problem", f"{kind} {text}", "6.2 or later is needed")
            )
        else:
            found.append(node_finding(node, "redis version", "ok", f"{kind} {text}"))
    return found


async def role(target: RedisTarget) -> list[Finding]:
    """Check that every server is a primary, and shows its replication id."""
    found = []
    for node in target.nodes:
        info = await node.info("replication")
        if info.get("role") not in (None, "master"):
            advice = "use the primary's address, or redis+sentinel:// for the one that the Sentinels name"
            found.append(node_finding(node, "redis role", "problem", f"it is a {info['role']}", advice))
        elif "master_replid" not in info:
            advice = "savers do not use a Redis that hides it in INFO replication: choose another one"
            found.append(node_finding(node, "redis role", "problem", "it does not show its master_replid", advice))
        else:
            replicas = info.get("connected_slaves", "?")
            found.append(node_finding(node, "redis role", "ok", f"a primary, {replicas} replicas"))
    return found


async def commands(target: RedisTarget) -> list[Finding]:
    """Check that this user may run all commands that the savers run, on keys of this prefix."""
    found = []
    for node in target.nodes:
        reply = await node.run(TRY_COMMANDS)
        refused = {
            name.decode(): error.decode(errors="replace")
            for name, error in zip(reply[::2], reply[1::2], strict=True)
        }
        try:
            await node.scan_some(escape_glob(target.options.prefix) + ":*")
        except ResponseError as exc:
            refused["SCAN"] = str(exc)
        if not refused:
            found.append(
                node_finding(node, "redis commands", "ok", f"all are allowed on {target.options.prefix}:*")
            )
        elif all("maxmemory" in error or error.startswith("OOM") for error in refused.values()):
            found.append(node_finding(node, "redis commands", "warning", "it is full", "see redis memory"))
        else:
            message = f"refused: {', '.join(sorted(refused))} ({reason(RedisError(next(iter(refused.values()))))})"
            found.append(node_finding(node, "redis commands", "problem", message, GRANT))
    return found


async def memory(target: RedisTarget) -> list[Finding]:
    """Check that memory is limited, and what the server does at the limit."""
    return [_memory(node, await node.info("memory"), target.writes_behind) for node in target.nodes]


def _memory(node: Node, info: dict[str, str], writes_behind: bool) -> Finding:
    policy, limit, used = (info.get(name) for name in ("maxmemory_policy", "maxmemory", "used_memory"))
    if policy is None or limit is None or used is None or not limit.isdecimal() or not used.isdecimal():
        return node_finding(
            node, "redis memory", "unknown", "it shows neither its limit nor its policy", "ask its provider"
        )
    message = f"{size(int(used))} used of {size(int(limit)) if int(limit) else 'no limit'}, {policy}"
    best = "volatile-lru" if writes_behind else "allkeys-lru"
    if not int(limit):
        advice = f"set maxmemory, with {best}: without a limit it grows until the machine has no memory"
        return node_finding(node, "redis memory", "warning", message, advice)
    if writes_behind and not policy.startswith("volatile-") and policy != "noeviction":
        advice = (
            "it may evict unflushed writes, so savers write through instead: set maxmemory-policy "
            "volatile-lru or noeviction"
        )
        return node_finding(node, "redis memory", "problem", message, advice)
    if policy not in GOOD_POLICIES:
        advice = (
            f"a full Redis caches nothing new: set maxmemory-policy {best}"
            if policy == "noeviction"
            else f"it evicts threads that are in use: set maxmemory-policy {best}"
        )
        level: Level = "warning"
        if policy == "noeviction" and int(used) >= FULL_SHARE * int(limit):
            level = "problem"
        return node_finding(node, "redis memory", level, message, advice)
    return node_finding(node, "redis memory", "ok", message)


async def evictions(target: RedisTarget) -> list[Finding]:
    """Compare evictions with expiries, since the server started."""
    found = []
    for node in target.nodes:
        info = await node.info("stats")
        evicted, expired = (int(info.get(name, "0")) for name in ("evicted_keys", "expired_keys"))
        message = f"{evicted:,} keys evicted, {expired:,} expired since it started"
        if evicted > expired:
            advice = "most entries are evicted before they expire: raise maxmemory, or shorten ttl"
            found.append(node_finding(node, "redis evictions", "warning", message, advice))
        else:
            found.append(node_finding(node, "redis evictions", "ok", message))
    return found


def parse_numbers(info: dict[str, str]) -> tuple[int, ...]:
    """Return the first two numbers of the version in INFO; nothing if it is hidden."""
    return tuple(int(part) for part in info.get("redis_version", "").split(".")[:2] if part.isdecimal())


def node_finding(node: Node, check: str, level: Level, message: str, advice: str = "") -> Finding:
    """Return a finding at one of perhaps several servers."""
    return Finding(check, level, f"{node.name}: {message}" if node.name else message, advice)


REDIS_CHECKS: tuple[Check[RedisTarget], ...] = (version, role, commands, memory, evictions)
