"""Ids of checkpoints made since a moment, and how idle threads are put into batches."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from uuid import UUID

import pytest
from langgraph.checkpoint.base.id import uuid6

from langgraph_checkpoint_cached.engine import thread_operations
from langgraph_checkpoint_cached.engine.thread_operations import batches
from langgraph_checkpoint_cached.retention import DATED_ID, IdleThreads, first_id_since
from langgraph_checkpoint_cached.stores.postgres.thread_maintenance import ThreadAge


def test_ids_sort_by_the_time_they_were_made_at() -> None:
    before = first_id_since(time.time() - 0.001)
    made = str(uuid6(clock_seq=-2))
    after = first_id_since(time.time() + 0.001)
    assert before < made < after
    assert re.fullmatch(DATED_ID, made)


@pytest.mark.parametrize("when", [datetime(1970, 1, 1), datetime(2024, 2, 29, 12), datetime(2100, 12, 31)])
def test_an_id_says_when_it_was_made(when: datetime) -> None:
    seconds = when.replace(tzinfo=timezone.utc).timestamp()
    first = first_id_since(seconds)
    assert re.fullmatch(DATED_ID, first)
    high, middle, low = first[:8], first[9:13], first[15:18]
    assert UUID(first).version == 6 or UUID(first).variant != "specified in RFC 4122"
    ticks = int(high + middle + low, 16) - 0x01B21DD213814000
    assert ticks == seconds * 10_000_000


@pytest.mark.parametrize(
    "other", ["", "1", "x" * 36, "1ef0aa11-1111-1111-8000-000000000000", "1EF0AA11-1111-6111-8000-000000000000"]
)
def test_other_ids_tell_no_time(other: str) -> None:
    assert not re.fullmatch(DATED_ID, other)


def test_counts_add_up() -> None:
    assert IdleThreads(threads=1).plus(threads=2, kept=3) == IdleThreads(threads=3, kept=3)


def test_a_batch_is_bounded_in_threads_and_in_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_operations, "CHECKPOINTS_OF_A_BATCH_MAX", 10)
    page = [
        ThreadAge("a", "idle", 4),
        ThreadAge("b", "recent", 0),
        ThreadAge("c", "idle", 6),
        ThreadAge("d", "idle", 1),
        ThreadAge("e", "undated", 0),
        ThreadAge("f", "idle", 100),
        ThreadAge("g", "idle", 1),
        ThreadAge("h", "idle", 1),
        ThreadAge("i", "idle", 1),
    ]
    assert list(batches(page, 2)) == [["a", "c"], ["d"], ["f"], ["g", "h"], ["i"]]
    assert list(batches([], 2)) == []
