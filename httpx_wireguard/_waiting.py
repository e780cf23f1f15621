"""What everything above the drivers waits on, written once for threads and for event loops.

Streams, lookups, connects and listeners are coroutines whose only awaitable is `Driver.wait`. On an event loop it
suspends; for threads it blocks, and the coroutine, which then never suspends, is run to its end by `run`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
AT_ONCE = -math.inf  # a deadline that means: do not wait


class Driver(Protocol):
    """What an operation needs of the driver that it runs on.

    `lock` guards the engine and its sockets; it is held around every method but `now`.

    Attributes:
        takes_turns: an operation that need not wait calls `wait` all the same, so that others get their turn.
    """

    takes_turns: bool

    @property
    def lock(self) -> threading.Lock: ...

    def now(self) -> float:
        """Monotonic seconds."""

    def pump(self) -> None:
        """Send what is due, and signal who waits for what changed."""

    def catch_up(self) -> None:
        """Take in what has arrived at the tunnel, without waiting, so that readiness is exact.

        Raises:
            TunnelClosed: the tunnel ended.
        """

    def wake(self, key: Hashable) -> None:
        """Let everyone who waits on `key` look again."""

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        """Wait until `ready()`, looked at whenever one of `keys` changed; returns `ready()`.

        The lock is held on entry and on exit, however that comes about, and free while it sleeps.

        Args:
            keys: sockets of the engine, or whatever `wake` is called with; none: look after everything that happens.
            deadline: on the clock of `now`; None waits for ever.

        Raises:
            TunnelClosed: the tunnel ended.
        """


class Mutex:
    """Keeps a second reader, or a second writer, out while the first waits for the network."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._held = False

    async def acquire(self, deadline: float | None) -> bool:
        """Whether it could be had before the deadline; with `AT_ONCE` it does not suspend."""
        if self.acquire_at_once():
            return True
        if deadline == AT_ONCE:
            return False
        with self._driver.lock:
            if not await self._driver.wait(lambda: not self._held, (self,), deadline):
                return False
            self._held = True
        return True

    def acquire_at_once(self) -> bool:
        """Whether it was free."""
        with self._driver.lock:
            free = not self._held
            self._held = True
        return free

    def release(self) -> None:
        with self._driver.lock:
            self._held = False
            self._driver.wake(self)


def run(operation: Coroutine[Any, Any, T]) -> T:
    """Run an operation on a thread's driver to its end."""
    try:
        operation.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    operation.close()
    raise RuntimeError("an operation of an event loop was run by a thread")
