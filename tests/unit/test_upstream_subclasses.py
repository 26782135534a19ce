"""Subclasses of the upstream saver: what would be bypassed is refused, what is used is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.checkpoint.postgres.shallow import AsyncShallowPostgresSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_checkpoint_cached import ArgumentTypeError
from langgraph_checkpoint_cached.arguments import check_upstream

CONNECTION: Any = SimpleNamespace(autocommit=True)
BYPASSED = [
    *("_dump_blobs", "_load_blobs", "_dump_writes", "_load_writes", "_load_checkpoint_tuple"),
    *("_migrate_pending_sends", "_search_where", "_cursor"),
    *("aget_tuple", "alist", "aput", "aput_writes", "get_tuple", "list", "put", "put_writes", "aprune"),
    *("aget_delta_channel_history", "_build_delta_channels_writes_history"),
    *("SELECT_SQL", "SELECT_PENDING_SENDS_SQL", "UPSERT_CHECKPOINT_BLOBS_SQL", "UPSERT_CHECKPOINTS_SQL"),
    *("UPSERT_CHECKPOINT_WRITES_SQL", "INSERT_CHECKPOINT_WRITES_SQL"),
]


def own(name: str) -> Any:
    """Return an attribute of this name that is not the upstream saver's."""
    upstream = getattr(AsyncPostgresSaver, name)
    return upstream + " " if isinstance(upstream, str) else lambda *arguments, **options: None


@pytest.mark.parametrize("how", ["class", "mixin", "grandchild", "instance"])
@pytest.mark.parametrize("name", BYPASSED)
async def test_what_would_be_bypassed_is_refused(name: str, how: str) -> None:
    if how == "mixin":
        cls: Any = type("Own", (type("Mixin", (), {name: own(name)}), AsyncPostgresSaver), {})
    else:
        cls = type("Own", (AsyncPostgresSaver,), {name: own(name)} if how != "instance" else {})
    if how == "grandchild":
        cls = type("Own", (cls,), {})
    saver = cls(CONNECTION)
    if how == "instance":
        setattr(saver, name, own(name))
    with pytest.raises(
        ArgumentTypeError, match=rf"Own with its own {name}, .*bypassed: pass an AsyncPostgresSaver"
    ):
        check_upstream(saver)


class OwnSerializer(AsyncPostgresSaver):
    """A saver that only chooses its serializer, and has more of its own beside."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn, serde=EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16))
        self.tenant = "one"

    async def count(self) -> int:
        return 0

    async def adelete_thread(self, thread_id: str) -> None:
        await super().adelete_thread(f"{self.tenant}/{thread_id}")

    def get_next_version(self, current: Any, channel: None) -> str:
        return super().get_next_version(current, channel)


class ClassSerializer(AsyncPostgresSaver):
    """A saver with a serializer of its class."""

    serde = JsonPlusSerializer()


async def test_what_is_used_is_not_refused() -> None:
    for saver in (OwnSerializer(CONNECTION), ClassSerializer(CONNECTION), AsyncPostgresSaver(CONNECTION)):
        assert check_upstream(saver) is saver
        assert check_upstream(saver.with_allowlist([])) is not None


async def test_shallow_saver_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="must be an AsyncPostgresSaver, not AsyncShallowPostgresSaver"):
        check_upstream(AsyncShallowPostgresSaver.__new__(AsyncShallowPostgresSaver))


def test_every_statement_and_row_method_is_known() -> None:
    """Fail when a new version has another one, which may be used or bypassed here."""
    names = [
        name for name in vars(BasePostgresSaver) if name.endswith("_SQL") or name.startswith(("_dump", "_load"))
    ]
    assert set(names) <= set(BYPASSED)
