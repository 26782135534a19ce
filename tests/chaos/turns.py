"""The graph that workers run: each turn adds three answers to a list, one of them before and two in nodes."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph

ANSWERS_MAX = 60
"""The list keeps the last of them, so that long runs do not slow down."""
TURNS_KEPT = ANSWERS_MAX // 3 - 1
"""Behind its last turn, the list holds all answers of at least so many."""


def append(answers: list[str], more: list[str]) -> list[str]:
    return (answers + more)[-ANSWERS_MAX:]


class State(TypedDict):
    name: str
    answers: Annotated[list[str], append]


def answers_of(name: str) -> list[str]:
    """Return what the turn of that name adds."""
    return [f"{name}:asked", f"{name}:first", f"{name}:second"]


async def first(state: State) -> dict[str, Any]:
    return {"answers": [f"{state['name']}:first"]}


async def second(state: State) -> dict[str, Any]:
    return {"answers": [f"{state['name']}:second"]}


def build(saver: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    return builder.compile(saver)


async def take(graph: Any, thread: str, name: str, durability: str) -> list[str]:
    """Takes a turn. Returns the answers of the thread."""
    state = {"name": name, "answers": answers_of(name)[:1]}
    config = {"configurable": {"thread_id": thread}}
    result = await graph.ainvoke(state, config, durability=durability)
    return list(result["answers"])
