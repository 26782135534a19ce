"""Checkpoints as they are stored, nothing in them decoded: what moves between Postgres and Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from langgraph_checkpoint_cached import jsonb

TASKS_CHANNEL_FORMAT = 4
"""Checkpoints of an older format keep their pending sends among their parent's writes."""


Blob: TypeAlias = "bytes | str"
"""Output of a serializer: `bytes`, or text if it does not keep to its protocol."""


class Namespace(NamedTuple):
    """One (`thread_id`, `checkpoint_ns`): the unit that has a latest checkpoint."""

    thread_id: str
    checkpoint_ns: str = ""


class Value(NamedTuple):
    """A channel's value outside the checkpoint's own JSON: a row of `checkpoint_blobs`."""

    channel: str
    type: str
    blob: Blob | None


class Write(NamedTuple):
    """A pending write: a row of `checkpoint_writes`. Its envelope has the fields in this order."""

    checkpoint_id: str
    task_id: str
    idx: int
    channel: str
    type: str
    blob: Blob
    task_path: str


@dataclass(frozen=True)
class Record:
    """A checkpoint as it is stored, nothing in it decoded."""

    namespace: Namespace
    checkpoint_id: str
    parent_id: str | None
    checkpoint_json: bytes
    metadata_json: bytes
    values: tuple[Value, ...]
    writes: tuple[Write, ...]
    sends: tuple[tuple[str, bytes], ...] = ()
    """Pending sends (type, blob) of a parent, for checkpoints from before they had a channel."""

    parsed: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    """The checkpoint, if its JSON has been parsed already."""

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint's own JSON, without the values that stand outside."""
        return jsonb.loads(self.checkpoint_json) if self.parsed is None else self.parsed

    @property
    def predates_tasks_channel(self) -> bool:
        """True if pending sends, if any, are with the parent's writes."""
        return bool(self.checkpoint.get("v", 0) < TASKS_CHANNEL_FORMAT)


class LeaseRow(NamedTuple):
    """A thread's lease as Postgres knows it: its token, and the number up to which its journal is replayed."""

    token: str
    position: int


@dataclass(frozen=True)
class Latest:
    """The latest checkpoint that Postgres holds for a namespace, and writes for checkpoints yet to come."""

    record: Record | None
    early_writes: tuple[Write, ...] = ()
    thread_is_empty: bool = False
    """True if this is the root and no namespace of its thread has anything. False if that was not checked."""
    lease: LeaseRow | None = None
    """The thread's lease, if there is one: then acknowledged writes may be missing here."""
    may_fill: bool = True
    """True if this may become the entry: it is from no standby, and from the Postgres that this process knows."""


class DeltaWrite(NamedTuple):
    """A write to a `DeltaChannel` at an ancestor."""

    task_id: str
    type: str
    blob: Blob


class StoredValue(NamedTuple):
    """A value that a `DeltaChannel` had at an ancestor, in `checkpoint_blobs`."""

    type: str
    blob: Blob


@dataclass(frozen=True)
class History:
    """History that a `DeltaChannel` is rebuilt from: the nearest stored value, if any, and all later writes."""

    seed: StoredValue | str | float | bool | None
    """None if there is none. A value that is no `StoredValue` stood in the checkpoint's own JSON."""
    writes: tuple[DeltaWrite, ...]
    """Oldest first."""


class Put(NamedTuple):
    """A checkpoint to store."""

    namespace: Namespace
    checkpoint_id: str
    parent_id: str | None
    checkpoint_json: str
    """JSON as a JSONB column would return it, like the metadata's."""
    metadata_json: str
    values: tuple[Value, ...]
    versions: dict[str, Any]
    """Version of every channel of the checkpoint."""
    new_versions: dict[str, Any]
    format: int
    valueless: tuple[tuple[str, Any], ...] = ()
    """New channels and versions without a value here, for which Postgres may have one."""
    is_new: bool = False
    """True if Postgres certainly has no value under any of its new versions."""
    kept: tuple[str, ...] = ()
    """Channels of an older version whose value was stored with that."""
    inline: tuple[str, ...] = ()
    """Channels that have a value in the checkpoint's own JSON, `DeltaChannel`s with a snapshot among them."""

    @property
    def rows(self) -> int:
        """Number of rows that it makes."""
        return 1 + len(self.values)

    @property
    def size_bytes(self) -> int:
        """Approximate size."""
        size_bytes = len(self.checkpoint_json) + len(self.metadata_json)
        for value in self.values:
            size_bytes += len(value.blob or b"")
        return size_bytes


class PutWrites(NamedTuple):
    """Pending writes to store, of one task for one checkpoint."""

    namespace: Namespace
    checkpoint_id: str
    replace: bool
    """True if they replace existing writes (all are special ones); otherwise existing writes stay."""
    writes: tuple[Write, ...]

    @property
    def rows(self) -> int:
        """Number of rows that they make."""
        return len(self.writes)

    @property
    def size_bytes(self) -> int:
        """Approximate size."""
        size_bytes = 0
        for write in self.writes:
            size_bytes += len(write.blob)
        return size_bytes
