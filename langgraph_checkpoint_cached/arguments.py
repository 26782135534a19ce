"""Validation of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.ttl import CHECKPOINT, Ttl


def check_count_at_least(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, not {value}")


Mode = Literal["write_through", "write_behind"]
RedisDurability = Literal["as_is", "replica", "disk"]


@dataclass(frozen=True)
class Settings:
    """Settings of one saver, validated."""

    ttl: Ttl = CHECKPOINT
    prefix: str = "langgraph"
    mode: Mode = "write_through"
    redis_durability: RedisDurability = "as_is"
    redis_timeout_seconds: float = 0.5
    signing_keys: Sequence[bytes | str] | None = None
    check_hits: float = 0.0
