"""A TCP port that accepts connections: RFC 9293's LISTEN."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from httpx_wireguard._errors import TunnelClosed, WireGuardError
from httpx_wireguard._netstack.tcp import TcpConnection

HALF_OPEN_LIMIT = 128  # connections in SYN-RECEIVED per listener; ours: beyond it, SYN cookies (RFC 4987 3.6)


class ListenerOwner(Protocol):
    """What a listener tells its stack."""

    def on_listener_closed(self, listener: TcpListener) -> None:
        """Forget it."""

    def wake(self, listener: TcpListener) -> None:
        """Its readiness may have changed."""


class TcpListener:
    """Connections that finished their handshake and wait for `accept`."""

    __slots__ = ("_owner", "_queue", "backlog", "closed", "error", "half_open", "local_port")

    def __init__(self, owner: ListenerOwner, local_port: int, backlog: int) -> None:
        self._owner = owner
        self.local_port = local_port
        self.backlog = backlog
        self.half_open = 0
        self.closed = False
        self.error: WireGuardError | None = None
        self._queue: deque[TcpConnection] = deque()

    @property
    def readable(self) -> bool:
        """`accept` has a connection, or raises."""
        return bool(self._queue) or self.closed

    @property
    def full(self) -> bool:
        """No room for another connection: the SYN is dropped, and comes again."""
        return self.closed or len(self._queue) >= self.backlog

    @property
    def flooded(self) -> bool:
        """Too many handshakes are under way to remember another: it gets a cookie."""
        return self.half_open >= HALF_OPEN_LIMIT

    def accept(self, now: float) -> TcpConnection | None:
        """The oldest connection that waits, or None.

        Raises:
            TunnelClosed: the listener was closed.
        """
        if self._queue:
            return self._queue.popleft()
        if self.closed:
            raise self.error or TunnelClosed(f"listener on port {self.local_port}: closed")
        return None

    def on_established(self, connection: TcpConnection) -> None:
        self._queue.append(connection)
        self._owner.wake(self)

    def close(self, now: float) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        if not self.closed:
            self.closed = True
            while self._queue:
                self._queue.popleft().abort(now)
            self._owner.on_listener_closed(self)
            self._owner.wake(self)

    abort = close
