"""What every driver does: it owns the UDP sockets and the clock of one engine, and knows who waits for what."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, cast

from httpx_wireguard._drivers import endpoints
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import WireGuardError, renewed
from httpx_wireguard._wireguard.peer import Peer
from httpx_wireguard._wireguard.runs import DatagramRun

READS_PER_STEP = 8  # coalesced reads before timers and sends get their turn
BULK = 1 << 15  # bytes of a read behind which there is probably more, to be acknowledged together
READ_AHEAD = 1 / 16  # of what the socket holds, read before it is acknowledged; with much more the far side would wait
EXIT_PATIENCE = 1.0  # seconds that the interpreter's exit, or a tunnel's end, waits for threads that are at work
FRESH = 0.0005  # seconds for which "nothing was waiting" is believed by `catch_up`
STREAM_GAP = 0.0005  # seconds; reads closer to each other belong to a stream, in which datagrams are worth joining


class Waiter(Protocol):
    """One caller that sleeps until something it waits for changed."""

    def signal(self) -> None:
        """Lock held; from any thread."""


class _ExitLock:
    """The lock of the one thread that ends the interpreter; any other stops at it for ever."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()

    def acquire(self) -> None:
        if threading.get_ident() != self._owner:
            threading.Event().wait()

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        pass


class BaseDriver(ABC):
    """One engine, its UDP sockets, and the register of those who wait.

    `lock` guards the engine, its sockets and everything here; methods marked *lock held* want it held by the caller.
    """

    def __init__(self, engine: Engine, sockets: UdpSockets, on_unanswered: Callable[[Peer], None]) -> None:
        """`on_unanswered`: told, with the lock held, of a peer that left several initiations unanswered."""
        self.engine = engine
        self.sockets = sockets
        self.lock = threading.Lock()
        self._on_unanswered = on_unanswered
        self._by_key: dict[Hashable, list[Waiter]] = {}
        self._observers: list[Waiter] = []  # they wait for something that is no socket
        self._last_empty_read = self._last_read = -math.inf
        self._probably_empty = False  # the last read brought nothing, or a datagram alone
        self._read_ahead = engine.stack.socket_capacity * READ_AHEAD  # bytes
        self._stopped = False
        self._exiting = False
        self._racing: dict[tuple[Any, ...], tuple[Peer, float | None, list[tuple[Any, ...]]]] = {}

    @property
    def exiting(self) -> bool:
        """Whether the interpreter ends, and `lock` stops everybody but the one who ends it."""
        return self._exiting

    now = staticmethod(time.monotonic)

    @abstractmethod
    def start(self) -> None:
        """Look after the sockets and the timers from now on."""

    @abstractmethod
    def pump(self) -> None:
        """Send what is due, signal who waits for what changed, and have the next timer run. *Lock held.*"""

    @abstractmethod
    def close(self, error: WireGuardError) -> None:
        """Reset the connections, wake every waiter. Idempotent; never waits for the far side."""

    @abstractmethod
    def close_soon(self) -> None:
        """Close as soon as may be; takes no lock, so it may be called from a finalizer."""

    @abstractmethod
    def _close_sockets(self) -> None:
        """Close every descriptor of this driver."""

    def abandon(self, error: WireGuardError) -> None:
        """After a fork, in the child: the tunnel is the parent's. Nothing is sent; the keys are forgotten."""
        self.lock = threading.Lock()  # the parent's may have been held by a thread that is not here
        self._stopped = True
        self._by_key.clear()  # they wait in the parent; to signal them takes locks that nobody here may release
        self._observers.clear()
        self._close_sockets()  # first, for whatever the parent's threads were in the middle of, nothing leaves now
        self.engine.destroy_keys()
        self.engine.close(self.now(), error)  # so that the sockets have an error to tell; its farewell is never fetched

    def prepare_exit(self) -> None:
        """The interpreter ends: only daemon threads are left beside the caller. They stop where they are, as in any
        blocking call, instead of waking up to an error that nobody is there to catch."""
        self.lock.acquire(timeout=EXIT_PATIENCE)  # for good
        self._exiting = True
        self.lock = cast(threading.Lock, _ExitLock())

    def check_usable(self) -> None:
        """Raise what ended the tunnel, if it ended; also when whoever looked after it is gone. *Lock held.*"""
        if self.engine.closed_by is not None:
            raise renewed(self.engine.closed_by)

    def race(self, peer: Peer, others: list[tuple[Any, ...]]) -> None:
        """Until the peer's next handshake is done, send what goes to its endpoint to these addresses of its name too.

        They are copies of one message, of which the peer accepts the first; its answer moves the endpoint there. So a
        name with addresses of both families costs no time when one of them is dead. *Lock held.*
        """
        if others and peer.endpoint is not None:
            self._racing[peer.endpoint] = (peer, peer.last_handshake, others)

    def catch_up(self) -> None:
        """Take in what the UDP socket holds, so that a readiness flag is exact. *Lock held.*

        Raises:
            TunnelClosed: the tunnel ended; after a fork, the sockets themselves do not know.
        """
        if self.engine.closed_by is not None:
            raise renewed(self.engine.closed_by)
        if time.monotonic() - self._last_empty_read > FRESH:
            found = False
            while self._receive():
                found = True
            if found:
                self.pump()

    # -- waiting

    def wake(self, key: Hashable) -> None:
        """Let everyone who waits on `key` look again. *Lock held.*"""
        for waiter in self._by_key.get(key, ()):
            waiter.signal()

    def register(self, waiter: Waiter, keys: Sequence[Hashable]) -> None:
        """Signal `waiter` whenever one of `keys` changes; with none, whenever anything does. *Lock held.*"""
        for key in keys:
            self._by_key.setdefault(key, []).append(waiter)
        if not keys:
            self._observers.append(waiter)

    def unregister(self, waiter: Waiter, keys: Sequence[Hashable]) -> None:
        """Undo `register`. *Lock held.*"""
        for key in keys:
            waiting = self._by_key.get(key, [])
            if waiter in waiting:  # unless a fork made us forget it
                waiting.remove(waiter)
            if not waiting:
                self._by_key.pop(key, None)
        if not keys and waiter in self._observers:
            self._observers.remove(waiter)

    def _notify(self) -> None:
        for woken in self.engine.take_woken():
            self.wake(woken)
        for waiter in self._observers:
            waiter.signal()

    def _signal_all(self) -> None:
        for waiting in (*self._by_key.values(), self._observers):
            for waiter in waiting:
                waiter.signal()

    # -- the sockets and the timers

    def _receive_until(self, ready: Callable[[], bool]) -> bool:
        """Take in what has arrived, until `ready()` or a limit; returns whether a poll would tell of anything more.

        A full read is seldom the last: others are taken before the reader has the first, where the socket is large, so
        that one acknowledgment and one round of sending do for all.
        """
        total = 0
        for _ in range(READS_PER_STEP):
            received = self._receive()
            if not received:
                return True
            total += received
            self._notify()
            if (received < BULK or total >= self._read_ahead) and ready():
                break
            if self._probably_empty:
                return True
        return False

    def _receive(self) -> int:
        """One read of each UDP socket; returns how many bytes came, at least one for each datagram."""
        received, alone = 0, True
        now = time.monotonic()
        in_stream = now - self._last_read < STREAM_GAP
        for one in self.sockets:
            batch = one.receive(in_stream)
            if batch is not None:
                data, segment_size, source, ecn = batch
                received += len(data) or 1
                alone = alone and len(data) <= segment_size and not one.holds
                self.engine.receive_datagrams(data, segment_size, source, now, ecn=ecn)
            if one.has_errors:
                for endpoint, error in one.take_errors():
                    self.engine.on_send_error(endpoint, error)
        if received:
            self._last_read = now
        else:
            self._last_empty_read = now
        self._probably_empty = alone
        return received

    def _handle_timeout(self) -> None:
        """Run the engine's timers that are due."""
        self.engine.handle_timeout(time.monotonic())
        for peer in self.engine.device.take_unanswered():
            self._on_unanswered(peer)

    def _send_due(self) -> None:
        engine = self.engine
        while engine.output_due and (runs := engine.datagrams_to_send(time.monotonic())):
            for run in runs:
                self._send(run)

    def _send(self, run: DatagramRun) -> None:
        self._send_to(run.endpoint, run)
        if run.endpoint in self._racing:
            peer, handshake_before, others = self._racing[run.endpoint]
            if peer.last_handshake != handshake_before:
                del self._racing[run.endpoint]
                return
            for other in others:
                self._send_to(other, run)

    def _send_to(self, target: tuple[Any, ...], run: DatagramRun) -> None:
        try:
            self.sockets.for_endpoint(target).send(run.buffers, run.segment_size, target, run.ecn)
        except OSError as error:
            self.engine.on_send_error(target, error)

    def _end_engine(self, error: WireGuardError) -> bool:
        """The part of closing that all drivers share; whether it had not been done before. *Lock held.*"""
        if self._stopped:
            return False
        self._stopped = True
        handshakes = [peer.last_handshake for peer in self.engine.device.peers if peer.last_handshake is not None]
        endpoints.remember(self.engine.config, max(handshakes, default=-math.inf))
        self.engine.close(time.monotonic(), error)
        self._send_due()
        self.engine.destroy_keys()
        return True
