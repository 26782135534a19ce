"""What servers count by themselves, and what can be told from it of the savers that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.stores.redis.scripts import Script

SECTIONS = ("commandstats", "stats", "memory", "keyspace")
INFO = Script("return { " + ", ".join(f"redis.call('INFO', '{section}')" for section in SECTIONS) + " }")
POSTGRES_SQL = """
select
  (select sum(n_tup_ins + n_tup_upd)::bigint from pg_stat_user_tables where relid = any(tables.ids)) as rows,
  (select sum(n_tup_del)::bigint from pg_stat_user_tables where relid = any(tables.ids)) as deleted,
  (select xact_commit from pg_stat_database where datname = current_database()) as transactions,
  (select count(*) from pg_stat_activity where datname = current_database() and state = 'active'
     and pid <> pg_backend_pid()) as active,
  (select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock') as locked
from (
  select array(
    select to_regclass(t)::oid from unnest(array['checkpoints', 'checkpoint_blobs', 'checkpoint_writes']) t
  ) as ids
) tables
"""


@dataclass(frozen=True)
class RedisCounts:
    """Since the servers started, all together; the last two as they are now."""

    calls: Mapping[str, int]
    """Of each command, also those inside scripts."""
    evicted: int
    keys: int
    memory_bytes: int

    @classmethod
    async def read(cls, nodes: Sequence[Node]) -> RedisCounts:
        """One round trip to each server, and one script's run. Raises `RedisError`, `OSError`."""
        calls: Counter[str] = Counter()
        evicted = keys = memory = 0
        for node in nodes:
            info = _parsed([text.decode("utf-8", "replace") for text in await node.run(INFO)])
            for name, value in info.items():
                if name.startswith("cmdstat_"):
                    calls[name.removeprefix("cmdstat_").lower()] += _number(value, "calls")
                elif name.startswith("db") and "keys=" in value:
                    keys += _number(value, "keys")
            evicted += int(info.get("evicted_keys", "0"))
            memory += int(info.get("used_memory", "0"))
        return cls(calls, evicted, keys, memory)


@dataclass(frozen=True)
class Reads:
    """How reads ended, about."""

    hits: int
    misses: int


def reads_between(before: RedisCounts, now: RedisCounts, own_scripts: int) -> Reads | None:
    """What the savers' reads were, from the commands that their scripts have called. None if a server restarted.

    Every script that looks for fences asks for the time once and for one hash. A hit asks for another hash, a miss
    for the time again, and FILL, one for each miss, alone asks for a hash but for no fields of one:

        hits + fills = HGETALL - HMGET        misses = TIME - scripts that ask for it

    Those that do not ask for the time look at a journal, once each: XRANGE is theirs alone.
    Reads that a fence keeps away count as hits here, and those that wait for another's load as misses. Other users
    of the same servers who call these commands are counted too: so, "about".

    Args:
        before, now: Two counts.
        own_scripts: How many scripts were run in between to get them.
    """
    calls = {
        name: now.calls.get(name, 0) - before.calls.get(name, 0)
        for name in ("hgetall", "hmget", "time", "xrange", "evalsha", "eval")
    }
    if min(calls.values()) < 0:
        return None
    timed = calls["evalsha"] + calls["eval"] - calls["xrange"] - own_scripts
    misses = max(0, calls["time"] - timed)
    return Reads(max(0, calls["hgetall"] - calls["hmget"] - misses), misses)


def _parsed(texts: Sequence[str]) -> dict[str, str]:
    lines = (line.partition(":") for text in texts for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def _number(value: str, name: str) -> int:
    parts = dict(part.partition("=")[::2] for part in value.split(","))
    return int(parts.get(name, "0"))
