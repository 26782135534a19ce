"""Real graphs, deterministic but for the ids that LangGraph draws, and what is done with them."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send, interrupt

Graph = CompiledStateGraph[Any, Any, Any, Any]
Durability = Literal["sync", "async", "exit"]
Script = Callable[[Graph, RunnableConfig, Durability], Awaitable[list[Any]]]


class Step(TypedDict, total=False):
    items: Annotated[list[str], operator.add]
    answer: str


class Delta(TypedDict, total=False):
    log: Annotated[list[str], DeltaChannel(lambda state, writes: sum(writes, state), list, snapshot_frequency=2)]
    turn: int


# -- graphs ------------------------------------------------------------------------------------------------------


def agent() -> StateGraph[Any, Any, Any, Any]:
    """A model that asks for a tool as long as there are fewer than two results to its question."""

    def model(state: MessagesState) -> dict[str, Any]:
        messages: Sequence[AnyMessage] = state["messages"]
        number = len(messages)
        asked = next(i for i in reversed(range(number)) if isinstance(messages[i], HumanMessage))
        if number - asked > 4:
            return {"messages": [AIMessage("done", id=f"m{number}")]}
        call = {"name": "look_up", "args": {"number": number}, "id": f"call-{number}"}
        return {"messages": [AIMessage("", id=f"m{number}", tool_calls=[call])]}

    def tools(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        calls = last.tool_calls if isinstance(last, AIMessage) else []
        return {"messages": [ToolMessage("found", tool_call_id=c["id"], id=f"t-{c['id']}") for c in calls]}

    def route(state: MessagesState) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", tools)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", route, ["tools", END])
    graph.add_edge("tools", "model")
    return graph


def linear(*names: str) -> StateGraph[Any, Any, Any, Any]:
    """Nodes in a row, each of which adds its name."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(Step)
    for before, name in zip((START, *names), names, strict=False):
        graph.add_node(name, lambda _state, name=name: {"items": [name]})
        graph.add_edge(before, name)
    return graph


def with_subgraph() -> StateGraph[Any, Any, Any, Any]:
    """A graph with one in it, which has one in it."""
    inner = linear("x", "y")
    inner.add_node("deep", linear("deepest").compile())
    inner.add_edge("y", "deep")
    graph = linear("before")
    graph.add_node("inside", inner.compile())
    graph.add_edge("before", "inside")
    return graph


def asking() -> StateGraph[Any, Any, Any, Any]:
    """Two interrupts in one node, beside a node that is done meanwhile."""

    def ask(_state: Step) -> dict[str, Any]:
        first = interrupt({"question": "name?"})
        second = interrupt(["sure?", None])
        return {"items": [f"{first}-{second}"], "answer": second}

    graph = linear("before")
    graph.add_node("ask", ask)
    graph.add_node("beside", lambda _state: {"items": ["beside"]})
    graph.add_node("after", lambda _state: {"items": ["after"]})
    graph.add_edge("before", "ask")
    graph.add_edge("before", "beside")
    graph.add_edge(["ask", "beside"], "after")
    return graph


def fan_out() -> StateGraph[Any, Any, Any, Any]:
    """A task per item, then one that sees all."""
    graph = linear("plan")
    graph.add_node("work", lambda item: {"items": [f"did {item['n']}"]})
    graph.add_node("gather", lambda state: {"answer": ",".join(state["items"])})
    graph.add_conditional_edges("plan", lambda _state: [Send("work", {"n": n}) for n in range(12)], ["work"])
    graph.add_edge("work", "gather")
    return graph


def failing() -> StateGraph[Any, Any, Any, Any]:
    """A node that fails as long as there is no answer, beside one that does not."""

    def fail(state: Step) -> dict[str, Any]:
        if "answer" not in state:
            raise ValueError("no answer")
        return {"items": ["worked"]}

    graph = linear("before")
    graph.add_node("fail", fail)
    graph.add_node("beside", lambda _state: {"items": ["beside"]})
    graph.add_edge("before", "fail")
    graph.add_edge("before", "beside")
    return graph


def delta() -> StateGraph[Any, Any, Any, Any]:
    """A channel that is stored as writes, with a snapshot now and then."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(Delta)
    graph.add_node("one", lambda state: {"log": ["one"], "turn": state.get("turn", 0) + 1})
    graph.add_node("two", lambda _state: {"log": ["two"]})
    graph.add_edge(START, "one")
    graph.add_edge("one", "two")
    return graph


# -- what is done with them --------------------------------------------------------------------------------------


async def chat(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """Three turns."""
    turns = [{"messages": [HumanMessage(f"question {n}", id=f"h{n}")]} for n in range(3)]
    return [await graph.ainvoke(turn, config, durability=durability) for turn in turns]


async def repeat(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """Two turns."""
    return [await graph.ainvoke({"items": [f"turn {n}"]}, config, durability=durability) for n in range(2)]


async def resume(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """A turn, with an answer to each interrupt."""
    inputs: list[Any] = [{"items": ["go"]}, Command(resume="ada"), Command(resume={"yes": True})]
    return [await graph.ainvoke(given, config, durability=durability) for given in inputs]


async def fork(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """A turn, another one from the middle of it, and an update of each end."""
    answers = [await graph.ainvoke({"items": ["go"]}, config, durability=durability)]
    past = [snapshot async for snapshot in graph.aget_state_history(config)]
    middle = past[len(past) // 2].config
    changed = await graph.aupdate_state(middle, {"items": ["changed"]})
    answers.append(await graph.ainvoke(None, changed, durability=durability))
    answers.append(await graph.ainvoke(None, middle, durability=durability))
    await graph.aupdate_state(config, {"items": ["at the end"]})
    return [*answers, await graph.ainvoke({"items": ["more"]}, config, durability=durability)]


async def retry(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """A turn that fails, twice, and goes on when what it wanted is there."""
    answers: list[Any] = []
    for given in ({"items": ["go"]}, None):
        try:
            answers.append(await graph.ainvoke(given, config, durability=durability))
        except ValueError as exc:
            answers.append(str(exc))
    await graph.aupdate_state(config, {"answer": "here"}, as_node="before")
    return [*answers, await graph.ainvoke(None, config, durability=durability)]


async def deltas(graph: Graph, config: RunnableConfig, durability: Durability) -> list[Any]:
    """Four turns."""
    return [await graph.ainvoke({"log": [f"turn {n}"]}, config, durability=durability) for n in range(4)]


CASES: dict[str, tuple[Callable[[], StateGraph[Any, Any, Any, Any]], Script]] = {
    "agent with tools": (agent, chat),
    "five nodes in a row": (lambda: linear(*"abcde"), repeat),
    "subgraphs": (with_subgraph, repeat),
    "interrupts and resumes": (asking, resume),
    "12 tasks at once": (fan_out, repeat),
    "forks and updates": (lambda: linear("a", "b", "c"), fork),
    "a failing node": (failing, retry),
    "DeltaChannel": (delta, deltas),
}
