"""Random histories of threads: what can happen to a checkpointer, as plain data that Hypothesis can shrink.

Steps name checkpoints by their place in the history ("the latest put", "two before it"), and values by their
name in `samples.py`. `strategies.py` draws them; `worlds.py` gives them ids and versions and applies them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

PODS = 2
SLOTS = ("new", "reserved", "late", "again")


How: TypeAlias = Literal[
    "set",  # a new value under a new version: what LangGraph does
    "inherit",  # a value that is not stored, under a version that may be
    "unstored",  # a new value and version, which `new_versions` leaves out
    "valueless",  # a new version without a value
    "bare",  # the version stays, the value goes
    "remove",  # both go
    "again",  # another value under the version that is there
    "reuse",  # another value under a version of an earlier checkpoint
    "return",  # that version without a value
    "mismatch",  # `new_versions` has another version than the checkpoint
    "unlisted",  # only `new_versions` has a version
    "number",  # a version that is a number
]
ODD_HOWS: tuple[How, ...] = get_args(How)[2:]


@dataclass(frozen=True)
class Change:
    """Change of a channel by a checkpoint."""

    channel: str
    how: How
    value: str = "none"


@dataclass(frozen=True)
class Put:
    """`aput`."""

    place: int
    pod: int
    changes: tuple[Change, ...]
    parent: int | None = 0
    """Number of puts before the latest; None for no parent."""
    slot: str = "new"
    """Id: one of `SLOTS` (an early write's, one older than the latest, the last again), or that text."""
    format: int = 4
    metadata: dict[str, Any] = field(default_factory=dict)
    config_metadata: dict[str, Any] = field(default_factory=dict)
    configurable: dict[str, Any] = field(default_factory=dict)
    look: bool = True
    """True if the latest is read before, and by the other pod afterwards."""


@dataclass(frozen=True)
class PutWrites:
    """`aput_writes`."""

    place: int
    pod: int
    writes: tuple[tuple[str, str], ...]
    target: int | str = 0
    """Number of puts before the latest; "early" for a checkpoint whose put is still to come; or an id."""
    task: int = 0
    path: str = ""
    look: bool = True


@dataclass(frozen=True)
class Rewrite:
    """A task's writes for the latest checkpoint, and again others, perhaps under another path: it was resumed."""

    place: int
    pod: int
    first: tuple[tuple[str, str], ...]
    second: tuple[tuple[str, str], ...]
    second_path: str


@dataclass(frozen=True)
class Early:
    """A task's writes, and then their checkpoint. Perhaps Redis forgets, and somebody reads, in between."""

    place: int
    pod: int
    writes: tuple[tuple[str, str], ...]
    changes: tuple[Change, ...]
    forget: bool
    reader: bool


@dataclass(frozen=True)
class Superstep:
    """Concurrent writes of a run: a put, and the writes of its tasks for that checkpoint, in any order."""

    changes: tuple[Change, ...]
    tasks: int
    writes: tuple[tuple[str, str], ...]
    reader: bool = False
    """True if both pods read meanwhile."""
    split: bool = False
    """True if the other pod writes too."""
    forget: bool = False
    """True if Redis has forgotten all of it."""


@dataclass(frozen=True)
class Turn:
    """A run: one read, then supersteps in a chain. What most of a thread's life is made of."""

    place: int
    pod: int
    supersteps: tuple[Superstep, ...]


@dataclass(frozen=True)
class Read:
    """`aget_tuple` or `aget`: the latest (None), a put so many before the latest, an early or unknown id."""

    place: int
    pod: int
    which: int | str | None = None
    whole: bool = True


@dataclass(frozen=True)
class Search:
    """`alist`."""

    place: int | None
    pod: int
    namespace: bool
    checkpoint: int | None
    filter: dict[str, Any] | None
    before: int | None
    limit: int | None


@dataclass(frozen=True)
class DeltaHistory:
    """`aget_delta_channel_history`."""

    place: int
    pod: int
    which: int | None
    channels: tuple[str, ...]


@dataclass(frozen=True)
class Delete:
    """`adelete_thread`."""

    place: int
    pod: int


@dataclass(frozen=True)
class Prune:
    """`aprune`."""

    places: tuple[int, ...]
    pod: int
    strategy: str


@dataclass(frozen=True)
class Evict:
    """Redis loses keys of a place, or all keys of the history."""

    place: int
    what: Literal["entry", "thread", "both", "all"]


@dataclass(frozen=True)
class Damage:
    """A byte of an entry is overwritten in Redis."""

    place: int
    pod: int
    part: str
    position: int
    byte: int


Step: TypeAlias = (
    "Put | PutWrites | Rewrite | Early | Turn | Read | Search | DeltaHistory | Delete | Prune | Evict | Damage"
)


@dataclass(frozen=True)
class History:
    """Steps on some namespaces of some threads."""

    places: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
