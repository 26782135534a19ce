"""How scripts reach a Redis Cluster: those for one node share a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)

from langgraph_checkpoint_cached.stores.redis.script_call import (
    Command,
    Confirmation,
    Step,
    Unconfirmed,
    confirmed,
    confirming,
    exchange,
)

PROBE_KEYS_MAX = 5_000
"""How many keys are tried until there is one for each primary."""
REFUSED = (NoScriptError, AskError)  # a MovedError is an AskError
"""What a node answers that has not run the script, and that running it in another way may help."""


class ClusterTransport:
    """Runs steps on a Cluster. One for each process and client.

    While a slot is on its way from one node to another, a script is refused (TRYAGAIN) until all its keys are on
    one of them, and one that does not exist counts as missing. That is the step's answer: it is not waited for.
    """

    def __init__(self, client: RedisCluster, confirmation: Confirmation | None = None) -> None:
        self._client, self._confirmation = client, confirmation
        self._known: set[tuple[str, str]] = set()  # node and script
        self._outdated = False

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """Runs the steps, those of one thread in the order given. An answer for each, or a `ResponseError`.

        Raises:
            redis.exceptions.RedisError, RedisClusterException, OSError: as the client raises them; then any of
                them may have been done.
        """
        try:
            await self._clean_up_ended()
            answers = await self._by_node(steps)
            await self._retry_after_noscript(steps, answers)
        except BaseException:
            self._outdated = True  # a time-out too: a node that hangs is asked until we ask who has its slots now
            raise
        self._outdated |= any(isinstance(answer, ClusterDownError) for answer in answers)
        return answers

    async def probe(self, key: str, ttl_ms: int) -> None:
        """Stores something on every primary. Raises what `run` raises, and `ResponseError`."""
        try:
            await self._clean_up_ended()
            nodes: dict[str, tuple[ClusterNode, str]] = {}  # by name: redis-py before 8 cannot hash nodes
            primaries, number = self._client.get_primaries(), 0
            while len(nodes) < len(primaries):
                if number > PROBE_KEYS_MAX:
                    raise RedisError("not every primary has slots")
                node = self._node_for(name := f"{key}:{number}")
                nodes.setdefault(node.name, (node, name))
                number += 1
            commands = [(node, [("SET", name, b"1", "PX", ttl_ms)]) for node, name in nodes.values()]
            for (answer,) in await _all(self._on(node, command) for node, command in commands):
                if isinstance(answer, ResponseError):
                    raise answer
        except BaseException:
            self._outdated = True
            raise

    async def _clean_up_ended(self) -> None:
        """Has the client ask who has which slots, the first time and after every failure."""
        if self._outdated:
            self._outdated = False
            self._client._initialize = True  # as the client does when a connection fails
        await self._client.initialize()

    async def _by_node(self, steps: Sequence[Step]) -> list[Any]:
        nodes: dict[str, tuple[ClusterNode, list[int]]] = {}
        for i, step in enumerate(steps):
            node = self._node_for(step.keys[0])
            nodes.setdefault(node.name, (node, []))[1].append(i)
        answers: list[Any] = [None] * len(steps)
        of_nodes = await _all(self._run_on(node, [steps[i] for i in indexes]) for node, indexes in nodes.values())
        for (node, indexes), reply in zip(nodes.values(), of_nodes, strict=True):
            if any(isinstance(each, NoScriptError) for each in reply):
                self._known = {known for known in self._known if known[0] != node.name}
            for i, each in zip(indexes, reply, strict=True):
                answers[i] = each
                if not isinstance(each, REFUSED):
                    self._known.add((node.name, steps[i].script.sha))
        return answers

    async def _run_on(self, node: ClusterNode, steps: Sequence[Step]) -> list[Any]:
        commands = [step.command(known=(node.name, step.script.sha) in self._known) for step in steps]
        reply = await self._on(node, confirming(steps, commands, self._confirmation))
        return confirmed(steps, reply, self._confirmation)

    async def _retry_after_noscript(self, steps: Sequence[Step], answers: list[Any]) -> None:
        """Runs the steps again that were refused, unless that is too late: one by one, for the client learns
        from the first where the others are to go.
        """
        done_later: set[str] = set()
        refused: list[int] = []
        for i in reversed(range(len(steps))):
            if not isinstance(answers[i], REFUSED):
                done_later.add(steps[i].keys[0])
            elif not (steps[i].in_order and steps[i].keys[0] in done_later):
                refused.append(i)
        for i in reversed(refused):
            again = await self._again(steps[i], answers[i])
            answers[i] = Unconfirmed(again) if steps[i].durable and self._confirmation else again

    async def _again(self, step: Step, refusal: ResponseError) -> Any:
        if isinstance(refusal, AskError) and not isinstance(refusal, MovedError):
            return await self._ask(step, refusal)
        try:
            return await step.script.run(self._client, step.keys, step.arguments)
        except ResponseError as exc:
            return exc

    async def _ask(self, step: Step, where: AskError) -> Any:
        """Runs a step at the node that its slot is on the way to. Not by the client: it may send ASKING on one
        connection and the command on another.
        """
        node = self._client.get_node(host=where.host, port=where.port)
        if node is None:
            self._outdated = True
            return where
        return (await self._on(node, [("ASKING",), step.command(known=False)]))[1]

    async def _on(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        connection = node.acquire_connection()
        try:
            can_read = getattr(
                connection, "can_read", connection.can_read_destructive
            )  # its name until redis-py 8
            if connection.is_connected and await can_read():
                await connection.disconnect(nowait=True)  # closed by the node, while it was idle
            return await exchange(connection, commands)
        finally:
            release = getattr(node, "release", node._free.append)  # redis-py before 7 has no such method
            release(connection)

    def _node_for(self, key: str) -> ClusterNode:
        node = self._client.get_node_from_key(key)
        if node is None:
            raise SlotNotCoveredError(f"no node has the slot of {key!r}")
        return node


async def _all(work: Any) -> list[Any]:
    """Does all of it, to the end even if some fails; then raises the first error."""
    answers = await asyncio.gather(*work, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
