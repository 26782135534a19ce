"""Identity of the database behind this process: what Redis holds belongs to one of them, and to no other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from langgraph_checkpoint_cached.utils.tokens import new_token

TAG_LENGTH = 12


@dataclass
class DatabaseIdentity:
    """Identity of Postgres as this process knows it.

    It changes with every failover, restore, crash and restart: then commits may be lost that Redis still shows.

    Attributes:
        tag: Start of the random part of every generation in Redis, which ends with a dot: an entry of another
            identity does not exist. Until Postgres has told its own, it is one that no other process has.
        changes: How often it has changed since this process learned of the first.
    """

    tag: str = field(default_factory=lambda: f"{new_token()}.")
    changes: int = 0
    is_known: bool = False

    def learn(self, facts: tuple[str | None, ...]) -> bool:
        """Note what Postgres tells of itself; return whether that has changed since it was asked before."""
        tag = hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:TAG_LENGTH] + "."
        if tag == self.tag:
            return False
        was_known, self.tag, self.is_known = self.is_known, tag, True
        self.changes += was_known
        return was_known
