"""Bad input gets an error that names the argument, before anything is written."""

from __future__ import annotations

import re
from collections import OrderedDict
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
import redis
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from langgraph_checkpoint_cached import CachedPostgresSaver, SyncCachedPostgresSaver
from langgraph_checkpoint_cached.arguments import ConnectionSettings, Settings, to_seconds
from langgraph_checkpoint_cached.config import NamesNothing, check_checkpoint, check_search, parse_config
from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.ttl import Ttl

POSTGRES = "postgresql://localhost/db"
REDIS = "redis://localhost"


def config(**configurable: Any) -> dict[str, Any]:
    return {"configurable": configurable}


def test_a_config_names_a_thread_and_a_namespace() -> None:
    assert parse_config(config(thread_id="t")) == (Namespace("t", ""), None)
    assert parse_config(config(thread_id="t", checkpoint_ns="a|b"), for_write=True) == (
        Namespace("t", "a|b"),
        None,
    )


@pytest.mark.parametrize("bad", [None, {}, {"configurable": None}, "t"])
def test_a_config_has_to_be_one(bad: object) -> None:
    with pytest.raises(ArgumentTypeError, match="configurable"):
        parse_config(bad)


def test_what_a_config_lacks_is_named() -> None:
    with pytest.raises(ArgumentError, match="thread_id"):
        parse_config(config(checkpoint_ns=""))
    with pytest.raises(ArgumentError, match="checkpoint_ns"):
        parse_config(config(thread_id="t"), for_write=True)


@pytest.mark.parametrize("key", ["thread_id", "checkpoint_ns"])
@pytest.mark.parametrize("value", [1, None, b"t", ["t"]])
def test_wrong_types_in_a_config_are_named(key: str, value: object) -> None:
    named = {"configurable": {"thread_id": "t", "checkpoint_ns": "", key: value}}
    with pytest.raises(ArgumentTypeError, match=f'"{key}".*{type(value).__name__}'):
        parse_config(named, for_write=True)
    with pytest.raises(ArgumentTypeError if value is not None else NamesNothing):
        parse_config(named)


def test_a_checkpoint_id_is_a_str_or_nothing() -> None:
    assert parse_config(config(thread_id="t", checkpoint_id="c")) == (Namespace("t"), "c")
    for nothing in (None, "", 0):
        assert parse_config(config(thread_id="t", checkpoint_id=nothing)) == (Namespace("t"), None)
    for for_write in (False, True):
        with pytest.raises(ArgumentTypeError, match="checkpoint_id"):
            parse_config(config(thread_id="t", checkpoint_ns="", checkpoint_id=7), for_write=for_write)


@pytest.mark.parametrize("key", ["thread_id", "checkpoint_ns", "checkpoint_id"])
@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_text_that_postgres_cannot_store_is_refused(key: str, value: str) -> None:
    with pytest.raises(ArgumentError, match=f'"{key}".*Postgres cannot store'):
        parse_config(config(**{"thread_id": "t", "checkpoint_ns": "", key: value}))


class Text(str):
    """Text of a caller's own class."""


@pytest.mark.parametrize("mapping", [dict, MappingProxyType, OrderedDict])
@pytest.mark.parametrize("text", ["t", "\u65e5\u672c", Text("t")])
def test_unusual_configs_are_parsed_as_usual_ones(mapping: Any, text: str) -> None:
    configurable = mapping({"thread_id": text, "checkpoint_ns": text, "checkpoint_id": text})
    for for_write in (False, True):
        found = parse_config(mapping({"configurable": configurable}), for_write=for_write)
        assert found == (Namespace(text, text), text)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((config(thread_id=1), None, None), "thread_id"),
        ((config(thread_id=1, checkpoint_ns=None), None, None), "thread_id"),
        ((None, config(checkpoint_id=1), None), "checkpoint_id"),
        ((None, None, "ten"), "limit"),
        ((None, None, []), "limit"),
        ((None, None, float("inf")), "limit"),
    ],
)
def test_what_cannot_be_searched_for_is_named(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ArgumentTypeError, match=named):
        check_search(*arguments)


def test_a_search_may_leave_everything_out() -> None:
    assert check_search(None, None, None) is None
    assert check_search({}, None, "1") is None
    assert check_search(config(thread_id="t"), config(checkpoint_id="c"), 10) == ["t"]
    assert check_search(config(thread_id="t", checkpoint_ns=None), None, True) == ["t"]
    assert check_search(config(thread_id=None), None, 1.5) == []


@pytest.mark.parametrize("key", ["v", "id", "channel_values", "channel_versions"])
def test_a_checkpoint_that_could_not_be_read_again_is_refused(key: str) -> None:
    checkpoint: dict[str, Any] = {"v": 4, "id": "c", "channel_values": {}, "channel_versions": {}}
    check_checkpoint(checkpoint)
    with pytest.raises(ArgumentTypeError, match=f'checkpoint\\["{key}"\\]'):
        check_checkpoint({**checkpoint, key: None})
    del checkpoint[key]
    with pytest.raises(ArgumentError, match=f'no "{key}"'):
        check_checkpoint(checkpoint)


def test_seconds_may_be_given_as_a_timedelta() -> None:
    assert to_seconds(timedelta(minutes=5), "ttl") == to_seconds(300, "ttl") == 300.0
    assert Ttl(0.0001).milliseconds == 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), timedelta(0)])
