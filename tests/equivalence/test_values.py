"""Every type of value comes back as the upstream saver gives it back, whichever tier it came through."""

from __future__ import annotations

import json
import pickle
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_checkpoint_cached.records import Namespace
from tests.equivalence import worlds
from tests.equivalence.chains import value_of
from tests.equivalence.same import difference
from tests.equivalence.samples import REFUSED, SAMPLES
from tests.support import servers

pytestmark = pytest.mark.integration


class Compressed:
    """A serializer with types of its own, one of which is what the upstream saver's tables use for "no value"."""

    def __init__(self) -> None:
        self.inner = JsonPlusSerializer()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if isinstance(obj, dict) and not obj:
            return "empty", b""
        kind, blob = self.inner.dumps_typed(obj)
        return f"{kind}/zlib ü", zlib.compress(blob)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] == "empty":
            return {}
        return self.inner.loads_typed((data[0].partition("/")[0], zlib.decompress(data[1])))


class Untyped:
    """A serializer from before types were stored."""

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


SERDES: dict[str, Any] = {
    "default": lambda: None,
    "pickle fallback": lambda: JsonPlusSerializer(pickle_fallback=True),
    "encrypted": lambda: EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef"),
    "typed": Compressed,
    "untyped": Untyped,
}


@pytest.fixture(scope="module")
def urls(databases: servers.Databases, migrated_template_url: str) -> Iterator[tuple[str, str]]:
    with databases.fresh(migrated_template_url) as stock_url, databases.fresh(migrated_template_url) as cached_url:
        yield stock_url, cached_url


@pytest.fixture
def serde() -> Any:
    return None


@pytest.fixture
async def sides(
    urls: tuple[str, str], redis_url: str, redis_prefix: str, serde: Any
) -> AsyncIterator[worlds.Sides]:
    async with worlds.open_sides(*urls, redis_url, redis_prefix, serde=serde) as sides:
        yield sides


def version_of(step: int) -> str:
    """As `get_next_version` makes them, but for the rare random number that is short."""
    return f"{step + 1:032}.0.8444218515250481"


def put_of(ids: list[str], versions: list[str], number: int, value: Any) -> Any:
    """The put of the checkpoint with that number, which changes both channels and keeps a third."""
    checkpoint: Any = {
        "v": 4,
        "id": ids[number],
        "ts": "2024-01-01T00:00:00+00:00",
        "channel_values": {"value": value, "in a list": [value], "kept": [value, "kept"]},
        "channel_versions": {"value": versions[number], "in a list": versions[number], "kept": versions[0]},
        "versions_seen": {},
    }
    changed = ["value", "in a list"] if number else ["value", "in a list", "kept"]
    return (checkpoint, {"source": "loop", "step": number}, dict.fromkeys(changed, versions[number]))


async def check_value(sides: worlds.Sides, name: str) -> str:
    """Puts and writes the value on both sides, and reads it cold, filled and advanced. Returns the thread."""
    thread_id = uuid.uuid4().hex
    ids = [str(uuid6(clock_seq=step)) for step in range(3)]
    versions = [version_of(step) for step in range(3)]
    cached, other = sides.pods

    def config(number: int) -> Any:
        names = {"thread_id": thread_id, "checkpoint_ns": "ns"}
        return {"configurable": names | ({"checkpoint_id": ids[number]} if number >= 0 else {})}

    async def put(number: int) -> None:
        for saver in (sides.upstream, cached):
            await saver.aput(config(number - 1), *put_of(ids, versions, number, value_of(name)))
            value = value_of(name)
            await saver.aput_writes(config(number), [("value", value), ("more", [value])], "task", "path")
            await saver.aput_writes(config(number), [("__interrupt__", value)], "task", "path")

    async def check(saver: BaseCheckpointSaver[str], how: str, number: int) -> None:
        upstream = await sides.upstream.aget_tuple(config(-1))
        assert upstream is not None
        assert upstream.config["configurable"]["checkpoint_id"] == ids[number]
        for asked in (config(-1), config(number)):
            found = difference(upstream, await saver.aget_tuple(asked))
            assert found is None, f"{how}: {found}"

    def counted(counter: str) -> int:
        return sides.stats()[counter]

    await put(0)
    await check(cached, "after a put into nothing", 0)
    fills, hits = counted("fills"), counted("hits")
    await sides.forget(Namespace(thread_id, "ns"))
    await check(other, "cold", 0)
    assert counted("fills") == fills + 1
    await check(cached, "filled", 0)
    entry_updates = counted("entry_updates")
    await put(1)
    await put(2)
    assert counted("entry_updates") == entry_updates + 6
    await check(cached, "advanced", 2)  # which releases the fence that it has retained
    await check(other, "advanced", 2)
    assert counted("hits") >= hits + 7
    upstream = [item async for item in sides.upstream.alist(config(-1))]
    assert difference(upstream, [item async for item in other.alist(config(-1))]) is None
    return thread_id


