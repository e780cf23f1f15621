"""Connections that share one bottleneck: each gets its share, and the bottleneck stays busy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from httpx_wireguard._netstack.congestion import CONTROLS, DEFAULT_CONTROL
from tests.simnet import Bottleneck, Link, Network
from tests.tcp_net import Flow, StackHost, dumbbell

RATE = 1_250_000.0  # bytes a second: 10 Mbit/s
PAYLOAD = 1368 / 1420  # of the rate: what is no header

by_control = pytest.mark.parametrize("control", CONTROLS)


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has all."""
    return float(sum(shares) ** 2 / len(shares) / sum(share**2 for share in shares))


def received(flows: Sequence[Flow], network: Network, seconds: float) -> list[int]:
    """What each gets from now on."""
    before = [flow.received for flow in flows]
    network.advance(seconds)
    return [flow.received - then for flow, then in zip(flows, before, strict=True)]


@by_control
def test_equal_connections_get_equal_shares(control: str) -> None:
    flows, network = dumbbell([(control, 0.04)] * 10, Bottleneck(RATE, int(RATE * 0.04)))
    network.advance(5.0)
    shares = received(flows, network, 20.0)
    assert jain(shares) > 0.95
    assert sum(shares) > 0.85 * PAYLOAD * RATE * 20.0


@by_control
def test_a_late_comer_gets_its_share(control: str) -> None:
    """The first one has filled the queue: it has to give way."""
    flows, network = dumbbell([(control, 0.04)] * 2, Bottleneck(RATE, int(RATE * 0.08)), apart=5.0)
    network.advance(12.0)
    assert jain(received(flows, network, 15.0)) > 0.9


@by_control
def test_a_longer_way_is_no_starvation(control: str) -> None:
    """20 ms and 80 ms: Reno's shares would be 4 to 1 by theory, with an empty queue."""
    flows, network = dumbbell([(control, 0.02), (control, 0.08)], Bottleneck(RATE, int(RATE * 0.04)))
    network.advance(5.0)
    shares = received(flows, network, 20.0)
    assert min(shares) > 0.15 * sum(shares)
    assert sum(shares) > 0.8 * PAYLOAD * RATE * 20.0


@by_control
@pytest.mark.parametrize("queue", [0.02, 0.12])
def test_every_control_lives_beside_the_default_one(queue: float, control: str) -> None:
    """RFC 9743: neither harms the other, whether the queue is short or long."""
    flows, network = dumbbell([(control, 0.04), (DEFAULT_CONTROL, 0.04)], Bottleneck(RATE, int(RATE * queue)))
    network.advance(5.0)
    shares = received(flows, network, 20.0)
    assert min(shares) > 0.15 * sum(shares)
    assert sum(shares) > 0.8 * PAYLOAD * RATE * 20.0


def test_hundreds_of_connections_of_two_segments_each(request: pytest.FixtureRequest) -> None:
    """No starvation and no collapse where there are four segments for each, half of them in the queue.

    `--connections 1000` for a thousand.
    It needs loss recovery without the retransmission timeout: with windows this small there are no three duplicate
    acknowledgments, and a connection that backs off gets nothing for seconds.
    """
    count, rtt = request.config.getoption("--connections"), 0.1
    rate = count * 2 * 1420 / rtt
    hosts = [StackHost(0), StackHost(1)]
    there = Link(delay=rtt / 2, rate=rate, queue=int(rate * rtt), tick=0.001)
    back = Link(delay=rtt / 2, jitter=0.01, fifo=False, tick=0.001)
    network = Network(hosts, there, back, seed=1)
    flows: list[Flow] = []

    def start(port: int) -> None:
        flows.append(Flow(network, hosts[0], hosts[1], port, download=False))

    for number in range(count):
        network.at(number / count * 2.0, partial(start, 1000 + number))
    network.advance(3.0)
    path = network.path(0, 1)
    sent, lost = path.sent, path.lost
    shares = received(flows, network, 20.0)
    assert sum(shares) > 0.8 * PAYLOAD * rate * 20.0
    assert path.lost - lost < 0.2 * (path.sent - sent)
    assert jain(shares) > 0.9
    assert min(shares) > 0.01 * sum(shares) / count
