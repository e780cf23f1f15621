"""Two hosts, bare or with WireGuard between them, over bad networks in virtual time."""

from __future__ import annotations

import random

import pytest

from httpx_wireguard._errors import ConnectionTimedOut, WireGuardError
from httpx_wireguard._netstack.listener import HALF_OPEN_LIMIT
from httpx_wireguard._netstack.stack import EPHEMERAL_PORTS, Stack
from httpx_wireguard._netstack.tcp import State
from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.tcp import (
    OPTION_SACK_PERMITTED,
    OPTION_TIMESTAMPS,
    OPTION_WINDOW_SCALE,
    Flags,
    TcpHeader,
)
from tests.simnet import Link
from tests.tcp_net import PACKED, Exchange, bare, tunnelled

NETWORKS = {
    "clean": Link(),
    "loss 1 %": Link(loss=0.01),
    "loss 5 %": Link(loss=0.05),
    "loss 20 %": Link(loss=0.2),
    "reordered": Link(jitter=0.02, fifo=False),
    "duplicated": Link(duplicate=0.3),
    "reordered, duplicated, lossy": Link(jitter=0.01, fifo=False, duplicate=0.1, loss=0.03),
    "slow with a short queue": Link(rate=1_000_000, queue=30_000, delay=0.02),
    "slow with a long queue": Link(rate=500_000, queue=1_000_000, delay=0.02),
    "long": Link(delay=0.3),
}


@pytest.mark.parametrize("link", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("version", [4, 6])
def test_both_streams_arrive_whole_and_leave_nothing(link: Link, version: int) -> None:
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(200_000, 300_000)], version)
    exchange.run()
    exchange.check_nothing_left()


@pytest.mark.parametrize("link", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(
    "stripped",
    [
        (OPTION_SACK_PERMITTED,),
        (OPTION_TIMESTAMPS,),
        (OPTION_SACK_PERMITTED, OPTION_TIMESTAMPS, OPTION_WINDOW_SCALE),
    ],
    ids=["without SACK", "without timestamps", "without any"],
)
def test_both_streams_arrive_whole_with_a_far_side_of_fewer_options(link: Link, stripped: tuple[int, ...]) -> None:
    """RFC 9293 alone: loss recovery by duplicates, acknowledgments without timestamps, windows of 64 KB."""
    hosts, network = bare(link)
    hosts[0].stripped = hosts[1].stripped = stripped
    exchange = Exchange(hosts, network, [(200_000, 300_000)])
    exchange.run()
    assert exchange.clients[0].connection.sender.sack == (OPTION_SACK_PERMITTED not in stripped)
    exchange.check_nothing_left()


@pytest.mark.parametrize("link", NETWORKS.values(), ids=NETWORKS)
def test_both_streams_arrive_whole_through_the_tunnel(link: Link) -> None:
    hosts, network = tunnelled(link)
    exchange = Exchange(hosts, network, [(200_000, 300_000)])
    exchange.run()
    exchange.check_nothing_left()


def test_corrupt_datagrams_are_only_lost_ones() -> None:
    """Nothing that failed to authenticate reaches TCP, which does not check its own checksum."""
    hosts, network = tunnelled(Link(corrupt=0.1))
    Exchange(hosts, network, [(200_000, 200_000)]).run()
    assert hosts[0].engine.device.drops.total() > 10


@pytest.mark.parametrize("seed", range(5))
def test_heavy_loss_both_ways_delivers_exact_bytes(seed: int) -> None:
    hosts, network = bare(Link(loss=0.2, jitter=0.005, fifo=False, duplicate=0.05), seed=seed)
    Exchange(hosts, network, [(100_000, 100_000)]).run()


def test_a_clean_path_needs_no_retransmission() -> None:
    hosts, network = bare(Link(delay=0.05))
    exchange = Exchange(hosts, network, [(1_000_000, 1_000_000)])
    exchange.run()
    ends = [*exchange.clients, *exchange.servers.values()]
    assert [end.connection.sender.segments_retransmitted for end in ends] == [0, 0]


def test_a_slow_link_is_kept_busy() -> None:
    """1 MB/s, a queue of one round trip: at least 70 % of it is used."""
    hosts, network = bare(Link(rate=1_000_000, queue=60_000, delay=0.03), Link(delay=0.03))
    assert Exchange(hosts, network, [(5_000_000, 10)]).run() < 5 / 0.7


def test_a_long_fat_path_opens_the_window() -> None:
    """A receive window beyond the initial 128 KB: 200 ms would allow 0.65 MB/s with that alone."""
    hosts, network = bare(Link(delay=0.1))
    assert Exchange(hosts, network, [(10, 20_000_000)]).run() < 12.0


@pytest.mark.parametrize("loss, seconds", [(0.001, 5.0), (0.01, 15.0), (0.05, 60.0)])
def test_loss_costs_throughput_but_not_too_much(loss: float, seconds: float) -> None:
    """2 MB at 20 ms; timeouts for single losses would take far longer."""
    hosts, network = bare(Link(loss=loss, delay=0.01))
    assert Exchange(hosts, network, [(10, 2_000_000)]).run() < seconds


@pytest.mark.parametrize("version, mtu", [(4, 1000), (4, 576), (6, 1280)])
def test_a_path_that_becomes_narrower_says_so_and_the_streams_go_on(version: int, mtu: int) -> None:
    """RFC 1191, RFC 8201."""
    link = Link(delay=0.02, answers=True)
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(500_000, 500_000)], version)
    network.run(lambda: len(exchange.clients[0].received) > 100_000)
    link.mtu = mtu
    assert exchange.run() < 5.0
    assert hosts[0].stack.path_mtu(PACKED[version][1]) == mtu


