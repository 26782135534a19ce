"""`langgraph-cached demo`, run as a user runs it. It checks its own claims, and exits with 1 if one is wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from langgraph_checkpoint_cached.demo.embedded import EmbeddedServerError, postgres_programs, redis_binary

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCENES = [
    "A conversation",
    "Three customers at once",
    "An approval",
    "A crash",
    "Redis is emptied",
    "Redis stops",
    "No difference",
]
TIMEOUT_SECONDS = 120


@pytest.fixture
def home() -> Iterator[Path]:
    """Where the demo runs and has its temporary files: afterwards nothing is left there, and nobody."""
    try:
        postgres_programs()
        redis_binary()
    except EmbeddedServerError as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))
    directory = Path(tempfile.mkdtemp(prefix="demo-test-")).resolve()
    directory.chmod(0o711)  # PostgreSQL may have to run as another user
    try:
        yield directory
        assert processes_in(directory) == []
        assert list(directory.iterdir()) == []
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def processes_in(directory: Path) -> list[str]:
    """The processes whose working directory is in there, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(directory)):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def play(home: Path, *options: str) -> str:
    """The demo's output, to its end."""
    with start(home, *options) as demo:
        output, errors = demo.communicate(timeout=TIMEOUT_SECONDS)
    assert (demo.returncode, errors) == (0, ""), output
    return output


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("langgraph-cached")), "demo", *options]
    environment = {**os.environ, "TMPDIR": str(home), "PYTHONIOENCODING": "utf-8", "COLUMNS": "60"}
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )


def scenes_in(output: str) -> list[str]:
    return re.findall(r"^\d  (.+?) ─+$", output, re.MULTILINE)


def test_demo_plays_every_scene_and_leaves_nothing(home: Path) -> None:
    output = play(home)
    assert scenes_in(output) == SCENES
    for line in [
        "B resumes   issue_refund  ",
        "✓ the refund is in the books once, entered by B",
        "B resumes   book_courier  ",
        "✓ cancel_order was not done again: it is in the books once, entered by A",
        "✓ book_courier was not lost: it is in the books once, entered by B",
        "log Redis is unusable, going on with Postgres alone",
        "✓ every turn was answered, from Postgres alone",
        "log Redis is usable again",
        "✓ the latest state of 5 conversations, from Redis: equal to what the upstream saver returns",
        "All 13 checks held",
    ]:
        assert line in output
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 100


def test_demo_on_given_servers_removes_only_what_it_stored(home: Path, database_url: str, redis_url: str) -> None:
    output = play(home, "--postgres-uri", database_url, "--redis-url", redis_url)
    assert scenes_in(output) == SCENES
    assert "Left out: the demo cannot stop a Redis that was given" in output
    assert "All 11 checks held" in output
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match="demo-*", count=1000)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ended_in_the_middle_it_leaves_nothing(home: Path, number: signal.Signals) -> None:
    with start(home) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "A crash" in line:
                break
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=TIMEOUT_SECONDS)
    assert demo.returncode == 130
    assert errors == "langgraph-cached demo: interrupted\n"
