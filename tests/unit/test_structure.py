"""Limits on the package's shape, read from its syntax: sizes, collaborators, callback slots, names, docstrings.

Each check takes parsed sources and returns its offenders, and is itself tested on a source that offends.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import TypeAlias

import pytest

import benchmarks
import langgraph_checkpoint_cached
from tests.support.wording import RELATIVE_OPENING

Sources: TypeAlias = "dict[str, str]"
"""Text of each file, by its path inside the package."""
Check: TypeAlias = Callable[[Sources], list[str]]
Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 50
COLLABORATORS_MAX = 5
SETTING_TYPES = frozenset(
    {"int", "float", "str", "bool", "bytes", "timedelta", "Sequence", "Literal", "Mode", "RedisDurability"}
)
"""Names that the annotation of a plain setting is made of."""
ADDING_METHODS = frozenset({"append", "appendleft", "add", "insert", "extend", "setdefault", "update"})


def long_files(sources: Sources) -> list[str]:
    """Find files of more than `FILE_LINES_MAX` lines."""
    counts = {path: len(text.splitlines()) for path, text in sources.items()}
    return [f"{path}: {lines} lines" for path, lines in counts.items() if lines > FILE_LINES_MAX]


def long_functions(sources: Sources) -> list[str]:
    """Find functions of more than `FUNCTION_LINES_MAX` lines, from `def` to the end, docstring included."""
    found = []
    for path, node in functions(sources):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            found.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    return found


def callback_slots(sources: Sources) -> list[str]:
    """Find functions that are assigned or added to an attribute of another object than `self` or `cls`.

    So are those that reach an object through its `__dict__` or `setattr`. A function is a lambda, a `partial`, a
    method of the package that is named and not called, or a function that the file defines or imports.
    """
    methods = {node.name for _, node in functions(sources) if not is_property(node)}
    found = []
    for path, line, target, value in stores(sources):
        if is_of_another_object(target) and is_function(value, methods, free_functions(sources[path])):
            found.append(f"{path}:{line} {ast.unparse(target)} <- {ast.unparse(value)}")
    return found


def instance_dict_writes(sources: Sources) -> list[str]:
    """Find values that are put into the `__dict__` of another object, past its class."""
    return [
        f"{path}:{line} {ast.unparse(target)}"
        for path, line, target, _ in stores(sources)
        if is_of_another_object(target) and "__dict__" in ast.unparse(target)
    ]


def crowded_constructors(sources: Sources) -> list[str]:
    """Find constructors of more than `COLLABORATORS_MAX` collaborators.

    Every parameter of `__init__` is one, except keyword-only parameters whose annotation names plain types only.
    """
    found = []
    for path, node in nodes(sources):
        if not isinstance(node, ast.ClassDef):
            continue
        for made in node.body:
            if isinstance(made, ast.FunctionDef) and made.name == "__init__":
                names = [each.arg for each in [*made.args.posonlyargs, *made.args.args][1:]]
                names += [each.arg for each in made.args.kwonlyargs if not is_setting(each)]
                if len(names) > COLLABORATORS_MAX:
                    found.append(f"{path}:{made.lineno} {node.name}: {len(names)}, {', '.join(names)}")
    return found


def shared_class_names(sources: Sources) -> list[str]:
    """Find class names that stand in more than one place."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, node in nodes(sources):
        if isinstance(node, ast.ClassDef):
            places[node.name].append(f"{path}:{node.lineno}")
    return [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1]


def relative_docstrings(sources: Sources) -> list[str]:
    """Find docstrings of modules and of public classes and functions that open with a relative clause or "It"."""
    found = []
    for path, node in nodes(sources):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        name = "" if isinstance(node, ast.Module) else node.name
        text = ast.get_docstring(node)
        if text and RELATIVE_OPENING.match(text) and (not name.startswith("_") or name.startswith("__")):
            found.append(f"{path}:{node.body[0].lineno} {name or 'module'}: {text.splitlines()[0]}")
    return found


