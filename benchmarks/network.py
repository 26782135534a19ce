"""Simulated network: TCP proxies that delay what they pass on, and measurements of the delay."""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from benchmarks.place import Place
from langgraph_checkpoint_cached.demo.embedded import LOCALHOST

POSTGRES_ROUND_TRIP_MS = 2.0
REDIS_ROUND_TRIP_MS = 0.3
PINGS = 200
TRIES = 5
CLOSE_ENOUGH = 0.03
VOLUME_BYTES = 16 * 1024 * 1024
SOURCE = Path(__file__).with_name("delay.c")


class NoNetwork(Exception):
    """The proxies cannot be made here; the message says why."""


@dataclass(frozen=True)
class Measured:
    """Delay and rate of a proxy, as measured."""

    wanted_ms: float
    added_ms: float
    """Round trip through the proxy less a round trip without it."""
    megabytes_per_second: float


class Network:
    """Proxies to the servers of places."""

    def __init__(self, program: Path, stack: ExitStack) -> None:
        self._program, self._stack = program, stack
        self._ports: dict[tuple[str, int, float], int] = {}
        self._corrections: dict[float, float] = {}
        self.measured: dict[str, Measured] = {}
        for name, wanted in (("Postgres", POSTGRES_ROUND_TRIP_MS), ("Redis", REDIS_ROUND_TRIP_MS)):
            self._corrections[wanted], self.measured[name] = self._tuned(wanted)

    def _tuned(self, wanted_ms: float) -> tuple[float, Measured]:
        """Return the delay to set, so that with the time of passing on the round trip is as long as wanted."""
        asked, tries = wanted_ms, []
        for _ in range(TRIES):
            measured = self._measure(wanted_ms, asked)
            tries.append((asked, measured))
            if abs(measured.added_ms - wanted_ms) <= CLOSE_ENOUGH * wanted_ms:
                break
            asked = max(0.0, asked - (measured.added_ms - wanted_ms))
        return min(tries, key=lambda pair: abs(pair[1].added_ms - wanted_ms))

    def place(self, place: Place) -> Place:
        """Return the same place, reached over the network."""
        return replace(
            place,
            postgres_uri=self._proxied(place.postgres_uri, 5432, POSTGRES_ROUND_TRIP_MS),
            redis_url=self._proxied(place.redis_url, 6379, REDIS_ROUND_TRIP_MS),
        )

    def _proxied(self, url: str, default_port: int, round_trip_ms: float) -> str:
        if not url:
            return url
        target = urlsplit(url)
        key = (socket.gethostbyname(target.hostname or LOCALHOST), target.port or default_port, round_trip_ms)
        if key not in self._ports:
            self._ports[key] = self._start(self._stack, key[0], key[1], self._corrections[round_trip_ms])
        credentials = f"{target.netloc.rpartition('@')[0]}@" if "@" in target.netloc else ""
        return target._replace(netloc=f"{credentials}{LOCALHOST}:{self._ports[key]}").geturl()

    def _start(self, stack: ExitStack, host: str, port: int, round_trip_ms: float) -> int:
        """Start a proxy that ends with the stack. Return its port."""
        process = subprocess.Popen(
            [self._program, host, str(port), str(round(round_trip_ms * 500))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        stack.callback(process.wait)
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.stdin.close)
        stack.callback(process.stdout.close)
        return int(process.stdout.readline())

    def _measure(self, wanted_ms: float, round_trip_ms: float) -> Measured:
        with ExitStack() as stack:
            echo = stack.enter_context(_echo())
            proxy = self._start(stack, LOCALHOST, echo, round_trip_ms)
            direct, through = (stack.enter_context(_Client(port)) for port in (echo, proxy))
            times = [(direct.ping(), through.ping()) for _ in range(PINGS)]
            added = statistics.median(there - here for here, there in times)
            return Measured(wanted_ms, 1000 * added, through.volume())


class _Client:
    """Connection to the echo server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOCALHOST, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def ping(self) -> float:
        """Return the seconds of a round trip."""
        started = time.perf_counter()
        self._socket.sendall(b"x" * 100)
        received = 0
        while received < 100:
            received += len(self._socket.recv(100))
        return time.perf_counter() - started

    def volume(self) -> float:
        """Return megabytes per second, there and back."""
        started, received = time.perf_counter(), 0
        sender = threading.Thread(target=self._socket.sendall, args=(bytes(VOLUME_BYTES),))
        sender.start()
        while received < VOLUME_BYTES:
            received += len(self._socket.recv(1 << 20))
        sender.join()
        return VOLUME_BYTES / 1e6 / (time.perf_counter() - started)


@contextmanager
def _echo() -> Iterator[int]:
    """Run an echo server on a port."""
    listener = socket.create_server((LOCALHOST, 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(1 << 20):
                connection.sendall(data)

    def accept() -> None:
        for _ in range(2):
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]


@contextmanager
def network() -> Iterator[Network]:
    """Set up the network for the time of the context.

    Raises:
        NoNetwork: there is no C compiler, or the program does not compile here.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoNetwork("there is no C compiler for the delaying proxy")
    with TemporaryDirectory(prefix="benchmarks-") as directory, ExitStack() as stack:
        program = Path(directory) / "delay"
        compiled = subprocess.run(
            [compiler, "-O2", "-o", program, SOURCE], capture_output=True, text=True, check=False
        )
        if compiled.returncode:
            raise NoNetwork(f"the delaying proxy does not compile: {compiled.stderr.strip()}")
        yield Network(program, stack)
