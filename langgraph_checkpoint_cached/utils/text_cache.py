"""Dictionaries of what was worked out for short texts: bounded in count, and thereby in bytes."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")

RESULTS_MAX = 1024
CHARACTERS_MAX = 1024
"""Most characters of the texts of a key whose result is remembered. Callers' names and ids may have any length."""


def remember(results: dict[Key, Result], key: Key, result: Result, characters: int) -> Result:
    """Return the result, remembered unless its key is long. A full dictionary begins anew."""
    if characters <= CHARACTERS_MAX:
        if len(results) >= RESULTS_MAX:
            results.clear()
        results[key] = result
    return result
