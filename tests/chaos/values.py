"""Values that say where they belong, so that what is read can be told to be whole and in its place."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple

from tests.chaos.history import Seen

FILLER_BYTES_MAX = 1500
NO_VALUE = "the checkpoint is there, its value is not"
"""A delete leaves this in Postgres when it meets a put: it takes the checkpoints first, then the values."""


def new_value(rng: random.Random, thread: str, ns: str, checkpoint_id: str, task: str = "") -> dict[str, str]:
    """A value that names its place, with a filler and a digest over all of it."""
    filler = rng.randbytes(rng.randrange(FILLER_BYTES_MAX)).hex()
    value = {"thread": thread, "ns": ns, "id": checkpoint_id, "task": task, "filler": filler}
    return {**value, "digest": _digest(value)}


def as_seen(thread: str, ns: str, found: CheckpointTuple) -> Seen:
    """Describe what a read of this namespace returned, and what is wrong with it in itself."""
    checkpoint, configurable = found.checkpoint, found.config["configurable"]
    checkpoint_id, values = checkpoint["id"], checkpoint["channel_values"]
    pending = found.pending_writes or []
    problems = [
        _place(configurable, thread, ns, checkpoint_id),
        _problem(values["value"], thread, ns, checkpoint_id) if "value" in values else None,
        # Inherited from an earlier checkpoint, unless that was deleted.
        _problem(values["base"], thread, ns) if "base" in values else None,
        None if found.metadata.get("of") == checkpoint_id else f"metadata of {found.metadata.get('of')}",
        *(_problem(value, thread, ns, checkpoint_id, task) for task, _, value in pending),
        None if "value" in values else NO_VALUE,
    ]
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
    return Seen(
        checkpoint_id,
        parent,
        _digest_in(values.get("value")),
        [[task, _digest_in(value)] for task, _, value in pending],
        next(filter(None, problems), None),
    )


def _place(configurable: Any, *expected: str) -> str | None:
    place = tuple(configurable[name] for name in ("thread_id", "checkpoint_ns", "checkpoint_id"))
    return None if place == expected else f"config of {place}"


def _problem(value: Any, thread: str, ns: str, checkpoint_id: str | None = None, task: str = "") -> str | None:
    if not isinstance(value, dict) or "digest" not in value:
        return f"no value but {value!r}"
    rest = {name: part for name, part in value.items() if name != "digest"}
    if _digest(rest) != value["digest"]:
        return f"torn value of {rest.get('id')}"
    if (rest["thread"], rest["ns"]) != (thread, ns):
        return f"value of thread {rest['thread']!r}, namespace {rest['ns']!r}"
    if checkpoint_id is not None and (rest["id"], rest["task"]) != (checkpoint_id, task):
        return f"value of checkpoint {rest['id']}, task {rest['task']!r}"
    return None


def _digest(value: dict[str, str]) -> str:
    return hashlib.blake2b(repr(sorted(value.items())).encode(), digest_size=8).hexdigest()


def _digest_in(value: Any) -> str:
    return str(value.get("digest", "")) if isinstance(value, dict) else ""
