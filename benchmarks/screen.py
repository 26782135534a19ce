"""Progress of a run on the terminal: a bar, and lines above it."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Screen:
    """Progress bar over steps that count one each; in a file, where no bar can move, a line for each step."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=steps)

    def step(self, name: str) -> None:
        """Show what is measured now."""
        self._progress.update(self._task, description=name)
        if not self._console.is_terminal:
            self._console.print(name)

    def advance(self, part: float) -> None:
        """Advance the bar by a part of a step."""
        self._progress.advance(self._task, part)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
