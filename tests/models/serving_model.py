"""Executable model of who may serve from Redis, over one namespace, several Redis servers and one Postgres.

Entries, fences and fill leases are those of `coherence_model`, reduced to a version number. What is modelled here
is that processes need not see the same Redis at the same time: an address leads to a new primary, or back to a
former one, and some processes do not notice; two primaries live side by side; a process loses Redis alone, or
stands still. Postgres arbitrates: it has a row for each process, the server epoch that is registered, and the
stale threads. An epoch is registered only in place of the one that was compared.

It checks that no read returns a version older than one that was acknowledged before the read began. A write waits
no longer than a serving right lasts.

    python -m tests.models.serving_model                 # every rule on: no violation
    python -m tests.models.serving_model --drop RULE     # without one rule: a violation
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from tests.models import command

RULES = {
    "right": "a hit is served only while the process' last heartbeat is younger than a right lasts",
    "from-send": "and that is measured from before the heartbeat was sent",
    "invalidated": "a heartbeat counts once the stale threads that it saw are invalidated in Redis",
    "epoch": "a script runs only on the server epoch that its process knows; else that is an outage",
    "registered": "a heartbeat counts only if its process' server epoch is the registered one",
    "term": "and has been since the process found that nobody serves from another",
    "active": "a process uses the registered epoch once nobody serves from another, or rights have run out",
    "emptied": "all is invalidated on a former epoch before it is registered again",
    "writer": "a write that Redis confirmed is acknowledged under a right; without one it is unconfirmed",
    "wait": "an unconfirmed write returns when a process that serves has answered, or all rights have run out",
    "answer": "a process answers what was asked before its snapshot of the stale threads, not what came later",
    "said": "a process waits for nobody if it had said that it lacks Redis, and then saw that none serves",
    "begin": "a process that begins to serve while another lacks Redis is announced for a second before",
    "beats": "what a process says of itself later counts, whatever comes to Postgres later",
    "announce": "a heartbeat counts only if its snapshot has the one before it, which tells others of it",
}

RIGHT = 6
SILENT = 3 * RIGHT
PROCESSES = 3
Step = Generator[None, None, None]


@dataclass
class Server:
    """A Redis primary. Each method is one script."""

    epoch: int
    generation: int = 0
    entry: int | None = None
    fences: set[int] = field(default_factory=set)
    fill_lease: tuple[int, int] | None = None

    def begin(self, token: int) -> None:
        self.fences.add(token)
        self.fill_lease = None

    def commit(self, token: int) -> None:
        self.fences.discard(token)
        self.entry = None

    def invalidate(self, fresh: int) -> None:
        self.generation, self.entry, self.fill_lease = fresh, None, None

    def read(self, token: int) -> tuple[str, int]:
        if self.fences:
            return "fenced", 0
        if self.entry is not None:
            return "hit", self.entry
        if self.fill_lease:
            return "wait", 0
        self.fill_lease = (token, self.generation)
        return "load", self.generation

    def fill(self, token: int, generation: int, version: int) -> None:
        if not self.fences and self.fill_lease == (token, generation) and generation == self.generation:
            self.entry, self.fill_lease = version, None


@dataclass
class Row:
    """Row of a process."""

    serves: bool = False
    epoch: int = 0
    answered: int = 0
    at: int = 0
    since: int = 0
    """Time since which it serves."""
    lacks_redis: bool = False
    beat: int = 0
    """Number of the last statement of its process that changed it."""


@dataclass
class Postgres:
    version: int = 0
    stale: int = 0
    """Mark of the stale thread, 0 if it is none."""
    registered: int = 0
    term: int = 0
    """Number of epochs that were registered so far."""
    former: set[int] = field(default_factory=set)
    asked: int = 0
    rows: dict[int, Row] = field(default_factory=lambda: {n: Row() for n in range(PROCESSES)})


@dataclass
class Process:
    number: int
    server: Server
    """Server that its address leads to now."""
    epoch: int = 0
    """Server epoch that it knows."""
    term: int = 0
    """Term of the registered epoch that it uses."""
    usable: bool = False
    right_until: int = -1
    cut: bool = False
    own_stale: bool = False
    free_until: int = -1
    """Until then nobody serves whom its writes would have to wait for."""
    is_talking: bool = False
    """True while Postgres has not answered a heartbeat: one at a time."""
    beats: int = 0


class Refused(Exception):
    """Redis did not do it, or did not say so."""


class World:
    def __init__(self, rng: random.Random, dropped: str | None) -> None:
        self.rng, self.on = rng, lambda rule: rule != dropped
        self.ids = itertools.count(1)
        self.now = 0
        self.postgres = Postgres()
        self.servers = [Server(next(self.ids))]
        self.processes = [Process(number, self.servers[0]) for number in range(PROCESSES)]
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()

    def some_process(self) -> Process:
        return self.rng.choice(self.processes)

    # -- Redis -----------------------------------------------------------------------------------------------

    def call(self, process: Process, script: Callable[[Server], object], *, probing: bool = False) -> object:
        if not process.usable and not probing:
            raise Refused
        if process.cut:
            self.fail(process)
            raise Refused
        if self.on("epoch") and process.server.epoch != process.epoch:
            self.fail(process)
            raise Refused
        reply = script(process.server)
        if self.rng.random() < 0.03:
            self.fail(process)
            raise Refused  # the reply is lost
        return reply

    def fail(self, process: Process) -> None:
        process.usable = False

    # -- a process -------------------------------------------------------------------------------------------

    def has_right(self, process: Process) -> bool:
        return process.usable and self.now < process.right_until

    def heartbeat(self, process: Process, *, probing: bool = False) -> Step:
        """Renew the right, or find that it is over. The first of a series only announces that it will serve."""
        if process.is_talking:
            return
        process.is_talking = True
        try:
            for _ in range(2):
                if not (process.usable or probing) or (yield from self.beat_once(process, probing=probing)):
                    return
        finally:
            process.is_talking = False

    def beat_once(self, process: Process, *, probing: bool) -> Generator[None, None, bool]:
        """Say whether that was all."""
        sent, epoch, term, postgres = self.now, process.epoch, process.term, self.postgres
        process.beats += 1
        beat, process.free_until = process.beats, -1
        yield
        row = postgres.rows[process.number]
        if self.rng.random() < 0.05:  # given up, and comes to Postgres all the same
            process.is_talking = False
            yield
            if row.beat < beat or not self.on("beats"):
                self.announce(row, epoch, beat)
            return True
        registered, stale, asked = postgres.registered, postgres.stale, postgres.asked
        is_same_term = postgres.term == term or not self.on("term")
        was_announced = row.serves and self.now - row.at < RIGHT
        if self.on("begin") and any(r.lacks_redis and self.now - r.at < SILENT for r in postgres.rows.values()):
            was_announced &= self.now - row.since >= RIGHT
        yield  # what others do now is not in its snapshot, nor its row in theirs
        if row.beat < beat or not self.on("beats"):
            self.announce(row, epoch, beat)
        yield
        if self.on("registered") and not (registered == epoch and is_same_term):
            self.fail(process)
            return True
        if not was_announced and self.on("announce"):
            return False
        if not self.on("invalidated"):
            process.right_until = max(process.right_until, sent + RIGHT)
            yield
        if stale:
            try:
                self.call(process, lambda server: server.invalidate(next(self.ids)), probing=probing)
            except Refused:
                return True
            self.counts["invalidated"] += 1
            yield
            if postgres.stale == stale:
                postgres.stale = 0
        if process.epoch != epoch or not (process.usable or probing):
            return True
        since = sent if self.on("from-send") else self.now
        process.right_until = max(process.right_until, since + RIGHT)
        yield
        if not self.on("answer"):
            asked = postgres.asked
        row.answered = max(row.answered, asked)
        return True

    def announce(self, row: Row, epoch: int, beat: int) -> None:
        if not (row.serves and self.now - row.at < RIGHT):
            row.since = self.now
        row.serves, row.lacks_redis, row.epoch, row.at, row.beat = True, False, epoch, self.now, beat

    def beat(self) -> Step:
        yield from self.heartbeat(self.some_process())

    def give_notice(self) -> Step:
        """A process that has no use of Redis says so."""
        process = self.some_process()
        if not process.usable and not process.is_talking:
            process.is_talking, process.right_until = True, -1
            process.beats += 1
            sent, beat, row = self.now, process.beats, self.postgres.rows[process.number]
            process.is_talking = self.rng.random() < 0.9  # else given up, as above
            waits = process.is_talking
            try:
                yield
                had_said = row.lacks_redis or not self.on("said")
                is_any_live = any(map(self.is_live, self.postgres.rows.values()))
                yield
                if row.beat < beat or not self.on("beats"):
                    row.serves, row.lacks_redis, row.at, row.beat = False, True, self.now, beat
                yield
                if waits and had_said and not is_any_live:
                    process.free_until = sent + RIGHT // 2
            finally:
                process.is_talking = False

    def reopen(self) -> Step:
        """A process that lost Redis, or has just started, finds out what it is connected to."""
        process, postgres = self.some_process(), self.postgres
        if process.usable or process.cut or process.is_talking:
            return
        process.epoch = process.server.epoch
        process.right_until = -1
        epoch = process.epoch
        yield
        seen = postgres.registered
        if not seen:
            postgres.registered = seen = epoch
        if seen != epoch:
            if epoch in postgres.former:
                if self.is_another_used(process) and self.rng.random() < 0.8:
                    return
                yield
                if self.on("emptied"):
                    try:
                        self.call(process, lambda server: server.invalidate(next(self.ids)), probing=True)
                    except Refused:
                        return
            yield
            if postgres.registered != seen:
                return
            postgres.former.add(postgres.registered)
            postgres.registered, postgres.term = epoch, postgres.term + 1
            self.counts["registered"] += 1
        yield
        if postgres.registered != epoch:
            return
        since, term = self.now, postgres.term
        while self.on("active") and self.is_another_used(process) and self.now <= since + RIGHT:
            yield
        process.term = term
        yield from self.heartbeat(process, probing=True)
        if not self.now < process.right_until or process.epoch != epoch:
            return
        if process.own_stale:
            try:
                self.call(process, lambda server: server.invalidate(next(self.ids)), probing=True)
            except Refused:
                return
        process.usable, process.own_stale = True, False

    def is_another_used(self, process: Process) -> bool:
        rows = self.postgres.rows
        return any(n != process.number and r.epoch != process.epoch and self.is_live(r) for n, r in rows.items())

    def is_live(self, row: Row) -> bool:
        return row.serves and self.now - row.at < SILENT

    # -- writes and reads ------------------------------------------------------------------------------------

    def write(self) -> Step:
        process, postgres, token = self.some_process(), self.postgres, next(self.ids)
        confirmed = self.tries(process, lambda server: server.begin(token))
        yield
        postgres.version += 1
        version = postgres.version
        marked = not confirmed
        if marked:
            postgres.stale = next(self.ids)
        yield
        if confirmed:
            confirmed = self.tries(process, lambda server: server.commit(token))
        if confirmed and self.on("writer") and not self.has_right(process):
            yield from self.heartbeat(process)
            confirmed = self.has_right(process)
        if not confirmed:
            self.fail(process)
            process.own_stale = True
            if not marked:
                yield
                postgres.stale = next(self.ids)
            self.counts["unconfirmed"] += 1
            if self.on("wait"):
                yield from self.wait(process)
        self.acknowledged = max(self.acknowledged, version)

    def tries(self, process: Process, script: Callable[[Server], object]) -> bool:
        try:
            self.call(process, script)
        except Refused:
            return False
        return True

    def wait(self, process: Process) -> Step:
        """Wait until nobody serves what Postgres held before now."""
        postgres, since = self.postgres, self.now
        if self.now < process.free_until:
            self.counts["free"] += 1
            return
        yield
        postgres.asked += 1
        asked = postgres.asked
        while self.now <= since + RIGHT:
            rows = postgres.rows.values()
            if any(row.answered >= asked for row in rows):
                self.counts["answered"] += 1
                return
            if not any(self.is_live(row) for row in rows):
                self.counts["nobody"] += 1
                return
            yield
        self.counts["waited"] += 1

    def read(self) -> Step:
        process, token, acknowledged = self.some_process(), next(self.ids), self.acknowledged
        if self.on("right") and not self.has_right(process):
            yield from self.heartbeat(process)
        seen = yield from self.ask_redis(process, token)
        if seen is None:
            seen = self.postgres.version
        if seen < acknowledged:
            raise AssertionError(f"acknowledged: read {seen} after {acknowledged}")

    def ask_redis(self, process: Process, token: int) -> Generator[None, None, int | None]:
        if self.on("right") and not self.has_right(process):
            return None
        try:
            kind, found = self.call(process, lambda server: server.read(token))  # type: ignore[misc]
        except Refused:
            return None
        self.counts[kind] += 1
        yield
        if kind == "hit" and (self.has_right(process) or not self.on("right")):
            return found  # type: ignore[no-any-return]
        if kind == "load":
            loaded = self.postgres.version
            yield
            self.tries(process, lambda server: server.fill(token, found, loaded))
            return loaded
        return None

    # -- faults ----------------------------------------------------------------------------------------------

    def fault(self) -> Step:
        process = self.some_process()
        kind = self.rng.choice(("new", "new-one", "back", "cut", "cut", "mend", "drop"))
        if kind == "new":
            self.servers.append(Server(next(self.ids)))
            for each in self.processes:  # some do not notice
                if self.rng.random() < 0.6:
                    each.server = self.servers[-1]
        elif kind == "new-one":
            process.server = self.servers[-1]
        elif kind == "back":
            process.server = self.rng.choice(self.servers)
        elif kind == "drop":
            self.fail(process)
        else:
            process.cut = kind == "cut"
        return
        yield


def explore(seed: int, dropped: str | None = None) -> dict[str, int]:
    """Runs one random interleaving. Returns how often what happened; raises `AssertionError` for a violation."""
    rng = random.Random(seed)
    world = World(rng, dropped)
    running: list[Iterator[None]] = []
    makers = (world.write, world.read, world.beat, world.reopen, world.give_notice, world.fault)
    # Each run has its own mixture: some faults need many of one kind, and few of another.
    weights = [weight * rng.choice((0.2, 1, 3)) for weight in (3, 7, 3, 6, 1, 0.6)]
    budget, speed, crashes = rng.choice((40, 120)), rng.choice((0.03, 0.12, 0.3)), rng.choice((0, 0.01))
    while budget or running:
        if rng.random() < speed:
            world.now += 1
        if budget and len(running) < 6 and rng.random() < 0.6:
            budget -= 1
            running.append(rng.choices(makers, weights)[0]())
        elif running:
            process = rng.choice(running)
            if rng.random() < crashes:
                running.remove(process)  # a crash
                process.close()
                continue
            try:
                next(process)
            except StopIteration:
                running.remove(process)
    return world.counts


if __name__ == "__main__":
    raise SystemExit(command.run(__doc__.splitlines()[0], RULES, explore))
