from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from langgraph_checkpoint_cached.stores import postgres
from langgraph_checkpoint_cached.stores.postgres.queries import load_queries, query

PACKAGE = postgres.__name__


def test_query_of_an_unknown_name_raises() -> None:
    with pytest.raises(KeyError, match="take_leases_"):
        query("take_leases_")


def test_every_statement_is_used_and_every_use_exists() -> None:
    modules = [file for file in resources.files(PACKAGE).iterdir() if file.name.endswith(".py")]
    used = [name for file in modules for name in re.findall(r'\bquery\("(\w+)"\)', file.read_text())]
    assert sorted(used) == sorted(load_queries(PACKAGE))


def test_statements_are_loaded_without_comments() -> None:
    for name, text in load_queries(PACKAGE).items():
        assert text, name
        assert not re.search("^--", text, re.MULTILINE), name


def test_a_name_that_stands_twice_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "twice" / "sql"
    directory.mkdir(parents=True)
    (directory.parent / "__init__.py").touch()
    (directory / "a.sql").write_text("-- name: one\n-- A comment.\nselect 1\n\n-- name: two\nselect 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_queries("twice") == {"one": "select 1", "two": "select 2"}
    (directory / "b.sql").write_text("-- name: two\nselect 3\n")
    with pytest.raises(ValueError, match="'two'"):
        load_queries("twice")
