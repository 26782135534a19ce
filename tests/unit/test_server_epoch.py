"""Server epochs behind connections: another one than before is found out once."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from langgraph_checkpoint_cached.stores.redis.server_epoch import EpochCheck, ServerReplaced, parse_epoch


def test_epoch_is_read_from_bytes_and_text_only() -> None:
    text = "# Replication\r\nrole:master\r\nmaster_replid:abc123\r\nmaster_replid2:000\r\n"
    assert parse_epoch([text]) == parse_epoch([text.encode()]) == "abc123"
    assert parse_epoch([ResponseError("unknown command")]) is None
    assert parse_epoch([b"role:master"]) is None


def test_another_epoch_is_reported_once() -> None:
    check = EpochCheck()
    for epoch in ("a", "a", None, "b"):  # after a server that did not tell, nothing can be compared
        check.note(epoch)
    with pytest.raises(ServerReplaced):
        check.note("a")
    check.note("a")
