"""Copies of threads from any saver to another, through the interface that every saver has."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.utils.concurrency import for_each, iterate

THREADS_AT_ONCE = 8
PROBLEMS_KEPT_MAX = 100
"""Limit of the problems that are kept; all are counted."""
Saver = BaseCheckpointSaver[Any]


class Source(ABC):
    """Saver to copy from."""

    saver: Saver

    @abstractmethod
    async def threads(self) -> Mapping[str, Collection[str]]:
        """Return all threads with their namespaces. Takes about 200 bytes of memory for each."""

    @abstractmethod
    async def checkpoint_ids(self, namespace: Namespace) -> list[str]:
        """Return the ids of the namespace's checkpoints, in any order."""


class AnySource(Source):
    """Any saver whose `alist(None)` lists the checkpoints of all threads. Everything is read once to find them."""

    def __init__(self, saver: Saver) -> None:
        self.saver = saver
        self._ids: dict[Namespace, list[str]] = defaultdict(list)

    async def threads(self) -> Mapping[str, Collection[str]]:
        found: dict[str, dict[str, None]] = defaultdict(dict)
        self._ids.clear()
        async for one in self.saver.alist(None):
            where = one.config["configurable"]
            namespace = Namespace(where["thread_id"], where.get("checkpoint_ns", ""))
            self._ids[namespace].append(where["checkpoint_id"])
            found[namespace.thread_id].setdefault(namespace.checkpoint_ns)
        return found

    async def checkpoint_ids(self, namespace: Namespace) -> list[str]:
        return self._ids[namespace]


@dataclass(frozen=True)
class CopyProblem:
    """Checkpoint that is not in the target as it is in the source."""

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    problem: str


