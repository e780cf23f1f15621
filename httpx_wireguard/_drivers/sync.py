"""The driver for threads: whoever waits drives, and a thread stands in while nobody waits.

A caller whose socket is not ready becomes the *driver*: it receives, runs the engine and sends until its own socket is
ready. Others that wait sleep, each on a lock of its own, and are signalled when their socket changes, or when the
driver leaves and one of them has to take over. A background thread drives while no caller waits: acknowledgments,
keep-alives, retransmissions and the far side's FINs must go on.

One rule makes lost wake-ups impossible. Whenever `lock` is free, one of these holds: somebody drives; nobody waits; or
a waiter has been signalled and is on its way to take over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from httpx_wireguard._drivers.base import EXIT_PATIENCE, BaseDriver
from httpx_wireguard._drivers.base import Waiter as LoopWaiter
from httpx_wireguard._drivers.sleeper import Sleeper
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import TunnelClosed, WireGuardError
from httpx_wireguard._wireguard.peer import Peer

# seconds that the thread leaves to a caller who will be back soon, as in a loop of requests: each change of the driver
# costs a tenth of a small one, and what arrives meanwhile wants no answer sooner than a delayed acknowledgment
GRACE = 0.01
LONGEST_WATCH = 0.04  # seconds between the thread's looks while a caller drives; doubles from GRACE, then it rests

_log = logging.getLogger("httpx_wireguard.driver")


class _Waiter:
    """One caller that waits; `signal` and `sleep` pair up whichever comes first."""

    __slots__ = ("_gate", "signalled")

    def __init__(self) -> None:
        self._gate: threading.Lock | None = None  # held while not signalled; who drives needs none
        self.signalled = False  # since `rearm`

    def signal(self) -> None:
        """Driver's lock held."""
        if not self.signalled:
            self.signalled = True
            if self._gate is not None:
                self._gate.release()

    def gate(self) -> threading.Lock:
        """Driver's lock held: what can be acquired once this is signalled."""
        if self._gate is None:
            self._gate = threading.Lock()
            if not self.signalled:
                self._gate.acquire()
        return self._gate

    def rearm(self) -> None:
        """Driver's lock held: be ready for the next signal."""
        if self.signalled:
            self.signalled = False
            if self._gate is not None:
                self._gate.acquire(blocking=False)


class Companion(Protocol):
    """Descriptors that whoever drives looks after beside the UDP sockets: those of bridges. Lock held throughout."""

    @property
    def pending(self) -> bool:
        """Whether `serve` has something to do at once."""

    def serve(self) -> None:
        """Do what is due, without waiting; the engine is pumped afterwards."""

    def next_time(self) -> float | None:
        """When to call `serve` although nothing happened; None: not at all."""

    def descriptors(self) -> tuple[list[Any], list[Any]]:
        """What a poll has to watch: for reading, for writing."""

    def collect(self) -> None:
        """After a poll: note what is ready."""

    def close(self) -> None:
        """The tunnel ends."""

    def abandon(self) -> None:
        """Close the descriptors, and nothing more."""


