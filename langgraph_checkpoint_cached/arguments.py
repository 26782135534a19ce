"""Validation of arguments."""

from __future__ import annotations

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError


def check_count_at_least(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, not {value}")
