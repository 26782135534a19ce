"""SQL statements of this package, in `sql/*.sql`."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(package: str) -> dict[str, str]:
    """Read the statements of all .sql files in the directory `sql` of a package, by name.

    Each follows a line `-- name: <name>` and ends where the next one begins. Lines of comment are left out.

    Raises:
        ValueError: two statements have the same name.
    """
    queries: dict[str, str] = {}
    for file in resources.files(package).joinpath("sql").iterdir():
        if not file.name.endswith(".sql"):
            continue
        _, *parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in queries:
                raise ValueError(f"two statements of {package} are named {name!r}")
            queries[name] = "\n".join(line for line in text.strip().splitlines() if not line.startswith("--"))
    return queries


_QUERIES = load_queries(__package__)


def query(name: str) -> str:
    """Return the statement of this name. Modules call it at import, where a wrong name raises `KeyError`."""
    return _QUERIES[name]
