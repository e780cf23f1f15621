"""What one connection gets of a network, by congestion control: simulated, so the same on every machine.

nox -s bench -- --simulated
nox -s bench -- --simulated --json tests/vectors/goodput.json    # what tests/scenarios/test_goodput.py compares to
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from httpx_wireguard._netstack.congestion import CONTROLS
from tests.simnet import Bursts, Link
from tests.tcp_net import Flow, bare

ENOUGH_WITHOUT_LOSSES = 5.0  # seconds; only what waits for losses has to be watched for many of them
TICK = 0.001  # seconds; arrivals come in batches, as they do to a driver, and as they cost less to simulate

Figures = dict[str, dict[str, float]]  # Mbit/s by network and control


@dataclass(frozen=True)
class Line:
    """A path of which the way down is narrow."""

    mbit: float  # a second
    rtt: float  # seconds, with an empty queue
    queue: float = 1.0  # in products of the two
    loss: float = 0.0
    bursts: Bursts | None = None
    jitter: float = 0.0  # seconds
    reorder: float = 0.0
    warm_up: float = 2.0  # seconds that are not measured
    seconds: float = 5.0

    @property
    def bytes_a_second(self) -> float:
        return self.mbit * 125_000

    def links(self) -> tuple[Link, Link]:
        """Up and down. What is reordered is late by up to a quarter of a round trip."""
        there, back = Link(delay=self.rtt / 2, tick=TICK), Link(delay=self.rtt / 2, tick=TICK)
        back.rate = self.bytes_a_second
        back.queue = int(self.bytes_a_second * self.rtt * self.queue)
        back.loss, back.bursts = self.loss, self.bursts
        there.jitter = back.jitter = self.jitter
        back.reorder, back.reorder_delay = self.reorder, self.rtt / 4
        return there, back


FAST = Line(100, 0.05, warm_up=1.0, seconds=3.0)
NETWORKS = {
    "100 Mbit/s, 50 ms": FAST,
    "the same, queue of 1/10": replace(FAST, queue=0.1, seconds=5.0),
    "the same, 0.1 % lost": replace(FAST, loss=0.001, warm_up=5.0, seconds=30.0),
    "the same, 1 % lost": replace(FAST, loss=0.01, warm_up=2.0, seconds=40.0),
    "the same, 5 % lost": replace(FAST, loss=0.05, warm_up=2.0, seconds=40.0),
    "the same, 1 % lost in bursts of 4": replace(FAST, bursts=Bursts(0.0025, 0.25), warm_up=2.0, seconds=20.0),
    "the same, 1 % reordered": replace(FAST, reorder=0.01, seconds=5.0),
    "Wi-Fi: 40 Mbit/s, 15 ms, jitter": Line(40, 0.015, queue=4.0, jitter=0.01, loss=0.0005, seconds=6.0),
    "mobile: 15 Mbit/s, 80 ms, deep queue": Line(15, 0.08, queue=6.0, jitter=0.02, loss=0.0001, seconds=10.0),
    "satellite: 20 Mbit/s, 600 ms": Line(20, 0.6, warm_up=10.0, seconds=10.0),
    "DSL: 6 Mbit/s, 40 ms, deep queue": Line(6, 0.04, queue=10.0, seconds=8.0),
}


@cache
def goodput(line: Line, control: str, *, download: bool = True, seed: int = 1) -> float:
    """Mbit/s that the reader gets, once the connection has warmed up."""
    links = line.links() if download else line.links()[::-1]
    hosts, network = bare(*links, seed=seed, control=control)
    flow = Flow(network, hosts[0], hosts[1], 80, download=download)
    network.advance(line.warm_up)
    before = flow.received
    seconds = min(line.seconds, ENOUGH_WITHOUT_LOSSES) if CONTROLS[control].model_based else line.seconds
    network.advance(seconds)
    return (flow.received - before) / seconds / 125_000


def measured() -> Figures:
    return {
        name: {control: round(goodput(line, control), 2) for control in CONTROLS} for name, line in NETWORKS.items()
    }


def table(figures: Figures) -> str:
    """Titles, and a row for each network."""
    rows = [["Mbit/s", *CONTROLS]]
    rows += [[name, *(f"{cells[control]:.2f}" for control in CONTROLS)] for name, cells in figures.items()]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
