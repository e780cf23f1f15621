"""The tunnel's sockets beside streams: TCP listeners and UDP, for event loops and for threads."""

from __future__ import annotations

from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import OperationTimeout, TunnelClosed
from httpx_wireguard._netstack.listener import TcpListener
from httpx_wireguard._netstack.udp import UdpSocket
from httpx_wireguard._streams import AsyncTcpStream, SyncStream
from httpx_wireguard._waiting import Driver, run


class AsyncListener:
    """A TCP port inside the tunnel."""

    def __init__(self, driver: Driver, listener: TcpListener) -> None:
        self._driver = driver
        self._listener = listener

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.local_port

    async def accept(self, timeout: float | None = None) -> AsyncTcpStream:
        """Wait for the next connection.

        Raises:
            OperationTimeout: none came within `timeout` seconds.
            TunnelClosed: the listener or the tunnel was closed.
        """
        driver, listener = self._driver, self._listener
        with driver.lock:
            deadline = None if timeout is None else driver.now() + timeout
            await driver.wait(lambda: listener.readable, (listener,), deadline)
            connection = listener.accept(driver.now())
            if connection is None:
                raise OperationTimeout(f"nobody connected to port {self.port} within {timeout:g} s")
            return AsyncTcpStream(driver, connection)

    async def aclose(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        self.close()

    def close(self) -> None:
        """`aclose` without `await`, from any thread."""
        with self._driver.lock:
            self._listener.close(self._driver.now())
            self._driver.pump()


class AsyncUdpEndpoint:
    """A UDP socket inside the tunnel."""

    def __init__(self, driver: Driver, engine: Engine, sock: UdpSocket) -> None:
        self._driver = driver
        self._engine = engine
        self._socket = sock

    @property
    def port(self) -> int:
        """The local port."""
        return self._socket.local_port

    async def send(self, data: bytes, to: tuple[str, int] | None = None) -> None:
        """Send one datagram to the connected remote, or to (IP address, port); waits for nothing.

        Raises:
            MessageTooLong: it does not fit the tunnel's MTU.
            NoRoute: no peer's AllowedIPs cover the address.
        """
        with self._driver.lock:
            self._engine.send_udp(self._socket, data, self._driver.now(), to)
            self._driver.pump()

    async def receive(self, timeout: float | None = None) -> tuple[bytes, tuple[str, int]]:
        """Wait for a datagram; returns it and its source.

        Raises:
            OperationTimeout: none came within `timeout` seconds.
            TunnelClosed: the socket or the tunnel was closed.
        """
        driver, sock = self._driver, self._socket
        with driver.lock:
            deadline = None if timeout is None else driver.now() + timeout
            if not await driver.wait(lambda: sock.readable or sock.closed, (sock,), deadline):
                raise OperationTimeout(f"no datagram came to port {self.port} within {timeout:g} s")
            received = sock.receive(driver.now())
            if received is None:
                raise TunnelClosed(f"UDP port {self.port}: closed on this side")
            return received

    async def aclose(self) -> None:
        """Give the port back; who waits in `receive` gets an error."""
        self.close()

    def close(self) -> None:
        """`aclose` without `await`, from any thread."""
        with self._driver.lock:
            self._socket.close(self._driver.now())
            self._driver.pump()


class Listener:
    """A TCP port inside the tunnel, for threads."""

    def __init__(self, listener: AsyncListener) -> None:
        self._listener = listener

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    def accept(self, timeout: float | None = None) -> SyncStream:
        """As `AsyncListener.accept`."""
        return SyncStream(run(self._listener.accept(timeout)))

    def close(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        self._listener.close()


class UdpEndpoint:
    """A UDP socket inside the tunnel, for threads."""

    def __init__(self, endpoint: AsyncUdpEndpoint) -> None:
        self._endpoint = endpoint

    @property
    def port(self) -> int:
        """The local port."""
        return self._endpoint.port

    def send(self, data: bytes, to: tuple[str, int] | None = None) -> None:
        """As `AsyncUdpEndpoint.send`."""
        run(self._endpoint.send(data, to))

    def receive(self, timeout: float | None = None) -> tuple[bytes, tuple[str, int]]:
        """As `AsyncUdpEndpoint.receive`."""
        return run(self._endpoint.receive(timeout))

    def close(self) -> None:
        """Give the port back; who waits in `receive` gets an error."""
        self._endpoint.close()
