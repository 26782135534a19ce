"""Parents of checkpoints that are stored after Postgres may have lost some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from psycopg import AsyncCursor
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.errors import LostHistoryError
from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites
from langgraph_checkpoint_cached.stores.postgres.connections import Connections
from langgraph_checkpoint_cached.stores.postgres.queries import query

KNOWN_MAX = 10_000
"""Namespaces whose last checkpoint is remembered; of any other the parent is looked for."""
MISSING_PARENTS = query("missing_parents")

Parent: TypeAlias = "tuple[str, str, str]"  # thread, namespace, checkpoint


class KnownParents:
    """Check that the parent of every new checkpoint exists, once Postgres may have lost commits.

    A checkpoint names the versions of all its channels and brings the values of some; the others are with its
    ancestors. A run that began before commits were lost would store checkpoints whose values are gone. Until the
    identity of Postgres changes, nothing of this is needed.
    """

    def __init__(self, database: DatabaseIdentity, connections: Connections) -> None:
        self._database, self._connections = database, connections
        self._last: dict[Namespace, str] = {}
        self._as_of = 0

    async def check(self, operations: Sequence[Put | PutWrites]) -> None:
        """Raise `LostHistoryError` for a checkpoint whose parent neither exists nor comes with it."""
        if self._as_of != self._database.changes:
            self._as_of = self._database.changes
            self._last.clear()
        unknown = [p for p in _parents(operations) if self._last.get(Namespace(p[0], p[1])) != p[2]]
        if not unknown:
            return
        async with self._connections.cursor() as cur:
            for row in await _missing(cur, unknown):
                raise LostHistoryError(
                    f"not stored: checkpoint {row['checkpoint_id']} of thread {row['thread_id']!r}, which this "
                    "one continues, is not in Postgres any more, which has lost its last commits in a failover "
                    "or a restore. Run the graph again: it goes on from the last checkpoint that is left"
                )

    async def find_lost(self, cur: AsyncCursor[DictRow], operations: Sequence[Put | PutWrites]) -> set[str]:
        """Return the threads of checkpoints whose parent neither exists nor comes with them."""
        return {row["thread_id"] for row in await _missing(cur, _parents(operations))}

    def note(self, operations: Sequence[Put | PutWrites], changes: int) -> None:
        """Note checkpoints that were stored when the identity of Postgres had changed so many times."""
        if not self._as_of == self._database.changes == changes:
            return  # it has changed again since
        for operation in operations:
            if isinstance(operation, Put):
                if len(self._last) >= KNOWN_MAX:
                    self._last.clear()
                self._last[operation.namespace] = operation.checkpoint_id


def _parents(operations: Sequence[Put | PutWrites]) -> list[Parent]:
    """Return the parents of checkpoints, but those that come with them."""
    puts = [operation for operation in operations if isinstance(operation, Put)]
    coming = {(*put.namespace, put.checkpoint_id) for put in puts}
    parents = [(*put.namespace, put.parent_id) for put in puts if put.parent_id]
    return [parent for parent in parents if parent not in coming]


async def _missing(cur: AsyncCursor[DictRow], parents: Sequence[Parent]) -> list[DictRow]:
    if not parents:
        return []
    await cur.execute(MISSING_PARENTS, [list(column) for column in zip(*parents, strict=True)])
    return await cur.fetchall()
