"""Ordinary sockets over a tunnel's TCP connections, for libraries that want a descriptor.

The user gets one end of a `socket.socketpair`; a `Bridge` moves bytes between its *far* end and the TCP socket of the
engine, and never waits. Whoever drives the tunnel serves the bridges too: for threads the driver itself, whose poll
watches the far ends next to the UDP sockets, so that there is no further thread; in an event loop its own callbacks.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from httpx_wireguard._deadlines import Deadlines
from httpx_wireguard._drivers.base import BaseDriver, Waiter
from httpx_wireguard._drivers.loops import LoopDriver, running_library
from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._streams import AsyncTcpStream, StreamSocket

if TYPE_CHECKING:
    import asyncio

CHUNK = 262_144  # bytes moved at once; at most the stack's WRITE_LOW_WATER
CHECK = 5.0  # seconds between looks at an end that nothing watches: it was half-closed, or the far side takes no data
LINGER = 60.0  # seconds that data of a closed socket waits for a far side that takes none; as the stack's own orphans

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no time


class BridgedSocket(StreamSocket, Protocol):
    """A TCP socket of the engine, as a bridge uses it."""

    def shutdown_write(self, now: float) -> None: ...


class TunnelSocket(socket.socket):
    """The user's end: it answers for the connection inside the tunnel, not for the pair that it is one end of."""

    __slots__ = ("_local", "_remote")

    _local: tuple[Any, ...]
    _remote: tuple[Any, ...]

    def getpeername(self) -> Any:
        """The address and port connected to."""
        return self._remote if self.fileno() >= 0 else super().getpeername()

    def getsockname(self) -> Any:
        """The tunnel's own address and port."""
        return self._local if self.fileno() >= 0 else super().getsockname()

    def setsockopt(self, level: int, *arguments: Any) -> None:
        """As any socket's; options of TCP are accepted and change nothing, for the pair speaks no TCP."""
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *arguments)

    def dup(self) -> TunnelSocket:
        """A second descriptor of the same connection."""
        return _with_addresses(super().dup(), self._local, self._remote)


def _with_addresses(sock: TunnelSocket, local: tuple[Any, ...], remote: tuple[Any, ...]) -> TunnelSocket:
    sock._local, sock._remote = local, remote
    return sock


def _socket_address(address: tuple[str, int]) -> tuple[Any, ...]:
    return (*address, 0, 0) if ":" in address[0] else address


