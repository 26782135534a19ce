"""A LangGraph checkpointer that keeps threads in Postgres and serves them from Redis."""

from langgraph_checkpoint_cached.caches.intent_cache import IntentCache
from langgraph_checkpoint_cached.errors import (
    ArgumentError,
    ArgumentTypeError,
    BehindError,
    CachedSaverError,
    ClosedError,
    ForkedError,
    HistoryNeededError,
    LostHistoryError,
    OverloadedError,
    PostgresTimeoutError,
    ThreadNotEmptyError,
    UnsupportedServerError,
    WrongThreadError,
)
from langgraph_checkpoint_cached.retention import IdleThreads
from langgraph_checkpoint_cached.saver import CachedPostgresSaver
from langgraph_checkpoint_cached.sync_saver import SyncCachedPostgresSaver

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BehindError",
    "CachedPostgresSaver",
    "CachedSaverError",
    "ClosedError",
    "ForkedError",
    "HistoryNeededError",
    "IdleThreads",
    "IntentCache",
    "LostHistoryError",
    "OverloadedError",
    "PostgresTimeoutError",
    "SyncCachedPostgresSaver",
    "ThreadNotEmptyError",
    "UnsupportedServerError",
    "WrongThreadError",
]
