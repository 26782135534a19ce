"""Exports of the package: these, and nothing else."""

from __future__ import annotations

import langgraph_checkpoint_cached as package


def test_exported_names() -> None:
    assert package.__all__ == [
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
    assert all(hasattr(package, name) for name in package.__all__)
