"""The two sides of the comparison, and how a history is applied to both."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver
from langgraph_checkpoint_cached.arguments import Mode
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.postgres.thread_maintenance import delta_threads
from langgraph_checkpoint_cached.stores.redis.keys import namespace_key, thread_key
from tests.equivalence.chains import Chain, value_of
from tests.equivalence.histories import (
    PODS,
    SLOTS,
    Damage,
    Delete,
    DeltaHistory,
    Early,
    Evict,
    History,
    Prune,
    Put,
    PutWrites,
    Read,
    Rewrite,
    Search,
    Step,
    Superstep,
    Turn,
)
from tests.equivalence.same import difference

ROWS = {
    "checkpoints": "thread_id, checkpoint_ns, checkpoint_id",
    "checkpoint_blobs": "thread_id, checkpoint_ns, channel, version",
    "checkpoint_writes": "thread_id, checkpoint_ns, checkpoint_id, task_id, idx",
}
"""The upstream saver's tables and their primary keys."""

Saver = BaseCheckpointSaver[str]
Call = Callable[[Saver], Awaitable[Any]]


@dataclass(repr=False)
class Sides:
    """The upstream saver on one database; ours, as several pods with one Redis, on another."""

    upstream: AsyncPostgresSaver
    pods: Sequence[CachedPostgresSaver]
    stock_pool: AsyncConnectionPool[Any]
    cached_pool: AsyncConnectionPool[Any]
    redis: Redis
    prefix: str
    counts: Counter[str] = field(default_factory=Counter, repr=False)
    names: Any = field(default_factory=count, repr=False)

    def stats(self) -> Counter[str]:
        """The counters of all pods together."""
        return sum((Counter(pod.stats()) for pod in self.pods), Counter())

    async def forget(self, *namespaces: Namespace) -> None:
        """Removes every key of these from Redis."""
        keys = {namespace_key(self.prefix, n) for n in namespaces}
        keys |= {thread_key(self.prefix, n.thread_id) for n in namespaces}
        await self.redis.delete(*keys)

    async def forget_values(self, version: str) -> None:
        """Removes the values of one version from the upstream saver's database, where no checkpoint names them."""
        async with self.stock_pool.connection() as conn:
            await conn.execute("delete from checkpoint_blobs where version = %s", (version,))

    async def check_rows(self, threads: Sequence[str]) -> None:
        """Fails unless both databases have the same rows of these threads, byte for byte."""
        for thread_id in threads:
            await self.pods[-1].aflush(thread_id)
        upstream, cached = await asyncio.gather(
            rows_of(self.stock_pool, threads), rows_of(self.cached_pool, threads)
        )
        for table in ROWS:
            missing = [row for row in upstream[table] if row not in cached[table]]
            surplus = [row for row in cached[table] if row not in upstream[table]]
            assert upstream[table] == cached[table], (
                f"{table}: only upstream has {missing}, only ours has {surplus}"
            )


@asynccontextmanager
async def open_sides(
    stock_url: str, cached_url: str, redis_url: str, prefix: str, **options: Any
) -> AsyncIterator[Sides]:
    """Both sides, on databases that have the tables."""
    async with AsyncExitStack() as stack:
        stock_pool, *pools = [
            await stack.enter_async_context(_pool(url)) for url in (stock_url, *[cached_url] * PODS)
        ]
        clients = [
            await stack.enter_async_context(Redis.from_url(redis_url, single_connection_client=False))
            for _ in range(PODS)
        ]
        serde = options.get("serde")
        modes: Sequence[Mode] = options.get("modes", ("write_through",))
        pods = [
            CachedPostgresSaver(
                client, AsyncPostgresSaver(pool, serde=serde), prefix=prefix, redis_timeout=5, mode=mode
            )
            for client, pool, mode in zip(clients, pools, cycle(modes), strict=False)
        ]
        for pod in pods:
            stack.push_async_callback(pod.aclose)
        upstream = AsyncPostgresSaver(stock_pool, serde=serde)
        yield Sides(upstream, pods, stock_pool, pools[0], clients[0], prefix)


def _pool(url: str) -> AsyncConnectionPool[Any]:
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    return AsyncConnectionPool(url, open=False, min_size=1, max_size=5, kwargs=options)


