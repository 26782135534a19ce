"""The saver under a nemesis, for a short while; and the proof that each checker can fail.

A long run is one command: `python tests/chaos/run.py --seconds 300`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint

from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, postgres_programs, redis_binary
from tests.chaos import end_checks, read_checks
from tests.chaos.end_checks import End, Key
from tests.chaos.history import (
    DELETE,
    FAILED,
    OK,
    PUT,
    PUT_WRITES,
    READ,
    READ_BY_ID,
    TURN,
    UNKNOWN,
    Fault,
    History,
    Operation,
    Recorder,
    Seen,
    load,
)
from tests.chaos.mutants import MUTANTS
from tests.chaos.nemesis import OF_REDIS, OF_THE_REST, plan
from tests.chaos.order import Losses
from tests.chaos.read_checks import Violation
from tests.chaos.report import lines_of
from tests.chaos.run import Result, Settings, run
from tests.chaos.turns import answers_of
from tests.chaos.values import NO_VALUE, as_seen, new_value

SHORT_SECONDS = 20.0
BEHIND_SECONDS = 6.0
BEHIND_FAULTS = {
    "memory": ["worker-kill-all", "pg-restart"],
    "disk": ["redis-and-workers-kill"],
}
"""By what of Redis survives: see `world`. Others take longer:
`python -m tests.chaos --mode write_behind --redis KIND`."""
BEHIND_SEED = "7"
MUTANT_SECONDS = (6.0, 18.0)
"""On a machine with four times as much to do as it can, two workers meet two faults in six seconds, and a broken
saver may get away: then it has to stand a longer run."""
IN_CI = ("invalidation", "early", "complete")
"""Mutants that both checkers find within seconds. `run.py --saver` runs the others."""

# -- histories by hand ---------------------------------------------------------------------------------------


def did(kind: str, start: float, end: float, outcome: str = OK, process: str = "1", **fields: object) -> Operation:
    number = round(start * 1000)
    return Operation(process, number, kind, "t", "", start, end=end, outcome=outcome, **fields)  # type: ignore[arg-type]


def put(checkpoint_id: str, start: float, end: float, outcome: str = OK, **fields: object) -> Operation:
    return did(PUT, start, end, outcome, id=checkpoint_id, digest=f"d{checkpoint_id}", **fields)


def wrote(checkpoint_id: str, task: str, start: float, end: float, outcome: str = OK) -> Operation:
    return did(PUT_WRITES, start, end, outcome, id=checkpoint_id, task=task, digest=f"d{task}")


def saw(checkpoint_id: str, *tasks: str, problem: str | None = None) -> Seen:
    return Seen(checkpoint_id, None, f"d{checkpoint_id}", [[task, f"d{task}"] for task in tasks], problem)


def read(start: float, end: float, seen: Seen | None, process: str = "2") -> Operation:
    return did(READ, start, end, process=process, seen=seen)


def took(name: str, start: float, end: float, *turns: str) -> Operation:
    answers = [answer for turn in turns for answer in answers_of(turn)]
    return did(TURN, start, end, id=name, answers=answers)


def found_by(checker: Callable[..., Iterator[Violation]], *operations: Operation, **history: object) -> list[str]:
    made = History(sorted(operations, key=lambda o: o.start), **history)  # type: ignore[arg-type]
    return [violation.message for violation in checker(made, Losses(made))]


def test_read_older_than_acknowledged_write_is_found() -> None:
    first, second = put("a", 1, 2), put("b", 3, 4)
    assert found_by(read_checks.older, first, second, read(5, 6, saw("b"))) == []
    assert found_by(read_checks.older, first, second, read(3.5, 6, saw("a"))) == []  # at the same time
    assert found_by(read_checks.older, first, put("b", 3, 4, UNKNOWN), read(5, 6, saw("a"))) == []
    older = ["a read is older than an acknowledged checkpoint"]
    assert found_by(read_checks.older, first, second, read(5, 6, saw("a"))) == older
    assert found_by(read_checks.older, first, read(5, 6, None)) == older


def test_a_checkpoint_that_is_not_found_by_its_id_is_found() -> None:
    missing = did(READ_BY_ID, 3, 4, id="a")
    assert found_by(read_checks.older, put("a", 1, 2), missing) == [
        "an acknowledged checkpoint is not found by its id"
    ]
    assert found_by(read_checks.older, put("a", 1, 3.5), missing) == []


def test_pending_writes_that_are_missing_are_found() -> None:
    written = put("a", 1, 2), wrote("a", "x", 3, 4)
    assert found_by(read_checks.older, *written, read(5, 6, saw("a", "x"))) == []
    assert found_by(read_checks.older, *written, read(5, 6, saw("a"))) == [
        "acknowledged pending writes are missing"
    ]


def test_a_deleted_checkpoint_that_is_read_is_found() -> None:
    history = put("a", 1, 2), did(DELETE, 3, 4)
    assert found_by(read_checks.older, *history, read(5, 6, None)) == []
    assert found_by(read_checks.older, *history, read(3.5, 6, saw("a"))) == []
    assert found_by(read_checks.older, *history, read(5, 6, saw("a"))) == [
        "a checkpoint is read after its thread was deleted"
    ]
    late = put("a", 1, 3.5), did(DELETE, 3, 4)
    assert found_by(read_checks.older, *late, read(5, 6, saw("a"))) == []
    assert found_by(read_checks.older, *late, read(5, 6, None)) == []


def test_latest_going_back_for_one_reader_is_found() -> None:
    written = put("a", 1, 2), put("b", 3, 99, UNKNOWN)
    back = ["for one reader, the latest checkpoint goes back"]
    assert found_by(read_checks.backwards, *written, read(4, 5, saw("b")), read(6, 7, saw("a"))) == back
    assert found_by(read_checks.backwards, *written, read(4, 5, saw("b")), read(6, 7, None)) == back
    assert found_by(read_checks.backwards, *written, read(4, 5, saw("b")), read(4.5, 7, saw("a"))) == []
    assert found_by(read_checks.backwards, *written, read(4, 5, saw("b")), read(6, 7, saw("a"), process="3")) == []
    deleted = did(DELETE, 5.5, 5.8)
    assert found_by(read_checks.backwards, *written, deleted, read(4, 5, saw("b")), read(6, 7, None)) == []


def test_vanishing_pending_writes_are_found() -> None:
    written = put("a", 1, 2), wrote("a", "x", 3, 99, UNKNOWN)
    assert found_by(read_checks.backwards, *written, read(4, 5, saw("a", "x")), read(6, 7, saw("a"))) == [
        "for one reader, pending writes vanish"
    ]


@pytest.mark.parametrize(
    "seen",
    [
        saw("b"),
        saw("a", problem="torn value of a"),
        saw("a", "y"),
        Seen("a", None, "another"),
        Seen("a", "another", "da"),
        Seen("a", None, "da", [["x", "another"]]),
    ],
)
def test_value_never_written_there_is_found(seen: Seen) -> None:
    written = put("a", 1, 2), wrote("a", "x", 1, 2)
    assert found_by(read_checks.values, *written, read(3, 4, saw("a", "x"))) == []
    assert len(found_by(read_checks.values, *written, read(3, 4, seen))) == 1


def test_checkpoint_without_value_is_found_unless_deleted() -> None:
    torn = Seen("a", None, "", problem=NO_VALUE)
    assert found_by(read_checks.values, put("a", 1, 2), read(5, 6, torn)) == [NO_VALUE]
    assert found_by(read_checks.values, put("a", 1, 2), did(DELETE, 3, 4), read(5, 6, torn)) == [NO_VALUE]
    assert found_by(read_checks.values, put("a", 1, 3.5), did(DELETE, 3, 4), read(5, 6, torn)) == []


def test_damaged_or_misplaced_value_is_found() -> None:
    rng = random.Random(1)

    def problem(value: object, task_value: object) -> str | None:
        config = {"configurable": {"thread_id": "t", "checkpoint_ns": "n", "checkpoint_id": "c"}}
        checkpoint = {**empty_checkpoint(), "id": "c", "channel_values": {"value": value}}
        pending = [("task", "written", task_value)]
        found = CheckpointTuple(config, checkpoint, {"of": "c"}, None, pending)  # type: ignore[arg-type]
        return as_seen("t", "n", found).problem

    value, task_value = new_value(rng, "t", "n", "c"), new_value(rng, "t", "n", "c", "task")
    assert problem(value, task_value) is None
    assert problem({**value, "filler": value["filler"][:-2]}, task_value) == "torn value of c"
    assert problem(new_value(rng, "u", "n", "c"), task_value) == "value of thread 'u', namespace 'n'"
    assert problem(new_value(rng, "t", "n", "b"), task_value) == "value of checkpoint b, task ''"
    assert problem(value, value) == "value of checkpoint c, task ''"
    assert problem(None, task_value) == "no value but None"


def test_a_failed_write_that_is_there_is_found() -> None:
    write, writes = put("a", 1, 2, FAILED), wrote("b", "x", 1, 2, FAILED)
    history = History([write, writes, read(3, 4, saw("a")), read(3, 4, saw("b", "x")), read(1.5, 4, saw("a"))])
    assert len(list(read_checks.failed(history))) == 2
    assert len(list(end_checks.failed_there(history, End({("t", ""): [saw("a"), saw("b", "x")]})))) == 2
    assert not list(end_checks.failed_there(history, End({("t", ""): [saw("b")]})))


def test_lost_answers_of_a_graph_are_found() -> None:
    one, two = took("1", 1, 2, "1"), took("2", 3, 4, "1", "2")
    assert found_by(read_checks.turns, one, two) == []
    lost = ["answers of an earlier turn are lost"]
    assert found_by(read_checks.turns, one, took("2", 3, 4, "2")) == lost
    assert found_by(read_checks.turns, one, two, took("3", 5, 6, "1", "3")) == lost
    broken_off = did(TURN, 3, 4, UNKNOWN, id="2")
    assert found_by(read_checks.turns, one, broken_off, took("3", 5, 6, "1", "3")) == []
    assert found_by(read_checks.turns, one, broken_off, took("3", 5, 6, "3")) == lost
    assert "an answer is there twice" in found_by(read_checks.turns, one, took("2", 3, 4, "1", "1", "2"))
    assert found_by(read_checks.turns, took("1", 1, 2, "1", "0")) == ["a turn does not end with its own answers"]


def test_lost_and_unwritten_rows_are_found() -> None:
    written = History([put("a", 1, 2), wrote("a", "x", 3, 4), put("u", 5, 6, UNKNOWN)])

    def lost(history: History, *rows: Seen) -> list[str]:
        return [v.message for v in end_checks.lost(history, End({("t", ""): list(rows)}), Losses(history))]

    assert lost(written, saw("a", "x")) == []
    assert lost(written) == ["an acknowledged checkpoint is not in Postgres"]
    assert lost(written, saw("a")) == ["acknowledged pending writes are not in Postgres"]
    assert len(lost(written, saw("a", "x"), saw("b"))) == 1
    assert len(lost(written, saw("a", "x", problem="torn"))) == 1
    assert lost(History([*written.operations, did(DELETE, 7, 8)])) == []
    assert len(lost(History(written.operations, rewinds=[(7, 8)]))) == 1  # Postgres had it before
    assert lost(History(written.operations, rewinds=[(1.5, 8)])) == []


def test_differing_tiers_and_unserved_entries_are_found() -> None:
    place = ("t", "")
    same = End(latest={place: "a"}, first={place: "a"}, second={place: "a"})
    assert not [*end_checks.tiers(same), *end_checks.served(same)]
    stale = End(latest={place: "b"}, first={place: "a"}, second={place: "a"}, missed=["t"])
    assert len(list(end_checks.tiers(stale))) == 2
    assert len(list(end_checks.served(stale))) == 1


def test_keys_without_expiry_and_fences_that_stay_are_found() -> None:
    assert not [*end_checks.keys(End(keys=[Key("k", 5)])), *end_checks.fences(End(keys=[Key("k", 5)]))]
    assert len(list(end_checks.keys(End(keys=[Key("k", -1)])))) == 1
    assert len(list(end_checks.fences(End(keys=[Key("k", 5, ["f:1"])])))) == 1


def test_leases_and_journals_that_are_left_are_found() -> None:
    journal = Key("k", -1, is_journal=True)
    assert not [*end_checks.behind(End(keys=[Key("k", 5)])), *end_checks.keys(End(keys=[journal]))]
    assert len(list(end_checks.behind(End(keys=[journal], leases=["t"])))) == 2


def test_leaks_and_stuck_workers_are_found() -> None:
    assert not list(end_checks.leaks(History(leaks={"1": {}}, unsettled={"1": []}), End()))
    history = History(leaks={"1": {"tasks": ["a task"]}}, unsettled={"1": ["a namespace"]})
    assert len(list(end_checks.leaks(history, End(killed_late=["2"])))) == 3


def test_errors_without_a_fault_of_postgres_are_found() -> None:
    error = did(READ, 5, 6, FAILED, error="ConnectionError")
    assert len(list(end_checks.available(History([error], [Fault("redis-kill", "", 4, 5)])))) == 1
    assert not list(end_checks.available(History([error], [Fault("pg-restart", "", 4, 5)])))
    behind = did(READ, 5, 6, FAILED, error="BehindError: not in Postgres")
    assert len(list(end_checks.available(History([behind])))) == 1
    assert not list(end_checks.available(History([behind], [Fault("redis-kill", "", 4, 5)])))


def test_what_never_ended_is_unknown(tmp_path: Path) -> None:
    worker, nemesis = Recorder(tmp_path / "1.jsonl", "1"), Recorder(tmp_path / "n.jsonl", "nemesis")
    done = worker.start(PUT, "t", "", id="a")
    worker.end(done, OK)
    worker.start(PUT, "t", "", id="b")
    nemesis.note("killed", victim="1")
    for recorder in (worker, nemesis):
        recorder.close()
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write('{"what": "start", "pro')  # cut off in the midst
    first, second = load(tmp_path).operations
    assert (first, second.outcome, second.end) == (done, UNKNOWN, load(tmp_path).killed["1"])


def test_a_seed_makes_the_same_plan_again() -> None:
    kinds = [*OF_REDIS, *OF_THE_REST]
    assert plan("7", 60, kinds) == plan("7", 60, kinds) != plan("8", 60, kinds)
    assert {step.kind for lane in plan("7", 60, kinds) for step in lane} == set(kinds)


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def servers() -> None:
    """Skips where there are no servers to kill."""
    try:
        redis_binary(), postgres_programs()
    except EmbeddedServerError as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))


def ran(settings: Settings) -> Result:
    print(f"seed {settings.seed}: python tests/chaos/run.py --seed {settings.seed} --seconds {settings.seconds:g}")
    result = run(settings)
    print("\n".join(lines_of(result)))
    return result


@pytest.mark.integration
@pytest.mark.slow
def test_no_fault_breaks_a_promise(servers: None) -> None:
    seed = str(random.SystemRandom().randrange(10**6))
    result = ran(Settings(SHORT_SECONDS, seed, [*OF_REDIS, *OF_THE_REST]))
    assert not result.violations
    acknowledged = {o.kind for o in result.history.operations if o.outcome == OK}
    assert acknowledged >= {PUT, PUT_WRITES, READ, READ_BY_ID, TURN}
    assert result.history.faults


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("redis", BEHIND_FAULTS)
def test_what_was_acknowledged_before_postgres_had_it_survives(servers: None, redis: str) -> None:
    settings = Settings(
        BEHIND_SECONDS, BEHIND_SEED, BEHIND_FAULTS[redis], workers=2, mode="write_behind", redis=redis
    )
    result = ran(settings)
    assert not result.violations
    assert sum(stats["appends"] for stats in result.history.stats.values())
    assert result.history.faults


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("name", IN_CI)
def test_a_saver_broken_on_purpose_is_found(servers: None, name: str) -> None:
    mutant = MUTANTS[name]
    kinds = [] if mutant.nemesis == "none" else mutant.nemesis.split(",")
    runs = (
        ran(Settings(seconds, "1", kinds, f"broken-{name}", workers=2, mode=mutant.mode)).fired()
        for seconds in MUTANT_SECONDS
    )
    found = next((fired for fired in runs if set(mutant.checkers) & set(fired)), {})
    assert any(checker.startswith("second: ") for checker in found)


def test_every_checker_has_a_mutant() -> None:
    """`settled` has none: a worker that never has its Redis back shows as `served` too."""
    found = {checker for mutant in MUTANTS.values() for checker in mutant.checkers}
    checkers = "older backwards values failed turns lost orphans tiers served keys behind fences leaks available"
    assert found == set(checkers.split())
