"""The package's own scripts, on a real Redis, through the interleavings of the model, step by step with it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import redis

from langgraph_checkpoint_cached.records import Latest, Namespace, Put, PutWrites, Record, Value, Write
from langgraph_checkpoint_cached.stores.redis import entry_format, scripts
from langgraph_checkpoint_cached.stores.redis.integrity import CHECKSUMS
from langgraph_checkpoint_cached.stores.redis.keys import names_key, namespace_key, thread_key
from langgraph_checkpoint_cached.stores.redis.scripts import Script, lua
from tests.models import coherence_model as model

pytestmark = pytest.mark.integration

SEEDS = int(os.environ.get("PROTOCOL_SEEDS", "400"))
LIFE_MS = 600_000
NAMESPACE = Namespace("thread", "ns")
CHANNELS = ("a", "b")


class BothRedis(model.Redis):
    """The model's Redis and a real one, side by side: every answer is compared."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        super().__init__(on=lambda rule: True)
        self.client = client
        self.keys = [thread_key(prefix, "thread"), namespace_key(prefix, NAMESPACE), names_key(prefix, "thread")]
        self.root_key = namespace_key(prefix, Namespace("thread", ""))
        self.epoch_key = f"{prefix}:server epoch"
        self.client.delete(*self.keys, self.root_key)
        self.client.set(self.epoch_key, self.replication_id)

    def run(
        self, script: Script, fresh: model.Fresh, *arguments: Any, thread_only: bool = False, root: bool = False
    ) -> Any:
        # Which server epoch the server is has to be in our hand; nothing else of the scripts is changed.
        text = script.text.replace(
            lua("server"),
            "local function now_ms() return redis.call('TIME')[1] * 1000 end\n"
            "local EPOCH_LENGTH = 16\n"
            f"local function server_epoch() return redis.call('GET', '{self.epoch_key}') end",
        )
        keys = self.keys[:1] if thread_only else self.keys
        name = "" if thread_only else "ns"
        if root:
            keys, name = [self.keys[0], self.root_key, self.keys[2]], ""
        return self.client.eval(
            text, len(keys), *keys, name, random_text(fresh), LIFE_MS, *arguments, self.replication_id
        )

    # -- scripts ---------------------------------------------------------------------------------------------

    def read(self, fill_token: int, fresh: model.Fresh, over: int = 0) -> model.Reply:
        expected = super().read(fill_token, fresh, over)
        answer = self.run(scripts.READ, fresh, fill_token, LIFE_MS, "1", "", over or "")
        if expected.kind == "hit":
            assert answer[0] == b"hit"
            fields = dict(zip(answer[1][::2], answer[1][1::2], strict=True))
            assert state_of(fields) == expected.state
        else:
            self._assert_read(answer, expected)
        return expected

    def read_root(self, fill_token: int, fresh: model.Fresh) -> model.Reply:
        expected = super().read_root(fill_token, fresh)
        self.client.delete(self.root_key)
        answer = self.run(scripts.READ, fresh, fill_token, LIFE_MS, "1", "", "", root=True)
        self._assert_read(answer, expected)
        return expected

    def _assert_read(self, answer: Any, expected: model.Reply) -> None:
        assert answer[0].decode() == expected.kind
        if expected.generation is not None:
            assert answer[1].decode() == generation_text(expected.generation)
            assert dict(zip(*[map(int, answer[2])] * 2, strict=True)) == expected.overdue
        assert answer[3] == b""

    def fill_root(
        self,
        fill_token: int,
        generation: model.Generation,
        fresh: model.Fresh,
        settled: Collection[int] = (),
    ) -> None:
        super().fill_root(fill_token, generation, fresh, settled)
        nothing = entry_format.entry_fields(NAMESPACE, Latest(None))
        arguments = (fill_token, generation_text(generation), "1", tokens_text(settled), *nothing)
        self.run(scripts.FILL, fresh, *arguments, root=True)

    def fill(
        self,
        fill_token: int,
        generation: model.Generation,
        state: model.State,
        fresh: model.Fresh,
        settled: Collection[int] = (),
    ) -> bool:
        expected = super().fill(fill_token, generation, state, fresh, settled)
        fields = entry_format.entry_fields(NAMESPACE, latest_of(state))
        arguments = (fill_token, generation_text(generation), "0", tokens_text(settled), *fields)
        assert self.run(scripts.FILL, fresh, *arguments) == expected
        return expected

    def begin(self, token: int, owner: int, fresh: model.Fresh) -> None:
        super().begin(token, owner, fresh)
        self.run(scripts.BEGIN, fresh, token, owner, LIFE_MS)

    def release(self, token: int) -> None:
        super().release(token)
        self.run(scripts.RELEASE, model.Fresh(0, 0), token, thread_only=True)

    def commit_put(
        self,
        token: int,
        owner: int,
        parent: int,
        new: model.State,
        channel: int,
        fresh: model.Fresh,
        *,
        retain: bool,
    ) -> bool | None:
        expected = super().commit_put(token, owner, parent, new, channel, fresh, retain=retain)
        versions = versions_of(new)
        name = CHANNELS[channel]
        put = Put(
            namespace=NAMESPACE,
            checkpoint_id=id_of(new.id),
            parent_id=id_of(parent) or None,
            checkpoint_json=checkpoint_json(new),
            metadata_json="{}",
            values=(Value(name, "number", str(new.id).encode()),),
            versions=versions,
            new_versions={name: versions[name]},
            format=4,
        )
        arguments = entry_format.put_arguments(put)
        assert arguments is not None
        self._assert_committed(expected, scripts.COMMIT_PUT, fresh, token, owner, retain, *arguments)
        return expected

    def commit_writes(
        self, token: int, owner: int, of: int, slot: int, write: int, fresh: model.Fresh, *, retain: bool
    ) -> bool | None:
        expected = super().commit_writes(token, owner, of, slot, write, fresh, retain=retain)
        put = PutWrites(NAMESPACE, id_of(of), slot == model.REPLACES, (write_of(of, slot, write),))
        arguments = entry_format.writes_arguments(put)
        assert arguments is not None
        self._assert_committed(expected, scripts.COMMIT_WRITES, fresh, token, owner, retain, *arguments)
        return expected

    def commit_drop(self, token: int, owner: int, fresh: model.Fresh, *, retain: bool = False) -> bool | None:
        expected = super().commit_drop(token, owner, fresh, retain=retain)
        self._assert_committed(expected, scripts.COMMIT_DROP, fresh, token, owner, retain)
        return expected

    def _assert_committed(
        self,
        expected: bool | None,
        script: Script,
        fresh: model.Fresh,
        token: int,
        owner: int,
        retain: bool,
        *arguments: Any,
    ) -> None:
        """COMMIT says how it went; nothing if its own fence was gone."""
        reply = self.run(script, fresh, token, f"{owner} keeps" if retain else owner, *arguments)
        assert reply == (None if expected is None else int(expected))

    def begin_thread(self, token: int, fresh: model.Fresh) -> None:
        super().begin_thread(token, fresh)
        self.run(scripts.BEGIN_THREAD, fresh, token, 0, LIFE_MS, thread_only=True)

    def end_thread(self, token: int, fresh: model.Fresh) -> None:
        super().end_thread(token, fresh)
        self.run(scripts.END_THREAD, fresh, token, thread_only=True)

    # -- what happens to it ----------------------------------------------------------------------------------

    def evict_entry(self) -> None:
        super().evict_entry()
        self.client.delete(self.keys[1])

    def evict_thread(self) -> None:
        super().evict_thread()
        self.client.delete(self.keys[0])

    def evict_names(self) -> None:
        super().evict_names()
        self.client.delete(self.keys[2])

    def snapshot(self) -> model.Redis:
        copy = model.Redis(self.on, generation=self.generation, fill_token=self.fill_token)
        copy.fences = {token: model.Fence(f.owner, f.late) for token, f in self.fences.items()}
        copy.entry = self.entry
        copy.watch, copy.was_empty = self.watch, self.was_empty
        copy.noted, copy.names_lost = self.noted, self.names_lost
        copy.dumps = [self.client.dump(key) for key in self.keys]  # type: ignore[attr-defined]
        return copy

    def come_back_from(self, snapshot: model.Redis, *, run_id: int, replication_id: int) -> None:
        super().come_back_from(snapshot, run_id=run_id, replication_id=replication_id)
        self.client.set(self.epoch_key, replication_id)
        self.client.delete(*self.keys)
        for key, dump in zip(self.keys, snapshot.dumps, strict=True):  # type: ignore[attr-defined]
            if dump is not None:
                self.client.restore(key, LIFE_MS, dump)

    def pass_deadlines(self, tokens: set[int] | None = None) -> None:
        super().pass_deadlines(tokens)
        for token, fence in self.fences.items():
            if fence.late:
                over = "ns" if fence.owner else "*"
                self.client.hset(self.keys[0], f"f:{token}", f"1 {fence.owner} {over}")
        if tokens is None:
            self.client.hdel(self.keys[1], "t")


