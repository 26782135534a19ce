"""What is known of a thread's lease, in Postgres and in Redis: how far the one is behind the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from langgraph_checkpoint_cached.cli.parts import Components
from langgraph_checkpoint_cached.errors import BehindError
from langgraph_checkpoint_cached.records import LeaseRow
from langgraph_checkpoint_cached.stores.redis.keys import journal_key, thread_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua

INSPECT_LEASE = Script(lua("server"), lua("inspect_lease"))
ENTRIES_AT_ONCE_MAX = 100
LOOKS_MAX, LOOK_AGAIN_SECONDS = 5, 0.2
SINCE_SQL = (
    "select extract(epoch from now() - since)::float8 as seconds from checkpoint_cache_leases"
    " where prefix = %s and thread_id = %s"
)


@dataclass(frozen=True)
class LeaseView:
    """A lease. What Redis says of it is None where Redis was not asked, or could not be."""

    token: str
    position: int
    """The number in the journal up to which Postgres has followed."""
    seconds: float | None
    """How long ago it was taken."""
    known: bool | None = None
    """Whether Redis knows it. If not, it has lost what it alone had, or the lease is ending."""
    last: int | None = None
    """The last number in the journal."""
    journal_entries: int | None = None
    journal_bytes: int | None = None
    error: str | None = None
    """Why Postgres cannot follow, if it was asked to."""

    @property
    def ahead(self) -> int | None:
        """How many writes Redis had that Postgres did not."""
        return None if not self.known or self.last is None else max(0, self.last - self.position)


async def flush_lease(parts: Components, thread_id: str) -> LeaseView | None:
    """The thread's lease as it was, and Postgres has followed since, unless it has an `error` or is not `known`.

    Raises `RedisUnavailable`, and psycopg's errors.
    """
    for _ in range(LOOKS_MAX):
        if (row := await lease_row(parts, thread_id)) is None:
            return None
        if (lease := await inspect_lease(parts, thread_id, row)).known:
            break
        await asyncio.sleep(LOOK_AGAIN_SECONDS)  # it may be about to begin, or to end
    else:
        return lease  # to settle it might be to give up what only its holder has
    try:
        await parts.replayer.flush_threads([thread_id])
    except BehindError as exc:
        return replace(lease, error=str(exc))
    return lease


async def lease_row(parts: Components, thread_id: str) -> LeaseView | None:
    """What Postgres says of the thread's lease; None if there is none. Raises psycopg's errors."""
    row = (await parts.postgres.leases.find([thread_id])).get(thread_id)
    if row is None:
        return None
    since = await parts.query(SINCE_SQL, (parts.servers.prefix, thread_id))
    return LeaseView(row.token, row.position, since[0]["seconds"] if since else None)


async def writes_ahead(parts: Components, thread_id: str, row: LeaseRow) -> int:
    """How many writes of a lease Redis holds that Postgres does not; 0 if it does not know the lease.

    Raises `RedisUnavailable`.
    """
    seen = await inspect_lease(parts, thread_id, LeaseView(row.token, row.position, None), count=False)
    return seen.ahead or 0


async def inspect_lease(parts: Components, thread_id: str, lease: LeaseView, *, count: bool = True) -> LeaseView:
    """The lease with what Redis says of it, and changes nothing. Raises `RedisUnavailable`.

    Args:
        parts: Of a saver.
        thread_id: Its thread.
        lease: As `lease_row` found it.
        count: Whether the journal is counted, `ENTRIES_AT_ONCE_MAX` entries at a time.
    """
    keys = [thread_key(parts.servers.prefix, thread_id), journal_key(parts.servers.prefix, thread_id)]
    after = entries = size_bytes = 0
    while True:
        page_max = ENTRIES_AT_ONCE_MAX if count else 1
        server_epoch, held, found, found_bytes, last = await parts.executor.submit(
            INSPECT_LEASE, keys, [lease.token, str(after), str(page_max)]
        )
        entries, size_bytes = entries + found, size_bytes + found_bytes
        if not last or not count:
            break
        after = last
    of, token, number = [*held.split(b" "), b"", b""][:3]
    known = of == server_epoch and token.decode() == lease.token
    return LeaseView(
        lease.token,
        lease.position,
        lease.seconds,
        known,
        int(number) if known else None,
        entries if count else None,
        size_bytes if count else None,
    )
