"""Transport of script calls to a Redis Cluster: those for one node share a round trip, or each takes its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
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
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from langgraph_checkpoint_cached.stores.redis.client import CONNECT_TIMEOUTS, is_refused
from langgraph_checkpoint_cached.stores.redis.links import NodeLink
from langgraph_checkpoint_cached.stores.redis.redis_internals import refresh_slots
from langgraph_checkpoint_cached.stores.redis.reply_reader import OnReplies
from langgraph_checkpoint_cached.stores.redis.script_call import (
    Command,
    Confirmation,
    ScriptCall,
    Unconfirmed,
    eval_whole,
    evalsha,
)
from langgraph_checkpoint_cached.stores.redis.scripts import EPOCH, UNDECODED
from langgraph_checkpoint_cached.utils.progress_timer import running_timeout

PROBE_KEYS_MAX = 5_000
"""Number of keys that are tried until there is one for each primary."""
MOVING_PAUSES_SECONDS = (0.005, 0.02)
"""Pauses before a call is tried again that was refused because the slot of its thread is being moved."""
NODES_MAX = 1000
"""Nodes ever met, after which what is known of them is forgotten."""
MOVING = (TryAgainError, AskError)
"""Replies of a node while the slot is being moved, or has just been. The script has not run."""
REFUSED = (NoScriptError, AskError)  # a MovedError is an AskError
"""Replies of a node that has not run the script, where running it in another way may help."""


class ClusterTransport:
    """Transport to the nodes of a Cluster.

    While a slot is on its way from one node to another, a script is refused (TRYAGAIN) until all its keys are on
    one of them, and one that does not exist counts as missing. A call in order, without which its thread's entry
    or journal is lost, is tried again a few times; for others that is the reply.
    """

    def __init__(
        self, client: RedisCluster, timeout_seconds: float, confirmation: Confirmation | None = None
    ) -> None:
        self._client, self._timeout_seconds, self._confirmation = client, timeout_seconds, confirmation
        self._links: dict[str, NodeLink] = {}
        self._known: set[tuple[str, str]] = set()  # node and script
        self._outdated = False

    def can_send(self, calls: Iterable[ScriptCall]) -> bool:
        return False

    def send(self, calls: Sequence[ScriptCall], on_replies: OnReplies) -> bool:
        return False

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        try:
            await self._refresh_if_outdated()
            replies = await self._run_by_node(calls)
            await self.retry_after_noscript(calls, replies)
            for pause_seconds in MOVING_PAUSES_SECONDS:
                if not (moving := _refused_in_order(calls, replies, MOVING)):
                    break
                await asyncio.sleep(pause_seconds)
                again = [calls[i] for i in moving]
                replies_again = await self._run_by_node(again)
                await self.retry_after_noscript(again, replies_again)
                for i, reply in zip(moving, replies_again, strict=True):
                    replies[i] = reply
        except BaseException:
            self._outdated = True  # a time-out too: a node that hangs is asked until we ask who has its slots now
            raise
        self._outdated |= any(isinstance(reply, (ClusterDownError, AskError)) for reply in replies)
        return replies

    async def probe(self, key: str, ttl_ms: int) -> None:
        try:
            await self._refresh_if_outdated()
            commands = [
                (node, [("SET", name, b"1", "PX", ttl_ms)]) for node, name in keys_by_node(self._client, key)
            ]
            for [reply] in await _all(self._exchange(node, command) for node, command in commands):
                if isinstance(reply, ResponseError):
                    raise reply
        except BaseException:
            self._outdated = True
            raise

    async def epochs(self, key: str) -> list[bytes]:
        try:
            await self._refresh_if_outdated()
            primaries = keys_by_node(self._client, key)
            replies = await _all(self._exchange(node, [("EVAL", EPOCH.text, 1, name)]) for node, name in primaries)
        except BaseException:
            self._outdated = True
            raise
        for [reply] in replies:
            if isinstance(reply, ResponseError):
                self._outdated = True
                raise reply
        return [reply for [reply] in replies]

    async def reconnect(self) -> None:
        self._outdated = True

    async def close(self) -> None:
        """Do nothing: no connection is held."""

    async def retry_after_noscript(
        self, calls: Sequence[ScriptCall], replies: list[Any], *, overtaken: bool = False
    ) -> None:
        """Run the calls again that were refused, unless a later one of their thread has run: one by one, for the
        client learns from the first where the others are to go.
        """
        in_order = set(() if overtaken else _refused_in_order(calls, replies, REFUSED))
        for i in range(len(calls)):
            if not isinstance(replies[i], REFUSED) or (calls[i].in_order and i not in in_order):
                continue
            reply = await self._retry(calls[i], replies[i])
            must_confirm = calls[i].durable and self._confirmation and not isinstance(reply, ResponseError)
            replies[i] = Unconfirmed(reply) if must_confirm else reply

    async def _refresh_if_outdated(self) -> None:
        """Have the client ask who has which slots, the first time and after every failure."""
        if self._outdated:
            self._outdated = False
            refresh_slots(self._client)
        async with running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds):
            await self._client.initialize()

    async def _exchange(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        link = self._links.get(node.name)
        if link is None:
            if len(self._links) >= NODES_MAX:
                self._links.clear()
            link = self._links[node.name] = NodeLink(self._timeout_seconds)
        return await link.exchange(node, commands)

    async def _run_by_node(self, calls: Sequence[ScriptCall]) -> list[Any]:
        nodes: dict[str, tuple[ClusterNode, list[int]]] = {}
        for i, call in enumerate(calls):
            node = _node_for(self._client, call.keys[0])
            nodes.setdefault(node.name, (node, []))[1].append(i)
        replies: list[Any] = [None] * len(calls)
        by_node = await _all(self._run_on(node, [calls[i] for i in indexes]) for node, indexes in nodes.values())
        for (node, indexes), node_replies in zip(nodes.values(), by_node, strict=True):
            if any(isinstance(reply, NoScriptError) for reply in node_replies):
                self._known = {known for known in self._known if known[0] != node.name}
            for i, reply in zip(indexes, node_replies, strict=True):
                replies[i] = reply
                if not isinstance(reply, (*REFUSED, RedisConnectionError)):
                    self._known.add((node.name, calls[i].script.sha))
        return replies

    async def _run_on(self, node: ClusterNode, calls: Sequence[ScriptCall]) -> list[Any]:
        commands = [
            evalsha(call) if (node.name, call.script.sha) in self._known else eval_whole(call) for call in calls
        ]
        confirmation = self._confirmation
        try:
            if confirmation is None:
                return await self._exchange(node, commands)
            confirming = confirmation.commands_for(calls)
            return confirmation.apply(calls, await self._exchange(node, [*commands, *confirming]))
        except RedisConnectionError as exc:
            if is_refused(exc):
                raise
            return [exc] * len(calls)  # the other nodes are well

    async def _retry(self, call: ScriptCall, refusal: ResponseError) -> Any:
        if isinstance(refusal, AskError) and not isinstance(refusal, MovedError):
            return await self._ask(call, refusal)
        try:
            async with running_timeout(self._timeout_seconds):
                return await self._client.execute_command(*eval_whole(call), **UNDECODED)
        except (ResponseError, RedisConnectionError) as exc:
            return exc

    async def _ask(self, call: ScriptCall, where: AskError) -> Any:
        """Run a call at the node that its slot is on the way to. Not by the client: it may send ASKING on one
        connection and the command on another.
        """
        node = self._client.get_node(host=where.host, port=where.port)
        if node is None:
            self._outdated = True
            return where
        return (await self._exchange(node, [("ASKING",), eval_whole(call)]))[1]


class ClusterClientTransport:
    """Transport to a Cluster through the client's public methods only: a round trip for each call.

    Nothing is confirmed: a WAIT of the client's need not go over the connection that the writes went over.
    """

    def __init__(
        self, client: RedisCluster, timeout_seconds: float, confirmation: Confirmation | None = None
    ) -> None:
        self._client, self._timeout_seconds, self._confirmation = client, timeout_seconds, confirmation

    def can_send(self, calls: Iterable[ScriptCall]) -> bool:
        return False

    def send(self, calls: Sequence[ScriptCall], on_replies: OnReplies) -> bool:
        return False

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        threads: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            threads.setdefault(call.keys[0], []).append(i)
        replies: list[Any] = [None] * len(calls)
        async with running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds):  # perhaps with new connections
            by_thread = await _all(self._run_in_order([calls[i] for i in indexes]) for indexes in threads.values())
        for indexes, thread_replies in zip(threads.values(), by_thread, strict=True):
            for i, reply in zip(indexes, thread_replies, strict=True):
                replies[i] = reply
        return replies

    async def retry_after_noscript(
        self, calls: Sequence[ScriptCall], replies: list[Any], *, overtaken: bool = False
    ) -> None:
        """Do nothing: `run` sends a script whole that the node lacks."""

    async def probe(self, key: str, ttl_ms: int) -> None:
        async with running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds):
            await self._client.initialize()
            for _, name in keys_by_node(self._client, key):
                await self._client.set(name, b"1", px=ttl_ms)

    async def epochs(self, key: str) -> list[bytes]:
        async with running_timeout(CONNECT_TIMEOUTS * self._timeout_seconds):
            await self._client.initialize()
            return [await EPOCH.run(self._client, [name], []) for _, name in keys_by_node(self._client, key)]

    async def reconnect(self) -> None:
        refresh_slots(self._client)

    async def close(self) -> None:
        """Do nothing: no connection is held."""

    async def _run_in_order(self, calls: Sequence[ScriptCall]) -> list[Any]:
        replies: list[Any] = []
        for call in calls:
            try:
                reply = await call.script.run(self._client, call.keys, call.arguments)
                replies.append(Unconfirmed(reply) if call.durable and self._confirmation else reply)
            except ResponseError as exc:
                replies.append(exc)
        return replies


def keys_by_node(client: RedisCluster, key: str) -> list[tuple[ClusterNode, str]]:
    """Return each primary with a key that it would hold, which begins with `key`.

    Raises:
        RedisError, RedisClusterException: one has no slots, or a slot has no node.
    """
    nodes: dict[str, tuple[ClusterNode, str]] = {}  # by name: redis-py before 8 cannot hash nodes
    primaries, number = client.get_primaries(), 0
    while len(nodes) < len(primaries):
        if number > PROBE_KEYS_MAX:
            raise RedisError("not every primary has slots")
        node = _node_for(client, name := f"{key}:{number}")
        nodes.setdefault(node.name, (node, name))
        number += 1
    return list(nodes.values())


def _node_for(client: RedisCluster, key: str) -> ClusterNode:
    node = client.get_node_from_key(key)
    if node is None:
        raise SlotNotCoveredError(f"no node has the slot of {key!r}")
    return node


def _refused_in_order(
    calls: Sequence[ScriptCall], replies: Sequence[Any], refusals: type[Exception] | tuple[type[Exception], ...]
) -> list[int]:
    """Return the calls in order that were refused, and that may run still: no later one of their thread has."""
    done_later: set[str] = set()
    refused: list[int] = []
    for i in reversed(range(len(calls))):
        if not isinstance(replies[i], refusals):
            done_later.add(calls[i].keys[0])
        elif calls[i].in_order and calls[i].keys[0] not in done_later:
            refused.append(i)
    return refused[::-1]


async def _all(work: Iterable[Awaitable[list[Any]]]) -> list[list[Any]]:
    """Do all of it, to the end even if some fails; then raise the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]
