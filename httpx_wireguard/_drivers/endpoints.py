"""Where peers are: the one lookup that is made outside the tunnel, and the sockets to reach them."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import threading
import time
from collections.abc import Collection
from typing import Any

from httpx_wireguard._config import Config, Endpoint
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._errors import EndpointError

_START_SPACING = 0.025  # seconds; see space_out
_last_starts: dict[int, float] = {}  # by hash of the private key; guarded by _starting
_starting = threading.Lock()


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def resolve(endpoint: Endpoint) -> list[tuple[Any, ...]]:
    """The UDP socket addresses of an endpoint: the one thing that is asked of the host's own network."""
    if ":" not in endpoint.host and is_address(endpoint.host):
        return [(endpoint.host, endpoint.port)]  # getaddrinfo says the same, and imports the IDNA codec first
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise EndpointError(f"Endpoint = {endpoint} does not resolve: {error}") from error
    return [entry[4] for entry in found]


def open_sockets(sockets: UdpSockets, endpoints: Collection[Endpoint]) -> int:
    """Open a socket for each IP version that the endpoints need: both where there is a name, or no endpoint at all.

    Returns:
        Bytes that the smallest receive buffer holds.

    Raises:
        EndpointError: there is no socket for an endpoint, or none at all.
    """
    if endpoints and all(is_address(endpoint.host) for endpoint in endpoints):
        for endpoint in endpoints:
            sockets.open(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    else:
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(EndpointError):
                sockets.open(family)
    if not list(sockets):
        raise EndpointError("no UDP socket can be opened: is ListenPort = taken, or the local address not this host's?")
    return min(one.capacity for one in sockets)


def remember(config: Config, handshake: float) -> None:
    """A tunnel of this key ended, whose last handshake was done at that time."""
    mark = hash(config.private_key)
    with _starting:
        _last_starts[mark] = max(handshake, _last_starts.get(mark, -math.inf))


def space_out(config: Config) -> float:
    """Two tunnels with one key, one after the other: seconds to wait until the server will hear the second one.

    A responder ignores an initiation that comes within 20 ms of the last one of the same key, and our timestamps have a
    grain of 17 ms; the next try would only come after REKEY_TIMEOUT, 5 s later. It counts from when it took up the last
    one, which may be long after that was sent.
    """
    now, mark = time.monotonic(), hash(config.private_key)
    with _starting:
        for old in [key for key, start in _last_starts.items() if start < now - _START_SPACING]:
            del _last_starts[old]
        start = max(now, _last_starts.get(mark, -math.inf) + _START_SPACING)
        _last_starts[mark] = start
    return start - now