def nodes(sources: Sources) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node with the path of its file."""
    for path, text in sources.items():
        for node in walked(text):
            yield path, node


@cache
def walked(text: str) -> list[ast.AST]:
    """Return every node of a source. Parsed once."""
    return list(ast.walk(ast.parse(text)))


def functions(sources: Sources) -> Iterator[tuple[str, Function]]:
    """Yield every function with the path of its file."""
    for path, node in nodes(sources):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield path, node


def stores(sources: Sources) -> Iterator[tuple[str, int, ast.expr, ast.expr]]:
    """Yield file, line, target and value of all that is assigned, or added to something by a call."""
    for path, node in nodes(sources):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [pair for target in node.targets for pair in assigned(target, node.value)]
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            pairs = [(target, value) for target in added_to(node) for value in values]
        for target, value in pairs:
            yield path, target.lineno, target, value


def assigned(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """Pair targets with values, those of `a.x, b.y = 1, 2` one by one."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def added_to(call: ast.Call) -> list[ast.expr]:
    """Return what a call adds to: the list in `x.list.append(...)`, the object in `setattr(x, ...)`."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr in ADDING_METHODS:
        return [function.value]
    if isinstance(function, (ast.Name, ast.Attribute)) and call.args:
        name = function.id if isinstance(function, ast.Name) else function.attr
        if name in ("setattr", "__setattr__"):
            return [ast.copy_location(ast.Attribute(call.args[0], name), call)]
    return []


def is_of_another_object(target: ast.expr) -> bool:
    """Tell whether an expression is an attribute, or an item of one, of anything but `self` or `cls`."""
    if isinstance(target, ast.Subscript):
        return is_of_another_object(target.value)
    if not isinstance(target, ast.Attribute):
        return False
    return not (isinstance(target.value, ast.Name) and target.value.id in ("self", "cls"))


def is_function(value: ast.expr, methods: set[str], free: set[str]) -> bool:
    """Tell whether a value is a lambda, a partial, or names a function without calling it, or contains such."""
    if isinstance(value, (ast.List, ast.Tuple)):
        return any(is_function(item, methods, free) for item in value.elts)
    if isinstance(value, ast.Dict):
        return any(is_function(item, methods, free) for item in value.values)
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).endswith("partial")
    if isinstance(value, ast.Attribute):
        return value.attr in methods
    return isinstance(value, ast.Lambda) or (isinstance(value, ast.Name) and value.id in free)


@cache
def free_functions(text: str) -> set[str]:
    """Return the names of functions that a file defines outside classes, and of what it imports from modules."""
    methods = {id(item) for node in walked(text) if isinstance(node, ast.ClassDef) for item in node.body}
    names = set()
    for node in walked(text):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and id(node) not in methods:
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name for each in node.names if each.name.islower()}
    return names


def is_property(node: Function) -> bool:
    """Tell whether a function is read like a value."""
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_setting(parameter: ast.arg) -> bool:
    """Tell whether the annotation of a parameter names plain types only."""
    if parameter.annotation is None:
        return False
    names = {node.id for node in ast.walk(parameter.annotation) if isinstance(node, ast.Name)}
    return names <= SETTING_TYPES


def sources_of(module: ModuleType) -> Sources:
    root = Path(str(module.__file__)).parent
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))}


@pytest.fixture(scope="module")
def package() -> Sources:
    return sources_of(langgraph_checkpoint_cached)


@pytest.mark.parametrize(
    "check",
    [
        long_files,
        long_functions,
        callback_slots,
        instance_dict_writes,
        crowded_constructors,
        shared_class_names,
        relative_docstrings,
    ],
)
def test_package_has_no_offenders(package: Sources, check: Check) -> None:
    offenders = check(package)
    assert not offenders, f"{len(offenders)} {check.__name__}:\n" + "\n".join(offenders)


def test_benchmarks_have_no_relative_docstrings() -> None:
    assert relative_docstrings(sources_of(benchmarks)) == []


def found_in(check: Check, source: str) -> list[str]:
    return check({"one.py": dedent(source)})


def test_long_file_is_found() -> None:
    assert found_in(long_files, "\n" * FILE_LINES_MAX) == []
    assert found_in(long_files, "\n" * (FILE_LINES_MAX + 1)) == ["one.py: 401 lines"]


def test_long_function_is_found() -> None:
    longest = "async def f():\n" + "    pass\n" * (FUNCTION_LINES_MAX - 1)
    assert found_in(long_functions, longest) == []
    assert found_in(long_functions, longest + "    pass\n") == ["one.py:1 f: 51 lines"]


@pytest.mark.parametrize(
    "statement",
    [
        "guard.on_opening.append(self.revoke)",
        "self._guard.on_opening.append(self.revoke)",
        "fences.left = recovery.revoke",
        "fences.left: object = self.revoke",
        "fences.hooks += [self.revoke]",
        "fences.left, fences.right = None, self.revoke",
        "stats.unflushed.read = lambda: self._unflushed",
        "self._stats.unflushed.read = lambda: self._unflushed",
        "settler.ask_holder = partial(self.revoke, 1)",
        "settler.hooks['lost'] = self.revoke",
        "settler.hooks.update(lost=self.revoke)",
        "settler.__dict__['ask_holder'] = self.revoke",
        "settler.__dict__.update(ask_holder=self.revoke)",
        "settler.__dict__ |= {'ask_holder': self.revoke}",
        "setattr(settler, 'ask_holder', self.revoke)",
        "object.__setattr__(settler, 'ask_holder', self.revoke)",
        "settler.ask_holder = ask",
    ],
)
def test_callback_slot_is_found(statement: str) -> None:
    assert len(found_in(callback_slots, f"class A:\n    def revoke(self): ...\ndef ask(): ...\n{statement}")) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "self.on_opening = [self.revoke]",
        "self.on_opening.append(ask)",
        "fence.number = revoke",
        "fence.idle_at = self.revoke()",
        "fence.is_active = other.size",
        "stats.errors += 1",
        "lease.pending.append(write)",
        "future.add_done_callback(self.revoke)",
        "setattr(copied, kind, 1)",
    ],
)
def test_plain_assignment_is_no_callback_slot(statement: str) -> None:
    source = """
        class A:
            def revoke(self): ...
            @property
            def size(self): ...
        def ask(): ...
    """
    assert found_in(callback_slots, dedent(source) + statement) == []


@pytest.mark.parametrize(
    "statement",
    ["record.__dict__['checkpoint'] = read", "record.__dict__.update(a=1)", "self.a.__dict__ |= {'a': 1}"],
)
def test_instance_dict_write_is_found(statement: str) -> None:
    assert len(found_in(instance_dict_writes, statement)) == 1
    assert found_in(instance_dict_writes, "fields = record.__dict__\nself.__dict__['a'] = 1") == []


def test_crowded_constructor_is_found() -> None:
    source = "class A:\n    def __init__(self, a, b, c, d, {}): ..."
    for fine in ("e", "*, e", "e, *, n: int = 1, t: float | timedelta, m: Mode, s: Sequence[str] | None = None"):
        assert found_in(crowded_constructors, source.format(fine)) == []
    for crowded in ("e, f", "e, f: int", "*, e, f", "e, *, clock: Callable[[], float]", "e, *, f"):
        assert len(found_in(crowded_constructors, source.format(crowded))) == 1


def test_shared_class_name_is_found() -> None:
    sources = {"one.py": "class A: ...", "two.py": "class A: ...\nclass B: ..."}
    assert shared_class_names(sources) == ["A: one.py:1, two.py:1"]


def test_relative_docstring_is_found() -> None:
    source = '''
        """{0}"""
        class A:
            """{0}"""
            async def f(self):
                """{0}"""
        def _private():
            """Whether it is."""
    '''
    for opening in ("What", "Whether", "Which", "Who", "Whose", "Of", "Nobody", "Somebody", "How", "It"):
        assert len(found_in(relative_docstrings, source.format(f"{opening} is stored."))) == 3
    for fine in ("Return it.", "Offset of an entry.", "Item of a list.", "Whole threads."):
        assert found_in(relative_docstrings, source.format(fine)) == []
