"""A server that keeps a connection only until it is told to close it."""

from __future__ import annotations

import threading

from httpx_wireguard._streams import SyncStream
from tests.tls_server import TlsServer

PATIENCE = 20.0  # seconds


class OneAnswerServer:
    """Answers one request on each connection, promises to keep it, and closes it when told to."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def __init__(self) -> None:
        self.connections = 0
        self.reset()

    def __call__(self, stream: SyncStream | TlsServer) -> None:
        close, closed = self.close, self.closed
        self.connections += 1
        data = b""
        while b"\r\n\r\n" not in data:
            data += stream.read(65_536)
        stream.write(self.ANSWER)
        close.wait(PATIENCE)
        stream.close()
        closed.set()

    def reset(self) -> None:
        """Keep connections again; those that there are go on as they were told."""
        self.close = threading.Event()
        self.closed = threading.Event()
