"""A LangGraph checkpointer that keeps threads in Postgres and serves them from Redis."""

from langgraph_checkpoint_cached.errors import (
    ArgumentError,
    ArgumentTypeError,
    CachedSaverError,
    OverloadedError,
    UnsupportedServerError,
    WrongThreadError,
)
from langgraph_checkpoint_cached.intent import IntentCache
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.sync import SyncCachedPostgresSaver

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CachedPostgresSaver",
    "CachedSaverError",
    "IntentCache",
    "OverloadedError",
    "SyncCachedPostgresSaver",
    "UnsupportedServerError",
    "WrongThreadError",
]
