"""A human in the loop, whose answer arrives in another process than the one that asked.

Interrupts whose writes were lost, so that no answer found them: langgraph-redis#133, #113, langgraph#6393.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from langgraph.types import Command

from tests.support import processes
from tests.support.agreement import CACHED, UPSTREAM, Tiers, on_thread, outline
from tests.support.processes import Done, Job

pytestmark = pytest.mark.integration

Turn = Callable[[Any], Awaitable[Done]]
Play = Callable[[str, Callable[[Turn], Awaitable[Any]]], Awaitable[Any]]


@pytest.fixture(scope="module")
def two_processes() -> Iterator[list[ProcessPoolExecutor]]:
    with processes.process() as first, processes.process() as second:
        yield [first, second]


@pytest.fixture
def play(tiers: Tiers, two_processes: list[ProcessPoolExecutor]) -> Play:
    """Plays a script on a graph with our saver and with the upstream one; what the script returns is the same.

    The script is given a function that invokes the graph, in one process and the other by turns.
    """

    async def play(graph: str, script: Callable[[Turn], Awaitable[Any]]) -> Any:
        pids: list[int] = []

        async def play_with(thread_id: str) -> Any:
            executors = list(two_processes)

            async def turn(value: Any) -> Done:
                cached = thread_id == CACHED
                job = Job(tiers.postgres_url, tiers.redis_url, tiers.prefix, cached, graph, thread_id, value)
                done = await asyncio.wrap_future(executors[0].submit(processes.run, job))
                if cached:
                    assert done.stats["damaged"] == done.stats["redis_errors"] == 0
                    assert done.stats["hits"] > 0
                    if pids:
                        assert done.pid != pids[-1]
                        assert done.found_in_redis, "what the other process stored"
                    pids.append(done.pid)
                executors.reverse()
                return done

            return await script(turn)

        seen = await play_with(CACHED)
        assert seen == await play_with(UPSTREAM)
        assert len(pids) >= 2
        await tiers.assert_agree()
        return seen

    return play


@pytest.mark.slow
async def test_an_answer_finds_the_question_of_another_process(play: Play) -> None:
    async def script(turn: Turn) -> Any:
        asked = await turn({"answers": ["hello"]})
        answered = await turn(Command(resume="yes"))
        return asked.seen, answered.seen

    asked, answered = await play("one_question", script)
    assert asked.questions == ["go on?"]
    assert answered.questions == []
    assert answered.output == {"answers": ["hello", "yes", "finished"]}


@pytest.mark.parametrize(
    "graph",
    ["three_questions_in_one_node", "question_in_a_subgraph", "question_in_a_subgraph_with_memory"],
)
async def test_several_questions_of_a_node_are_answered_one_by_one(play: Play, graph: str) -> None:
    async def script(turn: Turn) -> Any:
        seen = [await turn({"answers": []})]
        for number in range(3):
            seen.append(await turn(Command(resume=number)))
        return [done.seen for done in seen]

    seen = await play(graph, script)
    assert [done.questions for done in seen] == [["question 0"], ["question 1"], ["question 2"], []]
    assert seen[-1].output == {"answers": [[0, 1, 2], "finished"]}


async def test_questions_of_nodes_side_by_side_are_answered_apart(play: Play) -> None:
    async def script(turn: Turn) -> Any:
        asked = await turn({"answers": []})
        ids = dict(asked.interrupts)
        left = await turn(Command(resume={ids["left?"]: 1}))
        both = await turn(Command(resume={ids["right?"]: 2}))
        return [done.seen for done in (asked, left, both)]

    asked, left, both = await play("questions_side_by_side", script)
    assert sorted(asked.questions) == ["left?", "right?"]
    assert left.questions == ["right?"]
    assert [tuple(a) if isinstance(a, list) else a for a in both.output["answers"]] == [
        ("left", 1),
        ("right", 2),
        "finished",
    ]


async def test_questions_side_by_side_are_answered_at_once(play: Play) -> None:
    async def script(turn: Turn) -> Any:
        asked = await turn({"answers": []})
        ids = dict(asked.interrupts)
        both = await turn(Command(resume={ids["right?"]: 2, ids["left?"]: 1}))
        again = await turn({"answers": ["again"]})
        return [done.seen for done in (asked, both, again)]

    _, both, again = await play("questions_side_by_side", script)
    assert both.questions == []
    assert len(both.output["answers"]) == 3
    assert sorted(again.questions) == ["left?", "right?"]


async def test_run_stopped_before_node_continues_in_another_process(play: Play) -> None:
    async def script(turn: Turn) -> Any:
        return [(await turn(value)).seen for value in ({"answers": []}, None, {"answers": ["more"]}, None)]

    stopped, finished, again, end = await play("stop_before_the_end", script)
    assert stopped.state["next"] == again.state["next"] == ("finish",)
    assert finished.output == {"answers": ["begun", "finished"]}
    assert end.output == {"answers": ["begun", "finished", "more", "begun", "finished"]}


async def test_open_question_survives_state_edit(tiers: Tiers) -> None:
    async def edited(saver: Any, thread: str) -> Any:
        graph, config = processes.questions_side_by_side(saver), on_thread(thread)
        await graph.ainvoke({"answers": []}, config)
        [left] = [i for i in (await graph.aget_state(config)).interrupts if i.value == "left?"]
        await graph.ainvoke(Command(resume={left.id: 1}), config)
        await graph.aupdate_state(config, {"answers": ["edited"]}, as_node="ask_left")
        state = await graph.aget_state(config)
        return outline(state), await graph.ainvoke(Command(resume="late"), config)

    before, after = await tiers.run_with_both(edited)
    assert "edited" in before["values"]["answers"]
    assert "edited" in after["answers"]
