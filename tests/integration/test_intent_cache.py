from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis as Sync
from redis.asyncio import Redis

from langgraph_checkpoint_cached import ttl
from langgraph_checkpoint_cached.caches.intent_cache import IntentCache
from langgraph_checkpoint_cached.demo.embedded import RedisServer
from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError, CachedSaverError

pytestmark = pytest.mark.integration

MESSAGE = "Where is my parcel?"
PROCESSES = 4
CALLERS = 10
ENOUGH_SECONDS = 30

spawn = multiprocessing.get_context("spawn")


class Classifier:
    """Answers when it may, and counts how often it was asked."""

    def __init__(self, answer: Any = "parcel") -> None:
        self.answer = answer
        self.messages: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, message: str) -> Any:
        self.messages.append(message)
        await self.may_answer.wait()
        return self.answer


@pytest.fixture
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture
def new_cache(redis: Redis, redis_prefix: str) -> Callable[..., IntentCache[Any]]:
    """Another cache over the same Redis, as another process has it."""

    def new(**arguments: Any) -> IntentCache[Any]:
        return IntentCache(redis, **{"prefix": redis_prefix, "timeout_seconds": 10, **arguments})

    return new


@pytest.fixture
def cache(new_cache: Callable[..., IntentCache[Any]]) -> IntentCache[Any]:
    return new_cache()


async def never(message: str) -> Any:
    raise AssertionError(f"{message!r} was classified, though the answer is kept")


async def test_a_message_is_classified_once(
    new_cache: Callable[..., IntentCache[Any]], classifier: Classifier
) -> None:
    assert await new_cache().get_or_classify(MESSAGE, classifier) == "parcel"
    assert await new_cache().get_or_classify(MESSAGE, never) == "parcel"
    assert classifier.messages == [MESSAGE]


async def test_another_message_has_another_answer(cache: IntentCache[Any]) -> None:
    messages = ["a", "A", "a ", "", "\ud800", "{a}", "x" * 100_000]
    for number, message in enumerate(messages):
        assert await cache.get_or_classify(message, Classifier(number)) == number
    for number, message in enumerate(messages):
        assert await cache.get_or_classify(message, never) == number


async def test_namespaces_are_apart(new_cache: Callable[..., IntentCache[Any]]) -> None:
    for namespace in ("mood", "topic"):
        cache = new_cache(namespace=namespace)
        assert await cache.get_or_classify(MESSAGE, Classifier(namespace)) == namespace


@pytest.mark.parametrize("answer", [None, "", 0, False, [], {}, {"intent": "parcel", 1: [0.5, b"\xff"]}], ids=repr)
async def test_answer_of_any_kind_is_cached(cache: IntentCache[Any], answer: object) -> None:
    assert await cache.get_or_classify(MESSAGE, Classifier(answer)) == answer
    assert await cache.get_or_classify(MESSAGE, never) == answer


@dataclass
class Intent:
    name: str
    score: float


class IntentSerializer:
    def dumps(self, value: Intent) -> bytes:
        return json.dumps(asdict(value)).encode()

    def loads(self, payload: bytes) -> Intent:
        return Intent(**json.loads(payload))


async def test_a_serializer_makes_any_type_possible(new_cache: Callable[..., IntentCache[Any]]) -> None:
    cache = new_cache(serializer=IntentSerializer())
    assert await cache.get_or_classify(MESSAGE, Classifier(Intent("parcel", 0.9))) == Intent("parcel", 0.9)
    assert await cache.get_or_classify(MESSAGE, never) == Intent("parcel", 0.9)


@pytest.mark.parametrize("answer", [Intent("parcel", 0.9), 2**64, "\ud800"], ids=repr)
async def test_an_answer_that_msgpack_cannot_hold_says_what_to_do(cache: IntentCache[Any], answer: object) -> None:
    with pytest.raises(ArgumentTypeError, match=f"returned {type(answer).__name__}.*pass a serializer"):
        await cache.get_or_classify(MESSAGE, Classifier(answer))


async def test_keys_expire_and_do_not_hold_the_message(
    cache: IntentCache[Any], redis: Redis, redis_prefix: str, classifier: Classifier
) -> None:
    classifier.may_answer.clear()
    asking = asyncio.create_task(cache.get_or_classify(MESSAGE, classifier))
    while not classifier.messages:
        await asyncio.sleep(0)
    (lock,) = [key async for key in redis.scan_iter(match=f"{redis_prefix}*")]
    assert 0 < await redis.ttl(lock) <= 10
    classifier.may_answer.set()
    await asking
    (key,) = [key async for key in redis.scan_iter(match=f"{redis_prefix}*")]
    assert 0 < await redis.pttl(key) <= 300_000
    assert key.startswith(f"{redis_prefix}:intent:{{".encode())
    assert lock == key + b":lock"
    assert b"parcel" not in key


async def test_the_ttl_is_the_callers(
    new_cache: Callable[..., IntentCache[Any]], redis: Redis, redis_prefix: str, classifier: Classifier
) -> None:
    await new_cache(ttl=timedelta(hours=1)).get_or_classify(MESSAGE, classifier)
    (key,) = [key async for key in redis.scan_iter(match=f"{redis_prefix}*")]
    assert 3_500_000 < await redis.pttl(key) <= 3_600_000


