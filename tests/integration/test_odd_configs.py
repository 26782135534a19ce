"""Odd configs and arguments: where the upstream saver answers, the same answer; where it raises, an error too."""

from __future__ import annotations

import asyncio
from collections import UserDict
from collections.abc import Awaitable, Callable
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest

from tests.support.agreement import Tiers, new_checkpoint, on_thread

pytestmark = pytest.mark.integration


class Name(str, Enum):
    T = "other"


class Text(str):
    """A text of a class of its own, as numpy has one."""


ROOT: Any = {"thread_id": "t", "checkpoint_ns": ""}
CONFIGURABLES: list[Any] = [
    *({"thread_id": id_} for id_ in ("t", "none", "", None, 5, b"t", Text("t"), Name.T, "\0", "\ud800")),
    *({"thread_id": "t", "checkpoint_ns": ns} for ns in ("", "inner", None, "none", 5, Text("inner"), False)),
    *({**ROOT, "checkpoint_id": id_} for id_ in (None, "", "none", 5, 0, False, Text("none"), "FIRST", "\0")),
    {"checkpoint_ns": ""},
    {},
    None,
    UserDict(ROOT),
    MappingProxyType(ROOT),
    {**ROOT, "thread_ts": "none", "odd": object()},
]
CONFIGS: list[Any] = [
    *({"configurable": configurable} for configurable in CONFIGURABLES),
    *(
        None,
        {},
        [],
        "",
        "t",
        5,
        {"tags": []},
        MappingProxyType({"configurable": ROOT}),
        UserDict(configurable=ROOT),
    ),
]
LIMITS: list[Any] = ["1", 1.9, True, False, 0, -1, "x", None, [], 2**70, float("nan"), b"1", Text("1")]
FILTERS: list[Any] = [{}, [], "", 0, None, {"step": 1}, {"step": None}, [1], "x", {"a": {1}}, UserDict(step=1)]
Call = Callable[..., Awaitable[Any]]


async def list_all(saver: Any, config: Any, **options: Any) -> list[Any]:
    return [one async for one in saver.alist(config, **options)]


async def list_before(saver: Any, config: Any) -> list[Any]:
    return await list_all(saver, None, before=config)


async def get_histories(saver: Any, config: Any) -> list[Any]:
    return [await saver.aget_delta_channel_history(config=config, channels=names) for names in (["a"], [])]


async def aget_tuple(saver: Any, config: Any) -> Any:
    return await saver.aget_tuple(config)


async def aget(saver: Any, config: Any) -> Any:
    return await saver.aget(config)


async def prune(saver: Any, thread_ids: Any, strategy: Any) -> None:
    await saver.aprune(thread_ids, strategy=strategy)


async def get_tuple(saver: Any, config: Any) -> Any:
    return await asyncio.to_thread(saver.get_tuple, config)


async def list_sync(saver: Any, config: Any) -> list[Any]:
    return await asyncio.to_thread(lambda: list(saver.list(config)))


async def outcome(call: Call, saver: Any, *arguments: Any, **options: Any) -> Any:
    """Return the answer, or that it raised."""
    try:
        return await call(saver, *arguments, **options)
    except Exception:  # noqa: BLE001 - of which kind is not compared
        return "raised"


async def compare(tiers: Tiers, call: Call, *arguments: Any, **options: Any) -> None:
    expected = await outcome(call, tiers.upstream, *arguments, **options)
    for _ in range(2):
        ours = await outcome(call, tiers.saver, *arguments, **options)
        assert ours == expected, f"{call.__name__} {arguments} {options}"


@pytest.fixture
async def first_id(tiers: Tiers) -> str:
    """Two checkpoints in each of two namespaces, and one of another thread. Returns the id of the first one."""
    ids = []
    for thread_id, checkpoint_ns in (("t", ""), ("t", "inner"), ("T", "")):
        config = on_thread(thread_id, checkpoint_ns=checkpoint_ns)
        for step in range(2):
            version = tiers.saver.get_next_version(None, None)
            checkpoint = new_checkpoint(channel_values={"a": [step]}, channel_versions={"a": version})
            config = await tiers.saver.aput(config, checkpoint, {"step": step}, {"a": version})
            await tiers.saver.aput_writes(config, [("a", step)], "task")
            ids.append(checkpoint["id"])
        await tiers.saver.aget_tuple(on_thread(thread_id, checkpoint_ns=checkpoint_ns))
    return ids[0]


def named(config: Any, first_id: str) -> Any:
    """Put the first checkpoint's id where a config names it."""
    if isinstance(config, dict) and isinstance(found := config.get("configurable"), dict):
        return {**config, "configurable": {k: first_id if v == "FIRST" else v for k, v in found.items()}}
    return config


@pytest.mark.parametrize(
    "call",
    [aget_tuple, aget, list_all, list_before, get_histories, get_tuple, list_sync],
    ids=lambda c: c.__name__,
)
async def test_reads_of_odd_configs_are_as_upstream(tiers: Tiers, first_id: str, call: Call) -> None:
    for odd in CONFIGS:
        await compare(tiers, call, named(odd, first_id))


async def test_lists_with_odd_arguments_are_as_upstream(tiers: Tiers, first_id: str) -> None:
    for limit in LIMITS:
        await compare(tiers, list_all, None, limit=limit)
    for filter_ in FILTERS:
        await compare(tiers, list_all, {}, filter=filter_)


async def test_writes_to_odd_configs_are_as_upstream(tiers: Tiers) -> None:
    """Refuse only what nobody could read again: names that are no text, and writes of a checkpoint without one."""
    for number, odd in enumerate(CONFIGS):
        configurable = odd.get("configurable") if isinstance(odd, dict) else None
        if isinstance(configurable, dict) and not all(isinstance(name, str) for name in configurable.values()):
            continue
        new = new_checkpoint(id=f"{number:08x}-0000-6000-8000-000000000000")
        await compare_rows(tiers, "aput", odd, new, {}, {})
        if isinstance(configurable, dict) and configurable.get("checkpoint_id") != "":
            await compare_rows(tiers, "aput_writes", odd, [("a", number)], "task")
    await tiers.assert_reads_agree(on_thread("t"))


async def compare_rows(tiers: Tiers, name: str, *arguments: Any) -> None:
    expected = await outcome(lambda saver: getattr(saver, name)(*arguments), tiers.upstream)
    rows = await all_rows(tiers)
    assert await outcome(lambda saver: getattr(saver, name)(*arguments), tiers.saver) == expected, arguments
    assert await all_rows(tiers) == rows, arguments


async def all_rows(tiers: Tiers) -> list[Any]:
    async with tiers.pool.connection() as conn:
        found = []
        for table in ("checkpoints", "checkpoint_writes"):
            rows = await conn.execute(f"select * from {table}")  # type: ignore[arg-type]
            found.append(sorted(map(repr, await rows.fetchall())))
        return found


@pytest.mark.parametrize("thread_ids", [[5], ("t",), [], None, 5, "t", {"t": 1}, [Text("t")], [Name.T]])
@pytest.mark.parametrize("strategy", ["delete", "keep_latest", None, "DELETE"])
async def test_prunes_of_odd_threads_are_as_upstream(
    tiers: Tiers, first_id: str, thread_ids: Any, strategy: Any
) -> None:
    await compare(tiers, prune, thread_ids, strategy)