@dataclass
class CopyResult:
    """Result of a copy.

    Attributes:
        threads, checkpoints, writes: Numbers copied; with a dry run, that would be copied.
        present: Checkpoints that the target had already, with the same content.
        lost: Checkpoints that the source names but cannot return: expired, or unreadable to its own saver.
        differ: Checkpoints that the target has with other content, before or after the copy. None is overwritten.
        problems: The first of those that are lost or differ.
    """

    threads: int = 0
    checkpoints: int = 0
    writes: int = 0
    present: int = 0
    lost: int = 0
    differ: int = 0
    problems: list[CopyProblem] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Return whether everything that the source holds is in the target."""
        return not self.lost and not self.differ


async def copy_all(
    source: Saver | Source,
    target: Saver,
    *,
    thread_ids: Sequence[str] | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CopyResult:
    """Copy threads, the checkpoints of each namespace in the order of their ids: parents first.

    One checkpoint is in memory at a time. It may be stopped at any time and called again: checkpoints that the
    target has are compared, not written. After each thread, what was written is read from both and compared. No
    process should write to the threads in the meantime, on either side.

    The order of pending writes of one task is kept, but not their `task_path`, which no saver returns.

    Args:
        source: Saver to copy from.
        target: Saver to copy to. Its tables exist.
        thread_ids: Only these threads.
        dry_run: Whether nothing is written.
        progress: Called after each thread with the number of threads done and of all threads.
    """
    if not isinstance(source, Source):
        source = AnySource(source)
    result, done = CopyResult(), 0
    threads = await source.threads()
    names = [t for t in threads if thread_ids is None or t in set(thread_ids)]
    for missing in () if thread_ids is None else set(thread_ids) - set(threads):
        _add_problem(result, Namespace(missing), "", "lost", "the source has no such thread")

    async def copy(thread_id: str) -> None:
        nonlocal done
        await ThreadCopier(source, target, result, dry_run=dry_run).copy(thread_id, threads[thread_id])
        done += 1
        progress(done, len(names))

    await for_each(iterate(names), copy, THREADS_AT_ONCE)
    return result


class ThreadCopier:
    """Copy one thread, and count what comes of it in `result`."""

    def __init__(self, source: Source, target: Saver, result: CopyResult, *, dry_run: bool) -> None:
        self._source, self._target, self._result, self._dry_run = source, target, result, dry_run

    async def copy(self, thread_id: str, namespaces: Collection[str]) -> None:
        """Copy these namespaces of the thread."""
        written = []
        for checkpoint_ns in namespaces:
            namespace = Namespace(thread_id, checkpoint_ns)
            stored: set[tuple[str, str]] = set()  # channels and versions whose values the target has
            for checkpoint_id in sorted(set(await self._source.checkpoint_ids(namespace))):
                if await self._copy_one(namespace, checkpoint_id, stored):
                    written.append((namespace, checkpoint_id))
        self._result.threads += bool(written)
        if not self._dry_run:
            for namespace, checkpoint_id in written:
                await self._check(namespace, checkpoint_id)

    async def _copy_one(self, namespace: Namespace, checkpoint_id: str, stored: set[tuple[str, str]]) -> bool:
        """Copy a checkpoint unless the target has it. Returns whether it had not."""
        config = _config(namespace, checkpoint_id)
        found = await self._source.saver.aget_tuple(config)
        if found is None:
            _add_problem(self._result, namespace, checkpoint_id, "lost", "the source does not return it")
            return False
        versions = found.checkpoint["channel_versions"]
        there = await self._target.aget_tuple(config)
        if there is not None:
            stored |= {(channel, str(version)) for channel, version in versions.items()}
            differing = differences(found, there, self._target)
            if differing and differing != ["pending writes"]:
                _add_problem(self._result, namespace, checkpoint_id, "differ", f"other {', '.join(differing)}")
                return False
            if not differing:
                self._result.present += 1
                return False
        self._result.checkpoints += there is None
        self._result.writes += len(found.pending_writes or ())
        if not self._dry_run:
            if there is None:
                new = {c: v for c, v in versions.items() if (c, str(v)) not in stored}
                parent = found.parent_config["configurable"].get("checkpoint_id") if found.parent_config else None
                await self._target.aput(_config(namespace, parent), found.checkpoint, found.metadata, new)
                stored |= {(channel, str(version)) for channel, version in new.items()}
            await self._put_writes(config, found)
        return True

    async def _put_writes(self, config: RunnableConfig, found: CheckpointTuple) -> None:
        tasks: dict[tuple[str, bool], list[tuple[str, Any]]] = defaultdict(list)
        for task_id, channel, value in found.pending_writes or ():
            tasks[task_id, channel in WRITES_IDX_MAP].append((channel, value))
        for (task_id, _), writes in tasks.items():
            await self._target.aput_writes(config, writes, task_id)

    async def _check(self, namespace: Namespace, checkpoint_id: str) -> None:
        config = _config(namespace, checkpoint_id)
        found, there = await asyncio.gather(self._source.saver.aget_tuple(config), self._target.aget_tuple(config))
        differing = differences(found, there, self._target)
        if differing:
            _add_problem(
                self._result, namespace, checkpoint_id, "differ", f"after the copy: other {', '.join(differing)}"
            )


def differences(one: CheckpointTuple | None, other: CheckpointTuple | None, saver: Saver) -> list[str]:
    """Return the parts in which two tuples of a checkpoint differ. Values are compared as `saver` stores them."""
    if one is None or other is None:
        return [] if one is other else ["existence"]
    compared = {
        "checkpoint": [_plain(_head(each)) for each in (one, other)],
        "values": [_values(each, saver) for each in (one, other)],
        "metadata": [_plain(each.metadata) for each in (one, other)],
        "parent": [
            (each.parent_config or {}).get("configurable", {}).get("checkpoint_id") for each in (one, other)
        ],
        "pending writes": [_writes(each, saver) for each in (one, other)],
    }
    return [name for name, (ours, theirs) in compared.items() if ours != theirs]


def _head(one: CheckpointTuple) -> dict[str, Any]:
    left_out = ("channel_values", "pending_sends")
    return {name: value for name, value in one.checkpoint.items() if name not in left_out and value is not None}


def _plain(value: Any) -> Any:
    """Return a value as it is in JSON, which is how savers keep it."""
    return json.loads(json.dumps(value, default=str).replace("\\u0000", ""))


def _values(one: CheckpointTuple, saver: Saver) -> dict[str, Any]:
    return {channel: _stored(value, saver) for channel, value in one.checkpoint["channel_values"].items()}


def _writes(one: CheckpointTuple, saver: Saver) -> Counter[Any]:
    return Counter((task, channel, _stored(value, saver)) for task, channel, value in one.pending_writes or ())


def _stored(value: Any, saver: Saver) -> tuple[str, bytes]:
    return saver.serde.dumps_typed(value)


def _config(namespace: Namespace, checkpoint_id: str | None) -> RunnableConfig:
    where = {"thread_id": namespace.thread_id, "checkpoint_ns": namespace.checkpoint_ns}
    return {"configurable": {**where, "checkpoint_id": checkpoint_id} if checkpoint_id else where}


def _add_problem(result: CopyResult, namespace: Namespace, checkpoint_id: str, kind: str, problem: str) -> None:
    setattr(result, kind, getattr(result, kind) + 1)
    if len(result.problems) < PROBLEMS_KEPT_MAX:
        result.problems.append(CopyProblem(namespace.thread_id, namespace.checkpoint_ns, checkpoint_id, problem))
