"""Checkpoints of formats before 4, whose pending sends are their parent's writes: hits, and as upstream reads."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6

from tests.support.agreement import Tiers, new_checkpoint, on_thread

pytestmark = pytest.mark.integration

TASKS = "__pregel_tasks"
LATEST = on_thread("t")


async def put_old(tiers: Tiers, checkpoint_format: int, sends: int = 2) -> tuple[Any, Any]:
    """Store a parent with pending sends, and its child, as an older release did. Return their configs."""
    config, configs = on_thread("t", checkpoint_ns=""), []
    for number in range(2):
        versions: Any = {"a": number + 1, "b": number + 2}
        checkpoint = new_checkpoint(
            v=checkpoint_format, id=str(uuid6()), pending_sends=[], channel_versions=versions
        )
        checkpoint["channel_values"] = {"a": [number], "b": "text"}
        config = await tiers.upstream.aput(config, checkpoint, {"step": number}, versions)
        configs.append(config)
    for number in range(sends):
        writes = [(TASKS, {"send": number}), ("a", number), (TASKS, [number])]
        await tiers.upstream.aput_writes(configs[0], writes, f"task {number}", f"path {number}")
    return configs[0], configs[1]


async def assert_hits(tiers: Tiers, times: int, config: Any = LATEST) -> Any:
    """Read as the upstream saver, so many times from Redis, by two processes."""
    expected = await tiers.upstream.aget_tuple(config)
    hits = tiers.saver.stats()["hits"]
    for _ in range(times):
        assert await tiers.saver.aget_tuple(config) == expected
    assert tiers.saver.stats()["hits"] == hits + times
    assert await tiers.another_saver().aget_tuple(config) == expected
    return expected


@pytest.mark.parametrize("checkpoint_format", [1, 2, 3])
@pytest.mark.parametrize("sends", [0, 1, 3])
async def test_old_checkpoint_is_served_as_upstream_reads_it(
    tiers: Tiers, checkpoint_format: int, sends: int
) -> None:
    _, child = await put_old(tiers, checkpoint_format, sends)
    assert await tiers.saver.aget_tuple(LATEST) == await tiers.upstream.aget_tuple(LATEST)
    expected = await assert_hits(tiers, 2)
    assert (TASKS in expected.checkpoint["channel_values"]) == (sends > 0)
    await assert_hits(tiers, 1, child)
    await tiers.saver.aput_writes(child, [("a", "pending")], "task")
    await assert_hits(tiers, 1)
    version = tiers.saver.get_next_version("9", None)
    new = new_checkpoint(channel_values={"a": ["new"]}, channel_versions={"a": version})
    await tiers.saver.aput(child, new, {}, {"a": version})
    assert await tiers.saver.aget_tuple(LATEST) == await tiers.upstream.aget_tuple(LATEST)
    expected = await assert_hits(tiers, 1)
    assert TASKS not in expected.checkpoint["channel_values"]


@pytest.mark.parametrize("channel", [TASKS, "a"])
async def test_late_send_of_parent_is_seen(tiers: Tiers, channel: str) -> None:
    parent, _ = await put_old(tiers, 2)
    assert await tiers.saver.aget_tuple(LATEST) == await tiers.upstream.aget_tuple(LATEST)
    await assert_hits(tiers, 1)
    await tiers.saver.aput_writes(parent, [(channel, "late")], "late task")
    loads = tiers.saver.stats()["loads"]
    assert await tiers.saver.aget_tuple(LATEST) == await tiers.upstream.aget_tuple(LATEST)
    assert tiers.saver.stats()["loads"] == loads + (channel == TASKS)
    await assert_hits(tiers, 1)
