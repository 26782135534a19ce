"""Plots of a results file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import UPSTREAM, Results

GROUPS = {"Reading": "reading", "Writing": "writing", "A chat turn": "turns", "Over a network": "network"}
METRICS = {"latency": "time", "throughput": "throughput"}
GROWTH = {
    "messages": "messages in the history",
    "kilobytes": "kilobytes of state",
    "threads": "threads stored",
}


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw the plots that these results allow, as SVG. Return their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "font.size": 9, "axes.spines.top": False})
    drawn = [
        path
        for group, name in GROUPS.items()
        for metric, suffix in METRICS.items()
        for path in _speeds(results, group, metric, directory / f"{name}-{suffix}.svg")
    ]
    return [*drawn, *_growth(results, directory / "growth.svg"), *_soak(results, directory / "memory.svg")]


def speed(workload: dict[str, Any], name: str) -> float | None:
    """Return the speed as a multiple of the upstream saver's; None if it was not measured."""
    ratio = workload["cells"].get(name, {}).get("value_to_stock")
    if not ratio or not ratio["median"]:
        return None
    return float(1 / ratio["median"] if workload["metric"] == "latency" else ratio["median"])


def _speeds(results: Results, group: str, metric: str, path: Path) -> Iterable[Path]:
    workloads = [
        workload
        for workload in results.workloads.values()
        if ("Over a network" if workload["network"] else workload["group"]) == group
        and workload["metric"] == metric
    ]
    names = [name for name in results.data["contestants"] if name not in (UPSTREAM, "nothing")]
    names = [name for name in names if any(speed(workload, name) for workload in workloads)]
    if not workloads or not names:
        return
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.13 * len(workloads) * (len(names) + 1)))
    for place, name in enumerate(names):
        heights = [row * (len(names) + 1) + place for row in range(len(workloads))]
        beyond = [(speed(workload, name) or 1) - 1 for workload in workloads]
        axes.barh(heights, beyond, left=1, height=0.9, label=name)
    middle = (len(names) - 1) / 2
    axes.set_yticks(
        [row * (len(names) + 1) + middle for row in range(len(workloads))],
        [workload["name"] for workload in workloads],
    )
    axes.invert_yaxis()
    _logarithmic(axes.set_xscale, axes.xaxis)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the upstream saver on a pool of 10, median of the rounds")
    axes.set_title(group)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)
    yield path


def _growth(results: Results, path: Path) -> Iterable[Path]:
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for workload in results.workloads.values():
        if workload["group"] == "Growth":
            for parameter in workload["parameters"].keys() & GROWTH.keys():
                kind = "chat turn" if "chat turn" in workload["name"] else "warm read"
                series.setdefault((kind, parameter), []).append(workload)
    if not series:
        return
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(1, len(series), figsize=(3.6 * len(series), 3.4), squeeze=False)
    for axes, ((kind, parameter), workloads) in zip(rows[0], series.items(), strict=True):
        for name in results.data["contestants"]:
            _line(axes, name, parameter, workloads)
        _logarithmic(axes.set_xscale, axes.xaxis)
        _logarithmic(axes.set_yscale, axes.yaxis)
        axes.set_xlabel(GROWTH[parameter])
        axes.set_ylabel(f"ms of a {kind}")
    rows[0][0].legend(fontsize=7)
    _save(figure, path)
    yield path


def _line(axes: Any, name: str, parameter: str, workloads: Sequence[dict[str, Any]]) -> None:
    points = [
        (workload["parameters"][parameter], workload["cells"][name]["value"]["median"])
        for workload in workloads
        if "value" in workload["cells"].get(name, {})
    ]
    if points:
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)


def _soak(results: Results, path: Path) -> Iterable[Path]:
    soak = results.data.get("soak")
    if not soak:
        return
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4))
    turns = [sample["turns"] for sample in soak["samples"]]
    for key, label in (("process_bytes", "process"), ("redis_bytes", "Redis")):
        axes.plot(turns, [sample[key] / 1e6 for sample in soak["samples"]], label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"turns, on {soak['threads']:,} threads")
    axes.set_ylabel("MB of memory")
    axes.legend()
    _save(figure, path)
    yield path


def _logarithmic(scale: Callable[[str], None], axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