# -- the model's numbers as the package's records ------------------------------------------------------------


def id_of(number: int) -> str:
    return f"{number:08x}-0000-6000-8000-000000000000" if number else ""


def number_of(checkpoint_id: str) -> int:
    return int(checkpoint_id[:8], 16) if checkpoint_id else model.NOTHING


def versions_of(state: model.State) -> dict[str, Any]:
    return {c: f"{n:032}.0.{n:016}" for c, n in zip(CHANNELS, state.values, strict=True) if n}


def checkpoint_json(state: model.State) -> str:
    return json.dumps({"v": 4, "id": id_of(state.id), "channel_versions": versions_of(state)})


def write_of(of: int, slot: int, write: int) -> Write:
    return Write(id_of(of), "task", -slot, "channel", "number", str(write).encode(), "")


def latest_of(state: model.State) -> Latest:
    writes = [write_of(of, slot, w) for of, slots in state.writes.items() for slot, w in slots.items()]
    if state.id == model.NOTHING:
        return Latest(None, tuple(writes))
    own = tuple(w for w in writes if w.checkpoint_id == id_of(state.id))
    record = Record(
        namespace=NAMESPACE,
        checkpoint_id=id_of(state.id),
        parent_id=None,
        checkpoint_json=checkpoint_json(state).encode(),
        metadata_json=b"{}",
        values=tuple(
            Value(c, "number", str(n).encode()) for c, n in zip(CHANNELS, state.values, strict=True) if n
        ),
        writes=own,
    )
    return Latest(record, tuple(w for w in writes if w not in own))


