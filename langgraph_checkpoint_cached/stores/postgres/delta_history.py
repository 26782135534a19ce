"""Delta channel histories as the upstream saver gathers them, with their values left as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base import DeltaChannelHistory

from langgraph_checkpoint_cached.records import History, Step, StoredValue


class RawSerializer:
    """A serializer that leaves bytes as they are, for the upstream saver to gather them."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Nothing is stored with it."""
        raise NotImplementedError

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The bytes and their type."""
        return StoredValue(*data)


def raw_histories(found: Mapping[str, DeltaChannelHistory]) -> dict[str, History]:
    """What the upstream saver returns with `RawSerializer` for a serializer."""
    return {
        channel: History(
            history.get("seed"),
            tuple(Step(task_id, *value) for task_id, _, value in history["writes"]),
        )
        for channel, history in found.items()
    }
