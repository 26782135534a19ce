"""Names of things in Redis. Pure: the same thread always has the same keys, and no two share one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError

NAME_BYTES_MAX = 200
TAGS_KEPT_MAX = 1024
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")  # what quoting leaves as it is


@dataclass(frozen=True)
class Namespace:
    """One (`thread_id`, `checkpoint_ns`): the unit that has a latest checkpoint."""

    thread_id: str
    checkpoint_ns: str = ""


def check_prefix(prefix: object) -> str:
    """`prefix`, if every key can start with it.

    Raises:
        ArgumentTypeError: it is not a `str`.
        ArgumentError: it is empty, or holds a brace: Redis Cluster hashes what stands between the first pair.
    """
    if not isinstance(prefix, str):
        raise ArgumentTypeError(f"prefix must be a str, not {type(prefix).__name__}")
    if not prefix or "{" in prefix or "}" in prefix:
        raise ArgumentError(f"prefix must not be empty nor contain '{{' or '}}': {prefix!r}")
    return prefix


def name_of(text: str) -> str:
    """`text` with only letters, digits and ``_.-~%``; a digest when that would be long.

    A digest starts with ``!``, which no other name does, so the two cannot meet. Nothing in a name can be
    taken for a hash tag, a separator or a glob.
    """
    name = text if _PLAIN.fullmatch(text) else quote(text, safe="", errors="surrogatepass")
    if len(name) <= NAME_BYTES_MAX:
        return name
    return "!" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def thread_key(prefix: str, thread_id: str) -> str:
    """Key of the thread's hash: its generation and its fences."""
    return f"{prefix}:{_tag(thread_id)}:thread"


def namespace_key(prefix: str, namespace: Namespace) -> str:
    """Key of the namespace's hash, its entry and ticket: in the Cluster slot of its thread's."""
    return f"{prefix}:{_tag(namespace.thread_id)}:ns:{name_of(namespace.checkpoint_ns)}"


def names_key(prefix: str, thread_id: str) -> str:
    """Key of the set of the thread's namespaces, kept while all of them are known."""
    return f"{prefix}:{_tag(thread_id)}:names"


@lru_cache(maxsize=TAGS_KEPT_MAX)
def _tag(thread_id: str) -> str:
    """The part of a key by which Redis Cluster chooses its slot. An empty one would not count as a tag."""
    return f"{{{name_of(thread_id) or '!'}}}"