async def test_classifier_error_is_raised_and_not_cached(cache: IntentCache[Any], classifier: Classifier) -> None:
    async def fail(message: str) -> Any:
        raise ConnectionError("no model today")

    with pytest.raises(ConnectionError, match="no model today"):
        await cache.get_or_classify(MESSAGE, fail)
    assert await cache.get_or_classify(MESSAGE, classifier) == "parcel"


async def test_invalidate_forgets_and_refresh_replaces(new_cache: Callable[..., IntentCache[Any]]) -> None:
    cache, another = new_cache(), new_cache()
    await cache.get_or_classify(MESSAGE, Classifier("first"))
    assert await another.invalidate(MESSAGE) is True
    assert await cache.get_or_classify(MESSAGE, Classifier("second")) == "second"
    assert await another.refresh(MESSAGE, Classifier("third")) == "third"
    assert await cache.get_or_classify(MESSAGE, never) == "third"


async def test_classification_overtaken_by_invalidate_is_not_stored(
    new_cache: Callable[..., IntentCache[Any]], classifier: Classifier
) -> None:
    """Bug: a slow reader stores the old value after the invalidation."""
    classifier.may_answer.clear()
    asking = asyncio.create_task(new_cache().get_or_classify(MESSAGE, classifier))
    while not classifier.messages:
        await asyncio.sleep(0)
    await new_cache().invalidate(MESSAGE)
    classifier.may_answer.set()
    assert await asking == "parcel"
    assert await new_cache().get_or_classify(MESSAGE, Classifier("newer")) == "newer"


# Several processes


def ask_in_this_process(url: str, prefix: str) -> None:
    """Asks `CALLERS` times at once. The one classification ends when everybody in every process has asked."""

    async def ask() -> None:
        async with Redis.from_url(url) as redis:

            async def classify(message: str) -> str:
                await redis.incr(f"{prefix}:classifications")
                while int(await redis.get(f"{prefix}:asked")) < PROCESSES * CALLERS:
                    await asyncio.sleep(0.01)
                return f"classified {message}"

            async def call() -> str:
                await redis.incr(f"{prefix}:asked")
                return await cache.get_or_classify(MESSAGE, classify)

            cache: IntentCache[str] = IntentCache(
                redis, prefix=prefix, lease_seconds=ENOUGH_SECONDS, timeout_seconds=10
            )
            answers = await asyncio.gather(*(call() for _ in range(CALLERS)))
            await redis.rpush(f"{prefix}:answers", *answers)

    asyncio.run(ask())


@pytest.mark.slow
async def test_processes_that_ask_at_once_make_one_classification(
    redis: Redis, redis_url: str, redis_prefix: str
) -> None:
    processes = [
        spawn.Process(target=ask_in_this_process, args=(redis_url, redis_prefix)) for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, ENOUGH_SECONDS)
        assert process.exitcode == 0
    answers = await redis.lrange(f"{redis_prefix}:answers", 0, -1)
    assert answers == [f"classified {MESSAGE}".encode()] * PROCESSES * CALLERS
    assert await redis.get(f"{redis_prefix}:classifications") == b"1"


def never_finish(url: str, prefix: str, lease_seconds: float) -> None:
    async def ask() -> None:
        async with Redis.from_url(url) as redis:

            async def classify(message: str) -> str:
                await redis.rpush(f"{prefix}:begun", message)
                await asyncio.Event().wait()
                raise AssertionError("not reached")

            cache: IntentCache[str] = IntentCache(redis, prefix=prefix, lease_seconds=lease_seconds)
            await cache.get_or_classify(MESSAGE, classify)

    asyncio.run(ask())


@pytest.mark.slow
async def test_killed_classifier_process_is_succeeded_by_one(
    new_cache: Callable[..., IntentCache[Any]],
    redis: Redis,
    redis_url: str,
    redis_prefix: str,
    classifier: Classifier,
) -> None:
    """Bug: everybody loads at once, or nobody ever, when the holder dies."""
    process = spawn.Process(target=never_finish, args=(redis_url, redis_prefix, 2.0))
    process.start()
    assert await redis.blpop(f"{redis_prefix}:begun", ENOUGH_SECONDS)
    process.kill()
    await asyncio.to_thread(process.join, ENOUGH_SECONDS)
    caches = [new_cache(lease_seconds=ENOUGH_SECONDS) for _ in range(PROCESSES)]
    answers = await asyncio.gather(*(cache.get_or_classify(MESSAGE, classifier) for cache in caches))
    assert answers == ["parcel"] * PROCESSES
    assert classifier.messages == [MESSAGE]


# Without Redis


