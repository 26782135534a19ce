"""Machine and versions that the benchmarks run on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "langgraph-checkpoint-cached",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-aws",
    "langgraph-checkpoint-redis",
    "langgraph-checkpoint-sqlite",
    "psycopg",
    "redis",
    "hiredis",
    "ormsgpack",
)


def machine() -> dict[str, str]:
    """Return processor, memory and system."""
    release = ".".join(platform.release().split(".")[:2])
    system = f"{platform.system()} {release}, {platform.machine()}"
    return {"processor": f"{os.cpu_count()} x {_processor()}", "memory": _memory(), "system": system}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, as far as they are installed."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    return _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()


def _memory() -> str:
    kilobytes = _field(Path("/proc/meminfo"), "MemTotal").split()
    return f"{int(kilobytes[0]) / 1024**2:.0f} GiB" if kilobytes else "unknown"


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
