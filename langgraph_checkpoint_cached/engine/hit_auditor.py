"""Audit of hits: some of them are compared with Postgres, which is to find nothing."""

from __future__ import annotations

import contextlib
import logging
import random
from typing import Any, Literal, TypeAlias

import psycopg

from langgraph_checkpoint_cached import jsonb
from langgraph_checkpoint_cached.engine.flushed_store import FlushedStore
from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.errors import BehindError, OverloadedError
from langgraph_checkpoint_cached.records import Namespace, Record
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.redis.entries import EntryMiss, FillLease, Hit, MissReason, RedisEntries
from langgraph_checkpoint_cached.stores.redis.fields import CHECKPOINT_ID
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks
from langgraph_checkpoint_cached.utils.tokens import new_token

logger = logging.getLogger("langgraph_checkpoint_cached")

Verdict: TypeAlias = Literal["same", "differs", "changed"]

CHECKS_AT_ONCE_MAX = 2
"""A hit that is drawn while so many are being checked is not checked."""


class HitAuditor:
    """Comparison of hits with Postgres, in the background. Never delays a read, nor fails one.

    Writes go on meanwhile, so a difference counts only if the entry is the same after Postgres was read:

    1. a read is served an entry, which Redis had at that moment;
    2. Postgres is read;
    3. Redis still has the same entry, field by field, and no fence is there.

    Whoever wrote between 1 and 3 took a fence before Postgres committed, and advanced or dropped the entry when
    releasing it: in 3 there is a fence, or another entry, or none. Unless Redis was not reached: then the same
    transaction marked the thread stale. So where Postgres differs, the stale threads are invalidated and Redis is
    asked once more: an entry that is still there is wrong.

    Args:
        fraction: Share of the hits that are compared, from 0 to 1.
    """

    def __init__(
        self,
        runtime: Runtime,
        entries: RedisEntries,
        store: FlushedStore,
        invalidator: StaleThreadInvalidator,
        *,
        fraction: float,
    ) -> None:
        self._stats, self._entries, self._store, self._invalidator = runtime.stats, entries, store, invalidator
        self._fraction = fraction
        self._tasks = BackgroundTasks()

    def sample(self, namespace: Namespace, hit: Hit | None, record: Record | None) -> None:
        """Perhaps check what is being served: `record`, out of `hit`, or that the namespace is empty."""
        if len(self._tasks) < CHECKS_AT_ONCE_MAX and random.random() < self._fraction:  # noqa: S311
            self._tasks.start(self._check(namespace, hit, record))

    async def drain(self) -> None:
        """Wait until no check is under way."""
        await self._tasks.drain()

    async def _check(self, namespace: Namespace, hit: Hit | None, record: Record | None) -> None:
        with contextlib.suppress(RedisUnavailable, psycopg.Error, OverloadedError, BehindError):
            verdict, held = await self.compare(namespace, hit, record)
            if verdict == "changed":
                return
            if verdict == "differs":
                self._stats.disagreements += 1
                logger.error(
                    "a read of thread %r, namespace %r was given checkpoint %s from Redis while Postgres held %s, "
                    "or other content of it; the entry was dropped. Was anything written past this package?",
                    namespace.thread_id,
                    namespace.checkpoint_ns,
                    record and record.checkpoint_id,
                    held and held.checkpoint_id,
                )
                await self._entries.discard(namespace)
            self._stats.checks += 1

    async def compare(
        self, namespace: Namespace, hit: Hit | None, record: Record | None
    ) -> tuple[Verdict, Record | None]:
        """Do steps 2 and 3 for `record`, out of `hit`, or for an empty namespace; return what Postgres holds too.

        `"changed"` if nobody can tell, as something was written meanwhile. Raises `RedisUnavailable`,
        `OverloadedError`, `BehindError` and psycopg's errors.
        """
        latest = await self._store.latest(namespace, None)
        held = latest.record
        if not latest.may_fill:
            return "changed", held
        if not await self._still_there(namespace, hit, record):
            return "changed", held
        if is_same(record, held):
            return "same", held
        await self._invalidator.invalidate_recorded()
        return ("differs" if await self._still_there(namespace, hit, record) else "changed"), held

    async def _still_there(self, namespace: Namespace, hit: Hit | None, record: Record | None) -> bool:
        """Return whether Redis would serve the very same entry again; without a hit, that there is no
        checkpoint.
        """
        wanted = record.checkpoint_id if record else ""  # with an id, READ gives no fill lease
        answer = await self._entries.read(namespace, fill_token := new_token(), wanted)
        if isinstance(answer, FillLease):
            await self._entries.release_fill_lease(namespace, fill_token)
        if hit is None:
            return (isinstance(answer, EntryMiss) and answer.reason is MissReason.EMPTY) or (
                isinstance(answer, Hit) and answer.fields.get(CHECKPOINT_ID) == b""
            )
        return isinstance(answer, Hit) and answer.fields == hit.fields


def is_same(served: Record | None, held: Record | None) -> bool:
    """Tell whether what was served is what Postgres holds."""
    content = comparable_content(held)
    try:
        return bool(comparable_content(served) == content)
    except Exception:  # noqa: BLE001 - bytes that somebody made are not what Postgres holds
        return False


def comparable_content(record: Record | None) -> Any:
    """Return what equal records of one checkpoint have in common, read from either tier.

    The order of writes and the spelling of JSON are left out.
    """
    if record is None:
        return None
    return (
        (record.namespace, record.checkpoint_id, record.parent_id, record.sends),
        (jsonb.loads(record.checkpoint_json), jsonb.loads(record.metadata_json)),
        {value.channel: value for value in record.values if value.type != "empty"},
        {(write.task_id, write.idx): write for write in record.writes},
    )
