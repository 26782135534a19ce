"""Types of the savers' keywords, as an editor sees them. Checked by mypy, never run."""

from __future__ import annotations

from datetime import timedelta

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from redis.asyncio import Redis
from typing_extensions import assert_type

from langgraph_checkpoint_cached import CachedPostgresSaver, IdleThreads, SyncCachedPostgresSaver


class Subclass(CachedPostgresSaver):
    """Saver of a caller."""


async def use_async_savers(redis: Redis, postgres: AsyncPostgresSaver) -> None:
    """Make savers with good keywords and with bad ones."""
    saver = CachedPostgresSaver(redis, postgres, ttl=timedelta(hours=1), mode="write_behind", signing_keys=["key"])
    assert_type(saver, CachedPostgresSaver)
    CachedPostgresSaver(redis, postgres, tll=5)  # type: ignore[call-arg]
    CachedPostgresSaver(redis, postgres, ttl="5")  # type: ignore[arg-type]
    CachedPostgresSaver(redis, postgres, mode="write_around")  # type: ignore[arg-type]
    CachedPostgresSaver(redis, postgres, pool_max_size=5)  # type: ignore[call-arg]
    async with CachedPostgresSaver.from_conn_string("", "", prefix="app", pool_max_size=5) as opened:
        assert_type(opened, CachedPostgresSaver)
    async with Subclass.from_conn_string("", "", redis_durability="disk") as own:
        assert_type(own, Subclass)
    CachedPostgresSaver.from_conn_string("", "", pool_max=5)  # type: ignore[call-arg]
    CachedPostgresSaver.from_conn_string("", "", pool_max_size="5")  # type: ignore[arg-type]


def use_sync_saver() -> None:
    """Make a saver with good keywords and with bad ones."""
    with SyncCachedPostgresSaver.from_conn_string("", "", check_hits=0.1, redis_max_connections=8) as saver:
        assert_type(saver, SyncCachedPostgresSaver)
        assert_type(saver.delete_idle_threads(60, limit=5, dry_run=True), IdleThreads)
        saver.delete_idle_threads(60, limits=5)  # type: ignore[call-arg]
    SyncCachedPostgresSaver.from_conn_string("", "", tll=5)  # type: ignore[call-arg]
    SyncCachedPostgresSaver.from_conn_string("", "", check_hits="0.1")  # type: ignore[arg-type]
