"""Forked processes: errors of a child that uses its parent's saver, and the parent's connections after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.scripts import Ended, Process

pytestmark = pytest.mark.integration


@pytest.fixture
def run(migrated_database_url: str, redis_url: str, redis_prefix: str) -> Callable[..., Ended]:
    """Run a script on the test's servers to its end."""
    urls = (migrated_database_url, redis_url)
    return lambda body, **options: Process(body, urls, redis_prefix, **options).end()


def assert_fine(ended: Ended) -> None:
    assert ended.code == 0, f"{ended.code} after {ended.seconds:.1f} s\n{ended.out}\n{ended.err[-6000:]}"
    assert ended.err == ""


PARENT = """
saver = opening().__enter__()
graph = graph_of(saver)
graph.invoke({"steps": []}, on(1))
checkpoint, before = saver.get_tuple(on(1)), sockets()
CALLS = [
    lambda: saver.get_tuple(on(1)),
    lambda: saver.put(on(1), checkpoint.checkpoint, {}, {}),
    lambda: saver.put_writes(checkpoint.config, [("steps", ["x"])], "task"),
    lambda: list(saver.list(on(1))),
    lambda: saver.get_delta_channel_history(config=checkpoint.config, channels=["steps"]),
    lambda: saver.delete_thread("1"),
    lambda: saver.prune(["1"]),
    lambda: saver.copy_thread("1", "2"),
    lambda: saver.delete_for_runs(["run"]),
    lambda: saver.delete_idle_threads(1),
    lambda: saver.flush(),
    lambda: saver.setup(),
    lambda: graph.invoke({"steps": []}, on(1)),
]

def in_child():
    for call in CALLS:
        try:
            call()
        except ForkedError as exc:
            assert "in each worker" in str(exc)
        else:
            raise AssertionError("no error")
    assert not before & sockets(), "it holds connections of its parent"

def check_parent():
    for number in range(3):
        assert len(graph.invoke({"steps": []}, on(number))["steps"]) >= 3
        time.sleep(0.1)
    assert before <= sockets(), "the parent has lost connections"
    assert saver.stats()["redis_errors"] == 0 == saver.stats()["breaker_openings"]
"""
IN_CHILD = {
    "leaves the function": "pass",
    "drops all": "del saver, graph, CALLS[:], in_child, checkpoint; gc.collect()",
    "closes": "saver.close()",
    "sys.exit": "sys.exit(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("last", IN_CHILD)
def test_calls_in_forked_child_raise(run: Callable[..., Ended], last: str) -> None:
    ended = run(f"""{PARENT}
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    check_parent()
else:
    in_child()
    {IN_CHILD[last]}
""")
    assert_fine(ended)


@pytest.mark.slow
def test_child_leaves_block_of_parent(run: Callable[..., Ended]) -> None:
    body = PARENT.replace("saver = opening().__enter__()", "opened = opening()\nsaver = opened.__enter__()")
    assert_fine(
        run(f"""{body}
with contextlib.ExitStack() as stack:
    stack.push(opened)
    child = os.fork()
    if not child:
        in_child()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    check_parent()
""")
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Process", "Pool"])
def test_multiprocessing_children_raise(run: Callable[..., Ended], kind: str) -> None:
    use = {
        "Process": """
        children = [context.Process(target=in_child) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(10)
            assert child.exitcode == 0
""",
        "Pool": """
        with context.Pool(2) as pool:
            for done in [pool.apply_async(in_child) for _ in range(2)]:
                done.get(10)
""",
    }
    assert_fine(
        run(f"""{PARENT}
if True:
        context = multiprocessing.get_context("fork")
        {use[kind]}
        check_parent()
""")
    )


@pytest.mark.slow
def test_fork_during_calls_spares_parent(run: Callable[..., Ended]) -> None:
    """Children drop all: that neither rolls back nor cancels calls of the parent that are under way."""
    assert_fine(
        run(f"""{PARENT}
errors = []
def invoke(number):
    try:
        while not over:
            graph.invoke({{"steps": []}}, on(number))
    except BaseException as exc:
        errors.append(exc)

over = False
threads = [threading.Thread(target=invoke, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for _ in range(10):
    time.sleep(0.05)
    held = sockets()
    child = os.fork()
    if not child:
        assert not held & sockets()
        del saver, graph, CALLS[:], in_child, checkpoint
        gc.collect()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
over = True
for thread in threads:
    thread.join(10)
assert not errors, errors
check_parent()
""")
    )


def test_child_makes_a_saver_of_its_own(run: Callable[..., Ended]) -> None:
    assert_fine(
        run(f"""{PARENT}
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    check_parent()
else:
    in_child()
    own = opening().__enter__()
    assert len(graph_of(own).invoke({{"steps": []}}, on("child"))["steps"]) == 3
""")
    )


ASYNC = """
async def main():
    async with opening_async() as saver:
        graph = graph_of(saver)
        await graph.ainvoke({"steps": []}, on(1))
        checkpoint, before = await saver.aget_tuple(on(1)), sockets()

        async def listed():
            return [found async for found in saver.alist(on(1))]

        calls = [
            lambda: saver.aget_tuple(on(1)),
            lambda: saver.aput(on(1), checkpoint.checkpoint, {}, {}),
            lambda: saver.aput_writes(checkpoint.config, [("steps", ["x"])], "task"),
            listed,
            lambda: saver.aget_delta_channel_history(config=checkpoint.config, channels=["steps"]),
            lambda: saver.adelete_thread("1"),
            lambda: saver.aprune(["1"]),
            lambda: saver.acopy_thread("1", "2"),
            lambda: saver.adelete_for_runs(["run"]),
            lambda: saver.adelete_idle_threads(1),
            lambda: saver.aflush(),
            lambda: saver.setup(),
        ]

        async def in_child():
            for call in calls:
                try:
                    await call()
                except ForkedError:
                    pass
                else:
                    raise AssertionError("no error")
            try:
                saver.get_tuple(on(1))
            except ForkedError:
                pass
            assert not before & sockets(), "it holds connections of its parent"
            await saver.aclose()

        child = os.fork()
        if not child:
            FORKED
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        for number in range(3):
            assert len((await graph.ainvoke({"steps": []}, on(number)))["steps"]) >= 3
            await asyncio.sleep(0.1)
        assert before <= sockets(), "the parent has lost connections"
        assert saver.stats()["redis_errors"] == 0 == saver.stats()["breaker_openings"]

async def run():
    try:
        await main()
    except EOFError:
        os._exit(0)  # asyncio.run would take its parent's event loop apart

asyncio.run(run())
"""
IN_ASYNC_CHILD = {
    "in the same coroutine": "await in_child(); os._exit(0)",
    "in a new event loop": """
            def use():
                asyncio.run(in_child())
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            gc.collect()
            os._exit(0)
""",
    "leaves the block": "await in_child(); raise EOFError",
}


@pytest.mark.slow
@pytest.mark.parametrize("child", IN_ASYNC_CHILD)
def test_async_calls_in_forked_child_raise(run: Callable[..., Ended], child: str) -> None:
    ended = run(ASYNC.replace("FORKED", IN_ASYNC_CHILD[child]))
    assert_fine(ended)
