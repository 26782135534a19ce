"""Random histories: the upstream saver and ours give the same answers and leave the same rows."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import product
from typing import get_args

import pytest
import redis as redis_py
from hypothesis import HealthCheck, Phase, given, seed, settings

from langgraph_checkpoint_cached.stores.redis import fences
from tests.equivalence import worlds
from tests.equivalence.histories import SLOTS, Change, History, How, Put, PutWrites, Read, Rewrite, Step
from tests.equivalence.strategies import histories
from tests.support import servers

EXAMPLES = int(os.environ.get("EQUIVALENCE_EXAMPLES", "60"))
SEED = int(os.environ.get("EQUIVALENCE_SEED", secrets.randbelow(2**32)))
MANY_EXAMPLES = 100
"""From how many on the share of cached reads says something."""

WRITES = {
    "normal": ("a",),
    "two normal": ("a", "b"),
    "special": ("__interrupt__",),
    "another special": ("__resume__",),
    "two special": ("__interrupt__", "__error__"),
    "special twice": ("__interrupt__", "__interrupt__"),
    "mixed": ("a", "__interrupt__", "b"),
}
VALUES = ("list", "str", "true")

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@dataclass(repr=False)
class Bench:
    """Both sides, and the event loop that everything runs on."""

    loop: asyncio.AbstractEventLoop
    sides: worlds.Sides

    def run(self, history: History) -> None:
        self.loop.run_until_complete(worlds.run(self.sides, history))


@pytest.fixture(scope="module", params=[("write_through",), ("write_behind", "write_through")], ids="-".join)
def bench(
    request: pytest.FixtureRequest,
    databases: servers.Databases,
    migrated_template_url: str,
    redis_url: str,
    report: list[str],
) -> Iterator[Bench]:
    """Long-lived, because opening pools would take longer than a history. The pods have these modes, in turn.

    They take turns too, so that fences are kept for a few steps only: else one would keep the other off Redis.
    """
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    with (
        databases.fresh(migrated_template_url) as stock_url,
        databases.fresh(migrated_template_url) as cached_url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(fences, "RETAIN_SECONDS", 0.002)
        opening = worlds.open_sides(stock_url, cached_url, redis_url, prefix, modes=request.param)
        sides = loop.run_until_complete(stack.enter_async_context(opening))
        started = time.monotonic()
        try:
            yield Bench(loop, sides)
        finally:
            seconds = time.monotonic() - started
            loop.run_until_complete(stack.aclose())
            loop.close()
            report += summary(sides, seconds)
    with redis_py.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.unlink(key)


def summary(sides: worlds.Sides, seconds: float) -> list[str]:
    """Return lines that say how much was compared: a suite that compares nothing finds nothing."""
    counts = sides.counts
    return [
        f"equivalence: seed {SEED}, {counts['histories']} histories of {counts['steps']} steps in {seconds:.0f} s "
        f"({counts['histories'] / seconds:.1f}/s)",
        f"  compared: {_listed(counts)}",
        f"  cache: {_listed(sides.stats())}",
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


PLACES = (("a", ""), ("a", "b"), ("b", ""))
BEGINNING = Put(
    0,
    0,
    tuple(Change(channel, "set", value) for channel, value in zip("xyz", ("list", "str", "none"), strict=True)),
)


@pytest.mark.parametrize("first", get_args(How))
def test_same_for_any_two_changes_of_a_channel(bench: Bench, first: How) -> None:
    """Systematically, where chance would take long: one change, another one, perhaps late, and a plain one."""
    cases = product(
        get_args(How), (("x", "list", "dict"), ("x", "str", "list"), ("y", "dict", "true")), SLOTS[::2]
    )
    for second, (channel, before, after), slot in cases:
        puts = (
            Put(0, 0, (Change(channel, first, before),)),
            Put(0, 1, (Change(channel, second, after),), slot=slot),
            Put(0, 0, (Change("z", "set", "int"),)),
        )
        bench.run(History(PLACES, (BEGINNING, *puts)))


@pytest.mark.parametrize("how", ["reuse", "return"])
@pytest.mark.parametrize("value", ["str", "none", "list"])
def test_same_for_a_version_from_before_the_chain_was_cut(bench: Bench, how: How, value: str) -> None:
    """No checkpoint in sight has that version, but a value is stored under it."""
    cut = Put(0, 0, (), parent=None)
    bench.run(History(PLACES, (BEGINNING, cut, Put(0, 0, (Change("x", how, value),)))))


@pytest.mark.parametrize("slot", [*SLOTS, "B"])
@pytest.mark.parametrize("parent", [0, 1, None])
@pytest.mark.parametrize("format", [4, 3])
def test_same_for_any_place_in_the_chain(bench: Bench, slot: str, parent: int | None, format: int) -> None:
    """Ids, parents and formats, with writes for the checkpoint before it is there, and after."""
    steps: list[Step] = [BEGINNING, Put(0, 0, (Change("x", "set", "dict"),))]
    steps += [PutWrites(0, 1, (("w", "list"),), target="early"), Read(0, 1), Read(0, 0, "early")]
    steps += [PutWrites(0, 1, (("__pregel_tasks", "send"),), target=n) for n in (0, 1)]
    put = Put(0, 0, (Change("y", "set", "list"),), parent=parent, slot=slot, format=format)
    steps += [put, PutWrites(0, 0, (("w", "str"),)), Put(0, 1, (Change("z", "set", "list"),))]
    bench.run(History(PLACES, tuple(steps)))


@pytest.mark.parametrize("first", WRITES)
@pytest.mark.parametrize("second", WRITES)
@pytest.mark.parametrize("path", ["", "elsewhere"])
def test_same_for_any_two_writes_of_a_task(bench: Bench, first: str, second: str, path: str) -> None:
    """Special ones replace what is there, others do not: LR#133, LA#1174."""
    values = [
        tuple(zip(WRITES[name], names, strict=False)) for name, names in ((first, VALUES), (second, VALUES[::-1]))
    ]
    bench.run(History(PLACES, (BEGINNING, Rewrite(0, 0, *values, path), Rewrite(0, 1, *values[::-1], path))))


@seed(SEED)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(history=histories)
def test_same_answers_and_same_rows_for_any_history(bench: Bench, history: History) -> None:
    """EQUIVALENCE_EXAMPLES is how many histories, EQUIVALENCE_SEED repeats a run."""
    bench.run(history)


def test_the_histories_used_the_cache(bench: Bench) -> None:
    """Otherwise all of the above would have compared Postgres with Postgres."""
    if bench.sides.counts["histories"] < MANY_EXAMPLES:
        pytest.skip("too few histories to tell")
    stats = bench.sides.stats()
    reads = stats["hits"] + stats["loads"] + stats["bypasses"] + stats["degraded_reads"]
    assert stats["hits"] > 0.3 * reads, stats
    if stats["appends"]:  # by one pod of two, and not all of it can be
        assert stats["appends"] > 0.1 * (stats["writes"] + stats["appends"]), stats
    else:
        assert stats["entry_updates"] > 0.3 * stats["writes"], stats
    assert stats["damaged"] or bench.sides.counts["damaged"] < MANY_EXAMPLES, stats
    assert stats["degraded_reads"] < 0.1 * reads, stats
