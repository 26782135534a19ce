"""Command line of a model: explores many random interleavings, with one rule left out if asked."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection


def all_but(dropped: str | None) -> Callable[[str], bool]:
    """Say of each rule whether it holds. A function, so that copies of a state share it and nothing else."""
    return lambda rule: rule != dropped


def run(description: str, rules: Collection[str], explore: Callable[[int, str | None], dict[str, int]]) -> int:
    """Explore one interleaving per seed; print the first violation, or how often what happened.

    Args:
        description: Text for `--help`.
        rules: Names of the rules that can be left out.
        explore: Explores the interleaving of a seed, without a rule. Raises `AssertionError` for a violation.

    Returns:
        Status of the process: 1 after a violation.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--drop", choices=rules)
    parser.add_argument("--runs", type=int, default=40_000)
    args = parser.parse_args()
    totals: Counter[str] = Counter()
    for seed in range(args.runs):
        try:
            totals.update(explore(seed, args.drop))
        except AssertionError as violation:
            print(f"seed {seed}: {violation}")
            return 1
    print(f"{args.runs} runs, no violation: {dict(totals)}")
    return 0
