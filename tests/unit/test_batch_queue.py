from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from langgraph_checkpoint_cached.utils.batch_queue import BatchQueue, answer
from langgraph_checkpoint_cached.utils.room import Room
from tests.support.inspect import revive, running_tasks
from tests.support.queued import Item, Runner


def groups_of(runner: Any, rows_max: int = 100, bytes_max: int = 1000, **more: Any) -> BatchQueue[Item]:
    room = Room(count_max=3, bytes_max=10_000, seconds_max=5)
    return BatchQueue(runner, rows_max=rows_max, bytes_max=bytes_max, room=room, **more)


def add(groups: BatchQueue[Item], name: str, size_bytes: int = 0, rows: int = 1) -> asyncio.Future[str]:
    operation = Item(name, size_bytes, rows)
    groups.add(operation)
    return operation.done


async def test_items_added_during_a_batch_form_the_next_in_order() -> None:
    runner = Runner()
    groups = groups_of(runner)
    first = add(groups, "a")
    await runner.until_running(1)
    rest = [add(groups, name) for name in "bcd"]
    runner.gate.set()
    assert await asyncio.gather(first, *rest) == ["A", "B", "C", "D"]
    assert runner.groups == [["a"], ["b", "c", "d"]]


async def test_batches_are_bounded_in_bytes() -> None:
    runner = Runner(let_go=True)
    groups = groups_of(runner, bytes_max=10)
    sizes = {"a": 1, "b": 1, "c": 8, "d": 9, "e": 2, "f": 50, "g": 1}
    await asyncio.gather(*(add(groups, name, size) for name, size in sizes.items()))
    assert runner.groups == [["a", "b", "c"], ["d"], ["e"], ["f"], ["g"]]


async def test_batches_are_bounded_in_rows() -> None:
    runner = Runner(let_go=True)
    groups = groups_of(runner, rows_max=3)
    await asyncio.gather(
        *(add(groups, name, rows=rows) for name, rows in zip("abcde", (1, 2, 1, 5, 1), strict=True))
    )
    assert runner.groups == [["a", "b"], ["c"], ["d"], ["e"]]


async def test_queue_takes_room_until_its_batches_have_run() -> None:
    runner = Runner()
    groups = groups_of(runner)
    answers = [add(groups, "a")]
    await runner.until_running(1)
    answers += [add(groups, "b")]
    assert groups.room.is_free
    answers += [add(groups, "bad")]
    assert not groups.room.is_free, "one runs and two wait"
    runner.gate.set()
    await asyncio.gather(*answers, return_exceptions=True)
    await groups.drain()
    assert groups.room.is_free
    assert (groups.room.count, groups.room.size_bytes) == (0, 0)


async def test_items_added_during_preparation_join_the_batch() -> None:
    runner, prepared = Runner(let_go=True), asyncio.Event()

    async def before(operation: Item) -> None:
        assert operation.name == "a"
        await prepared.wait()

    groups = groups_of(runner, before=before)
    first = add(groups, "a")
    await asyncio.sleep(0)
    second = add(groups, "b")
    prepared.set()
    await asyncio.gather(first, second)
    assert runner.groups == [["a", "b"]]


def shared(runner: Any, share_min: int = 4, **more: Any) -> BatchQueue[Item]:
    """Two groups at once; the key of an operation is the first letter of its name."""
    return groups_of(runner, at_once=2, key=lambda o: o.name[0], share_min=share_min, **more)


async def test_items_are_spread_evenly_over_batches_by_key() -> None:
    runner = Runner()
    groups = shared(runner)
    names = ["a1", "b1", "c1", "d1", "a2", "c2"]
    answers = [add(groups, name) for name in names]
    await runner.until_running(2)
    assert runner.groups == [["a1", "b1", "c1", "a2", "c2"], ["d1"]]  # those of a key that wait are in one group
    answers += [add(groups, name) for name in ["a3", "e1", "d2"]]
    runner.gate.set()
    assert await asyncio.gather(*answers) == [name.upper() for name in [*names, "a3", "e1", "d2"]]
    await groups.drain()


async def test_few_items_form_one_batch_at_a_time() -> None:
    runner = Runner()
    groups = shared(runner)
    first = add(groups, "a1")
    await runner.until_running(1)
    rest = [add(groups, name) for name in ("b1", "c1")]
    await asyncio.sleep(0.01)
    assert runner.groups == [["a1"]]
    runner.gate.set()
    await asyncio.gather(first, *rest)
    assert runner.groups == [["a1"], ["b1", "c1"]]


async def test_what_waits_for_its_key_goes_on_when_that_is_free() -> None:
    runner = Runner()
    groups = shared(runner, share_min=1)
    answers = [add(groups, "a1")]
    await runner.until_running(1)
    answers += [add(groups, name) for name in ("a2", "a3", "b1", "a4")]
    await runner.until_running(2)
    assert runner.groups == [["a1"], ["b1"]]
    runner.gate.set()
    await asyncio.wait_for(asyncio.gather(*answers), 5)
    assert runner.groups == [["a1"], ["b1"], ["a2", "a3", "a4"]]


async def test_late_batch_holds_up_nothing_but_its_keys() -> None:
    runner = Runner()
    groups = shared(runner, share_min=100, late_seconds=0.01, late_max=2)
    answers = [add(groups, "a1")]
    await runner.until_running(1)
    answers += [add(groups, name) for name in ("a2", "b1")]
    assert len(runner.groups) == 1, "it is not late yet"
    await asyncio.wait_for(runner.until_running(2), 5)
    answers += [add(groups, name) for name in ("b2", "c1")]
    await asyncio.wait_for(runner.until_running(3), 5)
    assert runner.groups == [["a1"], ["b1"], ["c1"]]
    answers += [add(groups, "d1")]
    await asyncio.sleep(0.05)
    assert len(runner.groups) == 3, "no more than two may be late"
    runner.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*answers), 5) == ["A1", "A2", "B1", "B2", "C1", "D1"]
    await groups.drain()
    assert [name for group in runner.groups for name in group if name[0] in "ab"] == ["a1", "b1", "a2", "b2"]


