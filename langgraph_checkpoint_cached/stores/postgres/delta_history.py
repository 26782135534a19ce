"""Histories of `DeltaChannel`s as the upstream saver gathers them, with their values left as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base import DeltaChannelHistory

from langgraph_checkpoint_cached.records import DeltaWrite, History, StoredValue


class RawSerializer:
    """Serializer that leaves bytes as they are."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Refuse: nothing is stored with this serializer."""
        raise NotImplementedError

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return the bytes and their type."""
        return StoredValue(*data)


def raw_histories(found: Mapping[str, DeltaChannelHistory]) -> dict[str, History]:
    """Convert what the upstream saver returns when `RawSerializer` is its serializer."""
    return {
        channel: History(
            history.get("seed"),
            tuple(DeltaWrite(task_id, *value) for task_id, _, value in history["writes"]),
        )
        for channel, history in found.items()
    }
