from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from langgraph_checkpoint_cached.caches.single_flight import SingleFlight

CALLERS = 20


class Loader:
    """Counts its runs, each of which ends when the test says so."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[str]] = []

    async def __call__(self) -> str:
        self.runs.append(asyncio.get_running_loop().create_future())
        return await self.runs[-1]


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def flights() -> SingleFlight[str]:
    return SingleFlight()


@pytest.fixture
async def noises() -> list[dict[str, Any]]:
    """Errors that the event loop reports."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    return heard


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_concurrent_callers_share_one_load(flights: SingleFlight[str], loader: Loader) -> None:
    callers = [asyncio.create_task(flights.run("key", loader)) for _ in range(CALLERS)]
    await settle()
    assert len(loader.runs) == 1
    loader.runs[0].set_result("loaded")
    assert await asyncio.gather(*callers) == ["loaded"] * CALLERS


async def test_keys_do_not_share(flights: SingleFlight[str], loader: Loader) -> None:
    callers = [asyncio.create_task(flights.run(key, loader)) for key in ("a", "b")]
    await settle()
    for answer, run in zip("ab", loader.runs, strict=True):
        run.set_result(answer)
    assert await asyncio.gather(*callers) == ["a", "b"]


async def test_a_later_caller_loads_anew(flights: SingleFlight[str], loader: Loader) -> None:
    for answer in ("first", "second"):
        caller = asyncio.create_task(flights.run("key", loader))
        await settle()
        loader.runs[-1].set_result(answer)
        assert await caller == answer


async def test_a_finished_flight_is_not_joined(flights: SingleFlight[str]) -> None:
    # The second caller runs after the first flight has its result and before the callbacks of that.
    later: list[asyncio.Task[str]] = []

    async def second() -> str:
        return "second"

    async def first() -> str:
        later.append(asyncio.create_task(flights.run("key", second)))
        return "first"

    assert await flights.run("key", first) == "first"
    assert await later[0] == "second"


async def test_error_goes_to_every_caller_and_is_not_cached(flights: SingleFlight[str], loader: Loader) -> None:
    callers = [asyncio.create_task(flights.run("key", loader)) for _ in range(CALLERS)]
    await settle()
    error = ConnectionError("no model today")
    loader.runs[0].set_exception(error)
    assert await asyncio.gather(*callers, return_exceptions=True) == [error] * CALLERS

    again = asyncio.create_task(flights.run("key", loader))
    await settle()
    loader.runs[1].set_result("loaded")
    assert await again == "loaded"


async def test_error_before_first_await_goes_to_caller(flights: SingleFlight[str]) -> None:
    def not_even_async() -> Any:
        raise LookupError("at once")

    with pytest.raises(LookupError, match="at once"):
        await flights.run("key", not_even_async)


async def test_a_cancelled_caller_leaves_the_load_to_the_others(
    flights: SingleFlight[str], loader: Loader
) -> None:
    first, second = (asyncio.create_task(flights.run("key", loader)) for _ in range(2))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    loader.runs[0].set_result("loaded")
    assert await second == "loaded"
    assert len(loader.runs) == 1


async def test_a_load_that_everybody_left_goes_on_and_can_be_joined(
    flights: SingleFlight[str], loader: Loader
) -> None:
    caller = asyncio.create_task(flights.run("key", loader))
    await settle()
    caller.cancel()
    await settle()
    assert caller.cancelled()
    assert not loader.runs[0].cancelled()

    joining = asyncio.create_task(flights.run("key", loader))
    await settle()
    loader.runs[0].set_result("loaded")
    assert await joining == "loaded"
    assert len(loader.runs) == 1


async def test_error_without_receiver_is_not_logged(
    flights: SingleFlight[str], loader: Loader, noises: list[dict[str, Any]]
) -> None:
    caller = asyncio.create_task(flights.run("key", loader))
    await settle()
    caller.cancel()
    await settle()
    loader.runs.pop().set_exception(ConnectionError("unheard"))
    await settle()
    del caller
    gc.collect()
    assert noises == []


async def test_a_caller_after_forget_does_not_join_the_older_flight(
    flights: SingleFlight[str], loader: Loader
) -> None:
    before = asyncio.create_task(flights.run("key", loader))
    await settle()
    flights.forget("key")
    after = asyncio.create_task(flights.run("key", loader))
    await settle()
    old, new = loader.runs
    new.set_result("new")
    old.set_result("old")
    assert (await before, await after) == ("old", "new")


async def test_forgotten_flight_that_lands_leaves_newer_one_joinable(
    flights: SingleFlight[str], loader: Loader
) -> None:
    before = asyncio.create_task(flights.run("key", loader))
    await settle()
    flights.forget("key")
    after = asyncio.create_task(flights.run("key", loader))
    await settle()
    loader.runs[0].set_result("old")
    assert await before == "old"
    joining = asyncio.create_task(flights.run("key", loader))
    await settle()
    assert len(loader.runs) == 2
    loader.runs[1].set_result("new")
    assert (await after, await joining) == ("new", "new")


async def test_a_forgotten_flight_that_everybody_left_still_lands(flights: SingleFlight[str]) -> None:
    waiting_for: list[weakref.ref[asyncio.Future[str]]] = []

    async def loader() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting_for.append(weakref.ref(future))
        return await future

    caller = asyncio.create_task(flights.run("key", loader))
    await settle()
    flights.forget("key")
    caller.cancel()
    await settle()
    del caller
    gc.collect()
    future = waiting_for[0]()
    assert future is not None, "the flight was collected as garbage"
    future.set_result("loaded")


async def test_landed_key_leaves_no_state(flights: SingleFlight[str]) -> None:
    class Key:
        pass

    async def loader() -> str:
        return "loaded"

    key = Key()
    gone = weakref.ref(key)
    await flights.run(key, loader)
    del key
    await settle()
    gc.collect()
    assert gone() is None


async def test_forgetting_what_is_not_there_is_nothing(flights: SingleFlight[str]) -> None:
    flights.forget("key")


async def test_loader_asking_for_its_own_key_raises(flights: SingleFlight[str]) -> None:
    async def loader() -> str:
        return await flights.run("key", loader)

    with pytest.raises(RuntimeError, match="'key' asked for 'key' itself"):
        await asyncio.wait_for(flights.run("key", loader), 5)


def test_a_flight_of_a_loop_that_is_gone_is_not_joined(loader: Loader) -> None:
    flights: SingleFlight[str] = SingleFlight()

    async def begin() -> None:
        caller = asyncio.create_task(flights.run("key", loader))
        await settle()
        caller.cancel()

    async def answer() -> str:
        return "anew"

    gone = asyncio.new_event_loop()
    gone.run_until_complete(begin())
    assert asyncio.run(asyncio.wait_for(flights.run("key", answer), 5)) == "anew"
    loader.runs[0].cancel()
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
