"""Parsing of a `RunnableConfig`, and checks of what comes with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.records import Namespace
from langgraph_checkpoint_cached.utils.text import text_bytes

_CHECKPOINT_KEYS: tuple[tuple[str, type, type], ...] = (
    ("v", int, int),
    ("id", str, str),
    ("channel_values", dict, Mapping),
    ("channel_versions", dict, Mapping),
)
"""Keys that a checkpoint needs, with their usual type, which is fast to tell, and the type that is required."""


class NamesNothing(Exception):
    """A config for a read that names no thread or namespace, but None. Nothing is found there."""


def parse_config(config: Any, *, for_write: bool = False) -> tuple[Namespace, str | None]:
    """Return the namespace and the checkpoint id that `config` names; None for the id of the latest checkpoint.

    Args:
        config: `{"configurable": {"thread_id": ..., "checkpoint_ns": ..., "checkpoint_id": ...}}`. Only
            `thread_id` is required.
        for_write: Whether `checkpoint_ns` is required too, as by the upstream saver's writes. Else it is "" if
            missing.

    Raises:
        ArgumentError: a key is missing, or Postgres cannot store its value.
        ArgumentTypeError: `config` or one of the values has the wrong type.
        NamesNothing: the thread or the namespace to read is None.
    """
    if type(config) is dict and type(found := config.get("configurable")) is dict:
        thread_id, checkpoint_id = found.get("thread_id"), found.get("checkpoint_id") or None
        checkpoint_ns = found.get("checkpoint_ns", None if for_write else "")
        if type(thread_id) is type(checkpoint_ns) is str and (checkpoint_id is None or type(checkpoint_id) is str):
            text = f"{thread_id}{checkpoint_ns}{checkpoint_id}"
            if "\0" not in text and (text.isascii() or text_bytes(text) is not None):
                return Namespace(thread_id, checkpoint_ns), checkpoint_id
    return _parse_unusual(config, for_write)


def _parse_unusual(config: object, for_write: bool) -> tuple[Namespace, str | None]:
    """Parse a config that is not plain dicts of text, or raise an error that names what is wrong."""
    configurable = _configurable(config)
    if "thread_id" not in configurable:
        raise ArgumentError(
            'config["configurable"] has no "thread_id": pass {"configurable": {"thread_id": "..."}}'
        )
    if for_write and "checkpoint_ns" not in configurable:
        raise ArgumentError('config["configurable"] has no "checkpoint_ns": use "" for the root graph')
    if not for_write and None in (configurable["thread_id"], configurable.get("checkpoint_ns", "")):
        raise NamesNothing
    namespace = Namespace(_text(configurable, "thread_id"), _text(configurable, "checkpoint_ns"))
    return namespace, _checkpoint_id(configurable)


def check_search(config: Any, before: object, limit: Any) -> list[str] | None:
    """Check arguments of `alist`; return the threads that it searches, None for all. Raises as `parse_config`.

    As upstream, an empty config stands for all threads, one whose namespace is None for all of a thread, and a
    limit may be anything that `int` takes.
    """
    if before is not None:
        _checkpoint_id(_configurable(before))
    try:
        if limit is not None:
            int(limit)
    except (ValueError, TypeError, OverflowError) as exc:
        raise ArgumentTypeError(f"limit must be an int, not {limit!r}") from exc
    if not config:
        return None
    try:
        return [parse_config(config)[0].thread_id]
    except NamesNothing:
        configurable = _configurable(config)
        _checkpoint_id(configurable)
        return [] if configurable["thread_id"] is None else [_text(configurable, "thread_id")]


def check_checkpoint(checkpoint: Any) -> None:
    """Check that this is a checkpoint which can be stored and read again. Raises as `parse_config`."""
    if type(checkpoint) is not dict and not isinstance(checkpoint, Mapping):
        raise ArgumentTypeError(f"checkpoint must be a dict, not {type(checkpoint).__name__}")
    for key, usual, kind in _CHECKPOINT_KEYS:
        value = checkpoint.get(key)
        if type(value) is usual or isinstance(value, kind):
            continue
        if key not in checkpoint:
            raise ArgumentError(f'checkpoint has no "{key}"')
        raise ArgumentTypeError(f'checkpoint["{key}"] must be a {kind.__name__}, not {type(value).__name__}')


def _configurable(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping) and isinstance(configurable := config.get("configurable"), Mapping):
        return configurable
    raise ArgumentTypeError('config must be a dict with a dict under "configurable"')


def _checkpoint_id(configurable: Mapping[str, Any]) -> str | None:
    return _text(configurable, "checkpoint_id") if configurable.get("checkpoint_id") else None


def _text(configurable: Mapping[str, Any], key: str) -> str:
    value = configurable.get(key, "")
    if not isinstance(value, str):
        raise ArgumentTypeError(f'config["configurable"]["{key}"] must be a str, not {type(value).__name__}')
    if text_bytes(value) is None:
        raise ArgumentError(
            f'config["configurable"]["{key}"] has a NUL or a lone surrogate, which Postgres cannot store'
        )
    return str.__str__(value)  # what psycopg makes of a text of another class, such as a member of an enum
