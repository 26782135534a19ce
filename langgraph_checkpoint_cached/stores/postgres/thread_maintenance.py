"""What the upstream saver cannot do with whole threads: copies, runs, prunes with a `DeltaChannel`, idle threads.

Each function takes the upstream saver whose connections it is to use. Statements are not prepared, so that
Postgres plans each for the arrays it gets, and find rows by the leading columns of a primary key.
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
from langgraph_checkpoint_cached.stores.postgres.queries import sql

LOCK_COPY_TARGET = "select pg_advisory_xact_lock(hashtextextended(%s, 4711))"
ONE_SNAPSHOT = "set transaction isolation level repeatable read"
DATABASE_TIME = "select extract(epoch from now())::float8 as seconds"

Channels = Mapping[str, Collection["str | None"]]
"""By namespace: its `DeltaChannel`s. None among them is one whose name is not known."""


class Counts(NamedTuple):
    """Rows of threads in each table."""

    checkpoints: int
    blobs: int
    writes: int


class ThreadAge(NamedTuple):
    """A thread, and how old it is: "recent", "idle" or "undated"."""

    thread_id: str
    age: str
    checkpoints: int
    """How many, if it is idle; else 0."""


async def copy(upstream: AsyncPostgresSaver, source: str, target: str, *, overwrite: bool) -> None:
    """Makes `target` the same as `source`, in one transaction. A copy that is there already is left as it is.

    Raises:
        ThreadNotEmptyError: `target` has something else, and `overwrite` is not set; or `source` has nothing.
    """
    names = {"source": source, "target": target}
    async with _transaction(upstream) as cur:
        await cur.execute(LOCK_COPY_TARGET, (target,))
        [there] = await _rows(cur, "copy_state", names)
        if there["target"]:
            if not there["source"]:
                raise ThreadNotEmptyError(
                    f"not copied: {source!r} has nothing and {target!r} has. To empty {target!r}, delete it."
                )
            [same] = await _rows(cur, "threads_differ", names)
            if not same["differ"]:
                return
            if not overwrite:
                raise ThreadNotEmptyError(
                    f"not copied: {target!r} has checkpoints of its own. Take another id, or overwrite=True."
                )
            await cur.execute(sql("delete_threads"), {"threads": [target]}, prepare=False)
        await cur.execute(sql("copy_thread"), names, prepare=False)


async def threads_of_runs(
    upstream: AsyncPostgresSaver, run_ids: Sequence[str], thread_ids: Sequence[str] | None
) -> list[str]:
    """The threads, of these or of all, that hold checkpoints of these runs."""
    async with upstream._cursor() as cur:
        found = await _rows(
            cur, "threads_of_runs", {"runs": list(run_ids), "threads": thread_ids and list(thread_ids)}
        )
    return [row["thread_id"] for row in found]


async def delete_runs(upstream: AsyncPostgresSaver, run_ids: Sequence[str], thread_ids: Sequence[str]) -> None:
    """Deletes the checkpoints of these runs in these threads, their writes, and values that no other one names.

    Raises:
        HistoryNeededError: a checkpoint that stays is rebuilt from what would go. Nothing was deleted.
    """
    async with _transaction(upstream) as cur:
        channels = await _delta_channels(cur, thread_ids)
        for thread_id in sorted(thread_ids):
            found = await _rows(cur, "checkpoints_of_runs", {"thread": thread_id, "runs": list(run_ids)})
            for row in found:
                ns = row["checkpoint_ns"]
                orphans = await _delete_checkpoints(cur, thread_id, ns, row["checkpoint_ids"])
                if orphans and (needed := channels.get(thread_id, {}).get(ns)):
                    await _check_orphans(cur, thread_id, ns, orphans, needed)


async def delta_threads(upstream: AsyncPostgresSaver, thread_ids: Sequence[str]) -> list[str]:
    """Those of the threads that use a `DeltaChannel`, one whose name is known."""
    async with upstream._cursor() as cur:
        channels = await _delta_channels(cur, thread_ids)
    return [t for t in thread_ids if t in channels and not any(None in names for names in channels[t].values())]


async def keep_latest(upstream: AsyncPostgresSaver, thread_id: str) -> None:
    """Prunes a thread to the latest checkpoint of each namespace and the ancestors that its `DeltaChannel`s are
    rebuilt from. All in one snapshot: what a run saves meanwhile is neither seen nor deleted.
    """
    async with _transaction(upstream, one_snapshot=True) as cur:
        channels = (await _delta_channels(cur, [thread_id])).get(thread_id, {})
        heads = await _rows(cur, "prune_heads", {"thread": thread_id})
        if over := [row["checkpoint_ns"] for row in heads if row["over"]]:
            await cur.execute(sql("delete_namespaces"), {"thread": thread_id, "namespaces": over}, prepare=False)
        for row in heads:
            if row["over"]:
                continue
            where = {"thread": thread_id, "ns": row["checkpoint_ns"]}
            names = list(channels.get(row["checkpoint_ns"], ()))
            kept = await _rows(
                cur, "delta_ancestors", {**where, "ids": row["checkpoint_ids"][:1], "channels": names}
            )
            keep = [*row["checkpoint_ids"], *(k["checkpoint_id"] for k in kept)]
            others = await _rows(cur, "other_checkpoints", {**where, "ids": keep})
            await _delete_checkpoints(cur, thread_id, row["checkpoint_ns"], [o["checkpoint_id"] for o in others])


async def database_time(upstream: AsyncPostgresSaver) -> float:
    """What time it is in Postgres, in seconds since 1970."""
    async with upstream._cursor() as cur:
        await cur.execute(DATABASE_TIME)
        [row] = await cur.fetchall()
    return float(row["seconds"])


async def page_of_threads(
    upstream: AsyncPostgresSaver, after: str | None, since: str, limit: int
) -> list[ThreadAge]:
    """The first so many threads after this one, and how old they are.

    Args:
        after: Id of the thread that the page before ended with.
        since: See `first_id_since`.
        limit: The most threads to look at.
    """
    async with upstream._cursor() as cur:
        found = await _rows(
            cur, "page_of_threads", {"after": after, "since": since, "dated": DATED_ID, "limit": limit}
        )
    return [ThreadAge(row["thread_id"], row["age"], row["checkpoints"]) for row in found]


async def count_rows(upstream: AsyncPostgresSaver, thread_ids: Sequence[str]) -> Counts:
    """How many rows threads have."""
    async with upstream._cursor() as cur:
        [row] = await _rows(cur, "count_threads", {"threads": list(thread_ids)})
    return Counts(row["checkpoints"], row["blobs"], row["writes"])


async def delete_if_idle(
    upstream: AsyncPostgresSaver, thread_ids: Sequence[str], since: str
) -> tuple[list[str], Counts]:
    """Deletes those of the threads that have nothing since, in one transaction. Returns which, and how many rows.

    A checkpoint that is committed meanwhile is seen, be it by the deletion or after it: its thread is kept whole.
    """
    idle = list(thread_ids)
    async with _transaction(upstream) as cur:
        while True:
            async with cur.connection.transaction() as attempt:
                [deleted] = await _rows(cur, "delete_idle", {"threads": idle, "since": since, "dated": DATED_ID})
                left = await _rows(cur, "threads_left", {"threads": idle})
                active = {*deleted["not_idle"], *(row["thread_id"] for row in left)}
                if not active:
                    return idle, Counts(deleted["checkpoints"], deleted["blobs"], deleted["writes"])
                raise Rollback(attempt)
            idle = [thread_id for thread_id in idle if thread_id not in active]


async def _delete_checkpoints(
    cur: AsyncCursor[DictRow], thread_id: str, checkpoint_ns: str, checkpoint_ids: Sequence[str]
) -> list[str]:
    """Deletes checkpoints of a namespace, their writes, and the values that no other one names.

    Returns those that have lost their parent.
    """
    where = {"thread": thread_id, "ns": checkpoint_ns}
    if not checkpoint_ids:
        return []
    of_these = {**where, "ids": list(checkpoint_ids)}
    await cur.execute(sql("delete_writes"), of_these, prepare=False)
    freed = await _rows(cur, "delete_checkpoints", of_these)
    orphans = await _rows(cur, "orphan_checkpoints", of_these)
    if freed:
        named = {(row["channel"], row["version"]) for row in await _rows(cur, "named_versions", where)}
        garbage: dict[str, list[str]] = defaultdict(list)
        for row in freed:
            if (row["channel"], row["version"]) not in named:
                garbage[row["channel"]].append(row["version"])
        for channel, versions in garbage.items():
            await cur.execute(
                sql("delete_blobs"), {**where, "channel": channel, "versions": versions}, prepare=False
            )
    return [row["checkpoint_id"] for row in orphans]


async def _check_orphans(
    cur: AsyncCursor[DictRow],
    thread_id: str,
    checkpoint_ns: str,
    orphans: Sequence[str],
    channels: Collection[str | None],
) -> None:
    """Raises `HistoryNeededError` if a checkpoint without its ancestors has a `DeltaChannel` and not its value."""
    names = [name for name in channels if name is not None]
    for row in await _rows(
        cur,
        "delta_ancestors",
        {"thread": thread_id, "ns": checkpoint_ns, "ids": list(orphans), "channels": names},
    ):
        if row["lacks"] or None in channels:
            raise HistoryNeededError(
                f"not deleted: the checkpoint {row['checkpoint_id']} of thread {thread_id!r}, namespace "
                f"{checkpoint_ns!r}, is of another run, and its DeltaChannels {row['lacks'] or ''} are rebuilt "
                "from what would go. Delete the later runs too, or the thread."
            )


async def _delta_channels(cur: AsyncCursor[DictRow], thread_ids: Sequence[str]) -> dict[str, Channels]:
    """By thread and namespace."""
    found: dict[str, dict[str, set[str | None]]] = {}
    for row in await _rows(cur, "delta_channels", {"threads": list(thread_ids)}):
        found.setdefault(row["thread_id"], {}).setdefault(row["checkpoint_ns"], set()).add(row["channel"])
    return dict(found)


async def _rows(cur: AsyncCursor[DictRow], name: str, parameters: Mapping[str, Any]) -> list[DictRow]:
    await cur.execute(sql(name), parameters, prepare=False)
    return await cur.fetchall()


@asynccontextmanager
async def _transaction(
    upstream: AsyncPostgresSaver, *, one_snapshot: bool = False
) -> AsyncIterator[AsyncCursor[DictRow]]:
    """A transaction, or a part of the one that the upstream saver is in.

    Args:
        upstream: Whose connection.
        one_snapshot: Whether all of it reads one snapshot. Not within another transaction.
    """
    async with upstream._cursor() as cur:
        if one_snapshot and upstream.pipe:
            await upstream.pipe.sync()  # else it would take in what ran since the last one
        async with cur.connection.transaction():
            if one_snapshot:
                await cur.execute(ONE_SNAPSHOT)
            yield cur
