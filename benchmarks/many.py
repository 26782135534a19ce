"""Chat turns in several processes at once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import cpu
from benchmarks.contestants import Entrant
from benchmarks.place import Place
from benchmarks.results import UPSTREAM
from benchmarks.turns import Turn
from benchmarks.workloads import Operation, Sample, Workload

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_SECONDS = 10.0


class Workers:
    """Processes with a saver of the contestant each, which take part in every round."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @classmethod
    async def start(cls, number: int, job: dict[str, Any]) -> Workers:
        """Start `number` processes `python -m benchmarks.worker` with this job."""
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            for _ in range(number)
        ]
        workers = cls(processes)
        await workers.ask(job)
        return workers

    async def ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the answer of each process. All are asked before any is waited for."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
        return list(await asyncio.gather(*(self._answer(process) for process in self._processes)))

    @staticmethod
    async def _answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("a worker process ended; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """End the processes by closing their input."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()


@dataclass(frozen=True)
class TurnInProcesses(Turn):
    """Turns that several processes do together, each on threads of its own."""

    group = "Several processes"
    concurrency: int = 16
    processes: int = 4
    _workers: dict[int, Workers] = field(default_factory=dict, compare=False, repr=False)

    @property
    def what(self) -> str:
        return f"chat turn, {self.messages} messages, {self.durability}, {self.processes} processes"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"processes": self.processes}

    @property
    def operations_min(self) -> int:
        return self.concurrency * self.processes

    async def prepare(self, entrant: Entrant, count: int) -> list[Operation]:
        raise NotImplementedError("the workers prepare their own operations")

    async def start(self, entrant: Entrant, contestant: str, place: Place, stack: AsyncExitStack) -> None:
        """Start the processes of this contestant; they end with the stack."""
        job = {
            "contestant": contestant,
            "place": asdict(place),
            "messages": self.messages,
            "durability": self.durability,
            "concurrency": self.concurrency,
        }
        workers = await Workers.start(self.processes, job)
        stack.push_async_callback(workers.stop)
        self._workers[id(entrant)] = workers

    def started(self, entrant: Entrant) -> bool:
        """Return True if this contestant's processes run."""
        return id(entrant) in self._workers

    async def measure(self, entrant: Entrant, count: int, postgres: cpu.PostgresCpu) -> Sample:
        workers = self._workers[id(entrant)]
        await workers.ask({"prepare": count // self.processes})
        before = postgres.read()
        answers = await workers.ask({"go": True})
        used = None if before is None else (postgres.read() or before) - before
        return Sample(
            sum(answer["operations"] for answer in answers),
            max(answer["ended"] for answer in answers) - min(answer["started"] for answer in answers),
            cpu.Cpu(sum(answer["cpu"] for answer in answers), used),
        )

    def small(self) -> Workload:
        return replace(self, processes=2, concurrency=2, contestants=frozenset({UPSTREAM, "write_through"}))
