from __future__ import annotations

import asyncio

import pytest

from langgraph_checkpoint_cached.utils.room import NoRoom, Room


async def enter(room: Room, name: str, entered: list[str], size_bytes: int = 1) -> None:
    if not room.is_free:
        await room.wait()
    entered.append(name)
    room.take(size_bytes)


def room_for(count_max: int = 100, bytes_max: int = 100, seconds_max: float = 5.0) -> Room:
    return Room(count_max=count_max, bytes_max=bytes_max, seconds_max=seconds_max)


async def steps() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_callers_enter_in_order_as_room_is_given() -> None:
    room, entered = room_for(count_max=2), []  # type: ignore[var-annotated]
    tasks = [asyncio.ensure_future(enter(room, name, entered)) for name in "abcdef"]
    await steps()
    assert entered == ["a", "b"]
    room.give(1, 1)
    late = asyncio.ensure_future(enter(room, "g", entered))
    await steps()
    assert entered == ["a", "b", "c"]
    room.give(2, 2)
    await steps()
    assert entered == ["a", "b", "c", "d", "e"]
    room.give(2, 2)
    await asyncio.wait_for(asyncio.gather(*tasks, late), 5)
    assert entered == list("abcdefg")
    assert not room.is_free
    room.give(1, 1)
    assert room.is_free


async def test_bytes_fill_the_room() -> None:
    room, entered = room_for(bytes_max=10), []  # type: ignore[var-annotated]
    tasks = [
        asyncio.ensure_future(enter(room, name, entered, size))
        for name, size in zip("abc", (9, 50, 1), strict=True)
    ]
    await steps()
    assert entered == ["a", "b"], "there was room for some of the second"
    room.give(1, 9)
    await steps()
    assert entered == ["a", "b"]
    room.give(1, 50)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


@pytest.mark.parametrize("cancelled", ["b", "c", "d"])
async def test_cancelled_caller_takes_no_room_and_no_turn(cancelled: str) -> None:
    room, entered = room_for(count_max=1), []  # type: ignore[var-annotated]
    tasks = {name: asyncio.ensure_future(enter(room, name, entered)) for name in "abcd"}
    await steps()
    tasks[cancelled].cancel()
    await steps()
    for _ in range(3):
        room.give(1, 1)
        await steps()
    assert entered == [name for name in "abcd" if name != cancelled]
    assert room.is_free


async def test_caller_cancelled_as_room_is_given_passes_it_on() -> None:
    room, entered = room_for(count_max=1), []  # type: ignore[var-annotated]
    tasks = {name: asyncio.ensure_future(enter(room, name, entered)) for name in "abc"}
    await steps()
    room.give(1, 1)
    tasks["b"].cancel()
    await steps()
    assert entered == ["a", "c"]


async def test_caller_waits_only_while_something_moves() -> None:
    room, entered = room_for(count_max=1, seconds_max=0.2), []  # type: ignore[var-annotated]
    tasks = [asyncio.ensure_future(enter(room, name, entered)) for name in "abcd"]
    for _ in range(2):
        await asyncio.sleep(0.15)
        room.give(1, 1)
    answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert entered == ["a", "b", "c"]
    assert [type(answer) for answer in answers] == [type(None)] * 3 + [NoRoom]
