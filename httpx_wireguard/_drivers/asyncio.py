"""The driver inside an asyncio event loop: reader callbacks and one timer, no thread."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

from httpx_wireguard._drivers.loops import LoopDriver
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._wireguard.peer import Peer


class AsyncioDriver(LoopDriver):
    """Driven by the loop that is running when it is made."""

    def __init__(self, engine: Engine, sockets: UdpSockets, on_unanswered: Callable[[Peer], None]) -> None:
        super().__init__(engine, sockets, on_unanswered)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf  # when `_timer` fires, or a call that sets it is on its way
        self._pump_due = False
        self._more_due = False  # a call of `_receive_more` is on its way

    def start(self) -> None:
        """Watch the sockets from now on.

        Raises:
            NotImplementedError: this loop cannot watch sockets (asyncio's default on Windows).
        """
        for one in self.sockets:
            self._loop.add_reader(one.fileno(), self._on_readable)

    def is_here(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def has_ended(self) -> bool:
        if self._loop.is_closed():
            return True
        return not self._loop.is_running() and asyncio._get_running_loop() is not None

    def call_in_loop(self, call: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
        return True

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            for one in self.sockets:
                self._loop.remove_reader(one.fileno())

    def pump(self) -> None:
        self._end_with_loop()
        self._send_due()
        self._notify()
        timeout = self.engine.next_timeout()
        if timeout is not None and timeout < self._timer_due:
            self._timer_due = timeout
            if threading.get_ident() == self._thread:
                self._set_timer()
            else:
                self.call_in_loop(self._set_timer)

    def _set_timer(self) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(self._timer_due - self.now(), 0.0), self._on_timer)

    def _on_timer(self) -> None:
        with self.lock:
            self._timer, self._timer_due = None, math.inf
            if not self._stopped:
                self._handle_timeout()
                self.pump()

    def _on_readable(self) -> None:
        """Take in what has arrived, wake its readers, and pump after them: so that one acknowledgment tells of the data
        and of the window that reading opened."""
        with self.lock:
            if self._stopped:
                return
            drained = self._receive_until(lambda: False)
            if not self._pump_due:
                self._pump_due = True
                self._loop.call_soon(self._pump_after_readers)
        if not drained and not self._more_due:  # our own buffer may hold some of it, of which the loop knows nothing
            self._more_due = True
            self._loop.call_soon(self._receive_more)

    def _receive_more(self) -> None:
        self._more_due = False
        self._on_readable()

    def _pump_after_readers(self) -> None:
        with self.lock:
            self._pump_due = False
            if not self._stopped:
                self.pump()
