"""Forks of the process: objects that learn of them, and sockets that a child must leave alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet


class ForkAware(Protocol):
    """Object that is told, in a child, that its process was forked."""

    def after_fork(self) -> None:
        """Become unusable. Runs in the child before anything else does, with no other thread."""


_AWARE: WeakSet[ForkAware] = WeakSet()


def notify_in_children(aware: ForkAware) -> None:
    """Call `after_fork` in every process that is forked from this one, while the object lives."""
    _AWARE.add(aware)


def cut_off(descriptors: Iterable[int]) -> None:
    """Replace inherited sockets in a child by something that leads nowhere.

    A child that drops a client, or exits, may send a farewell, or roll back what its parent has under way, and
    takes the socket off the parent's epoll. A socket that is still open there also keeps the server from noticing
    that the parent has closed it.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def _after_fork() -> None:
    for aware in list(_AWARE):
        aware.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
