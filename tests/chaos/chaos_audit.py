"""The end of a run: what a fresh process, the stock saver and a scan of Redis find. The script is that process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from typing import Any

import redis
from chaos_end import End, Key
from chaos_history import Place
from chaos_savers import PREFIX, open_saver
from chaos_values import inspect
from chaos_worker import ALL_PLACES, GRAPH_THREADS, PLACES, Job, config_of
from chaos_world import World
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

AUDIT_SECONDS_MAX = 60.0


def outline(found: CheckpointTuple | None) -> str:
    """All of a checkpoint tuple, in a line."""
    if found is None:
        return "nothing"
    whole = json.dumps(list(found), sort_keys=True, default=repr)
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return f"{found.checkpoint['id']} with {len(found.pending_writes or ())} writes, {digest}"


async def audit(world: World) -> End:
    """The state of both tiers. The workers have ended, and fences are past their deadlines."""
    end = End()
    async with AsyncConnectionPool(
        world.postgres.url,
        open=False,
        min_size=1,
        max_size=1,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    ) as pool:
        stock = AsyncPostgresSaver(pool)
        for place in PLACES:
            end.rows[place] = [inspect(*place, found) async for found in stock.alist(config_of(place))]
        for place in ALL_PLACES:
            found = await stock.aget_tuple(config_of(place))
            end.latest[place] = outline(found)
            if place[0] in GRAPH_THREADS and found:
                end.answers[place[0]] = found.checkpoint["channel_values"]["answers"]
    await world.in_thread(_ask_fresh_process, world, end)
    end.keys = await world.in_thread(_keys, world)
    return end


def _ask_fresh_process(world: World, end: End) -> None:
    process = world.start_script("chaos_audit.py", world.job(0, "audit", direct=True))
    try:
        out, _ = process.communicate(timeout=AUDIT_SECONDS_MAX)
    finally:
        process.kill()
        process.wait()
    said = json.loads(out)
    end.first, end.second = (dict(zip(ALL_PLACES, said[name], strict=True)) for name in ("first", "second"))
    end.hits = said["hits"]


def _keys(world: World) -> list[Key]:
    found: list[Key] = []
    with redis.Redis(port=world.redis.master.port) as client:
        for name in client.scan_iter(match=f"{PREFIX}*", count=1000):
            fields = client.hkeys(name) if client.type(name) == b"hash" else []
            fences = [field.decode() for field in fields if field.startswith(b"f:")]
            life_ms = client.pttl(name)
            if life_ms != -2:  # it has expired meanwhile
                found.append(Key(name.decode(errors="replace"), life_ms, fences))
    return found


async def be_fresh_process(job: Job) -> dict[str, Any]:
    """Reads everything twice."""
    async with open_saver(job.saver, job.postgres_url, job.redis_url, job.fence_seconds) as opened:

        async def read(place: Place) -> str:
            return outline(await opened.saver.aget_tuple(config_of(place)))

        first = [await read(place) for place in ALL_PLACES]
        before = opened.stats()
        second = [await read(place) for place in ALL_PLACES]
        after = opened.stats()
        hits = after["hits"] - before["hits"] if after else None
        return {"first": first, "second": second, "hits": hits}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.stdout.write(json.dumps(asyncio.run(be_fresh_process(Job(**json.loads(sys.argv[1]))))))
