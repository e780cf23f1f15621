"""httpx transports: httpx's own, with their connection pool replaced by one that lives in a tunnel."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import httpcore
import httpx

from httpx_wireguard import _families
from httpx_wireguard._families import AsyncTunnelLike, Conf, DnsServers, TunnelLike
from httpx_wireguard._http.backend import AsyncWireGuardBackend, WireGuardBackend
from httpx_wireguard._pools import Assigner
from httpx_wireguard._tunnel import Tunnel

CertTypes = str | tuple[str, str] | tuple[str, str, str]
ProxyTypes = str | httpx.URL | httpx.Proxy


class WireGuardConnectionPool(httpcore.ConnectionPool):
    """httpcore's pool over a `WireGuardBackend`: it starts and closes the backend's own tunnel with itself."""

    def __init__(self, backend: WireGuardBackend, **arguments: Any) -> None:
        super().__init__(network_backend=backend, **arguments)
        self._backend = backend
        self._assigner = Assigner(self) if Assigner.fits(self) else None

    def __enter__(self) -> Self:
        try:
            self._backend.start()
        except BaseException:  # interrupted: there will be no `__exit__`
            self._backend.close()
            raise
        return self

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            response = super().handle_request(request)
        except BaseException as error:
            _families.restore_cause(error)
            raise
        response.stream = _families.ResponseStream(response.stream)
        return response

    def close(self) -> None:
        super().close()
        self._backend.close()

    def _assign_requests_to_connections(self) -> list[httpcore.ConnectionInterface]:
        """httpcore's, mended."""
        if self._assigner is None:
            return super()._assign_requests_to_connections()
        return self._assigner.assign(time.monotonic())


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
        conf: Conf | TunnelLike,
        *,
        dns: DnsServers = None,
        verify: ssl.SSLContext | str | bool = True,
        cert: CertTypes | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        proxy: ProxyTypes | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> None:
        _families.check_http2(http2, httpx.__name__)
        context = _families.ssl_context(httpx.create_ssl_context, verify, cert, trust_env)
        super().__init__(verify=context)
        self._backend = WireGuardBackend(conf, dns=dns)
        self._pool = WireGuardConnectionPool(
            self._backend,
            ssl_context=context,
            http1=http1,
            http2=http2,
            local_address=local_address,
            retries=retries,
            socket_options=socket_options,
            **_pool_arguments(limits, proxy),
        )

    @property
    def tunnel(self) -> TunnelLike:
        """The tunnel that the requests go through."""
        return self._backend.tunnel

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """httpx's own, which tools for tests and tracing may have wrapped; only checks who asks."""
        _families.check_request("WireGuardTransport", request, httpx.Request)
        return super().handle_request(request)

    if not TYPE_CHECKING:  # a type checker shall keep finding misspelled names

        def __getattr__(self, name: str) -> Any:
            raise _families.missing_attribute(self, name, httpx.__name__)


class AsyncWireGuardConnectionPool(httpcore.AsyncConnectionPool):
    """httpcore's pool over an `AsyncWireGuardBackend`: it starts and closes the backend's own tunnel with itself."""

    def __init__(self, backend: AsyncWireGuardBackend, **arguments: Any) -> None:
        super().__init__(network_backend=backend, **arguments)
        self._backend = backend
        self._assigner = Assigner(self) if Assigner.fits(self) else None

    async def __aenter__(self) -> Self:
        try:
            await self._backend.start()
        except BaseException:  # cancelled: there will be no `__aexit__`
            await self._backend.aclose()
            raise
        return self

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            response = await super().handle_async_request(request)
        except BaseException as error:
            _families.restore_cause(error)
            raise
        response.stream = _families.AsyncResponseStream(response.stream, self._aclose_response)
        return response

    async def _aclose_response(self, stream: Any) -> None:
        """httpcore's shields hold off anyio's cancellation, not `Task.cancel`, after which the request would stay."""
        try:
            await stream.aclose()
        finally:
            request = getattr(stream, "_pool_request", None)
            if self._assigner is not None and request in self._requests:
                self._requests.remove(request)
                await self._close_connections(self._assign_requests_to_connections())

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:
            await self._backend.aclose()

    def _assign_requests_to_connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """httpcore's, mended."""
        if self._assigner is None:
            return super()._assign_requests_to_connections()
        return self._assigner.assign(time.monotonic())


class AsyncWireGuardTransport(httpx.AsyncHTTPTransport):
    """A transport for `httpx.AsyncClient(transport=...)` whose requests all go through a WireGuard tunnel.

    For asyncio and trio. The tunnel starts with the client's `async with` block, else with the first request. Arguments
    that `httpx.AsyncHTTPTransport` has too mean the same. Give them here: httpx ignores those of a client that has a
    transport.

    Args:
        conf: path of a wg-quick file, or a `Config`: the transport owns the tunnel, and closes it with itself. Or an
            `AsyncTunnel` or a running `Tunnel`, which it borrows.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.
        proxy: an HTTP or SOCKS proxy to reach inside the tunnel.
        local_address: "0.0.0.0" and "::" confine connections to IPv4 and IPv6.

    Raises:
        ConfigError: the configuration cannot work.
        ImportError: `http2=True` without the h2 package.
    """

    def __init__(
        self,
        conf: Conf | Tunnel | AsyncTunnelLike,
        *,
        dns: DnsServers = None,
        verify: ssl.SSLContext | str | bool = True,
        cert: CertTypes | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits | None = None,
        proxy: ProxyTypes | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> None:
        _families.check_http2(http2, httpx.__name__)
        context = _families.ssl_context(httpx.create_ssl_context, verify, cert, trust_env)
        super().__init__(verify=context)
        self._backend = AsyncWireGuardBackend(conf, dns=dns)
        self._pool = AsyncWireGuardConnectionPool(
            self._backend,
            ssl_context=context,
            http1=http1,
            http2=http2,
            local_address=local_address,
            retries=retries,
            socket_options=socket_options,
            **_pool_arguments(limits, proxy),
        )

    @property
    def tunnel(self) -> AsyncTunnelLike:
        """The tunnel that the requests go through."""
        return self._backend.tunnel

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """httpx's own, which tools for tests and tracing may have wrapped; only checks who asks."""
        _families.check_request("AsyncWireGuardTransport", request, httpx.Request)
        return await super().handle_async_request(request)

    if not TYPE_CHECKING:  # a type checker shall keep finding misspelled names

        def __getattr__(self, name: str) -> Any:
            raise _families.missing_attribute(self, name, httpx.__name__)


def _pool_arguments(limits: httpx.Limits | None, proxy: ProxyTypes | None) -> dict[str, Any]:
    limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's default
    return {
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "proxy": None if proxy is None else _httpcore_proxy(proxy),
    }


def _httpcore_proxy(proxy: ProxyTypes) -> httpcore.Proxy:
    proxy = proxy if isinstance(proxy, httpx.Proxy) else httpx.Proxy(url=proxy)
    url = proxy.url
    return httpcore.Proxy(
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )
