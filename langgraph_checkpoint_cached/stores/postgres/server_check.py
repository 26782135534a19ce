"""Check that Postgres, and a pooler in front of it, are such that checkpoints can be stored."""

from __future__ import annotations

import logging

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from langgraph_checkpoint_cached.errors import UnsupportedServerError
from langgraph_checkpoint_cached.stores.postgres.queries import query

logger = logging.getLogger("langgraph_checkpoint_cached")

POSTGRES_VERSION_MIN = 120_000
SYNCHRONOUS_COMMIT = query("synchronous_commit")
NO_ENCODING = "client_encoding is SQL_ASCII, that of the database, with which text cannot be read"
ENCODING_ADVICE = "add client_encoding=utf8 to the connection string"
NO_TRANSACTIONS = "the pooler is in statement mode, in which there are no transactions"
TRANSACTION_ADVICE = "set its pool_mode to transaction or session"
NOT_DURABLE = "synchronous_commit is off"
DURABLE_ADVICE = "a crash loses the last writes that were acknowledged: set synchronous_commit = on for this role"


async def check_postgres(conn: AsyncConnection[DictRow], *, in_pipeline: bool) -> None:
    """Log a warning if commits are not durable.

    Args:
        conn: Connection to check.
        in_pipeline: Whether it is in pipeline mode.

    Raises:
        UnsupportedServerError: Postgres is too old, or text or transactions do not work on this connection.
    """
    if (version := conn.info.server_version) < POSTGRES_VERSION_MIN:
        raise UnsupportedServerError(
            f"PostgreSQL {version // 10_000} is too old: {POSTGRES_VERSION_MIN // 10_000} or later is needed"
        )
    if lacks_encoding(conn):
        raise UnsupportedServerError(f"{NO_ENCODING}: {ENCODING_ADVICE}")
    if not in_pipeline and not await has_transactions(conn):
        raise UnsupportedServerError(f"{NO_TRANSACTIONS}: {TRANSACTION_ADVICE}")
    row = await (await conn.execute(SYNCHRONOUS_COMMIT, prepare=False)).fetchone()
    if row is not None and row["synchronous_commit"] == "off":
        logger.warning("%s: %s", NOT_DURABLE, DURABLE_ADVICE)


def lacks_encoding(conn: AsyncConnection[DictRow]) -> bool:
    """Return whether psycopg returns bytes for text, not knowing how it is encoded."""
    return conn.info.parameter_status("client_encoding") == "SQL_ASCII"


async def has_transactions(conn: AsyncConnection[DictRow]) -> bool:
    """Return False if a pooler refuses transactions of several statements. The connection is closed then."""
    try:
        async with conn.transaction():
            await conn.execute(SYNCHRONOUS_COMMIT, prepare=False)
    except psycopg.OperationalError as exc:
        if "statement pooling" not in str(exc):
            raise
        return False
    return True
