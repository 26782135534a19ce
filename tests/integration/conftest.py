"""Both savers over the tests' servers."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.support.agreement", "tests.support.cancelling")

from langgraph_checkpoint_cached.cli import main  # noqa: E402
from tests.support.agreement import Tiers, open_tiers  # noqa: E402


@pytest.fixture
def prefix() -> str:
    """A prefix of the test's own, for keys in a Redis that goes with the tests of its module."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def tiers(
    migrated_database_url: str, redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Tiers]:
    """Our saver and the upstream one. After the test no task may have failed without anybody noticing."""
    async with open_tiers(migrated_database_url, redis_url, redis_prefix) as tiers:
        yield tiers
    gc.collect()
    records = [record for phase in ("call", "teardown") for record in caplog.get_records(phase)]
    assert not [r.getMessage() for r in records if r.name == "asyncio" and r.levelno >= logging.ERROR]


@pytest.fixture
def cli_servers(migrated_database_url: str, redis_url: str, redis_prefix: str) -> list[str]:
    """The command's arguments for the test's servers."""
    return ["--postgres-uri", migrated_database_url, "--redis-url", redis_url, "--prefix", redis_prefix]


@pytest.fixture
def run_cli() -> Callable[[Sequence[str]], Awaitable[int]]:
    """The command, on an event loop of its own, as in a process of its own. Returns its exit code."""
    return lambda arguments: asyncio.to_thread(main.main, arguments)


@pytest.fixture
def ask_cli(
    run_cli: Callable[[Sequence[str]], Awaitable[int]], capsys: pytest.CaptureFixture[str], cli_servers: list[str]
) -> Callable[..., Awaitable[tuple[int, Any]]]:
    """The command on the test's servers, with `--json`. Returns its exit code and what it said."""

    async def ask(*arguments: str, servers: Sequence[str] = cli_servers) -> tuple[int, Any]:
        capsys.readouterr()
        code = await run_cli([*arguments, *servers, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return ask
