"""What a `RunnableConfig` says of a checkpoint, or a clear error. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph_checkpoint_cached.errors import ArgumentError, ArgumentTypeError
from langgraph_checkpoint_cached.records import Namespace, text_bytes


def parse_namespace(config: object, *, required: bool = False) -> Namespace:
    """The thread and namespace that `config` names.

    Args:
        config: `{"configurable": {"thread_id": ..., "checkpoint_ns": ...}}`.
        required: Whether `checkpoint_ns` has to be there, as the upstream saver demands for writes; else "".

    Raises:
        ArgumentError: a key is missing, or Postgres cannot store its value.
        ArgumentTypeError: `config` or one of the values has the wrong type.
    """
    configurable = _configurable(config)
    if "thread_id" not in configurable:
        raise ArgumentError(
            'config["configurable"] has no "thread_id": pass {"configurable": {"thread_id": "..."}}'
        )
    if required and "checkpoint_ns" not in configurable:
        raise ArgumentError('config["configurable"] has no "checkpoint_ns": use "" for the root graph')
    return Namespace(_text(configurable, "thread_id"), _text(configurable, "checkpoint_ns"))


def parse_checkpoint_id(config: object) -> str | None:
    """The checkpoint that `config` names, or None if it names the latest. Raises as `parse_namespace`."""
    configurable = _configurable(config)
    return _text(configurable, "checkpoint_id") if configurable.get("checkpoint_id") else None


def check_search(config: object, before: object, filter: object, limit: object) -> None:
    """Raises as `parse_namespace` if these are not what `alist` takes. `config` and `before` may be None."""
    if config is not None:
        parse_namespace(config)
        parse_checkpoint_id(config)
    if before is not None:
        parse_checkpoint_id(before)
    if filter is not None and not isinstance(filter, Mapping):
        raise ArgumentTypeError(f"filter must be a dict, not {type(filter).__name__}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise ArgumentTypeError(f"limit must be an int, not {type(limit).__name__}")


def check_checkpoint(checkpoint: Any) -> None:
    """Raises as `parse_namespace` if this is not a checkpoint that can be stored and read again."""
    if not _is(checkpoint, Mapping):
        raise ArgumentTypeError(f"checkpoint must be a dict, not {type(checkpoint).__name__}")
    for key, kind in (("v", int), ("id", str), ("channel_values", Mapping), ("channel_versions", Mapping)):
        if key not in checkpoint:
            raise ArgumentError(f'checkpoint has no "{key}"')
        if not _is(checkpoint[key], kind):
            raise ArgumentTypeError(
                f'checkpoint["{key}"] must be a {kind.__name__}, not {type(checkpoint[key]).__name__}'
            )


def _configurable(config: Any) -> Mapping[str, Any]:
    if _is(config, Mapping):
        configurable = config.get("configurable")
        if _is(configurable, Mapping):
            return configurable  # type: ignore[no-any-return]
    raise ArgumentTypeError('config must be a dict with a dict under "configurable"')


def _is(value: Any, kind: type) -> bool:
    """`isinstance`, which takes its time to tell that a dict is a mapping."""
    return (type(value) is dict and kind is Mapping) or isinstance(value, kind)


def _text(configurable: Mapping[str, Any], key: str) -> str:
    value = configurable.get(key, "")
    if not isinstance(value, str):
        raise ArgumentTypeError(f'config["configurable"]["{key}"] must be a str, not {type(value).__name__}')
    if text_bytes(value) is None:
        raise ArgumentError(
            f'config["configurable"]["{key}"] has a NUL or a lone surrogate, which Postgres cannot store'
        )
    return value
