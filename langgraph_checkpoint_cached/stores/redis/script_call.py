"""A step: a script to be run, and who waits for its answer. And how some are exchanged over a connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ReadOnlyError, ResponseError

from langgraph_checkpoint_cached.stores.redis.scripts import Script

Argument: TypeAlias = "str | bytes"
Command = tuple[Any, ...]


class Step(NamedTuple):
    """A script with its keys, of which the first is the thread's, its arguments, and who waits for it."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    done: asyncio.Future[Any]
    in_order: bool = False
    """Whether it may not be done after a later step of the same thread."""
    durable: bool = False
    """Whether its answer is to say if replicas, or a disk, have it too."""

    @property
    def rows(self) -> int:
        """One command."""
        return 1

    @property
    def size_bytes(self) -> int:
        """About what it sends."""
        return sum(map(len, self.arguments))

    def command(self, *, known: bool) -> Command:
        """What to send: the script whole, unless the server is known to have it."""
        how = ("EVALSHA", self.script.sha) if known else ("EVAL", self.script.text)
        return (*how, len(self.keys), *self.keys, *self.arguments)


class Confirmation(NamedTuple):
    """A command that waits until what its connection wrote is elsewhere too, and how many have to have it."""

    command: Command
    needed: int


def confirmation_for(durability: str, timeout_seconds: float) -> Confirmation | None:
    """Return the command that confirms an acknowledgement, None where the primary's word is enough.

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


class Unconfirmed(NamedTuple):
    """The answer of a durable step that is done, but was not confirmed."""

    answer: Any


def confirming(steps: Sequence[Step], commands: list[Command], by: Confirmation | None) -> list[Command]:
    """The steps' commands, and the one that confirms them where one of them needs it."""
    return [*commands, by.command] if by and any(step.durable for step in steps) else commands


def confirmed(steps: Sequence[Step], answers: list[Any], by: Confirmation | None) -> list[Any]:
    """The steps' answers out of those to `confirming`."""
    if by is None or len(answers) == len(steps):
        return answers
    *answers, reply = answers
    have = reply[0] if isinstance(reply, list) else reply  # WAITAOF counts itself, then replicas
    if not isinstance(reply, ResponseError) and have >= by.needed:
        return answers
    return [
        Unconfirmed(answer) if step.durable and not isinstance(answer, ResponseError) else answer
        for step, answer in zip(steps, answers, strict=True)
    ]


def was_demoted(answers: Sequence[Any]) -> bool:
    """Whether they are of a primary that has become a replica: behind the address there may be another by now."""
    return any(isinstance(answer, ReadOnlyError) for answer in answers)


async def exchange(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Sends all, then reads all, as the client's own pipeline does, at two thirds of its cost or less.

    Returns an answer for each, or a `ResponseError`. If anything else goes wrong the connection is closed.
    """
    try:
        await connection.send_packed_command(b"".join(map(pack_command, commands)))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
            except ResponseError as exc:
                answers.append(exc)
        if was_demoted(answers):
            await connection.disconnect(nowait=True)
        return answers
    except BaseException:
        await connection.disconnect(nowait=True)  # no reply is left on it for the next caller
        raise
