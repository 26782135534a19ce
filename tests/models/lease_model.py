"""Executable model of write-behind: how Redis holds unflushed writes, over one namespace of one thread.

A process that wants to write behind takes the thread's *lease*: a row in Postgres with a token and the position
up to which the thread's journal has been replayed, then the same token in Redis. While the row is there, what
was acknowledged is what Postgres holds, and then what the journal of this token says; without a row Postgres has
it all. Only the holder appends, and it keeps what it appended in memory until Postgres has it.

It explores random interleavings of holders, write-through writers, readers, flushes by anybody, deletes,
crashes, lost replies, evictions, restarts and outages of Redis, and checks:

  acknowledged  no read returns anything older than what was acknowledged before it began
  order         Postgres ends with what was written last, however often a journal was replayed
  deleted       nothing that was deleted comes back
  convergence   once nothing is in flight, Postgres holds all of it, no lease nor journal is left, and a hit is
                what it holds

A write may be lost by one thing only: Redis loses it and its process dies before Postgres has it.

    python -m tests.models.lease_model                 # every rule on: no violation
    python -m tests.models.lease_model --drop RULE     # without one rule: a violation

How entries stay coherent with Postgres by fences, fill leases and generations is `coherence_model.py`'s, of
which only what matters here is repeated.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.models import command

RULES = {
    "row": "a load is right only if no lease's row is there, or the journal of that lease is replayed to its end",
    "bypass": "and so is a read that fills nothing, as one under a fence",
    "position": "what is at or before the row's position is not replayed again",
    "no-gaps": "and nothing is replayed from memory beyond what may have been appended before it",
    "token": "a journal is replayed only into its own lease's row",
    "server_epoch": "a lease belongs to one server epoch of Redis: after a restart nothing is appended to it",
    "known": "a journal is all there is only while Redis knows its lease, or still has what was appended to "
    "it: not after it was emptied",
    "holder": "only the holder appends",
    "fence": "nothing is appended while a write to the namespace is in flight in Postgres",
    "flush-first": "a write in Postgres comes after what the journal held when its fence was taken",
    "ask-row": "a write whose BEGIN found neither entry nor lease waits for the row of a lease to go",
    "close-first": "a lease is closed in Redis, with nothing left to replay, before its row goes",
    "grace": "the row of a lease that Redis does not know goes only after its holder had the time to flush",
    "memory": "a holder keeps what it appended until Postgres has it",
    "end": "a holder that cannot reach Redis, or does not know what was appended, ends its lease, in the "
    "transaction that stores all its pending writes, before it goes on",
    "degraded": "without Redis, nothing is read or written in Postgres while another's lease is there",
    "same-generation": "and a lease whose row was made before a delete is not opened in Redis after it",
    "expired-delete": "a delete whose reply was lost took the lease in Redis with it",
    "invalidate": "who invalidates a thread ends its lease in Redis: the row may have gone with a delete",
    "delete-row": "a delete takes the lease's row with it",
    "stale_thread": "a row goes together with a note of its thread, unless Redis has confirmed the end of its "
    "lease: who sees the note removes the journal",
    "remove_ended_journals": "a journal that came back with a failover is removed only if it is of a lease "
    "that has ended",
}
EMPTY = 0


class State(NamedTuple):
    """The latest checkpoint, and a pending write that is replaced. Numbers are those of the writes."""

    latest: int = EMPTY
    register: int = EMPTY


class Op(NamedTuple):
    number: int
    base: int | None  # of a put the parent; None for a write that replaces the register

    def on(self, state: State) -> State:
        if self.base is None:
            return state._replace(register=self.number)
        return state._replace(latest=max(self.number, state.latest))


class Entry(NamedTuple):
    generation: tuple[int, int]
    state: State


class Lease(NamedTuple):
    server_epoch: int
    token: int
    last: int  # number of the last entry that was appended


@dataclass
class Redis:
    """Data of a primary for the thread. Each method is one atomic step."""

    on: Callable[[str], bool]
    server_epoch: int = 1
    generation: tuple[int, int] | None = None
    entry: Entry | None = None
    fill_token: int | None = None
    fences: set[int] = field(default_factory=set)
    deleting: set[int] = field(default_factory=set)  # of the fences, those over the whole thread
    lease: Lease | None = None
    journal: list[tuple[int, int, Op]] = field(default_factory=list)  # number, token, what was written
    has_journal: bool = False  # it stays when all of it was trimmed
    closed: int | None = None  # token of the last lease that was closed

    def held(self) -> Lease | None:
        """The lease, if this server epoch knows of one."""
        if self.lease and (self.lease.server_epoch == self.server_epoch or not self.on("server_epoch")):
            return self.lease
        return None

    def valid(self, fresh: int) -> Entry | None:
        """The entry. Makes a generation where there is none."""
        if self.generation is None or self.generation[0] != self.server_epoch:
            self.generation = (self.server_epoch, fresh)
        return self.entry if self.entry and self.entry.generation == self.generation else None

    def read(self, fill_token: int, fresh: int) -> tuple[str, State, Lease | None]:
        entry = self.valid(fresh)
        if self.fences:
            return "fenced", State(), self.held()
        if entry:
            return "hit", entry.state, None
        if self.fill_token is None:
            self.fill_token = fill_token
        return "load", State(), self.held()

    def fill(self, fill_token: int, generation: tuple[int, int] | None, state: State, fresh: int) -> None:
        self.valid(fresh)
        if self.fill_token == fill_token and self.generation == generation and not self.fences:
            assert self.generation is not None
            self.entry, self.fill_token = Entry(self.generation, state), None

    def open(self, token: int, generation: tuple[int, int] | None, fresh: int) -> bool:
        """Say whether the lease is active here too. Not if the thread was invalidated or deleted since its row was
        made.
        """
        self.valid(fresh)
        if (self.generation != generation or self.fences) and self.on("same-generation"):
            return False
        self.lease, self.journal, self.has_journal = Lease(self.server_epoch, token, 0), [], False
        self.closed = None
        return True

    def knows_all(self, token: int, position: int) -> bool:
        """Say whether its journal of that lease is complete beyond `position`, if it is of this server epoch."""
        held = self.held()
        if self.has_journal or self.closed == token:
            return True
        return held is not None and held.token == token and held.last <= position

    def append(self, token: int, op: Op, fresh: int) -> int:
        """Number of the new entry of the journal, or 0."""
        entry, lease = self.valid(fresh), self.held()
        if not entry or not lease or (lease.token != token and self.on("holder")):
            return 0
        if (self.fences and self.on("fence")) or (op.base is not None and op.base != entry.state.latest):
            return 0
        self.entry = Entry(entry.generation, op.on(entry.state))
        self.lease = lease._replace(last=lease.last + 1)
        self.journal.append((self.lease.last, lease.token, op))
        self.has_journal = True
        return self.lease.last

    def trim(self, token: int, upto: int) -> None:
        self.journal = [j for j in self.journal if j[1] != token or j[0] > upto]

    def close(self, token: int, flushed: int, fresh: int) -> bool:
        """Say whether nothing can be appended to that lease any more, and nothing was beyond `flushed`."""
        if any(t == token and number > flushed for number, t, _ in self.journal):
            return False
        if self.held() is None:
            self.invalidate(fresh)  # a late `open` of that lease is not to make it anew
        if (lease := self.held()) and lease.token == token:
            if lease.last > flushed:
                return False
            self.lease = None
        if self.held() is None:
            self.closed = token  # its row may stay for a while: nothing is missing
        if any(j[1] == token for j in self.journal) or not self.journal:
            self.journal, self.has_journal = [], False
        return True

    def newest(self) -> int:
        """Token of the newest entry of the journal, or 0."""
        return self.journal[-1][1] if self.journal else 0

    def remove_ended_journals(self, token: int) -> None:
        """Remove what is there of a lease that has ended."""
        of_others = any(t != token for _, t, _ in self.journal)
        if self.held() is None and not (of_others and self.on("remove_ended_journals")):
            self.journal, self.has_journal = [], False

    def begin(self, token: int, fresh: int) -> tuple[Lease | None, bool]:
        known = self.valid(fresh) is not None
        self.fences.add(token)
        self.fill_token = None
        return self.held(), known

    def commit(self, token: int, op: Op, fresh: int) -> None:
        entry, fenced = self.valid(fresh), token in self.fences
        self.fences.discard(token)
        if entry and fenced and not self.fences and (op.base is None or op.base == entry.state.latest):
            self.entry = Entry(entry.generation, op.on(entry.state))
        else:
            self.entry = self.fill_token = None

    def pass_deadlines(self, in_flight: set[int]) -> None:
        """Fences of writers that have crashed end, and with them the entry."""
        if (self.fences & self.deleting) - in_flight and self.on("expired-delete"):
            self.lease = None
        if self.fences - in_flight:
            self.fences &= in_flight
            self.entry = None

    def invalidate(self, fresh: int) -> None:
        self.generation = (self.server_epoch, fresh)
        if self.on("invalidate"):
            self.lease = None

    def end_delete(self, token: int, lease: Lease | None, fresh: int) -> None:
        self.fences.discard(token)
        self.invalidate(fresh)
        if lease:
            self.close(lease.token, lease.last, fresh)

    def empty(self) -> None:
        """FLUSHALL."""
        self.generation = self.entry = self.fill_token = self.lease = self.closed = None
        self.journal, self.has_journal = [], False


@dataclass
class Row:
    token: int
    position: int = 0


@dataclass
class Postgres:
    state: State = field(default_factory=State)
    row: Row | None = None
    stale_thread: int | None = None  # mark of the thread in the table of stale threads

    def replay(self, token: int, entries: list[tuple[int, Op]], on: Callable[[str], bool]) -> bool:
        """Say whether the lease's row was there. One transaction."""
        if self.row is None or (self.row.token != token and on("token")):
            return False
        for number, op in entries:
            if number > self.row.position or not on("position"):
                self.state = op.on(self.state)
                self.row.position = max(number, self.row.position)
        return True


