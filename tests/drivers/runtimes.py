"""One test body on threads, asyncio, uvloop and trio, over a tunnel of its own or one that is shared.

A body is `async def`, written against a `Kit`. On threads its tunnel's methods block where they are, so that the body
never suspends; `httpx_wireguard._waiting.run` runs it, as it runs the package's own operations.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import trio

from httpx_wireguard import Config, Tunnel
from httpx_wireguard._drivers.base import BaseDriver
from httpx_wireguard._sockets import Listener, UdpEndpoint
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard._waiting import run

PATIENCE = 20.0  # seconds after which something that should have happened has not
CANCELLED = "cancelled"  # the outcome of a job that was cancelled

Operation = Callable[[], Awaitable[Any]]


class Blocking:
    """A blocking object in the dress of the asynchronous one: its methods are coroutines that never suspend."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, "close" if name == "aclose" else name)
        if not callable(attribute) or name in ("get_extra_info", "stats", "close"):
            return attribute

        async def call(*arguments: Any, **options: Any) -> Any:
            result = attribute(*arguments, **options)
            return Blocking(result) if isinstance(result, SyncStream | Listener | UdpEndpoint) else result

        return call


class Job(ABC):
    """Something that runs beside the body."""

    def __init__(self) -> None:
        self._outcome: Any = None
        self.done = False

    async def _do(self, operation: Operation) -> None:
        try:
            self._outcome = await operation()
        except Exception as error:
            self._outcome = error
        except (asyncio.CancelledError, trio.Cancelled):
            self._outcome = CANCELLED
            raise
        finally:
            self.done = True

    @abstractmethod
    def cancel(self) -> None:
        """Only on event loops."""

    @abstractmethod
    async def _wait(self) -> None: ...

    async def outcome(self) -> Any:
        """Its result, its exception, or `CANCELLED`."""
        await self._wait()
        assert self.done, "it never ended"
        return self._outcome

    async def result(self) -> Any:
        """Its result; raises its exception."""
        outcome = await self.outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Kit(ABC):
    """What a body is given.

    Attributes:
        tunnel: an `AsyncTunnel`, or a `Tunnel` in its dress.
        cancels: whether jobs can be cancelled.
    """

    cancels = True

    def __init__(self, tunnel: Any, shared: Tunnel | None = None) -> None:
        self.tunnel = tunnel
        self.shared = shared

    @property
    def driver(self) -> BaseDriver:
        interface = (self.shared or self.tunnel)._interface
        assert interface is not None
        return interface.driver

    def waiting(self) -> int:
        """How many callers wait in the tunnel's driver."""
        return count_waiting(self.driver)

    async def until_waiting(self, count: int = 1) -> None:
        await self.until(lambda: self.waiting() >= count)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            await self.pause(0.001)

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Let everything else go on for a while; 0 is one turn of the scheduler."""

    @abstractmethod
    def begin(self, operation: Operation) -> Job:
        """Run it beside the body."""

    @abstractmethod
    def begin_blocking(self, call: Callable[[], Any]) -> Job:
        """Run a blocking call beside the body, in a thread."""


class _ThreadJob(Job):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._thread = threading.Thread(target=lambda: run(self._do(operation)), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        raise AssertionError("threads cannot be cancelled")

    async def _wait(self) -> None:
        self._thread.join(PATIENCE)


class ThreadKit(Kit):
    cancels = False

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def begin(self, operation: Operation) -> Job:
        return _ThreadJob(operation)

    def begin_blocking(self, call: Callable[[], Any]) -> Job:
        async def operation() -> Any:
            return call()

        return _ThreadJob(operation)


class _AsyncioJob(Job):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self._task = asyncio.ensure_future(self._do(operation))

    def cancel(self) -> None:
        self._task.cancel()

    async def _wait(self) -> None:
        await asyncio.wait({self._task}, timeout=PATIENCE)
        if self._task.cancelled() and not self.done:  # before its first step
            self.done, self._outcome = True, CANCELLED


class AsyncioKit(Kit):
    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def begin(self, operation: Operation) -> Job:
        return _AsyncioJob(operation)

    def begin_blocking(self, call: Callable[[], Any]) -> Job:
        return _AsyncioJob(lambda: asyncio.to_thread(call))


class _TrioJob(Job):
    def __init__(self, nursery: trio.Nursery, operation: Operation) -> None:
        super().__init__()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        nursery.start_soon(self._run, operation)

    async def _run(self, operation: Operation) -> None:
        try:
            with self._scope:
                await self._do(operation)
        finally:
            self._ended.set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def _wait(self) -> None:
        with trio.move_on_after(PATIENCE):
            await self._ended.wait()


class TrioKit(Kit):
    def __init__(self, tunnel: AsyncTunnel, nursery: trio.Nursery, shared: Tunnel | None = None) -> None:
        super().__init__(tunnel, shared)
        self._nursery = nursery

    async def pause(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def begin(self, operation: Operation) -> Job:
        return _TrioJob(self._nursery, operation)

    def begin_blocking(self, call: Callable[[], Any]) -> Job:
        return _TrioJob(self._nursery, lambda: trio.to_thread.run_sync(call))


def count_waiting(driver: BaseDriver) -> int:
    """Threads and tasks in the register of those who wait."""
    with driver.lock:
        by_key = [waiter for waiting in driver._by_key.values() for waiter in waiting]
        return len({id(waiter) for waiter in (*by_key, *driver._observers)})


def assert_nobody_waits(driver: BaseDriver) -> None:
    """Nobody, not even somebody who is long gone."""
    with driver.lock:
        assert not driver._by_key
        assert not driver._observers
        assert not getattr(driver, "_waiters", None)
        assert not getattr(driver, "_loops_waiting", 0)


Body = Callable[[Kit], Coroutine[Any, Any, None]]
Runtime = Callable[[Config, Body], None]


def on_threads(config: Config, body: Body) -> None:
    with Tunnel(config) as tunnel:
        driver = tunnel._running()[1]
        run(body(ThreadKit(Blocking(tunnel))))
        assert_nobody_waits(driver)


async def _body_on_asyncio(conf: Config | Tunnel, body: Body) -> None:
    async with AsyncTunnel(conf) as tunnel:
        kit = AsyncioKit(tunnel, conf if isinstance(conf, Tunnel) else None)
        driver = kit.driver
        await body(kit)
        assert_nobody_waits(driver)


async def _body_on_trio(conf: Config | Tunnel, body: Body) -> None:
    async with AsyncTunnel(conf) as tunnel, trio.open_nursery() as nursery:
        kit = TrioKit(tunnel, nursery, conf if isinstance(conf, Tunnel) else None)
        driver = kit.driver
        await body(kit)
        assert_nobody_waits(driver)


def run_asyncio(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` in debug mode."""
    return asyncio.run(main, debug=True)


