"""Counters that savers publish in Redis: see `engine/stats_publisher.py`."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langgraph_checkpoint_cached.stores.redis.client import AnyRedis
from langgraph_checkpoint_cached.stores.redis.keys import stats_key
from langgraph_checkpoint_cached.stores.redis.scan import escape_glob

SCAN_COUNT = 1_000
SCAN_SECONDS = 5.0
"""Time from the end of one scan for savers to the next."""
FIRST_SCAN_SECONDS_MAX = 1.0


@dataclass(frozen=True)
class SaverCounters:
    """Sums over all savers that publish.

    Attributes:
        savers: How many there are.
        totals: Counters and gauges of `saver.stats()`, by name.
        per_second: Rates of the counters that changed a moment ago, by name.
    """

    savers: int
    totals: Counter[str]
    per_second: Counter[str]

    @classmethod
    def add_up(cls, values: Sequence[bytes | str | None]) -> SaverCounters:
        """Add up what savers have published. Keys that have expired (None) and damaged values do not count."""
        parsed = [each for each in map(_parse_value, values) if each is not None]
        totals: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        for total, rate in parsed:
            totals.update(total)
            rates.update(rate)
        return cls(len(parsed), totals, rates)

    @property
    def hits_per_second(self) -> float:
        """Reads that Redis served."""
        return self.per_second["hits"]

    @property
    def misses_per_second(self) -> float:
        """Reads that Postgres served, for whatever reason."""
        return sum(self.per_second[name] for name in ("loads", "bypasses", "degraded_reads"))

    @property
    def writes_per_second(self) -> float:
        """Writes that were acknowledged: with write-behind by Redis, else by Postgres."""
        return self.per_second["writes"] + self.per_second["appends"]


class SaverCountersReader:
    """Read the counters of all live savers.

    Their keys are found by a scan, which runs in the background every `SCAN_SECONDS`, however long it takes.

    Args:
        client: The client; never closed here.
        prefix: Of the savers.
    """

    def __init__(self, client: AnyRedis, prefix: str) -> None:
        self._client, self._pattern = client, stats_key(escape_glob(prefix), "*")
        self._keys: set[bytes | str] = set()
        self._scan: asyncio.Task[None] | None = None
        self._scan_again_at = 0.0

    async def read(self) -> SaverCounters:
        """Return the sums. Raises `RedisError`, `RedisClusterException`, `OSError`."""
        await self._find_keys()
        if not self._keys:
            return SaverCounters.add_up([])
        keys = list(self._keys)
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        values = await pipeline.execute()
        self._keys -= {key for key, value in zip(keys, values, strict=True) if value is None}
        return SaverCounters.add_up(values)

    async def close(self) -> None:
        """Stop a scan that is under way."""
        if self._scan is not None:
            self._scan.cancel()
            await asyncio.gather(self._scan, return_exceptions=True)

    async def _find_keys(self) -> None:
        if self._scan is None:
            self._scan = asyncio.create_task(self._scan_keys())
            await asyncio.wait({self._scan}, timeout=FIRST_SCAN_SECONDS_MAX)
        if self._scan.done() and time.monotonic() >= self._scan_again_at:
            scan, self._scan = self._scan, asyncio.create_task(self._scan_keys())
            scan.result()

    async def _scan_keys(self) -> None:
        self._scan_again_at = 0.0  # at once, if it fails
        async for key in self._client.scan_iter(match=self._pattern, count=SCAN_COUNT):
            self._keys.add(key)
        self._scan_again_at = time.monotonic() + SCAN_SECONDS


def _parse_value(value: bytes | str | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return totals and rates; None for a value that no saver has published."""
    try:
        published = json.loads(value or "")
        totals, rates = published["totals"], published["per_second"]
        if all(isinstance(number, (int, float)) for each in (totals, rates) for number in each.values()):
            return totals, rates
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return None
