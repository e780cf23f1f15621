"""What operations wait on: `run`, `Mutex`, and how tasks of event loops wait on a driver."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import trio.testing

from httpx_wireguard import Config, TunnelClosed
from httpx_wireguard._drivers.base import BaseDriver
from httpx_wireguard._drivers.entropy import SystemEntropy
from httpx_wireguard._drivers.loops import FAIR_SHARE, LoopWaits, running_library, sleep
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._waiting import AT_ONCE, Mutex, run
from tests.memory_tunnel import MemoryDriver, VirtualDriver

PATIENCE = 10.0
Main = Callable[[], Coroutine[Any, Any, Any]]


class QuietDriver(BaseDriver):
    """An engine without peers and without sockets: nothing happens but what the test does."""

    def __init__(self) -> None:
        config = Config(private_key=os.urandom(32), address=("10.0.0.1",))
        super().__init__(Engine(config, SystemEntropy()), UdpSockets(None, None), lambda peer: None)

    def start(self) -> None: ...

    def pump(self) -> None:
        self._notify()

    def close(self, error: WireGuardError) -> None:
        with self.lock:
            self._end_engine(error)
            self._signal_all()

    def close_soon(self) -> None: ...

    def _close_sockets(self) -> None: ...

    def nobody_waits(self) -> bool:
        return not self._by_key and not self._observers


def on_asyncio(main: Main) -> Any:
    return asyncio.run(main())


@pytest.fixture(params=[on_asyncio, trio.run], ids=["asyncio", "trio"])
def run_loop(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    runner: Callable[[Main], Any] = request.param
    return runner


async def all_of(*operations: Callable[[], Awaitable[Any]]) -> None:
    """Run them beside each other."""
    if running_library() == "trio":
        async with trio.open_nursery() as nursery:
            for operation in operations:
                nursery.start_soon(operation)
    else:
        await asyncio.gather(*(operation() for operation in operations))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await sleep(0)


# -- run


def test_run_gives_the_result_and_the_error_of_what_does_not_suspend() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    async def outer() -> int:
        return await add(1, 2)

    async def fail() -> None:
        raise KeyError("inside")

    assert run(outer()) == 3
    with pytest.raises(KeyError, match="inside"):
        run(fail())


def test_run_refuses_what_suspends_and_lets_it_clean_up() -> None:
    cleaned = []

    async def suspends() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append(True)

    with pytest.raises(RuntimeError, match="by a thread"):
        run(suspends())
    assert cleaned == [True]


# -- Mutex


def test_a_mutex_is_had_once_and_asked_for_without_waiting() -> None:
    driver = VirtualDriver()
    mutex = Mutex(driver)
    assert run(mutex.acquire(None))
    assert not run(mutex.acquire(AT_ONCE))
    assert not mutex.acquire_at_once()
    assert driver.time == 0.0
    mutex.release()
    assert mutex.acquire_at_once()


def test_a_mutex_is_given_up_at_the_deadline() -> None:
    driver = VirtualDriver()
    mutex = Mutex(driver)
    assert run(mutex.acquire(None))
    assert not run(mutex.acquire(2.5))
    assert driver.time == 2.5
    driver.at(3.0, lambda: setattr(mutex, "_held", False))  # as `release`, but for the lock, which `wait` holds here
    assert run(mutex.acquire(4.0))
    assert driver.time == 3.0
    assert not mutex.acquire_at_once()


def test_a_mutex_keeps_threads_apart_and_lets_each_in() -> None:
    mutex, inside, most, total = Mutex(MemoryDriver()), 0, 0, 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(200):
            assert run(mutex.acquire(None))
            inside += 1
            most = max(most, inside)
            total += 1
            inside -= 1
            mutex.release()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result(PATIENCE)
    assert (most, total) == (1, 1600)


def test_a_mutex_keeps_tasks_apart_whoever_is_cancelled(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    mutex = Mutex(LoopWaits(driver))
    chance = random.Random(7)
    inside, entered, cancelled = 0, 0, 0

    async def hold() -> None:
        nonlocal inside, entered
        assert await mutex.acquire(None)
        try:
            inside += 1
            assert inside == 1
            entered += 1
            await sleep(chance.choice((0, 0.0002)))
        finally:
            inside -= 1
            mutex.release()

    async def work() -> None:
        nonlocal cancelled
        for _ in range(50):
            limit = chance.choice((0.0001, 0.001, PATIENCE))
            if running_library() == "trio":
                with trio.move_on_after(limit) as scope:
                    await hold()
                cancelled += scope.cancelled_caught
            else:
                try:
                    async with asyncio.timeout(limit):
                        await hold()
                except TimeoutError:
                    cancelled += 1

    async def main() -> None:
        await all_of(*[work] * 8)

    run_loop(main)
    assert mutex.acquire_at_once()
    assert driver.nobody_waits()
    assert cancelled > 10
    assert entered > 50


# -- tasks that wait on a driver


def test_a_wait_ends_with_a_signal_for_one_of_its_keys(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)
    looks: list[float] = []
    ready = False

    def look() -> bool:
        looks.append(time.monotonic())
        return ready

    async def wait() -> None:
        with driver.lock:
            assert await waits.wait(look, ("this", "that"), None)
            assert driver.lock.locked()

    async def wake() -> None:
        nonlocal ready
        await until(lambda: not driver.nobody_waits())
        for key in ("other", "that"):
            before = len(looks)
            with driver.lock:
                driver.wake(key)
            for _ in range(3):
                await sleep(0)
            assert (len(looks) > before) == (key == "that")
        ready = True
        await off_thread(lambda: locked(driver, lambda: driver.wake("this")))

    async def main() -> None:
        await all_of(wait, wake)

    run_loop(main)
    assert driver.nobody_waits()
    assert not driver.lock.locked()


def locked(driver: BaseDriver, call: Callable[[], object]) -> None:
    with driver.lock:
        call()


async def off_thread(call: Callable[[], None]) -> None:
    """In another thread, and without waiting for it in this loop."""
    thread = threading.Thread(target=call)
    thread.start()
    await until(lambda: not thread.is_alive())


def test_who_waits_for_no_socket_looks_after_everything_that_happens(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)
    ready = False

    async def wait() -> None:
        with driver.lock:
            assert await waits.wait(lambda: ready, (), None)

    async def happen() -> None:
        nonlocal ready
        await until(lambda: not driver.nobody_waits())
        ready = True
        locked(driver, driver.pump)

    async def main() -> None:
        await all_of(wait, happen)

    run_loop(main)
    assert driver.nobody_waits()


def test_a_wait_ends_at_its_deadline(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)

    async def main() -> None:
        for seconds in (0.05, 0.0, -1.0):
            start = time.monotonic()
            with driver.lock:
                assert not await waits.wait(lambda: False, ("key",), start + seconds)
            assert max(seconds, 0.0) <= time.monotonic() - start < max(seconds, 0.0) + 1

    run_loop(main)
    assert driver.nobody_waits()


def test_a_wait_that_ends_before_its_deadline_leaves_no_timer() -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)
    ready = False

    async def wait() -> None:
        with driver.lock:
            assert await waits.wait(lambda: ready, ("key",), driver.now() + 1000)

    async def main() -> list[asyncio.TimerHandle]:
        nonlocal ready
        task = asyncio.create_task(wait())
        await until(lambda: not driver.nobody_waits())
        ready = True
        locked(driver, lambda: driver.wake("key"))
        await task
        timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # no other view
        return [timer for timer in timers if not timer.cancelled()]

    assert asyncio.run(main()) == []


def test_the_end_of_the_tunnel_ends_a_wait_and_refuses_the_next(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)

    async def wait() -> None:
        for _ in range(2):
            with driver.lock, pytest.raises(TunnelClosed, match="gone"):
                await waits.wait(lambda: False, ("key",), None)

    async def end() -> None:
        await until(lambda: not driver.nobody_waits())
        driver.close(TunnelClosed("gone"))

    async def main() -> None:
        await all_of(wait, end)

    run_loop(main)
    assert driver.nobody_waits()


def test_a_cancelled_wait_holds_the_lock_to_its_end_and_forgets_itself(run_loop: Callable[[Main], Any]) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)
    seen = []

    async def wait() -> None:
        with driver.lock:
            try:
                await waits.wait(lambda: False, ("key",), None)
            finally:
                seen.append(driver.lock.locked())

    async def main() -> None:
        if running_library() == "trio":
            with trio.move_on_after(0.01):
                await wait()
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait(), 0.01)

    run_loop(main)
    assert seen == [True]
    assert not driver.lock.locked()
    assert driver.nobody_waits()


def test_on_trio_every_wait_is_a_checkpoint() -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)

    async def main() -> None:
        with trio.testing.assert_checkpoints(), driver.lock:
            assert await waits.wait(lambda: True, ("key",), None)
        with trio.testing.assert_checkpoints(), driver.lock:
            assert not await waits.wait(lambda: False, ("key",), time.monotonic() - 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            with driver.lock:
                await waits.wait(lambda: True, ("key",), None)
        assert scope.cancelled_caught

    trio.run(main)
    assert not driver.lock.locked()


@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "overdue"])
def test_on_asyncio_others_get_their_turn_after_a_fair_share(is_ready: bool) -> None:
    driver = QuietDriver()
    waits = LoopWaits(driver)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(others())
        await asyncio.sleep(0)
        before = turns
        for _ in range(10 * FAIR_SHARE):
            with driver.lock:
                await waits.wait(lambda: is_ready, ("key",), AT_ONCE)
        assert 10 <= turns - before < 20, "neither starved nor a turn for each"
        task.cancel()

    asyncio.run(main())


def test_what_another_task_took_during_the_checkpoint_is_waited_for_again() -> None:
    """Two see the one thing that is ready; the checkpoint is before the taking, so the second comes too late."""
    driver = QuietDriver()
    waits = LoopWaits(driver)
    things = 1

    async def take() -> None:
        nonlocal things
        with driver.lock:
            assert await waits.wait(lambda: things > 0, ("things",), None)
            assert things > 0
            things -= 1

    async def main() -> None:
        nonlocal things
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)
            await until(lambda: not driver.nobody_waits())
            things += 1
            locked(driver, lambda: driver.wake("things"))

    trio.run(main)
    assert things == 0


def test_a_signal_to_a_loop_that_is_closed_is_for_nobody() -> None:
    """Its task was destroyed over its wait; whoever signals, in that thread or in another, must not suffer for it."""
    driver = QuietDriver()
    waits = LoopWaits(driver)

    async def wait() -> None:
        with driver.lock:
            await waits.wait(lambda: False, ("key",), None)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed", rightly
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert not driver.nobody_waits()
    loop.close()
    locked(driver, lambda: driver.wake("key"))
    (waiter,) = driver._by_key["key"]
    waiter._signalled = False  # type: ignore[attr-defined]  # a fresh one
    errors: list[BaseException] = []

    def wake() -> None:
        try:
            locked(driver, lambda: driver.wake("key"))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wake)
    thread.start()
    thread.join(PATIENCE)
    assert not errors
    assert not task.done()


def test_the_library_that_runs_is_named() -> None:
    async def named() -> str:
        return running_library()

    assert trio.run(named) == "trio"
    assert asyncio.run(named()) == "asyncio"
    with pytest.raises(RuntimeError):
        running_library()
