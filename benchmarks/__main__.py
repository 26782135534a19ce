"""Command line of the benchmarks: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis

from benchmarks import against, machine, paths, rounds
from benchmarks.backlog import backlog
from benchmarks.backlog import table as backlog_table
from benchmarks.bars import SOAK_THREADS, SOAK_TURNS
from benchmarks.catalogue import catalogue
from benchmarks.contestants import BY_NAME, CONTESTANTS, OURS, Contestant
from benchmarks.counts import count_all
from benchmarks.network import Network, NoNetwork, network
from benchmarks.outage import outages
from benchmarks.outage import table as outage_table
from benchmarks.readme import put_into
from benchmarks.report import bars_table, markdown
from benchmarks.results import UPSTREAM, AnotherRun, Results, resumed
from benchmarks.retention import ROWS, SECONDS, retention
from benchmarks.retention import table as retention_table
from benchmarks.screen import Screen
from benchmarks.servers import ServerProblem, Servers, servers
from benchmarks.soak import soak
from benchmarks.workloads import Workload
from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError

T = TypeVar("T")

OUTPUT = Path(__file__).with_name("results")
ROUNDS = 15
TERMINATED = 143
CANCEL_AGAIN_SECONDS = 2.0
PROBLEMS = (AnotherRun, ServerProblem, EmbeddedServerError, psycopg.OperationalError, redis.ConnectionError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code: 1 if a contestant failed or a server cannot be used."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that the servers are stopped too
    try:
        return _command(options)
    except PROBLEMS as exc:
        sys.stderr.write(f"python -m benchmarks: {exc}\n")
        return 1
    except asyncio.CancelledError:
        return TERMINATED


def _command(options: argparse.Namespace) -> int:
    if options.command == "report":
        data = json.loads(options.file.read_text())
        write(data, options.output or options.file.parent, options.file.parent)
        if options.readme:
            put_into(options.readme, Results(data))
        return 0
    if options.paths:
        return paths.run(options)
    options.rounds = options.rounds or (against.ROUNDS if options.against else ROUNDS)
    if options.against:
        return _against(options)
    names = options.contestants.split(",") if options.contestants else list(BY_NAME)
    if unknown := [name for name in names if name not in BY_NAME]:
        sys.stderr.write(f"no such contestant: {', '.join(unknown)}; there are {', '.join(BY_NAME)}\n")
        return 2
    options.output = options.output or OUTPUT
    if options.backlog:
        return _backlog(options)
    if options.outage:
        return _outage(options)
    if options.retention:
        return _retention(options)
    if options.soak:
        return _soak(options)
    plan = rounds.Plan(1 if options.quick else options.rounds, options.seconds, options.quick)
    workloads = [workload for workload in catalogue() if re.search(options.only, workload.name)]
    if options.quick:
        workloads = _small(workloads)
    data = _measure(
        options, plan, workloads, [contestant for contestant in CONTESTANTS if contestant.name in names]
    )
    write(data, options.output)
    failed = [cell["failure"] for workload in data["workloads"] for cell in workload["cells"].values()]
    return 1 if any(failed) else 0


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, or cancel it when this process gets SIGTERM.

    A signal handler that raises could do so inside a decoder of a contestant, which would then have failed. And a
    cancellation may be lost in a driver (in Python 3.11's `wait_for`, say), so it is repeated.
    """

    async def run() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def stop() -> None:
            if not task.done():
                task.cancel()
                loop.call_later(CANCEL_AGAIN_SECONDS, stop)

        loop.add_signal_handler(signal.SIGTERM, stop)
        return await task

    return asyncio.run(run())


def _small(workloads: Sequence[Workload]) -> list[Workload]:
    """Return one small workload of each kind, for a quick run: sizes take time but run no other code."""
    kinds: dict[Any, Workload] = {}
    for workload in workloads:
        small = workload.small()
        kinds.setdefault(
            (type(small), small.concurrency, small.network, small.parameters.get("durability")), small
        )
    return list(kinds.values())


