"""Scenes of the demo, in the order in which they are played. They check what they claim."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from langchain_core.messages import ToolMessage

from langgraph_checkpoint_cached.demo.comparison import compare_answers, compare_times
from langgraph_checkpoint_cached.demo.graph import ORDER_ID
from langgraph_checkpoint_cached.demo.processes import Worker
from langgraph_checkpoint_cached.demo.screen import milliseconds
from langgraph_checkpoint_cached.demo.stage import Stage
from langgraph_checkpoint_cached.demo.turns import Turn, count_reads, thread_config

POLL_SECONDS = 0.02
TIMEOUT_SECONDS = 15.0

TRACE, WARRANTY, THANKS = "Where is {}?", "Is {} under warranty?", "Thank you!"
REFUND, EXCHANGE = "I want my money back for {}.", "Please exchange {}."
CROWD = {"Ben": "B-2001", "Chloe": "C-3001", "Dev": "D-4001"}


async def play(stage: Stage) -> None:
    """Play all scenes."""
    for scene in (conversation, crowd, approval, crash, emptied, stopped, comparison):
        await scene(stage)


async def conversation(stage: Stage) -> None:
    """Play a conversation of one customer in one process."""
    screen = stage.screen
    screen.scene("A conversation", "Anna writes, tools find the answers. Each turn begins by reading the thread.")
    lines = [TRACE.format("A-1001"), WARRANTY.format("it"), TRACE.format("it now"), THANKS]
    turns = [(message, await stage.turn("Anna", message)) for message in lines]
    screen.turns("Anna says", turns)
    screen.check(
        turns[0][1].from_postgres == 1 and all(turn.from_postgres == 0 for _, turn in turns[1:]),
        "Postgres was read once, for the new thread, and never again, its shipping specialist included",
    )
    screen.check(
        "traced for you so far: 2" in turns[2][1].reply,
        "the specialist, a subgraph with a namespace of its own, remembers what it did two turns ago",
    )


async def crowd(stage: Stage) -> None:
    """Play conversations of several customers at once."""
    screen = stage.screen
    screen.scene("Three customers at once", "Ben, Chloe and Dev, three turns each, through the same saver.")

    async def talk(customer: str, order_id: str) -> list[Turn]:
        lines = [TRACE.format(order_id), WARRANTY.format("it"), THANKS]
        return [await stage.turn(customer, message) for message in lines]

    before, started = count_reads(stage.saver), time.perf_counter()
    talks = await asyncio.gather(*(talk(*who) for who in CROWD.items()))
    elapsed, after = time.perf_counter() - started, count_reads(stage.saver)
    from_redis, from_postgres = after[0] - before[0], after[1] - before[1]
    screen.say(
        f"{sum(map(len, talks))} turns in {milliseconds(1000 * elapsed)}: "
        f"{from_redis} reads from Redis, {from_postgres} from Postgres"
    )
    screen.check(
        from_postgres == len(CROWD), "Postgres was read once for each conversation, its specialist's part included"
    )
    mentioned = [set(ORDER_ID.findall(" ".join(turn.reply for turn in talk))) for talk in talks]
    screen.check(
        mentioned == [{order_id} for order_id in CROWD.values()], "every customer heard only of their own order"
    )


async def approval(stage: Stage) -> None:
    """Play a run that stops for a human and is resumed in another process."""
    screen, book = stage.screen, stage.book
    screen.scene("An approval", "A refund waits for a human. Process A asks and ends, process B gets the reply.")
    async with AsyncExitStack() as stack:
        with screen.waiting("starting two processes"):
            first, second = await _start_two(stack)
            asked = await first.play(stage.job("Anna", REFUND.format("A-1001")))
        screen.require(asked.question is not None and not book.entries("refund"), "A stopped before the refund")
        with screen.waiting("resuming"):
            done = await second.play(stage.job("Anna", approval="approved"))
    screen.say(f"A, process {first.pid}, stops with: {asked.question}")
    screen.say(f"B, process {second.pid}, is resumed with: approved")
    screen.turns("", [("A asks", asked), ("B resumes", done)])
    screen.check(
        [entry.pid for entry in book.entries("refund")] == [second.pid],
        "the refund is in the books once, entered by B",
    )
    screen.check(
        (done.from_redis, done.from_postgres) == (1, 0),
        "B read the thread, with the question, from Redis in one read",
    )


async def crash(stage: Stage) -> None:
    """Play a run whose process is killed, and that another process finishes."""
    screen, book = stage.screen, stage.book
    screen.scene("A crash", "Process A is killed in the middle of a tool. Process B goes on from there.")
    async with AsyncExitStack() as stack:
        with screen.waiting("starting two processes"):
            first, second = await _start_two(stack)
            await first.send(stage.job("Emil", EXCHANGE.format("E-5001"), courier_answers=False))
            await first.wait_for("calling the courier")
            await _until_stored(stage, "Emil", "cancel_order")
        await first.kill()
        screen.say(f"A, process {first.pid}, has done cancel_order and is in book_courier: SIGKILL")
        with screen.waiting("resuming"):
            done = await second.play(stage.job("Emil"))
    screen.say(f"B, process {second.pid}, resumes")
    screen.turns("", [("B resumes", done)])
    screen.check(
        [entry.pid for entry in book.entries("cancellation")] == [first.pid],
        "cancel_order was not done again: it is in the books once, entered by A",
    )
    screen.check(
        [entry.pid for entry in book.entries("courier")] == [second.pid],
        "book_courier was not lost: it is in the books once, entered by B",
    )


async def emptied(stage: Stage) -> None:
    """Play turns after Redis has lost everything."""
    screen = stage.screen
    screen.scene("Redis is emptied", "Everything in it is lost, as after FLUSHDB, an eviction or a failover.")
    screen.say(f"{await stage.empty_redis()} keys removed")
    turns = [(message, await stage.turn("Anna", message)) for message in (WARRANTY.format("it"), THANKS, THANKS)]
    screen.turns("Anna says", turns)
    first, *later = [turn for _, turn in turns]
    screen.check(
        first.from_postgres == 1 and all((turn.from_redis, turn.from_postgres) == (1, 0) for turn in later),
        "the next turn read Postgres, once, and loaded the thread; then Redis served it again",
    )


async def stopped(stage: Stage) -> None:
    """Play turns while Redis is stopped."""
    screen, redis = stage.screen, stage.servers.redis
    screen.scene("Redis stops", "The server is shut down while Anna writes, and then started again.")
    if redis is None:
        screen.say("Left out: the demo cannot stop a Redis that was given with --redis-url.")
        return
    redis.stop()
    lines = [WARRANTY.format("it"), TRACE.format("it"), THANKS]
    turns = [(message, await stage.turn("Anna", message)) for message in lines]
    screen.turns("Anna says", turns)
    screen.check(
        all(turn.from_redis == 0 and turn.from_postgres > 0 and turn.reply for _, turn in turns),
        "every turn was answered, from Postgres alone",
    )
    hits = count_reads(stage.saver)[0]

    async def served_by_redis() -> bool:
        await stage.saver.aget_tuple(thread_config(stage.thread_id("Anna")))
        return count_reads(stage.saver)[0] > hits

    with screen.waiting("Redis is started; reading until it serves"):
        redis.start()
        elapsed = await _until(served_by_redis)
    screen.check(
        elapsed is not None,
        f"{milliseconds(elapsed or 0)} after Redis was started it served a read again, without any intervention",
    )


async def comparison(stage: Stage) -> None:
    """Compare the upstream saver with ours."""
    screen = stage.screen
    screen.scene(
        "No difference", "LangGraph's own AsyncPostgresSaver, over a pool, reads what is in Postgres now."
    )
    with screen.waiting("comparing"):
        await compare_answers(stage)
    with screen.waiting("measuring"):
        await compare_times(stage)


async def _start_two(stack: AsyncExitStack) -> tuple[Worker, Worker]:
    first, second = await asyncio.gather(
        stack.enter_async_context(Worker.start()), stack.enter_async_context(Worker.start())
    )
    return first, second


async def _until_stored(stage: Stage, customer: str, tool: str) -> None:
    """Wait until the result of the tool is among the stored pending writes of the thread."""

    async def stored() -> bool:
        found = await stage.saver.aget_tuple(thread_config(stage.thread_id(customer)))
        values = [value for _, _, value in (found and found.pending_writes) or ()]
        messages = [message for value in values if isinstance(value, list) for message in value]
        return any(isinstance(message, ToolMessage) and message.name == tool for message in messages)

    stage.screen.require(await _until(stored) is not None, f"the result of {tool} is stored")


async def _until(holds: Callable[[], Awaitable[bool]]) -> float | None:
    """Poll until a condition holds. Returns how many milliseconds that took; None on timeout."""
    started = time.perf_counter()
    while time.perf_counter() - started < TIMEOUT_SECONDS:
        if await holds():
            return 1000 * (time.perf_counter() - started)
        await asyncio.sleep(POLL_SECONDS)
    return None
