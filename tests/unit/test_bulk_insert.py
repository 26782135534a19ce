from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.postgres.base import BasePostgresSaver

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites, Value, Write
from langgraph_checkpoint_cached.stores.postgres import bulk_insert as made
from langgraph_checkpoint_cached.stores.postgres.bulk_insert import (
    Guard,
    RowBatch,
    for_rows,
    numbered,
    one_statement,
    row_batches,
    statements,
)

UPSTREAM: Any = BasePostgresSaver
BLOBS, CHECKPOINTS = UPSTREAM.UPSERT_CHECKPOINT_BLOBS_SQL, UPSTREAM.UPSERT_CHECKPOINTS_SQL
GUARD = Guard("%s = 7", [7])
KEEP, REPLACE = UPSTREAM.INSERT_CHECKPOINT_WRITES_SQL, UPSTREAM.UPSERT_CHECKPOINT_WRITES_SQL
EACH = (BLOBS, CHECKPOINTS, KEEP, REPLACE)


def put(thread_id: str, checkpoint_id: str = "1", channels: int = 1) -> Put:
    values = tuple(Value(f"c{i}", "null", b"") for i in range(channels))
    versions = {value.channel: checkpoint_id for value in values}
    return Put(Namespace(thread_id), checkpoint_id, None, "{}", "{}", values, versions, versions, 4)


def put_writes(thread_id: str, task_id: str = "task", count: int = 2, *, replace: bool = False) -> PutWrites:
    writes = tuple(Write("1", task_id, i, "channel", "null", b"", "") for i in range(count))
    return PutWrites(Namespace(thread_id), "1", replace, writes)


@pytest.mark.parametrize("sql", EACH)
def test_upstream_statements_extend_to_many_rows(sql: str) -> None:
    many = for_rows(sql, 3)
    assert many is not None
    assert many.count("%s") == 3 * sql.count("%s")
    row = sql[sql.index("(%s") : sql.index("%s)") + 3]
    assert many == sql.replace(row, f"{row}, {row}, {row}")


@pytest.mark.parametrize("sql", ["INSERT INTO t SELECT %s, %s", "INSERT INTO t VALUES (%s, lower(%s))", "x"])
def test_a_statement_of_another_kind_stays_one_for_each_row(sql: str) -> None:
    batch = RowBatch(sql, ["a", "b"] * 3, 3, {0})
    assert [(s.sql, s.parameters, s.rows) for s in statements([batch])] == [(sql, ["a", "b"], 1)] * 3
    assert one_statement({sql: batch}, sql, GUARD) is None
    assert one_statement({sql: RowBatch(sql, ["a", "b"], 1, {0})}, sql, GUARD) is not None


def test_rows_of_one_statement_are_gathered_over_the_operations() -> None:
    [gathered] = row_batches(
        UPSTREAM, [put("a", channels=2), put_writes("a"), put("b"), put_writes("b", replace=True)]
    )
    assert {sql: (batch.rows, batch.positions) for sql, batch in gathered.items()} == {
        BLOBS: (3, {0, 2}),
        CHECKPOINTS: (2, {0, 2}),
        KEEP: (2, {1}),
        REPLACE: (2, {3}),
    }


@pytest.mark.parametrize(
    "again",
    [
        [put("a"), put("a")],
        [put_writes("a"), put_writes("a", replace=True)],
        [put_writes("a", replace=True), put_writes("a")],
    ],
)
def test_a_row_that_is_written_again_goes_into_a_later_set(again: list[Any]) -> None:
    sets = row_batches(UPSTREAM, [put("b"), *again, put("c")])
    assert len(sets) == 2
    assert {position for batch in sets[0].values() for position in batch.positions} >= {0, 1}
    assert {position for batch in sets[1].values() for position in batch.positions} == {2, 3}


def test_statements_hold_every_row_once_in_order_in_few_sizes() -> None:
    for count in range(1, 100):
        for sql in EACH:
            columns = sql.count("%s")
            batch = RowBatch(sql)
            for i in range(count):
                batch.add(tuple(range(i * columns, (i + 1) * columns)))
            these = list(statements([batch]))
            assert [p for one in these for p in one.parameters] == list(range(count * columns))
            assert sum(one.rows for one in these) == count
            for one in these:
                assert one.sql.count("%s") == len(one.parameters)
                assert one.rows in made.ROWS_OF_A_STATEMENT
            assert len(these) <= count // max(made.ROWS_OF_A_STATEMENT) + 4


def test_parameters_are_numbered_as_they_stand() -> None:
    assert numbered("INSERT INTO t VALUES (%s, %s), (%s, %s) RETURNING 1") == (
        b"INSERT INTO t VALUES ($1, $2), ($3, $4) RETURNING 1"
    )
    for sql in EACH:
        many = for_rows(sql, 32)
        assert many is not None
        text = numbered(many).decode()
        assert "%" not in text
        assert f"${32 * sql.count('%s')})" in text


def test_small_batch_is_one_statement_ending_with_counted_rows() -> None:
    [gathered] = row_batches(UPSTREAM, [put_writes("a"), put("a", channels=2)])
    alone = one_statement(gathered, BLOBS, GUARD)
    assert alone is not None
    assert (alone.batch.sql, alone.rows) == (BLOBS, 2)
    assert alone.sql.count("%s") == len(alone.parameters) == 2 * 9 + 6 + 2 * 6 + 1
    first, _, last = alone.sql.rpartition("INSERT INTO")
    assert last.startswith(" checkpoint_blobs")
    assert first.lower().startswith("with part_0 as (insert into checkpoint_writes")
    assert alone.parameters[-3:] == ["null", b"", 7]


def test_batch_with_too_many_parameters_is_split() -> None:
    [gathered] = row_batches(UPSTREAM, [put(f"t{i}") for i in range(5)])
    assert one_statement(gathered, BLOBS, GUARD) is None
