"""Receive windows and send buffers on long, short and crowded paths, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from httpx_wireguard._netstack.limits import RECEIVE_FLOOR, ReceiveMemory
from httpx_wireguard._netstack.receiver import ROUNDING
from httpx_wireguard._netstack.sender import INITIAL_SEND_BUFFER
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire.tcp import OPTION_TIMESTAMPS
from tests.simnet import Link, Network
from tests.tcp_net import SOCKET_CAPACITY, StackHost, packed

MBIT = 125_000  # bytes a second


class Transfers:
    """Connections from host 0 to host 1, each with `size` bytes one way."""

    def __init__(self, count: int, size: int, *links: Link, upload: bool = False, mtu: int = 1420) -> None:
        self.hosts = [StackHost(0, mtu), StackHost(1, mtu)]
        self.network = Network([*self.hosts], *links, seed=1)
        self.size, self.upload = size, upload
        self.listener = self.hosts[1].stack.listen_tcp(80)
        self.clients: list[TcpConnection] = []
        self.servers: list[TcpConnection] = []
        self.unsent: dict[TcpConnection, int] = {}
        self.received: dict[TcpConnection, int] = {}
        self.count = count

    def start(self) -> None:
        now = self.network.now
        self.clients = [self.hosts[0].stack.open_tcp((packed(1, 4), 80), now) for _ in range(self.count)]
        self.unsent |= dict.fromkeys(self.clients, self.size if self.upload else 10)

    def step(self) -> bool:
        now = self.network.now
        while (served := self.listener.accept(now)) is not None:
            self.servers.append(served)
            self.unsent[served] = 10 if self.upload else self.size
        for connection in (*self.clients, *self.servers):
            while self.unsent[connection] and connection.writable:
                self.unsent[connection] -= connection.send(bytes(min(self.unsent[connection], 1 << 18)), now)
            while data := connection.receive(1 << 18, now):
                self.received[connection] = self.received.get(connection, 0) + len(data)
        readers = self.servers if self.upload else self.clients
        return len(readers) == self.count and all(self.received.get(reader) == self.size for reader in readers)

    def run(self, watch: Callable[[], None] = lambda: None, seconds: float = 120.0) -> float:
        """Until every byte is there; returns how long it took. `watch` is called all the time."""
        self.start()
        start = self.network.now

        def step() -> bool:
            done = self.step()
            watch()
            return done

        assert self.network.run(step, seconds)
        return self.network.now - start


@pytest.mark.parametrize("timestamps", [True, False])
def test_the_window_never_holds_slow_start_back(timestamps: bool) -> None:
    """100 Mbit/s over 300 ms, 3.75 MB in flight: a sender in slow start always finds the window open."""
    there, back = Link(delay=0.15), Link(delay=0.15, rate=100 * MBIT, queue=8_000_000)
    transfer = Transfers(1, 12_000_000, there, back, mtu=2800)
    transfer.hosts[0].stripped = () if timestamps else (OPTION_TIMESTAMPS,)
    largest = 0

    def watch() -> None:
        nonlocal largest
        for server in transfer.servers:
            sender = server.sender
            in_flight = sender.next - sender.unacknowledged
            largest = max(largest, in_flight)
            assert in_flight == 0 or in_flight + sender.mss < sender.window

    transfer.run(watch)
    assert largest > 3_750_000


def test_the_window_of_a_path_stays_in_proportion_to_it() -> None:
    """Right-sizing, not merely growth: 10 Mbit/s over 100 ms hold 125 KB, and as much in the queue before them."""
    transfer = Transfers(1, 5_000_000, Link(delay=0.05), Link(delay=0.05, rate=10 * MBIT, queue=125_000))
    transfer.run()
    assert transfer.servers[0].sender.window < 1_300_000


def test_an_upload_fills_a_long_path_and_the_writers_buffer_grows_with_it() -> None:
    """100 Mbit/s over 300 ms: 3.75 MB in flight, of which the writer's first 512 KiB would be an eighth."""
    transfer = Transfers(
        1, 30_000_000, Link(delay=0.15, rate=100 * MBIT, queue=4_000_000), Link(delay=0.15), upload=True, mtu=9000
    )
    largest = 0

    def watch() -> None:
        nonlocal largest
        sender = transfer.clients[0].sender
        largest = max(largest, sender.next - sender.unacknowledged)
        assert len(sender.queue) <= max(INITIAL_SEND_BUFFER, 2 * sender.buffer_limit)

    transfer.run(watch)
    assert largest > 3_750_000


@pytest.mark.parametrize("delay", [0.0001, 0.0005])
def test_downloads_on_a_short_path_do_not_overflow_the_udp_socket(delay: float) -> None:
    """The incast problem: eight senders at once, and a socket that holds 128 KiB and is emptied at 200 MB/s."""
    transfers = Transfers(8, 500_000, Link(delay=delay), Link(delay=delay, rate=200e6, queue=SOCKET_CAPACITY))
    assert transfers.run() < 1.5 * 8 * 500_000 / 200e6
    assert transfers.network.lost < 0.005 * 8 * 500_000 / 1368


def test_fifty_downloads_on_a_short_path_end_without_a_collapse() -> None:
    """With a window of 128 KiB each, a tenth of all segments was lost and the whole took 0.65 s instead of 0.05."""
    transfers = Transfers(50, 100_000, Link(delay=0.0001), Link(delay=0.0001, rate=200e6, queue=SOCKET_CAPACITY))
    assert transfers.run() < 0.3
    assert transfers.network.lost < 0.05 * 50 * 100_000 / 1368


def test_many_downloads_share_little_memory_and_lose_nothing() -> None:
    """A window is promised only where there is memory for it, so nothing is ever thrown away for want of it.

    Eight have 128 KiB each before the others come, which have their floors.
    """
    transfers = Transfers(20, 400_000, Link(delay=0.05), mtu=9000)
    memory = ReceiveMemory(1 << 20)
    transfers.hosts[0].stack._shared.receive = memory
    held = 0

    def watch() -> None:
        nonlocal held
        assert memory.free >= -20 * RECEIVE_FLOOR
        held = max(held, sum(client.receiver.buffered for client in transfers.clients))

    transfers.run(watch)
    assert sum(server.sender.segments_retransmitted for server in transfers.servers) == 0
    assert held <= 5 << 18
    for client in transfers.clients:
        client.abort(transfers.network.now)
    assert memory.free == 1 << 20


def test_a_slow_reader_does_not_starve_the_others() -> None:
    """One connection's unread data fills its window and no more; the others go on at full speed."""
    transfers = Transfers(4, 3_000_000, Link(delay=0.05), mtu=9000)
    memory = ReceiveMemory(8 << 20)
    transfers.hosts[0].stack._shared.receive = memory
    transfers.start()
    stalled = transfers.clients.pop()
    transfers.count = 3
    assert transfers.network.run(transfers.step, 5.0)
    assert 1 << 17 <= stalled.receiver.buffered < (1 << 17) + ROUNDING
    assert memory.free >= 0
