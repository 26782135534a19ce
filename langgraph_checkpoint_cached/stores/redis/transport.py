"""How scripts reach Redis: those that are wanted at the same time share a round trip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import NoScriptError, ResponseError

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.cluster_transport import ClusterTransport
from langgraph_checkpoint_cached.stores.redis.pipelined_connection import PipelinedConnection, ReplyCallback
from langgraph_checkpoint_cached.stores.redis.script_call import (
    Command,
    Confirmation,
    Step,
    Unconfirmed,
    confirmed,
    confirming,
    exchange,
)
from langgraph_checkpoint_cached.stores.redis.scripts import Script
from langgraph_checkpoint_cached.stores.redis.sentinel_quorum import SentinelQuorum


class Transport:
    """Runs steps on a client. One for each process and client.

    A script that Redis is not known to have is sent whole. Asking first whether it has it would not do: a step
    that is refused for that while a later one of its thread is done cannot be made up for.
    """

    def __init__(self, client: AnyRedis, confirmation: Confirmation | None = None) -> None:
        self._client, self._confirmation = client, confirmation
        self._known: set[Script] = set()
        self._held: PipelinedConnection | None = None
        self._is_closed = False
        if isinstance(client, RedisCluster):
            self._cluster = ClusterTransport(client, confirmation)
            return
        pool = client.connection_pool
        self._agreement = SentinelQuorum(pool) if isinstance(pool, SentinelConnectionPool) else None
        if not client.single_connection_client:
            self._held = PipelinedConnection.of(pool, self)

    def can_send(self, steps: Iterable[Step]) -> bool:
        """Whether `send` can run them now."""
        held = self._held
        return (
            held is not None
            and not self._is_closed
            and held.is_ready
            and self._known.issuperset(step.script for step in steps)
        )

    async def probe(self, key: str, ttl_ms: int) -> None:
        """Stores something for a moment, on every primary of a Cluster. Raises as `run`, and `ResponseError`."""
        if isinstance(self._client, RedisCluster):
            await self._cluster.probe(key, ttl_ms)
            return
        (reply,) = await self._exchange([("SET", key, b"1", "PX", ttl_ms)])
        if isinstance(reply, ResponseError):
            raise reply

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """Runs the steps, those of one thread in the order given. An answer for each, or a `ResponseError`.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them; then any of them may have been done.
        """
        if isinstance(self._client, RedisCluster):
            return await self._cluster.run(steps)
        if self._client.single_connection_client:
            return [await self._alone(step) for step in steps]
        commands = [step.command(known=step.script in self._known) for step in steps]
        reply = await self._exchange(confirming(steps, commands, self._confirmation))
        answers = confirmed(steps, reply, self._confirmation)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self.retry_after_noscript(steps, answers)
        else:
            self._known.update(step.script for step in steps)
        return answers

    def send(self, steps: Sequence[Step], reply: ReplyCallback) -> Callable[[Exception], None] | None:
        """Runs steps as `run` does, if they can be sent at once, but for what is to be made up. `reply` is called
        with the answers, or with what `run` would raise.

        Returns what has them end with an error; None if they cannot be sent now.
        """
        held = self._held
        if held is None or not self.can_send(steps):
            return None

        def heard(answers: list[Any] | Exception) -> None:
            reply(confirmed(steps, answers, self._confirmation) if isinstance(answers, list) else answers)

        commands = [step.command(known=True) for step in steps]
        return held.send(confirming(steps, commands, self._confirmation), heard)

    async def close(self) -> None:
        """Leaves the client as it was: no connection of it is held for this, nor for what still comes."""
        self._is_closed = True
        if self._held is not None:
            await self._held.leave(self)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._held is not None and not self._is_closed:
            return await self._held.exchange(commands)
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

    async def retry_after_noscript(
        self, steps: Sequence[Step], answers: list[Any], *, overtaken: bool = False
    ) -> None:
        """Runs the steps again that were refused for want of their script, if that is not too late.

        Args:
            steps: All of their group.
            answers: To all of them; gets those to the ones that are run again.
            overtaken: Whether later steps of the same threads may have been sent already.
        """
        self._known.clear()
        threads = Counter(step.keys[0] for step in steps)
        for i, step in enumerate(steps):
            too_late = step.in_order and (overtaken or threads[step.keys[0]] > 1)
            if isinstance(answers[i], NoScriptError) and not too_late:
                answers[i] = await self._alone(step)

    async def _alone(self, step: Step) -> Any:
        try:
            answer = await step.script.run(self._client, step.keys, step.arguments)
            return Unconfirmed(answer) if step.durable and self._confirmation else answer
        except ResponseError as exc:
            return exc


__all__ = ["Step", "Transport"]