@dataclass(eq=False)
class PendingWrite:
    """Write that a holder has sent to be appended; with its number once that is known."""

    op: Op
    number: int | None = None
    stored: bool = False


@dataclass(eq=False)
class Process:
    name: int
    reaches_redis: bool = True
    token: int | None = None
    usable: bool = False  # the lease, for more appends
    appending: int = 0
    memory: list[PendingWrite] = field(default_factory=list)
    alive: bool = True


class World:
    def __init__(self, rng: random.Random, dropped: str | None) -> None:
        self.rng, self.on = rng, command.all_but(dropped)
        self.second_looks = random.Random(0)  # of its own, so that what else happens is as it was without them
        self.ids = itertools.count(1)
        self.redis, self.postgres = Redis(self.on), Postgres()
        self.snapshot = copy.deepcopy(self.redis)
        self.processes = [Process(next(self.ids)) for _ in range(3)]
        self.history: list[Op] = []  # in the order in which writes took effect
        self.acked: set[int] = set()
        self.deletes = 0
        self.in_hand: list[list[tuple[int, Op]]] = []  # what somebody has read out of the journal, to be replayed
        self.went_back = False  # Redis has restarted with old data, perhaps with a journal that was removed
        self.dead: set[int] = set()  # deleted, and not written since
        self.in_flight: set[int] = set()  # fences of writes that have not ended
        self.epoch_of: dict[int, int] = {}  # of a lease's token
        self.counts = dict.fromkeys(("append", "flush", "recover", "through", "hit", "load", "lost", "broken"), 0)

    def fresh(self) -> int:
        return next(self.ids)

    def end_row(self, *, in_doubt: bool) -> None:
        """In one transaction. In doubt is what Redis still has of the lease."""
        self.postgres.row = None
        if in_doubt and self.on("stale_thread"):
            self.postgres.stale_thread = next(self.ids)

    def happened(self, op: Op) -> None:
        if op in self.history:
            self.history.remove(op)
        self.history.append(op)
        self.dead.discard(op.number)

    # -- the holder ------------------------------------------------------------------------------------------

    def write(self, process: Process) -> Iterator[None]:
        """A run that has read, and writes."""
        seen: list[State] = []
        yield from self.read(process, seen)
        for _ in range(self.rng.choice((1, 2, 3))):
            base = seen[0].latest if self.rng.random() < 0.6 else None
            op = Op(next(self.ids), base)
            if (yield from self.append(process, op)) or (yield from self.through(process, op)):
                self.acked.add(op.number)
            if base is not None:
                seen[0] = op.on(seen[0])
            yield

    def append(self, process: Process, op: Op) -> Generator[None, None, bool]:
        if not process.reaches_redis:
            return False
        if process.token is None:
            yield from self.open(process)
        if not process.usable or process.token is None:
            return False
        token = process.token
        pending = PendingWrite(op)
        process.appending += 1
        process.memory.append(pending)  # in the order in which they are sent
        try:
            number = self.redis.append(token, op, self.fresh())
            if number:
                self.happened(op)
                self.counts["append"] += 1
            known = self.rng.random() < 0.9
            yield
            if known:
                pending.number = number
                if not number or not self.on("memory"):
                    process.memory.remove(pending)
                return bool(number)
        finally:
            process.appending -= 1
        yield from self.revoke(process)  # which stores what nobody knows of too
        return pending.stored

    def open(self, process: Process) -> Iterator[None]:
        if self.postgres.row is not None:
            return
        self.redis.valid(self.fresh())
        generation = self.redis.generation
        yield
        if self.postgres.row is not None or process.token is not None:
            return
        token = next(self.ids)
        self.postgres.row = Row(token)
        self.epoch_of[token] = generation[0] if generation else 0
        process.token, process.usable, process.memory = token, False, []
        process.appending += 1  # not to be closed yet
        yield
        process.appending -= 1
        if process.reaches_redis:
            process.usable = self.redis.open(token, generation, self.fresh())

    def flush(self, process: Process, *, close: bool | None = None) -> Iterator[None]:
        """The holder's own flush out of its memory, and perhaps the end of the lease."""
        token = process.token
        if token is None:
            return
        close = close if close is not None else self.rng.random() < 0.5
        close = close or not process.usable or not process.reaches_redis
        if close:
            process.usable = False
            if process.appending and self.on("close-first"):
                return
        known = process.memory
        if self.on("no-gaps"):
            known = list(itertools.takewhile(lambda pending: pending.number is not None, known))
        entries = [(pending.number, pending.op) for pending in known if pending.number is not None]
        yield
        if self.postgres.replay(token, entries, self.on):
            self.counts["flush"] += 1
        flushed = entries[-1][0] if entries else 0
        if process.token == token:
            process.memory = [pending for pending in process.memory if (pending.number, pending.op) not in entries]
        yield
        if process.reaches_redis:
            self.redis.trim(token, flushed)
        if not close or process.token != token or process.memory or process.appending:
            return
        row = self.postgres.row
        yield
        closed = process.reaches_redis and row is not None and row.token == token
        if closed and row and not self.redis.close(token, row.position, self.fresh()):
            return
        yield
        if process.token == token:
            process.token = None
        if self.postgres.row and self.postgres.row.token == token:
            self.end_row(in_doubt=not closed)

    def revoke(self, process: Process) -> Iterator[None]:
        """The end of a lease by its holder alone, which knows all that may have been appended."""
        token, process.usable = process.token, False
        while process.appending:
            yield
        row = self.postgres.row
        if token is None or process.token != token:
            return
        if row and row.token == token:
            for pending in process.memory:
                if pending.number is None or pending.number > row.position or not self.on("position"):
                    self.postgres.state = pending.op.on(self.postgres.state)
                    pending.stored = True
                    self.happened(pending.op)  # in the order in which they were sent: what nobody knew of too
            self.redis.invalidate(self.fresh())  # as the table of stale threads has it done
            if self.on("end"):
                self.end_row(in_doubt=True)
        process.token, process.memory = None, []

    # -- anybody ---------------------------------------------------------------------------------------------

    def replay(self, process: Process, *, close: bool = False) -> Generator[None, None, Lease | None]:
        """Replays what the journal holds; with `close`, ends the lease of a holder that may be dead. Returns up
        to where Postgres is then known to hold all there is.
        """
        row = self.postgres.row
        if row is None or not process.reaches_redis:
            return None
        token, position = row.token, row.position
        yield
        entries = [(number, op) for number, t, op in self.redis.journal if t == token or not self.on("token")]
        server_epoch = self.redis.server_epoch
        complete = self.epoch_of[token] == server_epoch or not self.on("server_epoch")
        complete &= self.still_known(token, position)
        self.in_hand.append(entries)
        try:
            yield
            if not self.postgres.replay(token, entries, self.on):
                return None
        finally:
            self.in_hand.remove(entries)
        self.counts["recover"] += 1
        flushed = max([position, *(number for number, _ in entries)])
        flush_waits = Lease(server_epoch, token, flushed) if complete else None
        yield
        if process.reaches_redis:
            self.redis.trim(token, flushed)
        if not close or not process.reaches_redis:
            return flush_waits
        yield
        if not process.reaches_redis:
            return flush_waits
        in_doubt = False
        if not complete or server_epoch != self.redis.server_epoch or not self.still_known(token, flushed):
            if self.on("grace") and any(p.token == token for p in self.processes):
                return None
            self.counts["broken"] += 1
            in_doubt = True
        elif self.on("close-first") and not self.redis.close(token, flushed, self.fresh()):
            return flush_waits
        yield
        row = self.postgres.row
        if row and row.token == token and (row.position == flushed or not self.on("close-first")):
            self.end_row(in_doubt=in_doubt)
        return flush_waits

    def invalidate_stale(self, process: Process) -> Iterator[None]:
        """Do what every process does once a second."""
        if (mark := self.postgres.stale_thread) is None or not process.reaches_redis:
            return
        self.redis.invalidate(self.fresh())
        yield
        token = self.redis.newest()
        yield
        row = self.postgres.row
        yield
        if not process.reaches_redis:
            return
        if row is None or token not in (0, row.token):
            before = self.lost()
            self.redis.remove_ended_journals(token)
            if self.lost() - before:
                raise AssertionError("stale thread: the journal was still needed")
        yield
        if self.postgres.stale_thread == mark:
            self.postgres.stale_thread = None

    def remove_ended_journals(self) -> None:
        """The second check by who has ended a lease, in case a replica that lagged has become the primary."""
        row = self.postgres.row
        ended = [token for token in self.epoch_of if row is None or token != row.token]
        if ended:
            before = self.lost()
            self.redis.remove_ended_journals(self.second_looks.choice(ended))
            if self.lost() - before:
                raise AssertionError("tidy: the journal was still needed")

    def still_known(self, token: int, flushed: int) -> bool:
        return self.redis.knows_all(token, flushed) or not self.on("known")

    def is_flushed(self, lease: Lease | None) -> bool:
        """Say whether Postgres holds all that was acknowledged, given what Redis said before."""
        row = self.postgres.row
        return row is None or (lease is not None and lease.token == row.token and lease.last <= row.position)

    def through(self, process: Process, op: Op) -> Generator[None, None, bool]:
        """A write in Postgres; false if it failed."""
        self.counts["through"] += 1
        try:
            return (yield from self._write_through(process, op))
        finally:
            process.memory = [pending for pending in process.memory if pending.op != op]  # now it is known

    def _write_through(self, process: Process, op: Op) -> Generator[None, None, bool]:
        fence = next(self.ids)
        self.in_flight.add(fence)
        try:
            if process.reaches_redis:
                lease, known = self.redis.begin(fence, self.fresh())
                yield
                for _ in range(6):
                    must = self.on("flush-first") if lease else not known and self.on("ask-row")
                    if not must or self.is_flushed(lease):
                        break
                    lease = (yield from self.replay(process)) or lease
                else:
                    self.redis.commit(fence, Op(0, -1), self.fresh())
                    return False
            else:
                yield from self.revoke(process)
                if self.postgres.row is not None and self.on("degraded"):
                    return False
            self.postgres.state = op.on(self.postgres.state)
            self.happened(op)
            if not process.reaches_redis:
                self.redis.invalidate(self.fresh())  # as the table of stale threads has it done
                return True
            yield
            if process.reaches_redis:
                self.redis.commit(fence, op, self.fresh())
            else:
                self.redis.invalidate(self.fresh())
            return True
        finally:
            self.in_flight.discard(fence)

    def read(self, process: Process, seen: list[State] | None = None) -> Iterator[None]:
        wanted, deletes, lost, dead = self.wanted(), self.deletes, self.counts["lost"], set(self.dead)
        kind, state, lease = "away", State(), None
        for _ in range(30):
            fill_token = next(self.ids)
            if process.reaches_redis:
                kind, state, lease = self.redis.read(fill_token, self.fresh())
                generation = self.redis.generation
                if kind == "hit":
                    break
                yield
                state = self.postgres.state
                rule = "row" if kind == "load" else "bypass"
                if not self.is_flushed(lease) and self.on(rule):
                    lease = yield from self.replay(process)
                    state = self.postgres.state
                if self.is_flushed(lease) or not self.on(rule):
                    yield
                    if kind == "load":
                        self.redis.fill(fill_token, generation, state, self.fresh())
                    break
                if self.redis.fill_token == fill_token:
                    self.redis.fill_token = None
            else:
                yield from self.revoke(process)
                if self.postgres.row is None or not self.on("degraded"):
                    state = self.postgres.state
                    break
            yield
        else:
            if seen is not None:
                seen.append(self.postgres.state)
            return  # an error for its caller
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if seen is not None:
            seen.append(state)
        if deletes == self.deletes and lost == self.counts["lost"]:
            self.check("acknowledged", state, wanted)
        if dead & self.dead & set(state):
            raise AssertionError(f"deleted: {state} has what was deleted")

    def delete(self, process: Process) -> Iterator[None]:
        if not process.reaches_redis:
            return
        fence = next(self.ids)
        self.redis.fences.add(fence)
        self.redis.deleting.add(fence)
        self.in_flight.add(fence)
        self.redis.generation = (self.redis.server_epoch, self.fresh())
        lease = self.redis.held()
        yield
        self.postgres.state = State()
        if self.on("delete-row") and self.postgres.row is not None:
            self.end_row(in_doubt=True)
        gone = {op.number for op in self.history}
        self.history = []
        self.acked = set()
        self.deletes += 1
        yield
        if self.rng.random() < 0.2:
            self.in_flight.discard(fence)  # nobody hears of it again: its fence stays to the deadline
        elif self.rng.random() < 0.2:
            self.redis.fences.discard(fence)  # Redis did not hear of its end, and invalidates the thread later
            self.in_flight.discard(fence)
            self.redis.invalidate(self.fresh())
        elif process.reaches_redis:
            self.redis.end_delete(fence, lease, self.fresh())
            self.in_flight.discard(fence)  # else it is as if it had crashed: the fence stays to its deadline
        self.dead |= gone - {op.number for op in self.history}

    # -- what happens ----------------------------------------------------------------------------------------

    def fault(self) -> Iterator[None]:
        kind = self.rng.choice(
            ("crash", "restart", "restart-old", "snapshot", "cut", "evict", "evict-thread", "late")
        )
        process = self.rng.choice(self.processes)
        if kind == "crash":
            self.crash(process)
        elif kind == "snapshot":
            self.snapshot = copy.deepcopy(self.redis)
        elif kind == "cut":
            process.reaches_redis = not process.reaches_redis
        elif kind == "late":
            self.redis.pass_deadlines(self.in_flight)
        elif kind == "evict":
            self.redis.entry = None
        elif kind == "evict-thread" and not self.in_flight:
            self.redis.generation = self.redis.lease = self.redis.closed = None
            if self.counts["append"] % 2:
                self.redis.empty()
        elif kind.startswith("restart") and not self.in_flight:
            if kind == "restart-old":
                self.redis, self.went_back = copy.deepcopy(self.snapshot), True
                self.redis.fences = set()
            self.redis.server_epoch = next(self.ids)
        self.find_lost()
        return
        yield

    def crash(self, process: Process) -> None:
        process.alive = False
        self.processes[self.processes.index(process)] = Process(next(self.ids))

    def find_lost(self) -> None:
        gone = self.lost()
        if gone and self.on("memory"):
            self.counts["lost"] += 1
            self.history = [op for op in self.history if op not in gone]
            self.acked -= {op.number for op in gone}

    def lost(self) -> set[Op]:
        """A write is lost when neither Postgres, nor the journal, nor its process has it any more."""
        for process in self.processes:
            if process.appending:
                return set()
        row = self.postgres.row
        unflushed = {
            op for p in self.processes if row and p.token == row.token for op in (write.op for write in p.memory)
        }
        unflushed |= {op for _, token, op in self.redis.journal if row and token == row.token}
        unflushed |= {op for entries in self.in_hand for _, op in entries}
        stored = self.postgres.state
        return {
            op
            for op in self.history
            if op not in unflushed
            and (op.number > stored.latest if op.base is not None else self.is_later(op, stored))
        }

    def is_later(self, op: Op, stored: State) -> bool:
        numbers = [o.number for o in self.history if o.base is None]
        if stored.register not in numbers:
            return True
        return numbers.index(op.number) > numbers.index(stored.register)

    # -- checks ----------------------------------------------------------------------------------------------

    def wanted(self) -> State:
        state = State()
        for op in self.history:
            if op.number in self.acked:
                state = op.on(state)
        return state

    def check(self, what: str, state: State, wanted: State) -> None:
        order = [EMPTY, *(op.number for op in self.history)]
        if state.latest < wanted.latest:
            raise AssertionError(f"{what}: {state} is older than {wanted}")
        if wanted.register not in order or state.register == wanted.register:
            return
        if state.register not in order or order.index(state.register) < order.index(wanted.register):
            raise AssertionError(f"{what}: {state} is older than {wanted}")

    def check_convergence(self) -> None:
        self.redis.pass_deadlines(set())
        for process in self.processes:
            process.reaches_redis, process.usable = True, False
            for _ in range(3):
                finish(self.flush(process, close=True))
        for process in self.processes:
            if process.token is not None and self.postgres.row and self.postgres.row.token != process.token:
                process.token = None
        for _ in range(3):
            finish(self.replay(self.processes[0], close=True))
        if self.postgres.row is not None:
            raise AssertionError("convergence: a lease is left")
        finish(self.invalidate_stale(self.processes[0]))
        if self.redis.has_journal and not self.went_back:
            raise AssertionError("convergence: a journal is left")
        self.check("order", self.postgres.state, self.wanted())
        kind, state, _ = self.redis.read(next(self.ids), self.fresh())
        if kind == "hit" and state != self.postgres.state:
            raise AssertionError(f"convergence: {state} is cached, {self.postgres.state} is stored")


