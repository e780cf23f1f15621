"""Event loops: how a task waits on any driver, and what the drivers that live in a loop have in common.

Neither asyncio nor trio is imported here before it is running.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from httpx_wireguard._drivers.base import BaseDriver, Waiter
from httpx_wireguard._errors import TunnelClosed, WireGuardError

if TYPE_CHECKING:
    import asyncio

FAIR_SHARE = 32  # operations in a row that need not wait, until other tasks get a turn


class TaskWaiter(Waiter, ABC):
    """A task's waiter: `arm` under the lock, `sleep` without it."""

    @abstractmethod
    def arm(self) -> None:
        """Lock held: be ready for the next signal."""

    @abstractmethod
    async def sleep(self, timeout: float | None) -> None:
        """Until signalled after `arm`, or the timeout."""


class AsyncioWaiter(TaskWaiter):
    """Sleeps on a future of the loop that made it; may be signalled from any thread."""

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._future: asyncio.Future[None] = self._loop.create_future()
        self._signalled = False

    def arm(self) -> None:
        self._signalled = False
        if self._future.done():
            self._future = self._loop.create_future()

    def signal(self) -> None:
        if self._signalled:
            return
        self._signalled = True
        if self._loop.is_closed():
            return  # under a task that still waited, which nobody can wake any more
        if threading.get_ident() == self._thread:
            _finish(self._future)
            return
        with contextlib.suppress(RuntimeError):  # closed in this moment
            self._loop.call_soon_threadsafe(_finish, self._future)

    async def sleep(self, timeout: float | None) -> None:
        future = self._future
        if timeout is None:
            await future
            return
        timer = self._loop.call_later(timeout, _finish, future)
        try:
            await future
        finally:
            timer.cancel()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TrioWaiter(TaskWaiter):
    """Sleeps on an event of the run that made it; may be signalled from any thread."""

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._event = trio.Event()

    def arm(self) -> None:
        import trio

        if self._event.is_set():
            self._event = trio.Event()

    def signal(self) -> None:
        import trio

        if threading.get_ident() == self._thread:
            self._event.set()
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    async def sleep(self, timeout: float | None) -> None:
        import trio

        if timeout is None:
            await self._event.wait()
            return
        with trio.move_on_after(timeout):
            await self._event.wait()


def running_library() -> str:
    """The library whose event loop runs the caller: "trio" or "asyncio".

    Raises:
        RuntimeError: none does.
    """
    trio_lowlevel = sys.modules.get("trio.lowlevel")
    if trio_lowlevel is not None and trio_lowlevel.in_trio_task():  # a task: trio may be the guest of another loop
        return "trio"
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        asyncio.get_running_loop()
        return "asyncio"
    raise RuntimeError("neither asyncio nor trio is running here")


async def sleep(seconds: float) -> None:
    """Let other tasks run for a while, on whichever library is running."""
    if running_library() == "trio":
        import trio

        await trio.sleep(seconds)
    else:
        import asyncio

        await asyncio.sleep(seconds)