@pytest.mark.parametrize("name", SAMPLES)
async def test_value_is_the_same_from_both_tiers_and_in_rows(sides: worlds.Sides, name: str) -> None:
    await sides.check_rows([await check_value(sides, name)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serde", "name"),
    [
        pytest.param(make(), name, id=f"{kind}-{name}")
        for kind, make in SERDES.items()
        for name in SAMPLES
        if kind != "default"
    ],
)
async def test_value_comes_back_the_same_with_another_serializer(
    sides: worlds.Sides, name: str, serde: Any
) -> None:
    thread_id = await check_value(sides, name)
    if not isinstance(serde, EncryptedSerializer):  # which never gives the same bytes twice
        await sides.check_rows([thread_id])


@pytest.mark.parametrize("serde", [json], ids=["json"])
@pytest.mark.parametrize(
    "name", ["none", "true", "int", "str", "empty list", "dict like a tombstone", "unicode str"]
)
async def test_text_serializer_works_as_far_as_upstream(sides: worlds.Sides, name: str) -> None:
    """Postgres reads text as bytes, escapes and all, and so the module json works until there is a backslash."""
    thread_id = uuid.uuid4().hex
    ids = [str(uuid6(clock_seq=step)) for step in range(2)]
    versions = [version_of(step) for step in range(2)]
    names = {"thread_id": thread_id, "checkpoint_ns": ""}
    latest: Any = {"configurable": names}
    own: Any = {"configurable": {**names, "checkpoint_id": ids[0]}}

    async def apply(saver: BaseCheckpointSaver[str]) -> list[tuple[str, Any]]:
        value = value_of(name)
        return [
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aput(latest, *put_of(ids, versions, 0, value))),
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aput_writes(own, [("a", value), ("b", [value])], "task")),
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aput(own, *put_of(ids, versions, 1, value))),
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aget_tuple(own)),
        ]

    steps = zip(await apply(sides.upstream), await apply(sides.pods[0]), strict=True)
    for step, (upstream, ours) in enumerate(steps):
        worlds.check_outcomes(upstream, ours, f"step {step}")
    await sides.check_rows([thread_id])


@pytest.mark.parametrize("where", ["channel", "write", "metadata", "metadata deep", "config metadata"])
@pytest.mark.parametrize("name", REFUSED)
async def test_unstorable_value_fails_as_upstream_with_the_same_rows(
    sides: worlds.Sides, name: str, where: str
) -> None:
    """Some of them can be, in some places: then they are, on both sides."""
    thread_id = uuid.uuid4().hex
    ids = [str(uuid6(clock_seq=step)) for step in range(3)]
    versions = [version_of(step) for step in range(3)]
    value = value_of(name)
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}

    async def bad(saver: BaseCheckpointSaver[str]) -> Any:
        child: Any = {"configurable": {**config["configurable"], "checkpoint_id": ids[0]}}
        if where == "write":
            return await saver.aput_writes(child, [("good", [1]), ("bad", value), ("late", [2])], "task")
        held = value if where == "channel" else [1]
        checkpoint, metadata, new_versions = put_of(ids, versions, 1, held)
        if where == "metadata":
            metadata["bad"] = value
        if where == "metadata deep":
            metadata["bad"] = {"a": [value]}
        if where == "config metadata":
            child["metadata"] = {"bad": value}
        return await saver.aput(child, checkpoint, metadata, new_versions)

    outcomes = []
    for saver in (sides.upstream, sides.pods[0]):
        await saver.aput(config, *put_of(ids, versions, 0, ["first"]))
        await saver.aget_tuple(config)
        outcomes.append(await worlds.outcome(bad(saver)))
    worlds.check_outcomes(*outcomes, f"{name} in {where}")
    if "metadata" in where and isinstance(outcomes[0][1], (TypeError, ValueError)):
        # No JSON: ours finds out before it writes, the upstream saver when it has stored the values.
        await sides.forget_values(versions[1])
    await sides.check_rows([thread_id])
    upstream = await sides.upstream.aget_tuple(config)
    for saver in sides.pods:
        assert difference(upstream, await saver.aget_tuple(config)) is None
    for saver in (sides.upstream, sides.pods[1]):  # and the thread goes on
        child: Any = {"configurable": {**config["configurable"], "checkpoint_id": ids[0]}}
        await saver.aput(child, *put_of(ids, versions, 2, ["after"]))
    upstream = await sides.upstream.aget_tuple(config)
    for saver in sides.pods:
        assert difference(upstream, await saver.aget_tuple(config)) is None
    await sides.check_rows([thread_id])