def run_uvloop(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def on_asyncio(config: Config, body: Body) -> None:
    run_asyncio(_body_on_asyncio(config, body))


def on_uvloop(config: Config, body: Body) -> None:
    run_uvloop(_body_on_asyncio(config, body))


def on_trio(config: Config, body: Body) -> None:
    trio.run(_body_on_trio, config, body)


def on_shared_asyncio(config: Config, body: Body) -> None:
    with Tunnel(config) as tunnel:
        run_asyncio(_body_on_asyncio(tunnel, body))


def on_shared_uvloop(config: Config, body: Body) -> None:
    with Tunnel(config) as tunnel:
        run_uvloop(_body_on_asyncio(tunnel, body))


def on_shared_trio(config: Config, body: Body) -> None:
    with Tunnel(config) as tunnel:
        trio.run(_body_on_trio, tunnel, body)


RUNTIMES: dict[str, Runtime] = {
    "threads": on_threads,
    "asyncio": on_asyncio,
    "uvloop": on_uvloop,
    "trio": on_trio,
    "asyncio-shared": on_shared_asyncio,
    "uvloop-shared": on_shared_uvloop,
    "trio-shared": on_shared_trio,
}
LOOPS = [name for name in RUNTIMES if name != "threads"]


def job_of(kit: Kit, operation: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Job:
    """Begin `operation(*arguments, **options)`."""
    return kit.begin(partial(operation, *arguments, **options))
