"""The driver for threads: whoever waits drives, and a thread stands in while nobody waits.

A caller whose socket is not ready becomes the *driver*: it receives, runs the engine and sends until its own socket is
ready. Others that wait sleep, each on a lock of its own, and are signalled when their socket changes, or when the
driver leaves and one of them has to take over. A background thread drives while no caller waits: acknowledgments,
keep-alives, retransmissions and the far side's FINs must go on.

One rule makes lost wake-ups impossible. Whenever `lock` is free, one of these holds: somebody drives; nobody waits; or
a waiter has been signalled and is on its way to take over.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from httpx_wireguard._drivers.udp import UdpSocket, UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.stack import Socket
from httpx_wireguard._wireguard.peer import Peer

GRACE = 0.001  # seconds that the thread leaves to a caller who will be back at once, as in a loop of small requests
LONGEST_WATCH = 0.032  # seconds between the thread's looks while callers drive; doubles from GRACE
READS_PER_STEP = 8  # coalesced reads before timers and sends get their turn
FRESH = 0.0005  # seconds for which "nothing was waiting" is believed by `catch_up`

_log = logging.getLogger("httpx_wireguard.driver")


class _Waiter:
    """One caller that waits; `signal` and `sleep` pair up whichever comes first."""

    __slots__ = ("_gate", "_signalled")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._signalled = False

    def signal(self) -> None:
        """Driver's lock held."""
        if not self._signalled:
            self._signalled = True
            self._gate.release()

    def sleep(self, timeout: float | None) -> None:
        """Until signalled or the timeout; the driver's lock is not held."""
        self._gate.acquire(timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))

    def rearm(self) -> None:
        """Driver's lock held: be ready for the next signal."""
        if self._signalled:
            self._signalled = False
            self._gate.acquire(blocking=False)


