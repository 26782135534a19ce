"""Channel versions that this process has made and not yet stored. Pure."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

UNIQUE_VERSION = re.compile(r"\d{32}\.[0-9.e-]{16,}")
"""Pattern of the versions that `get_next_version` of the Postgres savers makes: a counter and a random fraction.
None is made twice."""

UNSTORED_MAX = 20_000


class UnstoredVersions:
    """Set of the versions that no checkpoint uses yet, so that Postgres has no value under them.

    Postgres must be asked about any other version. The oldest are dropped when there are too many.
    """

    def __init__(self) -> None:
        self._versions: OrderedDict[str, None] = OrderedDict()  # oldest first; a dict finds that one slowly

    def add(self, version: str) -> None:
        """Add a version that was made just now."""
        if len(self._versions) >= UNSTORED_MAX:
            self._versions.popitem(last=False)
        self._versions[version] = None

    def take(self, version: Any) -> bool:
        """Remove a version that a checkpoint uses now. Return whether it is certain that none used it before."""
        return isinstance(version, str) and self._versions.pop(version, self) is None
