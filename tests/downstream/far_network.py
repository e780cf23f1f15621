"""The far end of the tunnel, a process of its own: its address has the TCP ports that this computer's loopback has.

So a test suite keeps its own servers, while its client has to come through the tunnel to reach them.

The first line on stdout is JSON, the configurations of the clients as wg-quick files. Then each line of stdin is a port
that is about to be connected to, answered by an empty line once that port stands inside the tunnel as it does outside:
open or closed. The process ends with stdin.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from httpx_wireguard import Tunnel
from httpx_wireguard._streams import SyncStream
from httpx_wireguard.testing import IPV4, WireGuardPeer
from tests.wg_quick import wg_quick

LOOPBACK = "127.0.0.1"
NAMES = {"example.com": (IPV4,)}  # what the suites ask of the public Internet: the peer's own site answers
CHUNK_SIZE = 65536
TCP_TABLE = Path("/proc/net/tcp")  # Linux; proc(5)
LISTEN = "0A"  # TCP_LISTEN of Linux' include/net/tcp_states.h


def main(clients: int) -> None:
    """Serve until stdin ends."""
    with WireGuardPeer(clients=clients, names=NAMES) as peer:
        print(json.dumps([wg_quick(peer.client_config(index)) for index in range(clients)]), flush=True)
        ports = LoopbackPorts(peer.tunnel)
        for line in sys.stdin:
            ports.refresh(int(line))
            print(flush=True)


class LoopbackPorts:
    """Loopback ports that are open in the tunnel too."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._close_listener: dict[int, Callable[[], None]] = {}

    def refresh(self, port: int) -> None:
        """Listen on `port` if something on the loopback does, else do not: the tunnel's stack then refuses."""
        if not _is_listening(port):
            self._close_listener.pop(port, _nothing)()
        elif port not in self._close_listener:
            listener = self._tunnel.listen_tcp(port)
            self._close_listener[port] = listener.close
            _spawn(_accept, listener.accept, port)


def _accept(accept: Callable[[], SyncStream], port: int) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            _spawn(_relay, accept(), port)


def _relay(stream: SyncStream, port: int) -> None:
    """Carry one connection to its loopback server and back, ends of file included."""
    try:
        sock = socket.create_connection((LOOPBACK, port))
    except OSError:
        stream.close()
        return
    with sock, contextlib.closing(stream):
        back = _spawn(_carry_back, sock, stream)
        with contextlib.suppress(OSError):
            while data := stream.read(CHUNK_SIZE):
                sock.sendall(data)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        back.join()


def _carry_back(sock: socket.socket, stream: SyncStream) -> None:
    with contextlib.suppress(OSError):
        while data := sock.recv(CHUNK_SIZE):
            stream.write(data)
    with contextlib.suppress(OSError):
        stream.close()  # wakes the other direction


def _is_listening(port: int) -> bool:
    entries = [line.split() for line in TCP_TABLE.read_text().splitlines()[1:]]
    return any(entry[3] == LISTEN and int(entry[1].rpartition(":")[2], 16) == port for entry in entries)


def _spawn(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _nothing() -> None:
    """Close no listener."""


if __name__ == "__main__":
    main(int(sys.argv[1]))
