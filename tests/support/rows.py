"""The rows of a thread in the upstream saver's tables, without its name."""

from __future__ import annotations

from typing import Any

from tests.support.agreement import Tiers

TABLES = {
    "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata",
    "checkpoint_blobs": "checkpoint_ns, channel, version, type, blob",
    "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob",
}


async def rows_of(tiers: Tiers, thread_id: str) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    async with tiers.pool.connection() as conn:
        for table, columns in TABLES.items():
            rows = await conn.execute(
                f"select {columns} from {table} where thread_id = %s order by {columns}",  # type: ignore[arg-type]
                (thread_id,),
            )
            found[table] = [tuple(row.values()) for row in await rows.fetchall()]
    return found


async def count_of(tiers: Tiers, thread_id: str) -> list[int]:
    """Return the number of rows in each table."""
    return [len(rows) for rows in (await rows_of(tiers, thread_id)).values()]


NONE = [0, 0, 0]
