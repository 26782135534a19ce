"""Agent of the support desk: a tool loop, an approval, and a shipping specialist with a memory of its own.

Its model follows a script, so that none has to be installed; everything else is as in a real agent.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from langgraph_checkpoint_cached.demo.desk import OrderBook

Graph = CompiledStateGraph[Any, Any, Any, Any]

# Rounds of tool calls that follow from a customer's words. The calls of one round are made at once.
SCRIPT: list[tuple[str, list[list[str]]]] = [
    ("where is", [["look_up_order"], ["trace_parcel"]]),
    ("warranty", [["look_up_order", "check_warranty"]]),
    ("money back", [["look_up_order", "check_warranty"], ["issue_refund"]]),
    ("exchange", [["cancel_order", "book_courier"]]),
    ("", []),
]
ORDER_ID = re.compile(r"\b[A-Z]-\d{4}\b")


class ScriptedModel(BaseChatModel):
    """Chat model without weights: `SCRIPT` decides the next message, at once."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=_next_message(messages))])


def _next_message(messages: list[BaseMessage]) -> AIMessage:
    asked_at = max(i for i, message in enumerate(messages) if isinstance(message, HumanMessage))
    request = messages[asked_at].text.lower()
    rounds = next(rounds for words, rounds in SCRIPT if words in request)
    done = sum(isinstance(message, AIMessage) for message in messages[asked_at:])
    if done < len(rounds):
        heard = " ".join(message.text for message in messages if isinstance(message, HumanMessage))
        args = {"order_id": ORDER_ID.findall(heard)[-1]}
        calls = [ToolCall(name=name, args=args, id=f"{name}-{len(messages)}") for name in rounds[done]]
        return AIMessage("", tool_calls=calls)
    results = [message.text for message in messages[asked_at:] if isinstance(message, ToolMessage)]
    return AIMessage(" ".join(results) or "You are welcome. Is there anything else?")


def build_tools(book: OrderBook, call_courier: Callable[[], None]) -> list[BaseTool]:
    """Return the tools of the desk.

    Args:
        book: Order book that they read and change.
        call_courier: Called while a courier is booked; it may block.
    """

    @tool
    def look_up_order(order_id: str) -> str:
        """Look up what was bought, when, and at what price."""
        order = book.order(order_id)
        return f"Order {order.order_id}: {order.item}, {order.price}, bought on {order.bought}."

    @tool
    def check_warranty(order_id: str) -> str:
        """Work out whether an order is still under warranty."""
        ends = book.order(order_id).warranty_ends
        return f"Under warranty until {ends}." if date.today() <= ends else f"The warranty ended on {ends}."

    @tool
    def issue_refund(order_id: str) -> str:
        """Pay the price of an order back, once it is approved."""
        order = book.order(order_id)
        if interrupt(f"Refund {order.price} for {order_id}?") != "approved":
            return "The refund was not approved."
        book.enter("refund", order_id)
        return f"{order.price} refunded."

    @tool
    def cancel_order(order_id: str) -> str:
        """Cancel an order."""
        book.enter("cancellation", order_id)
        return f"Order {order_id} is cancelled."

    @tool
    def book_courier(order_id: str) -> str:
        """Have an order collected."""
        call_courier()
        book.enter("courier", order_id)
        return f"A courier will collect {order_id} tomorrow."

    return [look_up_order, check_warranty, issue_refund, cancel_order, book_courier]


class Report(TypedDict):
    """Result of the shipping specialist."""

    messages: list[AnyMessage]


class Shipping(Report):
    """State of the shipping specialist. `traced` is kept over turns."""

    call: ToolCall
    found: str
    traced: Annotated[list[str], operator.add]


def build_shipping(book: OrderBook) -> Graph:
    """Build the shipping specialist: a subgraph that keeps checkpoints in a namespace of its own."""

    def find_parcel(state: Shipping) -> dict[str, Any]:
        order = book.order(state["call"]["args"]["order_id"])
        verb = "arrives" if date.today() <= order.arrives else "arrived"
        return {"found": f"The {order.item} {verb} on {order.arrives}.", "traced": [order.order_id]}

    def report(state: Shipping) -> dict[str, Any]:
        text = f"{state['found']} (Parcels traced for you so far: {len(state['traced'])}.)"
        return {"messages": [ToolMessage(text, name="trace_parcel", tool_call_id=state["call"]["id"])]}

    builder = StateGraph(Shipping, output_schema=Report)
    builder.add_node("find_parcel", find_parcel)
    builder.add_node("report", report)
    builder.add_edge(START, "find_parcel")
    builder.add_edge("find_parcel", "report")
    return builder.compile(checkpointer=True, name="shipping")


def build_graph(
    book: OrderBook, checkpointer: BaseCheckpointSaver[str], call_courier: Callable[[], None] = lambda: None
) -> Graph:
    """Build the whole agent. Each tool call is a task of its own, so that a completed one is never repeated."""
    model = ScriptedModel()
    tool_node = ToolNode(build_tools(book, call_courier))

    async def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def tools(state: Any, config: RunnableConfig) -> Any:
        return tool_node.invoke([state], config)  # not async: `interrupt` there needs Python 3.11

    def dispatch(state: MessagesState) -> list[Send] | str:
        message = state["messages"][-1]
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        sends = [
            Send("shipping", {"call": call}) if call["name"] == "trace_parcel" else Send("tools", call)
            for call in calls
        ]
        return sends or END

    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_node("tools", tools)
    builder.add_node("shipping", build_shipping(book))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", dispatch, ["tools", "shipping", END])
    builder.add_edge("tools", "agent")
    builder.add_edge("shipping", "agent")
    return builder.compile(checkpointer=checkpointer)