def _measure(
    options: argparse.Namespace, plan: rounds.Plan, workloads: list[Workload], contestants: Sequence[Contestant]
) -> dict[str, Any]:
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        screen = stack.enter_context(Screen(len(workloads) + 1))
        found = stack.enter_context(servers(options.postgres, options.redis, screen.say))
        between: Network | None = None
        try:
            if any(workload.network for workload in workloads):
                between = stack.enter_context(network())
        except NoNetwork as exc:
            left_out["everything over a network"] = str(exc)
            workloads = [workload for workload in workloads if not workload.network]
        for contestant in contestants:
            if reason := contestant.why_not(found):
                left_out[contestant.title] = reason
        for name, reason in left_out.items():
            screen.say(f"left out: {name}: {reason}")
        present = [contestant for contestant in contestants if contestant.title not in left_out]
        data: dict[str, Any] = {
            "plan": asdict(plan),
            "machine": machine.machine(),
            "versions": {**machine.versions(), **found.versions()},
            "settings": found.settings(),
            "contestants": {contestant.name: contestant.title for contestant in present},
            "left_out": left_out,
            "network": {name: asdict(measured) for name, measured in between.measured.items()} if between else {},
            "workloads": [],
        }
        if options.resume and (file := options.output / "results.json").exists():
            data["workloads"] = resumed(json.loads(file.read_text()), data)
        _run(_all(options, data, found, between, workloads, present, screen))
        return data


async def _all(
    options: argparse.Namespace,
    data: dict[str, Any],
    found: Servers,
    between: Network | None,
    workloads: Sequence[Workload],
    contestants: Sequence[Contestant],
    screen: Screen,
) -> None:
    """Add the measurements to `data`, and save them after each workload."""
    plan = rounds.Plan(**data["plan"])
    gc.collect()
    gc.freeze()  # what was imported stays: collecting before each measurement need not look through it
    async with rounds.Arena(found, contestants, between) as arena:
        done = {workload["name"] for workload in data["workloads"]}
        for workload in workloads:
            screen.step(workload.name)
            if workload.name in done:
                continue
            data["workloads"].append(await rounds.run(workload, arena, plan, screen.advance, screen.say))
            save(data, options.output)
    screen.step("transactions, queries, bytes")
    data.update(await count_all(found, contestants, options.only, plan.quick, screen.advance))


def _soak(options: argparse.Namespace) -> int:
    """Measure memory. The result goes in a file of its own, as it may be of another day than the others."""
    output: Path = options.output
    with Screen(1) as screen, servers(options.postgres, options.redis, screen.say) as found:
        screen.step(f"{options.soak_turns:,} turns on {options.soak_threads:,} threads")
        result = _run(soak(found, OURS[0], options.soak_turns, options.soak_threads, screen.advance))
    output.mkdir(parents=True, exist_ok=True)
    (output / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"memory of the process, last fifth to second fifth: {result['growth']}")
    if (output / "results.json").exists():
        write(json.loads((output / "results.json").read_text()), output)
    return 0


