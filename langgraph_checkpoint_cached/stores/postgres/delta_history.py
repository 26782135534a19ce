"""Delta channel histories as the stock saver gathers them, with their values left as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.checkpoint.base import DeltaChannelHistory

from langgraph_checkpoint_cached.records import History, Step, Stored


class Undecoded:
    """A serializer that leaves bytes as they are, for the stock saver to gather them."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Nothing is stored with it."""
        raise NotImplementedError

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The bytes and their type."""
        return Stored(*data)


def from_undecoded(found: Mapping[str, DeltaChannelHistory]) -> dict[str, History]:
    """What the stock saver returns with `Undecoded` for a serializer."""
    return {
        channel: History(
            history.get("seed"),
            tuple(Step(task_id, *value) for task_id, _, value in history["writes"]),
        )
        for channel, history in found.items()
    }
