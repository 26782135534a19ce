"""Databases and directory of a contestant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Databases, a directory and a prefix that one contestant has for itself."""

    postgres_uri: str
    redis_url: str
    stack_url: str
    directory: str
    prefix: str
