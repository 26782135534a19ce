"""Effect of a history on one namespace: its ids, and the versions and values of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached.records import Namespace
from tests.equivalence.histories import Change
from tests.equivalence.samples import REFUSED, SAMPLES

IDS_BETWEEN = 4
"""Unused ids below each new one, for checkpoints that come late."""
IDS_BELOW = 40


@dataclass
class Point:
    """A checkpoint of a chain."""

    id: str
    versions: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Chain:
    """Checkpoints put to a namespace, and the ids it uses."""

    def __init__(self, namespace: Namespace, next_version: Callable[[Any], Any]) -> None:
        self.namespace, self._next_version = namespace, next_version
        self.puts: list[Point] = []
        self.touched = False
        self.reserved: list[str] = []
        self._ids = [str(uuid6(clock_seq=n)) for n in range(IDS_BELOW)]
        self._newest = IDS_BELOW - 1

    def new_id(self) -> str:
        """An id above all others."""
        self._ids += [str(uuid6(clock_seq=len(self._ids) + n)) for n in range(IDS_BETWEEN)]
        self._newest = len(self._ids) - 1
        return self._ids[-1]

    def late_id(self) -> str:
        """An unused id below the newest."""
        used = {point.id for point in self.puts} | set(self.reserved)
        return next(name for name in reversed(self._ids[: self._newest]) if name not in used)

    def early_id(self) -> str:
        """An id for a checkpoint that is put later."""
        if not self.reserved:
            self.reserved.append(self.new_id())
        return self.reserved[0]

    def back(self, number: int) -> Point | None:
        """The put so many before the last one."""
        return self.puts[-1 - number] if number < len(self.puts) else None

    def id_of(self, which: int | str | None) -> str | None:
        """The id that a step names; None for the latest."""
        if which is None:
            return None
        if which == "early":
            return self.early_id()
        if isinstance(which, str):
            return which
        point = self.back(which)
        return point.id if point else self.early_id()

    def config(self, checkpoint_id: str | None = None, **configurable: Any) -> dict[str, Any]:
        """A config that names a checkpoint, or the latest."""
        names = {"thread_id": self.namespace.thread_id, "checkpoint_ns": self.namespace.checkpoint_ns}
        if checkpoint_id is not None:
            names["checkpoint_id"] = checkpoint_id
        return {"configurable": {**configurable, **names}}

    def plan(
        self, changes: Sequence[Change], parent: Point | None, slot: str, format: int
    ) -> tuple[Point, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The checkpoint, with its id and versions chosen, and the other arguments of its put."""
        point = Point(self._id(slot))
        if parent is not None:
            point.versions, point.values = dict(parent.versions), dict(parent.values)
        new_versions: dict[str, Any] = {}
        for change in changes:
            self._change(point, new_versions, change)
        checkpoint = {
            "v": format,
            "id": point.id,
            "ts": "2024-01-01T00:00:00.000000+00:00",
            "channel_values": point.values,
            "channel_versions": point.versions,
            "versions_seen": {"__input__": {}, "node": dict(list(point.versions.items())[:2])},
            "updated_channels": sorted(new_versions) or None,
        }
        return (point, self.config(parent.id if parent else None), checkpoint, new_versions)

    def _id(self, slot: str) -> str:
        if slot == "new":
            return self.new_id()
        if slot == "late":
            return self.late_id()
        if slot == "reserved":
            return self.reserved.pop() if self.reserved else self.new_id()
        if slot == "again":
            return self.puts[-1].id if self.puts else self.new_id()
        return slot

    def _change(self, point: Point, new_versions: dict[str, Any], change: Change) -> None:
        channel, how = change.channel, change.how
        current = point.versions.get(channel)
        known = [version for version in point.versions.values() if isinstance(version, str)]
        version: Any = self._next_version(max(known, default=None))
        if how in ("again", "inherit", "bare") and current is not None:
            version = current
        elif how in ("reuse", "return"):
            version = next((p.versions[channel] for p in self.puts if channel in p.versions), version)
        elif how == "number":
            version = len(self.puts) + 1
        if how == "remove":
            point.values.pop(channel, None)
            point.versions.pop(channel, None)
            return
        if how in ("valueless", "bare", "return"):
            point.values.pop(channel, None)
        else:
            point.values[channel] = value_of(change.value)
        if how != "unlisted":
            point.versions[channel] = version
        if how == "mismatch":
            version = self._next_version(version)
        if how not in ("inherit", "unstored", "bare"):
            new_versions[channel] = version


def value_of(name: str) -> Any:
    """A sample, refused or not."""
    return SAMPLES[name]() if name in SAMPLES else REFUSED[name]()
