"""Names of things in Redis. Pure: the same thread always has the same keys, and no two share one."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import quote, unquote

from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.utils.text_cache import TextCache

NAME_BYTES_MAX = 200
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")  # what quoting leaves as it is


def encode_name(text: str) -> str:
    """Encode `text` in letters, digits and ``_.-~%``, or as a digest if that would be long.

    A digest starts with ``!``, which no other name does, so the two cannot meet. Nothing in a name can be
    taken for a hash tag, a separator or a glob.
    """
    name = text if _PLAIN.fullmatch(text) else quote(text, safe="", errors="surrogatepass")
    if len(name) <= NAME_BYTES_MAX:
        return name
    return "!" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def decode_name(name: str) -> str | None:
    """Return the text that `encode_name` was given, or None for a digest."""
    return None if name.startswith("!") else unquote(name, errors="surrogatepass")


def thread_key(prefix: str, thread_id: str) -> str:
    """Key of the thread's hash: its generation and its fences."""
    return f"{prefix}:{TAGS[thread_id]}:thread"


def namespace_key(prefix: str, namespace: Namespace) -> str:
    """Key of the namespace's hash, its entry and fill lease: in the Cluster slot of its thread's."""
    return f"{prefix}:{TAGS[namespace.thread_id]}:ns:{encode_name(namespace.checkpoint_ns)}"


def names_key(prefix: str, thread_id: str) -> str:
    """Key of the names of the thread's namespaces that may have an entry."""
    return f"{prefix}:{TAGS[thread_id]}:names"


def names_key_beside(of_thread: str) -> str:
    """Return `names_key` of the thread with this key."""
    return of_thread.removesuffix(":thread") + ":names"


def entry_key_beside(of_thread: str, name: str) -> str:
    """Return the `namespace_key` of a namespace's name, "" for the root's, in the thread with this key."""
    return f"{of_thread.removesuffix(':thread')}:ns:{name}"


class EntryKeys(NamedTuple):
    """Keys of an entry, and its name.

    Attributes:
        keys: Those of its thread, of the namespace and of the thread's names, as scripts take them.
        name: The namespace as it is named in keys.
        journal: Key of the thread's journal.
    """

    keys: tuple[str, str, str]
    name: str
    journal: str


def _entry_keys(key: tuple[str, Namespace]) -> EntryKeys:
    prefix, namespace = key
    of_namespace = namespace_key(prefix, namespace)
    keys = (thread_key(prefix, namespace.thread_id), of_namespace, names_key(prefix, namespace.thread_id))
    return EntryKeys(keys, of_namespace.rpartition(":")[2], journal_key(prefix, namespace.thread_id))


def journal_key(prefix: str, thread_id: str) -> str:
    """Key of the stream of what is acknowledged and perhaps not yet in Postgres, in the slot of its thread's."""
    return f"{prefix}:{TAGS[thread_id]}:journal"


def stats_key(prefix: str, owner: str) -> str:
    """Key of the counters that a saver publishes. Its owner is a token."""
    return f"{prefix}:stats:{owner}"


def parse_key(prefix: str, key: str) -> tuple[str, str, str] | None:
    """Split a key into the thread's name, the kind and the namespace's name or "".

    The kind is `"thread"`, `"ns"`, `"names"` or `"journal"`. Return None for any other key. The name of a thread
    whose id is empty is `"!"`.
    """
    found = re.fullmatch(r":\{([^{}]+)\}:(thread|names|journal|ns)(?::(.*))?", key[len(prefix) :])
    if not key.startswith(prefix) or found is None or (found[2] == "ns") != (found[3] is not None):
        return None
    return found[1], found[2], found[3] or ""


def decode_thread_name(tag: str) -> str | None:
    """Return the id of the thread whose name stands in its keys, or None for a digest."""
    return "" if tag == "!" else decode_name(tag)


def tag_name(thread_id: str) -> str:
    """Return the thread's name as it stands in its keys."""
    return encode_name(thread_id) or "!"


TAGS: TextCache[str, str] = TextCache(lambda thread_id: f"{{{tag_name(thread_id)}}}", len)
"""Part of a thread's keys by which Redis Cluster chooses their slot. An empty one would not count as a tag."""
ENTRY_KEYS: TextCache[tuple[str, Namespace], EntryKeys] = TextCache(
    _entry_keys, lambda key: len(key[1].thread_id) + len(key[1].checkpoint_ns)
)
"""Keys of entries by prefix and namespace."""
