"""How scripts reach Redis: those that are wanted at the same time share a round trip."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from langgraph_checkpoint_cached.stores.clients import AnyRedis
from langgraph_checkpoint_cached.stores.scripts import Script


class Step(NamedTuple):
    """A script with its keys, of which the first is the thread's, its arguments, and who waits for it."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any]
    done: asyncio.Future[Any]
    in_order: bool = False
    """Whether it may not be done after a later step of the same thread."""

    @property
    def rows(self) -> int:
        """One command."""
        return 1

    @property
    def size_bytes(self) -> int:
        """About what it sends."""
        return sum(len(a) for a in self.arguments if isinstance(a, (str, bytes)))


class Steps:
    """Runs steps on a client. One for each process and client.

    A script that Redis is not known to have is sent whole. Asking first whether it has it would not do: a step
    that is refused for that while a later one of its thread is done cannot be made up for.
    """

    def __init__(self, client: AnyRedis) -> None:
        self._client = client
        self._known: set[Script] = set()

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """Runs the steps, those of one thread in the order given. An answer for each, or a `ResponseError`.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them; then any of them may have been done.
        """
        if isinstance(self._client, RedisCluster) or self._client.single_connection_client:
            return await self._by_thread(steps)
        answers = await self._in_one_go(self._client.connection_pool, steps)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._known.clear()
            await self._make_up(steps, answers)
        else:
            self._known.update(step.script for step in steps)
        return answers

    async def _in_one_go(self, pool: ConnectionPool, steps: Sequence[Step]) -> list[Any]:
        """Sends all, then reads all, as the client's own pipeline does, at two thirds of its cost or less."""
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(b"".join(pack_command(self._command(step)) for step in steps))
            answers: list[Any] = []
            for _ in steps:
                try:
                    answers.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
                except ResponseError as exc:
                    answers.append(exc)
            return answers
        except BaseException:
            await connection.disconnect(nowait=True)  # no reply is left on it for the next caller
            raise
        finally:
            await pool.release(connection)

    async def _make_up(self, steps: Sequence[Step], answers: list[Any]) -> None:
        """Runs the steps again that were refused for want of their script, if that is not too late."""
        threads = Counter(step.keys[0] for step in steps)
        for i, step in enumerate(steps):
            if isinstance(answers[i], NoScriptError) and not (step.in_order and threads[step.keys[0]] > 1):
                answers[i] = await self._alone(step)

    async def _by_thread(self, steps: Sequence[Step]) -> list[Any]:
        threads: dict[str, list[int]] = defaultdict(list)
        for i, step in enumerate(steps):
            threads[step.keys[0]].append(i)
        answers: list[Any] = [None] * len(steps)

        async def one_after_another(indexes: list[int]) -> None:
            for i in indexes:
                answers[i] = await self._alone(steps[i])

        await asyncio.gather(*map(one_after_another, threads.values()))
        return answers

    async def _alone(self, step: Step) -> Any:
        try:
            return await step.script.run(self._client, step.keys, step.arguments)
        except ResponseError as exc:
            return exc

    def _command(self, step: Step) -> tuple[Any, ...]:
        how = ("EVALSHA", step.script.sha) if step.script in self._known else ("EVAL", step.script.text)
        return (*how, len(step.keys), *step.keys, *step.arguments)
