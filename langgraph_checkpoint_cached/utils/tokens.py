"""Random names that no two processes share."""

from __future__ import annotations

import os
import random

_random = random.Random()  # noqa: S311 - unlike the module's, nobody seeds it; no secret is made of it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_token() -> str:
    """A random name for one write, one fill lease, one mark or one owner."""
    return f"{_random.getrandbits(64):016x}"
