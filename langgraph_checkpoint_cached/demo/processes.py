"""Worker processes as the demo sees them: started, given a job, listened to, killed."""

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
PATIENCE_SECONDS = 60.0
STDERR_LINES = 20


class WorkerFailed(CachedSaverError):
    """A worker process ended, or fell silent, before it had told what was expected of it."""


class Worker:
    """A process that runs `worker.py`."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self.pid = process.pid

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Worker]:
        """A worker for the block, ready for a job."""
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
                await worker.hear("ready")
                yield worker
            finally:
                await worker.kill()

    async def give(self, job: Job) -> None:
        """Sends the job. A worker takes one."""
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self, event: str) -> dict[str, Any]:
        """What the worker tells with this event, leaving out what it tells before.

        Raises:
            WorkerFailed: it ended, or said nothing for too long.
        """
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        while True:
            try:
                line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_SECONDS)
            except asyncio.TimeoutError:
                raise WorkerFailed(
                    f"process {self.pid} did not get to {event!r} in {PATIENCE_SECONDS} seconds"
                ) from None
            if not line:
                raise WorkerFailed(f"process {self.pid} ended before {event!r}:\n{await self._last_words()}")
            ack: dict[str, Any] = json.loads(line)
            if ack.pop("event") == event:
                return ack

    async def play(self, job: Job) -> Turn:
        """Gives the job, and waits until it is done and the process has ended."""
        await self.give(job)
        turn = Turn(**await self.hear("played"))
        await asyncio.wait_for(self._process.wait(), PATIENCE_SECONDS)
        return turn

    async def kill(self) -> None:
        """SIGKILL, if it is still there. Returns when it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _last_words(self) -> str:
        await self._process.wait()
        self._errors.seek(0)
        return "\n".join(self._errors.read().decode(errors="replace").splitlines()[-STDERR_LINES:])
