"""The end of a process that has a saver for code without an event loop, in whatever state the saver is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.scripts import Ended, Process

pytestmark = pytest.mark.integration


@pytest.fixture
def start(migrated_database_url: str, redis_url: str, redis_prefix: str) -> Callable[..., Process]:
    """Start a script on the test's servers."""
    return lambda body, **options: Process(body, (migrated_database_url, redis_url), redis_prefix, **options)


@pytest.fixture
def run(start: Callable[..., Process]) -> Callable[..., Ended]:
    """Run a script on the test's servers to its end."""
    return lambda body, **options: start(body, **options).end()


def assert_ended(ended: Ended, code: int) -> None:
    assert ended.code == code, f"{ended.code} after {ended.seconds:.1f} s\n{ended.out}\n{ended.err[-6000:]}"


NEVER_LEFT = """
opened = opening()
saver = opened.__enter__()
graph = graph_of(saver)
graph.invoke({"steps": []}, on(1))
print("done")
"""
NOBODY_HOLDS_WHAT_OPENED_IT = """
saver = opening().__enter__()
gc.collect()
graph_of(saver).invoke({"steps": []}, on(1))
assert len(saver.get_tuple(on(1)).checkpoint["channel_values"]["steps"]) == 3
"""


@pytest.mark.parametrize("script", [NEVER_LEFT, NOBODY_HOLDS_WHAT_OPENED_IT])
def test_exit_with_block_never_left(run: Callable[..., Ended], script: str) -> None:
    ended = run(script, options=["-W", "error"])
    assert_ended(ended, 0)
    assert ended.err == ""


@pytest.mark.slow
def test_exit_after_uncaught_error(run: Callable[..., Ended]) -> None:
    ended = run(f"{NEVER_LEFT}\nraise ValueError('of the script')")
    assert_ended(ended, 1)
    assert ended.err.strip().endswith("ValueError: of the script")


UNFINISHED_STREAM = """
saver = opening().__enter__()
stream = graph_of(saver, seconds=0.05).stream({"steps": []}, on(1), stream_mode="updates")
print(next(stream))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError('of the script')"])
def test_exit_with_unfinished_stream(run: Callable[..., Ended], end: str) -> None:
    ended = run(f"{UNFINISHED_STREAM}\n{end}")
    assert_ended(ended, {"": 0, "sys.exit(3)": 3}.get(end, 1))


@pytest.mark.slow
def test_exit_from_block_with_unfinished_stream(run: Callable[..., Ended]) -> None:
    body = """
with opening() as saver:
    streams = [graph_of(saver, seconds=0.05).stream({"steps": []}, on(n), stream_mode="updates") for n in range(8)]
    for stream in streams:
        next(stream)
    sys.exit(3)
"""
    assert_ended(run(body), 3)


IN_INVOKE = """
def invoke(number):
    while True:
        try:
            graph.invoke({"steps": []}, on(number))
        except ClosedError as exc:
            errors.append(exc)
            return

errors = []
"""


@pytest.mark.slow
def test_close_fails_callers_in_invoke(run: Callable[..., Ended]) -> None:
    body = f"""{IN_INVOKE}
with opening() as saver:
    graph = graph_of(saver)
    threads = [threading.Thread(target=invoke, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
for thread in threads:
    thread.join(10)
assert not [thread for thread in threads if thread.is_alive()]
assert len(errors) == 8, errors
print(errors[0])
"""
    ended = run(body)
    assert_ended(ended, 0)
    assert "closed" in ended.out


# Their main threads wait for no lock: Python may lose a Ctrl-C that comes just then, or the lock.
INTERRUPTED_SCRIPTS = {
    "in a block, threads": f"""{IN_INVOKE}
with opening() as saver:
    graph = graph_of(saver)
    threads = [threading.Thread(target=invoke, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    ready()
    while True:
        time.sleep(0.05)
""",
    "in a block, executor": """
with opening() as saver:
    graph = graph_of(saver, seconds=0.02)
    with ThreadPoolExecutor(8) as executor:
        runs = [executor.submit(graph.invoke, {"steps": []}, on(n)) for n in range(1000)]
        ready()
        try:
            while True:
                time.sleep(0.05)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
""",
    "never left": """
saver = opening().__enter__()
graph = graph_of(saver, seconds=0.02)
executor = ThreadPoolExecutor(8)
runs = [executor.submit(graph.invoke, {"steps": []}, on(n)) for n in range(400)]
ready()
while True:
    time.sleep(0.05)
""",
    "in the main thread": """
saver = opening().__enter__()
graph = graph_of(saver)
ready()
while True:
    graph.invoke({"steps": []}, on(1))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("script", INTERRUPTED_SCRIPTS)
def test_ctrl_c_at_random_moments_ends_process(start: Callable[..., Process], script: str) -> None:
    seed = random.randrange(1000)
    chance = random.Random(seed)
    scripts = [start(INTERRUPTED_SCRIPTS[script]) for _ in range(4)]
    for process in scripts:
        process.wait_until_ready()
        time.sleep(chance.uniform(0, 0.5))
        process.interrupt()
    ends = [process.end() for process in scripts]
    for ended in ends:
        assert ended.code is not None or not frames_of_ours(ended.err), (
            f"seed {seed}: still there\n{ended.err[-8000:]}"
        )
        assert ended.code is None or "KeyboardInterrupt" in ended.err
    assert any(ended.code is not None for ended in ends)


def frames_of_ours(stacks: str) -> list[str]:
    """Return where threads are in this package, but for its loops.

    Where none is, Python or LangGraph have lost a thread or a lock of an executor to the Ctrl-C, as they do over
    upstream's saver too.
    """
    lines = stacks.partition("Fatal Python error")[2].splitlines()  # before that stands where Ctrl-C came
    return [line for line in lines if "langgraph_checkpoint_cached/" in line and "in _serve" not in line]


def test_exit_flushes_write_behind(run: Callable[..., Ended], migrated_database_url: str) -> None:
    ended = run("""
saver = opening(mode="write_behind").__enter__()
graph_of(saver, nodes=1).invoke({"steps": []}, on("late"))
assert saver.stats()["appends"] > 0
""")
    assert_ended(ended, 0)
    with psycopg.connect(migrated_database_url) as conn:
        row: Any = conn.execute("select count(*) from checkpoints where thread_id = 'late'").fetchone()
    assert row[0] == 3
