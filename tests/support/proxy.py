"""A TCP proxy in front of a server, to break the network of a test in the ways that networks break.

The idea is psycopg's `tests/fix_proxy.py`.
"""

from __future__ import annotations

import asyncio
import math
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
    - `lose`: connections stay open, but nothing passes on them for good, as when a firewall has forgotten them;
      new ones are welcome;
    - `mute`: what clients say passes, what the server answers does not, until `hear`. With `cut` after it,
      clients cannot know whether what they asked for was done.

    Nothing is lost while deaf or mute: it is held, as by a network that stalls, and passes after `hear`.

    Args:
        target_url: Server.
        delay_seconds: Time that all that passes takes, in either direction, the opening of a connection included.
        bytes_per_second: Rate that all connections share, in each direction.
    """

    def __init__(self, target_url: str, *, delay_seconds: float = 0, bytes_per_second: float = math.inf) -> None:
        target = urlsplit(target_url)
        default_port = 6379 if target.scheme.startswith("redis") else 5432
        self.target = (target.hostname or LOCALHOST, target.port or default_port)
        self.port = free_port()
        credentials = f"{target.netloc.rpartition('@')[0]}@" if "@" in target.netloc else ""
        self.url = target._replace(netloc=f"{credentials}{LOCALHOST}:{self.port}").geturl()
        self._delay_seconds, self._bytes_per_second = delay_seconds, bytes_per_second
        self._free_at = {True: 0.0, False: 0.0}  # requests and replies: when the network has passed what it has
        self.accepted = 0  # connections, since the proxy was made
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._pumps: dict[asyncio.Task[None], list[asyncio.Task[None]]] = {}
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

    def lose(self) -> None:
        self._call(self._lose())

    def deafen(self) -> None:
        self._call(self._let_pass(requests=False, replies=False))

    def mute(self) -> None:
        self._call(self._let_pass(requests=True, replies=False))

    def lead_to(self, target_url: str) -> None:
        """Have new connections go to another server, as a name or a virtual address does after a failover."""
        target = urlsplit(target_url)
        self.target = (target.hostname or LOCALHOST, target.port or self.target[1])

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

    async def _lose(self) -> None:
        for pumps in self._pumps.values():
            for pump in pumps:
                pump.cancel()

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
            await asyncio.sleep(2 * self._delay_seconds)
            server_reader, server_writer = await asyncio.open_connection(*self.target)
            writers.append(server_writer)
            pumps = self._pumps[task] = [
                asyncio.ensure_future(self._pump(client_reader, server_writer, requests=True)),
                asyncio.ensure_future(self._pump(server_reader, client_writer, requests=False)),
            ]
            try:
                done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if any(pump.cancelled() for pump in done):  # lost
                    await asyncio.Event().wait()
            finally:
                del self._pumps[task]
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

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        """Forward until one of the two ends, holding what comes while nothing passes."""
        passes = self._requests if requests else self._replies
        if not self._delay_seconds and self._bytes_per_second == math.inf:
            while chunk := await reader.read(CHUNK_BYTES):
                await passes.wait()
                writer.write(chunk)
                await writer.drain()
            return
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arriving = asyncio.ensure_future(_arrive(under_way, writer, passes))
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                free_at = max(self._free_at[requests], self._loop.time()) + len(chunk) / self._bytes_per_second
                self._free_at[requests] = free_at
                under_way.put_nowait((free_at + self._delay_seconds, chunk))
                await asyncio.sleep(free_at - self._loop.time())
            under_way.put_nowait((0.0, b""))
            await arriving
        finally:
            arriving.cancel()


async def _arrive(
    under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, passes: asyncio.Event
) -> None:
    while (arrival := await under_way.get())[1]:
        await asyncio.sleep(arrival[0] - asyncio.get_running_loop().time())
        await passes.wait()
        writer.write(arrival[1])
        await writer.drain()
