"""httpcore network backends: connections of any httpcore pool, through a tunnel."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, Protocol, cast

import httpcore

from httpx_wireguard._config import Config
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._streams import Stream
from httpx_wireguard._tls import SupportsWrapBio
from httpx_wireguard._tunnel import Tunnel

logger = logging.getLogger("httpx_wireguard.http")


class TunnelLike(Protocol):
    """What a backend needs of a tunnel."""

    def start(self) -> object: ...
    def close(self) -> object: ...
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Stream: ...


class WireGuardBackend(httpcore.NetworkBackend):
    """A `httpcore.NetworkBackend` whose connections all go through a WireGuard tunnel.

    Args:
        conf: path of a wg-quick file, or a `Config`: the backend opens a tunnel of its own, and `close` ends it. Or a
            `Tunnel`, which is borrowed: `close` leaves it alone.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config | TunnelLike,
        *,
        dns: Sequence[str] | Literal["system"] | None = None,
    ) -> None:
        self._owns_tunnel = isinstance(conf, (str, os.PathLike, Config))
        if self._owns_tunnel:
            self._tunnel: TunnelLike = Tunnel(cast("str | os.PathLike[str] | Config", conf), dns=dns)
        elif dns is not None:
            raise TypeError("dns= belongs to the tunnel: pass it to Tunnel(), or pass a path or a Config here")
        else:
            self._tunnel = cast("TunnelLike", conf)

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
            socket_options: TCP_NODELAY, SO_KEEPALIVE and the TCP_KEEP* options count, others are ignored.

        Raises:
            httpcore.ConnectTimeout, httpcore.ConnectError: with the tunnel's own error as cause.
        """
        try:
            stream = self._tunnel.connect_tcp(
                host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
            )
        except OSError as error:
            _raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)
        return WireGuardNetworkStream(stream)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> NoReturn:
        """Refuse: a Unix socket belongs to this computer, and going there would leave the tunnel."""
        raise httpcore.ConnectError(
            f"the Unix socket {path!r} is outside the tunnel; use a transport of its own for it"
        )

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class WireGuardNetworkStream(httpcore.NetworkStream):
    """A stream of the tunnel under httpcore's method names and with its exceptions."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream!r}>"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._stream.read(max_bytes, timeout)
        except OSError as error:
            _raise_as(error, httpcore.ReadTimeout, httpcore.ReadError)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._stream.write(buffer, timeout)
        except OSError as error:
            _raise_as(error, httpcore.WriteTimeout, httpcore.WriteError)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()

    def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> WireGuardNetworkStream:
        try:
            return WireGuardNetworkStream(self._stream.start_tls(ssl_context, server_hostname, timeout))
        except OSError as error:
            _raise_as(error, httpcore.ConnectTimeout, httpcore.ConnectError)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _raise_as(error: OSError, timeout_class: type[Exception], error_class: type[Exception]) -> NoReturn:
    """Raise `error`, one of ours or of ssl's, as httpcore's class for it, with the diagnosis as its text."""
    raise (timeout_class if isinstance(error, TimeoutError) else error_class)(str(error)) from error
