"""Process that traces the package's own functions during single calls of a saver, for `paths.py`.

It prints one line of JSON. The package may come from another checkout, whatever its layout: only names that the
package exports are used.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

from benchmarks import chat

Call: TypeAlias = Callable[[], Awaitable[object]]
Event: TypeAlias = "tuple[str, str]"
"""File, relative to the package, and qualified name of a function that was entered."""

REPEATS = 5
IDLE_SECONDS = 0.3
"""Longer than a fence is retained and than writes are gathered, shorter than a lease is held unused."""
LEASE_TIMEOUT_SECONDS = 15.0
STATE = ["a conversation", "of two messages"]
WRITES = [("messages", "an answer")]


class Tracer:
    """Record every entry of a function of the package in this thread, resumed coroutines included."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._events: list[CodeType] = []

    async def trace(self, call: Call) -> list[Event]:
        """Run the call. Return what was entered before it returned, by its own task or by any other."""
        self._events = []
        sys.setprofile(self._record)
        try:
            await call()
        finally:
            sys.setprofile(None)
        return [(code.co_filename.removeprefix(self._root), qualified_name(code)) for code in self._events]

    def _record(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self._root):
            self._events.append(frame.f_code)


def qualified_name(code: CodeType) -> str:
    """Return the function's qualified name, or before Python 3.11 its name and line."""
    return getattr(code, "co_qualname", None) or f"{code.co_name}:{code.co_firstlineno}"


class Thread:
    """A thread that is written to, and calls on it. Only calls that return themselves are timed or traced."""

    def __init__(self, saver: chat.Saver) -> None:
        self._saver, self._thread_id = saver, uuid.uuid4().hex
        self._before: Any = None

    def put(self) -> Call:
        """Return a call that stores a checkpoint after the previous one, with one changed channel."""
        checkpoint, metadata, versions = chat.checkpoint(self._saver, STATE, self._before)  # type: ignore[arg-type]
        config = chat.thread(self._thread_id, self._before["id"] if self._before else None)
        self._before = checkpoint
        return lambda: self._saver.aput(config, checkpoint, metadata, versions)

    def put_writes(self) -> Call:
        """Return a call that stores pending writes of a new task at the latest checkpoint."""
        config, task_id = chat.thread(self._thread_id, self._before["id"]), str(uuid.uuid4())
        return lambda: self._saver.aput_writes(config, WRITES, task_id)

    def get(self) -> Call:
        """Return a call that reads the latest checkpoint."""
        return lambda: self._saver.aget_tuple(chat.thread(self._thread_id))


async def trace_mode(mode: str, place: dict[str, str]) -> dict[str, list[Event]]:
    """Return the shortest trace of each call, of some repeats on a warm thread."""
    import langgraph_checkpoint_cached as package

    tracer = Tracer(Path(str(package.__file__)).parent)
    opening: Any = package.CachedPostgresSaver.from_conn_string
    async with opening(place["postgres_uri"], place["redis_url"], mode=mode) as saver:
        thread = Thread(saver)
        await thread.get()()
        await _warm_up(saver, thread, leased=mode == "write_behind")
        calls = {"aput": thread.put, "aget_tuple, hit": thread.get, "aput_writes": thread.put_writes}
        traced: dict[str, list[Event]] = {}
        for name, prepare in calls.items():
            traces = []
            for _ in range(REPEATS):
                before, call = saver.stats(), prepare()
                await asyncio.sleep(IDLE_SECONDS)  # what the previous call has left to do is done, and not traced
                traces.append(await tracer.trace(call))
                await _check(saver, thread, mode, before)
            traced[name] = min(traces[1:], key=len)
        return traced


async def _warm_up(saver: Any, thread: Thread, *, leased: bool) -> None:
    """Call everything a few times, until write-behind holds the thread's lease."""
    deadline = time.monotonic() + LEASE_TIMEOUT_SECONDS
    appends = 0.0
    while True:
        for _ in range(5):
            await thread.put()()
            await thread.put_writes()()
            await thread.get()()
        await thread.put()()  # without pending writes
        appends, before = saver.stats()["appends"], appends
        if not leased or appends - before > 10:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("write-behind did not get a lease")
        await asyncio.sleep(IDLE_SECONDS)


async def _check(saver: Any, thread: Thread, mode: str, before: dict[str, float]) -> None:
    """Raise RuntimeError if a call did not take the path that is to be traced."""
    reads = saver.stats()["hits"] - before["hits"]
    await thread.get()()
    after = saver.stats()
    if after["hits"] - before["hits"] != reads + 1:
        raise RuntimeError(f"mode={mode!r}: a read after the traced call was no hit")
    if mode == "write_behind" and after["appends"] + reads == before["appends"]:
        raise RuntimeError("write-behind did not append what was written")


async def trace_all(place: dict[str, str]) -> dict[str, Any]:
    """Trace both modes, on tables that are there already."""
    from langgraph_checkpoint_cached import CachedPostgresSaver

    async with CachedPostgresSaver.from_conn_string(place["postgres_uri"], place["redis_url"]) as saver:
        await saver.setup()
    return {mode: await trace_mode(mode, place) for mode in ("write_through", "write_behind")}


if __name__ == "__main__":
    checkout, place = sys.argv[1], json.loads(sys.argv[2])
    sys.path.insert(0, checkout)
    print(json.dumps(asyncio.run(trace_all(place))))
