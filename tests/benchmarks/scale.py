"""What many connections, peers and tunnels cost one process, as their number grows.

nox -s bench -- --scale

Connections and peers live in engines without a network, so their figures hold one thread's work. Tunnels are real: each
has its socket, its thread, and its session with a WireGuardPeer in a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from httpx_wireguard import Config, PeerConfig, Tunnel
from httpx_wireguard._engine import Engine
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard.testing import WireGuardPeer
from tests.benchmarks.bench_client import memory_kb
from tests.benchmarks.layers import Stopwatch, Transfer, joined
from tests.benchmarks.report import Table
from tests.measures import deep_size
from tests.simnet import SeededEntropy
from tests.wg_quick import wg_quick
from tests.wireguard_net import ipv4_packet

COUNTS = (1, 10, 100, 1000)
SIZE = 8 << 20  # bytes, of all connections together
PACKETS = 44  # of a batch
BATCHES = 40
IDLE_SECONDS = 3.0
TITLES = {
    "connections": "Connections of one tunnel, in the engine",
    "peers": "Peers of one tunnel, in the engine",
    "tunnels": "Tunnels of one process, each with a thread and a session",
}
SERVER = ("192.0.2.1", 51820)
SECRET = b"server".ljust(32, b".")

Figures = dict[str, float]


def connections(count: int) -> Figures:
    """The reader's and the sender's work, all connections at once, and one while the others are idle."""
    before = deep_size(Transfer().client.engine)
    transfer = Transfer(count)
    figures = {"KB each": (deep_size(transfer.client.engine) - before) / max(count - 1, 1) / 1e3}
    readers, writers = transfer.readers, transfer.writers
    for name, some in (("one busy", 1), ("all busy", count)):
        transfer.now += 5.0  # the others are idle by then, and lend their windows
        transfer.readers, transfer.writers = readers[:some], writers[:some]
        transfer.run(SIZE // 4)  # windows grow
        packets, spent = transfer.packets, {way: transfer.total(way) for way in transfer.watch}
        transfer.run(SIZE)
        for way, start in spent.items():
            figures[f"{way} us, {name}"] = (transfer.total(way) - start) / (transfer.packets - packets) * 1e6
    return figures


class Crowd:
    """A server's engine with a session with each of so many peers."""

    def __init__(self, count: int) -> None:
        keys = [b"." + number.to_bytes(2, "big").ljust(31, b".") for number in range(1, count + 1)]
        self.watch = Stopwatch()
        self.now = 1000.0
        wanted = [PeerConfig(PrivateKey(key).public, f"{address_of(number)}/32") for number, key in enumerate(keys)]
        self.server = Engine(Config(SECRET, ("10.255.0.1/8",), wanted), SeededEntropy(1))
        self.clients = [self._connected(number, key) for number, key in enumerate(keys)]

    def _connected(self, number: int, key: bytes) -> Engine:
        self.now += 0.02  # more handshakes in a second are taken for a flood
        peer = PeerConfig(PrivateKey(SECRET).public, "0.0.0.0/0", "192.0.2.1:51820")
        client = Engine(Config(key, (f"{address_of(number)}/8",), [peer]), SeededEntropy(number + 2))
        client.device.peers[0].endpoint = SERVER
        client.device.initiate(client.device.peers[0], self.now)
        source = (address_of(number), 51820)
        for sender, receiver in ((client, self.server), (self.server, client), (client, self.server)):
            for run in sender.datagrams_to_send(self.now):
                origin = source if sender is client else SERVER
                receiver.receive_datagrams(joined(run), run.segment_size, origin, self.now)
        return client

    def exchange(self, number: int) -> None:
        """A batch of full packets each way, between the server and one peer."""
        client, server, address, now = self.clients[number], self.server, address_of(number), self.now
        client.device.send_packets(client.device.peers[0], [ipv4_packet(address, "10.255.0.1", 1420)] * PACKETS, now)
        for run in client.datagrams_to_send(now):
            self.watch.timed("receive", server.receive_datagrams, joined(run), run.segment_size, (address, 51820), now)
        self.watch.timed("receive", server.handle_timeout, now)
        peer = self.watch.timed("send", server.device.route, bytes(map(int, address.split("."))))
        assert peer is not None and peer.has_session(now)
        packets = [ipv4_packet("10.255.0.1", address, 1420)] * PACKETS
        self.watch.timed("send", server.device.send_packets, peer, packets, now)
        self.watch.timed("send", server.datagrams_to_send, now)


