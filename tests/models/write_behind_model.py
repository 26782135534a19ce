"""Executable model of write-behind with one row in Postgres for each process, over several threads.

A process appends a write to its thread's *journal* in Redis, keeps it in memory until Postgres has it, and
acknowledges it while its right lasts. Its row in Postgres names the server epoch that it uses and the writes of
it that are decided: stored, or refused for good and put into the table of rejected writes. Whoever stores a write
notes that in the row of its process, in the same transaction, so that it is stored once, whoever does it, and a
Postgres that loses a flush loses the note with it.

It explores random interleavings of several processes that write behind and one that writes through, over Redis
servers that fail over to a lagging replica, lose all, or are reached by some processes only, and a Postgres that
loses its last commits. Processes freeze, die, or lose either server alone; transactions outlive them. It checks:

  lost          an acknowledged write is stored, deleted or rejected in the end, unless neither its process
                nor the registered Redis, nor Postgres, has it any more
  acknowledged  no read returns less than what was acknowledged before it began, except for what a fenced process
                alone still has; it may raise `BehindError`
  deleted       nothing that was deleted or pruned comes back
  order         no checkpoint is stored without its parent, nor after what others wrote since it was given up
  rejected      nothing is rejected that Postgres accepts and whose parent somebody has
  content       a hit has the values of the checkpoint that it returns
  convergence   once everything is healed, all is flushed, nobody gets `BehindError`, and a hit is what is stored

    python -m tests.models.write_behind_model                 # every rule on: no violation
    python -m tests.models.write_behind_model --drop RULE     # without one rule: a violation

Two checks are not rules, as some 3,000 runs found no violation without them: a journal is replayed only from the
registered epoch, and trimmed only under a right, for who lacks one may not know that Postgres has lost the replay.
Transactions need not compare the identity of Postgres: whether all is restored, and whose row is fenced, says as
much.

Not modelled: the removal of old rows of processes, processes that end in order, and pending writes that replace
others. Nor what other models have: entries under fences (`coherence_model`), and how a former epoch is used again
and how long a write waits that Redis did not confirm (`serving_model`), here always as long as a right lasts.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.models import command

RULES = {
    "owner": "APPEND adds to a journal of its own process only, or to an empty one",
    "base": "and only to the checkpoint in the entry; a write on an older one is written through",
    "epoch": "a script runs only on the server epoch that its process knows, which ends when Redis is emptied too",
    "right": "a reply of Redis counts, for a read or an append, only under a right for the epoch that sent it",
    "memory": "a process keeps what it appended until Postgres has decided on it",
    "once": "a write that the row of its process names as decided is not stored again",
    "own-row": "a process flushes only while its row is not fenced, and locks it",
    "dead": "a row is fenced once it has not changed for longer than a right lasts",
    "beat": "under one identity of Postgres: the number of a heartbeat may come again under another",
    "locked": "but not while a transaction has it locked",
    "flush-first": "a process registers another epoch, or none, once all in its memory is decided",
    "open": "an epoch is used once no row that is not fenced names another",
    "registered": "a right needs the process' epoch to be the registered one",
    "journal": "with Redis, Postgres is read or written once the journal of the thread is empty",
    "ask": "without Redis, once every process with an epoch has flushed the thread on request",
    "swept": "and none is fenced whose journals may be in Redis still",
    "drop": "an entry is dropped if a write of its thread was rejected, or decided by another process",
    "stale": "a thread is marked as stale in the transaction that stores what Redis may not show",
    "parent": "a write whose parent is not stored is rejected",
    "poison": "a write that Postgres refuses is rejected alone, with what follows on it",
    "wake": "a fenced process that wakes up stores only what follows on the latest checkpoint",
    "root": "and not what follows on nothing: that thread may have been deleted",
    "wake-swept": "once its journals were swept: what they had is stored",
    "entry": "an entry of another identity of Postgres does not exist",
    "retain": "flushed writes are kept for a while, and stored again if Postgres has lost them",
    "in-hand": "and so are those of a journal whose replay has not been answered: its commit may be lost already",
    "grace": "after a new identity nobody reads or writes until all processes had the time to bring those",
    "late": "a process that comes later, or missed an identity under which others went on, is fenced",
    "sweep": "and nobody reads without Redis until its journals were swept: rows may be lost too",
}

RIGHT = 4
DEAD = 8
FENCE = 12
FAULTS = {
    **dict.fromkeys(("redis", "postgres", "die"), 2),
    **dict.fromkeys(("follow", "back", "evict", "backup", "thaw"), 3),
    **dict.fromkeys(("freeze", "cut", "mend"), 4),
    "empty": 1,
}
"""Frequency of each fault, in relation to the others."""
COUNTED = (
    *("append", "flushed", "replayed", "stored", "rejected", "hit", "load", "asked", "answered"),
    *("read without Redis", "fork", "deleted", "pruned", "copied", "opened", "fenced", "swept"),
    *("woken", "announced", "restored", "given up", "lost"),
)
EMPTY = (0,)
Step = Generator[None, None, None]
Lineage = tuple[int, ...]
"""Checkpoint ids from the first to this one: what its values are made of."""


class Write(NamedTuple):
    """A checkpoint. Ids grow, so that they order the writes of a process too."""

    token: int
    """Token of its process; 0 if it was written through."""
    thread: int
    id: int
    lineage: Lineage
    is_poison: bool = False

    @property
    def parent(self) -> int:
        return self.lineage[-2]


class Refused(Exception):
    """The server did not do it, or did not say so."""


class Fenced(Exception):
    """The row of the process is fenced."""


class BehindError(Exception):
    """Postgres may lack acknowledged writes of the thread."""


# -- Redis ---------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    lineage: Lineage
    identity: int


@dataclass
class CachedThread:
    """Data of a thread in Redis. Each method is one script, or a part of one."""

    on: Callable[[str], bool]
    generation: int = 0
    entry: Entry | None = None
    journal: list[Write] = field(default_factory=list)
    fences: dict[int, int] = field(default_factory=dict)
    """Deadlines, by token."""

    def purge(self, now: int, fresh: int) -> None:
        if any(deadline <= now for deadline in self.fences.values()):
            self.fences = {token: deadline for token, deadline in self.fences.items() if deadline > now}
            self.invalidate(fresh)

    def invalidate(self, fresh: int) -> None:
        """Drop the entry. A load from before cannot become one."""
        self.generation, self.entry = fresh, None

    def append(self, write: Write, identity: int) -> bool:
        entry = self.entry
        if entry is None or (self.on("entry") and entry.identity != identity):
            return False
        if self.on("base") and entry.lineage[-1] != write.parent:
            return False
        if self.on("owner") and any(other.token != write.token for other in self.journal):
            return False
        self.entry = entry._replace(lineage=(*entry.lineage, write.id))
        self.journal.append(write)
        return True

    def trim(self, ids: set[int], fresh: int, *, drop: bool) -> None:
        self.journal = [write for write in self.journal if write.id not in ids]
        if drop and self.on("drop"):
            self.invalidate(fresh)

    def fill(self, generation: int, entry: Entry, fresh: int) -> None:
        """Make a load the entry, once for each generation."""
        if self.generation == generation and not self.fences and not self.journal:
            self.generation, self.entry = fresh, entry

    def begin(self, token: int, deadline: int, fresh: int) -> list[Write]:
        """Take a fence, unless there is a journal to be flushed first: return that."""
        if not self.journal or not self.on("journal"):
            self.fences[token] = deadline
            self.invalidate(fresh)
            return []
        return list(self.journal)

    def commit(self, token: int, fresh: int) -> bool:
        """Release the fence. Return whether it was there."""
        self.invalidate(fresh)
        return self.fences.pop(token, None) is not None


@dataclass
class Server:
    """A Redis primary."""

    epoch: int
    on: Callable[[str], bool]
    alive: bool = True
    threads: defaultdict[int, CachedThread] = field(init=False)

    def __post_init__(self) -> None:
        self.threads = defaultdict(lambda: CachedThread(self.on))

    def replica(self, epoch: int, rng: random.Random, *, empty: bool) -> Server:
        """Return what it becomes after a failover: each journal may lack its end. Its entries are of before."""
        successor = Server(epoch, self.on)
        for number, thread in self.threads.items():
            kept = rng.choice((len(thread.journal), rng.randint(0, len(thread.journal))))
            successor.threads[number].journal = [] if empty else thread.journal[:kept]
        return successor


# -- Postgres ------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Row of a process."""

    epoch: int = 0
    identity: int = 0
    beat: int = 0
    is_fenced: bool = False
    is_swept: bool = False
    """True if no journal in Redis has anything of it that is not decided. For fenced rows."""
    decided: set[int] = field(default_factory=set)
    """Ids of its writes that are stored or rejected."""
    locks: int = 0


