"""Text that a text column of Postgres takes."""

from __future__ import annotations


def text_bytes(text: str) -> int | None:
    """Return the length as UTF-8, or None if no text column takes it, for a NUL or a lone surrogate."""
    if "\0" in text:
        return None
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return None
