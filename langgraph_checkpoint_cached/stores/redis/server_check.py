"""Check that a Redis server is recent enough and, for write-behind, does not evict."""

from __future__ import annotations

import logging
import re

from langgraph_checkpoint_cached.errors import UnsupportedServerError
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.scripts import Script

logger = logging.getLogger("langgraph_checkpoint_cached")

REDIS_VERSION_MIN = (6, 2)

_SERVER_INFO = Script("return redis.call('INFO', 'server') .. redis.call('INFO', 'memory')")


async def check_redis(executor: ScriptExecutor, *, writes_behind: bool = False) -> None:
    """Raise `UnsupportedServerError` if Redis is too old, or may evict what it alone would hold.

    A server that cannot be reached passes: it may come back.
    """
    try:
        info = await executor.submit(_SERVER_INFO, [executor.probe_key], [])
    except RedisUnavailable as exc:
        logger.warning("setup() could not look at Redis: %s", exc)
        return
    found = re.search(rb"redis_version:(\d+)\.(\d+)", info)
    if found and (int(found[1]), int(found[2])) < REDIS_VERSION_MIN:
        raise UnsupportedServerError(
            f"Redis {found[0].decode().partition(':')[2]} is too old: 6.2 or later is needed, or Valkey"
        )

    if writes_behind and (policy := evicting(info.decode(errors="replace"))):
        raise UnsupportedServerError(
            f'mode="write_behind": this Redis has maxmemory-policy {policy}, by which it may evict what it alone '
            "holds. Set it to noeviction or volatile-lru"
        )


def evicting(info: str) -> str | None:
    """Return the policy by which a server may evict keys that never expire, None if it has none.

    Args:
        info: Text of `INFO memory`.
    """
    bound, policy = (re.search(rf"{name}:(\S+)", info) for name in ("maxmemory", "maxmemory_policy"))
    if bound and bound[1] == "0":
        return None
    name = policy[1] if policy else "unknown"
    return None if name == "noeviction" or name.startswith("volatile-") else name
