"""Keys and first arguments of the scripts of one saver."""

from __future__ import annotations

from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.stores.redis.script_call import Argument
from langgraph_checkpoint_cached.ttl import Ttl
from langgraph_checkpoint_cached.utils.tokens import new_token


class Keyspace:
    """Start of every key, and the arguments that every script gets first: a name, a random string, a lifetime.

    Args:
        prefix: Start of every key.
        ttl: Lifetime of an entry.
        database: Identity of Postgres, of which every new generation is.
    """

    def __init__(self, prefix: str, ttl: Ttl, database: DatabaseIdentity) -> None:
        self.prefix, self.ttl, self.ttl_text = prefix, ttl, str(ttl.milliseconds)
        self.database = database

    def thread_arguments(self, *arguments: Argument, name: str = "") -> tuple[Argument, ...]:
        """Return arguments of a script that concerns a whole thread."""
        return (name, self.database.tag + new_token(), self.ttl_text, *arguments)
