"""httpcore network backends: connections of any httpcore pool, through a tunnel."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import httpcore

from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._families import (
    AsyncStreamLike,
    AsyncTunnelLike,
    Conf,
    DnsServers,
    StreamLike,
    TunnelLike,
    async_own_or_borrow,
    own_or_borrow,
    raise_as,
)
from httpx_wireguard._tunnel import Tunnel

if TYPE_CHECKING:
    from httpx_wireguard._tls import SupportsWrapBio

logger = logging.getLogger("httpx_wireguard.http")


class WireGuardBackend(httpcore.NetworkBackend):
    """A `httpcore.NetworkBackend` whose connections all go through a WireGuard tunnel.

    Args:
        conf: path of a wg-quick file, or a `Config`: the backend opens a tunnel of its own, and `close` ends it. Or a
            `Tunnel`, which is borrowed: `close` leaves it alone.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(self, conf: Conf | TunnelLike, *, dns: DnsServers = None) -> None:
        self._tunnel, self._owns_tunnel = own_or_borrow(conf, dns)

    @property
    def tunnel(self) -> TunnelLike:
        """The tunnel that the connections go through."""
        return self._tunnel

    def start(self) -> None:
        """Begin the handshake now, ahead of the first request, if the tunnel is the backend's own.

        A failure is not raised: the first connection meets it again, as an error that HTTP code expects.
        """
        if self._owns_tunnel:
            try:
                self._tunnel.start()
            except WireGuardError as error:
                logger.debug("the tunnel did not start: %s", error)

    def close(self) -> None:
        """Close the tunnel if it is the backend's own."""
        if self._owns_tunnel:
            self._tunnel.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> WireGuardNetworkStream:
        """Connect through the tunnel; `timeout` covers handshake, name resolution and connection together.

        Args:
            local_address: one of the tunnel's own addresses; "0.0.0.0" and "::" just ask for IPv4 and IPv6.
            socket_options: TCP_NODELAY, SO_KEEPALIVE, TCP_KEEP*, TCP_USER_TIMEOUT and TCP_CONGESTION count, others
                are ignored.

        Raises:
            httpcore.ConnectTimeout, httpcore.ConnectError: with the tunnel's own error as cause.
        """
        try:
            stream = self._tunnel.connect_tcp(
                host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
            )
        except OSError as error:
            raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)
        return WireGuardNetworkStream(stream)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> NoReturn:
        """Refuse: a Unix socket belongs to this computer, and going there would leave the tunnel."""
        _refuse_unix_socket(path)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class WireGuardNetworkStream(httpcore.NetworkStream):
    """A stream of the tunnel under httpcore's method names and with its exceptions.

    Attributes:
        cut_short: a write was interrupted, and ended the stream: what followed would not be understood.
    """

    def __init__(self, stream: StreamLike) -> None:
        self._stream = stream
        self.cut_short = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream!r}>"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._stream.read(max_bytes, timeout)
        except OSError as error:
            raise_as(error, httpcore.ReadTimeout, httpcore.ReadError)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return  # httpcore writes the empty body of a GET, and its end
        try:
            self._stream.write(buffer, timeout)
        except OSError as error:
            raise_as(error, httpcore.WriteTimeout, httpcore.WriteError)
        except BaseException:
            self.cut_short = True
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()

    def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> WireGuardNetworkStream:
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        except OSError as error:
            raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)
        return WireGuardNetworkStream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AsyncWireGuardBackend(httpcore.AsyncNetworkBackend):
    """A `httpcore.AsyncNetworkBackend` whose connections all go through a WireGuard tunnel; asyncio and trio.

    Args:
        conf: path of a wg-quick file, or a `Config`: the backend opens a tunnel of its own, and `aclose` ends it. Or an
            `AsyncTunnel` or a `Tunnel`, which are borrowed: `aclose` leaves them alone.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(self, conf: Conf | Tunnel | AsyncTunnelLike, *, dns: DnsServers = None) -> None:
        self._tunnel, self._owns_tunnel = async_own_or_borrow(conf, dns)

    @property
    def tunnel(self) -> AsyncTunnelLike:
        """The tunnel that the connections go through."""
        return self._tunnel

    async def start(self) -> None:
        """Begin the handshake now, ahead of the first request, if the tunnel is the backend's own.

        A failure is not raised: the first connection meets it again, as an error that HTTP code expects.
        """
        if self._owns_tunnel:
            try:
                await self._tunnel.start()
            except WireGuardError as error:
                logger.debug("the tunnel did not start: %s", error)

    async def aclose(self) -> None:
        """Close the tunnel if it is the backend's own."""
        if self._owns_tunnel:
            await self._tunnel.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncWireGuardNetworkStream:
        """Connect through the tunnel; `timeout` covers handshake, name resolution and connection together.

        Args:
            local_address: one of the tunnel's own addresses; "0.0.0.0" and "::" just ask for IPv4 and IPv6.
            socket_options: TCP_NODELAY, SO_KEEPALIVE, TCP_KEEP*, TCP_USER_TIMEOUT and TCP_CONGESTION count, others
                are ignored.

        Raises:
            httpcore.ConnectTimeout, httpcore.ConnectError: with the tunnel's own error as cause.
        """
        try:
            stream = await self._tunnel.connect_tcp(
                host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
            )
        except OSError as error:
            raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)
        return AsyncWireGuardNetworkStream(stream)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> NoReturn:
        """Refuse: a Unix socket belongs to this computer, and going there would leave the tunnel."""
        _refuse_unix_socket(path)

    async def sleep(self, seconds: float) -> None:
        from httpx_wireguard._drivers.loops import sleep  # here: threads need nothing of event loops

        await sleep(seconds)


class AsyncWireGuardNetworkStream(httpcore.AsyncNetworkStream):
    """A stream of the tunnel under httpcore's method names and with its exceptions.

    Attributes:
        cut_short: a write was cancelled, and ended the stream: what followed would not be understood.
    """

    def __init__(self, stream: AsyncStreamLike) -> None:
        self._stream = stream
        self.cut_short = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream!r}>"

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._stream.read(max_bytes, timeout)
        except OSError as error:
            raise_as(error, httpcore.ReadTimeout, httpcore.ReadError)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        try:
            await self._stream.write(buffer, timeout)
        except OSError as error:
            raise_as(error, httpcore.WriteTimeout, httpcore.WriteError)
        except BaseException:
            self.cut_short = True
            await self.aclose()
            raise

    async def aclose(self) -> None:
        with contextlib.suppress(OSError):
            await self._stream.aclose()

    async def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncWireGuardNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except OSError as error:
            raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)
        return AsyncWireGuardNetworkStream(stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _refuse_unix_socket(path: str) -> NoReturn:
    raise httpcore.ConnectError(f"the Unix socket {path!r} is outside the tunnel; use a transport of its own for it")