def test_two_connections_survive_a_narrower_path() -> None:
    link = Link(delay=0.02, answers=True)
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(300_000, 300_000)] * 2)
    network.run(lambda: len(exchange.clients[0].received) > 100_000)
    link.mtu = 900
    assert exchange.run() < 5.0


@pytest.mark.parametrize("version", [4, 6])
def test_every_packet_fits_the_tunnels_mtu(version: int) -> None:
    """Also with SACK blocks on the way while data flows both ways."""
    hosts, network = tunnelled(Link(loss=0.05, mtu=1280 + 32 + 32), mtu=1280)
    exchange = Exchange(hosts, network, [(300_000, 300_000)], version)
    exchange.run()
    assert max(end.connection.sender.mss for end in exchange.clients) <= 1280 - 52


def test_fifty_connections_at_once() -> None:
    hosts, network = tunnelled(Link(loss=0.01, rate=5_000_000, queue=100_000))
    exchange = Exchange(hosts, network, [(1_000 * (index % 7), 20_000) for index in range(50)])
    exchange.run()
    exchange.check_nothing_left()


def test_connections_share_a_link() -> None:
    """Jain's index over four equal downloads that compete for 1 MB/s."""
    hosts, network = bare(Link(delay=0.02), Link(rate=1_000_000, queue=40_000, delay=0.02))
    exchange = Exchange(hosts, network, [(10, 3_000_000)] * 4)
    network.run(exchange.done, 6.0)
    shares = [len(end.received) for end in exchange.clients]
    assert sum(shares) ** 2 / (4 * sum(share**2 for share in shares)) > 0.7
    assert sum(shares) > 3_500_000


def test_a_full_backlog_makes_connections_wait_for_accept() -> None:
    hosts, network = bare()
    listener = hosts[1].listen(80, backlog=3)
    connections = [hosts[0].connect(4, 80, network.now) for _ in range(8)]
    network.advance(0.5)
    waiting = 0
    while listener.accept(network.now) is not None:
        waiting += 1
    assert 3 <= waiting <= 8
    accepted = waiting
    while accepted < 8:
        network.advance(1.0)
        while listener.accept(network.now) is not None:
            accepted += 1
    assert all(connection.state is State.ESTABLISHED for connection in connections)


def test_a_flood_of_syns_holds_a_bounded_number_of_half_open_connections() -> None:
    """RFC 4987; they are forgotten when nobody answers."""
    hosts, network = bare()
    listener = hosts[1].listen(80)
    flood = random.Random(3)
    for number in range(2000):
        source = bytes([10, 1, flood.randrange(256), flood.randrange(1, 255)])
        segment = TcpHeader(1024 + number, 80, flood.getrandbits(32), 0, int(Flags.SYN), 1024)
        body = segment.serialize_segment(source, PACKED[4][1])
        packet = Ipv4Header(source, PACKED[4][1], PROTOCOL_TCP, 20 + len(body)).serialize() + body
        hosts[1].stack.receive_packets([packet], network.now)
        assert hosts[1].stack.connection_count <= HALF_OPEN_LIMIT
    hosts[1].to_send(network.now)
    while (due := hosts[1].next_timeout()) is not None:
        hosts[1].handle_timeout(due)
        hosts[1].to_send(due)
    assert hosts[1].stack.connection_count == listener.half_open == 0


