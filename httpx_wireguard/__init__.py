"""An HTTP client, and only that client, speaks through a WireGuard tunnel inside its own process.

import httpx
from httpx_wireguard import WireGuardTransport

with httpx.Client(transport=WireGuardTransport("wg0.conf")) as client:
    print(client.get("http://intranet.example/").text)
"""

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
from httpx_wireguard._http.backend import WireGuardBackend
from httpx_wireguard._http.transport import WireGuardTransport
from httpx_wireguard._tunnel import PeerStats, Tunnel, TunnelStats

__version__ = "0.1.0"

__all__ = [
    "AddressInUse",
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
]
