"""Room in a queue, for which callers wait in the order in which they came."""

from __future__ import annotations

import asyncio
import time


class NoRoom(Exception):
    """Nothing has left the queue for too long."""


class Room:
    """Room in a queue, bounded in operations and in bytes.

    A caller adds its operation if `is_free`, else after `wait`, with no other `await` in between. So what it adds
    need not be made before there is room for it, and nobody overtakes.

    Args:
        count_max: Number of operations from which on the queue is full.
        bytes_max: Bytes of theirs from which on it is full.
        seconds_max: Longest time to wait while nothing leaves the queue.
    """

    def __init__(self, *, count_max: int, bytes_max: int, seconds_max: float) -> None:
        self._count_max, self._bytes_max, self._seconds_max = count_max, bytes_max, seconds_max
        self.count = self.size_bytes = 0
        self._is_full = False
        self._moved_at = 0.0
        """Time at which something left the queue, or it became full."""
        self._callers = 0
        self.is_free = True
        """True if there is room, and nobody waits for it."""
        self._turn = asyncio.Lock()
        self._freed: asyncio.Future[None] | None = None

    def take(self, size_bytes: int) -> None:
        """Note that an operation has been queued."""
        self.count += 1
        self.size_bytes += size_bytes
        if self.count >= self._count_max or self.size_bytes >= self._bytes_max:
            self.is_free = False
            if not self._is_full:
                self._is_full, self._moved_at = True, time.monotonic()

    def give(self, count: int, size_bytes: int) -> None:
        """Note that so many operations have left the queue."""
        self.count -= count
        self.size_bytes -= size_bytes
        self._moved_at = time.monotonic()
        self._is_full = self.count >= self._count_max or self.size_bytes >= self._bytes_max
        self.is_free = not self._is_full and not self._callers
        if self._freed is not None and not self._freed.done() and not self._is_full:
            self._freed.set_result(None)

    async def wait(self) -> None:
        """Wait for room, after those who came before.

        Raises:
            NoRoom: nothing has left the queue for `seconds_max`.
        """
        self._callers += 1
        self.is_free = False
        try:
            async with self._turn:
                while self._is_full:
                    if (seconds := self._moved_at + self._seconds_max - time.monotonic()) <= 0:
                        raise NoRoom(f"{self.count} operations of {self.size_bytes} bytes wait")
                    self._freed = asyncio.get_running_loop().create_future()
                    await asyncio.wait((self._freed,), timeout=seconds)
        finally:
            self._callers -= 1
            self.is_free = not self._is_full and not self._callers
