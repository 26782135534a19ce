"""What the package exports is decided here, and nothing else comes along."""

from __future__ import annotations

import langgraph_checkpoint_cached as package


def test_exported_names() -> None:
    assert package.__all__ == [
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
    assert all(hasattr(package, name) for name in package.__all__)
