"""httpx transports: `httpx.HTTPTransport` with its connection pool replaced by one that lives in a tunnel."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import httpcore
import httpx

from httpx_wireguard._config import Config
from httpx_wireguard._http.backend import TunnelLike, WireGuardBackend


class WireGuardConnectionPool(httpcore.ConnectionPool):
    """httpcore's pool over a `WireGuardBackend`: it starts and closes the backend's own tunnel with itself."""

    def __init__(self, backend: WireGuardBackend, **arguments: Any) -> None:
        super().__init__(network_backend=backend, **arguments)
        self._backend = backend

    def __enter__(self) -> WireGuardConnectionPool:
        self._backend.start()
        return self

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            response = super().handle_request(request)
        except BaseException as error:
            self._drop_abandoned_connections()
            _restore_cause(error)
            raise
        response.stream = _ResponseStream(response.stream)
        return response

    def close(self) -> None:
        super().close()
        self._backend.close()

    def _assign_requests_to_connections(self) -> list[httpcore.ConnectionInterface]:
        """httpcore's, but a connection that belongs to a request stays open.

        With threads, httpcore 1.0.9 takes it for idle until its request has begun, and closes it as surplus; or, when
        the request begins and is answered while another thread looks, for one that the server has ended.
        """
        closing = super()._assign_requests_to_connections()
        wanted = {id(request.connection) for request in self._requests}
        self._connections += [connection for connection in closing if id(connection) in wanted]
        return [connection for connection in closing if id(connection) not in wanted]

    def _drop_abandoned_connections(self) -> None:
        """Give back the slots of connections that never connected and that no request waits for any more.

        httpcore 1.0.9 keeps them for ever when the request ends between assignment and connect. Where its internals
        have changed, nothing is touched.
        """
        try:
            with self._optional_thread_lock:
                wanted = {id(request.connection) for request in self._requests}
                self._connections = [
                    connection
                    for connection in self._connections
                    if id(connection) in wanted or getattr(connection, "_connection", self) is not None
                ]
                closing = self._assign_requests_to_connections()
        except AttributeError:
            return
        self._close_connections(closing)


class _ResponseStream:
    """A response's body, whose errors keep their cause."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except Exception as error:
            _restore_cause(error)
            raise

    def close(self) -> None:
        self._stream.close()


def _restore_cause(error: BaseException) -> None:
    """Undo the pool's `raise error from None`, which takes the tunnel's own error off httpcore's class for it."""
    if error.__cause__ is None and isinstance(error.__context__, OSError):
        error.__cause__ = error.__context__


class WireGuardTransport(httpx.HTTPTransport):
    """A transport for `httpx.Client(transport=...)` whose requests all go through a WireGuard tunnel.

    The tunnel starts with the client's `with` block, else with the first request. Arguments that
    `httpx.HTTPTransport` has too mean the same. Give them here: httpx ignores those of a client that has a transport.

    Args:
        conf: path of a wg-quick file, or a `Config`: the transport owns the tunnel, and closes it with itself. Or a
            running `Tunnel`, which it borrows.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.
        proxy: an HTTP or SOCKS proxy to reach inside the tunnel.
        local_address: "0.0.0.0" and "::" confine connections to IPv4 and IPv6.

    Raises:
        ConfigError: the configuration cannot work.
        ImportError: `http2=True` without the h2 package.
    """

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config | TunnelLike,
        *,
        dns: Sequence[str] | Literal["system"] | None = None,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        proxy: str | httpx.URL | httpx.Proxy | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> None:
        if http2 and find_spec("h2") is None:
            raise ImportError(
                "Using http2=True, but the 'h2' package is not installed. "
                "Make sure to install httpx using `pip install httpx[http2]`."
            )
        context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        super().__init__(verify=context)
        limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's default
        self._backend = WireGuardBackend(conf, dns=dns)
        self._pool = WireGuardConnectionPool(
            self._backend,
            ssl_context=context,
            proxy=None if proxy is None else _httpcore_proxy(proxy),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            local_address=local_address,
            retries=retries,
            socket_options=socket_options,
        )

    @property
    def tunnel(self) -> TunnelLike:
        """The tunnel that the requests go through."""
        return self._backend.tunnel


def _httpcore_proxy(proxy: str | httpx.URL | httpx.Proxy) -> httpcore.Proxy:
    proxy = proxy if isinstance(proxy, httpx.Proxy) else httpx.Proxy(url=proxy)
    url = proxy.url
    return httpcore.Proxy(
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )
