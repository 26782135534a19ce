"""Parents of checkpoints that are stored after Postgres may have lost some."""

from __future__ import annotations

from collections.abc import Sequence

from langgraph_checkpoint_cached.database_identity import DatabaseIdentity
from langgraph_checkpoint_cached.errors import LostHistoryError
from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites
from langgraph_checkpoint_cached.stores.postgres.connections import Connections
from langgraph_checkpoint_cached.stores.postgres.queries import query

KNOWN_MAX = 10_000
"""Namespaces whose last checkpoint is remembered; of any other the parent is looked for."""
MISSING_PARENTS = query("missing_parents")


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
        puts = [operation for operation in operations if isinstance(operation, Put)]
        coming = {(put.namespace, put.checkpoint_id) for put in puts}
        unknown = [
            (*put.namespace, put.parent_id)
            for put in puts
            if put.parent_id
            and self._last.get(put.namespace) != put.parent_id
            and (put.namespace, put.parent_id) not in coming
        ]
        if not unknown:
            return
        async with self._connections.cursor() as cur:
            await cur.execute(MISSING_PARENTS, [list(column) for column in zip(*unknown, strict=True)])
            for row in await cur.fetchall():
                raise LostHistoryError(
                    f"not stored: checkpoint {row['checkpoint_id']} of thread {row['thread_id']!r}, which this "
                    "one continues, is not in Postgres any more, which has lost its last commits in a failover "
                    "or a restore. Run the graph again: it goes on from the last checkpoint that is left"
                )

    def note(self, operations: Sequence[Put | PutWrites]) -> None:
        """Note checkpoints that were stored."""
        if self._as_of != self._database.changes:
            return  # it has changed again since
        for operation in operations:
            if isinstance(operation, Put):
                if len(self._last) >= KNOWN_MAX:
                    self._last.clear()
                self._last[operation.namespace] = operation.checkpoint_id
