"""What a command says: text for people or JSON for machines on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TERMINAL_EVERY_SECONDS = 0.2
LOG_EVERY_SECONDS = 10.0
"""How often progress is a new line where standard error is no terminal."""


class Output:
    """Where a command's answer goes. With `as_json`, an object on a line of its own, and nothing else."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def report(self, data: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Says it: `data` to machines, `lines` to people."""
        text = json.dumps(data, default=str) if self.as_json else "\n".join(lines)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def progress(self, what: str, total: int | None = None) -> Progress:
        """Progress of `what`, of so many if that is known."""
        return Progress(what, total)


class Progress:
    """How far long work is: a line that is written over on a terminal, elsewhere one every few seconds."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._terminal = sys.stderr.isatty()
        self._every_seconds = TERMINAL_EVERY_SECONDS if self._terminal else LOG_EVERY_SECONDS
        self._said_at = time.monotonic()
        self._width = 0

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._say()

    def at(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many."""
        self._done, self._total = done, total if total is not None else self._total
        self._say()

    def end(self) -> None:
        """Clears the line on a terminal."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at < self._every_seconds:
            return
        self._said_at = now
        of = "" if self._total is None else f" of {self._total:,}"
        text = f"{self._what}: {self._done:,}{of}"
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """The rows as lines, in columns. All rows have the same length."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    ]


def size(count_bytes: int | None) -> str | None:
    """Bytes for people."""
    if count_bytes is None:
        return None
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def span(seconds: float | None) -> str | None:
    """Seconds for people."""
    if seconds is None:
        return None
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"
