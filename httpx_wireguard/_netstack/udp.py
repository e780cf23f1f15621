"""UDP sockets inside the tunnel (RFC 768)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from httpx_wireguard._errors import ConnectionRefused, ConnectionReset, MessageTooLong, WireGuardError
from httpx_wireguard._netstack.addresses import IpAddress, SocketName, readable
from httpx_wireguard._wire.udp import UDP_HEADER_LENGTH, serialize_datagram

RECEIVE_LIMIT = 1 << 18  # bytes; ours, close to Linux' default receive buffer
OVERHEAD = 256  # bytes counted for each datagram besides its payload, which may be empty; ours


class UdpOwner(Protocol):
    """What a UDP socket tells its stack."""

    def send_udp(self, local: IpAddress, remote: IpAddress, datagram: bytes) -> None:
        """Put a UDP datagram, header included, into an IP packet."""

    def wake(self, socket: UdpSocket) -> None:
        """Its readiness may have changed."""

    def on_udp_closed(self, socket: UdpSocket) -> None:
        """Forget it."""

    def source_for(self, remote: IpAddress) -> IpAddress:
        """Our address that speaks to `remote`."""

    def drop(self, reason: str) -> None:
        """Count a packet that was thrown away."""

    def path_mtu(self, remote: IpAddress) -> int:
        """Bytes of the largest IP packet towards `remote`."""


class UdpSocket:
    """A UDP socket; with a `remote` it sends there and hears nobody else."""

    __slots__ = ("_bytes", "_owner", "_queue", "closed", "error", "local_port", "remote", "remote_address")

    def __init__(self, owner: UdpOwner, local_port: int, remote: tuple[IpAddress, int] | None) -> None:
        self._owner = owner
        self.local_port = local_port
        self.remote_address = remote
        self.remote = readable(*remote) if remote else None
        self._queue: deque[tuple[bytes, SocketName]] = deque()
        self._bytes = 0
        self.error: WireGuardError | None = None
        self.closed = False

    @property
    def readable(self) -> bool:
        """A datagram or an error waits."""
        return bool(self._queue) or self.error is not None

    @property
    def writable(self) -> bool:
        """Datagrams never wait for room."""
        return True

    def send(self, data: bytes, now: float, to: tuple[IpAddress, int] | None = None) -> None:
        """Send one datagram to the socket's remote, or to packed address and port.

        Raises:
            MessageTooLong: with its headers it does not fit the path's MTU.
            NoRoute: the interface has no address of that family.
        """
        target = self.remote_address or to
        if self.closed or target is None:
            raise ConnectionReset("UDP socket: closed, or neither connected nor told where to send")
        address, port = target
        room = self._owner.path_mtu(address) - (20 if len(address) == 4 else 40) - UDP_HEADER_LENGTH
        if len(data) > room:
            raise MessageTooLong(f"UDP datagram of {len(data)} bytes; the tunnel's MTU leaves room for {room}")
        source = self._owner.source_for(address)
        self._owner.send_udp(source, address, serialize_datagram(source, address, self.local_port, port, data))

    def receive(self, now: float) -> tuple[bytes, SocketName] | None:
        """The next datagram and who sent it, or None.

        Raises:
            ConnectionRefused: an ICMP error said that nothing listens there; raised once.
        """
        if self._queue:
            item = self._queue.popleft()
            self._bytes -= len(item[0]) + OVERHEAD
            return item
        if self.error is not None:
            error = self.error
            if not self.closed:
                self.error = None
            raise error
        return None

    def receive_datagram(self, source: IpAddress, port: int, payload: bytes) -> None:
        if self.remote_address is not None and (source, port) != self.remote_address:
            self._owner.drop("UDP datagram from another than the connected remote")
        elif self._bytes + len(payload) + OVERHEAD > RECEIVE_LIMIT:
            self._owner.drop("UDP socket's queue full")
        else:
            self._queue.append((payload, readable(source, port)))
            self._bytes += len(payload) + OVERHEAD
            self._owner.wake(self)

    def on_unreachable(self, text: str) -> None:
        """An ICMP error about a datagram of a connected socket (RFC 1122 4.1.3.3)."""
        if self.remote is not None:
            self.error = ConnectionRefused(f"UDP to {self.remote[0]} port {self.remote[1]}: {text}")
            self._owner.wake(self)

    def close(self, now: float) -> None:
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._owner.on_udp_closed(self)
            self._owner.wake(self)

    abort = close
