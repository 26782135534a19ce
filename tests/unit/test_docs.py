"""The documentation: links lead somewhere, commands parse, and what it quotes is what the code says."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from langgraph_checkpoint_cached.arguments import ConnStringOptions, SaverOptions
from langgraph_checkpoint_cached.stats import Stats
from tests.support.inspect import cli_commands, cli_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]
FAILURES = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
COLUMNS = {"stale", "leases", "active", "locked", "rows/tx"}
"""Columns of `tail`."""


def anchors(page: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert found or page not in PAGES
    for link in found:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name}" in readme


def test_every_decision_is_in_their_index() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    decisions = [page for page in OTHER_PAGES if re.match(r"\d{4}-", page.name)]
    assert decisions
    for page in decisions:
        assert f"({page.name})" in index
        assert len(page.read_text(encoding="utf-8").split()) <= 450


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^\$ langgraph-cached (.*)$", text, re.MULTILINE):
        cli_parser().parse_args(shlex.split(line))
    commands = cli_commands()
    for line in re.findall(r"`langgraph-cached ([^`]*)`", text):
        name, *rest = shlex.split(line)
        if name == "COMMAND":
            continue
        assert name in commands, line
        assert {word for word in rest if word.startswith("-")} <= commands[name], line


@cache
def texts() -> str:
    """All texts in the code, one a line."""
    found = []
    for path in (ROOT / "langgraph_checkpoint_cached").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def bullets(kind: str) -> Iterator[tuple[str, str]]:
    for section in re.split(r"^### ", FAILURES, flags=re.MULTILINE)[1:]:
        found = re.search(rf"^- {kind}: (.*?)(?=^- |\Z|^#)", section, re.MULTILINE | re.DOTALL)
        assert found, f"nothing is said of {kind} in {section.splitlines()[0]}"
        yield section.splitlines()[0], " ".join(found[1].split())


def test_metrics_that_are_named_for_a_failure_are_there() -> None:
    known = Stats().as_dict().keys() | SaverOptions.__optional_keys__
    for fault, text in bullets("metrics"):
        for name in re.findall(r"`([^`]*)`", text):
            assert name in known, f"{fault}: {name}"


def test_quoted_log_lines_are_those_of_the_code() -> None:
    lines = 0
    for fault, text in bullets("log"):
        for quoted in re.findall(r"`([^`]*)`", text):
            if " " not in quoted:
                continue
            lines += 1
            for part in quoted.split("..."):
                assert part.strip(" :,") in texts(), f"{fault}: {part}"
    assert lines > 15


def test_what_commands_say_of_a_failure_is_what_they_say() -> None:
    for fault, text in bullets("commands"):
        for quoted in re.findall(r"`([^`]*)`", text):
            command = quoted.split()[0]
            if command in COLUMNS or command in {"flush", "verify", "doctor", "tail", "inspect"}:
                continue
            for part in quoted.split("..."):
                assert part.strip(" :,") in texts(), f"{fault}: {part}"


def test_every_failure_says_what_to_do() -> None:
    assert len(list(bullets("do"))) >= 15


def test_keywords_in_the_readme_are_those_of_the_saver() -> None:
    table = PAGES[0].read_text(encoding="utf-8").partition("| keyword |")[2].partition("\n\n")[0]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == ConnStringOptions.__optional_keys__
