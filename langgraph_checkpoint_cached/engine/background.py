"""Work of background loops, which is done again if it fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import psycopg

from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable

logger = logging.getLogger("langgraph_checkpoint_cached")


async def quietly(work: Callable[[], Awaitable[object]]) -> bool:
    """Do the work; return whether that succeeded. An error of Redis or Postgres is not raised."""
    try:
        await work()
        return True
    except RedisUnavailable:
        pass
    except psycopg.Error as exc:
        logger.debug("Postgres cannot be written to now: %s", exc)
    return False
