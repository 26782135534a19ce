"""What Redis holds of a thread and a namespace, taken apart. Pure, but for the look itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from langgraph_checkpoint_cached.cli.parts import Components
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.stores.redis.entries import Hit
from langgraph_checkpoint_cached.stores.redis.keys import names_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua

INSPECT = Script(lua("server"), lua("inspect"))


@dataclass(frozen=True)
class Fence:
    """A write, or a change of the whole thread, that is under way. A namespace of None means all of them."""

    token: str
    owner: str
    namespace: str | None
    """Its name as it stands in keys."""
    seconds_left: float
    """Below 0 when it is past its deadline: the next read removes it."""


@dataclass(frozen=True)
class FillLeaseView:
    """Somebody loads the entry."""

    token: str
    seconds_left: float


@dataclass(frozen=True)
class ThreadView:
    """A thread and one of its namespaces, at one moment."""

    namespace: Namespace
    generation: str | None
    generation_stands: bool
    """Whether it belongs to this run of the server. If not, there is no entry."""
    known_empty: bool
    """Whether namespaces without a key are known to be empty."""
    fences: tuple[Fence, ...]
    hit: Hit | None
    """The entry, if its generation stands."""
    checkpoint_id: str | None
    """None without an entry; "" for one that says that there is no checkpoint."""
    size_bytes: int
    life_seconds: float | None
    pending_writes: int
    early_writes: int
    """Of checkpoints that are not there yet."""
    fill_token: FillLeaseView | None

    @property
    def fenced(self) -> bool:
        """Whether a fence keeps the entry from being served."""
        name = namespace_key("", self.namespace).rpartition(":")[2]
        return any(fence.namespace in (None, name) for fence in self.fences)


async def look(parts: Components, namespace: Namespace) -> ThreadView:
    """Looks, and changes nothing. Raises `RedisUnavailable`."""
    prefix = parts.servers.prefix
    keys = (thread_key(prefix, namespace.thread_id), namespace_key(prefix, namespace))
    now, server_epoch, thread, _, _, entry, life = await parts.on_redis(
        INSPECT, (*keys, names_key(prefix, namespace.thread_id))
    )
    return _taken_apart(namespace, now, server_epoch.decode(), _fields(thread), _fields(entry), life)


def _taken_apart(
    namespace: Namespace,
    now_ms: int,
    server_epoch: str,
    thread: Mapping[bytes, bytes],
    entry: Mapping[bytes, bytes],
    ttl_ms: int,
) -> ThreadView:
    generation = thread.get(b"g")
    active = generation is not None and generation.decode().startswith(f"{server_epoch}:")
    there = active and entry.get(b"g") == generation and b"i" in entry
    checkpoint_id = entry[b"i"].decode(errors="replace") if there else None
    writes = [field[2:].split(b"\0")[0] for field in entry if field.startswith(b"w:")] if there else []
    return ThreadView(
        namespace,
        generation.decode() if generation else None,
        active,
        known_empty=generation is not None and thread.get(b"k", b"").endswith(b" " + generation),
        fences=tuple(_fence(field, value, now_ms) for field, value in thread.items() if field.startswith(b"f:")),
        hit=Hit(entry) if there else None,
        checkpoint_id=checkpoint_id,
        size_bytes=sum(len(field) + len(value) for field, value in entry.items()) if there else 0,
        life_seconds=ttl_ms / 1000 if there and ttl_ms >= 0 else None,
        pending_writes=writes.count(entry[b"i"]) if there else 0,
        early_writes=sum(of > entry[b"i"] for of in writes),  # older ones are of histories of DeltaChannels
        fill_token=_fill_lease(entry.get(b"t"), now_ms),
    )


def _fence(field: bytes, value: bytes, now_ms: int) -> Fence:
    deadline, _, rest = value.decode(errors="replace").partition(" ")
    owner, _, over = rest.partition(" ")
    left = (int(deadline) - now_ms) / 1000 if deadline.isdecimal() else 0.0
    return Fence(field[2:].decode(errors="replace"), owner, None if over == "*" else over, left)


def _fill_lease(value: bytes | None, now_ms: int) -> FillLeaseView | None:
    deadline, _, rest = (value or b"").decode(errors="replace").partition(" ")
    if not deadline.isdecimal():
        return None
    return FillLeaseView(rest.rpartition(" ")[2], (int(deadline) - now_ms) / 1000)


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
