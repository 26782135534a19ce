"""Journals of leases that have ended: removed from Redis, and once more after a failover may have brought them
back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.leases import LeaseTable
from langgraph_checkpoint_cached.stores.redis.health import RedisUnavailable
from langgraph_checkpoint_cached.stores.redis.journal import Journal

LAG_SECONDS_MAX = 60.0
ENDED_MAX = 100_000


class EndedJournals:
    """Removal of journals that nobody will replay. They do not expire, so that one left behind would stay for
    good.
    """

    def __init__(self, runtime: Runtime, journal: Journal, leases: LeaseTable) -> None:
        self._clock, self._journal, self._leases = runtime.clock, journal, leases
        self._ended: deque[tuple[float, str, str]] = deque(maxlen=ENDED_MAX)

    def schedule(self, thread_id: str, token: str) -> None:
        """Have the journal of a lease that has ended removed once more, `LAG_SECONDS_MAX` later.

        A failover to a replica that lags may bring it back until then.
        """
        self._ended.append((self._clock() + LAG_SECONDS_MAX, thread_id, token))

    async def remove_due(self) -> None:
        """Remove the journals whose time has come. To be called again and again. Raises `RedisUnavailable`."""
        due = []
        while self._ended and self._ended[0][0] <= self._clock():
            due.append(self._ended.popleft())
        try:
            await self._journal.clean_up({thread_id: token for _, thread_id, token in due})
        except RedisUnavailable:
            self._ended.extendleft(reversed(due))
            raise

    async def remove(self, thread_ids: Collection[str]) -> None:
        """Remove journals of leases that have ended, by a process that may have died before it reached Redis.

        The lease of a journal's entries had its row before them: if there is another one now, or none, it has
        ended. Raises `RedisUnavailable`, and psycopg's errors.
        """
        tokens = await self._journal.newest(list(thread_ids))
        rows = await self._leases.find(thread_ids)
        ended = {t: token for t, token in tokens.items() if t not in rows or token not in ("", rows[t].token)}
        await self._journal.clean_up(ended)
