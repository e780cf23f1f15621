"""An HTTP client, and only that client, speaks through a WireGuard tunnel inside its own process.

import httpx
from httpx_wireguard import WireGuardTransport

with httpx.Client(transport=WireGuardTransport("wg0.conf")) as client:
    print(client.get("http://intranet.example/").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._errors import (
    AddressInUse,
    ConfigError,
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    DestinationUnreachable,
    EndpointError,
    EndpointUnreachable,
    HandshakeFailed,
    HandshakeTimeout,
    MessageTooLong,
    NameResolutionError,
    NameResolutionTimeout,
    NoRoute,
    OperationTimeout,
    TunnelClosed,
    TunnelError,
    WireGuardError,
)
from httpx_wireguard._tunnel import AsyncTunnel, Tunnel

if TYPE_CHECKING:
    from httpx_wireguard._http.backend import AsyncWireGuardBackend, WireGuardBackend
    from httpx_wireguard._http.clients import AsyncClient, Client
    from httpx_wireguard._http.mounts import async_mounts_for, mounts_for
    from httpx_wireguard._http.transport import AsyncWireGuardTransport, WireGuardTransport
    from httpx_wireguard._stats import PeerStats, TunnelStats

__version__ = "0.1.0"

__all__ = [
    "AddressInUse",
    "AsyncClient",
    "AsyncTunnel",
    "AsyncWireGuardBackend",
    "AsyncWireGuardTransport",
    "Client",
    "Config",
    "ConfigError",
    "ConnectionRefused",
    "ConnectionReset",
    "ConnectionTimedOut",
    "DestinationUnreachable",
    "EndpointError",
    "EndpointUnreachable",
    "HandshakeFailed",
    "HandshakeTimeout",
    "MessageTooLong",
    "NameResolutionError",
    "NameResolutionTimeout",
    "NoRoute",
    "OperationTimeout",
    "PeerConfig",
    "PeerStats",
    "Tunnel",
    "TunnelClosed",
    "TunnelError",
    "TunnelStats",
    "WireGuardBackend",
    "WireGuardError",
    "WireGuardTransport",
    "__version__",
    "async_mounts_for",
    "mounts_for",
]

_HTTP_MODULES = {
    "AsyncClient": "clients",
    "AsyncWireGuardBackend": "backend",
    "AsyncWireGuardTransport": "transport",
    "Client": "clients",
    "WireGuardBackend": "backend",
    "WireGuardTransport": "transport",
    "async_mounts_for": "mounts",
    "mounts_for": "mounts",
}

if not TYPE_CHECKING:  # a type checker sees the classes themselves, above

    def __getattr__(name: str) -> Any:
        """What needs httpx or httpcore is imported when it is first used; who uses httpx2 needs neither."""
        if name in ("PeerStats", "TunnelStats"):  # likewise: no request needs them
            return getattr(import_module(f"{__name__}._stats"), name)
        if name not in _HTTP_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        httpx = import_module("httpx")  # it is httpx2 itself after `httpx2.alias_httpx()`
        package = "_httpx2" if httpx.__name__ == "httpx2" else "_http"
        value = globals()[name] = getattr(import_module(f"{__name__}.{package}.{_HTTP_MODULES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
