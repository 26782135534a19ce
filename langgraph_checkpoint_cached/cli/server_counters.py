"""Counters that Redis and Postgres keep by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langgraph_checkpoint_cached.cli.nodes import Node
from langgraph_checkpoint_cached.stores.redis.scripts import Script

SECTIONS = ("stats", "memory", "keyspace")
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
class RedisCounters:
    """Sums over the servers: evictions since they started, keys and memory as they are now."""

    evicted: int
    keys: int
    memory_bytes: int

    @classmethod
    async def read(cls, nodes: Sequence[Node]) -> RedisCounters:
        """Ask each server once. Raises `RedisError`, `OSError`."""
        evicted = keys = memory = 0
        for node in nodes:
            for name, value in _parse_info([text.decode("utf-8", "replace") for text in await node.run(INFO)]):
                if name == "evicted_keys":
                    evicted += int(value)
                elif name == "used_memory":
                    memory += int(value)
                elif name.startswith("db") and value.startswith("keys="):
                    keys += int(value.removeprefix("keys=").partition(",")[0])
        return cls(evicted, keys, memory)


def _parse_info(texts: Sequence[str]) -> list[tuple[str, str]]:
    lines = (line.partition(":") for text in texts for line in text.splitlines() if ":" in line)
    return [(name, value.strip()) for name, _, value in lines]
