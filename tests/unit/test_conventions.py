"""Conventions of the tests themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.wording import RELATIVE_OPENING

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
INSIDE = TESTS / "support" / "inspect.py"
NAME_MAX = 60
NAMED_TUPLES = {"_replace", "_fields", "_asdict"}
OTHERS = {
    "_DeltaSnapshot",  # LangGraph's type of a stored value
    "_checkpoint",  # where LangGraph draws ids and times
    "_exit",  # of `os`
    "_msgpack_enc",  # what upstream's serializer packs with
    "_unpack_ext_hook",  # and unpacks with
}
"""Names outside this package for which there is no public way."""


def private_names(tree: ast.AST, *, in_class: bool = False) -> Iterator[tuple[int, str]]:
    """Line and name of what is private to something else than the class it is used in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Attribute) and not (in_class and is_own(node.value)):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and is_setattr(node.func):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[1:2] if isinstance(arg, ast.Constant))
        yield from private_names(node, in_class=in_class or isinstance(node, ast.ClassDef))


def is_own(value: ast.expr) -> bool:
    return ast.unparse(value) in ("self", "cls", "super()")


def is_setattr(function: ast.expr) -> bool:
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    return name in ("setattr", "getattr", "delattr", "hasattr")


def of_others(text: str) -> list[str]:
    found = private_names(ast.parse(text))
    return [
        f"{line}: {name}"
        for line, name in found
        if name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLES | OTHERS
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_private_names_stand_in_inspect_alone(file: Path) -> None:
    assert file == INSIDE or of_others(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "saver._engine",
        "self._engine",
        "inspect(saver).executor._breaker",
        "from langgraph_checkpoint_cached.cli.main import _parser",
        "monkeypatch.setattr(saver, '_engine', None)",
        "getattr(saver, '_engine')",
        "class Fake:\n    def close(self):\n        self.saver._engine = None",
    ],
)
def test_private_name_is_found(code: str) -> None:
    assert of_others(code)


def test_private_name_of_own_class_is_allowed() -> None:
    assert of_others("class Fake:\n    def close(self):\n        self._open = False") == []


def test_names_of_tests_have_at_most_60_characters() -> None:
    names = [
        name for file in FILES for name in re.findall(r"^\s*(?:async )?def (test_\w+)", file.read_text(), re.M)
    ]
    assert [name for name in names if len(name) > NAME_MAX] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_docstring_begins_with_verb_or_noun(file: Path) -> None:
    constants = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Expr)]
    texts = [node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if RELATIVE_OPENING.match(text.lstrip())] == []