class Bridge(Waiter):
    """One connection between a TCP socket of the engine and the far end of a pair. Lock held throughout.

    Attributes:
        far: the descriptor to watch.
        watched: for what it is watched now, kept by whoever watches.
        check_at: when to call `step` although nothing happened, or None.
        finished: the connection is closed, and nobody needs `far` any more.
    """

    def __init__(
        self, sock: BridgedSocket, near: socket.socket, far: socket.socket, mark: Callable[[Bridge], None]
    ) -> None:
        self.sock = sock
        self.far = far
        self.watched = 0
        self.check_at: float | None = None
        self.finished = False
        self._mark = mark
        self._near = near.fileno(), _identity(near.fileno())
        self._undelivered = memoryview(b"")  # received, not yet taken by the far end
        self._unread = True  # the far end may have something to read
        self._delivered_all = False  # the far side's FIN was passed on
        self._forwarded_all = False  # the user ended its half, or TCP takes nothing any more
        self._reader_gone = False  # the user closed, or shut its reading down
        self._failed = False
        self._abort_due = False
        self._stuck_since: float | None = None

    @property
    def interest(self) -> int:
        """What to watch `far` for: `selectors.EVENT_READ` and `EVENT_WRITE`."""
        if self.finished:
            return 0
        reading = not self._forwarded_all and not self._unread
        return (_READ if reading else 0) | (_WRITE if self._undelivered else 0)

    def signal(self) -> None:
        """`Waiter.signal`: the TCP socket changed."""
        self._mark(self)

    def on_ready(self, events: int) -> None:
        """`far` is ready for these."""
        self._unread = self._unread or bool(events & _READ)

    def step(self, buffer: memoryview, now: float) -> bool:
        """Move what can be moved without waiting; returns whether to call again once what is due has been sent.

        Args:
            buffer: room to read into; free again afterwards.
        """
        if self._abort_due:
            self._end(now, abort=True)
        if self.finished:
            return False
        self._deliver(now)
        self._forward(buffer, now)
        if self.sock.error is not None:
            self._on_error()
        self._check(now)
        if self._is_over():
            self._end(now)
        return self._abort_due

    def end(self, now: float) -> None:
        """The tunnel was closed; when `far` is, too, the user wakes with an error."""
        self._on_error()
        self._end(now)

    # -- towards the user

    def _deliver(self, now: float) -> None:
        while not self._delivered_all and not self.finished:
            if not self._undelivered:
                if not self.sock.readable:
                    return
                try:
                    data = self.sock.receive(CHUNK, now)
                except WireGuardError:
                    self._on_error()
                    self._end(now)
                    return
                if not data:
                    self._delivered_all = True
                    with contextlib.suppress(OSError):  # the user may be gone
                        self.far.shutdown(socket.SHUT_WR)
                    return
                self._undelivered = memoryview(data)
            if not self._hand_over():
                return

    def _hand_over(self) -> bool:
        """Whether the far end, or nobody, took all that was received."""
        try:
            sent = 0 if self._reader_gone else self.far.send(self._undelivered)
        except BlockingIOError:
            return False
        except OSError:
            sent, self._reader_gone = 0, True
        self._undelivered = self._undelivered[len(self._undelivered) if self._reader_gone else sent :]
        return not self._undelivered

    # -- towards the network

    def _forward(self, buffer: memoryview, now: float) -> None:
        sock = self.sock
        while self._unread and not self._forwarded_all and sock.writable and sock.error is None:
            count = self._read(buffer, now)
            if count:
                sock.send(buffer[:count], now)  # all of it: no writable socket takes less than `CHUNK`
                self._stuck_since = None

    def _read(self, buffer: memoryview, now: float) -> int:
        try:
            count = self.far.recv_into(buffer)
        except BlockingIOError:
            self._unread = False
            return 0
        except OSError:  # the user closed, and left unread what had come: RFC 2525 2.17 wants a reset
            self._unread, self._forwarded_all, self._reader_gone, self._abort_due = False, True, True, True
            return 0
        self._unread = count == len(buffer)  # else it is empty for now, and watched again
        if not count:
            self._forwarded_all = True
            self.sock.shutdown_write(now)
            self._look_for_reader()
        return count

    # -- the ends

    def _look_for_reader(self) -> None:
        """A half-closed socket can be told from a closed one by writing: nothing is enough."""
        try:
            self.far.send(b"")
        except BlockingIOError:
            pass
        except OSError:
            self._reader_gone = True

    def _check(self, now: float) -> None:
        """Nothing watches the user's end while it is at its end of file, or while TCP is full: look now and then."""
        if self.finished or self._abort_due or not (self._forwarded_all or self._unread):
            self.check_at = None
        elif self.check_at is None:
            self.check_at = now + CHECK
        elif now >= self.check_at:
            self.check_at = now + CHECK
            self._look_for_reader()
            if self._reader_gone and not self._delivered_all and self._unread:
                self._stuck_since = now if self._stuck_since is None else self._stuck_since
                if now >= self._stuck_since + LINGER:
                    self._end(now, abort=True)

    def _is_over(self) -> bool:
        over = (self._delivered_all or self._reader_gone) and self._forwarded_all
        return over and not self.finished and not self._abort_due

    def _on_error(self) -> None:
        """The connection is lost. The user's writes fail from now on; what has come can be read before the error."""
        if self._failed:
            return
        self._failed = self._forwarded_all = True
        self._unread = False
        if not self._delivered_all and not self.sock.at_eof:
            self._arrange_reset()
        with contextlib.suppress(OSError):
            self.far.shutdown(socket.SHUT_RD)

    def _arrange_reset(self) -> None:
        """Let the user read an error after the data, where it would read a clean end of file.

        Linux resets the near end of a pair when the far end is closed with something unread. So that there is, one
        byte is written through a copy of the user's own descriptor, if it is still there. Where pairs are loopback
        TCP (Windows), a socket can be told to reset.
        """
        if self.far.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            return
        number, identity = self._near
        with contextlib.suppress(OSError):  # closed, full, or at its end: then there is nothing to be done
            if _identity(number) == identity:
                with socket.socket(fileno=os.dup(number)) as copy:
                    if _identity(copy.fileno()) == identity:
                        copy.send(b"\0", getattr(socket, "MSG_DONTWAIT", 0))

    def _end(self, now: float, abort: bool = False) -> None:
        self.finished = True
        self.check_at = None
        self._undelivered = memoryview(b"")
        if abort:
            self.sock.abort(now)
        else:
            self.sock.close(now)