def _backlog(options: argparse.Namespace) -> int:
    output: Path = options.output
    with Screen(1) as screen, servers(options.postgres, options.redis, screen.say) as found:
        screen.step("Postgres away, and back")
        work = backlog(found, BY_NAME[UPSTREAM], BY_NAME["write_behind"], screen.advance, quick=options.quick)
        result = _run(work)
    output.mkdir(parents=True, exist_ok=True)
    (output / "backlog.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "backlog.md").write_text(backlog_table(result))
    print(backlog_table(result))
    return 0


def _outage(options: argparse.Namespace) -> int:
    output: Path = options.output
    with Screen(1) as screen, servers(options.postgres, options.redis, screen.say) as found:
        screen.step(f"outages of Redis, {options.rounds} of each kind")
        result = _run(outages(found, BY_NAME[UPSTREAM], OURS[0], options.rounds, screen.advance))
    output.mkdir(parents=True, exist_ok=True)
    (output / "outage.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "outage.md").write_text(outage_table(result))
    print(outage_table(result))
    return 0


def _retention(options: argparse.Namespace) -> int:
    output: Path = options.output
    rows, seconds = (20_000, 1.0) if options.quick else (ROWS, SECONDS)
    with Screen(1) as screen, servers(options.postgres, options.redis, screen.say) as found:
        screen.step(f"idle threads among {rows:,} rows")
        result = _run(retention(found, OURS[0], rows, seconds, screen.advance))
    output.mkdir(parents=True, exist_ok=True)
    (output / "retention.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "retention.md").write_text(retention_table(result))
    print(retention_table(result))
    return 0


def _against(options: argparse.Namespace) -> int:
    mode = "write_behind" if options.write_behind else "write_through"
    count, turns = (1, against.QUICK_TURNS) if options.quick else (options.rounds, against.TURNS)
    with Screen(count + 1) as screen, servers(options.postgres, options.redis, screen.say) as found:
        builds = against.builds(options.against, mode)
        measured = _run(against.compare(found, builds, count, turns, screen.step, screen.advance))
        versions = {**machine.versions(), **found.versions()}
    print(f"{against.comparison(measured)}\n\n{against.conditions(count, turns, mode)}")
    print("\n".join(f"- {name}: {value}" for name, value in machine.machine().items()))
    print("- " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return 0


def save(data: dict[str, Any], output: Path) -> None:
    """Write the results file."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(data) + "\n")


def write(data: dict[str, Any], output: Path, soaked: Path | None = None) -> None:
    """Write the results, the tables and the plots, and print the bars.

    The result of `--soak` is read from the directory `soaked`, else from where the results go.
    """
    save(data, output)
    if (soak_file := (soaked or output) / "soak.json").exists():
        data = {**data, "soak": json.loads(soak_file.read_text())}
    results = Results(data)
    (output / "tables.md").write_text(markdown(results))
    try:
        from benchmarks import plots

        plots.draw(results, output)
    except ModuleNotFoundError as exc:
        print(f"no plots: {exc}")
    print(bars_table(results))
    print(f"\nAll of it: {output / 'tables.md'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.description = (
        "Measure the saver beside others: tables, plots, and whether the figures asked for are met."
    )
    parser.add_argument(
        "--rounds", type=int, help=f"how often each is measured ({ROUNDS}; {against.ROUNDS} with --against)"
    )
    parser.add_argument("--seconds", type=float, default=0.2, help="how long a measurement takes, about (0.2)")
    parser.add_argument("--only", default="", metavar="REGEX", help="workloads whose name has a match")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--contestants", metavar="A,B", help=f"of {','.join(BY_NAME)}")
    parser.add_argument(
        "--quick", action="store_true", help="check that everything runs: no figures, less than a minute"
    )
    parser.add_argument(
        "--soak", action="store_true", help="only measure the memory of the process, over very many turns"
    )
    parser.add_argument(
        "--backlog", action="store_true", help="only measure write-behind while Postgres is away, and after it"
    )
    parser.add_argument("--outage", action="store_true", help="only measure the effects when Redis stops or hangs")
    parser.add_argument(
        "--retention",
        action="store_true",
        help="only measure the deletion of idle threads, and its effect on turns",
    )
    _add_comparison_arguments(parser)
    parser.add_argument("--soak-turns", type=int, default=SOAK_TURNS, help=f"({SOAK_TURNS})")
    parser.add_argument("--soak-threads", type=int, default=SOAK_THREADS, help=f"({SOAK_THREADS})")
    parser.add_argument("--postgres", metavar="URI", help="use this server; databases are made there, and dropped")
    parser.add_argument(
        "--redis", metavar="URL", help="use this server; its databases must be empty, and are flushed"
    )
    parser.add_argument("--output", type=Path, help=f"where results go ({OUTPUT})")
    commands = parser.add_subparsers(dest="command")
    report = commands.add_parser("report", help="make tables and plots of a results file again")
    report.add_argument("file", type=Path)
    report.add_argument("--output", type=Path)
    report.add_argument("--readme", type=Path, help="put an excerpt between its marks in this file")
    return parser


def _add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--paths", action="store_true", help="only count the functions and files of a call's path")
    parser.add_argument("--list", action="store_true", help="with --paths: name the functions, in call order")
    parser.add_argument("--of", type=Path, metavar="CHECKOUT", help="with --paths: the package of this checkout")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="only compare chat turns of this build, the build in this checkout and the upstream saver",
    )
    parser.add_argument("--write-behind", action="store_true", help="with --against: measure that mode")


if __name__ == "__main__":
    sys.exit(main())
