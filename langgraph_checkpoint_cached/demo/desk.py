"""Order book of the support desk, in a file that several processes share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

WARRANTY_DAYS = 730
DELIVERY_DAYS = 6

# Order, item, price in cents, days since it was bought.
ORDERS = [
    ("A-1001", "espresso machine", 18900, 3),
    ("B-2001", "desk lamp", 4500, 410),
    ("C-3001", "headphones", 12900, 2),
    ("D-4001", "standing desk", 51900, 900),
    ("E-5001", "coffee grinder", 8900, 12),
]


@dataclass(frozen=True)
class Order:
    """Order of a customer."""

    order_id: str
    item: str
    price_cents: int
    bought: date

    @property
    def price(self) -> str:
        """Price as customers read it."""
        return f"{self.price_cents / 100:.2f} EUR"

    @property
    def warranty_ends(self) -> date:
        """Last day of the warranty."""
        return self.bought + timedelta(days=WARRANTY_DAYS)

    @property
    def arrives(self) -> date:
        """Day on which the parcel arrives, or arrived."""
        return self.bought + timedelta(days=DELIVERY_DAYS)


@dataclass(frozen=True)
class BookEntry:
    """Something that a tool did, and the process that it ran in."""

    action: str
    order_id: str
    pid: int


class OrderBook:
    """Orders, and what tools did with them. The same action may be entered twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> OrderBook:
        """Create a book with a few orders."""
        book = cls(path)
        with book._connect() as connection:
            connection.execute("CREATE TABLE orders (order_id, item, price_cents, bought)")
            connection.execute("CREATE TABLE entries (action, order_id, pid)")
            for order_id, item, price_cents, age_days in ORDERS:
                bought = date.today() - timedelta(days=age_days)
                row = (order_id, item, price_cents, bought.isoformat())
                connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?)", row)
        return book

    def order(self, order_id: str) -> Order:
        """Return the order with this number. Raises `LookupError` if there is none."""
        with self._connect() as connection:
            found = connection.execute("SELECT * FROM orders WHERE order_id = ?", (order_id,)).fetchone()
        if found is None:
            raise LookupError(f"there is no order {order_id}")
        order_id, item, price_cents, bought = found
        return Order(order_id, item, price_cents, date.fromisoformat(bought))

    def enter(self, action: str, order_id: str) -> None:
        """Enter that this process did this."""
        with self._connect() as connection:
            connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (action, order_id, os.getpid()))

    def entries(self, action: str) -> list[BookEntry]:
        """Return the entries of this action, oldest first."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT * FROM entries WHERE action = ? ORDER BY rowid", (action,)
            ).fetchall()
        return [BookEntry(*row) for row in rows]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            yield connection
