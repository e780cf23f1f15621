"""The tunnel's sockets beside streams: TCP listeners and UDP, for threads."""

from __future__ import annotations

from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._errors import OperationTimeout, TunnelClosed
from httpx_wireguard._netstack.listener import TcpListener
from httpx_wireguard._netstack.udp import UdpSocket
from httpx_wireguard._streams import SyncStream


class Listener:
    """A TCP port inside the tunnel."""

    def __init__(self, driver: SyncDriver, listener: TcpListener) -> None:
        self._driver = driver
        self._listener = listener

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.local_port

    def accept(self, timeout: float | None = None) -> SyncStream:
        """Wait for the next connection.

        Raises:
            OperationTimeout: none came within `timeout` seconds.
            TunnelClosed: the listener or the tunnel was closed.
        """
        driver, listener = self._driver, self._listener
        with driver.lock:
            deadline = None if timeout is None else driver.now() + timeout
            driver.wait(lambda: listener.readable, (listener,), deadline)
            connection = listener.accept(driver.now())
            if connection is None:
                raise OperationTimeout(f"nobody connected to port {self.port} within {timeout:g} s")
            return SyncStream(driver, connection)

    def close(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        with self._driver.lock:
            self._listener.close(self._driver.now())
            self._driver.pump()


class UdpEndpoint:
    """A UDP socket inside the tunnel."""

    def __init__(self, driver: SyncDriver, sock: UdpSocket) -> None:
        self._driver = driver
        self._socket = sock

    @property
    def port(self) -> int:
        """The local port."""
        return self._socket.local_port

    def send(self, data: bytes, to: tuple[str, int] | None = None) -> None:
        """Send one datagram to the connected remote, or to (IP address, port).

        Raises:
            MessageTooLong: it does not fit the tunnel's MTU.
            NoRoute: no peer's AllowedIPs cover the address.
        """
        with self._driver.lock:
            self._driver.engine.send_udp(self._socket, data, self._driver.now(), to)
            self._driver.pump()

    def receive(self, timeout: float | None = None) -> tuple[bytes, tuple[str, int]]:
        """Wait for a datagram; returns it and its source.

        Raises:
            OperationTimeout: none came within `timeout` seconds.
            TunnelClosed: the socket or the tunnel was closed.
        """
        driver, sock = self._driver, self._socket
        with driver.lock:
            deadline = None if timeout is None else driver.now() + timeout
            if not driver.wait(lambda: sock.readable or sock.closed, (sock,), deadline):
                raise OperationTimeout(f"no datagram came to port {self.port} within {timeout:g} s")
            received = sock.receive(driver.now())
            if received is None:
                raise TunnelClosed(f"UDP port {self.port}: closed on this side")
            return received

    def close(self) -> None:
        """Give the port back; who waits in `receive` gets an error."""
        with self._driver.lock:
            self._socket.close(self._driver.now())
            self._driver.pump()
