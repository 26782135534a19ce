"""Changes of whole threads that the upstream saver lacks: copies, deletes of runs and of idle threads, prunes.

Each function takes the upstream saver whose connections it uses. Statements are not prepared, so that Postgres
plans each for the arrays it gets, and they find rows by the leading columns of a primary key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncCursor, Rollback
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.errors import HistoryNeededError, ThreadNotEmptyError
from langgraph_checkpoint_cached.retention import DATED_ID
from langgraph_checkpoint_cached.stores.postgres.queries import query

LOCK_COPY_TARGET = query("lock_copy_target")
COPY_STATE = query("copy_state")
THREADS_DIFFER = query("threads_differ")
COPY_THREAD = query("copy_thread")
DELETE_THREADS = query("delete_threads")
DELETE_NAMESPACES = query("delete_namespaces")
DELETE_CHECKPOINTS = query("delete_checkpoints")
ORPHAN_CHECKPOINTS = query("orphan_checkpoints")
DELETE_WRITES = query("delete_writes")
NAMED_VERSIONS = query("named_versions")
DELETE_BLOBS = query("delete_blobs")
THREADS_OF_RUNS = query("threads_of_runs")
CHECKPOINTS_OF_RUNS = query("checkpoints_of_runs")
DELTA_CHANNELS = query("delta_channels")
DELTA_ANCESTORS = query("delta_ancestors")
PRUNE_HEADS = query("prune_heads")
OTHER_CHECKPOINTS = query("other_checkpoints")
DATABASE_TIME = query("database_time")
PAGE_OF_THREADS = query("page_of_threads")
COUNT_THREADS = query("count_threads")
DELETE_IDLE = query("delete_idle")
THREADS_LEFT = query("threads_left")

Channels = Mapping[str, Collection["str | None"]]
"""The `DeltaChannel`s of each namespace. None stands for one whose name is not known."""


class Counts(NamedTuple):
    """Numbers of rows in each table."""

    checkpoints: int
    blobs: int
    writes: int


class ThreadAge(NamedTuple):
    """A thread and its age: "recent", "idle" or "undated"."""

    thread_id: str
    age: str
    checkpoints: int
    """Number of its checkpoints if it is idle, else 0."""


async def copy(upstream: AsyncPostgresSaver, source: str, target: str, *, overwrite: bool) -> None:
    """Copy the thread `source` to `target`, in one transaction. A copy that is there already is left as it is.

    Raises:
        ThreadNotEmptyError: `target` has something else and `overwrite` is not set, or `source` has nothing.
    """
    names = {"source": source, "target": target}
    async with _transaction(upstream) as cur:
        await cur.execute(LOCK_COPY_TARGET, names)
        [there] = await _rows(cur, COPY_STATE, names)
        if there["target"]:
            if not there["source"]:
                raise ThreadNotEmptyError(
                    f"not copied: {source!r} has nothing and {target!r} has. To empty {target!r}, delete it."
                )
            [same] = await _rows(cur, THREADS_DIFFER, names)
            if not same["differ"]:
                return
            if not overwrite:
                raise ThreadNotEmptyError(
                    f"not copied: {target!r} has checkpoints of its own. Take another id, or overwrite=True."
                )
            await cur.execute(DELETE_THREADS, {"threads": [target]}, prepare=False)
        await cur.execute(COPY_THREAD, names, prepare=False)


async def threads_of_runs(
    upstream: AsyncPostgresSaver, run_ids: Sequence[str], thread_ids: Sequence[str] | None
) -> list[str]:
    """Find the threads, among those given or all, that have checkpoints of these runs."""
    async with upstream._cursor() as cur:
        found = await _rows(
            cur, THREADS_OF_RUNS, {"runs": list(run_ids), "threads": thread_ids and list(thread_ids)}
        )
    return [row["thread_id"] for row in found]


async def delete_runs(upstream: AsyncPostgresSaver, run_ids: Sequence[str], thread_ids: Sequence[str]) -> None:
    """Delete the checkpoints of these runs in these threads, their writes, and values that no other one names.

    Raises:
        HistoryNeededError: a checkpoint that stays is rebuilt from what would be deleted. Nothing was deleted.
    """
    async with _transaction(upstream) as cur:
        channels = await _delta_channels(cur, thread_ids)
        for thread_id in sorted(thread_ids):
            found = await _rows(cur, CHECKPOINTS_OF_RUNS, {"thread": thread_id, "runs": list(run_ids)})
            for row in found:
                ns = row["checkpoint_ns"]
                orphans = await _delete_checkpoints(cur, thread_id, ns, row["checkpoint_ids"])
                if orphans and (needed := channels.get(thread_id, {}).get(ns)):
                    await _check_orphans(cur, thread_id, ns, orphans, needed)


async def delta_threads(upstream: AsyncPostgresSaver, thread_ids: Sequence[str]) -> list[str]:
    """Find those of the threads that use `DeltaChannel`s.

    Raises:
        NotImplementedError: the names of those of a thread are not known.
    """
    async with upstream._cursor() as cur:
        channels = await _delta_channels(cur, thread_ids)
    if unknown := sorted(t for t in channels if any(None in names for names in channels[t].values())):
        raise NotImplementedError(
            f"keep_latest can't prune threads that use a DeltaChannel: {', '.join(unknown)} (of LangGraph.js)"
        )
    return [thread_id for thread_id in thread_ids if thread_id in channels]


async def keep_latest(upstream: AsyncPostgresSaver, thread_id: str) -> None:
    """Prune a thread to the latest checkpoint of each namespace and the ancestors that its `DeltaChannel`s need.

    The upstream saver is in a transaction that reads one snapshot: what a run saves meanwhile is neither seen nor
    deleted.
    """
    async with _transaction(upstream) as cur:
        channels = (await _delta_channels(cur, [thread_id])).get(thread_id, {})
        heads = await _rows(cur, PRUNE_HEADS, {"thread": thread_id})
        if over := [row["checkpoint_ns"] for row in heads if row["over"]]:
            await cur.execute(DELETE_NAMESPACES, {"thread": thread_id, "namespaces": over}, prepare=False)
        for row in heads:
            if row["over"]:
                continue
            where = {"thread": thread_id, "ns": row["checkpoint_ns"]}
            names = list(channels.get(row["checkpoint_ns"], ()))
            kept = await _rows(
                cur, DELTA_ANCESTORS, {**where, "ids": row["checkpoint_ids"][:1], "channels": names}
            )
            keep = [*row["checkpoint_ids"], *(k["checkpoint_id"] for k in kept)]
            others = await _rows(cur, OTHER_CHECKPOINTS, {**where, "ids": keep})
            await _delete_checkpoints(cur, thread_id, row["checkpoint_ns"], [o["checkpoint_id"] for o in others])


async def database_time(upstream: AsyncPostgresSaver) -> float:
    """Return the time in Postgres, in seconds since 1970."""
    async with upstream._cursor() as cur:
        await cur.execute(DATABASE_TIME)
        [row] = await cur.fetchall()
    return float(row["seconds"])


async def page_of_threads(
    upstream: AsyncPostgresSaver, after: str | None, since: str, limit: int
) -> list[ThreadAge]:
    """Return the next threads in the order of their ids, and how old they are.

    Args:
        upstream: The upstream saver.
        after: Id of the last thread of the page before, None for the first page.
        since: See `first_id_since`.
        limit: The highest number of threads to return.
    """
    async with upstream._cursor() as cur:
        found = await _rows(
            cur, PAGE_OF_THREADS, {"after": after, "since": since, "dated": DATED_ID, "limit": limit}
        )
    return [ThreadAge(row["thread_id"], row["age"], row["checkpoints"]) for row in found]


async def count_rows(upstream: AsyncPostgresSaver, thread_ids: Sequence[str]) -> Counts:
    """Count the rows of threads."""
    async with upstream._cursor() as cur:
        [row] = await _rows(cur, COUNT_THREADS, {"threads": list(thread_ids)})
    return Counts(row["checkpoints"], row["blobs"], row["writes"])


async def delete_if_idle(
    upstream: AsyncPostgresSaver, thread_ids: Sequence[str], since: str
) -> tuple[list[str], Counts]:
    """Delete those of the threads that have nothing since, in one transaction. Return them and the rows deleted.

    A checkpoint that is committed meanwhile is seen, by the deletion or after it: its thread is kept whole.
    """
    idle = list(thread_ids)
    async with _transaction(upstream) as cur:
        while True:
            async with cur.connection.transaction() as attempt:
                [deleted] = await _rows(cur, DELETE_IDLE, {"threads": idle, "since": since, "dated": DATED_ID})
                left = await _rows(cur, THREADS_LEFT, {"threads": idle})
                active = {*deleted["not_idle"], *(row["thread_id"] for row in left)}
                if not active:
                    return idle, Counts(deleted["checkpoints"], deleted["blobs"], deleted["writes"])
                raise Rollback(attempt)
            idle = [thread_id for thread_id in idle if thread_id not in active]


async def _delete_checkpoints(
    cur: AsyncCursor[DictRow], thread_id: str, checkpoint_ns: str, checkpoint_ids: Sequence[str]
) -> list[str]:
    """Delete checkpoints of a namespace, their writes, and the values that no other checkpoint names.

    Return the checkpoints that have lost their parent.
    """
    where = {"thread": thread_id, "ns": checkpoint_ns}
    if not checkpoint_ids:
        return []
    of_these = {**where, "ids": list(checkpoint_ids)}
    await cur.execute(DELETE_WRITES, of_these, prepare=False)
    freed = await _rows(cur, DELETE_CHECKPOINTS, of_these)
    orphans = await _rows(cur, ORPHAN_CHECKPOINTS, of_these)
    if freed:
        named = {(row["channel"], row["version"]) for row in await _rows(cur, NAMED_VERSIONS, where)}
        garbage: dict[str, list[str]] = defaultdict(list)
        for row in freed:
            if (row["channel"], row["version"]) not in named:
                garbage[row["channel"]].append(row["version"])
        for channel, versions in garbage.items():
            await cur.execute(DELETE_BLOBS, {**where, "channel": channel, "versions": versions}, prepare=False)
    return [row["checkpoint_id"] for row in orphans]


async def _check_orphans(
    cur: AsyncCursor[DictRow],
    thread_id: str,
    checkpoint_ns: str,
    orphans: Sequence[str],
    channels: Collection[str | None],
) -> None:
    """Raise `HistoryNeededError` if a checkpoint without its ancestors has a `DeltaChannel` and not its value."""
    names = [name for name in channels if name is not None]
    for row in await _rows(
        cur,
        DELTA_ANCESTORS,
        {"thread": thread_id, "ns": checkpoint_ns, "ids": list(orphans), "channels": names},
    ):
        if row["lacks"] or None in channels:
            raise HistoryNeededError(
                f"not deleted: the checkpoint {row['checkpoint_id']} of thread {thread_id!r}, namespace "
                f"{checkpoint_ns!r}, is of another run, and its DeltaChannels {row['lacks'] or ''} are rebuilt "
                "from what would be deleted. Delete the later runs too, or the thread."
            )


async def _delta_channels(cur: AsyncCursor[DictRow], thread_ids: Sequence[str]) -> dict[str, Channels]:
    """Find the `DeltaChannel`s by thread and namespace."""
    found: dict[str, dict[str, set[str | None]]] = {}
    for row in await _rows(cur, DELTA_CHANNELS, {"threads": list(thread_ids)}):
        found.setdefault(row["thread_id"], {}).setdefault(row["checkpoint_ns"], set()).add(row["channel"])
    return dict(found)


async def _rows(cur: AsyncCursor[DictRow], sql: str, parameters: Mapping[str, Any]) -> list[DictRow]:
    await cur.execute(sql, parameters, prepare=False)
    return await cur.fetchall()


@asynccontextmanager
async def _transaction(upstream: AsyncPostgresSaver) -> AsyncIterator[AsyncCursor[DictRow]]:
    """Open a transaction, or a savepoint in the one that the upstream saver is in."""
    async with upstream._cursor() as cur, cur.connection.transaction():
        yield cur
