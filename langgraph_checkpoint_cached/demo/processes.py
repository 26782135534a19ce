"""Worker processes of the demo: start them, send them a job, wait for their events, kill them."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import IO, Any

from langgraph_checkpoint_cached.demo.turns import Turn
from langgraph_checkpoint_cached.demo.worker import Job
from langgraph_checkpoint_cached.errors import CachedSaverError

MODULE = "langgraph_checkpoint_cached.demo.worker"
TIMEOUT_SECONDS = 60.0
STDERR_LINES = 20


class WorkerFailed(CachedSaverError):
    """A worker process ended, or reported nothing for too long, before an expected event."""


class Worker:
    """Process that runs `worker.py`."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self.pid = process.pid

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Worker]:
        """Start a worker for the block, and wait until it is ready for a job."""
        with tempfile.TemporaryFile() as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                MODULE,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C in the terminal is for the demo, which then ends its workers
            )
            worker = cls(process, errors)
            try:
                await worker.wait_for("ready")
                yield worker
            finally:
                await worker.kill()

    async def send(self, job: Job) -> None:
        """Send the job. A worker takes one."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        await self._process.stdin.drain()

    async def wait_for(self, event: str) -> dict[str, Any]:
        """Wait for this event, ignoring others before it. Returns its details.

        Raises:
            WorkerFailed: the worker ended, or reported nothing for too long.
        """
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        while True:
            try:
                line = await asyncio.wait_for(self._process.stdout.readline(), TIMEOUT_SECONDS)
            except asyncio.TimeoutError:
                raise WorkerFailed(
                    f"process {self.pid} did not get to {event!r} in {TIMEOUT_SECONDS} seconds"
                ) from None
            if not line:
                raise WorkerFailed(f"process {self.pid} ended before {event!r}:\n{await self._stderr_tail()}")
            details: dict[str, Any] = json.loads(line)
            if details.pop("event") == event:
                return details

    async def play(self, job: Job) -> Turn:
        """Send the job, and wait until it is done and the process has ended."""
        await self.send(job)
        turn = Turn(**await self.wait_for("played"))
        await asyncio.wait_for(self._process.wait(), TIMEOUT_SECONDS)
        return turn

    async def kill(self) -> None:
        """Kill the process if it still runs. Returns when it has ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _stderr_tail(self) -> str:
        await self._process.wait()
        self._errors.seek(0)
        return "\n".join(self._errors.read().decode(errors="replace").splitlines()[-STDERR_LINES:])
