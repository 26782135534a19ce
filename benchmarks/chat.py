"""Conversations that the contestants store, their checkpoints, and the graph that makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Annotated, Any, TypeAlias, TypedDict, cast

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import Messages, add_messages

Saver: TypeAlias = "BaseCheckpointSaver[Any]"

NODES = ("understand", "look_up", "answer")
FORMAT = 4
"""Version of the checkpoint format. Older ones cost the upstream saver a second query."""

QUESTION = "My order A-1001 has not arrived yet. Could you please find out where the parcel is right now?"
ANSWER = (
    "I have looked it up for you: the parcel left the warehouse on Monday, reached the depot in your town this "
    "morning, and will be delivered between 14:00 and 16:00."
)


@cache
def _messages(count: int, extra_characters: int) -> tuple[AnyMessage, ...]:
    filling = "x" * extra_characters
    return tuple(
        AIMessage(ANSWER + filling, id=f"message-{n}") if n % 2 else HumanMessage(QUESTION, id=f"message-{n}")
        for n in range(count)
    )


def messages(count: int, extra_characters: int = 0) -> list[AnyMessage]:
    """Return a conversation of `count` messages, questions and answers in turn, some 120 characters each."""
    return list(_messages(count, extra_characters))


def question() -> dict[str, Any]:
    """Return the input that starts a turn."""
    return {"messages": [HumanMessage(QUESTION)]}


def thread(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    """Return the config of a thread, or of one of its checkpoints."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": ""}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint(
    saver: Saver, state: Sequence[AnyMessage], before: Checkpoint | None = None
) -> tuple[Checkpoint, CheckpointMetadata, ChannelVersions]:
    """Return `aput`'s arguments for a checkpoint with this conversation, as the graph's last node leaves it."""
    versions: ChannelVersions = before["channel_versions"] if before else {}
    start = versions.get("__start__") or saver.get_next_version(None, None)
    version = saver.get_next_version(versions.get("messages"), None)
    made: Checkpoint = {
        "v": FORMAT,
        "id": str(uuid6(clock_seq=-1)),
        "ts": datetime.now(timezone.utc).isoformat(),
        "channel_values": {"messages": state},
        "channel_versions": {"__start__": start, "messages": version},
        "versions_seen": {"__input__": {}, "__start__": {"__start__": start}},
        "updated_channels": ["messages"],
    }
    # A first checkpoint stores all its versions: the cache cannot follow one with a version that was never stored.
    changed: ChannelVersions = {"messages": version} if before else dict(made["channel_versions"])
    return made, {"source": "loop", "step": 3, "parents": {}}, changed


def graph(saver: Saver) -> Any:
    """Return a graph of three nodes in a row, each of which adds one short message."""
    return _compiled(MessagesState, saver)


def short_graph(saver: Saver) -> Any:
    """Return the same graph with a state that does not grow: only the last messages stay."""
    return _compiled(ShortState, saver)


def keep_last(before: list[AnyMessage], new: list[AnyMessage]) -> list[AnyMessage]:
    """Add messages as `add_messages` does, and keep only the last four."""
    merged = cast("list[AnyMessage]", add_messages(cast("Messages", before), cast("Messages", new)))
    return merged[-4:]


class ShortState(TypedDict):
    """State with the end of a conversation."""

    messages: Annotated[list[AnyMessage], keep_last]


def _compiled(schema: type[Any], saver: Saver) -> Any:
    builder: StateGraph[Any] = StateGraph(schema)
    for before, name in zip((START, *NODES), NODES, strict=False):
        builder.add_node(name, cast("Any", _node(name)))
        builder.add_edge(before, name)
    builder.add_edge(NODES[-1], END)
    return builder.compile(checkpointer=saver)


def _node(name: str) -> Callable[[Any], Any]:
    async def say(state: Any) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{name}: done.")]}

    return say
