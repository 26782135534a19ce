"""The Lua scripts beside this module, and how one is run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis

UNDECODED: dict[str, Any] = {NEVER_DECODE: True}
"""Makes a client answer with `bytes`, whatever its own setting is."""


class Script:
    """One atomic step, kept in Redis' script cache: sent whole only where the cache does not have it."""

    def __init__(self, *parts: str) -> None:
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: AnyRedis, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The script's answer, strings as `bytes` whatever the client's own setting is.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them.
        """
        rest = [len(keys), *keys, *arguments]
        try:
            return await client.execute_command("EVALSHA", self.sha, *rest, **UNDECODED)
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, *rest, **UNDECODED)


@cache
def lua(name: str) -> str:
    """Text of `lua/<name>.lua`."""
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
