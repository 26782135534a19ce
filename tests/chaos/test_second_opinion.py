"""The second checker, on histories by hand. It needs no servers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from tests.chaos import second_opinion
from tests.chaos.end_checks import End
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
    Seen,
)
from tests.chaos.turns import answers_of
from tests.chaos.values import NO_VALUE

PLACE = ("thread", "")
numbers = itertools.count()


def operation(kind: str, start: float, end: float = math.inf, outcome: str = OK, **fields: Any) -> Operation:
    return Operation("0.1", next(numbers), kind, *PLACE, start, end=end, outcome=outcome, **fields)


def put(id_: str, start: float, end: float, outcome: str = OK, **fields: Any) -> Operation:
    return operation(PUT, start, end, outcome, id=id_, digest=f"of {id_}", **fields)


def put_writes(id_: str, task: str, start: float, end: float, outcome: str = OK) -> Operation:
    return operation(PUT_WRITES, start, end, outcome, id=id_, task=task, digest=f"of {task}")


def delete(start: float, end: float, outcome: str = OK) -> Operation:
    return operation(DELETE, start, end, outcome)


def seen(id_: str, *tasks: str, **fields: Any) -> Seen:
    return Seen(id_, **{"parent": None, "digest": f"of {id_}", **fields}, writes=[[t, f"of {t}"] for t in tasks])


def read(found: str | Seen | None, start: float, end: float, id_: str = "") -> Operation:
    result = seen(found) if isinstance(found, str) else found
    return operation(READ_BY_ID if id_ else READ, start, end, seen=result, id=id_)


def turn(name: str, start: float, end: float, answers: list[str], outcome: str = OK) -> Operation:
    return operation(TURN, start, end, outcome, id=name, answers=answers)


def fired(*operations: Operation, end: End | None = None, **fields: Any) -> list[str]:
    history = History(sorted(operations, key=lambda o: o.start), **fields)
    return [v.checker.removeprefix("second: ") for v in second_opinion.check(history, end or End())]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([read("b", 30, 31)], []),
        ([read("a", 30, 31)], ["stale"]),
        ([read(None, 30, 31)], ["stale"]),
        ([read("a", 20.5, 31)], []),  # runs beside the put of b
        ([read("b", 20.5, 20.6), read("a", 20.7, 20.8)], ["stale"]),  # what was seen stays
        ([read("a", 20.5, 20.6), read("b", 20.7, 20.8)], []),
        ([read("b", 15, 16)], ["values"]),
        ([read("c", 30, 31)], ["values"]),
        ([read(None, 30, 31, "a")], ["stale"]),
        ([read("b", 30, 31, "a")], ["values"]),
        ([read("a", 30, 31, "a")], []),
    ],
)
def test_reads_of_two_puts(reads: list[Operation], expected: list[str]) -> None:
    assert fired(put("a", 10, 11), put("b", 20, 21), *reads) == expected


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([read("a", 30, 31), read("a", 40, 41)], []),  # it never took effect
        ([read("b", 30, 31), read("b", 40, 41)], []),
        ([read("a", 23, 24), read("b", 25, 25.5)], []),  # it took effect late
        ([read("a", 30, 31), read("b", 40, 41)], ["gone"]),  # later than it could
        ([read("b", 23, 24), read("a", 25, 26)], ["stale"]),
    ],
)
def test_put_of_unknown_outcome(reads: list[Operation], expected: list[str]) -> None:
    assert fired(put("a", 10, 11), put("b", 20, 21, UNKNOWN), *reads) == expected


def test_failed_put_is_never_read() -> None:
    assert fired(put("a", 10, 11), put("b", 20, 21, FAILED), read("b", 30, 31)) == ["values"]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([read(None, 30, 31)], []),
        ([read("a", 30, 31)], ["gone"]),
        ([read("a", 20.1, 20.2), read(None, 20.3, 20.4)], []),
        ([read(None, 20.1, 20.2), read("a", 20.3, 20.4)], ["gone"]),
        ([read(None, 15, 16)], ["stale"]),
    ],
)
def test_reads_around_a_delete(reads: list[Operation], expected: list[str]) -> None:
    assert fired(put("a", 10, 11), delete(20, 21), *reads) == expected


def test_unknown_delete_may_come_late() -> None:
    assert fired(put("a", 10, 11), delete(20, 21, UNKNOWN), read("a", 24, 25), read(None, 25.1, 25.2)) == []
    assert fired(put("a", 10, 11), delete(20, 21, UNKNOWN), read("a", 27, 28), read(None, 29, 30)) == ["stale"]


def test_put_beside_a_delete_that_it_survived() -> None:
    operations = [put("a", 10, 12), delete(10, 12), read("a", 13, 14)]
    assert fired(*operations) == []
    assert fired(*operations, read(None, 15, 16)) == ["stale"]


@pytest.mark.parametrize(
    ("found", "start", "expected"),
    [
        (seen("a", "t"), 30, []),
        (seen("a"), 30, ["stale"]),
        (seen("a"), 20.5, []),
        (seen("a", "t"), 15, ["values"]),
        (seen("a", "u"), 30, ["values"]),
        (seen("a", "t", "t"), 30, ["values"]),
    ],
)
def test_reads_of_pending_writes(found: Seen, start: float, expected: list[str]) -> None:
    assert fired(put("a", 10, 11), put_writes("a", "t", 20, 21), read(found, start, start + 1)) == expected


def test_parts_of_a_read_are_of_one_moment() -> None:
    """The read has the write that began after its checkpoint was superseded."""
    operations = [put("a", 10, 11), put("b", 20, 21), put_writes("a", "t", 22, 23)]
    assert fired(*operations, read(seen("a", "t"), 19, 30)) == ["stale"]
    assert fired(*operations, read("a", 19, 30)) == []


@pytest.mark.parametrize("fields", [{"digest": "other"}, {"parent": "other"}, {"problem": "torn"}])
def test_values_other_than_written(fields: dict[str, Any]) -> None:
    assert fired(put("a", 10, 11), read(seen("a", **fields), 20, 21)) == ["values"]


def test_value_taken_by_a_delete_beside_the_put() -> None:
    half = seen("a", digest="", problem=NO_VALUE)
    assert fired(put("a", 10, 12), read(half, 20, 21)) == ["values"]
    assert fired(put("a", 10, 12), delete(11, 13), read(half, 20, 21)) == []


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([put("a", 10, 11), read(None, 40, 41)], ["stale"]),  # it was stored before
        ([put("a", 22, 23), read(None, 40, 41)], []),
        ([put("a", 22, 23), read("a", 40, 41)], []),  # it was stored before the state that was kept
        ([put("a", 22, 23), read("a", 24, 25), read(None, 40, 41), read("a", 42, 43)], ["gone"]),
        ([put("a", 32, 33), read(None, 40, 41)], ["stale"]),
        ([put("a", 10, 11), delete(22, 23), read(None, 24, 25), read("a", 40, 41)], []),  # the delete is lost
        ([put("a", 10, 11), delete(12, 13), read("a", 40, 41)], ["gone"]),
    ],
)
def test_reads_after_postgres_lost_commits(operations: list[Operation], expected: list[str]) -> None:
    assert fired(*operations, rewinds=[(20, 30)]) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([seen("a"), seen("b", "t", parent="a")], []),
        ([seen("a"), seen("b", parent="a")], ["lost"]),
        ([seen("a")], ["lost"]),
        ([seen("b", "t", parent="a")], ["orphan", "lost"]),
        ([seen("a"), seen("b", "t", parent="a"), seen("c")], ["end"]),
        ([seen("a", digest="other"), seen("b", "t", parent="a")], ["end"]),
        ([seen("a"), seen("b", "t", parent="a"), seen("x")], ["end"]),
    ],
)
def test_rows_in_the_end(rows: list[Seen], expected: list[str]) -> None:
    operations = [put("a", 10, 11), put("b", 12, 13, parent="a"), put_writes("b", "t", 14, 15)]
    operations += [put("x", 16, 17, FAILED)]
    assert fired(*operations, end=End(rows={PLACE: rows})) == expected


def test_deleted_rows_in_the_end() -> None:
    operations = [put("a", 10, 11), delete(20, 21), put("b", 22, 23, parent="a")]
    assert fired(*operations, end=End(rows={PLACE: [seen("b", parent="a")]})) == []
    operations = [put("a", 10, 11), put("b", 20, 23, parent="a"), delete(20, 21)]
    assert fired(*operations, end=End(rows={PLACE: [seen("b", parent="a")]})) == []
    assert fired(*operations, end=End(rows={PLACE: [seen("a"), seen("b", parent="a")]})) == ["end"]


def test_orphan_of_a_lost_parent() -> None:
    operations = [put("a", 22, 23), put("b", 40, 41, parent="a")]
    end = End(rows={PLACE: [seen("b", parent="a")]})
    assert fired(*operations, end=end, rewinds=[(20, 30)]) == ["orphan"]


def test_tiers_that_differ_in_the_end() -> None:
    end = End(latest={PLACE: "a"}, first={PLACE: "a"}, second={PLACE: "b"}, missed=["place"])
    assert fired(end=end) == ["tiers", "not back"]


def test_turns_go_on_from_those_before() -> None:
    a, b, c = map(answers_of, "abc")
    assert fired(turn("a", 1, 2, a), turn("b", 3, 4, a + b)) == []
    assert fired(turn("a", 1, 2, a), turn("b", 3, 4, b)) == ["turns"]
    assert fired(turn("a", 1, 2, a), turn("b", 3, 4, a)) == ["turns"]
    assert fired(turn("a", 1, 2, a), turn("b", 3, 4, [], UNKNOWN), turn("c", 5, 6, a + b[:1] + c)) == []
    assert fired(turn("a", 1, 2, a), turn("b", 3, 4, a + b), turn("c", 5, 6, a + b[1:] + c)) == ["turns"]
    assert fired(turn("a", 1, 2, a), turn("b", 6, 7, b), rewinds=[(0, 5)]) == []
    assert fired(turn("a", 1, 2, a), end=End(answers={"thread": []})) == ["turns"]
    assert fired(turn("a", 1, 2, a), end=End(answers={"thread": a})) == []


def test_failures_without_a_fault_of_postgres() -> None:
    failed = operation(READ, 10, 11, FAILED, error="TimeoutError: ")
    assert fired(failed, faults=[Fault("redis-kill", "", 9, 12)]) == ["unavailable"]
    assert fired(failed, faults=[Fault("worker-kill", "", 9, 12)]) == ["unavailable"]
    assert fired(failed, faults=[Fault("redis-kill", "", 9, 12), Fault("pg-cut", "", 5, 8)]) == []
    refused = operation(PUT, 10, 11, FAILED, error="LostHistoryError: it is lost")
    assert fired(refused) == []


def test_operations_that_hang() -> None:
    fault = Fault("pg-cut", "", 9, 12)
    assert fired(operation(READ, 10, 31, FAILED, error="TimeoutError: "), faults=[fault]) == ["hangs"]
    assert fired(operation(READ, 10, outcome=UNKNOWN)) == ["hangs"]
    assert fired(operation(READ, 10, outcome=UNKNOWN), killed={"0.1": 11}) == []


def test_bounds_of_each_kind_of_fault() -> None:
    operations = [
        put("a", 1, 2),
        read(None, 12.5, 13),
        operation(READ, 20, 21.5, FAILED, error="TimeoutError: "),
        operation(READ, 39, 39.25),
    ]
    faults = [Fault("redis-kill", "", 10, 14), Fault("pg-cut", "", 19, 20), Fault("cut-one", "", 38, 40)]
    found = second_opinion.bounds(History(operations, faults))
    assert found["redis-kill"] == second_opinion.Bounds(10.5, 0, 0.5, 1)
    assert found["pg-cut"] == second_opinion.Bounds(0, 1.5, 1.5, 1)
    assert found["cut-one"] == second_opinion.Bounds(27 + 10, 0, 0.25, 1)
