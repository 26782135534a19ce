"""Executable model of the coherence protocol, over one (thread_id, checkpoint_ns), that of a subgraph.

Of the thread's root namespace it has what concerns the other: that a read of the root may find the thread empty in
Postgres, after which every namespace that nobody has written to since is known to be empty.

It explores random interleavings of writers, readers, deletes, crashes, freezes, lost replies, evictions, restarts
and failovers of either server, transactions that outlive their process, and checks:

  acknowledged  no read returns a checkpoint or pending write older than one that was acknowledged before the
                read began, nor one that was deleted before it began;
  content       every read returns exactly the channel values that Postgres has for that checkpoint, and no
                pending write that Postgres does not have;
  history       no checkpoint is stored on one that Postgres has lost. After a failover of Postgres that lost
                commits, a process that has learned of it reads nothing of before;
  convergence   once nothing is in flight, every deadline has passed and the table of stale threads has been gone
                through, a hit is what Postgres holds, whoever crashed before. One case is left out: Redis loses a
                write's fence (an eviction or a restart) and the writer crashes too, inside that one write, or
                while the fence is active for it.

A write by a process that cannot reach Redis counts as acknowledged for the others once they have seen it in the
table of stale threads, or in Redis. Until then another write that Postgres did not keep for it may be in the
entry.

    python -m tests.models.coherence_model                 # every rule on: no violation
    python -m tests.models.coherence_model --drop RULE     # without one rule: a violation

`contract/test_scripts.py` takes the package's own scripts through the same interleavings, step by step with the
model.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.models import command

RULES = {
    "fence": "a write takes a fence before Postgres commits",
    "fill_token": "BEGIN invalidates the fill lease, so that a load from before cannot become the entry",
    "generation": "an entry of another generation does not exist",
    "restart": "a generation belongs to one server epoch",
    "promotion": "a server that becomes primary again is another server epoch, though the same process",
    "overdue": "a fence past its deadline holds until a reader has settled it",
    "settle": "which is if Postgres has no transaction of its process",
    "settle-first": "as asked before the load",
    "deadline": "a transaction that begins after its fence's deadline stores nothing",
    "identity": "a generation belongs to one identity of Postgres",
    "identity-write": "a transaction under another identity than its process knows stores nothing",
    "standby": "what was loaded from a standby does not become the entry",
    "parent": "nor is a checkpoint stored, once its process has learned of a new identity, without its parent",
    "base": "the entry is updated from the checkpoint's parent, or dropped",
    "others": "COMMIT drops the entry if another process' fence is there",
    "order": "one process' COMMITs to a namespace come in the order in which Postgres committed its writes",
    "early": "the entry keeps pending writes of checkpoints that are not there yet",
    "confirm": "a write returns only when Redis has confirmed its COMMIT, or Postgres that its thread is stale",
    "stale_threads": "a write whose fence Redis has not confirmed marks its thread stale, in its own transaction",
    "invalidate-first": "a stale thread is taken off the table when its entries have been invalidated, not before",
    "marks": "and only if no other write has made it a stale thread since",
    "watch": "a thread is known to have been empty only if no write to it began while that was asked",
    "names": "BEGIN notes its namespace, so that it is not taken for empty",
    "shared": "a fence stays active while another write of its process is under it",
    "given-up": "a fence that was released, or may have been, is not used again",
    "gone": "nor is one that a COMMIT did not find",
    "unknown": "nor one of a write of which nobody knows whether it has ended; it is not released either",
}

Values = tuple[int, int]  # of two channels: the checkpoint that set each
Writes = dict[int, dict[int, int]]  # checkpoint id -> slot -> the pending write there
KEEPS, REPLACES = 0, 1  # slots: one keeps its first write, one is replaced, as the two kinds do in Postgres
Acknowledge = Callable[[], None]  # makes what a write stored count as acknowledged
COUNTED = (
    *("hit", "load", "fenced", "wait", "empty", "filled", "advanced", "kept", "deleted", "invalidated"),
    *("settled", "unsettled", "too late", "outlived", "lost commits", "refused"),
)
NOTHING = 0  # the "checkpoint id" of a namespace without checkpoints


class Fresh(NamedTuple):
    """Random part of a new generation, with the identity of Postgres that its process knows."""

    identity: int
    number: int


Generation = tuple[int, Fresh]  # with the server epoch of Redis


class State(NamedTuple):
    """A namespace as Postgres holds it: latest checkpoint, and the pending writes of it and of later ones."""

    id: int
    values: Values
    writes: Writes


def latest(checkpoints: Mapping[int, Values], writes: Writes) -> State:
    newest = max(checkpoints, default=NOTHING)
    values = checkpoints.get(newest, (0, 0))
    return State(newest, values, {k: w for k, w in writes.items() if k >= newest})


def with_write(writes: Writes, of: int, slot: int, write: int) -> Writes:
    slots = dict(writes.get(of, {}))
    if slot == REPLACES:
        slots[slot] = write
    else:
        slots.setdefault(slot, write)
    return {**writes, of: slots}


class Reply(NamedTuple):
    """Reply to READ. `overdue`: fences past their deadline, with their owners, that a load has to settle."""

    kind: str
    state: State | None = None
    generation: Generation | None = None
    overdue: Mapping[int, int] = MappingProxyType({})


@dataclass
class Entry:
    generation: Generation
    state: State


@dataclass
class Fence:
    owner: int  # 0 for a fence over the whole thread
    late: bool = False


@dataclass
class Redis:
    """Data of one Redis primary for the thread, and what happens to it. Each method is one atomic step."""

    on: Callable[[str], bool]
    run_id: int = 1
    replication_id: int = 1
    generation: Generation | None = None
    fences: dict[int, Fence] = field(default_factory=dict)
    entry: Entry | None = None
    fill_token: tuple[int, Generation] | None = None
    root_fill_lease: int | None = None
    watch: int | None = None  # fill lease of the read of the root that may find the thread empty
    was_empty: Generation | None = None  # of this generation: what nobody has written to since is still empty
    noted: bool = False  # whether it is among the names of the namespaces that may have an entry
    names_lost: bool = False  # such a name was evicted since, which shows

    # -- scripts ---------------------------------------------------------------------------------------------

    def read(self, fill_token: int, fresh: Fresh, over: int = 0) -> Reply:
        self.fences.pop(over, None)
        overdue = self._overdue()
        if self.fences.keys() != overdue.keys():
            return Reply("fenced")
        generation = self._current_generation(fresh)
        if not overdue or not self.on("overdue"):
            if self.entry and (self.entry.generation == generation or not self.on("generation")):
                self.noted |= self.entry.state.id != NOTHING
                return Reply("hit", self.entry.state)
            if self.was_empty == generation and not self.noted and not self.names_lost:
                self.fill_token, self.entry = None, Entry(generation, State(NOTHING, (0, 0), {}))
                return Reply("empty", self.entry.state)
        if self.fill_token and self.fill_token[1] == generation:
            return Reply("wait")
        self._drop()
        self.fill_token = (fill_token, generation)
        return Reply("load", None, generation, overdue)

    def fill(
        self, fill_token: int, generation: Generation, state: State, fresh: Fresh, settled: Collection[int] = ()
    ) -> bool:
        if self.fences.keys() - settled or (self.on("fill_token") and self.fill_token != (fill_token, generation)):
            return False
        if self._current_generation(fresh) != generation:
            return False
        if not self.on("early"):
            state = state._replace(writes={k: w for k, w in state.writes.items() if k == state.id})
        self.fill_token, self.entry, self.noted = None, Entry(generation, state), True
        for token in settled:
            self.fences.pop(token, None)
        return True

    def read_root(self, fill_token: int, fresh: Fresh) -> Reply:
        """READ of the root, which has no entry."""
        overdue = {token: owner for token, owner in self._overdue().items() if owner == 0}
        if overdue.keys() != self._over_thread():
            return Reply("fenced")
        self.root_fill_lease = fill_token
        if not self.fences or not self.on("watch"):
            self.watch = fill_token
        return Reply("load", None, self._current_generation(fresh), overdue)

    def fill_root(
        self, fill_token: int, generation: Generation, fresh: Fresh, settled: Collection[int] = ()
    ) -> None:
        """FILL of the root, with "the thread has no checkpoints and no writes"."""
        if self.root_fill_lease != fill_token or self._over_thread() - set(settled):
            return
        for token in settled:
            self.fences.pop(token, None)
        if self._current_generation(fresh) == generation and (self.watch == fill_token or not self.on("watch")):
            self.was_empty, self.names_lost = generation, False

    def begin(self, token: int, owner: int, fresh: Fresh) -> None:
        self._current_generation(fresh)
        self.watch = None
        if self.on("names"):
            self.noted = True
        if self.on("fill_token"):
            self.fill_token = None
        if self.on("fence"):
            self.fences[token] = Fence(owner)

    def release(self, token: int) -> None:
        self.fences.pop(token, None)

    def commit_put(
        self, token: int, owner: int, parent: int, new: State, channel: int, fresh: Fresh, *, retain: bool
    ) -> bool | None:
        latest, reply = self._release(token, owner, fresh, retain=retain)
        if latest is None:
            return reply
        if latest.id > new.id:
            return False  # an older checkpoint, late: "latest" is the highest id
        if latest.id == new.id or (latest.id != parent and self.on("base")):
            self._drop()
            return False
        values = tuple(new.id if i == channel else v for i, v in enumerate(latest.values))
        writes = {k: w for k, w in latest.writes.items() if k >= new.id}
        return self._apply(State(new.id, values, writes))

    def commit_writes(
        self, token: int, owner: int, of: int, slot: int, write: int, fresh: Fresh, *, retain: bool
    ) -> bool | None:
        latest, reply = self._release(token, owner, fresh, retain=retain)
        if latest is None or of < latest.id or (of > latest.id and not self.on("early")):
            return reply
        return self._apply(latest._replace(writes=with_write(latest.writes, of, slot, write)))

    def commit_drop(self, token: int, owner: int, fresh: Fresh, *, retain: bool = False) -> bool | None:
        _, reply = self._release(token, owner, fresh, retain=retain)
        self._drop()
        return reply

    def begin_thread(self, token: int, fresh: Fresh) -> None:
        self.generation = (self._server_epoch(), fresh)
        self.fences[token] = Fence(owner=0)

    def end_thread(self, token: int, fresh: Fresh) -> None:
        self.fences.pop(token, None)
        self.generation = (self._server_epoch(), fresh)

    def _server_epoch(self) -> int:
        return self.replication_id if self.on("promotion") else self.run_id

    def _current_generation(self, fresh: Fresh) -> Generation:
        of_another = self.generation is not None and (
            (self.generation[0] != self._server_epoch() and self.on("restart"))
            or (self.generation[1].identity != fresh.identity and self.on("identity"))
        )
        if self.generation is None or of_another:
            self.generation = (self._server_epoch(), fresh)
        return self.generation

    def _overdue(self) -> dict[int, int]:
        return {token: fence.owner for token, fence in self.fences.items() if fence.late}

    def _over_thread(self) -> set[int]:
        return {token for token, fence in self.fences.items() if fence.owner == 0}

    def _fenced_by_others(self, owner: int) -> bool:
        """Say whether others than `owner` hold a fence, or anybody one past its deadline."""
        return any(fence.owner != owner or fence.late for fence in self.fences.values())

    def _release(self, token: int, owner: int, fresh: Fresh, *, retain: bool) -> tuple[State | None, bool | None]:
        """Return what a change may be applied to, else None; and the reply of COMMIT: None without its fence."""
        fenced = token in self.fences or not self.on("fence")
        if not retain:
            self.fences.pop(token, None)
        if not fenced and self.on("names"):
            self.watch = self.was_empty = None
        generation = self._current_generation(fresh)
        others = self._fenced_by_others(owner) and self.on("others")
        if self.entry and self.entry.generation == generation and not others and fenced:
            return self.entry.state, False
        self._drop()
        return None, False if fenced else None

    def _apply(self, state: State) -> bool:
        assert self.entry is not None
        self.entry = Entry(self.entry.generation, state)
        return True

    def _drop(self) -> None:
        self.entry = self.fill_token = None

    # -- what happens to it ----------------------------------------------------------------------------------

    def evict_entry(self) -> None:
        self._drop()

    def evict_thread(self) -> None:
        self.generation, self.fences = None, {}
        self.watch = self.was_empty = None

    def evict_names(self) -> None:
        self.names_lost |= self.noted
        self.noted = False

    def snapshot(self) -> Redis:
        return copy.deepcopy(self)

    def come_back_from(self, snapshot: Redis, *, run_id: int, replication_id: int) -> None:
        """Is replaced by an older state of itself: a restart from disk, or a failover to a lagging replica."""
        self.generation, self.fill_token = snapshot.generation, snapshot.fill_token
        self.fences, self.entry = copy.deepcopy(snapshot.fences), copy.deepcopy(snapshot.entry)
        self.watch, self.was_empty = snapshot.watch, snapshot.was_empty
        self.noted, self.names_lost = snapshot.noted, snapshot.names_lost
        self.run_id, self.replication_id = run_id, replication_id

    def pass_deadlines(self, tokens: set[int] | None = None) -> None:
        """Time passes the deadlines of these fences, or of all, and of the fill lease when it is all."""
        for token, fence in self.fences.items():
            fence.late |= tokens is None or token in tokens
        if tokens is None:
            self.fill_token = None


@dataclass(eq=False)
class SharedFence:
    """A fence as its process knows it."""

    token: int
    writes: int = 0  # under it
    lost: bool = False  # a fault took it away, and no COMMIT has noticed
    stays: bool = False  # a write under it may not have ended


class World:
    def __init__(self, rng: random.Random, dropped: str | None, redis: Redis | None = None) -> None:
        self.rng, self.on = rng, command.all_but(dropped)
        self.redis = redis or Redis(self.on)
        self.snapshot = self.redis.snapshot()
        self.checkpoints: dict[int, Values] = {}  # what Postgres holds
        self.writes: Writes = {}
        self.acked_id, self.acked_writes = NOTHING, set[tuple[int, int, int]]()
        self.deletes, self.deleted = 0, tuple[int, ...]()  # of those not acknowledged, the highest id then
        self.reserved: list[int] = []  # checkpoint ids whose writes came first
        self.ids = itertools.count(1)
        self.stale_thread: tuple[int, list[Acknowledge]] | None = (
            None  # the thread's row: its mark, and who is to see it
        )
        self.in_flight: set[int] = set()  # writes that have not ended
        self.unreachable: set[int] = set()  # of those, whose process cannot reach Redis
        self.unfenced: set[int] = set()  # of those, whose fence a fault took away
        self.crashed: set[int] = set()  # writes and deletes whose process has died
        self.past_deadline: set[int] = set()  # tokens of fences
        self.transactions: dict[int, int] = {}  # write or delete -> its process, whose lock the transaction holds
        self.outcomes: dict[int, str] = {}  # of transactions
        self.outliving: dict[int, Iterator[None]] = {}  # transactions whose process has died
        self.identity, self.rewinds = 1, 0  # of Postgres
        self.known = {0: 1, 1: 1, 2: 1}  # process -> the identity that it knows
        self.warned: set[int] = set()  # processes that have learned of another
        self.saved = self.stored_in_postgres()  # what Postgres may come back with
        self.lost: set[int] = set()  # checkpoints that it did not come back with
        self.queues: dict[int, list[int]] = {1: [], 2: []}  # owner -> its writes, in order
        self.stored: set[int] = set()  # writes that Postgres has committed
        self.sent: set[int] = set()  # writes whose COMMIT was sent
        self.active: dict[int, SharedFence] = {}  # owner -> the fence that its next write is under
        self.fence_of: dict[int, SharedFence] = {}  # of each write
        self.left: set[int] = set()  # fences that their process has released, and Redis perhaps not
        self.counts = dict.fromkeys(COUNTED, 0)

    def fresh(self, process: int = 0) -> Fresh:
        return Fresh(self.known[process], next(self.ids))

    def learn(self, process: int) -> None:
        if self.known[process] != self.identity:
            self.known[process] = self.identity
            self.warned.add(process)

    def latest(self) -> State:
        return latest(self.checkpoints, self.writes)

    # -- processes: generators that yield between atomic steps -----------------------------------------------

    def writer(self, operation: Callable[[int, int], Iterator[None]]) -> Iterator[None]:
        number, owner = next(self.ids), self.rng.choice((1, 2))
        queue = self.queues[owner]
        if self.rng.random() < 0.1:
            self.unreachable.add(number)
            self.forget(owner)
            fence = SharedFence(next(self.ids))
        else:
            fence = self.take(owner)
        self.in_flight.add(number)
        self.fence_of[number] = fence
        fence.writes += 1
        if fence.lost:
            self.unfenced.add(number)
        try:
            queue.append(number)
            yield
            yield from operation(number, owner)
        except GeneratorExit:  # a crash
            if number in self.unfenced:  # survives: only one fault
                self.end_in_postgres({number})
                self.redis.commit_drop(fence.token, owner, self.fresh(owner), retain=self.is_needed(fence, 1))
                self.not_again(owner, fence)
            else:
                self.crashed.add(number)
                if self.on("unknown"):
                    fence.stays = True
                    self.not_again(owner, fence)
            raise
        finally:
            queue.remove(number)
            self.in_flight.discard(number)
            fence.writes -= 1
            if not fence.writes and self.active.get(owner) is not fence:
                self.left.add(fence.token)

    def take(self, owner: int) -> SharedFence:
        """BEGIN, or a fence that is active already."""
        if owner not in self.active:
            self.active[owner] = SharedFence(next(self.ids))
            self.redis.begin(self.active[owner].token, owner, self.fresh(owner))
        return self.active[owner]

    def not_again(self, owner: int, fence: SharedFence) -> None:
        if self.active.get(owner) is fence:
            del self.active[owner]

    def forget(self, owner: int) -> None:
        """The fence may be active in Redis or not."""
        fence = self.active.pop(owner, None)
        if fence and not fence.writes:
            self.left.add(fence.token)

    def is_needed(self, fence: SharedFence, own: int) -> bool:
        """Say whether other writes are under it than so many of who asks."""
        return fence.stays or (fence.writes > own and self.on("shared"))

    def idle(self, owner: int) -> SharedFence | None:
        """A fence of this process that no write is under."""
        fence = self.active.get(owner)
        return fence if fence and not fence.writes else None

    def releaser(self) -> Iterator[None]:
        """A process releases a fence that it has retained, and Redis may not receive that."""
        owner = self.rng.choice((1, 2))
        if not (fence := self.idle(owner)):
            return
        if self.on("given-up"):
            self.forget(owner)
        yield
        if self.rng.random() < 0.8:
            self.redis.release(fence.token)

    def put(self, number: int, owner: int) -> Iterator[None]:
        base = self.latest()
        if self.rng.random() < 0.2:
            yield  # somebody else's checkpoint may come between: a fork
        new = self.reserved.pop(0) if self.reserved and self.rng.random() < 0.4 else next(self.ids)
        channel = self.rng.randrange(2)
        values = tuple(new if i == channel else v for i, v in enumerate(base.values))

        def store() -> None:
            if base.id in self.lost:
                raise AssertionError(f"history: {new} is stored on {base.id}, which is lost")
            self.checkpoints[new] = values

        def acknowledge() -> None:
            if new in self.checkpoints:  # not deleted meanwhile
                self.acked_id = max(self.acked_id, new)

        if not (yield from self.store(number, owner, store, acknowledge, base.id)):
            return
        token = self.fence_of[number].token
        yield from self.confirm(
            number,
            owner,
            lambda retain: self.redis.commit_put(
                token, owner, base.id, State(new, values, {}), channel, self.fresh(owner), retain=retain
            ),
            acknowledge,
        )

    def put_writes(self, number: int, owner: int) -> Iterator[None]:
        if self.rng.random() < 0.3 or not self.checkpoints:
            self.reserved.append(next(self.ids))
        of = self.rng.choice([*self.reserved, *sorted(self.checkpoints)[-2:]])
        slot = self.rng.choice((KEEPS, REPLACES))
        stored: list[int] = []

        def store() -> None:
            stored.append(next(self.ids))  # so that what Postgres committed later is the higher number
            self.writes = with_write(self.writes, of, slot, stored[0])

        def acknowledge() -> None:
            there = self.writes.get(of, {}).get(slot)  # nothing, or another, if it was deleted or lost meanwhile
            if there and (slot == KEEPS or there >= stored[0]):
                self.acked_writes.add((of, slot, stored[0]))

        if not (yield from self.store(number, owner, store, acknowledge)):
            return
        token = self.fence_of[number].token
        yield from self.confirm(
            number,
            owner,
            lambda retain: self.redis.commit_writes(
                token, owner, of, slot, stored[0], self.fresh(owner), retain=retain
            ),
            acknowledge,
        )

    def store(
        self, number: int, owner: int, change: Callable[[], None], acknowledge: Acknowledge, parent: int = NOTHING
    ) -> Generator[None, None, bool]:
        """Store a write, and return whether that was done."""
        queue = self.queues[owner]

        def commit() -> None:
            change()
            if number in self.unreachable and self.on("stale_threads"):
                self.mark_stale(acknowledge)

        while not self.stored.issuperset(queue[: queue.index(number)]):
            yield  # one transaction of a process after the other
        token = 0 if number in self.unreachable else self.fence_of[number].token
        yield from self.commit(number, owner, token, commit, parent)
        while self.outcomes[number] == "moved":
            self.learn(owner)
            yield from self.commit(number, owner, token, commit, parent)
        self.stored.add(number)
        if self.outcomes[number] == "committed":
            yield
            return True
        self.sent.add(number)
        self.counts["refused"] += self.outcomes[number] == "refused"
        if self.outcomes[number] == "killed":  # so nobody knows, as after a crash
            self.crashed.add(number)
            self.fence_of[number].stays = True
            self.not_again(owner, self.fence_of[number])
        elif token:
            retain = self.is_needed(self.fence_of[number], 1)
            if not retain:
                self.not_again(owner, self.fence_of[number])
            self.redis.commit_drop(token, owner, self.fresh(owner), retain=retain)
        return False

    def commit(
        self, number: int, owner: int, token: int, commit: Callable[[], None], parent: int = NOTHING
    ) -> Iterator[None]:
        """Have a transaction run. Should its process die, it goes on, for as long as it likes."""
        transaction = self.transaction(number, owner, token, commit, parent)
        try:
            for _ in transaction:
                yield
        except GeneratorExit:
            self.outliving[number] = transaction
            raise

    def transaction(
        self, number: int, owner: int, token: int, commit: Callable[[], None], parent: int
    ) -> Iterator[None]:
        identity = self.known[owner]
        yield  # on its way, and waiting for a connection
        if token in self.past_deadline and self.on("deadline"):
            self.outcomes[number] = "late"
            self.counts["too late"] += 1
            return
        if identity != self.identity and self.on("identity-write"):
            self.outcomes[number] = "moved"
            return
        if owner in self.warned and parent and parent not in self.checkpoints and self.on("parent"):
            self.outcomes[number] = "refused"
            return
        self.transactions[number] = owner
        yield  # for a lock, or for the commit to be confirmed by a standby
        if self.transactions.pop(number, None) is None:
            self.outcomes[number] = "killed"
            return
        commit()
        self.outcomes[number] = "committed"
        self.counts["outlived"] += number in self.outliving

    def outlive(self) -> Iterator[None]:
        """A transaction whose process has died goes on."""
        while self.outliving:
            yield
            if self.outliving:
                number = self.rng.choice(list(self.outliving))
                if next(self.outliving[number], self) is self:
                    del self.outliving[number]

    def mark_stale(self, acknowledge: Acknowledge) -> None:
        ack = self.stale_thread[1] if self.stale_thread else []
        self.stale_thread = (next(self.ids), [*ack, acknowledge])

    def poller(self) -> Iterator[None]:
        """A process goes through the table of stale threads."""
        seen = self.stale_thread
        if seen is None:
            return
        if not self.on("invalidate-first"):
            self.stale_thread = None
        yield
        process = self.rng.choice((0, 1, 2))
        self.learn(process)
        self.redis.end_thread(next(self.ids), self.fresh(process))
        for acknowledge in seen[1]:
            acknowledge()
        self.counts["invalidated"] += 1
        yield
        if self.stale_thread and (self.stale_thread[0] == seen[0] or not self.on("marks")):
            self.stale_thread = None

    def confirm(
        self,
        number: int,
        owner: int,
        commit: Callable[[bool], bool | None],
        acknowledge: Acknowledge,
    ) -> Iterator[None]:
        if number not in self.unreachable or self.rng.random() < 0.5:  # it may be reached again
            if (yield from self.is_confirmed(number, owner, commit)):
                acknowledge()
            elif self.on("confirm"):
                self.mark_stale(acknowledge)
            else:
                acknowledge()
        self.sent.add(number)

    def is_confirmed(
        self, number: int, owner: int, commit: Callable[[bool], bool | None]
    ) -> Generator[None, None, bool]:
        queue, fence = self.queues[owner], self.fence_of[number]
        while not self.sent.issuperset(queue[: queue.index(number)]) and self.on("order"):
            yield
        self.sent.add(number)
        retain = self.rng.random() < 0.7 or self.is_needed(fence, 1)
        if not retain:
            self.not_again(owner, fence)
        if self.rng.random() < 0.7:
            reply = commit(retain)
            self.counts["advanced"] += reply is True
            self.counts["kept"] += retain
            if reply is None:
                fence.lost = False
                if self.on("gone"):
                    self.not_again(owner, fence)
            return True
        if self.on("given-up"):
            self.not_again(owner, fence)
        if self.rng.random() < 0.5:
            commit(retain)  # Redis did it, and the answer was lost
        while self.on("confirm") and self.rng.random() < 0.8:
            yield  # what is sent again may come after later writes, so it only drops the entry
            answered = self.rng.random() < 0.7
            if answered or self.rng.random() < 0.5:
                self.redis.commit_drop(fence.token, owner, self.fresh(owner), retain=self.is_needed(fence, 1))
            if answered:
                return True
        return False

    def deleter(self) -> Iterator[None]:
        token, reachable = next(self.ids), self.rng.random() < 0.9
        self.in_flight.add(token)
        try:
            if reachable:
                self.redis.begin_thread(token, self.fresh())
            gone = [NOTHING]

            def delete() -> None:
                gone.append(max([*self.checkpoints, *self.writes], default=NOTHING))
                self.checkpoints, self.writes = {}, {}
                self.acked_id, self.acked_writes = NOTHING, set()
                self.deleted, self.deletes = (*self.deleted, gone[-1]), self.deletes + 1
                self.reserved = [i for i in self.reserved if i > max(gone)]
                self.counts["deleted"] += 1
                if not reachable and self.on("stale_threads"):
                    self.mark_stale(acknowledge)

            def acknowledge() -> None:
                self.deleted = tuple(highest for highest in self.deleted if highest > max(gone))

            yield from self.commit(token, 0, token if reachable else 0, delete)
            while self.outcomes[token] == "moved":
                self.learn(0)
                yield from self.commit(token, 0, token if reachable else 0, delete)
            if self.outcomes[token] == "killed":
                self.crashed.add(token)
            elif reachable:
                yield
                self.redis.end_thread(token, self.fresh())
                acknowledge()
        except GeneratorExit:
            if token in self.unfenced:
                self.end_in_postgres({token})
                self.redis.end_thread(token, self.fresh())
            else:
                self.crashed.add(token)
            raise
        finally:
            self.in_flight.discard(token)

    def reader(self) -> Iterator[None]:
        fill_token, acked_id, acked_writes = next(self.ids), self.acked_id, set(self.acked_writes)
        changes, over, owner = (self.deletes, self.rewinds), 0, self.rng.choice((0, 1, 2))
        if fence := self.idle(owner):
            over = fence.token
            if self.on("given-up"):
                self.not_again(owner, fence)
        up_to_date = self.known[owner] == self.identity
        reply = self.redis.read(fill_token, self.fresh(owner), over)
        self.counts[reply.kind] += 1
        seen = reply.state
        if seen is None:
            yield
            may_fill = not self.on("settle-first") or self.is_settled(reply)
            yield
            seen, up_to_date = self.latest(), True
            if self.rng.random() < 0.05:
                seen, up_to_date = latest(*self.saved[:2]), False
                may_fill &= not self.on("standby")
            else:
                self.learn(owner)
            yield
            may_fill &= self.on("settle-first") or self.is_settled(reply)
            if reply.kind == "load" and may_fill:
                self.counts["filled"] += self.redis.fill(
                    fill_token, reply.generation, seen, self.fresh(owner), reply.overdue
                )
        if changes != (self.deletes, self.rewinds):  # meanwhile: it may have taken what was acknowledged
            acked_id, acked_writes = NOTHING, set()
        if up_to_date:
            self.check(reply.kind, seen, acked_id, acked_writes)

    def root_reader(self) -> Iterator[None]:
        fill_token, process = next(self.ids), self.rng.choice((0, 1, 2))
        reply = self.redis.read_root(fill_token, self.fresh(process))
        yield
        may_fill = self.is_settled(reply)
        yield
        may_fill &= not self.checkpoints and not self.writes and self.known[process] == self.identity
        yield
        if reply.kind == "load" and may_fill:
            self.redis.fill_root(fill_token, reply.generation, self.fresh(process), reply.overdue)

    def is_settled(self, reply: Reply) -> bool:
        """Ask Postgres whether no transaction is left of the processes whose fences are past their deadline."""
        if not reply.overdue or not self.on("settle"):
            return True
        settled = not set(reply.overdue.values()) & set(self.transactions.values())
        self.counts["settled" if settled else "unsettled"] += 1
        return settled

    def check(self, kind: str, seen: State, acked_id: int, acked_writes: set[tuple[int, int, int]]) -> None:
        if seen.id < acked_id:
            raise AssertionError(f"acknowledged: read {seen.id} after {acked_id} ({kind})")
        if kind == "hit" and seen.id and seen.id not in self.checkpoints and not self.being_deleted():
            raise AssertionError(f"acknowledged: read {seen.id} after it was deleted")
        if seen.id in self.checkpoints and seen.values != self.checkpoints[seen.id]:
            raise AssertionError(f"content: {seen} is not {self.checkpoints[seen.id]}")
        slots, stored = seen.writes.get(seen.id, {}), self.writes.get(seen.id, {})
        for of, slot, write in acked_writes:
            if of == seen.id and (slot not in slots or (slot == REPLACES and slots[slot] < write)):
                raise AssertionError(f"acknowledged: {seen} lacks {write}")
        if kind == "hit" and not self.being_deleted() and not self.stale_thread:
            for slot, write in slots.items():
                if slot not in stored or stored[slot] < write or (slot == KEEPS and stored[slot] != write):
                    raise AssertionError(f"content: {seen} has {write}, Postgres {stored}")

    def being_deleted(self) -> bool:
        """Say whether a delete has been committed that is not acknowledged: then either answer is right."""
        return bool(self.deleted)

    def fault(self) -> Iterator[None]:
        kind = self.rng.choice(
            (
                "evict-entry",
                "evict-thread",
                "evict-names",
                "snapshot",
                "restart",
                "fail-over-and-back",
                "deadlines",
                "deadlines",
                "save",
                "rewind",
            )
        )
        if kind == "evict-entry":
            self.redis.evict_entry()
        elif kind == "evict-thread":
            self.lose_fences()
            self.redis.evict_thread()
        elif kind == "evict-names":
            self.redis.evict_names()
        elif kind == "snapshot":
            self.snapshot = self.redis.snapshot()
        elif kind == "deadlines":
            frozen = {number for number in self.in_flight if self.rng.random() < 0.2}
            self.pass_deadlines(self.crashed - self.in_flight, frozen)
        elif kind == "save":
            self.saved = self.stored_in_postgres()
        elif kind == "rewind":
            self.rewind()
        else:
            self.lose_fences()
            same_process = kind == "fail-over-and-back"
            self.redis.come_back_from(
                self.snapshot,
                run_id=self.redis.run_id if same_process else next(self.ids),
                replication_id=next(self.ids),
            )
        return
        yield

    def lose_fences(self) -> None:
        """A fence and its writer may not both be lost inside one write: the case left out."""
        self.unfenced |= self.in_flight
        for fence in self.active.values():
            fence.lost = True
        self.end_in_postgres(set(self.outliving))

    def end_in_postgres(self, numbers: set[int]) -> None:
        for number in sorted(numbers & self.outliving.keys()):
            for _ in self.outliving.pop(number):
                pass

    def pass_deadlines(self, crashed: set[int], frozen: Collection[int] = ()) -> None:
        live = {self.token(number) for number in self.in_flight - set(frozen)}
        ended = {self.token(number) for number in crashed | set(frozen)}
        late = (ended | self.left) - live
        self.past_deadline |= late
        self.redis.pass_deadlines(late)

    def token(self, number: int) -> int:
        return self.fence_of[number].token if number in self.fence_of else number

    def stored_in_postgres(self) -> Any:
        return dict(self.checkpoints), self.writes, self.stale_thread, self.deleted

    def rewind(self) -> None:
        """Postgres loses its last commits, in a failover or a restore, and all transactions under way."""
        before = set(self.checkpoints)
        checkpoints, self.writes, self.stale_thread, self.deleted = self.saved
        self.checkpoints = dict(checkpoints)
        self.lost = (self.lost | before) - self.checkpoints.keys()
        self.counts["lost commits"] += bool(before - self.checkpoints.keys())
        self.acked_id = min(self.acked_id, max(self.checkpoints, default=NOTHING))
        self.acked_writes = {w for w in self.acked_writes if self.writes.get(w[0], {}).get(w[1], 0) >= w[2]}
        self.transactions.clear()
        self.identity, self.rewinds = self.identity + 1, self.rewinds + 1

    def check_convergence(self) -> None:
        for fence in self.active.values():
            self.redis.release(fence.token)
        self.end_in_postgres(set(self.outliving))
        self.redis.pass_deadlines()
        for _ in self.poller():
            pass
        self.learn(0)
        for _ in range(2):
            reply = self.redis.read(token := next(self.ids), self.fresh())
            if reply.state is None and reply.generation:
                assert self.is_settled(reply)
                assert self.redis.fill(token, reply.generation, self.latest(), self.fresh(), reply.overdue)
            elif reply.state != self.latest():
                raise AssertionError(f"convergence: {reply.state} is cached, {self.latest()} is stored")


def explore(seed: int, dropped: str | None = None, redis: Redis | None = None) -> dict[str, int]:
    """Runs one random interleaving. Returns how often what happened; raises `AssertionError` for a violation."""
    rng = random.Random(seed)
    world = World(rng, dropped, redis)
    running: list[Iterator[None]] = []
    try:
        interleave(world, rng, running)
    finally:
        for process in running:  # after a violation; what they would still do does not matter
            with contextlib.suppress(Exception):
                process.close()
    world.check_convergence()
    return world.counts


def interleave(world: World, rng: random.Random, running: list[Iterator[None]]) -> None:
    """Starts processes, a few at a time, and takes steps of them in random order until all have ended."""
    makers = (
        lambda: world.writer(world.put),
        lambda: world.writer(world.put_writes),
        world.reader,
        world.root_reader,
        world.deleter,
        world.fault,
        world.poller,
        world.releaser,
        world.outlive,
    )
    budget = 40
    while budget or running:
        if budget and len(running) < 4 and rng.random() < 0.6:
            budget -= 1
            running.append(rng.choices(makers, (4, 3, 7, 2, 0.6, 2, 1, 2, 1))[0]())
        elif running:
            process = rng.choice(running)
            if rng.random() < 0.03:
                running.remove(process)  # a crash
                process.close()
                continue
            try:
                next(process)
            except StopIteration:
                running.remove(process)


if __name__ == "__main__":
    raise SystemExit(command.run(__doc__.splitlines()[0], RULES, explore))
