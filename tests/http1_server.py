"""HTTP/1.1 servers on a stream of the tunnel, for tests."""

from __future__ import annotations

import threading
from typing import Any

from httpx_wireguard._streams import SyncStream
from tests.tls_server import TlsServer

PATIENCE = 20.0  # seconds


def read_head(stream: Any) -> bytes:
    """The head of a request; empty at the end of the stream."""
    data = b""
    while b"\r\n\r\n" not in data:
        more: bytes = stream.read(65_536)
        if not more:
            return b""
        data += more
    return data


class OneAnswerServer:
    """Answers one request on each connection, promises to keep it, and closes it when told to."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def __init__(self) -> None:
        self.connections = 0
        self.reset()

    def __call__(self, stream: SyncStream | TlsServer) -> None:
        close, closed = self.close, self.closed
        self.connections += 1
        read_head(stream)
        stream.write(self.ANSWER)
        close.wait(PATIENCE)
        stream.close()
        closed.set()

    def reset(self) -> None:
        """Keep connections again; those that there are go on as they were told."""
        self.close = threading.Event()
        self.closed = threading.Event()
