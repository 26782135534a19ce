"""Medians, quartiles and ratios, and access to a results file. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

UPSTREAM = "stock"
"""Key of the upstream saver in results files and tables, unchanged so that older files can be read."""
MEASURES = ("value", "cpu_application", "cpu_postgres")
CONDITIONS = ("plan", "machine", "versions", "settings", "contestants")
Cells = dict[str, dict[str, Any]]


class AnotherRun(Exception):
    """Results were not measured under the same conditions."""


def resumed(before: Mapping[str, Any], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the complete workloads of an interrupted run, if its conditions were those of `data`.

    Raises:
        AnotherRun: its conditions were others.
    """
    for condition in CONDITIONS:
        if before[condition] != data[condition]:
            raise AnotherRun(f"the results there are of another {condition}: leave out --resume, or set --output")
    return [w for w in before["workloads"] if not any(cell["failure"] for cell in w["cells"].values())]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles; of one value, that value three times."""
    if len(values) == 1:
        return {"low": values[0], "median": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def ratios(cell: Mapping[str, Any], other: Mapping[str, Any], measure: str = "value") -> list[float]:
    """Return the ratio of `cell` to `other` in each round that has both."""
    mine, theirs = cell.get("rounds", {}), other.get("rounds", {})
    return [
        mine[number][measure] / theirs[number][measure]
        for number in mine
        if number in theirs and measure in mine[number] and theirs[number].get(measure)
    ]


def summary(cells: Cells) -> Cells:
    """Return the cells with medians, quartiles, and ratios to the upstream saver over the rounds."""
    upstream = cells.get(UPSTREAM, {})
    found: Cells = {}
    for name, cell in cells.items():
        found[name] = {**cell, "rounds": {str(number): value for number, value in cell["rounds"].items()}}
        for measure in MEASURES:
            values = [value[measure] for value in cell["rounds"].values() if measure in value]
            if values:
                found[name][measure] = quartiles(values)
            if compared := ratios(cell, upstream, measure):
                found[name][f"{measure}_to_stock"] = quartiles(compared)
    return found


class Results:
    """Look-ups in a results file."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.workloads: dict[str, dict[str, Any]] = {workload["name"]: workload for workload in data["workloads"]}

    def cell(self, workload: str, contestant: str) -> dict[str, Any]:
        """Return a contestant's measurements of a workload; empty if there are none."""
        found = self.workloads.get(workload, {}).get("cells", {}).get(contestant, {})
        return dict(found) if found.get("rounds") else {}

    def median(self, workload: str, contestant: str, measure: str = "value") -> float | None:
        """Return the median over the rounds."""
        found = self.cell(workload, contestant).get(measure)
        return None if found is None else float(found["median"])

    def ratio(self, workload: str, one: str, other: str = UPSTREAM, measure: str = "value") -> float | None:
        """Return the median of the rounds' ratios; None if no round has both."""
        compared = ratios(self.cell(workload, one), self.cell(workload, other), measure)
        return statistics.median(compared) if compared else None

    def count(self, kind: str, contestant: str, what: str) -> float | None:
        """Return transactions, queries or commands per operation."""
        found = self.data.get("counts", {}).get(kind, {}).get(contestant, {}).get(what)
        return None if found is None else float(found)
