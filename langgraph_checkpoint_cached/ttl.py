"""How long each kind of data lives in Redis, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class Ttl:
    """How long an entry lives, in seconds, and whether reading it starts that time anew (`sliding`)."""

    seconds: float
    sliding: bool = False

    @cached_property
    def milliseconds(self) -> int:
        """The same in whole milliseconds, at least 1: what Redis' `PX` and `PEXPIRE` take."""
        return max(1, round(self.seconds * 1000))


CHECKPOINT = Ttl(3600, sliding=True)
INTENT = Ttl(5 * 60)
SESSION_STATE = Ttl(30 * 60, sliding=True)
RATE_LIMIT = Ttl(60, sliding=True)

LONGEST_SECONDS = 10 * 365 * 24 * 3600


def to_seconds(value: float | timedelta, name: str) -> float:
    """`value` (seconds or a `timedelta`) in seconds.

    Raises:
        ArgumentTypeError: it is neither a number nor a `timedelta`; the message names `name`.
        ArgumentError: it is not positive, or longer than ten years.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number of seconds or a timedelta, not {type(value).__name__}")
    if not 0 < value <= LONGEST_SECONDS:  # also refuses NaN
        raise ArgumentError(f"{name} must be more than 0 and at most {LONGEST_SECONDS} seconds, not {value!r}")
    return float(value)
