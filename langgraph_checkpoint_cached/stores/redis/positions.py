"""Position of a thread's lease, as Redis tells it."""

from __future__ import annotations

from typing import NamedTuple


class LeasePosition(NamedTuple):
    """Token of a thread's lease, and the last number in its journal."""

    token: str
    last: int


def parse_position(reply: bytes) -> LeasePosition | None:
    """Return the position in a reply of the form `<token> <last>`, None if there is none."""
    token, _, last = reply.decode(errors="replace").partition(" ")
    return LeasePosition(token, int(last)) if last else None
