"""What `DeltaChannel`s are rebuilt from, as fields of an entry in Redis. Pure.

`d` holds it as of one checkpoint, sealed as every part of an entry is. From there on it need not be sent again:
`p` is the way to the entry's own checkpoint, whose writes stay when it advances (see `lua/commit_put.lua`).
`p` and the names in `dc` are not sealed. Whoever misleads the scripts with them can leave out writes, as with
pending ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgpack
from langgraph.checkpoint.base import writes_sort_key

from langgraph_checkpoint_cached.records import History, Namespace, Record, Step, StoredValue, Write
from langgraph_checkpoint_cached.stores.redis.entry_format import (
    DamagedEntry,
    pack,
    scope_for,
    unpack,
    unpack_write,
)
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS, Integrity

HISTORY = b"d"
HISTORY_BYTES_MAX = 1024 * 1024
LENGTH_MAX = 16
"""Checkpoints between a history and the entry, after which it is put together anew."""


class EntryHistories(NamedTuple):
    """Of some channels, as an entry tells them."""

    by_channel: Mapping[str, History]
    length: int
    """Checkpoints that have been added to what was stored."""


def history_fields(
    namespace: Namespace, checkpoint_id: str, histories: Mapping[str, History], seal: Integrity = CHECKSUMS
) -> tuple[bytes, bytes] | None:
    """Of the history at a checkpoint, `d` and `dc`; None if it is too large or cannot be packed."""
    try:
        packed = pack(
            scope_for(namespace, seal),
            (checkpoint_id, {channel: (_pack_seed(h.seed), h.steps) for channel, h in histories.items()}),
            HISTORY,
        )
    except (OverflowError, ValueError, TypeError):
        return None  # a number beyond 64 bits, say
    if len(packed) > HISTORY_BYTES_MAX:
        return None
    return packed, cast("bytes", msgpack.packb(list(histories)))


def decode_histories(
    namespace: Namespace, checkpoint_id: str, fields: Mapping[bytes, bytes], seal: Integrity = CHECKSUMS
) -> EntryHistories | None:
    """The histories that an entry of this checkpoint holds; None if it holds none.

    Raises:
        DamagedEntry: anything is missing, unknown, damaged, or another namespace's or checkpoint's.
    """
    if HISTORY not in fields:
        return None
    place = scope_for(namespace, seal)
    try:
        base_id, packed = unpack(place, fields[HISTORY], HISTORY)
        path = [step.decode() for step in fields[b"p"].split(b"\0")[1:]]
        if path[0] != base_id or path[-1] != checkpoint_id:
            raise DamagedEntry(f"an entry of {namespace} holds the history of another checkpoint")
        added: list[Write] = []
        for ancestor in path[:-1]:
            start = f"w:{ancestor}\0".encode()
            found = [unpack_write(place, f, value) for f, value in fields.items() if f.startswith(start)]
            added += sorted(found, key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
        return EntryHistories(
            {
                channel: History(
                    _unpack_seed(seed),
                    (
                        *(Step(*step) for step in steps),
                        *(Step(w.task_id, w.type, w.blob) for w in added if w.channel == channel),
                    ),
                )
                for channel, (seed, steps) in packed.items()
            },
            len(path) - 1,
        )
    except (KeyError, ValueError, TypeError, IndexError) as exc:
        raise DamagedEntry(f"a history of {namespace} cannot be read: {type(exc).__name__}") from exc


def stored_in(record: Record, channels: Collection[str]) -> bool:
    """Whether the checkpoint itself has a value of one of the channels."""
    inline = record.checkpoint.get("channel_values") or {}
    return any(inline.get(channel) is not None for channel in channels) or any(
        value.channel in channels for value in record.values
    )


def _pack_seed(seed: Any) -> Sequence[Any]:
    return tuple(seed) if isinstance(seed, StoredValue) else () if seed is None else (seed,)


def _unpack_seed(seed: Sequence[Any]) -> Any:
    return StoredValue(*seed) if len(seed) == 2 else seed[0] if seed else None
