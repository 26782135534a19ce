"""A lease in its holder's memory: what was sent to be appended, in order, until Postgres has it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from langgraph_checkpoint_cached.records import Namespace, Put, PutWrites

NAMESPACES_MAX = 1000
"""Of one lease. Each is a key for the script that closes it."""


@dataclass(eq=False)
class PendingWrite:
    """A write that was sent. It gets its number in the journal when Redis has answered; None: nobody knows yet."""

    operation: Put | PutWrites
    number: int | None = None


@dataclass(eq=False)
class Lease:
    """The right to write behind on a thread.

    Appends are sent in order, so what is kept before the first one without a number is known to be all there is
    up to there: only so far may it be replayed.
    """

    thread_id: str
    token: str
    usable: bool = True
    """For more appends."""
    appending: int = 0
    """How many are on their way."""
    appended_at: float = 0.0
    flushed: int = 0
    """Number in the journal up to which Postgres has it."""
    kept: deque[PendingWrite] = field(default_factory=deque)
    namespaces: set[Namespace] = field(default_factory=set)

    def is_over(self, idle_since: float) -> bool:
        """Whether it is to be ended: it is no longer usable, idle since then, or over very many namespaces."""
        return not self.usable or self.appended_at < idle_since or len(self.namespaces) >= NAMESPACES_MAX

    def forget(self, kept: PendingWrite) -> bool:
        """It is not to be replayed, as it was not appended or is in Postgres. Whether it was still kept."""
        if self.kept and self.kept[0] is kept:
            self.kept.popleft()
            return True
        try:
            self.kept.remove(kept)
        except ValueError:
            return False
        return True

    def ready(self) -> Iterator[PendingWrite]:
        """What may be replayed."""
        for kept in self.kept:
            if kept.number is None:
                return
            yield kept
