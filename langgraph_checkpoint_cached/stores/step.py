"""A step: a script to be run, and who waits for its answer. And how some are exchanged over a connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.scripts import Script

Command = tuple[Any, ...]


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

    def command(self, *, known: bool) -> Command:
        """What to send: the script whole, unless the server is known to have it."""
        how = ("EVALSHA", self.script.sha) if known else ("EVAL", self.script.text)
        return (*how, len(self.keys), *self.keys, *self.arguments)


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
        return answers
    except BaseException:
        await connection.disconnect(nowait=True)  # no reply is left on it for the next caller
        raise