async def test_message_is_classified_once_while_redis_is_down(
    redis_servers: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "langgraph_checkpoint_cached")
    server = redis_servers()
    async with Redis.from_url(server.url) as redis:
        cache: IntentCache[str] = IntentCache(redis)
        assert await cache.get_or_classify(MESSAGE, Classifier("kept")) == "kept"
        assert caplog.records == []

        server.stop()
        for _ in range(2):
            classifier = Classifier("by itself")
            calls = [cache.get_or_classify(MESSAGE, classifier) for _ in range(CALLERS)]
            assert await asyncio.gather(*calls) == ["by itself"] * CALLERS
            assert classifier.messages == [MESSAGE]
        assert await cache.refresh(MESSAGE, Classifier("refreshed")) == "refreshed"
        assert await cache.invalidate(MESSAGE) is False
        assert [record.message.split(",")[0] for record in caplog.records] == ["Redis is unavailable"]

        server.start()
        assert await cache.get_or_classify(MESSAGE, Classifier("kept again")) == "kept again"
        assert await cache.get_or_classify(MESSAGE, never) == "kept again"
        assert [record.message for record in caplog.records[1:]] == ["Redis is available again"]


async def test_a_full_redis_keeps_nothing_and_is_logged_once(
    redis_servers: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_servers()
    async with Redis.from_url(server.url) as redis:
        await redis.config_set("maxmemory", 1)
        cache: IntentCache[str] = IntentCache(redis)
        for answer in ("first", "second"):
            assert await cache.get_or_classify(MESSAGE, Classifier(answer)) == answer
        await redis.config_set("maxmemory", 0)
        assert await cache.get_or_classify(MESSAGE, Classifier("third")) == "third"
        assert await cache.get_or_classify(MESSAGE, never) == "third"
    messages = [record.message.split(",")[0] for record in caplog.records]
    assert messages == ["Redis is unavailable", "Redis is available again"]


async def test_redis_may_stop_while_a_message_is_classified(
    redis_servers: Callable[..., RedisServer],
) -> None:
    server = redis_servers()
    async with Redis.from_url(server.url) as redis:

        async def classify(message: str) -> str:
            server.kill()
            return "parcel"

        cache: IntentCache[str] = IntentCache(redis)
        assert await cache.get_or_classify(MESSAGE, classify) == "parcel"


async def test_a_deaf_redis_costs_one_timeout(redis_servers: Callable[..., RedisServer]) -> None:
    server = redis_servers()
    assert server.pid is not None
    async with Redis.from_url(server.url) as redis:
        cache: IntentCache[str] = IntentCache(redis, timeout_seconds=1)
        await redis.ping()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await cache.get_or_classify(MESSAGE, Classifier()) == "parcel"
            assert 1 <= time.monotonic() - began < 1.9  # a second call would take another second
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_the_callers_client_stays_open(redis: Redis, cache: IntentCache[Any]) -> None:
    await cache.get_or_classify(MESSAGE, Classifier())
    del cache
    assert await redis.ping()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ttl": 0}, ArgumentError, "ttl must be more than 0"),
        ({"ttl": -1}, ArgumentError, "ttl must be more than 0"),
        ({"ttl": "5m"}, ArgumentTypeError, "ttl must be a number of seconds"),
        ({"lease_seconds": 0}, ArgumentError, "lease_seconds must be more than 0"),
        ({"timeout_seconds": 0}, ArgumentError, "timeout_seconds must be more than 0"),
        ({"prefix": ""}, ArgumentError, "prefix must not be empty"),
        ({"prefix": "a{b"}, ArgumentError, "prefix must not .* contain"),
        ({"prefix": "a}b"}, ArgumentError, "prefix must not .* contain"),
        ({"prefix": None}, ArgumentTypeError, "prefix must be a str, not NoneType"),
        ({"namespace": "{}"}, ArgumentError, "namespace must not .* contain"),
        ({"namespace": b"intent"}, ArgumentTypeError, "namespace must be a str, not bytes"),
    ],
    ids=repr,
)
def test_an_argument_that_cannot_work_is_named(
    arguments: dict[str, Any], error: type[CachedSaverError], message: str
) -> None:
    with pytest.raises(error, match=message):
        IntentCache(Redis(), **arguments)


@pytest.mark.parametrize("client", [Sync(), "redis://localhost", None], ids=lambda client: type(client).__name__)
def test_a_client_that_is_not_an_asyncio_client_is_refused(client: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"redis must be a redis\.asyncio client"):
        IntentCache(client)


@pytest.mark.parametrize("method", ["get_or_classify", "refresh"])
async def test_a_message_must_be_a_string_and_a_classifier_callable(method: str) -> None:
    call = getattr(IntentCache(Redis()), method)
    with pytest.raises(ArgumentTypeError, match="message must be a str, not int"):
        await call(1, never)
    with pytest.raises(ArgumentTypeError, match="classifier must be an async function, not str"):
        await call(MESSAGE, "parcel")


async def test_a_message_to_invalidate_must_be_a_string() -> None:
    with pytest.raises(ArgumentTypeError, match="message must be a str, not NoneType"):
        await IntentCache(Redis()).invalidate(None)  # type: ignore[arg-type]


def test_answers_are_cached_for_five_minutes() -> None:
    assert ttl.INTENT.seconds == 300
    assert not ttl.INTENT.sliding