class _WakeUp:
    """Ends a poll from another thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def set(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already
            self._writer.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(4096)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class SyncDriver:
    """Owns the UDP sockets, the clock, the lock and the wake-ups of one engine.

    `lock` guards the engine, its sockets and everything here; methods marked *lock held* want it held by the caller.
    """

    def __init__(self, engine: Engine, sockets: UdpSockets, on_unanswered: Callable[[Peer], None]) -> None:
        """`on_unanswered`: told, with the lock held, of a peer that left several initiations unanswered."""
        self.engine = engine
        self._on_unanswered = on_unanswered
        self.lock = threading.Lock()
        self.sockets = sockets
        self._driver: object | None = None  # who receives: a waiter, or this driver itself for its thread
        self._waiters: dict[_Waiter, None] = {}
        self._by_socket: dict[Socket, list[_Waiter]] = {}
        self._observers: list[_Waiter] = []  # they wait for something that is no socket
        # one each, for a caller that takes over from the thread polls before the thread has left its own poll
        self._thread_wake_up, self._caller_wake_up = _WakeUp(), _WakeUp()
        self._sleeping_until = -math.inf  # the driver's poll ends then at the latest; -inf: nobody polls
        self._left_at = 0.0  # when the last caller stopped driving
        self._last_empty_read = -math.inf
        self._stopped = False
        self._exiting = False
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name="httpx-wireguard", daemon=True)
        self._racing: dict[tuple[Any, ...], tuple[Peer, float | None, list[tuple[Any, ...]]]] = {}

    @staticmethod
    def now() -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def start(self) -> None:
        """Let the background thread stand in from now on."""
        self._thread.start()

    def race(self, peer: Peer, others: list[tuple[Any, ...]]) -> None:
        """Until the peer's next handshake is done, send what goes to its endpoint to these addresses of its name too.

        They are copies of one message, of which the peer accepts the first; its answer moves the endpoint there. So a
        name with addresses of both families costs no time when one of them is dead. *Lock held.*
        """
        if others and peer.endpoint is not None:
            self._racing[peer.endpoint] = (peer, peer.last_handshake, others)

    # -- for callers

    def pump(self) -> None:
        """Send what is due and signal who waits for what changed. *Lock held.*"""
        self._send_due()
        self._notify()
        if self._sleeping_until != -math.inf:
            timeout = self.engine.next_timeout()
            if timeout is not None and timeout < self._sleeping_until:
                (self._thread_wake_up if self._driver is self else self._caller_wake_up).set()

    def wait(self, ready: Callable[[], bool], sockets: Sequence[Socket], deadline: float | None) -> bool:
        """Wait until `ready()`, looked at whenever one of `sockets` changed; returns `ready()`. *Lock held.*

        The caller may drive the tunnel meanwhile; the lock is free while it sleeps. It must `pump` afterwards, for
        what it is about to read may open windows.

        Args:
            sockets: none: look after everything that happens.
            deadline: on the clock of `now`; None waits for ever.
        """
        if ready():
            return True
        waiter = _Waiter()
        self._register(waiter, sockets)
        try:
            while not ready():
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                if self.engine.closed_by is not None:
                    raise self.engine.closed_by
                if self._driver is None or self._driver is self:
                    self._drive(waiter, ready, deadline)
                else:
                    self._sleep(waiter, deadline)
            return True
        finally:
            self._unregister(waiter, sockets)
            self._hand_over()

    def catch_up(self) -> None:
        """Take in what the UDP socket holds, so that a readiness flag is exact. *Lock held.*"""
        if not self._stopped and time.monotonic() - self._last_empty_read > FRESH:
            while self._receive():
                pass
            self.pump()

    def close_soon(self) -> None:
        """Close from the thread; takes no lock, so it may be called from a finalizer."""
        self._dropped = True
        self._thread_wake_up.set()

    def prepare_exit(self) -> None:
        """The interpreter ends: only daemon threads can still wait. They stop where they are, as in any blocking call,
        instead of waking up to an error that nobody is there to catch."""
        with self.lock:
            self._exiting = True

    def close(self, error: WireGuardError | None = None) -> None:
        """Reset the connections, wake every waiter, end the thread. Idempotent; never waits for the far side."""
        with self.lock:
            if self._stopped:
                return
            self._stopped = True
            self.engine.close(time.monotonic(), error)
            self._send_due()
            self.engine.destroy_keys()
            if self._exiting:
                return
            for waiter in self._waiters:
                waiter.signal()
            self._thread_wake_up.set()
            self._caller_wake_up.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)
        self._close_sockets()

    def abandon(self, error: WireGuardError) -> None:
        """After a fork, in the child: the tunnel is the parent's. Nothing is sent; the keys are forgotten."""
        self.lock = threading.Lock()  # the parent's may have been held by a thread that is not here
        self._stopped = True
        self.engine.closed_by = error
        self.engine.destroy_keys()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self.sockets.close()
        self._thread_wake_up.close()
        self._caller_wake_up.close()

    # -- waiting

    def _register(self, waiter: _Waiter, sockets: Sequence[Socket]) -> None:
        self._waiters[waiter] = None
        for one in sockets:
            self._by_socket.setdefault(one, []).append(waiter)
        if not sockets:
            self._observers.append(waiter)

    def _unregister(self, waiter: _Waiter, sockets: Sequence[Socket]) -> None:
        del self._waiters[waiter]
        for one in sockets:
            waiting = self._by_socket[one]
            waiting.remove(waiter)
            if not waiting:
                del self._by_socket[one]
        if not sockets:
            self._observers.remove(waiter)

    def _sleep(self, waiter: _Waiter, deadline: float | None) -> None:
        self.lock.release()
        try:
            waiter.sleep(None if deadline is None else deadline - time.monotonic())
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
            else:
                self._left_at = time.monotonic()

    def _notify(self) -> None:
        for woken in self.engine.take_woken():
            for waiter in self._by_socket.get(woken, ()):
                waiter.signal()
        for waiter in self._observers:
            waiter.signal()

    # -- driving

    def _drive(self, waiter: _Waiter, ready: Callable[[], bool], deadline: float | None) -> None:
        """Drive until `ready()`, the deadline or the end of the tunnel."""
        if self._driver is self:
            self._thread_wake_up.set()  # it polls: it stands back when it looks up
        self._driver = waiter
        self._sleeping_until = -math.inf
        try:
            while not self._stopped:
                drained = self._receive_until(ready)
                if ready():
                    return  # without a pump: the caller reads first, and one acknowledgment tells of data and window
                self.pump()
                if ready() or (deadline is not None and time.monotonic() >= deadline):
                    return
                self._poll(self._caller_wake_up, deadline if drained else 0.0)
        finally:
            self._driver = None

    def _receive_until(self, ready: Callable[[], bool]) -> bool:
        """Take in what has arrived, up to a limit; returns whether that was all."""
        for _ in range(READS_PER_STEP):
            if not self._receive():
                return True
            self._notify()
            if ready():
                break
        return False

    def _poll(self, wake_up: _WakeUp, deadline: float | None) -> None:
        """Sleep, the lock free, until something arrives, a timer or the deadline is due, or somebody wakes us."""
        timer = self.engine.next_timeout()
        until = min((t for t in (timer, deadline) if t is not None), default=math.inf)
        timeout = None if until == math.inf else max(until - time.monotonic(), 0.0)
        who, self._sleeping_until = self._driver, until
        readers = [wake_up, *self.sockets]
        self.lock.release()
        try:
            _wait_readable(readers, timeout)
        finally:
            self.lock.acquire()
            self._rest_at_exit()
            wake_up.clear()
            if self._driver is who:
                self._sleeping_until = -math.inf
        now = time.monotonic()
        if not self._stopped and timer is not None and now >= timer:
            self.engine.handle_timeout(now)
            for peer in self.engine.device.take_unanswered():
                self._on_unanswered(peer)

    def _run(self) -> None:
        """The background thread."""
        watch = GRACE
        self.lock.acquire()
        try:
            while not self._stopped and not self._dropped:
                if self._driver is None and not self._waiters and time.monotonic() >= self._left_at + GRACE:
                    watch = GRACE
                    self._stand_in()
                else:
                    self._watch(watch)
                    watch = min(2 * watch, LONGEST_WATCH) if self._driver is not None else GRACE
        except Exception:
            _log.exception("the tunnel's thread failed; connections go on only while a caller waits")
        finally:
            self.lock.release()
        if self._dropped:
            self.close()

    def _stand_in(self) -> None:
        """Drive until a caller takes over."""
        self._driver = self
        try:
            while self._driver is self and not self._stopped and not self._dropped:
                drained = self._receive_until(lambda: False)
                self.pump()
                self._poll(self._thread_wake_up, None if drained else 0.0)
        finally:
            if self._driver is self:
                self._driver = None

    def _watch(self, seconds: float) -> None:
        """Leave the callers alone for a while."""
        self.lock.release()
        try:
            time.sleep(seconds)
        finally:
            self.lock.acquire()

    # -- the sockets

    def _receive(self) -> bool:
        """One read of each UDP socket; returns whether there was anything."""
        found = False
        now = time.monotonic()
        for one in self.sockets:
            batch = one.receive()
            if batch is not None:
                found = True
                self.engine.receive_datagrams(*batch, now)
            for endpoint, error in one.take_errors():
                self.engine.on_send_error(endpoint, error)
        if not found:
            self._last_empty_read = now
        return found

    def _send_due(self) -> None:
        while runs := self.engine.datagrams_to_send(time.monotonic()):
            for endpoint, segment_size, buffers in runs:
                self._send(endpoint, segment_size, buffers)

    def _send(self, endpoint: tuple[Any, ...], segment_size: int, buffers: list[bytes]) -> None:
        targets = [endpoint]
        if endpoint in self._racing:
            peer, handshake_before, others = self._racing[endpoint]
            if peer.last_handshake == handshake_before:
                targets += others
            else:
                del self._racing[endpoint]
        for target in targets:
            try:
                self.sockets.for_endpoint(target).send(buffers, segment_size, target)
            except OSError as error:
                self.engine.on_send_error(target, error)


def _wait_readable(readers: Sequence[_WakeUp | UdpSocket], timeout: float | None) -> None:
    """Until one of them is readable or broken, or `timeout` seconds passed."""
    with contextlib.suppress(ValueError, OSError):  # closed under our feet: the caller looks and sees
        if not hasattr(select, "poll"):
            select.select(readers, [], [], timeout)
            return
        poller = select.poll()
        for reader in readers:
            poller.register(reader, select.POLLIN)
        poller.poll(None if timeout is None else math.ceil(timeout * 1000))