async def rows_of(pool: AsyncConnectionPool[Any], threads: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row of these threads, by table; JSONB as its text."""
    found = {}
    async with pool.connection() as conn, conn.cursor(row_factory=tuple_row) as cur:
        set_json_loads(_as_text, cur)
        for table, key in ROWS.items():
            await cur.execute(f"SELECT * FROM {table} WHERE thread_id = ANY(%s) ORDER BY {key}", (list(threads),))
            found[table] = await cur.fetchall()
    return found


def _as_text(json: str | bytes) -> str:
    return json if isinstance(json, str) else bytes(json).decode()


async def outcome(work: Awaitable[Any]) -> tuple[str, Any]:
    """Return the outcome: an answer, or an error's exact type."""
    try:
        return "answered", await work
    except Exception as exc:  # noqa: BLE001 - any error is an outcome, to be compared
        return "raised", exc


def check_outcomes(upstream: tuple[str, Any], cached: tuple[str, Any], what: object) -> None:
    """Fails unless both are the same answer or the same type of error."""
    if upstream[0] == cached[0] == "raised":
        # Ours may say more, as a subclass: its ArgumentError is a ValueError.
        assert isinstance(cached[1], type(upstream[1])), (
            f"{what}: upstream raised {upstream[1]!r}, ours {cached[1]!r}"
        )
        return
    assert upstream[0] == cached[0], (
        f"{what}: upstream {upstream[0]} {upstream[1]!r}, ours {cached[0]} {cached[1]!r}"
    )
    found = difference(upstream[1], cached[1])
    assert found is None, f"{what}: upstream and ours differ: {found}"


@dataclass(frozen=True)
class End:
    """A comparison at the end of a history."""

    how: str


class World:
    """One history under way."""

    def __init__(self, sides: Sides, history: History) -> None:
        self.sides, self.number = sides, next(sides.names)
        self.chains = [
            Chain(
                Namespace(f"{self.number}/{thread}", ns),
                lambda version: sides.upstream.get_next_version(version, None),
            )
            for thread, ns in history.places
        ]
        self.threads = sorted({chain.namespace.thread_id for chain in self.chains})

    # -- the same on both sides --------------------------------------------------------------------------------

    async def compare(self, pod: int, call: Call, what: object) -> Any:
        """Calls the upstream saver and a pod; fails unless both answer alike. Returns the answer, or None."""
        upstream, cached = await asyncio.gather(
            outcome(call(self.sides.upstream)), outcome(call(self.sides.pods[pod]))
        )
        check_outcomes(upstream, cached, what)
        self.sides.counts[f"{type(what).__name__} {upstream[0]}"] += 1
        return upstream[1] if upstream[0] == "answered" else None

    async def read(self, chain: Chain, pod: int, what: object) -> CheckpointTuple | None:
        return await self.compare(pod, lambda saver: saver.aget_tuple(chain.config()), what)  # type: ignore[no-any-return]

    async def finish(self) -> None:
        """Read with the cache as it is, emptied, and filled again: all as upstream."""
        touched = [chain for chain in self.chains if chain.touched]
        for chain in touched:
            for pod in range(PODS):
                await self.read(chain, pod, End("warm"))
            for point in chain.puts[-3:]:
                config = chain.config(point.id)
                await self.compare(0, lambda saver, c=config: saver.aget_tuple(c), End("by id"))
        await self.sides.forget(*(chain.namespace for chain in self.chains))
        for chain in touched:
            for pod in range(PODS):
                await self.read(chain, pod, End("cold" if pod == 0 else "filled"))
        for thread in sorted({chain.namespace.thread_id for chain in touched}):
            config = {"configurable": {"thread_id": thread}}
            await self.compare(0, lambda saver, c=config: _listed(saver.alist(c)), End("all"))
        await self.sides.check_rows(self.threads)
        await self.sides.forget(*(chain.namespace for chain in self.chains))

    # -- steps -------------------------------------------------------------------------------------------------

    async def apply(self, step: Step) -> None:
        """Takes one step on both sides."""
        self.sides.counts["steps"] += 1
        await getattr(self, f"_{type(step).__name__.lower()}")(step)

    async def _put(self, step: Put) -> None:
        chain = self._chain(step.place)
        if step.look:
            await self.read(chain, step.pod, step)
        parent = None if step.parent is None else chain.back(step.parent)
        point, config, checkpoint, new_versions = chain.plan(step.changes, parent, step.slot, step.format)
        config["configurable"] = {**step.configurable, **config["configurable"]}
        config["metadata"] = step.config_metadata
        metadata: Any = {**step.metadata, "history": self.number}
        self.sides.counts[f"Put {step.slot if step.slot in SLOTS else 'text id'}"] += 1
        done = await self.compare(
            step.pod, lambda saver: saver.aput(config, checkpoint, metadata, new_versions), step
        )
        if done is not None:
            chain.puts.append(point)
        if step.look:
            await self.read(chain, 1 - step.pod, step)

    async def _putwrites(self, step: PutWrites) -> None:
        chain = self._chain(step.place)
        config = chain.config(chain.id_of(step.target))
        values = [(channel, value_of(name)) for channel, name in step.writes]
        await self.compare(
            step.pod, lambda saver: saver.aput_writes(config, values, f"task-{step.task}", step.path), step
        )
        if step.look:
            await self.read(chain, 1 - step.pod, step)

    async def _early(self, step: Early) -> None:
        chain = self._chain(step.place)
        before = chain.back(0)
        point, config, checkpoint, new_versions = chain.plan(step.changes, before, "reserved", 4)
        writes = [(channel, value_of(name)) for channel, name in step.writes]
        own = chain.config(point.id)
        await self.compare(step.pod, lambda saver: saver.aput_writes(own, writes, "task"), step)
        if step.forget:
            await self.sides.forget(chain.namespace)
        if step.reader:
            await self.read(chain, 1 - step.pod, step)
        metadata: Any = {"history": self.number}
        await self.compare(step.pod, lambda saver: saver.aput(config, checkpoint, metadata, new_versions), step)
        chain.puts.append(point)
        await self.read(chain, 1 - step.pod, step)

    async def _rewrite(self, step: Rewrite) -> None:
        chain = self._chain(step.place)
        config = chain.config(chain.id_of(0))
        for path, writes in (("", step.first), (step.second_path, step.second)):
            values = [(channel, value_of(name)) for channel, name in writes]
            await self.read(chain, step.pod, step)
            await self.compare(
                step.pod, lambda saver, v=values, p=path: saver.aput_writes(config, v, "task", p), step
            )
        await self.read(chain, 1 - step.pod, step)

    async def _turn(self, step: Turn) -> None:
        chain = self._chain(step.place)
        await self.read(chain, step.pod, step)
        for number, superstep in enumerate(step.supersteps):
            await self._superstep(chain, step.pod, number, superstep)
        await self.read(chain, step.pod, step)

    async def _superstep(self, chain: Chain, pod: int, number: int, superstep: Superstep) -> None:
        """On our side all at once, as a run does in the background, and perhaps somebody reads meanwhile."""
        sides, latest = self.sides, chain.config()
        point, config, checkpoint, new_versions = chain.plan(superstep.changes, chain.back(0), "new", 4)
        metadata: Any = {"source": "loop", "step": number, "parents": {}, "history": self.number}
        own = chain.config(point.id)
        writes = [(channel, value_of(name)) for channel, name in superstep.writes]

        def calls(saver: Saver, second: Saver) -> list[Coroutine[Any, Any, Any]]:
            put = saver.aput(config, checkpoint, metadata, new_versions)
            tasks = [
                (second if task else saver).aput_writes(own, writes, f"task-{task}", f"~__pregel_pull, {task}")
                for task in range(superstep.tasks)
            ]
            return [*tasks[:1], put, *tasks[1:]]

        if superstep.forget:
            await sides.forget(chain.namespace)
        before = await outcome(sides.upstream.aget_tuple(latest))
        upstream = [await outcome(call) for call in calls(sides.upstream, sides.upstream)]
        after = await outcome(sides.upstream.aget_tuple(latest))
        second = sides.pods[1 - pod] if superstep.split else sides.pods[pod]
        readers = [p.aget_tuple(latest) for p in (sides.pods if superstep.reader else ())]
        cached = [outcome(call) for call in (*readers, *calls(sides.pods[pod], second))]
        answers = await asyncio.gather(*cached)
        for seen in answers[: len(readers)]:
            assert _kind(seen) in (_kind(before), _kind(after)), f"{superstep}: a read beside it gave {seen[1]!r}"
        for theirs, ours in zip(upstream, answers[len(readers) :], strict=True):
            check_outcomes(theirs, ours, superstep)
        sides.counts["Superstep"] += 1
        if upstream[min(superstep.tasks, 1)][0] == "answered":
            chain.puts.append(point)

    async def _read(self, step: Read) -> None:
        chain = self._chain(step.place)
        config = chain.config(chain.id_of(step.which))
        if step.whole:
            await self.compare(step.pod, lambda saver: saver.aget_tuple(config), step)
        else:
            await self.compare(step.pod, lambda saver: saver.aget(config), step)

    async def _search(self, step: Search) -> None:
        chain = self._chain(step.place or 0)
        config: dict[str, Any] | None = chain.config(chain.id_of(step.checkpoint))
        wanted, limit = step.filter, step.limit
        if not step.namespace:
            del config["configurable"]["checkpoint_ns"]  # type: ignore[index]
        if step.place is None:  # all threads of the database, and so only those of this history
            config, wanted = None, {**(wanted or {}), "history": self.number}
        if step.place is None or not step.namespace:
            limit = None  # which of two equal ids comes first is for Postgres to choose
        before = None if step.before is None else chain.config(chain.id_of(step.before))
        await self.compare(
            step.pod, lambda saver: _listed(saver.alist(config, filter=wanted, before=before, limit=limit)), step
        )

    async def _deltahistory(self, step: DeltaHistory) -> None:
        chain = self._chain(step.place)
        config = chain.config(chain.id_of(step.which))
        await self.compare(
            step.pod, lambda saver: saver.aget_delta_channel_history(config=config, channels=step.channels), step
        )

    async def _delete(self, step: Delete) -> None:
        thread_id = self.chains[step.place].namespace.thread_id
        await self.compare(step.pod, lambda saver: saver.adelete_thread(thread_id), step)

    async def _prune(self, step: Prune) -> None:
        threads = [self.chains[place].namespace.thread_id for place in step.places]
        if step.strategy == "keep_latest":  # the upstream saver refuses these
            deltas = await delta_threads(self.sides.upstream, threads)
            threads = [thread_id for thread_id in threads if thread_id not in deltas]
        await self.compare(step.pod, lambda saver: saver.aprune(threads, strategy=step.strategy), step)

    async def _evict(self, step: Evict) -> None:
        namespace, prefix = self.chains[step.place].namespace, self.sides.prefix
        if step.what == "all":
            await self.sides.forget(*(chain.namespace for chain in self.chains))
        if step.what in ("entry", "both"):
            await self.sides.redis.delete(namespace_key(prefix, namespace))
        if step.what in ("thread", "both"):
            await self.sides.redis.delete(thread_key(prefix, namespace.thread_id))

    async def _damage(self, step: Damage) -> None:
        chain = self._chain(step.place)
        await self.read(chain, step.pod, step)  # so that there is something to damage
        key = namespace_key(self.sides.prefix, chain.namespace)
        for name, value in sorted((await self.sides.redis.hgetall(key)).items()):
            if value and name.startswith(step.part.encode()):
                position = step.position % len(value)
                changed = value[:position] + bytes([step.byte]) + value[position + 1 :]
                await self.sides.redis.hset(key, name, changed)
                self.sides.counts["damaged"] += changed != value
                return

    def _chain(self, place: int) -> Chain:
        self.chains[place].touched = True
        return self.chains[place]


async def _listed(found: AsyncIterator[CheckpointTuple]) -> list[CheckpointTuple]:
    """The items in the order they came, those with equal ids by name."""
    items = [item async for item in found]
    ids = [item.config["configurable"]["checkpoint_id"] for item in items]
    return sorted(items, key=lambda item: (ids.index(item.config["configurable"]["checkpoint_id"]), _name(item)))


def _kind(seen: tuple[str, Any]) -> Any:
    """The checkpoint that was read, or the type of the error."""
    if isinstance(seen[1], CheckpointTuple):
        return seen[1].config["configurable"]["checkpoint_id"]
    return type(seen[1])


def _name(item: CheckpointTuple) -> tuple[str, str]:
    configurable = item.config["configurable"]
    return configurable["thread_id"], configurable["checkpoint_ns"]


async def run(sides: Sides, history: History) -> None:
    """Applies a history to both sides and fails where they differ."""
    world = World(sides, history)
    for step in history.steps:
        await world.apply(step)
    await world.finish()
    sides.counts["histories"] += 1
