"""The Lua scripts beside this module."""

from __future__ import annotations

import hashlib
import re
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
    """An atomic script in Redis' script cache. Its text is sent only where the cache does not have it."""

    def __init__(self, *parts: str) -> None:
        self.text = "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: AnyRedis, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script and return its reply, strings as `bytes` whatever the client's own setting is.

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
    """Return the text of `lua/<name>.lua`, with strings in place of the names that `lua/fields.lua` defines."""
    fields = dict(re.findall(r"^local (\w+) = ('.*?')", _read("fields"), re.MULTILINE))
    return re.sub(r"\b[A-Z_]{2,}\b", lambda found: fields.get(found[0], found[0]), _read(name))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
