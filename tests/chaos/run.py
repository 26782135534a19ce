"""One run: servers, workers, the nemesis, then the checkers."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.chaos import end_checks, read_checks, second_opinion
from tests.chaos.audit import audit
from tests.chaos.end_checks import End
from tests.chaos.history import History, load
from tests.chaos.nemesis import plan, torment
from tests.chaos.order import Losses
from tests.chaos.read_checks import Violation
from tests.chaos.savers import NAMES
from tests.chaos.worker import FLUSH_SECONDS_MAX
from tests.chaos.world import Setup, World, opened

FENCE_SECONDS = 3.0
"""Seconds that a worker's fences last; 30 outside of tests."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run."""

    seconds: float
    seed: str
    kinds: Sequence[str]
    saver: str = "ours"
    workers: int = 3
    mode: str = "write_through"
    redis: str = "memory"

    @property
    def setup(self) -> Setup:
        """Setup of the workers."""
        return Setup(self.saver, self.mode, self.redis)

    def __post_init__(self) -> None:
        if self.saver not in NAMES:
            raise ValueError(f"there is no saver {self.saver!r}, only {', '.join(NAMES)}")


@dataclass(frozen=True)
class Result:
    """Outcome of a run."""

    settings: Settings
    history: History
    end: End
    violations: list[Violation]

    def fired(self) -> dict[str, int]:
        """Return the number of violations that each checker has found."""
        return dict(Counter(v.checker for v in self.violations))

    def first(self, checker: str) -> float | None:
        """Seconds from the start of the run to its first violation; None for what is seen after the run."""
        moments = [v.at for v in self.violations if v.checker == checker and v.at]
        return min(moments) - self.history.operations[0].start if moments else None


def run(settings: Settings, keep: Path | None = None) -> Result:
    """Runs and checks. The history stays in `keep`, if that is given."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        directory = keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("*.jsonl"):
            old.unlink()
        end = asyncio.run(_run(settings, directory))
        history = load(directory)
        return Result(settings, history, end, check(history, end))


def check(history: History, end: End) -> list[Violation]:
    """Return the violations that all checkers find, in the order of time."""
    losses = Losses(history)
    checkers: list[Callable[[], Iterator[Violation]]] = [
        lambda: read_checks.older(history, losses),
        lambda: read_checks.backwards(history, losses),
        lambda: read_checks.values(history, losses),
        lambda: read_checks.failed(history),
        lambda: read_checks.turns(history, losses),
        lambda: end_checks.lost(history, end, losses),
        lambda: end_checks.orphans(history, end),
        lambda: end_checks.failed_there(history, end),
        lambda: end_checks.tiers(end),
        lambda: end_checks.served(end),
        lambda: end_checks.keys(end),
        lambda: end_checks.behind(end),
        lambda: end_checks.fences(end),
        lambda: end_checks.leaks(history, end),
        lambda: end_checks.available(history),
        lambda: second_opinion.check(history, end),
    ]
    return sorted(chain.from_iterable(checker() for checker in checkers), key=lambda v: v.at)


async def _run(settings: Settings, directory: Path) -> End:
    lanes = plan(settings.seed, settings.seconds, settings.kinds)
    world = World(settings.seed, settings.setup, settings.workers, directory, FENCE_SECONDS)
    async with opened(world):
        started = time.monotonic()
        await torment(world, lanes)
        await asyncio.sleep(max(0.0, started + settings.seconds - time.monotonic()))
        for worker in world.workers:
            worker.say("settle")
        with suppress(asyncio.TimeoutError):
            settled = asyncio.gather(*(worker.is_settled.wait() for worker in world.workers))
            await asyncio.wait_for(settled, 2 * FLUSH_SECONDS_MAX)
        ended = await asyncio.gather(*(worker.end() for worker in world.workers))
        end = await audit(world)
        end.killed_late = [w.name for w, in_time in zip(world.workers, ended, strict=True) if not in_time]
        return end
