"""The driver inside a trio run: system tasks that watch the sockets and the timers, no thread."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import trio

from httpx_wireguard._drivers.loops import LoopDriver, loop_ended
from httpx_wireguard._drivers.udp import UdpSocket, UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._wireguard.peer import Peer

_log = logging.getLogger("httpx_wireguard.driver")


class TrioDriver(LoopDriver):
    """Driven by system tasks of the run that is current when it is made; trio cancels them when the run ends."""

    def __init__(self, engine: Engine, sockets: UdpSockets, on_unanswered: Callable[[Peer], None]) -> None:
        super().__init__(engine, sockets, on_unanswered)
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._timer_changed = trio.Event()
        self._timer_due = math.inf
        self._run_ended = False

    def start(self) -> None:
        """Watch the sockets from now on."""
        for one in self.sockets:
            trio.lowlevel.spawn_system_task(self._guarded, self._watch, one)
        trio.lowlevel.spawn_system_task(self._guarded, self._run_timers)

    def is_here(self) -> bool:
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    def has_ended(self) -> bool:
        return self._run_ended

    def call_in_loop(self, call: Callable[[], object]) -> bool:
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True

    def _stop_watching(self) -> None:
        self._timer_changed.set()
        if self.is_here():
            for one in self.sockets:
                trio.lowlevel.notify_closing(one.fileno())

    def pump(self) -> None:
        self._send_due()
        self._notify()
        timeout = self.engine.next_timeout()
        if timeout is not None and timeout < self._timer_due:
            self._timer_due = timeout
            if threading.get_ident() == self._thread:
                self._timer_changed.set()
            else:
                self.call_in_loop(lambda: self._timer_changed.set())

    async def _guarded(self, task: Callable[..., object], *arguments: object) -> None:
        """A system task must not fail, and ends only with the tunnel or with the run."""
        try:
            await task(*arguments)  # type: ignore[misc]
        except trio.ClosedResourceError:
            pass  # closed by `_release`
        except Exception:
            _log.exception("the tunnel's task failed")
        finally:
            if not self._stopped:
                self._run_ended = True
                self.close(loop_ended())

    async def _watch(self, one: UdpSocket) -> None:
        while not self._stopped:
            await trio.lowlevel.wait_readable(one.fileno())
            while not self._stopped:
                with self.lock:
                    drained = self._receive_until(lambda: False)
                    self.pump()
                if drained:
                    break
                await trio.lowlevel.checkpoint()

    async def _run_timers(self) -> None:
        while not self._stopped:
            with self.lock:
                timeout = self.engine.next_timeout()
                self._timer_due = math.inf if timeout is None else timeout
                self._timer_changed = trio.Event()
            with trio.move_on_after(max(self._timer_due - self.now(), 0.0)):
                await self._timer_changed.wait()
            with self.lock:
                if not self._stopped:
                    self._handle_timeout()
                    self.pump()
