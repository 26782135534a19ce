"""How scripts reach Redis: those that are wanted at the same time share a round trip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from langgraph_checkpoint_cached.stores.agreement import Agreement
from langgraph_checkpoint_cached.stores.clients import AnyRedis
from langgraph_checkpoint_cached.stores.cluster_steps import ClusterSteps
from langgraph_checkpoint_cached.stores.scripts import Script
from langgraph_checkpoint_cached.stores.step import Command, Step, exchange


class Steps:
    """Runs steps on a client. One for each process and client.

    A script that Redis is not known to have is sent whole. Asking first whether it has it would not do: a step
    that is refused for that while a later one of its thread is done cannot be made up for.
    """

    def __init__(self, client: AnyRedis) -> None:
        self._client = client
        self._known: set[Script] = set()
        if isinstance(client, RedisCluster):
            self._cluster = ClusterSteps(client)
            return
        pool = client.connection_pool
        self._agreement = Agreement(pool) if isinstance(pool, SentinelConnectionPool) else None

    async def probe(self, key: str, life_ms: int) -> None:
        """Stores something for a moment, on every primary of a Cluster. Raises as `run`, and `ResponseError`."""
        if isinstance(self._client, RedisCluster):
            await self._cluster.probe(key, life_ms)
            return
        (said,) = await self._exchange([("SET", key, b"1", "PX", life_ms)])
        if isinstance(said, ResponseError):
            raise said

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """Runs the steps, those of one thread in the order given. An answer for each, or a `ResponseError`.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them; then any of them may have been done.
        """
        if isinstance(self._client, RedisCluster):
            return await self._cluster.run(steps)
        if self._client.single_connection_client:
            return [await self._alone(step) for step in steps]
        answers = await self._exchange([step.command(known=step.script in self._known) for step in steps])
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._known.clear()
            await self._make_up(steps, answers)
        else:
            self._known.update(step.script for step in steps)
        return answers

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        pool: ConnectionPool = self._client.connection_pool  # type: ignore[union-attr]
        if self._agreement is not None:
            await self._agreement.find()
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            if self._agreement is not None:
                await self._agreement.check(connection)
            return await exchange(connection, commands)
        finally:
            await pool.release(connection)

    async def _make_up(self, steps: Sequence[Step], answers: list[Any]) -> None:
        """Runs the steps again that were refused for want of their script, if that is not too late."""
        threads = Counter(step.keys[0] for step in steps)
        for i, step in enumerate(steps):
            if isinstance(answers[i], NoScriptError) and not (step.in_order and threads[step.keys[0]] > 1):
                answers[i] = await self._alone(step)

    async def _alone(self, step: Step) -> Any:
        try:
            return await step.script.run(self._client, step.keys, step.arguments)
        except ResponseError as exc:
            return exc


__all__ = ["Step", "Steps"]