@dataclass
class Postgres:
    identity: int = 1
    started: int = -100
    threads: defaultdict[int, dict[int, Lineage]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[int, Row] = field(default_factory=dict)
    registered: int = 0
    rejected: set[Write] = field(default_factory=set)
    stale: dict[int, int] = field(default_factory=dict)
    """Marks of stale threads."""
    brought: set[Write] = field(default_factory=set)
    """Writes that a former identity had, or was to have, of processes that came in time."""
    restored: int = 1
    """Identity under which they were stored or rejected."""
    swept: int = 1
    """Identity under which the journals in Redis were swept."""
    gone: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Deleted and pruned ids of each thread; for the checks only."""
    stored_at: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Time of the last write to a thread, and its id; for the checks only."""

    def state(self, thread: int) -> Lineage:
        rows = self.threads[thread]
        return rows[max(rows)] if rows else EMPTY


@dataclass(eq=False)
class Process:
    token: int
    server: Server
    writes_behind: bool
    identity: int
    epoch: int = 0
    usable: bool = False
    right_until: int = -1
    reaches_redis: bool = True
    reaches_postgres: bool = True
    frozen: bool = False
    alive: bool = True
    is_flushing: bool = False
    is_fenced: bool = False
    """True once it knows."""
    memory: list[Write] = field(default_factory=list)
    retained: list[Write] = field(default_factory=list)
    """Writes that it has seen decided."""
    in_hand: list[Write] = field(default_factory=list)
    """Writes of others' journals that it is storing."""
    former: list[Write] = field(default_factory=list)
    """Writes that it had when its row was fenced."""
    stored: set[int] = field(default_factory=set)
    unconfirmed: set[int] = field(default_factory=set)
    """Ids of writes that Redis may lack."""
    forgotten: list[Write] = field(default_factory=list)
    """Writes that it should have kept; for the checks only."""
    seen: dict[int, tuple[tuple[int, int], int]] = field(default_factory=dict)
    """Identity of Postgres and beat of each row, and since when by its own clock."""


@dataclass(eq=False)
class Request:
    """Request to flush a thread."""

    thread: int
    pending: set[int]
    """Tokens of those who have not answered."""


@dataclass(eq=False)
class Transaction:
    """A flush under way. It may outlive its process."""

    writes: list[Write]
    unconfirmed: set[int]
    """Ids of writes that Redis may lack."""
    done: bool = False
    failed: bool = True
    stored: set[int] = field(default_factory=set)
    drop: set[int] = field(default_factory=set)
    """Threads of which something was rejected, or had been decided by another process."""


class World:
    def __init__(self, rng: random.Random, dropped: str | None) -> None:
        self.rng, self.on = rng, command.all_but(dropped)
        # Each run has its own mixture: some violations need many faults of one kind, and few of another.
        self.longest_pause = rng.choice((1, 10, 80))
        self.fault_weights = [weight * rng.choice((0.3, 1, 3)) for weight in FAULTS.values()]
        self.ids = itertools.count(1)
        self.now = 0
        self.servers = [Server(next(self.ids), self.on)]
        self.postgres = Postgres()
        self.backup: Postgres | None = Postgres()
        self.processes = [self.new_process(writes_behind=number < 2) for number in range(3)]
        self.threads = [1, 2]
        self.requests: list[Request] = []
        self.in_flight: list[tuple[Process | None, Step]] = []
        self.acked: set[Write] = set()
        """Acknowledged, and to be seen by every read."""
        self.owed: set[Write] = set()
        """Acknowledged, and to be stored or rejected in the end."""
        self.given_up: dict[Write, int] = {}
        """Time since which at most a fenced process has a write."""
        self.changes = itertools.count(1)
        self.lineages: dict[int, Lineage] = {0: EMPTY}
        self.counts: Counter[str] = Counter()

    def new_process(self, *, writes_behind: bool) -> Process:
        return Process(next(self.ids), self.servers[-1], writes_behind, self.postgres.identity)

    def some_process(self) -> Process:
        return self.rng.choice(self.processes)

    # -- what is owed ----------------------------------------------------------------------------------------

    def acknowledge(self, write: Write) -> None:
        if write not in self.postgres.rejected and write.id not in self.postgres.gone[write.thread]:
            self.acked.add(write)
            self.owed.add(write)

    def is_stored(self, write: Write) -> bool:
        return write.id in self.postgres.threads[write.thread]

    def journals(self) -> set[Write]:
        """Return what the journals of the registered Redis have."""
        servers = [server for server in self.servers if server.alive]
        server = next((s for s in servers if s.epoch == self.postgres.registered), servers[-1])
        return {write for thread in server.threads.values() for write in thread.journal}

    def holders(self, write: Write) -> list[Process]:
        return [p for p in self.processes if any(write in had for had in (p.memory, p.retained, p.forgotten))]

    def is_member(self, token: int) -> bool:
        """Return whether others wait for this process."""
        postgres = self.postgres
        row = postgres.rows.get(token)
        if row is None:
            return self.in_grace()
        return not row.is_fenced and (row.identity == postgres.identity or self.in_grace())

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """Forgive what a fault takes from all who had it. What is lost without a fault stays owed."""
        journals = self.journals()
        waited_for = {write for write in self.owed if self.is_waited_for(write, journals)}
        had = {write for write in self.owed if self.is_anywhere(write, journals)}
        yield
        journals = self.journals()
        for write in waited_for:
            if not self.is_waited_for(write, journals):
                self.give_up(write)
        for write in had:
            if not self.is_anywhere(write, journals):
                self.owed.discard(write)
                self.counts["lost"] += 1

    def give_up(self, write: Write) -> None:
        """Expect no read to return this, nor what follows on it."""
        self.given_up[write] = next(self.changes)
        self.counts["given up"] += 1
        for other in list(self.acked):
            if other.thread == write.thread and write.id in other.lineage and not self.is_stored(other):
                self.acked.discard(other)

    def is_anywhere(self, write: Write, journals: set[Write]) -> bool:
        """Return whether a server has this, or a process that is alive, if only one that is fenced."""
        if self.is_stored(write) or write in self.postgres.brought or write in journals:
            return True
        return bool(self.holders(write)) or any(write in process.former for process in self.processes)

    def is_waited_for(self, write: Write, journals: set[Write]) -> bool:
        """Return whether this is stored, or known to be missing."""
        if self.is_stored(write) or write in self.postgres.brought or write in journals:
            return True
        return any(self.is_member(process.token) for process in self.holders(write))

    # -- statements ------------------------------------------------------------------------------------------

    def in_grace(self) -> bool:
        return self.now < self.postgres.started + DEAD

    def connect(self, process: Process) -> Postgres:
        """Begin a transaction that reads or writes threads."""
        postgres = self.postgres
        if not process.reaches_postgres or (self.on("grace") and postgres.restored != postgres.identity):
            raise Refused
        return postgres

    def row_of(self, token: int) -> Row:
        """Return the row of a process. One that Postgres has lost counts as fenced."""
        return self.postgres.rows.setdefault(token, Row(identity=self.postgres.identity, is_fenced=True))

    def decide(self, write: Write) -> str:
        """Store or reject a write, if that is not done yet."""
        decided = self.row_of(write.token).decided
        if write.id in decided and self.on("once"):
            return "known"
        decided.add(write.id)
        is_parent_stored = write.parent in (0, *self.postgres.threads[write.thread])
        if write.is_poison or (self.on("parent") and not is_parent_stored):
            return self.reject(write)
        return self.store(write)

    def store(self, write: Write) -> str:
        postgres = self.postgres
        rows = postgres.threads[write.thread]
        if write.id in postgres.gone[write.thread]:
            raise AssertionError(f"deleted: {write} comes back")
        if write.parent not in (0, *rows):
            raise AssertionError(f"order: {write} is stored without its parent")
        since, last = postgres.stored_at.get(write.thread, (0, 0))
        if self.given_up.get(write, since) < since and last not in write.lineage:
            raise AssertionError(f"order: {write} is stored after what others wrote since it was given up")
        rows[write.id] = write.lineage
        postgres.stored_at[write.thread] = next(self.changes), write.id
        self.counts["stored"] += 1
        return "stored"

    def reject(self, write: Write) -> str:
        known = {0, *self.postgres.threads[write.thread], *(w.id for w in self.acked if w.thread == write.thread)}
        if write in self.acked and not write.is_poison and write.parent in known:
            raise AssertionError(f"rejected: {write} though its parent is there")
        self.postgres.rejected.add(write)
        self.acked.discard(write)
        self.owed.discard(write)
        self.counts["rejected"] += 1
        return "rejected"

    def mark_stale(self, thread: int) -> None:
        if self.on("stale"):
            self.postgres.stale[thread] = next(self.ids)

    def call(self, process: Process, script: Callable[[CachedThread], Any], thread: int) -> Any:
        """Run a script."""
        if not process.usable:
            raise Refused
        server = process.server
        is_known = server.epoch == process.epoch or not self.on("epoch")
        if not process.reaches_redis or not server.alive or not is_known:
            process.usable = False
            raise Refused
        cached = server.threads[thread]
        cached.purge(self.now, next(self.ids))
        reply = script(cached)
        if self.rng.random() < 0.02:
            process.usable = False
            raise Refused  # the reply is lost
        return reply

    # -- heartbeats, epochs, fences --------------------------------------------------------------------------

    def has_right(self, process: Process, epoch: int | None = None) -> bool:
        """Return whether what Redis says counts, and what it said when the process used that epoch."""
        if not self.on("right"):
            return process.usable
        return process.usable and self.now < process.right_until and epoch in (None, process.epoch)

    def heartbeat(self, process: Process) -> Step:
        sent = self.now
        yield
        postgres = self.postgres
        if not process.reaches_postgres:
            return
        if process.identity != postgres.identity:
            self.announce(process)
            return
        row = postgres.rows.setdefault(process.token, Row(identity=postgres.identity))
        if row.is_fenced:
            process.is_fenced, process.usable = True, False
            return
        row.beat += 1
        if not process.usable and (not process.memory or not self.on("flush-first")):
            row.epoch = 0
        registered, stale = postgres.registered, dict(postgres.stale)
        is_settled = postgres.restored == postgres.identity
        yield
        if self.on("registered") and registered != process.epoch:
            process.usable = False
        if not process.usable:
            return
        for thread, mark in stale.items():
            self.call(process, lambda cached: cached.invalidate(next(self.ids)), thread)
            yield
            if postgres.stale.get(thread) == mark:
                del postgres.stale[thread]
        if is_settled and process.usable and process.identity == self.postgres.identity:
            process.right_until = max(process.right_until, sent + RIGHT)

    def reopen(self, process: Process) -> Step:
        """Register the epoch of the Redis that a process has found, and use it when nobody uses another."""
        server = process.server
        if not process.reaches_redis or not server.alive:
            return
        epoch = server.epoch
        yield from self.flush(process)
        postgres = self.connect(process)
        row = postgres.rows.get(process.token)
        if row is None or row.is_fenced or (process.memory and self.on("flush-first")):
            return
        if epoch < postgres.registered:
            return  # `serving_model` has how a former one is used again
        with self.losing():
            postgres.registered = process.epoch = row.epoch = epoch
        yield
        others = {other.epoch for other in postgres.rows.values() if not other.is_fenced}
        if others - {0, epoch} and self.on("open"):
            return
        process.usable, process.right_until = True, -1
        self.counts["opened"] += 1
        yield from self.heartbeat(process)

    def fence_silent(self, process: Process) -> None:
        """Fence the rows that have not changed for long."""
        postgres = self.connect(process)
        for token, row in postgres.rows.items():
            beat = (postgres.identity if self.on("beat") else 0, row.beat)
            seen, since = process.seen.get(token, ((-1, -1), 0))
            if beat != seen:
                process.seen[token] = (beat, self.now)
            is_silent = beat == seen and self.now - since > (DEAD if self.on("dead") else 0)
            is_locked = row.locks and self.on("locked")
            if is_silent and not is_locked and not row.is_fenced and token != process.token:
                with self.losing():
                    row.is_fenced = True
                self.counts["fenced"] += 1

    def tend(self, process: Process) -> Step:
        """Do what every process does all the time."""
        with contextlib.suppress(Refused, Fenced):
            yield from self.heartbeat(process)
            self.restore(process)
            if process.is_fenced:
                self.wake(process)
            elif process.former:
                self.decide_former(process)
            if not process.usable and not process.is_fenced:
                yield from self.reopen(process)
        yield
        with contextlib.suppress(Refused, Fenced):
            self.fence_silent(process)
            yield from self.answer(process)

    # -- another identity of Postgres ------------------------------------------------------------------------

    def announce(self, process: Process) -> None:
        """Learn of a new identity: bring what it may lack."""
        postgres = self.postgres
        process.right_until = -1
        row = postgres.rows.get(process.token)
        is_late = (not self.in_grace() or process.identity < postgres.restored) and self.on("late")
        process.identity = postgres.identity
        if is_late or (row and row.is_fenced):
            process.is_fenced, process.usable = True, False
            return
        row = postgres.rows.setdefault(process.token, Row())
        row.identity, row.epoch, row.beat = postgres.identity, process.epoch, row.beat + 1
        with self.losing():
            postgres.registered = max(postgres.registered, process.epoch)
        brought = list(process.memory)
        brought += process.retained if self.on("retain") else ()
        brought += process.in_hand if self.on("in-hand") else ()
        rows = postgres.rows
        postgres.brought |= {w for w in brought if w.token not in rows or w.id not in rows[w.token].decided}
        self.counts["announced"] += 1

    def restore(self, process: Process) -> None:
        """Decide on all that was brought, once all had the time to bring it."""
        postgres = self.postgres
        is_known = process.reaches_postgres and process.identity == postgres.identity
        if not is_known or self.in_grace() or postgres.restored == postgres.identity:
            return
        for row in postgres.rows.values():
            row.is_fenced |= row.identity != postgres.identity and self.on("late")
        for write in sorted(postgres.brought, key=lambda write: write.id):
            self.decide(write)
        postgres.brought, postgres.restored = set(), postgres.identity
        self.counts["restored"] += 1

    def wake(self, process: Process) -> None:
        """Go on as a new process after the row was fenced. What it had waits."""
        process.former += [*process.memory, *process.retained]
        process.memory, process.retained = [], []
        process.token, process.epoch = next(self.ids), 0
        process.is_fenced = process.usable = False
        self.counts["woken"] += 1

    def decide_former(self, process: Process) -> None:
        """Store or reject what a process had when its row was fenced, unless others did."""
        postgres, waiting = self.connect(process), []
        for write in sorted({*process.former}, key=lambda write: write.id):
            row = self.row_of(write.token)
            if write.id in row.decided and self.on("once"):
                process.retained.append(write)
                continue
            if not row.is_swept and self.on("wake-swept"):
                waiting.append(write)
                continue
            row.decided.add(write.id)
            process.retained.append(write)
            follows = postgres.state(write.thread)[-1] == write.parent
            if write.is_poison or (self.on("wake") and not follows) or (self.on("root") and not write.parent):
                self.reject(write)
            else:
                self.store(write)
                self.mark_stale(write.thread)
        process.former = waiting

    # -- flushes ---------------------------------------------------------------------------------------------

    def transact(self, process: Process, writes: list[Write], *, is_own: bool, epoch: int = 0) -> Transaction:
        """Begin to store writes in one transaction, which goes on whatever becomes of the process."""
        postgres = self.connect(process)
        row = postgres.rows.get(process.token)
        locked = [postgres.rows[token] for token in {w.token for w in writes} if token in postgres.rows]
        if is_own and self.on("own-row"):
            if row is None or row.is_fenced:
                raise Fenced
        elif is_own:
            locked = []
        for each in locked:
            each.locks += 1
        transaction = Transaction(writes, process.unconfirmed)
        self.in_flight.append((None, self.commit(transaction, postgres, epoch, locked)))
        return transaction

    def commit(self, transaction: Transaction, postgres: Postgres, epoch: int, locked: list[Row]) -> Step:
        yield from self.pause()
        is_current = not epoch or epoch == postgres.registered
        is_refused = any(write.is_poison for write in transaction.writes) and not self.on("poison")
        if self.postgres is postgres and is_current and not is_refused:
            for write in transaction.writes:
                if self.decide(write) != "stored":
                    transaction.drop.add(write.thread)
                    continue
                transaction.stored.add(write.id)
                if write.id in transaction.unconfirmed:
                    self.mark_stale(write.thread)
            transaction.failed = False
        for row in locked:
            row.locks -= 1
        yield from self.pause()
        transaction.done = True

    def flush(self, process: Process, thread: int | None = None) -> Step:
        """Store what a process has in memory, or some of it."""
        if process.is_flushing:
            return
        process.is_flushing = True
        try:
            writes = [write for write in process.memory if thread in (None, write.thread)]
            writes = writes[: self.rng.choice((1, 10))]
            if not writes:
                return
            token, transaction = process.token, self.transact(process, writes, is_own=True)
            while not transaction.done:
                yield
            if process.token == token and not transaction.failed:
                process.retained += writes
                process.stored |= transaction.stored
                process.memory = [write for write in process.memory if write not in writes]
                self.counts["flushed"] += 1
                yield from self.trim(process, writes, transaction.drop)
        finally:
            process.is_flushing = False

    def trim(self, process: Process, writes: list[Write], drop: set[int]) -> Step:
        ids = {write.id for write in writes}
        for thread in {write.thread for write in writes}:
            yield
            if not self.has_right(process):
                return
            with contextlib.suppress(Refused):
                self.trim_thread(process, thread, ids, drop=thread in drop)

    def trim_thread(self, process: Process, thread: int, ids: set[int], *, drop: bool) -> None:
        self.call(process, lambda cached: cached.trim(ids, next(self.ids), drop=drop), thread)

    def pause(self) -> Step:
        for _ in range(self.rng.choice((1, self.longest_pause))):
            yield

    def replay(self, process: Process, journal: list[Write], epoch: int) -> Step:
        """Store what a journal says, whosever it is."""
        token = process.token
        process.in_hand += journal
        try:
            yield from self.pause()
            transaction = self.transact(process, journal, is_own=False, epoch=epoch)
            while not transaction.done:
                yield
        finally:
            for write in journal:
                process.in_hand.remove(write)
        if transaction.failed or process.token != token:
            raise Refused
        process.retained += journal
        self.counts["replayed"] += 1
        yield from self.trim(process, journal, {write.thread for write in journal})

    def sweep(self, process: Process) -> Step:
        """Replay journals of those who are fenced, or whose rows are lost, and what was not trimmed."""
        with contextlib.suppress(Refused, Fenced):
            postgres, epoch = self.connect(process), process.epoch
            fenced = [row for row in postgres.rows.values() if row.is_fenced and not row.is_swept]
            if not self.has_right(process):
                return
            for thread in list(process.server.threads):
                journal = self.call(process, lambda cached: list(cached.journal), thread)
                yield
                if any(self.has_to_be_swept(process, write) for write in journal):
                    yield from self.replay(process, journal, epoch)
            if self.connect(process) is postgres and postgres.registered == process.epoch == epoch:
                for row in fenced:
                    row.is_swept = True
                postgres.swept = postgres.identity
                self.counts["swept"] += 1

    def has_to_be_swept(self, process: Process, write: Write) -> bool:
        if write.token == process.token:
            return write not in process.memory
        return not self.is_member(write.token)

    def answer(self, process: Process) -> Step:
        """Flush threads on request."""
        for request in [request for request in self.requests if process.token in request.pending]:
            wanted = {write for write in process.memory if write.thread == request.thread}
            for _ in range(8):
                if not wanted & {*process.memory}:
                    request.pending.discard(process.token)
                    self.counts["answered"] += 1
                    break
                yield from self.flush(process, request.thread)
                yield

    def complete_without_redis(self, process: Process, thread: int, *, alone: bool = False) -> Step:
        """Wait until Postgres holds all that was acknowledged of a thread, as its rows of processes say."""
        postgres = self.connect(process)
        if self.on("sweep") and postgres.swept != postgres.identity:
            raise BehindError
        if self.on("swept") and any(row.is_fenced and not row.is_swept for row in postgres.rows.values()):
            raise BehindError
        pending = {token for token, row in postgres.rows.items() if row.epoch and not row.is_fenced}
        if alone and pending - {process.token}:
            raise BehindError
        if self.on("ask") and pending:
            request = Request(thread, pending)
            self.requests.append(request)
            try:
                yield from self.wait_for_answers(process, request)
            finally:
                self.requests.remove(request)
            self.counts["asked"] += 1

    def wait_for_answers(self, process: Process, request: Request) -> Step:
        since = self.now
        while request.pending:
            yield
            if process.token in request.pending:
                yield from self.flush(process, request.thread)
                if not any(write.thread == request.thread for write in process.memory):
                    request.pending.discard(process.token)
            if self.now > since + DEAD:
                raise BehindError

    # -- reads -----------------------------------------------------------------------------------------------

    def read(self, process: Process, thread: int) -> Generator[None, None, Lineage]:
        wanted = {write for write in self.acked if write.thread == thread}
        gone = set(self.postgres.gone[thread])
        lineage, ids = yield from self.find(process, thread)
        missing = {write.id for write in wanted & self.acked} - ids
        if missing and max(missing) > (0 if ids != {*lineage} else lineage[-1]):
            raise AssertionError(f"acknowledged: {lineage} of {thread} lacks {missing}")
        if lineage[-1] in gone & self.postgres.gone[thread]:
            raise AssertionError(f"deleted: {lineage} of {thread} is read")
        if lineage != self.lineages[lineage[-1]]:
            raise AssertionError(f"content: {lineage} is not {self.lineages[lineage[-1]]}")
        return lineage

    def find(self, process: Process, thread: int) -> Generator[None, None, tuple[Lineage, set[int]]]:
        """Return the latest checkpoint, and the ids of all that was seen."""
        try:
            found = yield from self.ask_redis(process, thread)
            if found is not None:
                return found, {*found}
            yield from self.complete_without_redis(process, thread)
            postgres = self.connect(process)
        except (Refused, Fenced):
            raise BehindError from None
        self.counts["read without Redis"] += 1
        return postgres.state(thread), {0, *postgres.threads[thread], -1}

    def ask_redis(self, process: Process, thread: int) -> Generator[None, None, Lineage | None]:
        for _ in range(4):
            if not self.has_right(process):
                return None
            epoch = process.epoch
            try:
                entry, generation, journal = self.call(process, self.look, thread)
                yield
                if not self.has_right(process, epoch):
                    return None
                if entry is not None and (entry.identity == process.identity or not self.on("entry")):
                    self.counts["hit"] += 1
                    return entry.lineage  # type: ignore[no-any-return]
                if not journal or not self.on("journal"):
                    identity, loaded = process.identity, self.connect(process).state(thread)
                    yield
                    with contextlib.suppress(Refused):
                        self.fill(process, thread, generation, Entry(loaded, identity))
                    self.counts["load"] += 1
                    return loaded
                yield from self.replay(process, journal, epoch)
            except Refused:
                return None
        raise BehindError

    def fill(self, process: Process, thread: int, generation: int, entry: Entry) -> None:
        self.call(process, lambda cached: cached.fill(generation, entry, next(self.ids)), thread)

    @staticmethod
    def look(cached: CachedThread) -> tuple[Entry | None, int, list[Write]]:
        return None if cached.fences else cached.entry, cached.generation, list(cached.journal)

    # -- writes ----------------------------------------------------------------------------------------------

    def run(self, process: Process) -> Step:
        """Read a thread, and write to it a few times."""
        thread = self.rng.choice(self.threads)
        with contextlib.suppress(BehindError, Refused, Fenced):
            base = yield from self.read(process, thread)
            if self.rng.random() < 0.15:
                base = base[: self.rng.randint(1, len(base))]
                self.counts["fork"] += 1
            for _ in range(self.rng.choice((1, 2, 4))):
                write = self.new_write(process, thread, base)
                was_appended = yield from self.append(process, write)
                if was_appended is None:
                    was_appended = yield from self.write_through(process, write)
                if not was_appended:
                    return
                self.acknowledge(write)
                base = write.lineage

    def new_write(self, process: Process, thread: int, base: Lineage) -> Write:
        number = next(self.ids)
        self.lineages[number] = (*base, number)
        is_poison = process.writes_behind and self.rng.random() < 0.05
        return Write(process.token, thread, number, self.lineages[number], is_poison)

    def append(self, process: Process, write: Write) -> Generator[None, None, bool | None]:
        """Return whether it counts; None if it has to be written through."""
        if not process.writes_behind or not self.has_right(process) or process.token != write.token:
            return None
        process.memory.append(write)
        is_confirmed, epoch = False, process.epoch
        with contextlib.suppress(Refused):
            if not self.call(process, lambda c: c.append(write, process.identity), write.thread):
                process.memory.remove(write)
                return None
            is_confirmed = True
        yield
        if is_confirmed and self.has_right(process, epoch):
            self.counts["append"] += 1
            if not self.on("memory") and write in process.memory:
                process.memory.remove(write)
                process.forgotten.append(write)
            return True
        process.unconfirmed.add(write.id)
        while write in process.memory:  # nobody knows whether others see it
            yield from self.flush(process, write.thread)
            yield
        if write.id not in process.stored:
            return False
        yield from self.wait_unconfirmed(process, write.thread)
        return self.is_stored(write)

    def wait_unconfirmed(self, process: Process, thread: int) -> Step:
        """Wait until nobody serves what the thread was before."""
        self.connect(process)
        self.mark_stale(thread)
        since = self.now
        while self.now <= since + RIGHT:
            yield

    def write_through(self, process: Process, write: Write) -> Generator[None, None, bool]:
        if write.is_poison:
            return False

        def store(postgres: Postgres) -> bool:
            if write.parent not in (0, *postgres.threads[write.thread]):
                return False
            return self.store(write) == "stored"

        return (yield from self.change(process, write.thread, store))

    def change(
        self, process: Process, thread: int, body: Callable[[Postgres], bool], *, alone: bool = False
    ) -> Generator[None, None, bool]:
        """Change a thread in Postgres, under a fence. Return whether that was done."""
        token, deadline = next(self.ids), self.now + FENCE
        is_fenced = yield from self.begin(process, thread, token, deadline)
        if not is_fenced:
            yield from self.complete_without_redis(process, thread, alone=alone)
        postgres = self.connect(process)
        yield
        if self.postgres is not postgres or self.now >= deadline - 1 or not body(postgres):
            return False
        if not is_fenced:
            self.mark_stale(thread)
        yield
        is_confirmed = False
        if is_fenced:
            with contextlib.suppress(Refused):
                is_confirmed = self.call(process, lambda cached: cached.commit(token, next(self.ids)), thread)
                yield
        if not is_confirmed or not self.has_right(process):
            yield from self.wait_unconfirmed(process, thread)
        return self.postgres is postgres  # else it may be lost already

    def begin(self, process: Process, thread: int, token: int, deadline: int) -> Generator[None, None, bool]:
        """Return whether a fence was taken, with nothing to be flushed."""
        for _ in range(4):
            if not self.has_right(process):
                return False
            epoch = process.epoch
            try:
                journal = self.call(process, lambda cached: cached.begin(token, deadline, next(self.ids)), thread)
                yield
                if not self.has_right(process, epoch):
                    return False
                if not journal:
                    return True
                yield from self.replay(process, journal, epoch)
            except Refused:
                return False
        raise BehindError

    def delete(self, process: Process, *, keep_latest: bool) -> Step:
        """Delete a thread, or all of it but its latest checkpoint."""
        thread = self.rng.choice(self.threads)
        known = {write for write in self.owed if write.thread == thread}

        def body(postgres: Postgres) -> bool:
            rows = postgres.threads[thread]
            kept = {max(rows)} if keep_latest and rows else set()
            gone = ({*rows} - kept) if keep_latest else {*rows, *(write.id for write in known)}
            postgres.gone[thread] |= gone
            postgres.threads[thread] = {number: rows[number] for number in kept}
            for writes in (self.acked, self.owed):
                writes -= {write for write in writes if write.thread == thread and write.id in gone}
            self.counts["pruned" if keep_latest else "deleted"] += 1
            return True

        with contextlib.suppress(BehindError, Refused, Fenced):
            yield from self.change(process, thread, body, alone=True)

    def copy(self, process: Process) -> Step:
        """Copy a thread to a new one."""
        source = self.rng.choice(self.threads)
        if len(self.threads) > 3:
            return
        wanted = {write for write in self.acked if write.thread == source}
        with contextlib.suppress(BehindError, Refused, Fenced):
            token = next(self.ids)
            if (yield from self.begin(process, source, token, self.now + FENCE)):
                with contextlib.suppress(Refused):
                    self.call(process, lambda cached: cached.commit(token, next(self.ids)), source)
            else:
                yield from self.complete_without_redis(process, source)
            postgres = self.connect(process)
            missing = {write.id for write in wanted & self.acked} - {*postgres.threads[source]}
            if missing:
                raise AssertionError(f"acknowledged: a copy of {source} lacks {missing}")
            target = next(self.ids)
            postgres.threads[target] = dict(postgres.threads[source])
            self.threads.append(target)
            self.counts["copied"] += 1
            yield
            for number, lineage in postgres.threads[target].items():
                if postgres is self.postgres:
                    self.acknowledge(Write(0, target, number, lineage))

    def flush_all(self, process: Process) -> Step:
        with contextlib.suppress(Refused, Fenced):
            yield from self.flush(process)

    def read_only(self, process: Process) -> Step:
        with contextlib.suppress(BehindError):
            yield from self.read(process, self.rng.choice(self.threads))

    # -- faults ----------------------------------------------------------------------------------------------

    def fault(self) -> None:
        process = self.some_process()
        kind = self.rng.choices(tuple(FAULTS), self.fault_weights)[0]
        self.counts[kind] += 1
        if kind in ("redis", "empty"):
            self.fail_over_redis(empty=kind == "empty")
        elif kind == "follow":
            process.server = self.servers[-1]
        elif kind == "back":
            process.server = self.rng.choice([server for server in self.servers if server.alive])
        elif kind == "die":
            self.kill(process)
        elif kind in ("freeze", "thaw"):
            process.frozen = kind == "freeze"
        elif kind in ("cut", "mend"):
            if self.rng.random() < 0.5:
                process.reaches_redis = kind == "mend"
            else:
                process.reaches_postgres = kind == "mend"
        elif kind == "evict":
            process.server.threads[self.rng.choice(self.threads)].entry = None
        elif kind == "backup":
            self.backup = copy.deepcopy(self.postgres)
        elif self.backup is not None:
            self.fail_over_postgres(self.backup)

    def fail_over_redis(self, *, empty: bool) -> None:
        """The old primary dies, or lives on beside the new one. Some processes notice."""
        with self.losing():
            self.servers.append(self.servers[-1].replica(next(self.ids), self.rng, empty=empty))
            self.servers[-2].alive = not empty and self.rng.random() < 0.5
            for process in self.processes:
                if empty or self.rng.random() < 0.5:
                    process.server = self.servers[-1]

    def fail_over_postgres(self, backup: Postgres) -> None:
        """Postgres loses its last commits."""
        rejected = self.postgres.rejected
        with self.losing():
            backup.identity, backup.started = next(self.ids), self.now
            self.postgres, self.backup = backup, None
            for row in backup.rows.values():
                row.locks = 0
        journals = self.journals()
        self.owed |= {write for write in rejected - backup.rejected if self.is_anywhere(write, journals)}

    def kill(self, process: Process) -> None:
        with self.losing():
            process.alive = False
            successor = self.new_process(writes_behind=process.writes_behind)
            self.processes[self.processes.index(process)] = successor

    def pass_time(self) -> None:
        if self.in_grace():
            with self.losing():
                self.now += 1
        else:
            self.now += 1

    # -- convergence -----------------------------------------------------------------------------------------

    def check_convergence(self) -> None:
        for process in self.processes:
            process.reaches_redis = process.reaches_postgres = True
            process.frozen = False
        for _ in range(3 * DEAD):
            self.work_for_a_while()
        for process in self.processes:
            if process.memory:
                raise AssertionError("convergence: a process has unflushed writes")
            for thread in self.threads:
                lineage = self.read_healed(process, thread)
                if lineage != self.postgres.state(thread):
                    raise AssertionError(f"convergence: {lineage} is cached, {self.postgres.state(thread)} stored")
        if any(thread.journal for thread in self.servers[-1].threads.values()):
            raise AssertionError("convergence: a journal is left")
        if lost := {write for write in self.owed if not self.is_stored(write)}:
            raise AssertionError(f"lost: {lost}")

    def work_for_a_while(self) -> None:
        """Let time pass, and each process do once what it does all the time."""
        self.pass_time()
        for process in self.processes:
            if not process.usable:
                process.server = self.servers[-1]
            for steps in (self.tend(process), self.flush_all(process), self.sweep(process)):
                while advance(steps):
                    self.end_transactions()

    def read_healed(self, process: Process, thread: int) -> Lineage:
        self.work_for_a_while()
        steps = self.read(process, thread)
        try:
            while True:
                next(steps)
                self.end_transactions()
                if self.requests:
                    self.work_for_a_while()
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except BehindError:
            raise AssertionError("convergence: BehindError") from None

    def end_transactions(self) -> None:
        for owner, steps in list(self.in_flight):
            if owner is None:
                while advance(steps):
                    pass
        self.in_flight.clear()

    def cancel_calls(self) -> None:
        """End what callers wait for; transactions go on."""
        for owner, steps in self.in_flight:
            if owner is not None:
                steps.close()
        self.in_flight = [step for step in self.in_flight if step[0] is None]
        self.requests.clear()


def explore(seed: int, dropped: str | None = None) -> dict[str, int]:
    """Run one random interleaving. Return how often what happened; raise `AssertionError` for a violation."""
    rng = random.Random(seed)
    world = World(rng, dropped)
    try:
        interleave(world, rng)
        world.cancel_calls()
        world.end_transactions()
        world.check_convergence()
    finally:
        world.cancel_calls()
    return world.counts


def interleave(world: World, rng: random.Random) -> None:
    """Run what processes do, in a random order."""
    makers: tuple[Callable[[Process], Step], ...] = (
        world.run,
        world.read_only,
        world.tend,
        world.flush_all,
        world.sweep,
        world.copy,
        lambda process: world.delete(process, keep_latest=False),
        lambda process: world.delete(process, keep_latest=True),
    )
    weights = [weight * rng.choice((0.3, 1, 3)) for weight in (5, 4, 0, 2, 2, 0.2, 1, 0.5)]
    length, speed, faults = rng.choice((400, 1200)), rng.choice((0.05, 0.1, 0.3)), rng.choice((0.02, 0.04, 0.1))
    tending: dict[Process, Step] = {}
    world.work_for_a_while()
    for _ in range(length):
        if rng.random() < speed:
            world.pass_time()
        if rng.random() < faults:
            world.fault()
        process = world.some_process()
        if rng.random() < 0.5 and not process.frozen:
            tending.setdefault(process, world.tend(process))
            if not advance(tending[process]):
                del tending[process]
        elif len(world.in_flight) < 6 and rng.random() < 0.4:
            world.in_flight.append((process, rng.choices(makers, weights)[0](process)))
        elif world.in_flight:
            step = rng.choice(world.in_flight)
            owner, steps = step
            if owner is not None and not owner.alive:
                world.in_flight.remove(step)
                steps.close()
            elif (owner is None or not owner.frozen) and not advance(steps):
                world.in_flight.remove(step)


def advance(steps: Step) -> bool:
    """Take one step. Return whether there are more."""
    try:
        next(steps)
    except StopIteration:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(command.run(__doc__.splitlines()[0], RULES, explore))