class SyncDriver(BaseDriver):
    """Driven by the threads that wait, and by one of its own while none does or while others wait too.

    Attributes:
        bridges: what else there is to serve; set once, with the lock held.
    """

    takes_turns = False

    def __init__(self, engine: Engine, sockets: UdpSockets, on_unanswered: Callable[[Peer], None]) -> None:
        super().__init__(engine, sockets, on_unanswered)
        self._driver: object | None = None  # who receives: a waiter, or this driver itself for its thread
        self._waiters: dict[_Waiter, None] = {}  # threads; any of them can drive
        self._loops_waiting = 0  # tasks of event loops, and bridges, neither of which can
        self.bridges: Companion | None = None
        # one each, for a caller that takes over from the thread polls before the thread has left its own poll
        self._thread_sleeper, self._caller_sleeper = Sleeper(), Sleeper()
        self._sleeping_until = -math.inf  # the driver's poll ends then at the latest; -inf: nobody polls
        self._polling: set[int] = set()  # threads in a poll, of whom one may have been relieved as driver
        self._unwatched: threading.Event | None = None  # set when they have left, after the end
        self._left_at = 0.0  # when the last caller stopped driving
        self._resting = False  # the thread sleeps until a caller that leaves wakes it
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name="httpx-wireguard", daemon=True)

    def start(self) -> None:
        """Let the background thread stand in from now on."""
        self._thread.start()

    # -- for callers

    def pump(self) -> None:
        """Send what is due and signal who waits for what changed. *Lock held.*"""
        if self.bridges is not None:
            self._notify()
            self.bridges.serve()  # first, so that one acknowledgment tells of the data and of the window
        self._send_due()
        self._notify()
        while self.bridges is not None and self.bridges.pending:
            self.bridges.serve()
            self._send_due()
            self._notify()
        if self._sleeping_until != -math.inf:
            timeout = self._next_timeout()
            if self._driver_is_signalled or (timeout is not None and timeout < self._sleeping_until):
                self.look_again()

    def wake(self, key: Hashable) -> None:
        super().wake(key)
        if self._sleeping_until != -math.inf and self._driver_is_signalled:
            self.look_again()

    @property
    def _driver_is_signalled(self) -> bool:
        """Whether what the driving caller waits for changed, by another thread's doing, while it polls."""
        return isinstance(self._driver, _Waiter) and self._driver.signalled

    def look_again(self) -> None:
        """End the poll of whoever drives, if one is under way. *Lock held.*"""
        if self._sleeping_until != -math.inf:
            (self._thread_sleeper if self._driver is self else self._caller_sleeper).wake()

    def _next_timeout(self) -> float | None:
        timeout = self.engine.next_timeout()
        if self.bridges is not None:
            theirs = self.bridges.next_time()
            if theirs is not None and (timeout is None or theirs < timeout):
                return theirs
        return timeout

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        """`Driver.wait` for threads: blocks instead of suspending. *Lock held.*

        The caller may drive the tunnel meanwhile. It must `pump` afterwards, for what it is about to read may open
        windows.
        """
        waiter = _Waiter()
        self._waiters[waiter] = None
        super().register(waiter, keys)
        try:
            while not ready():
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                self.check_usable()
                if self._driver is None or self._driver is self:
                    self._drive(waiter, ready, deadline)
                else:
                    self._sleep(waiter, deadline)
            return True
        finally:
            super().unregister(waiter, keys)
            del self._waiters[waiter]
            self._hand_over()

    def take_part(self) -> None:
        """Do the thread's work in passing: who writes much comes again soon, and to change threads costs more.

        The thread stands back until no writer has come for a while. *Lock held.*
        """
        if not isinstance(self._driver, _Waiter):
            self._receive_until(lambda: False)
            self._left_at = time.monotonic()

    def close_soon(self) -> None:
        """Close from the thread; takes no lock, so it may be called from a finalizer."""
        self._dropped = True
        self._thread_sleeper.wake()

    def close(self, error: WireGuardError) -> None:
        """Reset the connections, wake every waiter, end the thread. Idempotent; never waits for the far side.

        Afterwards the UDP port is free: the system keeps a socket while somebody polls it, so they have left.
        """
        with self.lock:
            if self.bridges is not None and not self._stopped:
                self.bridges.collect()
                self.pump()  # what their users wrote before this call goes out
            if not self._end_engine(error) or self._exiting:
                return
            self._signal_all()
            if self.bridges is not None:
                self.bridges.close()
            self._thread_sleeper.wake()
            self._caller_sleeper.wake()
            if self._polling - {threading.get_ident()}:  # a signal's handler runs within a poll
                self._unwatched = threading.Event()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=EXIT_PATIENCE)
        if self._unwatched is not None:
            self._unwatched.wait(EXIT_PATIENCE)
        self._close_sockets()

    def _close_sockets(self) -> None:
        if self.bridges is not None:
            self.bridges.abandon()
        self.sockets.close()
        self._thread_sleeper.close()
        self._caller_sleeper.close()

    # -- waiting

    def register(self, waiter: LoopWaiter, keys: Sequence[Hashable]) -> None:
        """A task of an event loop or a bridge waits: it cannot drive, so a thread has to, and at once. *Lock held.*"""
        super().register(waiter, keys)
        self._loops_waiting += 1
        if self._driver is None and not self._waiters:
            self._thread_sleeper.wake()

    def unregister(self, waiter: LoopWaiter, keys: Sequence[Hashable]) -> None:
        super().unregister(waiter, keys)
        self._loops_waiting -= 1

    def _sleep(self, waiter: _Waiter, deadline: float | None) -> None:
        gate, seconds = waiter.gate(), -1.0
        if deadline is not None:
            seconds = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        self.lock.release()
        try:
            gate.acquire(timeout=seconds)
        finally:
            self.lock.acquire()
            self._rest_at_exit()
            waiter.rearm()

    def _rest_at_exit(self) -> None:
        if self._exiting:
            self.lock.release()
            threading.Event().wait()

    def _hand_over(self) -> None:
        """A caller leaves: if nobody drives now, somebody who waits has to."""
        if self._driver is None:
            if self._waiters:
                next(iter(self._waiters)).signal()
            elif self._loops_waiting:
                self._thread_sleeper.wake()
            else:
                self._left_at = time.monotonic()
                if self._resting:
                    self._thread_sleeper.wake()

    # -- driving

    def _drive(self, waiter: _Waiter, ready: Callable[[], bool], deadline: float | None) -> None:
        """Drive until `ready()`, the deadline or the end of the tunnel."""
        if self._driver is self:
            self._thread_sleeper.wake()  # it polls: it stands back when it looks up
        self._driver = waiter
        self._sleeping_until = -math.inf
        try:
            drained = self._probably_empty
            while not self._stopped:
                if not drained:
                    drained = self._receive_until(ready)
                    if ready():
                        return  # without a pump: the caller reads first, so one acknowledgment tells of data and window
                self.pump()
                if ready() or (deadline is not None and time.monotonic() >= deadline):
                    return
                self._poll(self._caller_sleeper, deadline if drained else 0.0)
                drained = False
        finally:
            self._driver = None

    def _poll(self, sleeper: Sleeper, deadline: float | None) -> None:
        """Sleep, the lock free, until something arrives, a timer or the deadline is due, or somebody wakes us."""
        timer = self._next_timeout()
        until = math.inf if timer is None else timer
        if deadline is not None and deadline < until:
            until = deadline
        timeout = None if until == math.inf else max(until - time.monotonic(), 0.0)
        who, self._sleeping_until = self._driver, until
        if isinstance(who, _Waiter):
            who.rearm()
        readers: list[Any] = list(self.sockets)
        writers: list[Any] = []
        if self.bridges is not None:
            more, writers = self.bridges.descriptors()
            readers += more
        self._polling.add(threading.get_ident())
        self.lock.release()
        try:
            sleeper.sleep(readers, writers, timeout)
        finally:
            self.lock.acquire()
            self._rest_at_exit()
            self._polling.discard(threading.get_ident())
            if self._unwatched is not None and not self._polling:
                self._unwatched.set()
            sleeper.clear()
            if self._driver is who:
                self._sleeping_until = -math.inf
        if self._stopped:
            return
        if timer is not None and time.monotonic() >= timer:
            self._handle_timeout()
        if self.bridges is not None:
            self.bridges.collect()

    def _run(self) -> None:
        """The background thread. It rests while one caller waits long, as for the next event of a stream."""
        watch, seen = GRACE, None
        self.lock.acquire()
        try:
            while not self._stopped and not self._dropped:
                if self._driver is None and not self._waiters and self._is_wanted():
                    watch = GRACE
                    self._stand_in()
                else:
                    rests = self._driver is not None and self._driver is seen and watch == LONGEST_WATCH
                    seen = self._driver
                    self._watch(None if rests else watch)
                    watch = min(2 * watch, LONGEST_WATCH) if self._driver is not None else GRACE
        except Exception:
            _log.exception("the tunnel's thread failed; connections go on only while a caller waits")
        finally:
            self.lock.release()
        if self._dropped:
            self.close(TunnelClosed("the tunnel was dropped without being closed"))

    def _is_wanted(self) -> bool:
        return self._loops_waiting > 0 or time.monotonic() >= self._left_at + GRACE

    def _stand_in(self) -> None:
        """Drive until a caller takes over, or takes part."""
        self._driver = self
        try:
            while self._driver is self and self._is_wanted() and not self._stopped and not self._dropped:
                drained = self._receive_until(lambda: False)
                self.pump()
                self._poll(self._thread_sleeper, None if drained else 0.0)
        finally:
            if self._driver is self:
                self._driver = None

    def _watch(self, seconds: float | None) -> None:
        """Leave the callers alone for a while, or until an event loop needs somebody who drives; None: rest."""
        self._resting = seconds is None
        self.lock.release()
        try:
            self._thread_sleeper.sleep([], [], seconds)
        finally:
            self.lock.acquire()
            self._resting = False
            self._thread_sleeper.clear()
