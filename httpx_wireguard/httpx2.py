"""For httpx2 and httpcore2 what `httpx_wireguard` has for httpx and httpcore, with the errors of those.

import httpx2
from httpx_wireguard.httpx2 import WireGuardTransport

with httpx2.Client(transport=WireGuardTransport("wg0.conf")) as client:
    print(client.get("http://intranet.example/").text)
"""

try:
    from httpx_wireguard._httpx2.backend import AsyncWireGuardBackend, WireGuardBackend
    from httpx_wireguard._httpx2.clients import AsyncClient, Client
    from httpx_wireguard._httpx2.mounts import async_mounts_for, mounts_for
    from httpx_wireguard._httpx2.transport import AsyncWireGuardTransport, WireGuardTransport
except ModuleNotFoundError as error:
    if error.name not in ("httpx2", "httpcore2"):
        raise
    raise ModuleNotFoundError(f"{error}: pip install 'httpx-wireguard[httpx2]'", name=error.name) from error

__all__ = [
    "AsyncClient",
    "AsyncWireGuardBackend",
    "AsyncWireGuardTransport",
    "Client",
    "WireGuardBackend",
    "WireGuardTransport",
    "async_mounts_for",
    "mounts_for",
]
