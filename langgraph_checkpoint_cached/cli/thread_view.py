"""A thread and a namespace as Redis holds them, parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langgraph_checkpoint_cached.cli.components import Components
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis import fields
from langgraph_checkpoint_cached.stores.redis.entries import Hit
from langgraph_checkpoint_cached.stores.redis.keys import names_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua

INSPECT = Script(lua("server"), lua("inspect"))


@dataclass(frozen=True)
class FenceView:
    """A fence: a write, or a change of the whole thread, that is in flight.

    Attributes:
        token: Token of the fence.
        owner: Token of the saver that holds it.
        namespace: Namespace as it is named in keys; None for all of the thread.
        seconds_left: Time to its deadline. Below 0 a read removes it, if no transaction of its owner is left.
    """

    token: str
    owner: str
    namespace: str | None
    seconds_left: float


@dataclass(frozen=True)
class FillLeaseView:
    """A fill lease: a reader is loading the entry."""

    token: str
    seconds_left: float


@dataclass(frozen=True)
class ThreadView:
    """A thread and one of its namespaces, at one moment.

    Attributes:
        namespace: The namespace.
        generation: Generation of the thread.
        generation_is_current: Whether that is of the server's current epoch. If not, there is no entry.
        known_empty: Whether namespaces without a key are known to be empty.
        fences: Fences of the thread.
        hit: The entry, if its generation is current.
        checkpoint_id: Checkpoint of the entry; "" if the entry says that there is none, None without an entry.
        size_bytes: Size of the entry.
        life_seconds: Time until the entry expires.
        pending_writes: Number of pending writes of the entry's checkpoint.
        early_writes: Number of pending writes of later checkpoints, which are not stored yet.
        fill_lease: Fill lease of the entry.
    """

    namespace: Namespace
    generation: str | None
    generation_is_current: bool
    known_empty: bool
    fences: tuple[FenceView, ...]
    hit: Hit | None
    checkpoint_id: str | None
    size_bytes: int
    life_seconds: float | None
    pending_writes: int
    early_writes: int
    fill_lease: FillLeaseView | None

    @property
    def is_fenced(self) -> bool:
        """Return whether a fence keeps the entry from being served."""
        name = namespace_key("", self.namespace).rpartition(":")[2]
        return any(fence.namespace in (None, name) for fence in self.fences)


async def read_thread(components: Components, namespace: Namespace) -> ThreadView:
    """Return what Redis holds. Changes nothing. Raises `RedisUnavailable`."""
    prefix = components.options.prefix
    keys = (
        thread_key(prefix, namespace.thread_id),
        namespace_key(prefix, namespace),
        names_key(prefix, namespace.thread_id),
    )
    now, server_epoch, thread, _, _, entry, life = await components.run_script(INSPECT, keys)
    return _parse(namespace, now, server_epoch.decode(), _pairs(thread), _pairs(entry), life)


def _parse(
    namespace: Namespace,
    now_ms: int,
    server_epoch: str,
    thread: Mapping[bytes, bytes],
    entry: Mapping[bytes, bytes],
    ttl_ms: int,
) -> ThreadView:
    generation = thread.get(fields.GENERATION)
    current = generation is not None and generation.decode().startswith(f"{server_epoch}:")
    exists = current and entry.get(fields.GENERATION) == generation and fields.CHECKPOINT_ID in entry
    latest = entry[fields.CHECKPOINT_ID] if exists else None
    writes = [
        field.removeprefix(fields.WRITE).split(b"\0")[0] for field in entry if field.startswith(fields.WRITE)
    ]
    return ThreadView(
        namespace,
        generation.decode() if generation else None,
        current,
        known_empty=generation is not None and thread.get(fields.KNOWN_EMPTY, b"").endswith(b" " + generation),
        fences=tuple(
            _parse_fence(field, value, now_ms) for field, value in thread.items() if field.startswith(fields.FENCE)
        ),
        hit=Hit(entry) if exists else None,
        checkpoint_id=None if latest is None else latest.decode(errors="replace"),
        size_bytes=sum(len(field) + len(value) for field, value in entry.items()) if exists else 0,
        life_seconds=ttl_ms / 1000 if exists and ttl_ms >= 0 else None,
        pending_writes=0 if latest is None else writes.count(latest),
        # Those of earlier checkpoints belong to histories of DeltaChannels.
        early_writes=0 if latest is None else sum(checkpoint_id > latest for checkpoint_id in writes),
        fill_lease=_parse_fill_lease(entry.get(fields.FILL_LEASE), now_ms),
    )


def _parse_fence(field: bytes, value: bytes, now_ms: int) -> FenceView:
    deadline, _, rest = value.decode(errors="replace").partition(" ")
    owner, _, over = rest.partition(" ")
    left = (int(deadline) - now_ms) / 1000 if deadline.isdecimal() else 0.0
    return FenceView(
        field.removeprefix(fields.FENCE).decode(errors="replace"), owner, None if over == "*" else over, left
    )


def _parse_fill_lease(value: bytes | None, now_ms: int) -> FillLeaseView | None:
    deadline, _, rest = (value or b"").decode(errors="replace").partition(" ")
    if not deadline.isdecimal():
        return None
    return FillLeaseView(rest.rpartition(" ")[2], (int(deadline) - now_ms) / 1000)


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
