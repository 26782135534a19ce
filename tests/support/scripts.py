"""Scripts that use a saver, each in a process of its own, and how they ended.

A script is text for `python -c`. It finds here what it needs: `from tests.support.scripts import *`.
"""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import START, StateGraph

from langgraph_checkpoint_cached import CachedPostgresSaver, SyncCachedPostgresSaver

EXIT_SECONDS_MAX = 30
"""Longest that a script of the tests may run."""
READY = "ready"
"""Line that a script prints when the test is to go on."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """Outcome of a script."""

    code: int | None
    """None if it had to be killed."""
    out: str
    err: str
    seconds: float


class Process:
    """Running script.

    Args:
        body: Text of it.
        urls: Of Postgres and Redis.
        prefix: Of its keys in Redis.
        options: Of the interpreter.
    """

    def __init__(
        self, body: str, urls: tuple[str, str], prefix: str, options: Sequence[str] = (), cached: bool = True
    ) -> None:
        environment = {
            **os.environ,
            "SCRIPT_POSTGRES": urls[0],
            "SCRIPT_REDIS": urls[1],
            "SCRIPT_PREFIX": prefix,
            "SCRIPT_CACHED": "1" if cached else "",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-X", "faulthandler", *options, "-c", f"{IMPORTS}\n{body}"]
        self._popen = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C of the test's own terminal is none for the script
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_until_ready(self) -> None:
        """Read its output up to the line `READY`."""
        assert self._popen.stdout
        for line in self._popen.stdout:
            if line.strip() == READY:
                return
        raise AssertionError(f"never ready: {self.end()}")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._popen.send_signal(signal.SIGINT)

    def end(self, timeout: float = EXIT_SECONDS_MAX) -> Ended:
        """Wait for its end; kill it when that takes too long. Then stderr has the stacks of all its threads."""
        began = time.monotonic()
        try:
            out, err = self._popen.communicate(timeout=timeout)
            return Ended(self._popen.returncode, out, err, time.monotonic() - began)
        except subprocess.TimeoutExpired:
            self._popen.send_signal(signal.SIGABRT)
            out, err = self._popen.communicate()
            return Ended(None, out, err, time.monotonic() - began)


# -- inside a script -------------------------------------------------------------------------------------------

IMPORTS = """
import asyncio, contextlib, gc, multiprocessing, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests in the background has it ignored
from concurrent.futures import ThreadPoolExecutor
from langgraph_checkpoint_cached import *
from tests.support.scripts import graph_of, on, opening, opening_async, ready, sockets
"""


class Steps(TypedDict):
    """State of the scripts' graph."""

    steps: Annotated[list[str], operator.add]


def opening(**options: Any) -> Any:
    """Return what opens the script's saver for code without an event loop: ours, or upstream's."""
    if not os.environ["SCRIPT_CACHED"]:
        return PostgresSaver.from_conn_string(os.environ["SCRIPT_POSTGRES"])
    return SyncCachedPostgresSaver.from_conn_string(
        os.environ["SCRIPT_POSTGRES"], os.environ["SCRIPT_REDIS"], prefix=os.environ["SCRIPT_PREFIX"], **options
    )


def opening_async(**options: Any) -> Any:
    """Return what opens the script's asynchronous saver."""
    return CachedPostgresSaver.from_conn_string(
        os.environ["SCRIPT_POSTGRES"], os.environ["SCRIPT_REDIS"], prefix=os.environ["SCRIPT_PREFIX"], **options
    )


def graph_of(saver: Any, nodes: int = 3, seconds: float = 0.0) -> Any:
    """Compile a graph of nodes one after the other, each of which takes so long."""
    builder = StateGraph(Steps)
    before = START
    for number in range(nodes):
        name = f"node {number}"

        def node(state: Steps, name: str = name) -> dict[str, list[str]]:
            time.sleep(seconds)
            return {"steps": [name]}

        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    return builder.compile(saver)


def on(thread_id: object) -> Any:
    """Return the config of a thread."""
    return {"configurable": {"thread_id": str(thread_id), "checkpoint_ns": ""}}


def ready() -> None:
    """Tell the test that it may go on."""
    print(READY, flush=True)


def sockets() -> set[str]:
    """Return the TCP connections that this process has, by what the kernel calls them."""
    tcp = {f"socket:[{line.split()[9]}]" for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]}
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # the one that lists them
            continue
        if target in tcp:
            found.add(target)
    return found
