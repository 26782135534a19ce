"""Output of a command: text for people or JSON for machines on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TERMINAL_EVERY_SECONDS = 0.2
LOG_EVERY_SECONDS = 10.0
"""Interval between lines of progress where standard error is no terminal."""


class Output:
    """Writer of a command's results. With `as_json` it writes nothing but an object on a line for each."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def report(self, data: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Write a result: `data` for machines, `lines` for people."""
        text = json.dumps(data, default=str) if self.as_json else "\n".join(lines)
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def progress(self, label: str, total: int | None = None) -> Progress:
        """Return a progress line that begins with `label`; `total` is the number of items, if that is known."""
        return Progress(label, total)


class Progress:
    """Progress of long work: a line that is overwritten on a terminal, elsewhere a new one every few seconds."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._terminal = sys.stderr.isatty()
        self._every_seconds = TERMINAL_EVERY_SECONDS if self._terminal else LOG_EVERY_SECONDS
        self._written_at = time.monotonic()
        self._width = 0

    def add(self, count: int = 1) -> None:
        """Count more items as done."""
        self._done += count
        self._write()

    def set(self, done: int, total: int | None = None) -> None:
        """Set how many items are done, and how many there are."""
        self._done, self._total = done, total if total is not None else self._total
        self._write()

    def end(self) -> None:
        """Clear the line on a terminal."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _write(self) -> None:
        now = time.monotonic()
        if now - self._written_at < self._every_seconds:
            return
        self._written_at = now
        of = "" if self._total is None else f" of {self._total:,}"
        text = f"{self._label}: {self._done:,}{of}"
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the rows as lines, in columns. All rows have the same length."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    ]


def size(count_bytes: int | None) -> str | None:
    """Format bytes for people."""
    if count_bytes is None:
        return None
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def span(seconds: float | None) -> str | None:
    """Format seconds for people."""
    if seconds is None:
        return None
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"
