"""Dictionary of what was worked out for short texts: bounded in count, and thereby in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")

RESULTS_MAX = 1024
CHARACTERS_MAX = 1024
"""Most characters of the texts of a key whose result is remembered. Callers' names and ids may have any length."""


class TextCache(dict[Key, Result]):
    """Results by key. A missing one is worked out, and remembered unless its key is long. A full one begins anew.

    A result that is there costs one look-up, which calls nothing.

    Args:
        find: Works a result out. What it raises goes to the caller.
        characters: Tells the number of characters of a key's texts.
    """

    def __init__(self, find: Callable[[Key], Result], characters: Callable[[Key], int]) -> None:
        super().__init__()
        self._find, self._characters = find, characters

    def __missing__(self, key: Key) -> Result:
        result = self._find(key)
        if self._characters(key) <= CHARACTERS_MAX:
            if len(self) >= RESULTS_MAX:
                self.clear()
            self[key] = result
        return result
