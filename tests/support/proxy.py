"""A TCP proxy in front of a server, to break the network of a test in the ways that networks break.

The idea is psycopg's `tests/fix_proxy.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, free_port

T = TypeVar("T")

CALL_TIMEOUT_SECONDS = 10.0
CHUNK_BYTES = 64 * 1024


class Proxy:
    """Forwards connections to the server of `target_url`; clients use `url`. It starts with the context.

    Its methods may be called from any thread and return when what they do is done:

    - `stop`: connections are dropped and new ones refused, until `start`;
    - `cut`: connections are dropped, new ones are welcome;
    - `deafen`: connections are accepted and stay open, but nothing passes, until `hear`;
    - `mute`: what clients say passes, what the server answers does not, until `hear`. With `cut` after it,
      clients cannot know whether what they asked for was done.

    Nothing is lost while deaf or mute: it is held, as by a network that stalls, and passes after `hear`.
    """

    def __init__(self, target_url: str) -> None:
        target = urlsplit(target_url)
        default_port = 6379 if target.scheme.startswith("redis") else 5432
        self.target = (target.hostname or LOCALHOST, target.port or default_port)
        self.port = free_port()
        credentials = f"{target.netloc.rpartition('@')[0]}@" if "@" in target.netloc else ""
        self.url = target._replace(netloc=f"{credentials}{LOCALHOST}:{self.port}").geturl()
        self.accepted = 0  # connections, since the proxy was made
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._listener: asyncio.Server | None = None

    @property
    def open(self) -> int:
        """Number of clients' connections that there are now."""
        return len(self._connections)

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        self._call(self._stop())

    def cut(self) -> None:
        self._call(self._cut())

    def deafen(self) -> None:
        self._call(self._let_pass(requests=False, replies=False))

    def mute(self) -> None:
        self._call(self._let_pass(requests=True, replies=False))

    def hear(self) -> None:
        self._call(self._let_pass(requests=True, replies=True))

    def __enter__(self) -> Proxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._requests, self._replies = asyncio.Event(), asyncio.Event()
        self.hear()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_SECONDS)
        self._loop.close()

    def _call(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_SECONDS)

    async def _start(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, LOCALHOST, self.port)

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._cut()

    async def _cut(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _let_pass(self, *, requests: bool, replies: bool) -> None:
        for event, passes in ((self._requests, requests), (self._replies, replies)):
            if passes:
                event.set()
            else:
                event.clear()

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        if self._listener is None:  # accepted a moment before `stop`
            client_writer.transport.abort()
            return
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [client_writer]
        try:
            await self._requests.wait()
            server_reader, server_writer = await asyncio.open_connection(*self.target)
            writers.append(server_writer)
            pumps = [
                asyncio.ensure_future(_pump(client_reader, server_writer, self._requests)),
                asyncio.ensure_future(_pump(server_reader, client_writer, self._replies)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):  # no server behind, or `cut`
            for writer in writers:
                writer.transport.abort()
        finally:
            del self._connections[task]
            for writer in writers:
                writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
    """Forward until one of the two ends, holding what comes while nothing `passes`."""
    while chunk := await reader.read(CHUNK_BYTES):
        await passes.wait()
        writer.write(chunk)
        await writer.drain()