def state_of(fields: dict[bytes, bytes]) -> model.State:
    """The state that an entry's fields hold, the writes of later checkpoints included."""
    entry = entry_format.decode_entry(NAMESPACE, fields)
    assert entry is not None
    writes: model.Writes = {}
    for field, value in fields.items():
        if field.startswith(b"w:"):
            write = entry_format.decode_write(CHECKSUMS.scopes[NAMESPACE], field, value)
            writes.setdefault(number_of(write.checkpoint_id), {})[-write.idx] = int(write.blob)
    if entry.record is None:
        return model.State(model.NOTHING, (0, 0), writes)
    values = {v.channel: int(v.blob or b"0") for v in entry.record.values}
    assert entry.record.checkpoint["id"] == entry.record.checkpoint_id
    assert {c: int(v.partition(".")[0]) for c, v in entry.record.checkpoint["channel_versions"].items()} == values
    return model.State(number_of(entry.record.checkpoint_id), (values.get("a", 0), values.get("b", 0)), writes)


def generation_text(generation: model.Generation) -> str:
    return f"{generation[0]}:{random_text(generation[1])}"


def random_text(fresh: model.Fresh) -> str:
    return f"identity{fresh.identity}.fresh{fresh.number}"


def tokens_text(tokens: Collection[int]) -> str:
    return "".join(f"{token} " for token in tokens)


def fresh(number: int) -> model.Fresh:
    return model.Fresh(1, number)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_scripts_do_what_the_model_does(client: redis.Redis, redis_prefix: str) -> None:
    totals: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            both = BothRedis(client, redis_prefix)
            counts = model.explore(seed, redis=both)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from exc
        totals.update(counts)
    # The comparison means something only if all of it happened.
    assert all(totals.values()), totals


@pytest.mark.parametrize("damaged", [b"", b"\xc1", b"\x81\xa1a", b"\x93\x01\x02\x03", b"\x81\xa1a\x05"])
def test_commit_drops_damaged_entry_and_releases_fence(
    client: redis.Redis, redis_prefix: str, damaged: bytes
) -> None:
    """A script that failed half-way would release the fence and leave the stale entry to every reader."""
    both = BothRedis(client, redis_prefix)
    generation = both.read(1, fresh(1)).generation
    assert generation is not None
    both.fill(1, generation, model.State(5, (5, 0), {}), fresh(2))
    client.hset(both.keys[1], "v", damaged)
    both.begin(6, 1, fresh(3))
    assert client.hexists(both.keys[0], "f:6")
    put = Put(
        namespace=NAMESPACE,
        checkpoint_id=id_of(7),
        parent_id=id_of(5),
        checkpoint_json=checkpoint_json(model.State(7, (5, 7), {})),
        metadata_json="{}",
        values=(Value("b", "number", b"7"),),
        versions=versions_of(model.State(7, (5, 7), {})),
        new_versions={"b": versions_of(model.State(7, (5, 7), {}))["b"]},
        format=4,
    )
    assert both.run(scripts.COMMIT_PUT, fresh(4), 6, 1, *(entry_format.put_arguments(put) or [])) == 0
    assert not client.hexists(both.keys[0], "f:6")
    assert not client.exists(both.keys[1])


@pytest.mark.parametrize("damaged", [b"", b"junk", b"12", b"12 owner"])
def test_damaged_fence_invalidates_thread_and_is_gone(
    client: redis.Redis, redis_prefix: str, damaged: bytes
) -> None:
    both = BothRedis(client, redis_prefix)
    generation = both.read(1, fresh(1)).generation
    assert generation is not None
    both.fill(1, generation, model.State(5, (5, 0), {}), fresh(2))
    client.hset(both.keys[0], "f:x", damaged)
    [kind, new_generation, overdue, _] = both.run(scripts.READ, fresh(3), 4, LIFE_MS, "1", "", "")
    assert overdue == []
    assert (kind, client.hexists(both.keys[0], "f:x")) == (b"load", False)
    assert new_generation.decode() != generation_text(generation)


class ExpiringRedis(BothRedis):
    """Checks after every script that each key expires."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().run(*args, **kwargs)
        assert all(self.client.ttl(key) != -1 for key in self.keys)
        return answer


def test_no_script_leaves_a_key_without_expiry(client: redis.Redis, redis_prefix: str) -> None:
    for seed in range(20):
        model.explore(seed, redis=ExpiringRedis(client, redis_prefix))
