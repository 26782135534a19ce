"""Check of writes that Postgres is certain to accept and to keep as they are. Pure.

Write-behind acknowledges only those before Postgres has seen them. Others are not refused: they are written
through, and get Postgres' own answer.
"""

from __future__ import annotations

import re

from langgraph_checkpoint_cached.records import Put, PutWrites
from langgraph_checkpoint_cached.utils.text import text_bytes

KEY_BYTES_MAX = 2000
"""Bytes of the texts of one primary key. An index takes some 2,700."""
_DOUBTFUL_JSON = re.compile(
    r"\\u0000|NaN|Infinity"
    r"|\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])"  # a surrogate alone
    r"|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f]"
)


def is_storable(operation: Put | PutWrites) -> bool:
    """Tell whether Postgres accepts these rows, whatever it holds, and returns them as they are."""
    where = operation.namespace
    key = (where.thread_id, where.checkpoint_ns, operation.checkpoint_id)
    if isinstance(operation, PutWrites):
        others: list[str] = []
        for write in operation.writes:
            others += (write.channel, write.type, write.task_path)
        return _are_texts(*key, operation.writes[0].task_id) and _are_texts(*others, bytes_max=None)
    if not operation.is_new or _is_doubtful(operation.checkpoint_json) or _is_doubtful(operation.metadata_json):
        return False
    others, longest = [operation.parent_id or ""], ""
    for value in operation.values:
        others += (value.channel, value.type)
        if 4 * len(value.channel) > len(longest):  # a character has up to four bytes in UTF-8
            longest = max(longest, value.channel, key=_size_bytes)
    return _are_texts(*others, bytes_max=None) and _are_texts(*key, longest)


def _are_texts(*texts: str, bytes_max: int | None = KEY_BYTES_MAX) -> bool:
    """Tell whether Postgres accepts these as text columns, and they are together no longer than that."""
    size = text_bytes("".join(texts))
    return size is not None and (bytes_max is None or size <= bytes_max)


def _size_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _is_doubtful(json: str) -> bool:
    may_be = "\\u" in json or "NaN" in json or "Infinity" in json
    return may_be and _DOUBTFUL_JSON.search(json) is not None
