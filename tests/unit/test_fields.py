from __future__ import annotations

import re
from importlib import resources

from langgraph_checkpoint_cached.stores import redis
from langgraph_checkpoint_cached.stores.redis import fields
from langgraph_checkpoint_cached.stores.redis.entry_format import ENTRY_BYTES_MAX
from langgraph_checkpoint_cached.stores.redis.scripts import lua

NAMES = {name: value.decode() for name, value in vars(fields).items() if name.isupper()}
SCRIPTS = {
    file.name: file.read_text(encoding="utf-8")
    for file in resources.files(redis.__name__).joinpath("lua").iterdir()
}


def test_python_and_lua_name_the_same_fields() -> None:
    defined = re.findall(r"^local (\w+) = '(.*?)'", SCRIPTS["fields.lua"], re.MULTILINE)
    assert dict(defined) == NAMES
    assert len(defined) == SCRIPTS["fields.lua"].count("\nlocal ") == len(set(NAMES.values()))


def test_python_and_lua_bound_entries_alike() -> None:
    [bound] = re.findall(r"^local ENTRY_BYTES_MAX = (\d+)", SCRIPTS["size_functions.lua"], re.MULTILINE)
    assert int(bound) == ENTRY_BYTES_MAX


def test_scripts_name_fields_and_never_spell_them() -> None:
    letters = "|".join(map(re.escape, NAMES.values()))
    for name, text in SCRIPTS.items():
        assert not re.search(rf"\b(thread|namespace), '({letters})'", text), name


def test_loaded_scripts_have_the_strings_in_place_of_the_names() -> None:
    assert "redis.call('HMGET', namespace, 'g', 'i', 't', 's')" in lua("read")
    assert "redis.call('HSET', thread, 'f:' .. token," in lua("begin")
    for file in SCRIPTS:
        code = "\n".join(line.partition("--")[0] for line in lua(file.removesuffix(".lua")).splitlines())
        assert file == "fields.lua" or not re.search(rf"\b({'|'.join(NAMES)})\b", code), file