def test_a_dead_network_ends_in_an_error_and_not_in_silence() -> None:
    link = Link()
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(5_000_000, 5_000_000)])
    network.run(lambda: len(exchange.clients[0].received) > 100_000)
    link.loss = 1.0
    errors: list[WireGuardError] = []

    def failed() -> bool:
        for end in [*exchange.clients, *exchange.servers.values()]:
            if end.connection.error is not None and end.connection.error not in errors:
                errors.append(end.connection.error)
        return len(errors) == 2

    assert network.run(failed, 3600.0)
    assert all(isinstance(error, ConnectionTimedOut) for error in errors)
    assert [host.stack.connection_count for host in hosts] == [0, 0]


def test_a_network_that_comes_back_resumes_the_streams() -> None:
    link = Link()
    hosts, network = tunnelled(link)
    exchange = Exchange(hosts, network, [(2_000_000, 2_000_000)])
    network.run(lambda: len(exchange.clients[0].received) > 100_000)
    link.loss = 1.0
    network.run(exchange.done, 30.0)
    link.loss = 0.0
    assert exchange.run() < 60.0


def test_an_idle_tunnel_sends_nothing() -> None:
    """RFC 9293 MUST-25, WireGuard paper 6.5: no keep-alive unless asked for."""
    hosts, network = tunnelled()
    listener = hosts[1].listen(80)
    connection = hosts[0].connect(4, 80, network.now)
    network.advance(30.0)
    served = listener.accept(network.now)
    assert served is not None
    before = [host.sent for host in hosts]
    network.advance(3600.0)
    assert [host.sent for host in hosts] == before
    connection.send(b"still there?", network.now)
    assert network.run(lambda: served.readable, 10.0)
    assert served.receive(99, network.now) == b"still there?"


def test_a_reader_that_stops_stops_the_writer_and_its_memory() -> None:
    """RFC 9293 3.8.6: flow control; and the window is probed until it opens."""
    hosts, network = bare()
    listener = hosts[1].listen(80)
    connection = hosts[0].connect(4, 80, network.now)
    network.run(lambda: connection.connected)
    data = memoryview(random.Random(5).randbytes(8_000_000))
    offset = connection.send(data, network.now)
    network.advance(600.0)
    served = listener.accept(network.now)
    assert served is not None
    assert served.receiver.buffered <= (1 << 17) + 256
    received = bytearray()

    def drain() -> bool:
        nonlocal offset
        offset += connection.send(data[offset:], network.now)
        received.extend(served.receive(1 << 20, network.now))
        return len(received) == len(data)

    assert network.run(drain, 120.0)
    assert received == data


def test_small_writes_that_nobody_reads_do_not_fill_memory() -> None:
    """The window closes for segments smaller than its unit too."""
    hosts, network = bare(Link(delay=0.001))
    listener = hosts[1].listen(80)
    connection = hosts[0].connect(4, 80, network.now)
    network.run(lambda: connection.connected)
    served = listener.accept(network.now)
    for _ in range(2000):
        connection.send(bytes(100), network.now)
        network.advance(0.003)
        served = served or listener.accept(network.now)
    assert served is not None
    assert served.receiver.buffered <= (1 << 17) + 256


def test_simultaneous_opens_become_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9293 3.5 figure 7, MUST-10: both ends agree on the ports."""
    hosts, network = bare()
    for host, port in zip(hosts, (40000, 40001), strict=True):
        monkeypatch.setattr(host.stack, "_next_port_offset", lambda _, offset=port - EPHEMERAL_PORTS[0]: offset)
    one = hosts[0].stack.open_tcp((PACKED[4][1], 40001), network.now)
    two = hosts[1].stack.open_tcp((PACKED[4][0], 40000), network.now)
    network.advance(1.0)
    assert (one.state, two.state) == (State.ESTABLISHED, State.ESTABLISHED)
    one.send(b"to two", network.now)
    two.send(b"to one", network.now)
    network.advance(1.0)
    assert (one.receive(9, network.now), two.receive(9, network.now)) == (b"to one", b"to two")


def test_a_relic_of_a_crashed_client_does_not_block_its_successor() -> None:
    """RFC 9293 3.5.1 figure 9: the new SYN draws an acknowledgment, that a reset, and the next SYN connects."""

    class Same:
        def random(self, n: int) -> bytes:
            return bytes(n)

    hosts, network = bare()
    listener = hosts[1].listen(80)
    hosts[0].stack = Stack([PACKED[4][0]], 1420, Same(), 1 << 17)
    hosts[0].connect(4, 80, network.now)
    network.advance(1.0)
    hosts[0].stack = Stack([PACKED[4][0]], 1420, Same(), 1 << 17)
    successor = hosts[0].connect(4, 80, network.now)
    network.advance(5.0)
    assert successor.state is State.ESTABLISHED
    old, new = listener.accept(network.now), listener.accept(network.now)
    assert old is not None
    assert old.error is not None
    assert new is not None
    assert new.state is State.ESTABLISHED
