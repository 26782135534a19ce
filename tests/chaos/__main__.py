"""Torments the saver and checks what became of it: `python -m tests.chaos --seconds 300 --seed 7`.

The same seed makes the same plan of faults and the same choices of each worker; how they interleave is up to the
machine. Exits with 1 when a checker has found something.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.chaos.nemesis import BEHIND, FAULTS, OF_REDIS, OF_THE_REST
from tests.chaos.report import lines_of, write_json
from tests.chaos.run import Settings, run
from tests.chaos.savers import NAMES
from tests.chaos.world import MODES


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--nemesis", default="all", help=f"all, none, or some of {', '.join(FAULTS)}")
    parser.add_argument("--saver", default="ours", choices=NAMES)
    parser.add_argument("--mode", default="write_through", choices=MODES, help="how workers write")
    parser.add_argument("--redis", default="memory", choices=BEHIND, help="what survives; see world.py")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the report to")
    parser.add_argument("--keep", type=Path, help="where to leave the history")
    options = parser.parse_args()
    every = [*OF_REDIS, *OF_THE_REST] if options.mode == "write_through" else BEHIND[options.redis]
    settings = Settings(
        options.seconds,
        options.seed,
        kinds_of(options.nemesis, every),
        options.saver,
        options.workers,
        options.mode,
        options.redis,
    )
    faults = ", ".join(settings.kinds) or "no faults"
    print(f"seed {settings.seed}, {settings.setup}, {settings.seconds:g} s, {faults}", flush=True)
    result = run(settings, options.keep)
    print("\n".join(lines_of(result)))
    if options.json:
        write_json(result, options.json)
    return 1 if result.violations else 0


def kinds_of(text: str, every: list[str]) -> list[str]:
    """The faults that a `--nemesis` names."""
    if text in ("all", "none"):
        return every if text == "all" else []
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        raise SystemExit(f"there is no nemesis {', '.join(unknown)}, only {', '.join(FAULTS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
