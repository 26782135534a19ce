"""Both savers over the tests' servers."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator

import pytest

pytest.register_assert_rewrite("agreement", "cancelling")

from agreement import Tiers, open_tiers  # noqa: E402


@pytest.fixture
async def tiers(
    migrated_database_url: str, redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Tiers]:
    """Our saver and the stock one. After the test no task may have failed without anybody noticing."""
    async with open_tiers(migrated_database_url, redis_url, redis_prefix) as tiers:
        yield tiers
    gc.collect()
    records = [record for phase in ("call", "teardown") for record in caplog.get_records(phase)]
    assert not [r.getMessage() for r in records if r.name == "asyncio" and r.levelno >= logging.ERROR]
