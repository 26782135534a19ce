"""Event loop, clock and counters that the components of one saver share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.stats import Stats
from langgraph_checkpoint_cached.utils.tokens import new_token

if hasattr(time, "CLOCK_BOOTTIME"):
    boot_clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # where the monotonic clock goes on, or no machine sleeps
    boot_clock = partial(time.monotonic)


@dataclass(frozen=True)
class Runtime:
    """Surroundings of one saver's components.

    Attributes:
        loop: Event loop that all of them run on.
        stats: Counters of the saver.
        clock: Seconds, monotonic.
        boot_clock: Seconds, monotonic, which go on while the machine sleeps.
        owner: Name of this saver among all processes: of its fences, and of its transactions.
        database: Identity of Postgres as far as this process knows.
    """

    loop: asyncio.AbstractEventLoop
    stats: Stats = field(default_factory=Stats)
    clock: Callable[[], float] = time.monotonic
    boot_clock: Callable[[], float] = boot_clock
    owner: str = field(default_factory=new_token)
    database: DatabaseIdentity = field(default_factory=DatabaseIdentity)
