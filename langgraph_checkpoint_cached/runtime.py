"""Event loop, clock and counters that the components of one saver share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from langgraph_checkpoint_cached.stats import Stats


@dataclass(frozen=True)
class Runtime:
    """Surroundings of one saver's components.

    Attributes:
        loop: Event loop that all of them run on.
        stats: Counters of the saver.
        clock: Seconds, monotonic.
    """

    loop: asyncio.AbstractEventLoop
    stats: Stats = field(default_factory=Stats)
    clock: Callable[[], float] = time.monotonic
