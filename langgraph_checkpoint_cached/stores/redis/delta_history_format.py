"""Histories that `DeltaChannel`s are rebuilt from, as fields of an entry in Redis. Pure.

The field `HISTORY` holds them as of one checkpoint, protected as every part of an entry is. Later writes are
not sent again: `HISTORY_PATH` names the checkpoints from there to the entry's own, whose writes stay when the
entry advances (see `lua/commit_put.lua`). The path and the names in `HISTORY_CHANNELS` are not signed. Whoever
misleads the scripts with them can leave out writes, as with pending ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgpack
from langgraph.checkpoint.base import writes_sort_key

from langgraph_checkpoint_cached.records import DeltaWrite, History, Namespace, Record, StoredValue, Write
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    DamagedEntry,
    damaged,
    decode_write,
    pack,
    unpack,
)
from langgraph_checkpoint_cached.stores.redis.fields import HISTORY, HISTORY_PATH, WRITE
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity, Scope

HISTORY_BYTES_MAX = 1024 * 1024
LENGTH_MAX = 16
"""Checkpoints between a history and the entry, after which the history is put together anew."""


class EntryHistories(NamedTuple):
    """The histories in an entry, by channel."""

    by_channel: Mapping[str, History]
    length: int
    """Number of checkpoints that have been added to the stored histories."""


def history_fields(
    namespace: Namespace, checkpoint_id: str, histories: Mapping[str, History], integrity: Integrity = CHECKSUMS
) -> tuple[bytes, bytes] | None:
    """Make `HISTORY` and `HISTORY_CHANNELS` for a checkpoint, or None if that is too large or cannot be packed."""
    by_channel = {channel: (_pack_seed(h.seed), h.writes) for channel, h in histories.items()}
    try:
        packed = pack(integrity.scopes[namespace], (checkpoint_id, by_channel), HISTORY)
    except (OverflowError, ValueError, TypeError):
        return None  # a number beyond 64 bits, say
    if len(packed) > HISTORY_BYTES_MAX:
        return None
    return packed, cast("bytes", msgpack.packb(list(histories)))


def decode_histories(
    namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes], integrity: Integrity = CHECKSUMS
) -> EntryHistories | None:
    """Decode the histories that an entry of this checkpoint holds. Return None if it holds none.

    Raises:
        DamagedEntry: anything is missing, unknown, damaged, or another namespace's or checkpoint's.
    """
    if HISTORY not in fields:
        return None
    scope = integrity.scopes[namespace]
    try:
        base_id, packed = unpack(scope, fields[HISTORY], HISTORY)
        path = [ancestor.decode() for ancestor in fields[HISTORY_PATH].split(b"\0")[1:]]
        if path[0] != base_id or path[-1] != checkpoint_id:
            raise DamagedEntry(f"an entry of {namespace} holds the history of another checkpoint")
        added = _writes_since(scope, path, fields)
        histories = {}
        for channel, (seed, stored) in packed.items():
            writes = [DeltaWrite(*write) for write in stored]
            writes += [DeltaWrite(w.task_id, w.type, w.blob) for w in added if w.channel == channel]
            histories[channel] = History(_unpack_seed(seed), tuple(writes))
        return EntryHistories(histories, len(path) - 1)
    except Exception as exc:
        raise damaged(namespace, exc) from exc


def is_stored_in(record: Record, channels: Collection[str]) -> bool:
    """Tell whether the checkpoint itself has a value of one of the channels."""
    inline = record.checkpoint.get("channel_values") or {}
    return any(inline.get(channel) is not None for channel in channels) or any(
        value.channel in channels for value in record.values
    )


def _writes_since(scope: Scope, path: Sequence[str], fields: Mapping[bytes, bytes]) -> list[Write]:
    """Decode the writes of all checkpoints on the path but the last, oldest first."""
    added: list[Write] = []
    for ancestor in path[:-1]:
        start = WRITE + ancestor.encode() + b"\0"
        found = [decode_write(scope, field, value) for field, value in fields.items() if field.startswith(start)]
        added += sorted(found, key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
    return added


def _pack_seed(seed: Any) -> Sequence[Any]:
    return tuple(seed) if isinstance(seed, StoredValue) else () if seed is None else (seed,)


def _unpack_seed(seed: Sequence[Any]) -> Any:
    return StoredValue(*seed) if len(seed) == 2 else seed[0] if seed else None
