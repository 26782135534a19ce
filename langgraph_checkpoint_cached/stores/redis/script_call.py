"""Script to be run, with the future of its reply; and the confirmation that replicas or a disk have it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from redis.exceptions import ReadOnlyError, ResponseError

from langgraph_checkpoint_cached.stores.redis.scripts import Script

Argument: TypeAlias = "str | bytes"
Command: TypeAlias = "tuple[Any, ...]"


class ScriptCall(NamedTuple):
    """Script with its keys, of which the first is the thread's, its arguments, and the future of its reply."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    done: asyncio.Future[Any]
    in_order: bool = False
    """True if the call must not run after a later one of the same thread."""
    durable: bool = False
    """True if the reply must say whether replicas, or a disk, have the change too."""

    @property
    def size_bytes(self) -> int:
        """Approximate number of bytes that the call sends."""
        return sum(map(len, self.arguments))


def evalsha(call: ScriptCall) -> Command:
    """Return the command for a server that has the script."""
    return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.arguments)


def eval_whole(call: ScriptCall) -> Command:
    """Return the command for a server that may lack the script."""
    return ("EVAL", call.script.text, len(call.keys), *call.keys, *call.arguments)


class Unconfirmed(NamedTuple):
    """Reply of a durable call that ran and was not confirmed."""

    answer: Any


class Confirmation(NamedTuple):
    """Command that waits until what its connection wrote is elsewhere too, and how many have to have it."""

    command: Command
    needed: int

    def wanted_by(self, calls: Sequence[ScriptCall]) -> bool:
        """Return whether a call of these is durable."""
        return any(call.durable for call in calls)

    def apply(self, calls: Sequence[ScriptCall], replies: list[Any]) -> list[Any]:
        """Return the replies to the calls, out of those to the calls and to `command` after them."""
        *replies, confirmation = replies
        if isinstance(confirmation, list):
            confirmation = confirmation[0]  # WAITAOF counts the server itself, then replicas
        if not isinstance(confirmation, ResponseError) and confirmation >= self.needed:
            return replies
        return [
            Unconfirmed(reply) if call.durable and not isinstance(reply, ResponseError) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]


def confirmation_for(durability: str, timeout_seconds: float) -> Confirmation | None:
    """Return how an acknowledgement is confirmed, None where the primary's word is enough.

    Args:
        durability: `"as_is"`, `"replica"` or `"disk"`.
        timeout_seconds: Of one call; half of it is for the confirmation.
    """
    half_ms = max(1, int(timeout_seconds * 500))
    known = {
        "as_is": None,
        "replica": Confirmation(("WAIT", 1, half_ms), 1),
        "disk": Confirmation(("WAITAOF", 1, 0, half_ms), 1),
    }
    return known[durability]


def was_demoted(replies: Sequence[Any]) -> bool:
    """Return whether a reply is a replica's: behind the address there may be another primary by now."""
    return any(isinstance(reply, ReadOnlyError) for reply in replies)
