"""Several servers that tests start, break and close together."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE_SECONDS = 30.0


class Together(ABC):
    """Servers that are all up for the time of the context."""

    @abstractmethod
    def start(self) -> None:
        """Starts them, and returns when all is well."""

    @abstractmethod
    def close(self) -> None:
        """Ends those that run, and closes what is connected to them."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def until(holds: Callable[[], bool]) -> None:
    """Waits for what tells nobody when it happens."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} seconds"
        time.sleep(0.02)
