"""CPU used by this process and by the Postgres server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

PROC = Path("/proc")
NANOSECONDS = 1e9


@dataclass(frozen=True)
class Cpu:
    """Seconds of CPU; `postgres` is None where its processes cannot be seen."""

    application: float
    postgres: float | None

    def __sub__(self, before: Cpu) -> Cpu:
        postgres = None
        if self.postgres is not None and before.postgres is not None:
            postgres = max(0.0, self.postgres - before.postgres)
        return Cpu(self.application - before.application, postgres)


class PostgresCpu:
    """CPU of all processes of a server, background writers included.

    A backend that ends takes its share with it, so connections should outlast what is measured.
    """

    def __init__(self, postmaster: int | None) -> None:
        self._postmaster = postmaster

    @classmethod
    def of_connection(cls, connection: psycopg.Connection[Any]) -> PostgresCpu:
        """Make one for the server at the other end, if it runs on this machine."""
        backend = connection.info.backend_pid
        try:
            stat = (PROC / str(backend) / "stat").read_text()
        except OSError:
            return cls(None)
        name, _, rest = stat.partition("(")[2].rpartition(")")
        return cls(int(rest.split()[1]) if name.startswith("postgres") else None)

    def read(self) -> float | None:
        """Return the seconds used by the processes that run now; None if they cannot be seen."""
        if self._postmaster is None:
            return None
        try:
            children = (PROC / f"{self._postmaster}/task/{self._postmaster}/children").read_text().split()
        except OSError:
            return None
        return sum(_seconds(pid) for pid in (str(self._postmaster), *children))


def _seconds(pid: str) -> float:
    try:
        return int((PROC / pid / "schedstat").read_text().split()[0]) / NANOSECONDS
    except (OSError, IndexError):
        return 0.0


def now(postgres: PostgresCpu) -> Cpu:
    """Return the CPU used so far by this process and the server."""
    return Cpu(time.process_time(), postgres.read())
