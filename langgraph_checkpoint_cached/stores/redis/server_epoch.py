"""Server epoch behind a connection, and the check that it is the one that this process has seen before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from langgraph_checkpoint_cached.stores.redis.script_call import Command

ASK_EPOCH: list[Command] = [("INFO", "replication")]
"""Commands to whose replies `parse_epoch` applies."""


class ServerReplaced(RedisError):
    """Behind the address there is another server epoch than before.

    Other processes may have found Redis unusable meanwhile, and have written to Postgres alone: so it is an outage
    for this process too, though a new connection was made at once.
    """


def parse_epoch(replies: Sequence[Any]) -> str | None:
    """Return the epoch, None if the server does not tell it. `lua/server.lua` reads it in the same way."""
    if not isinstance(replies[0], (bytes, str)):
        return None
    found = re.search(r"master_replid:(\w+)", str_if_bytes(replies[0]))
    return found and found[1]


class EpochCheck:
    """Server epoch that was seen last."""

    def __init__(self) -> None:
        self.seen: str | None = None

    def note(self, epoch: str | None) -> None:
        """Note the epoch behind a new connection. Raise `ServerReplaced`, once, if it is another one."""
        seen, self.seen = self.seen, epoch
        if epoch and seen and seen != epoch:
            raise ServerReplaced("another server answers, or this one was restarted or promoted")
