"""Lifetimes of each kind of data in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Ttl:
    """Lifetime of an entry, in seconds. With `sliding`, a read starts it anew."""

    seconds: float
    sliding: bool = False

    @cached_property
    def milliseconds(self) -> int:
        """Whole milliseconds, at least 1, as `PX` and `PEXPIRE` of Redis take them."""
        return max(1, round(self.seconds * 1000))


CHECKPOINT = Ttl(3600, sliding=True)
INTENT = Ttl(5 * 60)
SESSION_STATE = Ttl(30 * 60, sliding=True)
RATE_LIMIT = Ttl(60, sliding=True)
