"""TCP proxies of one event loop, one for each worker and server, to break the network between just those two."""

from __future__ import annotations

import asyncio
from typing import Literal

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, free_port

Direction = Literal["requests", "replies"]

LOST_SECONDS_MAX = 20.0
"""Time after which connections that went silent are dropped after all, lest the server runs out of them."""


class Gate:
    """Forwards connections to a local port; clients use `port`.

    - `shut`: connections are dropped, new ones as soon as they are made;
    - `deafen`: connections stay and are made, but nothing passes; it is held, and passes after `open`;
    - `mute`: the same for replies only: requests pass;
    - `cut`: connections are dropped, new ones are welcome;
    - `lose`: nothing passes any more on the connections that there are, and they stay; new ones are welcome;
    - `drop_after`: the connection on which that many more bytes have passed is dropped, in the midst of them.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.target_port = target_port
        self.passes, self.is_mute, self.welcome = True, False, True
        self.budget: dict[Direction, int | None] = {"requests": None, "replies": None}
        self.sides: set[_Side] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, "requests"), LOCALHOST, self.port)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.shut()

    def open(self) -> None:
        self.passes = self.welcome = True
        self.is_mute = False
        self.budget = {"requests": None, "replies": None}
        for side in list(self.sides):
            side.flow()

    def shut(self) -> None:
        self.welcome = False
        self.cut()

    def cut(self) -> None:
        for side in list(self.sides):
            side.abort()

    def deafen(self) -> None:
        self.passes = False
        for side in list(self.sides):
            side.flow()

    def lose(self) -> None:
        for side in list(self.sides):
            side.is_lost = True
            side.flow()
            asyncio.get_running_loop().call_later(LOST_SECONDS_MAX, side.abort)

    def mute(self) -> None:
        self.is_mute = True
        for side in list(self.sides):
            side.flow()

    def drop_after(self, count: int, direction: Direction) -> None:
        self.budget[direction] = count

    def point_at(self, target_port: int) -> None:
        self.target_port = target_port
        self.cut()


class _Side(asyncio.Protocol):
    """One end of a connection: the client's, whose bytes are requests, or the server's."""

    def __init__(self, gate: Gate, direction: Direction) -> None:
        self._gate, self._direction = gate, direction
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.peer_is_full = self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if not self._gate.welcome:
            transport.abort()
            return
        self._gate.sides.add(self)
        if self._direction == "requests":
            transport.pause_reading()
            task = asyncio.ensure_future(self._connect())
            self._gate.tasks.add(task)
            task.add_done_callback(self._gate.tasks.discard)

    def data_received(self, data: bytes) -> None:
        assert self.peer is not None
        budget = self._gate.budget[self._direction]
        if budget is not None:
            self._gate.budget[self._direction] = budget - len(data)
            if len(data) > budget:
                self._gate.budget[self._direction] = None
                self.peer.write(data[:budget])
                self.abort()
                return
        self.peer.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate.sides.discard(self)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()  # what it has not sent yet still goes out

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.peer_is_full = True
            self.peer.flow()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.peer_is_full = False
            self.peer.flow()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def flow(self) -> None:
        """Reads on, or stops reading."""
        transport = self.transport
        if transport is None or transport.is_closing() or self.peer is None:
            return
        held = self._gate.is_mute and self._direction == "replies"
        wanted = self._gate.passes and not held and not self.peer_is_full and not self.is_lost
        if wanted and not transport.is_reading():
            transport.resume_reading()
        elif not wanted and transport.is_reading():
            transport.pause_reading()

    def abort(self) -> None:
        for side in (self, self.peer):
            if side is not None and side.transport is not None:
                side.transport.abort()

    async def _connect(self) -> None:
        assert self.transport is not None
        loop = asyncio.get_running_loop()
        try:
            _, peer = await loop.create_connection(
                lambda: _Side(self._gate, "replies"), LOCALHOST, self._gate.target_port
            )
        except OSError:
            self.transport.abort()
            return
        self.peer, peer.peer = peer, self
        if self.transport.is_closing():
            peer.abort()
        self.flow()
        peer.flow()
