"""Wait of writes that Redis did not confirm, until no process serves what they have overwritten."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import psycopg

from langgraph_checkpoint_cached.engine.serving_right import RIGHT_SECONDS, ServingRight
from langgraph_checkpoint_cached.runtime import Runtime
from langgraph_checkpoint_cached.stores.postgres.processes import ProcessTable
from langgraph_checkpoint_cached.utils.background_tasks import BackgroundTasks

POLL_SECONDS_MIN = 0.004
POLL_SECONDS_MAX = 0.032


@dataclass(eq=False)
class _Question:
    """Question to the processes, which is answered when one has invalidated what was stale when it was asked."""

    number: int
    deadline: float
    answered: asyncio.Future[None]


class ServingBarrier:
    """Wait until no process serves anything older than what Postgres holds.

    Stale threads are in Postgres when it is called. It asks all processes to look for them, and waits until one
    that serves has answered that it has invalidated them: all others serve from the same Redis. If none does in
    `RIGHT_SECONDS`, every right that is older has run out, and a newer one began with a look at them. If no
    process serves, nobody is waited for. Calls that come at the same time share a question.
    """

    def __init__(self, runtime: Runtime, right: ServingRight, processes: ProcessTable) -> None:
        self._loop, self._clock, self._right, self._processes = runtime.loop, runtime.boot_clock, right, processes
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._questions: list[_Question] = []
        self._watching: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks()

    async def wait(self) -> None:
        """Wait, at most `RIGHT_SECONDS` and the time that Postgres takes to answer."""
        if self._right.is_nobodys:
            return
        if self._next is None:
            self._next = self._tasks.start(self._ask())
        await asyncio.wait({self._next})

    async def drain(self) -> None:
        """Wait until nobody waits."""
        await self._tasks.drain()

    async def _ask(self) -> None:
        deadline = self._clock() + RIGHT_SECONDS
        async with self._asking:
            deadline, self._next = self._clock() + RIGHT_SECONDS, None  # who comes later has another question
            try:
                number = await self._processes.ask()
            except psycopg.Error:
                number = None
                await asyncio.sleep(max(0.0, deadline - self._clock()))
        if number is None:
            return
        question = _Question(number, deadline, self._loop.create_future())
        self._questions.append(question)
        if self._watching is None:
            self._watching = self._tasks.start(self._watch())
        await question.answered

    async def _watch(self) -> None:
        pause = POLL_SECONDS_MIN
        try:
            while self._questions:
                await asyncio.sleep(pause)
                pause = min(2 * pause, POLL_SECONDS_MAX)
                asked = list(self._questions)
                try:
                    answered, is_any_serving = await self._processes.find_answers()
                except psycopg.Error:
                    answered, is_any_serving = 0, True
                for question in asked:
                    if not is_any_serving or question.number <= answered or self._clock() >= question.deadline:
                        self._questions.remove(question)
                        question.answered.set_result(None)
                        pause = POLL_SECONDS_MIN
        finally:
            self._watching = None