def test_a_time_that_is_not_positive_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match="ttl"):
        to_seconds(value, "ttl")


@pytest.mark.parametrize("value", ["60", None, True])
def test_a_time_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="ttl"):
        to_seconds(value, "ttl")


BAD_OPTIONS = [
    ({"ttl": 0}, "ttl"),
    ({"prefix": "{x}"}, "prefix"),
    ({"prefix": "x\0"}, "prefix"),
    ({"prefix": "\ud800"}, "prefix"),
    ({"mode": "write_around"}, "mode"),
    ({"redis_durability": "moon"}, "redis_durability"),
    ({"redis_timeout": -1}, "redis_timeout"),
    ({"signing_keys": ["a secret"]}, "signing_keys"),
    ({"check_hits": 1.1}, "check_hits"),
    ({"check_hits": -0.1}, "check_hits"),
    ({"check_hits": float("nan")}, "check_hits"),
    ({"check_hits": True}, "check_hits"),
    ({"check_hits": "0.1"}, "check_hits"),
]
BAD_CONNECTIONS = [
    ({"pool_min_size": 5, "pool_max_size": 2}, "pool_max_size"),
    ({"pool_max_size": "10"}, "pool_max_size"),
    ({"pool_max_idle": 0}, "pool_max_idle"),
    ({"redis_max_connections": 0}, "redis_max_connections"),
    ({"postgres_uri": "postgres//user:secret@host"}, "postgres_uri"),
    ({"postgres_uri": 5}, "postgres_uri"),
    ({"postgres_uri": "postgresql+psycopg://user:secret@host/db"}, "use postgresql://"),
    ({"postgres_uri": "postgresql+asyncpg://user:secret@host/db"}, "use postgresql://"),
    ({"postgres_uri": "postgresql://user:secret@host/db?sslmode=require&pgbouncer=true"}, "pgbouncer"),
    ({"postgres_uri": "postgresql://user:secret@host/db?ssl=require"}, "sslmode=require"),
    ({"postgres_uri": "postgresql://user:secret@host/db?schema=public"}, "search_path"),
    ({"redis_url": "http://user:secret@host"}, "redis_url"),
    ({"redis_url": None}, "redis_url"),
]


@pytest.mark.parametrize(("options", "named"), [*BAD_OPTIONS, *BAD_CONNECTIONS])
def test_bad_options_are_named_without_secrets(options: dict[str, Any], named: str) -> None:
    arguments = {"postgres_uri": POSTGRES, "redis_url": REDIS, **options}
    errors = []
    for saver_class in (SyncCachedPostgresSaver, CachedPostgresSaver):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=named) as caught:
            saver_class.from_conn_string(**arguments)
        errors.append((caught.type, str(caught.value)))
        chain: BaseException | None = caught.value
        while chain is not None:
            assert "secret" not in str(chain).replace("secrets.token_bytes", "")
            chain = chain.__cause__
    assert errors[0] == errors[1]


async def upstream() -> AsyncPostgresSaver:
    return AsyncPostgresSaver(AsyncConnectionPool(POSTGRES, open=False))  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
async def test_constructor_and_from_conn_string_raise_the_same(options: dict[str, Any], named: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=named) as of_constructor:
        CachedPostgresSaver(Redis(), await upstream(), **options)
    with pytest.raises(of_constructor.type, match=re.escape(str(of_constructor.value))):
        CachedPostgresSaver.from_conn_string(POSTGRES, REDIS, **options)


async def test_unknown_keyword_is_a_type_error() -> None:
    options: Any = {"tll": 5}
    with pytest.raises(TypeError, match="unexpected keyword argument 'tll'"):
        CachedPostgresSaver(Redis(), await upstream(), **options)
    for saver_class in (CachedPostgresSaver, SyncCachedPostgresSaver):
        with pytest.raises(TypeError, match="unexpected keyword argument 'tll'"):
            saver_class.from_conn_string(POSTGRES, REDIS, **options)


async def test_pool_option_of_constructor_is_a_type_error() -> None:
    options: Any = {"pool_max_size": 5}
    with pytest.raises(TypeError, match="unexpected keyword argument 'pool_max_size'"):
        CachedPostgresSaver(Redis(), await upstream(), **options)


@pytest.mark.parametrize(
    ("client", "hint"),
    [
        (redis.Redis(), "import it from redis.asyncio, or use SyncCachedPostgresSaver.from_conn_string"),
        (None, "not builtins.NoneType"),
    ],
)
async def test_client_that_is_not_asynchronous_is_refused(client: Any, hint: str) -> None:
    with pytest.raises(ArgumentTypeError, match=hint):
        CachedPostgresSaver(client, await upstream())


def test_settings_show_no_secret() -> None:
    settings = Settings.from_options(signing_keys=["a secret that is long enough"])
    assert settings.signing_keys == (b"a secret that is long enough",)
    connections = ConnectionSettings.from_options(
        "postgresql://user:secret@host/db",
        "redis://user:secret@host",
        signing_keys=["a secret that is long enough"],
    )
    assert "secret" not in repr(settings) + repr(connections)


def test_settings_and_keywords_have_the_same_defaults() -> None:
    assert Settings.from_options() == Settings()
