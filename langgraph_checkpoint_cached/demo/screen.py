"""Screen of the demo: scenes, tables, and claims that are checked before they are printed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from langgraph_checkpoint_cached.demo.turns import Turn
from langgraph_checkpoint_cached.errors import CachedSaverError

WIDTH = 100
LOGGER = "langgraph_checkpoint_cached"


class CheckFailed(CachedSaverError):
    """A claim of the demo is not true."""


class Screen(logging.Handler):
    """Output to the terminal, or to a file without colours and control characters.

    As a logging handler it shows what the package logs.
    """

    def __init__(self) -> None:
        super().__init__()
        console = Console(highlight=False)
        self._console = Console(highlight=False, width=min(console.width, WIDTH) if console.is_terminal else WIDTH)
        self._unicode = self._console.encoding.lower().startswith("utf")
        self._scenes = self._checks = 0

    def title(self, text: str, explanation: str) -> None:
        """Print the first lines."""
        self._console.print()
        self._console.print(text, style="bold")
        self._console.print(explanation, style="dim")

    def end(self, how: str) -> None:
        """Print the last line."""
        self._console.print()
        self._console.print(f"All {self._checks} checks held, {how}.", style="bold green")

    def scene(self, name: str, explanation: str) -> None:
        """Begin a scene: print its name and what is going to happen."""
        self._scenes += 1
        self._console.print()
        line = "─" if self._unicode else "-"
        self._console.print(Rule(f"[bold]{self._scenes}  {name}[/]", align="left", characters=line, style="cyan"))
        self._console.print(explanation, style="dim")

    def say(self, text: str) -> None:
        """Print a line."""
        self._print_indented(Text(text))

    def check(self, holds: bool, claim: str) -> None:
        """Print a claim if it holds.

        Raises:
            CheckFailed: it does not.
        """
        self.require(holds, claim)
        self._checks += 1
        self._mark("✓" if self._unicode else "+", "green", claim)

    def require(self, holds: bool, claim: str) -> None:
        """Raise `CheckFailed` unless a claim holds, without printing it."""
        if not holds:
            raise CheckFailed(f"this is not true: {claim}")

    def turns(self, heading: str, rows: Sequence[tuple[str, Turn]]) -> None:
        """Print a table of turns, each with a label."""
        table = self._table(heading, "tools", right=["turn", "reading", "Redis", "Postgres"])
        for name, turn in rows:
            tools = ", ".join(turn.tools) or "none"
            times = (milliseconds(turn.milliseconds), milliseconds(turn.reading_milliseconds))
            served = (_count(turn.from_redis), _count(turn.from_postgres))
            table.add_row(Text(name), Text(tools), *times, *served)
        self._print_indented(table)

    def comparison(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of texts; all columns but the first are numbers."""
        table = self._table(headings[0], right=headings[1:])
        for row in rows:
            table.add_row(*row)
        self._print_indented(table)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show on a terminal that something takes time."""
        with self._console.status(text, spinner="dots" if self._unicode else "line"):
            yield

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line of the package's log."""
        self._mark("log", "yellow", record.getMessage())

    @contextmanager
    def showing_log(self) -> Iterator[None]:
        """Print the package's log in the block, and send it nowhere else."""
        logger = logging.getLogger(LOGGER)
        propagated, logger.propagate = logger.propagate, False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = propagated

    def _mark(self, mark: str, style: str, text: str) -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(mark, style=style), Text(text))
        self._print_indented(grid)

    def _print_indented(self, content: RenderableType) -> None:
        self._console.print(Padding(content, (0, 0, 0, 2), expand=False))

    def _table(self, *left: str, right: Sequence[str]) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, expand=False)
        for heading in left:
            table.add_column(heading)
        for heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        return table


def milliseconds(number: float) -> str:
    """Format a time with a sensible number of digits."""
    return f"{number:.0f} ms" if number >= 10 else f"{number:.1f} ms"


def _count(number: int) -> str:
    return str(number) if number else "-"