def address_of(number: int) -> str:
    return f"10.0.{(number + 1) // 256}.{(number + 1) % 256}"


def peers(count: int) -> Figures:
    """A server's work for a packet, from one peer and to it, whichever it is."""
    crowd = Crowd(count)
    figures = {"KB each": deep_size(crowd.server) / count / 1e3}
    for batch in range(BATCHES):
        crowd.exchange(batch * 7 % count)
    return figures | {f"{way} us": spent / BATCHES / PACKETS * 1e6 for way, spent in crowd.watch.seconds.items()}


def tunnels(count: int) -> Figures:
    """In a process of its own, for memory that was once used does not come back."""
    with TemporaryDirectory(prefix="httpx-wireguard-") as directory, _served(Path(directory), count):
        command = (sys.executable, "-m", "tests.benchmarks.scale", directory)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        figures: Figures = json.loads(done.stdout)
        return figures


@contextlib.contextmanager
def _served(directory: Path, count: int) -> Iterator[None]:
    command = (sys.executable, "-m", "tests.benchmarks.scale", str(directory), str(count))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        yield
        process.stdin.close()  # which ends it


def _serve(directory: Path, count: int) -> None:
    with WireGuardPeer(clients=count) as peer:
        for index in range(count):
            (directory / f"{index:04}.conf").write_text(wg_quick(peer.client_config(index)))
        print(flush=True)
        sys.stdin.read()


def descriptor_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _open_tunnels(directory: Path) -> Figures:
    """Open one for each file; ready means: a session stands."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    configs = [Config.from_file(path) for path in sorted(directory.glob("*.conf"))]
    gc.collect()
    rss, threads, descriptors = memory_kb("VmRSS"), threading.active_count(), descriptor_count()
    before, cpu = time.perf_counter(), time.process_time()
    opened = [Tunnel(config) for config in configs]
    for tunnel in opened:
        tunnel.start()
    seconds, count = time.perf_counter() - before, len(opened)
    for tunnel in opened:
        tunnel.wait_ready(60)  # the peer takes more than 100 handshakes a second for a flood, and lets some wait 5 s
    figures = {
        "ms to start each": seconds / count * 1e3,
        "CPU ms each": (time.process_time() - cpu) / count * 1e3,
        "KB each": (memory_kb("VmRSS") - rss) / count,
        "threads each": (threading.active_count() - threads) / count,
        "descriptors each": (descriptor_count() - descriptors) / count,
    }
    time.sleep(0.5)
    cpu = time.process_time()
    time.sleep(IDLE_SECONDS)
    figures["idle CPU ms/s, all"] = (time.process_time() - cpu) / IDLE_SECONDS * 1e3
    for tunnel in opened:
        tunnel.close()
    return figures


PARTS: dict[str, Callable[[int], Figures]] = {"connections": connections, "peers": peers, "tunnels": tunnels}


def measured(rounds: int) -> dict[str, dict[str, list[Figures]]]:
    """By what there are many of, and by their number: the figures of each round."""
    return {
        name: {str(count): [part(count) for _ in range(rounds)] for count in COUNTS} for name, part in PARTS.items()
    }


def tables(figures: dict[str, dict[str, list[Figures]]], spread: Callable[[Sequence[float]], str]) -> list[Table]:
    return [Table("scale", TITLES[name], _rows(by_count, spread)) for name, by_count in figures.items()]


def _rows(by_count: dict[str, list[Figures]], spread: Callable[[Sequence[float]], str]) -> list[list[str]]:
    metrics: Iterable[str] = next(iter(by_count.values()))[0]
    rows = [["how many", *metrics]]
    for count, rounds in by_count.items():
        rows.append([count, *(spread([each[metric] for each in rounds]) for metric in metrics)])
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _serve(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        print(json.dumps(_open_tunnels(Path(sys.argv[1]))))
