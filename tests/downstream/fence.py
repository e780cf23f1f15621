"""A fence around the test process: it may speak UDP to the tunnel's peer, and to nobody else."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any


class ClearNetwork(RuntimeError):
    """Something left the tunnel. No `OSError`: an HTTP library must not take it for a refused connection."""


class Fence:
    """Refuses to connect, send or look up a name on the clear network, in every thread, and remembers who tried.

    Servers still accept: that is how a suite's own ones work. An audit hook stays for the rest of the process.
    """

    def __init__(self, endpoint: tuple[str, int]) -> None:
        self._endpoint = endpoint
        self._escapes: list[str] = []
        sys.addaudithook(self._on_event)

    def take_escapes(self) -> list[str]:
        """What was refused since the last call."""
        escapes, self._escapes = self._escapes, []
        return escapes

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        match event:
            case "socket.connect" | "socket.sendto" | "socket.sendmsg":
                sock, address = arguments
                allowed = sock.type == socket.SOCK_DGRAM and address in (self._endpoint, None)
            case "socket.getaddrinfo" | "socket.gethostbyname":
                address = arguments[0]
                allowed = _is_literal(address)
            case _:
                return
        if not allowed:
            self._escapes.append(f"{event} {address!r}")
            raise ClearNetwork(f"{event} {address!r} is not in the tunnel")


def _is_literal(host: object) -> bool:
    """Whether `host` is an address, or none, so that no name server is asked."""
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host or "::"))
    except ValueError:
        return False
    return True