def _identity(descriptor: int) -> tuple[int, int]:
    """What a descriptor stands for, however often its number is used again."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class Bridges(ABC):
    """All bridges of one driver."""

    def __init__(self, driver: BaseDriver) -> None:
        self._driver = driver
        self._buffer = memoryview(bytearray(CHUNK))
        self._bridges: set[Bridge] = set()
        self._due: set[Bridge] = set()
        self._checks: Deadlines[Bridge] = Deadlines()  # when to look at those that nothing watches

    def open(self, stream: AsyncTcpStream, kind: type[socket.socket] = TunnelSocket) -> socket.socket:
        """The connection as a socket. The stream must not be used any more; it is closed on failure.

        Args:
            kind: `TunnelSocket`, or `socket.socket` for whoever accepts no subclass of it.

        Raises:
            OSError: no descriptor is left.
            TunnelClosed: the tunnel is closed.
        """
        try:
            near, far = _pair()
        except BaseException:
            stream.close()
            raise
        try:
            self._connect(stream, near, far)
        except BaseException:
            stream.close()
            near.close()
            far.close()
            raise
        if kind is not TunnelSocket:
            return near
        local, remote = (_socket_address(stream.get_extra_info(end)) for end in ("client_addr", "server_addr"))
        sock = TunnelSocket(near.family, near.type, near.proto, fileno=near.detach())
        return _with_addresses(sock, local, remote)

    def _connect(self, stream: AsyncTcpStream, near: socket.socket, far: socket.socket) -> None:
        bridge = Bridge(stream._socket, near, far, self._mark)  # type: ignore[arg-type]  # the engine's, always
        with self._driver.lock:
            self._driver.check_usable()
            self._driver.register(bridge, (bridge.sock,))
            self._bridges.add(bridge)
            self._mark(bridge)
            self._driver.pump()

    def next_time(self) -> float | None:
        """When to step although nothing happened; None: not at all."""
        return self._checks.next()

    def close(self) -> None:
        """The tunnel ends: every user wakes. Lock held."""
        for bridge in self._bridges:
            bridge.end(self._driver.now())
            if bridge.watched:
                self._watch(bridge)
        self.abandon()

    def abandon(self) -> None:
        """Close the far ends and leave it at that, as a forked child does with its copies of them."""
        for bridge in self._bridges:
            bridge.finished = True
            bridge.far.close()
        self._bridges.clear()
        self._due.clear()
        self._checks = Deadlines()

    def _mark(self, bridge: Bridge) -> None:
        """Have a bridge stepped soon. Lock held; from any thread."""
        self._due.add(bridge)

    def _step_due(self) -> None:
        now = self._driver.now()
        due, self._due = self._due, set()
        due.update(self._checks.take_due(now))
        for bridge in due & self._bridges:
            if bridge.step(self._buffer, now):
                self._due.add(bridge)
            if bridge.interest != bridge.watched:
                self._watch(bridge)
            self._checks.set(bridge, bridge.check_at)
            if bridge.finished:
                self._bridges.discard(bridge)
                self._driver.unregister(bridge, (bridge.sock,))
                bridge.far.close()

    @abstractmethod
    def _watch(self, bridge: Bridge) -> None:
        """Watch it for its `interest` from now on; when that is nothing, its descriptor may be closed next."""


def _pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    far.setblocking(False)
    for end in near, far:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    return near, far


class ThreadBridges(Bridges):
    """Served by whoever drives a `SyncDriver`, in its `pump`; its poll watches one descriptor for all far ends."""

    def __init__(self, driver: SyncDriver) -> None:
        super().__init__(driver)
        self._sync_driver = driver
        self._selector = selectors.DefaultSelector()
        self._descriptor = getattr(self._selector, "fileno", None)  # none on Windows

    @property
    def pending(self) -> bool:
        """Whether `serve` has something to do at once."""
        return bool(self._due)

    def serve(self) -> None:
        """Move what can be moved."""
        self._step_due()

    def descriptors(self) -> tuple[list[Any], list[Any]]:
        """What a poll has to watch: for reading, for writing."""
        if self._descriptor is not None:
            return [self._selector], []
        watched = self._selector.get_map().values()
        return [k.fileobj for k in watched if k.events & _READ], [k.fileobj for k in watched if k.events & _WRITE]

    def collect(self) -> None:
        """After a poll: what is ready is due."""
        for key, events in self._selector.select(0):
            key.data.on_ready(events)
            self._due.add(key.data)

    def abandon(self) -> None:
        super().abandon()
        self._selector.close()

    def _watch(self, bridge: Bridge) -> None:
        if not bridge.interest:
            self._selector.unregister(bridge.far)
        elif bridge.watched:
            self._selector.modify(bridge.far, bridge.interest, bridge)
        else:
            self._selector.register(bridge.far, bridge.interest, bridge)
        bridge.watched = bridge.interest
        if self._descriptor is None:
            self._sync_driver.look_again()


class LoopBridges(Bridges):
    """Served by callbacks in the event loop of a `LoopDriver`."""

    def __init__(self, driver: LoopDriver) -> None:
        super().__init__(driver)
        self.driver = driver
        self._scheduled = False

    def _mark(self, bridge: Bridge) -> None:
        super()._mark(bridge)
        self._schedule()

    def _schedule(self) -> None:
        if self._scheduled:
            return
        if self.driver.has_ended() or not self._call_soon(self._serve):
            self.close()  # nobody will ever serve them again
        else:
            self._scheduled = True

    def _call_soon(self, call: Callable[[], None]) -> bool:
        return self.driver.call_in_loop(call)

    def _serve(self) -> None:
        with self.driver.lock:
            self._scheduled = False
            self._step_and_pump()

    def _on_ready(self, bridge: Bridge, events: int) -> None:
        with self.driver.lock:
            bridge.on_ready(events)
            self._due.add(bridge)
            self._step_and_pump()

    def _step_and_pump(self) -> None:
        if self.driver.engine.closed_by is not None:
            self.close()
            return
        self._step_due()
        self.driver.pump()
        if self._due:
            self._schedule()
        if self._checks.next() is not None:
            self._set_timer()

    @abstractmethod
    def _set_timer(self) -> None:
        """Call `_serve` after `CHECK` seconds, unless that is under way already."""


class AsyncioBridges(LoopBridges):
    """For an `AsyncioDriver`, uvloop's too."""

    def __init__(self, driver: LoopDriver) -> None:
        super().__init__(driver)
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _call_soon(self, call: Callable[[], None]) -> bool:
        if not self.driver.is_here():
            return super()._call_soon(call)
        self._loop.call_soon(call)
        return True

    def _set_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._serve()

    def _watch(self, bridge: Bridge) -> None:
        wanted, watched = bridge.interest, bridge.watched
        bridge.watched = wanted
        if self._loop.is_closed():
            return
        if wanted & ~watched & _READ:
            self._loop.add_reader(bridge.far, self._on_ready, bridge, _READ)
        if wanted & ~watched & _WRITE:
            self._loop.add_writer(bridge.far, self._on_ready, bridge, _WRITE)
        if watched & ~wanted & _READ:
            self._loop.remove_reader(bridge.far)
        if watched & ~wanted & _WRITE:
            self._loop.remove_writer(bridge.far)


