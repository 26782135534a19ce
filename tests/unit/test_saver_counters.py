from __future__ import annotations

import json

import pytest

from langgraph_checkpoint_cached.cli.commands.tail import COLUMNS
from langgraph_checkpoint_cached.cli.sampler import Sample
from langgraph_checkpoint_cached.cli.saver_counters import SaverCounters
from tests.support.inspect import tail_header, tail_line


def published(**per_second: float) -> bytes:
    totals = {"hits": 10, "unflushed": 2, "unflushed_bytes": 300}
    return json.dumps({"totals": totals, "per_second": per_second}).encode()


def test_counters_of_all_savers_are_added_up() -> None:
    counters = SaverCounters.add_up(
        [published(hits=1.5, loads=1, bypasses=2), published(degraded_reads=3, writes=4, appends=5), published()]
    )
    assert counters.savers == 3
    assert (counters.totals["hits"], counters.totals["unflushed"], counters.totals["other"]) == (30, 6, 0)
    assert (counters.hits_per_second, counters.misses_per_second, counters.writes_per_second) == (1.5, 6, 9)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"1",
        b"{}",
        b'{"totals": 1, "per_second": {}}',
        b'{"totals": {"hits": "many"}, "per_second": {}}',
        b'{"totals": {"hits": 1}}',
    ],
)
def test_values_that_no_saver_published_do_not_count(value: bytes | None) -> None:
    counters = SaverCounters.add_up([value, published(hits=1)])
    assert (counters.savers, counters.hits_per_second) == (1, 1)


def test_unknown_numbers_are_dashes() -> None:
    line = tail_line(Sample("2026-01-01T00:00:00+00:00"))
    assert line.split() == ["00:00:00", *["-"] * (len(COLUMNS) - 1)]
    assert len(line) == len(tail_header())


def test_an_error_stands_at_the_end_of_the_line() -> None:
    sample = Sample("2026-01-01T00:00:00+00:00", hits_per_second=3, misses_per_second=1, redis_error="gone")
    assert tail_line(sample).split()[1:4] == ["3", "1", "75"]
    assert tail_line(sample).endswith("  Redis: gone")
