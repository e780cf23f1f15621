"""A tunnel's two seams (driver and sockets) in memory, for tests of what stands on them.

`MemoryDriver` runs on real time and wakes real threads. `VirtualDriver` has one thread and a clock that jumps to the
next event, so that a test with delays takes no time and always the same course.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from httpx_wireguard._connect import connect, resolve
from httpx_wireguard._errors import ConnectionReset, TunnelClosed, WireGuardError
from httpx_wireguard._resolver import Resolver, local_family
from httpx_wireguard._streams import SyncStream, TcpOptions
from httpx_wireguard._waiting import Driver, run

Address = tuple[str, int]
Datagram = tuple[bytes, Address] | tuple[bytes, Address, float]  # with its source, and the seconds that it takes


class MemoryDriver:
    """Waits, without ever suspending, on one condition that every `pump` and `wake` notifies."""

    takes_turns = False

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.waiting = 0
        self._keys: list[Sequence[Hashable]] = []
        self._changed = threading.Condition(self.lock)

    def now(self) -> float:
        return time.monotonic()

    def pump(self) -> None:
        self._changed.notify_all()

    def catch_up(self) -> None:
        pass

    def wake(self, key: Hashable) -> None:
        if any(key in keys for keys in self._keys):
            self._changed.notify_all()

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        self._keys.append(keys)
        self.waiting += 1
        self._changed.notify_all()
        try:
            while not ready():
                if self.closed:
                    raise TunnelClosed("the tunnel was closed")
                timeout = None if deadline is None else deadline - self.now()
                if timeout is not None and timeout <= 0:
                    return False
                self._changed.wait(timeout)
            return True
        finally:
            self.waiting -= 1
            self._keys.remove(keys)

    def until_waiting(self, count: int = 1) -> None:
        """Return as soon as that many threads wait."""
        with self.lock:
            assert self._changed.wait_for(lambda: self.waiting >= count, timeout=10)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self._changed.notify_all()


class VirtualDriver:
    """Time is a number; waiting runs the scheduled events in order."""

    takes_turns = True

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.time = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], object]]] = []

    def now(self) -> float:
        return self.time

    def pump(self) -> None:
        pass

    def catch_up(self) -> None:
        """Run the events that are due, as packets that wait in a socket are taken in."""
        while self._events and self._events[0][0] <= self.time:
            heapq.heappop(self._events)[2]()

    def at(self, moment: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event))

    def wake(self, key: Hashable) -> None:
        pass

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        assert self.lock.locked()
        while not ready():
            if self._events and (deadline is None or self._events[0][0] <= deadline):
                moment, _, event = heapq.heappop(self._events)
                self.time = max(self.time, moment)
                event()
            else:
                assert deadline is not None, "would wait for ever"
                self.time = max(self.time, deadline)
                return ready()
        return True


class WatchfulDriver(VirtualDriver):
    """A `VirtualDriver` that looks at how `wait` is used, and may have the k-th call end with an exception.

    Attributes:
        tunnel: whose sockets all have to be waited for.
        waits: calls so far.
        interrupt_at: the call that ends with `interruption`; the sign tells whether before or after the wait.
    """

    def __init__(self, interrupt_at: int = 0, interruption: BaseException | None = None) -> None:
        super().__init__()
        self.tunnel: MemoryTunnel | None = None
        self.waits = 0
        self.interrupt_at = interrupt_at
        self.interruption = interruption
        self._pumped = (0, 0, 0)

    def pump(self) -> None:
        self._pumped = self._done()

    @property
    def settled(self) -> bool:
        """Whether `pump` was called after the last socket was opened or given back."""
        return self._pumped == self._done()

    def _done(self) -> tuple[int, int, int]:
        assert self.tunnel is not None
        connections, udp_sockets = self.tunnel.sockets, self.tunnel.udp_sockets
        closed = sum(sock.closed for sock in connections) + sum(sock.closed for sock in udp_sockets)
        return len(connections), len(udp_sockets), closed

    async def wait(self, ready: Callable[[], bool], keys: Sequence[Hashable], deadline: float | None) -> bool:
        self.waits += 1
        assert not ready(), "a wait for what is there"
        assert deadline is None or deadline > self.time, "a wait for what is due"
        assert self.settled, "what was done was not sent"
        assert self.tunnel is not None
        assert set(self.tunnel.open_sockets) <= set(keys), "a socket whose change would wake nobody"
        if self.waits == -self.interrupt_at and self.interruption is not None:
            raise self.interruption
        done = await super().wait(ready, keys, deadline)
        if self.waits == self.interrupt_at and self.interruption is not None:
            raise self.interruption
        return done


class MemorySocket:
    """One end of a TCP connection; `capacity` bounds what the other end has not yet received."""

    def __init__(self, local: Address, remote: Address, capacity: int = 65_536) -> None:
        self.local = local
        self.remote = remote
        self.error: WireGuardError | None = None
        self.connected = False
        self.closed = False
        self.aborted = False
        self.largest_read = 0
        self._capacity = capacity
        self._inbox = bytearray()
        self.at_eof = False
        self.peer: MemorySocket | None = None

    @property
    def readable(self) -> bool:
        return bool(self._inbox) or self.at_eof or self.error is not None

    @property
    def writable(self) -> bool:
        return self.connected and not self.closed and self.peer is not None and self.peer.room > 0

    @property
    def room(self) -> int:
        return self._capacity - len(self._inbox)

    def send(self, data: bytes | bytearray | memoryview, now: float) -> int:
        assert self.peer is not None
        accepted = min(len(data), self.peer.room)
        self.peer._inbox += data[:accepted]
        return accepted

    def receive(self, max_bytes: int, now: float) -> bytes:
        data = bytes(self._inbox[:max_bytes])
        del self._inbox[:max_bytes]
        self.largest_read = max(self.largest_read, len(data))
        return data

    def close(self, now: float) -> None:
        self.closed = True
        if self.peer is not None:
            self.peer.at_eof = True

    def abort(self, now: float) -> None:
        self.closed = self.aborted = True
        if self.peer is not None:
            self.peer.fail(ConnectionReset("reset by peer"))

    def fail(self, error: WireGuardError) -> None:
        self.error = error

    def connect_to(self, peer: MemorySocket) -> None:
        self.peer, peer.peer = peer, self
        self.connected = peer.connected = True


def socket_pair(capacity: int = 65_536) -> tuple[MemorySocket, MemorySocket]:
    """Two connected ends: the client's and the server's."""
    client = MemorySocket(("10.0.0.2", 40_000), ("10.0.0.1", 443), capacity)
    server = MemorySocket(client.remote, client.local, capacity)
    client.connect_to(server)
    return client, server


class MemoryUdpSocket:
    """A connected UDP socket whose datagrams a function answers, on the spot or later."""

    def __init__(self, tunnel: MemoryTunnel, remote: Address) -> None:
        self._tunnel = tunnel
        self._server: Callable[[bytes], Iterable[Datagram]] = tunnel.udp.get(remote, lambda data: ())
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self.remote = remote
        self.error = tunnel.udp_errors.get(remote)
        self.closed = False

    @property
    def readable(self) -> bool:
        return bool(self._inbox) or self.error is not None

    def send(self, data: bytes, now: float) -> None:
        assert not self.closed
        for datagram in self._server(data):
            answer = datagram[:2]
            if len(datagram) == 3:
                self._tunnel.later(now + datagram[2], partial(self._arrive, answer))
            else:
                self._arrive(answer)

    def _arrive(self, datagram: tuple[bytes, Address]) -> None:
        if not self.closed:
            self._inbox.append(datagram)

    def receive(self, now: float) -> tuple[bytes, Address] | None:
        if not self._inbox and self.error is not None:
            raise self.error
        return self._inbox.popleft() if self._inbox else None

    def close(self, now: float) -> None:
        self.closed = True


TcpBehaviour = Callable[[MemorySocket], None] | WireGuardError | None


class MemoryTunnel:
    """A network behind a driver.

    Attributes:
        tcp: what happens to a SYN for an address and port: a function gets the server's end, in a thread of its own
            under a `MemoryDriver`; an error is the failure; None is silence.
        delays: seconds until the answer to the SYN, for a `VirtualDriver`.
        server_capacity: bytes that a server's end takes before it has to read.
        udp: the function that answers datagrams for an address and port; answers that take time need a
            `VirtualDriver`.
        problems: what `diagnose` says of an address.
    """

    def __init__(self, driver: Driver, dns: Sequence[str] = (), **resolver_arguments: Any) -> None:
        self.driver = driver
        self.tcp: dict[Address, TcpBehaviour] = {}
        self.delays: dict[Address, float] = {}
        self.server_capacity = 65_536
        self.udp: dict[Address, Callable[[bytes], Iterable[Datagram]]] = {}
        self.udp_errors: dict[Address, WireGuardError] = {}
        self.problems: dict[str, WireGuardError] = {}
        self.opened: list[tuple[float, str]] = []
        self.sockets: list[MemorySocket] = []
        self.udp_sockets: list[MemoryUdpSocket] = []
        self.connects: list[dict[str, Any]] = []
        self.started = 0
        self.closed = 0
        self.resolver = Resolver(self, dns, **resolver_arguments)

    def open_udp(self, remote: Address, now: float) -> MemoryUdpSocket:
        assert self.driver.lock.locked()
        sock = MemoryUdpSocket(self, remote)
        self.udp_sockets.append(sock)
        return sock

    def open_tcp(self, remote: Address, now: float) -> MemorySocket:
        assert self.driver.lock.locked()
        self.opened.append((now, remote[0]))
        sock = MemorySocket(("10.0.0.2", 40_000 + len(self.sockets)), remote)
        self.sockets.append(sock)
        behaviour = self.tcp.get(remote)
        if remote in self.delays:
            self.later(now + self.delays[remote], lambda: self._answer(sock, behaviour))
        else:
            self._answer(sock, behaviour)
        return sock

    def diagnose(self, address: str, now: float) -> WireGuardError | None:
        assert self.driver.lock.locked()
        return self.problems.get(address)

    def wake_later(self, key: Hashable) -> None:
        with self.driver.lock:
            self.driver.wake(key)

    def later(self, moment: float, event: Callable[[], object]) -> None:
        assert isinstance(self.driver, VirtualDriver), "only virtual time has delays"
        self.driver.at(moment, event)

    @property
    def open_sockets(self) -> list[MemorySocket | MemoryUdpSocket]:
        """Those that nobody gave back; a connection that failed is closed by that."""
        connections = [sock for sock in self.sockets if not sock.closed and sock.error is None]
        return [*connections, *(sock for sock in self.udp_sockets if not sock.closed)]

    def _answer(self, sock: MemorySocket, behaviour: TcpBehaviour) -> None:
        if sock.closed:
            return
        if isinstance(behaviour, WireGuardError):
            sock.fail(behaviour)
        elif behaviour is not None:
            server = MemorySocket(sock.remote, sock.local, self.server_capacity)
            sock.connect_to(server)
            if isinstance(self.driver, MemoryDriver):
                threading.Thread(target=behaviour, args=(server,), daemon=True).start()
            else:
                behaviour(server)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> SyncStream:
        self.connects.append(
            {"host": host, "port": port, "options": TcpOptions.from_socket_options(socket_options), "timeout": timeout}
        )
        deadline = None if timeout is None else self.driver.now() + timeout
        version = local_family(local_address)
        return SyncStream(run(connect(self.driver, self.resolver, host, port, deadline, self.open_tcp, version)))

    def resolve(self, host: str, deadline: float | None = None, version: int | None = None) -> tuple[str, ...]:
        return run(resolve(self.driver, self.resolver, host, deadline, version))

    def start(self) -> None:
        self.started += 1

    def close(self) -> None:
        self.closed += 1
        if isinstance(self.driver, MemoryDriver):
            self.driver.close()