class LoopWaits:
    """A driver for the operations of event loops: the `Driver` whose waits suspend.

    Any number of loops, in any threads, may use one of these over a driver that has a thread of its own.
    """

    takes_turns = True

    def __init__(self, driver: BaseDriver) -> None:
        self.driver = driver
        self.now = driver.now
        self.pump = driver.pump
        self.catch_up = driver.catch_up
        self.wake = driver.wake
        self._ready_in_a_row = 0

    @property
    def lock(self) -> threading.Lock:
        """The driver's; another one after a fork."""
        return self.driver.lock

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        """`Driver.wait`. Also where an operation that need not wait lets other tasks run, and notices cancellation."""
        if ready() or (deadline is not None and deadline <= self.now()):
            await self._take_turns()
            if ready():  # nobody else has taken it meanwhile
                return True
        self.driver.check_usable()
        waiter = AsyncioWaiter() if running_library() == "asyncio" else TrioWaiter()
        self.driver.register(waiter, keys)
        try:
            while not ready():
                timeout = None if deadline is None else deadline - self.now()
                if timeout is not None and timeout <= 0:
                    return False
                self.driver.check_usable()
                waiter.arm()
                await self._unlocked(waiter.sleep, timeout)
                self._ready_in_a_row = 0
            return True
        finally:
            self.driver.unregister(waiter, keys)

    async def _take_turns(self) -> None:
        """Trio's convention: every operation is a checkpoint. On asyncio, an occasional one keeps things fair."""
        if running_library() == "trio":
            import trio

            await self._unlocked(trio.lowlevel.checkpoint)
            return
        self._ready_in_a_row += 1
        if self._ready_in_a_row >= FAIR_SHARE:
            self._ready_in_a_row = 0
            await self._unlocked(sleep, 0)

    async def _unlocked(self, sleep: Callable[..., Awaitable[None]], *arguments: float | None) -> None:
        """`await sleep(*arguments)`, made here: Python warns of a coroutine that an interrupt keeps from `await`."""
        lock = self.lock
        lock.release()
        try:
            await sleep(*arguments)
        finally:
            if self.lock is lock or self.driver.exiting:
                self.lock.acquire()
            else:  # a forked child has another; this one, which our caller releases, nobody else holds here
                lock.acquire(blocking=False)


class LoopDriver(BaseDriver):
    """A driver that lives in one event loop and ends with it; only tasks of that loop may wait on it."""

    _released = False

    @abstractmethod
    def is_here(self) -> bool:
        """Whether the running loop is this driver's."""

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether this driver's loop will not run again; asked from outside it."""

    @abstractmethod
    def call_in_loop(self, call: Callable[[], object]) -> bool:
        """Have the loop make the call, from any thread; whether it still can."""

    @abstractmethod
    def _stop_watching(self) -> None:
        """In the loop, or after its end: drop the timer and the watches of the sockets, which will be closed."""

    def serves(self) -> bool:
        """Whether operations here may go on with this driver; when its loop has ended, it ends too.

        Raises:
            TunnelClosed: this is another loop, and both run.
        """
        if not self.is_here():
            if not self.has_ended():
                raise in_another_loop()
            self.close(loop_ended())
        return not self._stopped

    def check_usable(self) -> None:
        self._end_with_loop()
        super().check_usable()
        if not self.is_here():
            raise in_another_loop()

    def catch_up(self) -> None:
        self._end_with_loop()
        super().catch_up()

    def _end_with_loop(self) -> None:
        """Nothing looks after an engine whose loop has ended, so that it ends too. *Lock held.*"""
        if not self._stopped and not self.is_here() and self.has_ended():
            self._end_engine(loop_ended())

    def close(self, error: WireGuardError) -> None:
        """Reset the connections, wake every waiter. Idempotent; waits for nothing; from any thread."""
        with self.lock:
            if self._released:
                return
            self._end_engine(error)
            if self._exiting:
                return
            self._signal_all()
        if self.is_here() or self.has_ended() or not self.call_in_loop(self._release):
            self._release()

    def close_soon(self) -> None:
        """Close in the loop, or at once when it has ended; for finalizers."""
        error = TunnelClosed("the tunnel was dropped without being closed")
        if self.has_ended() or not self.call_in_loop(lambda: self.close(error)):
            self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._stop_watching()
            self.sockets.close()

    def _close_sockets(self) -> None:
        self._released = True  # a forked child must not unwatch them: the loop's selector is shared with the parent
        self.sockets.close()


def loop_ended() -> TunnelClosed:
    return TunnelClosed("the event loop that this connection belonged to has ended")


def in_another_loop() -> TunnelClosed:
    return TunnelClosed(
        "this AsyncTunnel belongs to another event loop, which still runs; give every loop a running Tunnel, "
        "which any number of them can share, or an AsyncTunnel of its own"
    )
