"""Heartbeat of this process in Postgres, which renews its right to serve from Redis."""

from __future__ import annotations

from collections.abc import Callable

from langgraph_checkpoint_cached.engine.invalidation import StaleThreadInvalidator
from langgraph_checkpoint_cached.engine.serving_right import ServingRight, Term
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.identity import IdentityReader
from langgraph_checkpoint_cached.stores.postgres.processes import ProcessTable
from langgraph_checkpoint_cached.stores.redis.health import AnotherServer

RIGHT_WITHOUT_TABLE_SECONDS = 3.0
"""Time that a look at the stale threads counts where there is no table of processes."""
BEATS_MAX = 3


class Heartbeat:
    """Heartbeat: one statement that renews the row of this process, and finds what is registered and stale.

    It counts only if its snapshot has the heartbeat before it: then whoever overwrites something after that
    snapshot sees that this process serves, and waits for it. So the first one is sent twice.
    """

    def __init__(
        self,
        runtime: Runtime,
        right: ServingRight,
        invalidator: StaleThreadInvalidator,
        processes: ProcessTable,
        identity: IdentityReader,
    ) -> None:
        self._clock, self.right = runtime.boot_clock, right
        self.invalidator, self._processes, self._identity = invalidator, processes, identity
        self._answered = 0
        self.is_announced = False
        """True if others may believe that this process serves."""

    async def beat(self) -> None:
        """Renew the right.

        Raises:
            AnotherServer: another one is registered.
            RedisUnavailable: Redis does not answer.
            psycopg.Error: Postgres does not answer.
        """
        async with self.right.turn:
            for _ in range(BEATS_MAX):
                if await self._beat(self.right.term or await self.right.register_in_turn()):
                    return

    async def _beat(self, term: Term) -> bool:
        """Return whether the right is renewed; if not, another heartbeat is needed."""
        await self._identity.ask_beside()
        sent_at = self._clock()
        self.is_announced = True
        self.right.claim()
        beat = await self._processes.beat(term[0], serves=True)
        if beat is None:
            await self.invalidator.invalidate_recorded()
            self.right.extend(sent_at, RIGHT_WITHOUT_TABLE_SECONDS)
            return True
        if beat.registered is None:  # the table is new
            self.right.term = None
            return False
        if (beat.registered, beat.term) != term:
            self.right.end()
            raise AnotherServer("another Redis server, or a restarted one, is registered for this prefix")
        self.invalidator.note_table_read()
        seen = await self.invalidator.invalidate_seen(beat.stale)
        if beat.announced:
            self.right.extend(sent_at)
            if beat.asked != self._answered:
                await self._processes.answer(beat.asked)
                self._answered = beat.asked
        await self.invalidator.remove_seen(seen)
        return beat.announced

    async def withdraw(self, *, lacks_redis: bool) -> None:
        """Say that this process does not serve; with `lacks_redis` again and again. Raises psycopg's errors."""
        self.right.end()
        if self.is_announced or lacks_redis:
            sent_at, epoch = self._clock(), self.right.term[0] if self.right.term else ""
            beat = await self._processes.beat(epoch, serves=False, lacks_redis=lacks_redis)
            self.is_announced = False
            if beat is not None and beat.may_skip:
                self.right.note_nobodys(sent_at)

    async def listen(self, on_notified: Callable[[], None]) -> None:
        """Have a function called when another process asks this one to look. Raises psycopg's errors."""
        await self._processes.listen(on_notified)

    async def leave(self) -> None:
        """End the right, and delete the row of this process. Raises psycopg's errors."""
        self.right.end()
        await self._processes.leave()
