"""A thread's lease in Postgres and in Redis, and how many of its writes are unflushed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.stores.redis.keys import journal_key, thread_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua

INSPECT_LEASE = Script(lua("server"), lua("inspect_lease"))
PAGE_ENTRIES_MAX = 100
ATTEMPTS_MAX, RETRY_SECONDS = 5, 0.2
AGE_SQL = (
    "select extract(epoch from now() - since)::float8 as seconds from checkpoint_cache_leases"
    " where prefix = %s and thread_id = %s"
)


@dataclass(frozen=True)
class LeaseView:
    """A lease. Attributes that only Redis knows are None where Redis was not asked or could not be reached.

    Attributes:
        token: Token of the lease.
        position: Number in the journal up to which Postgres has its writes.
        seconds: Age of the lease.
        known: Whether Redis knows the lease. If not, it has lost data, or the lease is being opened or closed.
        last: Last number in the journal.
        journal_entries, journal_bytes: Size of the journal.
        error: Why the thread could not be flushed, if that was tried.
    """

    token: str
    position: int
    seconds: float | None
    known: bool | None = None
    last: int | None = None
    journal_entries: int | None = None
    journal_bytes: int | None = None
    error: str | None = None

    @property
    def unflushed(self) -> int | None:
        """Number of writes that Redis had and Postgres did not; None if Redis is needed to tell."""
        return None if not self.known or self.last is None else max(0, self.last - self.position)


async def flush_lease(components: Components, thread_id: str) -> LeaseView | None:
    """Flush the thread, and return its lease as it was before; None if it had none.

    The thread is not flushed if the lease returned is not `known` or has an `error`.

    Raises `RedisUnavailable`, and psycopg's errors.
    """
    for _ in range(ATTEMPTS_MAX):
        if (row := await lease_row(components, thread_id)) is None:
            return None
        if (lease := await inspect_lease(components, thread_id, row)).known:
            break
        await asyncio.sleep(RETRY_SECONDS)  # the lease may be just being opened or closed
    else:
        return lease  # flushing might revoke a lease whose writes only its holder has
    try:
        await components.replayer.flush_threads([thread_id])
    except BehindError as exc:
        return replace(lease, error=str(exc))
    return lease


async def lease_row(components: Components, thread_id: str) -> LeaseView | None:
    """Return the thread's lease as Postgres has it; None if there is none. Raises psycopg's errors."""
    row = (await components.store.leases.find([thread_id])).get(thread_id)
    if row is None:
        return None
    age = await components.query(AGE_SQL, (components.options.prefix, thread_id))
    return LeaseView(row.token, row.position, age[0]["seconds"] if age else None)


async def count_unflushed(components: Components, thread_id: str, row: LeaseRow) -> int:
    """Return how many writes of a lease are in Redis alone; 0 if Redis does not know the lease.

    Raises `RedisUnavailable`.
    """
    lease = LeaseView(row.token, row.position, None)
    return (await inspect_lease(components, thread_id, lease, count=False)).unflushed or 0


async def inspect_lease(
    components: Components, thread_id: str, lease: LeaseView, *, count: bool = True
) -> LeaseView:
    """Return the lease with what Redis knows of it. Changes nothing. Raises `RedisUnavailable`.

    Args:
        components: Components of a saver.
        thread_id: The lease's thread.
        lease: The lease as `lease_row` found it.
        count: Whether the journal is counted, `PAGE_ENTRIES_MAX` entries at a time.
    """
    prefix = components.options.prefix
    keys = [thread_key(prefix, thread_id), journal_key(prefix, thread_id)]
    after = entries = size_bytes = 0
    while True:
        page_max = PAGE_ENTRIES_MAX if count else 1
        server_epoch, held, found, found_bytes, last = await components.executor.submit(
            INSPECT_LEASE, keys, [lease.token, str(after), str(page_max)]
        )
        entries, size_bytes = entries + found, size_bytes + found_bytes
        if not last or not count:
            break
        after = last
    held_epoch, token, number = [*held.split(b" "), b"", b""][:3]
    known = held_epoch == server_epoch and token.decode() == lease.token
    return replace(
        lease,
        known=known,
        last=int(number) if known else None,
        journal_entries=entries if count else None,
        journal_bytes=size_bytes if count else None,
    )