ODD_NAMES = ("a\\b", "\\x41", "\\101", "\\\\", "a%sb", "'", '"', "\n", "ü", " ", "")


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("what", ["channel", "written channel", "task", "path", "thread", "namespace", "id"])
async def test_odd_name_is_taken_as_upstream_takes_it(sides: worlds.Sides, what: str, name: str) -> None:
    """The upstream saver's SELECT reads names through a cast that takes backslashes for escapes."""
    thread_id = uuid.uuid4().hex + (name if what == "thread" else "")
    first, second = (str(uuid6(clock_seq=step)) for step in range(2))
    if what == "id" and name:
        first = name
    version = version_of(0)
    names = {"thread_id": thread_id, "checkpoint_ns": name if what == "namespace" else ""}
    latest: Any = {"configurable": names}
    channel = name if what == "channel" else "c"
    written = name if what == "written channel" else "w"
    task, path = name if what == "task" else "task", name if what == "path" else "path"

    async def apply(saver: BaseCheckpointSaver[str], id: str, parent: dict[str, str]) -> list[tuple[str, Any]]:
        checkpoint: Any = {
            "v": 4,
            "id": id,
            "ts": "",
            "channel_values": {channel: [1]},
            "channel_versions": {channel: version},
            "versions_seen": {},
        }
        own: Any = {"configurable": {**names, "checkpoint_id": id}}
        parent_config: Any = {"configurable": {**names, **parent}}
        return [
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aput_writes(own, [(written, 1)], task, path)),
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aput(parent_config, checkpoint, {}, {channel: version})),
            await worlds.outcome(saver.aget_tuple(latest)),
            await worlds.outcome(saver.aget_tuple(own)),
            await worlds.outcome(saver.aput_writes(own, [(written, 2)], "other task", path)),
            await worlds.outcome(saver.aget_tuple(latest)),
        ]

    for own_id, parent in ((first, {}), (second, {"checkpoint_id": first})):
        upstream = await apply(sides.upstream, own_id, parent)
        ours = await apply(sides.pods[0], own_id, parent)
        for step, (theirs, mine) in enumerate(zip(upstream, ours, strict=True)):
            worlds.check_outcomes(theirs, mine, f"{what} {name!r}, step {step}")
    await sides.check_rows([thread_id])


async def test_pending_sends_of_old_formats_are_encoded_as_upstream(sides: worlds.Sides) -> None:
    """A bytearray is bytes after that."""
    thread_id = uuid.uuid4().hex
    parent, child = (str(uuid6(clock_seq=step)) for step in range(2))
    names = {"thread_id": thread_id, "checkpoint_ns": ""}
    for saver in (sides.upstream, sides.pods[0]):
        for own_id, config in ((parent, names), (child, {**names, "checkpoint_id": parent})):
            checkpoint: Any = {
                "v": 3,
                "id": own_id,
                "ts": "",
                "channel_values": {},
                "channel_versions": {},
                "versions_seen": {},
            }
            await saver.aput({"configurable": config}, checkpoint, {}, {})
        writes = [("__pregel_tasks", value_of(name)) for name in SAMPLES]
        await saver.aput_writes({"configurable": {**names, "checkpoint_id": parent}}, writes, "task")

    upstream, *cached = [
        await saver.aget_tuple({"configurable": names}) for saver in (sides.upstream, *sides.pods)
    ]
    for found in (upstream, *cached):
        assert found is not None
        del found.checkpoint["channel_versions"]["__pregel_tasks"]  # random when it has no version to follow
    for ours in cached:
        assert difference(upstream, ours) is None
