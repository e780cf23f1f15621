"""Paths that swallow large packets without a word: "HTTP works, HTTPS hangs" cannot happen (RFC 4821, RFC 8899)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion import CONTROLS
from httpx_wireguard._netstack.segment_size import SegmentSize
from tests.simnet import Link
from tests.tcp_net import Exchange, bare, packed, tunnelled

UPLOAD, DOWNLOAD = (200_000, 100), (100, 200_000)


class Stubborn(SegmentSize):
    """Of a far side that never learns."""

    def on_timeout(self, retries: int, length: int) -> int | None:
        return None


@pytest.mark.parametrize("control", sorted(CONTROLS))
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1400, 1300, 1100, 600])
@pytest.mark.parametrize("size", [UPLOAD, DOWNLOAD], ids=["upload", "download"])
def test_a_transfer_finds_the_size_that_passes(size: tuple[int, int], mtu: int, version: int, control: str) -> None:
    """One second and a half, and a doubling for each further step down."""
    hosts, network = bare(Link(mtu=mtu), control=control)
    took = Exchange(hosts, network, [size], version, dialogue=True).run()
    assert took < (3.5 if mtu >= 1300 else 15.0)


def test_a_path_that_becomes_narrow_in_mid_flight_stops_nothing() -> None:
    link = Link()
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(1_000_000, 1_000_000)])
    network.run(lambda: len(exchange.clients[0].received) > 200_000)
    link.mtu = 1300
    assert exchange.run() < 20.0


def test_what_one_connection_found_out_the_next_one_knows() -> None:
    hosts, network = bare(Link(mtu=1300))
    Exchange(hosts, network, [UPLOAD], dialogue=True).run()
    assert hosts[0].stack.path_mtu(packed(1, 4)) < 1300
    hosts[1].stack._listeners.clear()
    assert Exchange(hosts, network, [UPLOAD], dialogue=True).run() < 1.0


def test_it_is_forgotten_after_ten_minutes() -> None:
    """RFC 1191 6.3, RFC 8201 5.3."""
    hosts, network = bare(Link(mtu=1300))
    Exchange(hosts, network, [UPLOAD], dialogue=True).run()
    network.advance(601.0)
    connection = hosts[0].connect(4, 80, network.now)
    assert connection.sender.mss == 1380


def test_after_an_outage_segments_are_full_again() -> None:
    link = Link()
    hosts, network = bare(link)
    exchange = Exchange(hosts, network, [(3_000_000, 100)], dialogue=True)
    connection = exchange.clients[0].connection
    network.run(lambda: connection.sender.unacknowledged - connection.sender.queue.start > 0 or network.now > 1000.15)
    full = connection.sender.mss
    link.loss = 1.0
    network.advance(5.0)
    assert connection.sender.mss < full
    link.loss = 0.0
    assert network.run(lambda: connection.sender.mss == full, 10.0)
    assert hosts[0].stack.path_mtu(packed(1, 4)) == 1420
    exchange.run()


def test_a_far_side_that_never_learns_costs_one_request() -> None:
    """It sends full segments for ever, as Linux does by default: we give up, and ask for smaller ones from then on."""
    hosts, network = bare(Link(), Link(mtu=1300))
    listener = hosts[1].listen(80)
    first = hosts[0].connect(4, 80, network.now)
    network.advance(0.1)
    server = listener.accept(network.now)
    assert server is not None
    server.sender._segment_size = Stubborn(server.sender.mss)
    server.send(bytes(3000), network.now)
    network.advance(5.0)
    assert not first.readable
    first.close(network.now)
    second = hosts[0].connect(4, 80, network.now)
    network.advance(0.1)
    server = listener.accept(network.now)
    assert server is not None
    server.send(bytes(3000), network.now)
    network.advance(0.5)
    assert len(second.receive(9999, network.now)) == 3000


@pytest.mark.parametrize("size", [UPLOAD, DOWNLOAD], ids=["upload", "download"])
def test_the_tunnel_too_is_no_hole(size: tuple[int, int]) -> None:
    """The outer path takes 1400 bytes: an inner packet of 1340."""
    hosts, network = tunnelled(Link(mtu=1400))
    assert Exchange(hosts, network, [size], dialogue=True).run() < 3.5
