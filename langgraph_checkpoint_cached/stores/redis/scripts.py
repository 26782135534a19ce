"""Lua scripts, each one atomic step of the protocol; each file in `lua/` says what its script promises."""

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
    """Script with its digest, by which a server that has it in its cache runs it.

    Args:
        parts: Text.
        repeatable: Whether it may run once more, and later than other scripts of its thread, where nobody knows
            whether it has run: it does nothing then, or what it does is undone by what its caller does next.
    """

    def __init__(self, *parts: str, repeatable: bool = True) -> None:
        self.text, self.repeatable = "\n".join(parts), repeatable
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: AnyRedis, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script through the client's public methods; return its reply, strings as `bytes`.

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


SHARED = (lua("server"), lua("thread"))
_HISTORY = lua("history_functions")
_SIZE = lua("size_functions")
_COMMIT = (*SHARED, _HISTORY, _SIZE, lua("commit_functions"))
_APPEND = (*SHARED, _HISTORY, _SIZE, lua("append_functions"))

EPOCH = Script(lua("server"), "return string.sub(server_epoch(), 1, EPOCH_LENGTH)")
"""Answers with the server's epoch, as a process names it in its calls."""

# What changes an entry or the journal must not run twice: in between, the entry may have got something newer. Its
# caller invalidates the thread, or revokes the lease, both of which may be repeated. READ may hold the fill lease
# already, and would wait for itself; PREPARE and OPEN could come after those of another process.
READ = Script(*SHARED, _SIZE, lua("read"), repeatable=False)
FILL = Script(*SHARED, lua("fill"))
RELEASE_FILL_LEASE = Script(*SHARED, lua("release_fill_lease"))
HISTORY_FILL_LEASE = Script(*SHARED, lua("history_fill_lease"))
FILL_HISTORY = Script(*SHARED, _HISTORY, lua("fill_history"))

BEGIN = Script(*SHARED, lua("begin"))
RELEASE = Script(*SHARED, lua("release"))
COMMIT_PUT = Script(*_COMMIT, lua("commit_put"), repeatable=False)
COMMIT_WRITES = Script(*_COMMIT, lua("commit_writes"), repeatable=False)
COMMIT_DROP = Script(*_COMMIT, lua("commit_drop"), repeatable=False)
BEGIN_THREAD = Script(*SHARED, lua("begin_thread"))
END_THREAD = Script(*SHARED, lua("end_thread"))
NAMES = Script(lua("names"))
UNLINK = Script(lua("unlink"))

APPEND_PUT = Script(*_APPEND, lua("commit_put"), repeatable=False)
APPEND_WRITES = Script(*_APPEND, lua("commit_writes"), repeatable=False)
PREPARE = Script(*SHARED, lua("lease_prepare"), repeatable=False)
OPEN = Script(*SHARED, lua("lease_open"), repeatable=False)
JOURNAL = Script(*SHARED, lua("lease_journal"))
TRIM = Script(*SHARED, lua("lease_trim"))
CLOSE = Script(*SHARED, lua("lease_close"))
NEWEST = Script(*SHARED, lua("lease_newest"))
CLEAN_UP = Script(*SHARED, lua("lease_clean_up"))