def finish(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def explore(seed: int, dropped: str | None = None) -> dict[str, int]:
    """Runs one random interleaving. Returns how often what happened; raises `AssertionError` for a violation."""
    rng = random.Random(seed)
    world = World(rng, dropped)
    running: list[tuple[Process | None, Iterator[None]]] = []
    try:
        interleave(world, rng, running)
    finally:
        for _, steps in running:
            with contextlib.suppress(Exception):
                steps.close()  # type: ignore[attr-defined]
    world.find_lost()
    world.check_convergence()
    return world.counts


def interleave(world: World, rng: random.Random, running: list[tuple[Process | None, Iterator[None]]]) -> None:
    makers = (
        world.write,
        world.read,
        world.flush,
        lambda p: world.replay(p, close=True),
        world.delete,
        world.invalidate_stale,
    )
    budget = 50
    while budget or running:
        if budget and len(running) < 4 and rng.random() < 0.6:
            budget -= 1
            if rng.random() < 0.12:
                running.append((None, world.fault()))
            else:
                process = rng.choice(world.processes)
                running.append((process, rng.choices(makers, (5, 5, 4, 1, 0.4, 1))[0](process)))
        elif running:
            of, steps = rng.choice(running)
            if of is not None and not of.alive:
                running.remove((of, steps))
                steps.close()  # type: ignore[attr-defined]
                continue
            try:
                next(steps)
            except StopIteration:
                running.remove((of, steps))
        if world.second_looks.random() < 0.03:
            world.remove_ended_journals()


if __name__ == "__main__":
    raise SystemExit(command.run(__doc__.splitlines()[0], RULES, explore))
