"""Queue for a pipelined connection: what is sent at once, what runs in a task, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from langgraph_checkpoint_cached.utils.batch_queue import answer
from langgraph_checkpoint_cached.utils.pipeline_queue import PipelineQueue
from tests.support.queued import Item, Runner


def queue_of(run: Any, begin: Any, **more: Any) -> PipelineQueue[Item]:
    limits = {"calls_max": 100, "bytes_max": 1000, "waiting_max": 100, "in_flight_max": 1, "overlap_min": 1000}
    can_send = more.pop("can_send", lambda calls: not begin.refuses())
    return PipelineQueue(begin, run, can_send, **{**limits, **more})


def add(queue: PipelineQueue[Item], name: str, size_bytes: int = 0, *, now: bool = False) -> asyncio.Future[str]:
    call = Item(name, size_bytes)
    queue.add(call, now=now)
    return call.done


class Beginner:
    """Begins groups without a task, and ends them when told; what is named `later` it leaves to `run`."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.ends: list[Any] = []
        self.refuses: Any = lambda: False

    def end(self) -> None:
        """Ends the first of those that are under way."""
        self.ends.pop(0)()

    def __call__(self, calls: Sequence[Item], over: Any) -> bool:
        names = [call.name for call in calls]
        if "raise" in names:
            raise ValueError("raise")
        if "later" in names or self.refuses():
            return False
        self.groups.append(names)

        def end() -> None:
            for each in calls:
                answer(each.done, each.name.upper())
            over()

        self.ends.append(end)
        return True


async def test_immediate_batches_take_no_task_and_one_loop_iteration() -> None:
    begin, runner = Beginner(), Runner(let_go=True)
    groups = queue_of(runner, begin)
    add(groups, "a"), add(groups, "b")
    assert begin.groups == []
    await asyncio.sleep(0)
    assert begin.groups == [["a", "b"]]

    async def answered() -> None:
        await c
        add(groups, "e")

    c = add(groups, "c")
    begin.end()
    await asyncio.sleep(0)
    follower = asyncio.ensure_future(answered())
    await asyncio.sleep(0)
    add(groups, "d")
    begin.end()  # whoever has just been answered is in the next group
    await follower
    await asyncio.sleep(0)
    assert begin.groups == [["a", "b"], ["c"], ["d", "e"]]
    assert runner.groups == []


async def test_now_starts_batch_at_once_unless_another_runs() -> None:
    begin = Beginner()
    groups = queue_of(Runner(), begin)
    groups.add(Item("a"), now=True)
    assert begin.groups == [["a"]]
    groups.add(Item("b"), now=True)
    assert begin.groups == [["a"]]
    begin.end()
    await asyncio.sleep(0)
    assert begin.groups == [["a"], ["b"]]
    groups.add(Item("c"))
    begin.end()
    groups.add(Item("d"))
    await asyncio.sleep(0)
    begin.end()
    groups.add(Item("e"), now=True)  # where two came at once, more may
    groups.add(Item("f"), now=True)
    assert begin.groups[2:] == [["c", "d"]]
    await asyncio.sleep(0)
    assert begin.groups[3:] == [["e", "f"]]


async def test_unsent_batch_runs_and_raising_item_fails_alone() -> None:
    begin, runner = Beginner(), Runner(let_go=True)
    groups = queue_of(runner, begin)
    assert await add(groups, "later") == "LATER"
    with pytest.raises(ValueError, match="raise"):
        await add(groups, "raise")
    assert runner.groups == [["later"]]
    done = add(groups, "next")
    await asyncio.sleep(0)
    begin.end()
    assert await done == "NEXT"


async def test_full_batches_start_while_others_run() -> None:
    begin = Beginner()
    groups = queue_of(Runner(), begin, in_flight_max=3, overlap_min=2)
    done = [add(groups, name) for name in "abcdefghi"]
    assert begin.groups == [["a", "b"], ["c", "d"], ["e", "f"]]
    await asyncio.sleep(0)
    begin.end()
    assert [each.done() for each in done[:3]] == [True, True, False]
    await asyncio.sleep(0)
    assert begin.groups[3:] == [["g", "h", "i"]]
    for _ in range(3):
        begin.end()
    assert [each.result() for each in done] == list("ABCDEFGHI")
    add(groups, "j")
    assert len(begin.groups) == 4, "it is alone, and waits for those that come in the same turn"
    await asyncio.sleep(0)
    assert begin.groups[4:] == [["j"]]


async def test_unsent_items_come_after_running_batches() -> None:
    begin, runner = Beginner(), Runner(let_go=True)
    groups = queue_of(runner, begin, in_flight_max=3, overlap_min=2)
    done = [add(groups, name) for name in ("a", "b", "c", "d", "later", "e")]
    assert begin.groups == [["a", "b"], ["c", "d"]]
    await asyncio.sleep(0)
    assert runner.groups == []
    begin.end()
    await asyncio.sleep(0)
    assert runner.groups == [], "c and d are under way"
    begin.end()
    assert await asyncio.gather(*done) == ["A", "B", "C", "D", "LATER", "E"]
    assert runner.groups == [["later", "e"]]


async def test_nothing_is_sent_before_running_task_has_sent() -> None:
    begin, runner = Beginner(), Runner()
    groups = queue_of(runner, begin, in_flight_max=3, overlap_min=2)
    done = [add(groups, "later")]
    await runner.until_running(1)
    done += [add(groups, name) for name in "abcd"]
    await asyncio.sleep(0)
    assert begin.groups == []
    runner.gate.set()
    assert await asyncio.gather(*done) == ["LATER", "A", "B", "C", "D"]
    assert runner.groups == [["later"], ["a", "b", "c", "d"]]
    done = [add(groups, name) for name in "ef"]
    assert begin.groups == [["e", "f"]]


async def test_idle_queue_starts_a_task_that_takes_later_items() -> None:
    begin, runner, can = Beginner(), Runner(), True
    groups = queue_of(runner, begin, in_flight_max=3, overlap_min=2, can_send=lambda _: can)
    begin.refuses = lambda: not can
    done = [add(groups, name) for name in "abcde"]
    can = False
    for _ in range(2):
        await asyncio.sleep(0)
        assert runner.groups == []
        begin.end()  # whose place e cannot take as long as c and d are under way
    await runner.until_running(1)
    can = True
    done += [add(groups, name) for name in "fgh"]
    assert begin.groups == [["a", "b"], ["c", "d"]]
    runner.gate.set()
    assert await asyncio.gather(*done) == list("ABCDEFGH")
    assert runner.groups == [["e"], ["f", "g", "h"]]
    await groups.drain()


async def test_drain_waits_and_its_cancellation_cancels_nothing() -> None:
    begin = Beginner()
    groups = queue_of(Runner(), begin)
    done = add(groups, "a")
    drains = [asyncio.ensure_future(groups.drain()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    drains[0].cancel()
    await asyncio.wait([drains[0]])
    assert not drains[1].done()
    begin.end()
    await asyncio.wait_for(drains[1], 1)
    assert await done == "A"


async def test_drain_returns_after_callbacks_of_answered_calls() -> None:
    """Closing missed what such a callback leaves to be done: a fence stayed active."""
    beginner = Beginner()
    queue = queue_of(Runner(), beginner)
    seen: list[str] = []
    add(queue, "a", now=True).add_done_callback(lambda done: seen.append(done.result()))
    beginner.end()
    await queue.drain()
    assert seen == ["A"]
