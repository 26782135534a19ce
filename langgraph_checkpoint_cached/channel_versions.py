"""Versions of channels that this process has made and not yet stored. Pure."""

from __future__ import annotations

import re
from typing import Any

UNIQUE_VERSION = re.compile(r"\d{32}\.[0-9.e-]{16,}")
"""What `get_next_version` of the Postgres savers makes: a counter and a random fraction, never made twice."""

UNSTORED_MAX = 20_000


class UnstoredVersions:
    """Remembers versions from when they are made until a checkpoint uses them: until then Postgres cannot know
    them. One that was forgotten, or made elsewhere, may be known to it, and that has to be asked.
    """

    def __init__(self) -> None:
        self._versions: dict[str, None] = {}  # oldest first

    def add(self, version: str) -> None:
        """A version was made."""
        if len(self._versions) >= UNSTORED_MAX:
            self._versions.pop(next(iter(self._versions)), None)
        self._versions[version] = None

    def take(self, version: Any) -> bool:
        """Whether a version that is now used was never used before, as far as this process knows for sure."""
        return isinstance(version, str) and self._versions.pop(version, self) is None
