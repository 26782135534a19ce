"""The parts of the benchmarks that only calculate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

import benchmarks
from benchmarks import chat
from benchmarks.against import Measured, comparison
from benchmarks.bars import Bar, bars
from benchmarks.catalogue import catalogue
from benchmarks.paths import Figures, figures, listing
from benchmarks.readme import BEGIN, END, put_into
from benchmarks.report import QUICK, bars_table, markdown, number, table
from benchmarks.results import UPSTREAM, AnotherRun, Results, quartiles, ratios, resumed, summary
from benchmarks.rounds import Plan, next_count, rotated, takes_part
from benchmarks.soak import growth
from benchmarks.workloads import ColdRead, WarmRead


def cell(*values: float) -> dict[str, Any]:
    rounds = {number: {"value": value} for number, value in enumerate(values)}
    return {"operations": 1, "failure": None, "rounds": rounds}


def results(workloads: dict[str, dict[str, dict[str, Any]]], **more: Any) -> Results:
    """A results file in which each of these workloads has these cells."""
    return Results(
        {
            "plan": {"rounds": 3, "seconds": 0.2, "quick": False},
            "machine": {"processor": "one"},
            "versions": {"Python": "3"},
            "settings": {"fsync": "on"},
            "network": {},
            "contestants": {UPSTREAM: "Stock", "write_through": "Ours"},
            "left_out": {},
            "workloads": [
                {
                    "name": name,
                    "group": "Reading",
                    "question": "How long?",
                    "metric": "latency" if name.endswith(", 1 at once") else "throughput",
                    "network": False,
                    "parameters": {},
                    "cells": summary(cells),
                }
                for name, cells in workloads.items()
            ],
            **more,
        }
    )


def verdict(found: Results, start: str) -> Bar:
    [bar] = [bar for bar in bars(found) if bar.what.startswith(start) and "without its lock" not in bar.what]
    return bar


def test_every_contestant_is_first_equally_often() -> None:
    assert [rotated("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 1) == []


def test_contestants_take_part_in_all_or_three_rounds() -> None:
    assert all(takes_part(number, 15, often=True) for number in range(15))
    assert [number for number in range(15) if takes_part(number, 15, often=False)] == [0, 5, 10]
    assert takes_part(0, 1, often=False)


@pytest.mark.parametrize(
    ("count", "took", "expected"),
    [(128, 0.1, 256), (128, 0.0999, 320), (128, 10.0, 128), (128, 0.0, 9984)],
)
def test_operations_fill_the_lanes_for_the_planned_time(count: int, took: float, expected: int) -> None:
    assert next_count(count, took, Plan(seconds=0.2), WarmRead(64)) == expected


def test_no_more_operations_than_a_workload_has() -> None:
    assert next_count(128, 0.001, Plan(seconds=0.2), ColdRead(64, threads=400)) == 384


def test_the_median_lies_between_quartiles() -> None:
    assert quartiles([4.0]) == {"low": 4.0, "median": 4.0, "high": 4.0}
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}


def test_ratios_are_of_the_same_round_only() -> None:
    one, other = cell(1.0, 2.0, 9.0), cell(2.0, 8.0)
    assert ratios(one, other) == [0.5, 0.25]
    assert ratios(one, {}) == []
    assert ratios(one, other, "cpu_postgres") == []


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert ratios(cell(1.0, 2.0), cell(0.0, 1.0)) == [2.0]


def test_a_slow_round_for_both_does_not_change_the_ratio() -> None:
    found = results(
        {"warm read, 2 messages, 1 at once": {UPSTREAM: cell(4, 40, 4), "write_through": cell(1, 10, 1)}}
    )
    assert found.ratio("warm read, 2 messages, 1 at once", "write_through") == 0.25
    assert found.median("warm read, 2 messages, 1 at once", UPSTREAM) == 4
    assert found.workloads["warm read, 2 messages, 1 at once"]["cells"]["write_through"]["value_to_stock"] == {
        "low": 0.25,
        "median": 0.25,
        "high": 0.25,
    }


@pytest.mark.parametrize(("ours", "expected"), [(1.0, "met"), (1.2, "missed")])
def test_a_time_is_met_up_to_the_bar(ours: float, expected: str) -> None:
    found = results({"warm read, 2 messages, 1 at once": {UPSTREAM: cell(4.0), "write_through": cell(ours)}})
    bar = verdict(found, "warm read, 2 messages, 1 at once")
    assert (bar.figure, bar.wanted, bar.verdict) == (ours / 4, "at most 0.25", expected)


@pytest.mark.parametrize(("ours", "expected"), [(800.0, "met"), (799.0, "missed")])
def test_a_throughput_is_met_from_the_bar_on(ours: float, expected: str) -> None:
    found = results({"warm read, 2 messages, 64 at once": {UPSTREAM: cell(100.0), "write_through": cell(ours)}})
    assert verdict(found, "warm read, 2 messages, 64 at once").verdict == expected


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    failed = {"operations": 1, "failure": "OSError: gone", "rounds": {}}
    found = results({"warm read, 2 messages, 1 at once": {UPSTREAM: cell(4.0), "write_through": failed}})
    assert {bar.verdict for bar in bars(found)} == {"not measured"}
    assert "write_through in warm read, 2 messages, 1 at once: OSError: gone" in markdown(found)


def test_no_query_at_all_meets_the_bar_of_none() -> None:
    kind = "warm read, 20 messages, 1 at once"
    for queries, expected in ((0.0, "met"), (0.1, "missed")):
        found = results({}, counts={kind: {"write_through": {"queries": queries}}})
        assert verdict(found, "warm read: queries").verdict == expected


def test_a_quick_run_is_not_judged() -> None:
    found = results({"warm read, 2 messages, 1 at once": {UPSTREAM: cell(4.0), "write_through": cell(1.0)}})
    assert "| met |" in bars_table(found)
    found.data["plan"]["quick"] = True
    assert "| met |" not in bars_table(found)
    assert QUICK in markdown(found)


def test_a_short_soak_says_nothing() -> None:
    for turns, expected in ((100_000, "met"), (99_999, "not measured")):
        found = results({}, soak={"turns": turns, "threads": 10_000, "growth": 1.0, "samples": []})
        assert verdict(found, "process memory").verdict == expected


def test_every_bar_belongs_to_an_existing_workload() -> None:
    names = {workload.name for workload in catalogue()}
    measured = [
        bar.what for bar in bars(results({})) if bar.what.endswith((": time", ": throughput", "application"))
    ]
    assert len(measured) > 30
    assert {what.rpartition(":")[0] for what in measured} <= names


def test_workloads_have_names_of_their_own() -> None:
    names = [workload.name for workload in catalogue()]
    assert len(names) == len(set(names))


def test_memory_is_flat_if_its_end_is_as_its_beginning() -> None:
    assert growth([1, 1, *[100] * 8]) == 1.0
    assert growth([1, 1, 100, 100, 100, 100, 100, 100, 110, 110]) == pytest.approx(1.1)
    assert growth([1, 2]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0, "0"), (0.00123456, "0.00123"), (1.5, "1.5"), (99.96, "100"), (1234.5, "1,234")],
)
def test_numbers_have_three_digits_that_count(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_a_table_is_markdown() -> None:
    assert table(["", "a"], [["row", "1"]]) == "|  | a |\n| --- | ---: |\n| row | 1 |"


def test_readme_excerpt_replaces_only_what_is_between_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    found = results(
        {"warm read, 20 messages, 1 at once": {UPSTREAM: cell(1, 2, 4), "write_through": cell(0.5, 1, 2)}}
    )
    for _ in range(2):
        put_into(readme, found)
        lines = readme.read_text().splitlines()
        assert (lines[:2], lines[-2:]) == (["before", BEGIN], [END, "after"])
        assert "| warm read, 20 messages, 1 at once, ms | 2 | 1 (0.5) |" in lines
        assert "old" not in lines
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        put_into(readme, found)
    assert readme.read_text() == "nothing"


def test_interrupted_run_resumes_on_the_same_machine_only() -> None:
    def workload(name: str, failure: str | None) -> dict[str, Any]:
        return {"name": name, "cells": {UPSTREAM: {"failure": failure}}}

    data = {key: {"is": key} for key in ("plan", "machine", "versions", "settings", "contestants")}
    good, bad = workload("good", None), workload("bad", "PoolTimeout")
    assert resumed({**data, "workloads": [good, bad]}, data) == [good]
    with pytest.raises(AnotherRun, match="machine"):
        resumed({**data, "workloads": [good]}, {**data, "machine": {"is": "another"}})


def test_path_figures_count_functions_files_and_switches() -> None:
    entries = [("saver.py", "aput"), ("codec.py", "dump"), ("codec.py", "dump"), ("saver.py", "aput")]
    assert figures(entries) == Figures(functions=2, files=2, switches=2)
    assert figures([]) == Figures(functions=0, files=0, switches=0)


def test_path_listing_names_a_file_where_a_switch_leads_to_it() -> None:
    lines = listing([("saver.py", "aput"), ("codec.py", "dump"), ("codec.py", "load")]).splitlines()
    assert [line.split() for line in lines] == [["saver.py", "aput"], ["codec.py", "dump"], ["load"]]


def test_comparison_has_medians_and_ratios_of_each_round() -> None:
    def measured(*values: float) -> list[dict[int, Measured]]:
        return [{lanes: Measured(value, value, value) for lanes in (1, 16)} for value in values]

    names = ("this build", "other build", "upstream")
    columns = zip(measured(1, 2, 3), measured(2, 2, 2), measured(4, 4, 4), strict=True)
    tables = comparison([dict(zip(names, column, strict=True)) for column in columns]).split("\n\n")
    assert len(tables) == 4
    for each in tables:
        assert each.splitlines()[2:] == [
            "| this build | 2 | - | - | - |",
            "| other build | 2 | 1 | 0.5 | 1.5 |",
            "| upstream | 4 | 0.5 | 0.25 | 0.75 |",
        ]


def test_first_checkpoint_stores_all_its_versions() -> None:
    first, _, stored = chat.checkpoint(InMemorySaver(), chat.messages(2))
    _, _, stored_next = chat.checkpoint(InMemorySaver(), chat.messages(2), first)
    assert stored == first["channel_versions"]
    assert list(stored_next) == ["messages"]


def test_stored_results_can_be_reported() -> None:
    file = Path(str(benchmarks.__file__)).with_name("results") / "results.json"
    found = Results(json.loads(file.read_text()))
    assert sum(bar.verdict == "met" for bar in bars(found)) > 30
    assert "## A chat turn" in markdown(found)
