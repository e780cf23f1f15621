"""Echo sockets (RFC 792, RFC 4443 4.1)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from httpx_wireguard._errors import ConnectionReset, MessageTooLong, WireGuardError
from httpx_wireguard._netstack.addresses import IpAddress, readable
from httpx_wireguard._wire.icmp import ICMP_HEADER_LENGTH, IcmpMessage, echo_request

QUEUE_LIMIT = 64  # replies; ours


class PingOwner(Protocol):
    """What an echo socket tells its stack."""

    def send_icmp(self, remote: IpAddress, message: IcmpMessage) -> None:
        """Send it from our address of that family."""

    def wake(self, socket: PingSocket) -> None:
        """Its readiness may have changed."""

    def on_ping_closed(self, socket: PingSocket) -> None:
        """Forget it."""

    def path_mtu(self, remote: IpAddress) -> int:
        """Bytes of the largest IP packet towards `remote`."""


class PingSocket:
    """Sends echo requests to one host and receives its replies."""

    __slots__ = ("_owner", "_queue", "closed", "error", "identifier", "remote", "remote_address")

    def __init__(self, owner: PingOwner, identifier: int, remote: IpAddress) -> None:
        self._owner = owner
        self.identifier = identifier
        self.remote_address = remote
        self.remote = readable(remote, 0)
        self._queue: deque[tuple[int, bytes]] = deque()
        self.error: WireGuardError | None = None
        self.closed = False

    @property
    def readable(self) -> bool:
        """A reply or an error waits."""
        return bool(self._queue) or self.error is not None

    @property
    def writable(self) -> bool:
        """Requests never wait for room."""
        return True

    def send(self, sequence: int, data: bytes, now: float) -> None:
        """One echo request; `sequence` is 16 bits.

        Raises:
            MessageTooLong: with its headers it does not fit the path's MTU.
        """
        if self.closed:
            raise ConnectionReset("ping socket: closed")
        version = 4 if len(self.remote_address) == 4 else 6
        room = self._owner.path_mtu(self.remote_address) - (20 if version == 4 else 40) - ICMP_HEADER_LENGTH
        if len(data) > room:
            raise MessageTooLong(f"{len(data)} bytes of echo data; the tunnel's MTU leaves room for {room}")
        self._owner.send_icmp(self.remote_address, echo_request(version, self.identifier, sequence, data))

    def receive(self, now: float) -> tuple[int, bytes] | None:
        """The next reply's sequence number and data, or None."""
        if self._queue:
            return self._queue.popleft()
        if self.error is not None:
            error = self.error
            if not self.closed:
                self.error = None
            raise error
        return None

    def receive_reply(self, source: IpAddress, message: IcmpMessage) -> None:
        if source == self.remote_address and len(self._queue) < QUEUE_LIMIT:
            self._queue.append((message.sequence, message.body))
            self._owner.wake(self)

    def on_unreachable(self, error: WireGuardError) -> None:
        self.error = error
        self._owner.wake(self)

    def close(self, now: float) -> None:
        if not self.closed:
            self.closed = True
            self._owner.on_ping_closed(self)
            self._owner.wake(self)

    abort = close
