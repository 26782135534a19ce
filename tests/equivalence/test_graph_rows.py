"""The same runs of real graphs leave the same rows and the same states, whichever saver they had."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import UUID
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.pregel import _checkpoint

from langgraph_checkpoint_cached.records import Namespace
from tests.equivalence import graphs, worlds
from tests.equivalence.same import difference
from tests.support import servers

pytestmark = pytest.mark.integration

FIRST_ID = int(UUID("1ef00000-0000-6000-8000-000000000000"))


class Draws:
    """Ids and times that LangGraph draws, the same again after every `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._numbers = itertools.count(1)

    def uuid6(self, node: int | None = None, clock_seq: int | None = None) -> UUID:
        return UUID(int=FIRST_ID + (next(self._numbers) << 80))

    def now(self, tz: Any = None) -> datetime:
        return datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=next(self._numbers))

    def next_version(self, current: Any, channel: None) -> str:
        before = 0 if current is None else int(str(current).split(".")[0])
        return f"{before + 1:032}.0.{next(self._numbers):016}"


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    draws = Draws()
    monkeypatch.setattr(_checkpoint, "uuid6", draws.uuid6)
    monkeypatch.setattr(_checkpoint, "datetime", draws)
    monkeypatch.setattr(AsyncPostgresSaver, "get_next_version", draws.next_version)
    return draws


@pytest.fixture(scope="module")
def urls(databases: servers.Databases, migrated_template_url: str) -> Iterator[tuple[str, str]]:
    with databases.fresh(migrated_template_url) as stock_url, databases.fresh(migrated_template_url) as cached_url:
        yield stock_url, cached_url


@pytest.fixture
async def sides(urls: tuple[str, str], redis_url: str, redis_prefix: str) -> AsyncIterator[worlds.Sides]:
    async with worlds.open_sides(*urls, redis_url, redis_prefix) as sides:
        yield sides


@pytest.fixture(scope="module")
def table(report: list[str]) -> Iterator[dict[tuple[str, str], dict[str, int]]]:
    """Rows that each run left in each table, shown at the end: what a cheaper way of writing would save."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    yield counts
    report.append(f"{'rows, the same as with upstream':<36}" + "".join(f"{name:>20}" for name in worlds.ROWS))
    for (case, durability), rows in counts.items():
        report.append(f"{f'{case}, {durability}':<36}" + "".join(f"{rows[name]:>20}" for name in worlds.ROWS))


async def outcome_of(
    saver: BaseCheckpointSaver[str], case: str, durability: graphs.Durability, thread_id: str
) -> list[Any]:
    """Answers and states, past ones too."""
    make, script = graphs.CASES[case]
    graph = make().compile(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": thread_id}}
    answers = await script(graph, config, durability)
    now = await graph.aget_state(config, subgraphs=True)
    return [answers, now, [snapshot async for snapshot in graph.aget_state_history(config)]]


@pytest.mark.parametrize("durability", get_args(graphs.Durability))
@pytest.mark.parametrize("case", graphs.CASES)
async def test_same_run_leaves_the_same_rows(
    sides: worlds.Sides,
    draws: Draws,
    table: dict[tuple[str, str], dict[str, int]],
    case: str,
    durability: graphs.Durability,
) -> None:
    thread_id = uuid.uuid4().hex
    upstream = await outcome_of(sides.upstream, case, durability, thread_id)
    draws.restart()
    ours = await outcome_of(sides.pods[0], case, durability, thread_id)

    assert difference(upstream, ours) is None
    rows = [await worlds.rows_of(pool, [thread_id]) for pool in (sides.stock_pool, sides.cached_pool)]
    assert rows[0] == rows[1]
    table[case, durability] = {name: len(found) for name, found in rows[0].items()}
    assert sides.stats()["hits"]
    assert not sides.stats()["redis_errors"]


@pytest.mark.parametrize("case", graphs.CASES)
async def test_thread_continues_with_upstream_saver_and_back(
    sides: worlds.Sides, urls: tuple[str, str], draws: Draws, case: str
) -> None:
    """Ours can be removed at any time. When it comes back, its entries are dropped: it did not see the writes."""
    thread_id = uuid.uuid4().hex
    upstream = AsyncPostgresSaver(sides.cached_pool)
    answers = []
    for savers in ([sides.upstream] * 3, [sides.pods[0], upstream, sides.pods[1]]):
        draws.restart()
        answers.append([])
        for saver in savers:
            await sides.forget(Namespace(thread_id, ""))
            answers[-1].append(await outcome_of(saver, case, "sync", thread_id))
    assert difference(*answers) is None
    await sides.check_rows([thread_id])
