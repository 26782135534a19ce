"""A circuit breaker: it remembers that something is down, and when to try again.

The pattern is Nygard's, *Release It!* (2007). Pure state, no I/O and no waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed while calls succeed. A failure opens it; while it is open, one probe at a time may be made.

    Args:
        retry_seconds: From a failure to the first probe; doubled by every probe that fails.
        retry_seconds_max: Where that doubling ends.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        *,
        retry_seconds: float = 0.25,
        retry_seconds_max: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._most, self._clock = retry_seconds, retry_seconds_max, clock
        self._wait = retry_seconds
        self._next_probe = 0.0
        self._probing = False
        self.closed = True

    def fail(self) -> bool:
        """A call failed. Returns whether this opened the breaker."""
        opened, self.closed = self.closed, False
        if opened:
            self._wait = self._first
            self._next_probe = self._clock() + self._wait
        return opened

    def take_probe(self) -> bool:
        """Take the probe that is due. If True, the caller probes now, then calls `end_probe`."""
        if self.closed or self._probing or self._clock() < self._next_probe:
            return False
        self._probing = True
        return True

    def end_probe(self, *, succeeded: bool) -> None:
        """The probe is over."""
        self._probing = False
        if succeeded:
            self.closed = True
        else:
            self._wait = min(2 * self._wait, self._most)
            self._next_probe = self._clock() + self._wait
