"""Right of this process to serve from Redis, and the server epoch of Redis that it holds for."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TypeAlias

from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.processes import ProcessTable
from langgraph_checkpoint_cached.stores.redis.executor import ScriptExecutor
from langgraph_checkpoint_cached.stores.redis.health import AnotherServer
from langgraph_checkpoint_cached.stores.redis.invalidation import ThreadInvalidation

logger = logging.getLogger("langgraph_checkpoint_cached")

RIGHT_SECONDS = 1.0
"""Time that a right lasts, from before its heartbeat was sent. Others wait so long for a silent process."""
ALONE_SECONDS = 0.6
"""Time for which it is known that nobody serves."""
REGISTER_ATTEMPTS_MAX = 3
REFUSED = (
    "nothing is served from this Redis: other processes are connected to another one, which replaced it. Does the "
    "address lead to a former primary, or is one prefix used on two servers?"
)

Term: TypeAlias = "tuple[str, int]"


class ServingRight:
    """Right to serve from Redis. See `tests/models/serving_model.py`.

    It lasts for `RIGHT_SECONDS` after each heartbeat in Postgres, by a clock that goes on while the machine
    sleeps. So a process that stands still, or that Postgres does not answer, serves nothing that others have
    overwritten. A write that Redis has confirmed is acknowledged under the right too: else another Redis may be
    the registered one.

    Args:
        runtime: Clock.
        executor: Knows the server epoch.
        invalidation: Empties a Redis that was left and is returned to.
        processes: Registered server epoch.
    """

    def __init__(
        self,
        runtime: Runtime,
        executor: ScriptExecutor,
        invalidation: ThreadInvalidation,
        processes: ProcessTable,
    ) -> None:
        self._clock, self._executor = runtime.boot_clock, executor
        self._invalidation, self._processes = invalidation, processes
        self.until = -math.inf
        """Time, on the clock that goes on while the machine sleeps, at which the right ends."""
        self._alone_until = -math.inf
        self._is_refused = False
        self.turn = asyncio.Lock()
        """Held for a heartbeat, and while the server epoch changes."""
        self.term: Term | None = None
        """Registered server epoch that this process uses, and the number of its registration."""

    @property
    def is_valid(self) -> bool:
        """Return whether this process may serve from Redis now."""
        return self._clock() < self.until

    def extend(self, sent_at: float, seconds: float = RIGHT_SECONDS) -> None:
        """Extend the right: a heartbeat was sent then, and all that it found stale is invalidated."""
        self.until = max(self.until, sent_at + seconds)

    def end(self) -> None:
        """End the right at once."""
        self.until = -math.inf

    @property
    def is_nobodys(self) -> bool:
        """Return whether no process has a right: then a write that only Postgres has waits for none."""
        return self._clock() < self._alone_until

    def note_nobodys(self, sent_at: float) -> None:
        """Note that a heartbeat, sent then, found that others know that this process lacks Redis, and none serves.

        One that begins to serve after that announces it `RIGHT_SECONDS` before.
        """
        self._alone_until = sent_at + ALONE_SECONDS

    def claim(self) -> None:
        """Note that this process is about to say that it serves."""
        self._alone_until = -math.inf

    async def register(self) -> None:
        """Do as `register_in_turn`, when no heartbeat is under way."""
        async with self.turn:
            await self.register_in_turn()

    async def register_in_turn(self) -> Term:
        """Register this process' server epoch, unless it is registered; return when nobody serves from another.

        The newest epoch wins. One that was registered before, as that of a former primary, waits until nobody uses
        the one that is, and is emptied first.

        Raises:
            AnotherServer: that is to be tried again later.
            RedisUnavailable: Redis does not answer.
            psycopg.Error: Postgres cannot be asked.
        """
        self.end()
        self.term = None
        epoch = await self._executor.learn_epoch()
        for _ in range(REGISTER_ATTEMPTS_MAX):
            status = await self._processes.find_epoch(epoch)
            if status is None:
                return self._use_without_table(epoch)
            if status.registered == epoch:
                if status.is_another_used:
                    await asyncio.sleep(RIGHT_SECONDS)  # then all rights from before have run out
                self.term, self._is_refused = (epoch, status.term), False
                return self.term
            if status.was_registered:
                if status.is_another_used:
                    await self._executor.reconnect()
                    if not self._is_refused:
                        self._is_refused = True
                        logger.error("%s", REFUSED)
                    raise AnotherServer(REFUSED)
                await self._invalidation.invalidate_all()
            if status.registered is not None:
                logger.info("another Redis server, or one that was restarted, is registered for this prefix")
            if not await self._processes.register(epoch, status.registered):
                return self._use_without_table(epoch)
        raise AnotherServer("processes register different Redis servers in turn")

    def _use_without_table(self, epoch: str) -> Term:
        self.term = (epoch, 0)
        return self.term
