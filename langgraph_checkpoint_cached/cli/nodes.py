"""Servers behind a Redis client: one, or the primaries of a Cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.cluster_transport import keys_by_node
from langgraph_checkpoint_cached.stores.redis.scripts import UNDECODED, Script

CLOCK = Script("local time = redis.call('TIME') return { time[1], time[2] }")


@dataclass(frozen=True)
class Node:
    """A server that holds keys."""

    name: str
    client: AnyRedis
    key: str
    """Unused key that this server would hold."""
    target: Any = None
    """Node of a Cluster."""

    async def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO, as the server writes it. Raises `RedisError`, `OSError`."""
        # By a script: the client would parse the reply, and send the command to any node of a Cluster.
        text: bytes = await self.run(Script(f"return redis.call('INFO', '{section}')"))
        pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines() if ":" in line)
        return {name: value.strip() for name, _, value in pairs}

    async def run(self, script: Script, arguments: Sequence[Any] = ()) -> Any:
        """Return the reply of a script that is run on `key`. Raises `RedisError`, `OSError`."""
        return await script.run(self.client, [self.key], arguments)

    async def scan_some(self, pattern: str) -> None:
        """Take the first step of a scan. Raises `RedisError`, `OSError`."""
        at: dict[str, Any] = {"target_nodes": self.target} if self.target else {}
        await self.client.execute_command("SCAN", "0", "MATCH", pattern, "COUNT", 1, **at, **UNDECODED)

    async def allows(self, *command: Any) -> bool:
        """Run a command, and return whether the server allowed it. Raises `RedisError`, `OSError`."""
        at: dict[str, Any] = {"target_nodes": self.target} if self.target else {}
        try:
            await self.client.execute_command(*command, **at, **UNDECODED)
        except ResponseError:
            return False
        return True

    async def clock(self) -> tuple[float, float]:
        """Return how far its clock is ahead of ours, and how long the round trip took, both in seconds."""
        before, started = time.time(), time.perf_counter()
        seconds, microseconds = await self.run(CLOCK)
        took = time.perf_counter() - started
        return int(seconds) + int(microseconds) / 1e6 - (before + took / 2), took


async def list_nodes(client: AnyRedis, prefix: str) -> list[Node]:
    """Return the servers, each with a key of `prefix`. Raises `RedisError`, `RedisClusterException`, `OSError`."""
    if not isinstance(client, RedisCluster):
        return [Node("", client, f"{prefix}:probe:doctor")]
    await client.initialize()
    return [Node(node.name, client, key, node) for node, key in keys_by_node(client, f"{prefix}:probe:doctor")]
