"""Counters, times and gauges: what is said of them, and that they are what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from langgraph_checkpoint_cached.stats import SECONDS, Histogram, Stats, stat_names

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_a_histogram_counts_and_sums() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 2, 3, 100):
        histogram.record(value)
    assert histogram.buckets == [2, 2, 1, 1]
    assert (histogram.count, histogram.sum) == (6, 108)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0),
        ([1.5], 0.5, 1.5),
        ([0.5] * 10, 0.5, 0.5),
        ([0.5] * 50 + [3] * 50, 0.5, 1),
        ([0.5] * 50 + [3] * 50, 0.99, 3.96),
        ([100], 0.5, 4),
        ([0.5] * 98 + [100, 100], 0.99, 4),
    ],
)
def test_quantiles_come_from_the_buckets(values: list[float], share: float, expected: float) -> None:
    histogram = Histogram((1, 2, 4))
    for value in values:
        histogram.record(value)
    assert histogram.quantile(share) == pytest.approx(expected)


def test_times_are_recorded_however_a_block_ends() -> None:
    histogram = Histogram()
    with pytest.raises(RuntimeError), histogram.timed():
        raise RuntimeError
    assert histogram.count == 1
    assert 0 < histogram.sum < SECONDS[-1]


def test_all_that_is_described_is_reported_and_nothing_else() -> None:
    stats = Stats()
    expected = {name for kind in ("counter", "gauge") for name, _ in stats.described(kind)}
    for name, _ in stats.described("histogram"):
        count, total, stem = stat_names(name)
        expected |= {count, total, f"{stem}_p50", f"{stem}_p99"}
    reported = stats.as_dict()
    assert reported.keys() == expected
    assert all(type(value) in (int, float) for value in json.loads(json.dumps(reported)).values())
    for kind in ("counter", "gauge", "histogram"):
        for name, about in stats.described(kind):
            assert about["description"].endswith("."), name
            assert about["unit"], name


def test_the_readme_names_what_there_is_and_all_of_it() -> None:
    section = README.partition("## What to watch\n")[2].partition("\n## ")[0]
    first_column = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    named = set()
    for name in re.findall(r"`([a-z0-9_]+\*?)`", first_column):
        named |= {name.replace("*", end) for end in ("count", "seconds", "p50", "p99")}
    assert named == Stats().as_dict().keys()
