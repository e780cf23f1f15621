"""What each layer costs for a full-size packet, in one thread, without a network: CPU time.

nox -s bench -- --layers

Two engines stand back to back in virtual time; the one sends a large body, the other reads it. Every verb is timed by
itself, so the sender's verbs are the cost of an upload, the reader's that of a download.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from httpx_wireguard._drivers.udp import UdpSocket
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire.checksum import checksum
from httpx_wireguard._wireguard.runs import DatagramRun
from tests.benchmarks.report import Table
from tests.tcp_net import ENDPOINTS, EngineHost

SIZE = 16 << 20  # bytes of a transfer
HOP = 0.0005  # seconds from the one engine to the other
CHUNK = bytes(65_536)  # what a client writes, and asks for, at once
RUNS = 200  # of a single step

TITLES = {
    "download": "The reader's engine",
    "upload": "The sender's engine",
    "socket": "The UDP socket, over the loopback interface, the kernel's work included",
}

ORDER = (
    "device: open, check, accept", "of which the cipher", "stack and TCP: deliver", "read", "acknowledge",
    "write", "TCP: build segments", "of which the checksum", "device: seal, make runs",
    "of which the cipher and its header", "take acknowledgments", "whole engine", "MB/s", "CPU s/GB",
    "send, offload", "send, plain", "receive, offload", "receive, plain",
)  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


class Stopwatch:
    """CPU seconds of this thread, by layer."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, layer: str, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        before = time.thread_time()
        result = call(*arguments, **named)
        self.seconds[layer] += time.thread_time() - before  # type: ignore[assignment]  # a Counter of floats
        return result


