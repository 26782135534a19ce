"""The end of a run: what a fresh process, the upstream saver and a scan of Redis find. The script is that
process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
import time
from typing import Any

import redis
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from tests.chaos.end_checks import End, Key
from tests.chaos.history import Place
from tests.chaos.savers import ABANDONED_SECONDS, PREFIX, Opened
from tests.chaos.values import as_seen
from tests.chaos.worker import ALL_PLACES, GRAPH_THREADS, PLACES, Job, config_of
from tests.chaos.world import World
from tests.support.inspect import inspect

AUDIT_SECONDS_MAX = 60.0
RECOVERY_SECONDS_MAX = 3 * ABANDONED_SECONDS
LEASES = "select thread_id from checkpoint_cache_leases"


def outline(found: CheckpointTuple | None) -> str:
    """All of a checkpoint tuple, in a line."""
    if found is None:
        return "nothing"
    whole = json.dumps(list(found), sort_keys=True, default=repr)
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return f"{found.checkpoint['id']} with {len(found.pending_writes or ())} writes, {digest}"


async def audit(world: World) -> End:
    """The state of both tiers. The workers have ended."""
    end = End()
    await world.in_thread(_ask_fresh_process, world, end)
    async with AsyncConnectionPool(
        world.postgres.url,
        open=False,
        min_size=1,
        max_size=1,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    ) as pool:
        upstream = AsyncPostgresSaver(pool)
        for place in PLACES:
            end.rows[place] = [as_seen(*place, found) async for found in upstream.alist(config_of(place))]
        for place in ALL_PLACES:
            found = await upstream.aget_tuple(config_of(place))
            end.latest[place] = outline(found)
            if place[0] in GRAPH_THREADS and found:
                end.answers[place[0]] = found.checkpoint["channel_values"]["answers"]
    end.keys = await world.in_thread(_keys, world)
    return end


def _ask_fresh_process(world: World, end: End) -> None:
    process = world.start_module("tests.chaos.audit", world.job(0, "audit", direct=True))
    try:
        out, _ = process.communicate(timeout=AUDIT_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
    reply = json.loads(out)
    end.first, end.second = (dict(zip(ALL_PLACES, reply[name], strict=True)) for name in ("first", "second"))
    end.missed, end.leases = reply["missed"], reply["leases"]


def _keys(world: World) -> list[Key]:
    found: list[Key] = []
    with redis.Redis(port=world.redis.master.port) as client:
        for name in client.scan_iter(match=f"{PREFIX}*", count=1000):
            kind = client.type(name)
            fields = client.hkeys(name) if kind == b"hash" else []
            fences = [field.decode() for field in fields if field.startswith(b"f:")]
            ttl_ms = client.pttl(name)
            if ttl_ms != -2:  # it has expired meanwhile
                found.append(Key(name.decode(errors="replace"), ttl_ms, fences, kind == b"stream"))
    return found


async def be_fresh_process(job: Job) -> dict[str, Any]:
    """Flushes to Postgres, ends the leases of those that were killed, and reads everything twice."""
    async with job.open_saver() as opened:
        leases, _ = await asyncio.gather(
            _recovered(opened),
            asyncio.sleep(job.fence_seconds + 0.5),  # the fences of those that were killed
        )
        if job.redis_durability == "replica":  # which brings back journals that killed workers had seen to
            await inspect(opened.saver).ended_journals.remove(list({thread for thread, _ in ALL_PLACES}))

        async def read(place: Place) -> str:
            return outline(await opened.saver.aget_tuple(config_of(place)))

        first = [await read(place) for place in ALL_PLACES]
        before = opened.stats()
        second, missed = [], []
        for place in ALL_PLACES:
            second.append(await read(place))
            after = opened.stats()
            if after and after["hits"] == before["hits"]:
                missed.append(repr(place))
            before = after
        return {"first": first, "second": second, "missed": missed, "leases": leases}


async def _recovered(opened: Opened) -> list[str]:
    """Threads whose leases are left when there was time enough to end them."""
    if not hasattr(opened.saver, "aflush"):
        return []
    await opened.saver.aget_tuple(config_of(ALL_PLACES[0]))  # from now on it looks for leases
    await opened.saver.aflush()
    until = time.monotonic() + RECOVERY_SECONDS_MAX
    while True:
        async with opened.pool.connection() as connection:
            rows = await (await connection.execute(LEASES)).fetchall()
        if not rows or time.monotonic() > until:
            return [row["thread_id"] for row in rows]
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.stdout.write(json.dumps(asyncio.run(be_fresh_process(Job(**json.loads(sys.argv[1]))))))