class TrioBridges(LoopBridges):
    """For a `TrioDriver`: a system task waits for each direction that is watched."""

    _timing = False

    def _watch(self, bridge: Bridge) -> None:
        import trio

        if not trio.lowlevel.in_trio_run():
            bridge.watched = bridge.interest  # the run is over, and its tasks with it
            return
        if not bridge.interest:
            trio.lowlevel.notify_closing(bridge.far)
        for event in (_READ, _WRITE):
            if bridge.interest & ~bridge.watched & event:
                trio.lowlevel.spawn_system_task(self._wait, bridge, event)
                bridge.watched |= event

    async def _wait(self, bridge: Bridge, event: int) -> None:
        import trio

        wait = trio.lowlevel.wait_readable if event == _READ else trio.lowlevel.wait_writable
        with contextlib.suppress(trio.ClosedResourceError):
            while bridge.interest & event:
                await wait(bridge.far)
                self._on_ready(bridge, event)
        bridge.watched &= ~event

    def _set_timer(self) -> None:
        import trio

        if not self._timing:
            self._timing = True
            trio.lowlevel.spawn_system_task(self._sleep)

    async def _sleep(self) -> None:
        import trio

        await trio.sleep(CHECK)
        self._timing = False
        self._serve()


def thread_bridges(driver: SyncDriver) -> ThreadBridges:
    """The bridges of a tunnel for threads."""
    with driver.lock:
        if driver.bridges is None:
            driver.check_usable()
            driver.bridges = ThreadBridges(driver)
            driver.look_again()  # the poll that is under way knows nothing of them
        bridges = driver.bridges
    assert isinstance(bridges, ThreadBridges)
    return bridges


def loop_bridges(driver: LoopDriver) -> LoopBridges:
    """New bridges for a driver of the event loop that is running."""
    return TrioBridges(driver) if running_library() == "trio" else AsyncioBridges(driver)


def seconds_of(timeout: object) -> float | None:
    """What `socket.create_connection` takes as `timeout`, its "not given" included, in seconds."""
    if timeout is None or isinstance(timeout, (int, float)):
        return timeout
    return socket.getdefaulttimeout()


def local_address_of(source_address: tuple[str, int] | None) -> str | None:
    """The address to connect from.

    Raises:
        ValueError: a port was asked for.
    """
    if source_address is None:
        return None
    host, port = source_address
    if port:
        raise ValueError(f"source_address: the tunnel picks the local port itself; give ({host!r}, 0)")
    return host or None
