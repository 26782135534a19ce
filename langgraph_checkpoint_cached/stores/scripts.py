"""The Lua scripts beside this module, and how one is run."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError

from langgraph_checkpoint_cached.stores.clients import AnyRedis


class Script:
    """One atomic step, kept in Redis' script cache: sent whole only where the cache does not have it."""

    def __init__(self, *parts: str) -> None:
        self.text = "\n".join(parts)
        self._sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: AnyRedis, keys: list[str], arguments: list[Any]) -> Any:
        """The script's answer, strings as `bytes` whatever the client's own setting is.

        Raises:
            redis.exceptions.RedisError, OSError: as the client raises them.
        """
        rest = [len(keys), *keys, *arguments]
        undecoded: dict[str, Any] = {NEVER_DECODE: True}
        try:
            return await client.execute_command("EVALSHA", self._sha, *rest, **undecoded)
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, *rest, **undecoded)


@cache
def lua(name: str) -> str:
    """Text of `lua/<name>.lua`."""
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
