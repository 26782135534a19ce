"""Script to be run, with the future of its reply; and the confirmation that replicas or a disk have it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from redis.exceptions import ReadOnlyError, ResponseError

from langgraph_checkpoint_cached.stores.redis.client import reason
from langgraph_checkpoint_cached.stores.redis.scripts import Script

logger = logging.getLogger("langgraph_checkpoint_cached")

UNCONFIRMED_SECONDS = 5.0
"""Time for which no confirmation is waited for, after one did not come."""
UNCONFIRMED = (
    'redis_durability="%s" is not confirmed (reply: %s): until it is, Postgres has each write before the call '
    "returns; see `langgraph-cached doctor`"
)
RESTORED = 'redis_durability="%s" is confirmed again (reply: %s)'

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
    aside: bool = False
    """True if the reply may be so large that nothing is to wait behind it."""

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


class Confirmation:
    """Command that waits until what its connection wrote is elsewhere too, and how many have to have it.

    Where that is not so in time, nothing is waited for during the next `UNCONFIRMED_SECONDS`: all is unconfirmed.

    Args:
        durability: `"replica"` or `"disk"`, for the log.
        command: Command.
        needed: How many have to have it.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, durability: str, command: Command, needed: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._durability, self._command, self._needed, self._clock = durability, command, needed, clock
        self._works = True
        self._wait_from = -math.inf

    def commands_for(self, calls: Sequence[ScriptCall]) -> list[Command]:
        """Return what is to be sent after the calls; nothing if none is durable, or it would not be confirmed."""
        wanted = any(call.durable for call in calls) and self._clock() >= self._wait_from
        return [self._command] if wanted else []

    def apply(self, calls: Sequence[ScriptCall], replies: list[Any]) -> list[Any]:
        """Return the replies to the calls, out of those to the calls and to `commands_for` them."""
        if len(replies) > len(calls):
            *replies, reply = replies
            if isinstance(reply, list):
                reply = reply[0]  # WAITAOF counts the server itself, then replicas
            works = not isinstance(reply, ResponseError) and reply >= self._needed
            self._note(works, reply)
            if works:
                return replies
        return [
            Unconfirmed(reply) if call.durable and not isinstance(reply, ResponseError) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def _note(self, works: bool, reply: Any) -> None:
        if not works:
            self._wait_from = self._clock() + UNCONFIRMED_SECONDS
        if works is not self._works:
            self._works = works
            logger.warning(RESTORED if works else UNCONFIRMED, self._durability, _text(reply))


def _text(reply: Any) -> str:
    return reason(reply) if isinstance(reply, Exception) else str(reply)


def confirmation_for(durability: str, timeout_seconds: float) -> Confirmation | None:
    """Return how an acknowledgement is confirmed, None where the primary's word is enough.

    Args:
        durability: `"as_is"`, `"replica"` or `"disk"`.
        timeout_seconds: Of one call; half of it is for the confirmation.
    """
    half_ms = max(1, int(timeout_seconds * 500))
    if durability == "replica":
        return Confirmation(durability, ("WAIT", 1, half_ms), 1)
    if durability == "disk":
        return Confirmation(durability, ("WAITAOF", 1, 0, half_ms), 1)
    return None


def was_demoted(replies: Sequence[Any]) -> bool:
    """Return whether a reply is a replica's: behind the address there may be another primary by now."""
    return any(isinstance(reply, ReadOnlyError) for reply in replies)
