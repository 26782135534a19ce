"""Scan of all keys of a Redis, step by step."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio.cluster import RedisCluster

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis

SCAN_COUNT = 1_000
"""Number of keys that a step looks at."""


def escape_glob(text: str) -> str:
    """Return a pattern that matches just this text. `glob.escape` does not do it: Redis knows backslashes too."""
    return re.sub(r"([*?^\[\]\\-])", r"\\\1", text)


async def scan_steps(client: AnyRedis, pattern: str) -> AsyncIterator[list[Any]]:
    """Yield what each step of a scan finds, often nothing, as the client gives it; some keys perhaps twice.

    Unlike the client's own iterator it comes back after each step: among many keys of others a scan may take
    seconds until it finds one.

    Raises:
        redis.exceptions.RedisError, RedisClusterException, OSError: as the client raises them.
    """
    targets: list[dict[str, Any]] = [{}]
    if isinstance(client, RedisCluster):
        await client.initialize()
        targets = [{"target_nodes": node} for node in client.get_primaries()]
    for target in targets:
        cursor = 0
        while True:
            reply, found = await client.scan(cursor, match=pattern, count=SCAN_COUNT, **target)
            yield found
            cursor = next(iter(reply.values())) if isinstance(reply, dict) else reply  # a Cluster names the node
            if not cursor:
                break
