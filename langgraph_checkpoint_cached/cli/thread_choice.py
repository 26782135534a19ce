"""Threads that a command is to work on: those that are named, or all."""

from __future__ import annotations

import argparse

from langgraph_checkpoint_cached.errors import ArgumentError


def add_thread_choice(parser: argparse.ArgumentParser, *, all_help: str) -> None:
    """Add the arguments `THREAD...` and `--all`."""
    parser.add_argument("thread", nargs="*", metavar="THREAD", help="these threads")
    parser.add_argument("--all", action="store_true", help=all_help)


def chosen_threads(options: argparse.Namespace) -> list[str] | None:
    """Return the ids of the threads that are named, each once; None for all.

    Raises:
        ArgumentError: neither is asked for, or both are.
    """
    if bool(options.thread) == options.all:
        raise ArgumentError("name threads, or pass --all")
    return None if options.all else list(dict.fromkeys(options.thread))