async def test_key_is_in_one_running_batch_and_keeps_its_order() -> None:
    """With any sizes, any number at once, and errors among them."""
    rng = random.Random(0)
    under_way: set[str] = set()
    stored: dict[str, list[int]] = {}
    at_once = 0

    async def run(operations: Sequence[Item]) -> None:
        nonlocal at_once
        keys = {o.name[0] for o in operations}
        assert not keys & under_way
        under_way.update(keys)
        at_once = max(at_once, len(under_way) - len(keys))
        await asyncio.sleep(rng.choice((0, 0, 0.001)))
        under_way.difference_update(keys)
        for o in operations:
            stored.setdefault(o.name[0], []).append(int(o.name[1:]))
            answer(o.done, "")
        if rng.random() < 0.1:
            raise ValueError

    late = {"late_seconds": 0.0005, "late_max": 3}
    groups = shared(run, share_min=6, rows_max=12, bytes_max=40, **late)

    async def lane(key: str) -> None:
        number = 0
        for _ in range(60):
            some = range(number, number := number + rng.choice((1, 1, 2, 3)))
            await asyncio.gather(*(add(groups, f"{key}{i}", rng.randrange(12), rng.randrange(1, 5)) for i in some))

    await asyncio.wait_for(asyncio.gather(*map(lane, "abcdefghijkl")), 30)
    assert all(numbers == list(range(len(numbers))) for numbers in stored.values())
    assert len(stored) == 12
    assert at_once
    await groups.drain()
    assert not groups.waiting


async def test_loop_end_with_two_batches_leaves_no_waiter() -> None:
    runner = Runner()
    groups = shared(runner)
    answers = [add(groups, f"{key}1") for key in "abcdef"]
    await runner.until_running(2)
    answers.append(add(groups, "a2"))
    ours = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not ours:
            task.cancel()
    reply = await asyncio.gather(*answers, return_exceptions=True)
    assert {type(each) for each in reply} == {asyncio.CancelledError}
    await groups.drain()


async def test_one_answer_may_be_an_error_and_the_others_are_not() -> None:
    groups = groups_of(Runner(let_go=True))
    answers = await asyncio.gather(*(add(groups, n) for n in ("a", "bad", "b")), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["A", "bad", "B"]
    assert isinstance(answers[1], ValueError)


async def test_batch_error_answers_the_unanswered_and_next_batch_runs() -> None:
    calls = []

    async def run(operations: Sequence[Item]) -> None:
        calls.append(operations)
        answer(operations[0].done, "first")
        if len(calls) == 1:
            raise ConnectionError("lost")

    groups = groups_of(run)
    answers = await asyncio.gather(add(groups, "a"), add(groups, "b"), add(groups, "c"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [str, ConnectionError, ConnectionError]
    assert await add(groups, "d") == "first"


async def test_a_cancelled_caller_neither_undoes_nor_stops_anything() -> None:
    runner = Runner()
    groups = groups_of(runner)
    first, second, third = (add(groups, name) for name in "abc")
    second.cancel()
    await runner.until_running(1)
    first.cancel()
    runner.gate.set()
    assert await third == "C"
    assert runner.groups == [["a", "b", "c"]]


async def test_loop_end_leaves_no_waiter() -> None:
    runner = Runner()
    groups = groups_of(runner, rows_max=1)
    waiting = [add(groups, name) for name in "ab"]
    await runner.until_running(1)
    [worker] = running_tasks(groups)
    worker.cancel()
    for done in waiting:
        with pytest.raises(asyncio.CancelledError):
            await done


async def test_loop_end_before_first_batch_leaves_no_waiter() -> None:
    """Seen as a program that never ended: what was given back at its end waited for a task that had not begun."""
    groups = groups_of(Runner(let_go=True))
    waiting = [add(groups, name) for name in "ab"]
    [worker] = running_tasks(groups)
    worker.cancel()
    await asyncio.wait((worker,))
    late = add(groups, "c")
    await asyncio.sleep(0)
    for done in (*waiting, late):
        assert done.done()
        with pytest.raises(asyncio.CancelledError):
            await done
    revive(groups)
    assert await add(groups, "d") == "D"


async def test_no_task_starts_right_after_tasks_were_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, revive = asyncio.get_running_loop(), []
    monkeypatch.setattr(loop, "call_later", lambda seconds, callback: revive.append(callback))
    runner = Runner()
    groups = groups_of(runner)
    add(groups, "a")
    await runner.until_running(1)
    [worker] = running_tasks(groups)
    worker.cancel()
    await asyncio.wait((worker,))
    with pytest.raises(asyncio.CancelledError):
        await add(groups, "b")
    assert len(running_tasks(groups)) == 0
    revive[0]()
    runner.gate.set()
    assert await add(groups, "c") == "C"


async def test_drain_waits_for_what_is_queued() -> None:
    runner = Runner()
    groups = groups_of(runner, rows_max=1)
    waiting = [add(groups, name) for name in "abc"]
    draining = asyncio.ensure_future(groups.drain())
    await runner.until_running(1)
    assert not draining.done()
    runner.gate.set()
    await draining
    assert all(done.done() for done in waiting)
