"""Conversion between LangGraph's objects and stored records. Pure.

Values are encoded once, by the saver's serializer; both tiers hold those same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_serializable_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot

from langgraph_checkpoint_cached import jsonb
from langgraph_checkpoint_cached.records import (
    Blob,
    History,
    Namespace,
    Put,
    PutWrites,
    Record,
    StoredValue,
    Value,
    Write,
)
from langgraph_checkpoint_cached.serde.fast_dumps import Dumps, dumps_for
from langgraph_checkpoint_cached.serde.fast_loads import loads_for


def encode_put(
    namespace: Namespace,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
    serde: SerializerProtocol,
    is_unused: Callable[[Any], bool] = lambda version: False,
) -> Put:
    """Make the rows of `aput`, split as the upstream saver splits them: simple values inline, others outside.

    Args:
        is_unused: Tells whether a version is known not to be in use yet. It is called once for each new version,
            which several channels may share.
    """
    versions = checkpoint["channel_versions"]
    inline, outside, kept = _split(checkpoint["channel_values"], versions, new_versions)
    dumps, is_new, unused = dumps_for(serde), True, {}
    values, valueless, present = [], [], []
    for channel, version in new_versions.items():
        if version not in unused:
            unused[version] = is_unused(version)
            is_new = is_new and unused[version]
        if channel in outside:
            values.append(Value(channel, *_dump(dumps, outside[channel])))
        elif not unused[version]:
            valueless.append((channel, version))
    for channel, value in inline.items():
        if value is not None:
            present.append(channel)
    return Put(
        namespace=namespace,
        checkpoint_id=checkpoint["id"],
        parent_id=config["configurable"].get("checkpoint_id"),
        checkpoint_json=jsonb.dumps({**checkpoint, "channel_values": inline}),
        metadata_json=jsonb.dumps(get_serializable_checkpoint_metadata(config, metadata)),
        values=tuple(values),
        versions=dict(versions),
        new_versions=dict(new_versions),
        format=checkpoint["v"],
        valueless=tuple(valueless),
        is_new=is_new,
        kept=tuple(kept),
        inline=tuple(present),
    )


def _split(
    values: Mapping[str, Any], versions: Mapping[str, Any], new_versions: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Split values into those inside the checkpoint's JSON and those outside.

    Return also the channels outside whose value was stored with an older version.
    """
    inline: dict[str, Any] = {}
    outside: dict[str, Any] = {}
    kept: list[str] = []
    for channel, value in values.items():
        if value is None or isinstance(value, (str, int, float, bool)):
            inline[channel] = value
            continue
        outside[channel] = value
        if isinstance(value, _DeltaSnapshot):
            inline[channel] = True
        elif channel not in new_versions and channel in versions:
            kept.append(channel)
    return inline, outside, kept


def encode_writes(
    namespace: Namespace,
    checkpoint_id: str,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
    serde: SerializerProtocol,
) -> PutWrites:
    """Make the rows of `aput_writes`."""
    dumps, replace, rows = dumps_for(serde), True, []
    for position, (channel, value) in enumerate(writes):
        replace = replace and channel in WRITES_IDX_MAP
        index = WRITES_IDX_MAP.get(channel, position)
        rows.append(Write(checkpoint_id, task_id, index, channel, *_dump(dumps, value), task_path))
    return PutWrites(namespace, checkpoint_id, replace, tuple(rows))


def _dump(dumps: Dumps, value: Any) -> tuple[str, Blob]:
    kind, blob = dumps(value)
    # A bytearray comes back as itself, and its owner may change it. Text is what a serializer of the caller's may
    # make, though it should not: Postgres then has its own way to read it.
    return kind, blob if isinstance(blob, str) else bytes(blob)


def decode(record: Record, serde: SerializerProtocol, first_version: Callable[[], Any]) -> CheckpointTuple:
    """Make what the upstream saver returns for these rows.

    Args:
        record: The rows.
        serde: The serializer of the saver that was called; its allowlist holds for every value.
        first_version: Makes a channel's first version, for migrated pending sends that have nothing to follow.
    """
    loads = loads_for(serde)
    checkpoint = {
        **record.checkpoint,
        "channel_values": {
            **(record.checkpoint.get("channel_values") or {}),
            **{v.channel: loads((v.type, v.blob)) for v in record.values if v.type != "empty"},
        },
    }
    if record.sends:
        versions = dict(checkpoint["channel_versions"])
        versions[TASKS] = max(versions.values()) if versions else first_version()
        checkpoint["channel_versions"] = versions
        sends = [loads(send) for send in record.sends]
        checkpoint["channel_values"][TASKS] = loads(serde.dumps_typed(sends))
    writes: Sequence[Write] = record.writes
    if len(writes) > 1:
        writes = sorted(writes, key=lambda w: writes_sort_key(w.task_path, w.task_id, w.idx))
    return CheckpointTuple(
        config=checkpoint_config(record.namespace, record.checkpoint_id),
        checkpoint=cast("Checkpoint", checkpoint),
        metadata=jsonb.loads(record.metadata_json),
        parent_config=checkpoint_config(record.namespace, record.parent_id) if record.parent_id else None,
        pending_writes=[(w.task_id, w.channel, loads((w.type, w.blob))) for w in writes],
    )


def decode_delta_histories(
    histories: Mapping[str, History], channels: Sequence[str], serde: SerializerProtocol
) -> dict[str, DeltaChannelHistory]:
    """Make what the upstream saver returns for these histories."""
    loads = loads_for(serde)
    found: dict[str, DeltaChannelHistory] = {}
    for channel in channels:
        history = histories[channel]
        entry: DeltaChannelHistory = {
            "writes": [(write.task_id, channel, loads((write.type, write.blob))) for write in history.writes]
        }
        if isinstance(history.seed, StoredValue):
            entry["seed"] = loads(history.seed)
        elif history.seed is not None:
            entry["seed"] = history.seed
        found[channel] = entry
    return found


def checkpoint_config(namespace: Namespace, checkpoint_id: str) -> RunnableConfig:
    """Return the config that names a checkpoint."""
    return {
        "configurable": {
            "thread_id": namespace.thread_id,
            "checkpoint_ns": namespace.checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }
