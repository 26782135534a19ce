"""Graphs for processes of their own: each job is run by a saver that knows nothing but the servers."""

from __future__ import annotations

import asyncio
import multiprocessing
import operator
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

from langgraph_checkpoint_cached import CachedPostgresSaver
from tests.support.agreement import PATIENT_SECONDS, on_thread, outline


class State(TypedDict):
    answers: Annotated[list[Any], operator.add]


def ask_once(state: State) -> dict[str, Any]:
    return {"answers": [interrupt("go on?")]}


def ask_three_times(state: State) -> dict[str, Any]:
    return {"answers": [[interrupt(f"question {number}") for number in range(3)]]}


def ask_left(state: State) -> dict[str, Any]:
    return {"answers": [("left", interrupt("left?"))]}


def ask_right(state: State) -> dict[str, Any]:
    return {"answers": [("right", interrupt("right?"))]}


def finish(state: State) -> dict[str, Any]:
    return {"answers": ["finished"]}


def one_question(saver: Any) -> Any:
    return _graph([[ask_once], [finish]]).compile(saver)


def three_questions_in_one_node(saver: Any) -> Any:
    return _graph([[ask_three_times], [finish]]).compile(saver)


def questions_side_by_side(saver: Any) -> Any:
    return _graph([[ask_left, ask_right], [finish]]).compile(saver)


def stop_before_the_end(saver: Any) -> Any:
    return _graph([[lambda state: {"answers": ["begun"]}], [finish]]).compile(saver, interrupt_before=["finish"])


def question_in_a_subgraph(saver: Any) -> Any:
    return _graph([[_graph([[ask_three_times]]).compile()], [finish]], names=["inner", "finish"]).compile(saver)


def question_in_a_subgraph_with_memory(saver: Any) -> Any:
    inner = _graph([[ask_three_times]]).compile(checkpointer=True)
    return _graph([[inner], [finish]], names=["inner", "finish"]).compile(saver)


def _graph(rows: list[list[Any]], names: list[str] | None = None) -> StateGraph[Any]:
    """The nodes of each row run side by side, after those of the row before."""
    builder = StateGraph(State)
    before: list[str] = []
    for row in rows:
        here = [names.pop(0) if names else _name(node) for node in row]
        for name, node in zip(here, row, strict=True):
            builder.add_node(name, node)
        for name in here:
            builder.add_edge(before or START, name)  # type: ignore[arg-type]
        before = here
    return builder


def _name(node: Any) -> str:
    return "begin" if node.__name__ == "<lambda>" else str(node.__name__)


@dataclass(frozen=True)
class Job:
    """One invocation of a graph: `graph` is the name of a function of this module."""

    postgres_url: str
    redis_url: str
    prefix: str
    cached: bool
    graph: str
    thread_id: str
    input: Any


@dataclass(frozen=True)
class Seen:
    """Outcome of a job, whichever saver ran it."""

    output: Any
    questions: list[Any]
    state: Any


@dataclass(frozen=True)
class Done:
    """Outcome of a job, with what only our saver has."""

    seen: Seen
    interrupts: list[tuple[Any, str]]
    pid: int
    stats: dict[str, int] = field(default_factory=dict)
    found_in_redis: bool = False
    """True if the thread was there when the saver, new in this process, was first asked for it."""


def run(job: Job) -> Done:
    return asyncio.run(_run(job))


async def _run(job: Job) -> Done:
    if not job.cached:
        async with AsyncPostgresSaver.from_conn_string(job.postgres_url) as upstream:
            return await _invoke(job, upstream)
    async with CachedPostgresSaver.from_conn_string(
        job.postgres_url, job.redis_url, prefix=job.prefix, redis_timeout=PATIENT_SECONDS
    ) as saver:
        await saver.aget_tuple(on_thread(job.thread_id))
        first = saver.stats()
        return replace(await _invoke(job, saver), stats=saver.stats(), found_in_redis=first["hits"] == 1)


async def _invoke(job: Job, saver: Any) -> Done:
    graph, config = globals()[job.graph](saver), on_thread(job.thread_id)
    output = await graph.ainvoke(job.input, config)
    state = await graph.aget_state(config, subgraphs=True)
    interrupts = output.pop("__interrupt__", [])
    seen = Seen(output, [i.value for i in interrupts], outline(state))
    return Done(seen, [(i.value, i.id) for i in interrupts], os.getpid())


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """Another process, for the block: `submit(run, job)`."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor
