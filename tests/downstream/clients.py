"""The HTTP libraries, with our tunnel under every client that they make by default.

The suites create their clients without a transport, so the classes that stand behind them are replaced. That is for
tests alone: the package never does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import httpx_wireguard
from httpx_wireguard import AsyncTunnel, Config, Tunnel
from httpx_wireguard.testing import IPV4

THIS_COMPUTER = ("127.0.0.1", "localhost")  # where the suites' servers are; the peer's address stands for it
_BACKEND_USERS = ("connection", "connection_pool", "socks_proxy")  # httpcore's modules with a default backend


class Traffic:
    """Counts the connections through tunnels, and leads those to this computer to the peer.

    Args:
        refresh_port: called with a port of the peer that is about to be connected to.

    Attributes:
        connections: how many were made.
    """

    def __init__(self, refresh_port: Callable[[int], None]) -> None:
        self.connections = 0
        self._refresh_port = refresh_port

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Watch every tunnel of this process from now on."""
        connect, async_connect = Tunnel.connect_tcp, AsyncTunnel.connect_tcp

        def connect_tcp(tunnel: Tunnel, host: str, port: int, *args: Any, **options: Any) -> Any:
            stream = connect(tunnel, self._far_host(host, port), port, *args, **options)
            self.connections += 1
            return stream

        async def async_connect_tcp(tunnel: AsyncTunnel, host: str, port: int, *args: Any, **options: Any) -> Any:
            stream = await async_connect(tunnel, self._far_host(host, port), port, *args, **options)
            self.connections += 1
            return stream

        patch.setattr(Tunnel, "connect_tcp", connect_tcp)
        patch.setattr(AsyncTunnel, "connect_tcp", async_connect_tcp)

    def _far_host(self, host: str, port: int) -> str:
        if host not in THIS_COMPUTER:
            return host
        self._refresh_port(port)
        return IPV4


Conf = Callable[[], Config | Tunnel]  # what the next client is given: a key of its own, or a tunnel to share


def use_httpx(conf: Conf, patch: pytest.MonkeyPatch) -> None:
    """`httpx.Client()` and `httpx.AsyncClient()`, the functions above them and the command."""
    import httpx
    import httpx._client

    class Transport(httpx_wireguard.WireGuardTransport):
        def __init__(self, **options: Any) -> None:
            super().__init__(conf(), **options)

    class AsyncTransport(httpx_wireguard.AsyncWireGuardTransport):
        def __init__(self, **options: Any) -> None:
            super().__init__(conf(), **options)

    for module in (httpx, httpx._client):
        patch.setattr(module, "HTTPTransport", Transport)
        patch.setattr(module, "AsyncHTTPTransport", AsyncTransport)


def use_httpcore(conf: Conf, patch: pytest.MonkeyPatch) -> None:
    """Every pool and connection of httpcore that is given no backend, and the functions above them."""
    for name in _BACKEND_USERS:
        patch.setattr(f"httpcore._sync.{name}.SyncBackend", lambda: httpx_wireguard.WireGuardBackend(conf()))
        patch.setattr(f"httpcore._async.{name}.AutoBackend", lambda: httpx_wireguard.AsyncWireGuardBackend(conf()))


def use_requests(conf: Conf, patch: pytest.MonkeyPatch) -> None:
    """`requests.Session()`, and what is above it."""
    import requests.adapters
    import requests.sessions

    from httpx_wireguard.requests import WireGuardAdapter

    class Adapter(WireGuardAdapter):
        def __init__(self, **options: Any) -> None:
            super().__init__(conf(), **options)

    for module in (requests.adapters, requests.sessions):
        patch.setattr(module, "HTTPAdapter", Adapter)


LIBRARIES = {"httpx": use_httpx, "httpcore": use_httpcore, "requests": use_requests}