class Transfer:
    """A body from the server's engine to the client's."""

    def __init__(self, connections: int = 1) -> None:
        self.client, self.server = EngineHost(0), EngineHost(1)
        self.now = 1000.0
        self.packets = 0  # with data
        self.watch = {"download": Stopwatch(), "upload": Stopwatch()}
        listener = self.server.listen(80, backlog=connections)
        self.readers: list[TcpConnection] = []
        self.writers: list[TcpConnection] = []
        while len(self.writers) < connections:
            self.readers.append(self.client.connect(4, 80, self.now))
            while (accepted := listener.accept(self.now)) is None:
                self._exchange(self.client, self.server)
                self._exchange(self.server, self.client)
            self.writers.append(accepted)
        self._exchange(self.client, self.server)

    def _exchange(self, source: EngineHost, target: EngineHost) -> None:
        self.now += HOP
        for host in (source, target):
            host.handle_timeout(self.now)
        for run in source.engine.datagrams_to_send(self.now):
            target.engine.receive_datagrams(joined(run), run.segment_size, ENDPOINTS[source.index], self.now)

    def run(self, size: int) -> None:
        """Every connection brings its part of `size` bytes."""
        share = size // len(self.readers)
        missing = dict.fromkeys(self.readers, share)
        unwritten = dict.fromkeys(self.writers, share)
        while missing:
            self.now += HOP
            for run in self._send(unwritten):
                self._receive(run, missing)
            self.now += HOP
            self._acknowledge()

    def _send(self, unwritten: dict[TcpConnection, int]) -> list[DatagramRun]:
        """The sender's half of a round trip: what an upload does."""
        timed, engine, now = self.watch["upload"].timed, self.server.engine, self.now
        timed("take acknowledgments", engine.handle_timeout, now)  # the pace of what is sent
        for connection in list(unwritten):
            while left := min(unwritten[connection], len(CHUNK)):
                taken = timed("write", connection.send, CHUNK[:left], now)
                unwritten[connection] -= taken
                if taken < left:
                    break
            else:
                del unwritten[connection]
        for destination, packets in timed("TCP: build segments", engine.stack.packets_to_send, now):
            self.packets += len(packets)
            peer = engine.device.route(destination)
            assert peer is not None
            timed("device: seal, make runs", engine.device.send_packets, peer, packets, now)
        return timed("device: seal, make runs", engine.device.datagrams_to_send)

    def _receive(self, run: DatagramRun, missing: dict[TcpConnection, int]) -> None:
        """What a download does with one read of its UDP socket."""
        timed, engine, now = self.watch["download"].timed, self.client.engine, self.now
        data = joined(run)
        layer = "device: open, check, accept"
        packets = timed(layer, engine.device.receive_datagrams, data, run.segment_size, ENDPOINTS[1], now)
        timed("stack and TCP: deliver", engine.stack.receive_packets, packets, now)
        for connection in engine.take_woken():
            if isinstance(connection, TcpConnection) and connection.readable:
                missing[connection] -= len(timed("read", connection.receive, len(CHUNK), now))
                if not missing[connection]:
                    del missing[connection]

    def _acknowledge(self) -> None:
        download, upload = self.watch["download"].timed, self.watch["upload"].timed
        download("acknowledge", self.client.engine.handle_timeout, self.now)
        for run in download("acknowledge", self.client.engine.datagrams_to_send, self.now):
            data, receive = joined(run), self.server.engine.receive_datagrams
            upload("take acknowledgments", receive, data, run.segment_size, ENDPOINTS[0], self.now)

    def total(self, direction: str) -> float:
        """CPU seconds of all layers."""
        return sum(self.watch[direction].seconds.values())

    def parts(self) -> None:
        """Single steps by themselves, on the last session and a full run of full packets."""
        mtu = self.client.engine.config.mtu
        packets = [bytes(mtu)] * 44
        sender, receiver = self.server.engine.device.peers[0].current, self.client.engine.device.peers[0].current
        assert sender is not None and receiver is not None
        for _ in range(RUNS):
            buffers, sizes = self._part("upload", "of which the cipher and its header", sender.seal_run, packets, mtu)
            data = memoryview(b"".join(buffers))
            opened, _ = self._part("download", "of which the cipher", receiver.open_run, data, sizes[0], print)
            assert len(opened) == len(packets)
            for packet in packets:
                self._part("upload", "of which the checksum", checksum, packet)

    def _part(self, direction: str, layer: str, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return self.watch[direction].timed(layer, call, *arguments, **named)


def joined(run: DatagramRun) -> memoryview:
    """As one read of a UDP socket gives it."""
    return memoryview(b"".join(run.buffers))


def engine_layers() -> dict[str, float]:
    """Microseconds a packet; MB/s and CPU s/GB of the whole."""
    transfer = Transfer()
    transfer.run(SIZE)
    figures: dict[str, float] = {}
    for direction, stopwatch in transfer.watch.items():
        seconds = transfer.total(direction)
        figures |= {f"{direction}: {layer}": s / transfer.packets * 1e6 for layer, s in stopwatch.seconds.items()}
        figures[f"{direction}: whole engine"] = seconds / transfer.packets * 1e6
        figures[f"{direction}: MB/s"] = SIZE / seconds / 1e6
        figures[f"{direction}: CPU s/GB"] = seconds / SIZE * 1e9
    for stopwatch in transfer.watch.values():
        stopwatch.seconds.clear()
    transfer.parts()
    for direction, stopwatch in transfer.watch.items():
        figures |= {f"{direction}: {layer}": s / RUNS / 44 * 1e6 for layer, s in stopwatch.seconds.items()}
    return figures


def socket_layers() -> dict[str, float]:
    """Microseconds a datagram over the loopback interface, the kernel's work included."""
    stopwatch = Stopwatch()
    for name, offload in (("offload", True), ("plain", False)):
        sender, receiver = (UdpSocket(socket.AF_INET, "127.0.0.1", offload=offload) for _ in range(2))
        buffers = [bytes(16), bytes(1436)] * 44
        for _ in range(RUNS):
            stopwatch.timed(f"send, {name}", sender.send, buffers, 1452, ("127.0.0.1", receiver.port))
            received = 0
            while (batch := stopwatch.timed(f"receive, {name}", receiver.receive)) is not None:
                received += len(batch[0])
            assert received == 44 * 1452
        sender.close()
        receiver.close()
    return {f"socket: {layer}": s / RUNS / 44 * 1e6 for layer, s in stopwatch.seconds.items()}


def measured(rounds: int) -> list[dict[str, float]]:
    """Every figure of each round; the first, which is not counted, warms up."""
    return [engine_layers() | socket_layers() for _ in range(rounds + 1)][1:]


def tables(rounds: Sequence[dict[str, float]], spread: Callable[[Sequence[float]], str]) -> list[Table]:
    """One for each direction, and one for the sockets."""
    found = []
    for part in ("download", "upload", "socket"):
        rows = [[part, "us a packet"]]
        for layer in ORDER:
            values = [each[name] for each in rounds if (name := f"{part}: {layer}") in each]
            rows += [[layer, spread(values)]] if values else []
        found.append(Table("layers", TITLES[part], rows))
    return found
