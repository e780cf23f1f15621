"""Thousands of networks, each drawn from its seed: exact bytes, no stall that losses do not explain, nothing left.

`pytest tests/scenarios/test_many_networks.py --networks 10000` simulates more of them, `--networks 7531:7532` one.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from httpx_wireguard._errors import ConnectionTimedOut
from httpx_wireguard._netstack.rtt import FALLBACK_RTO, MAXIMUM_RTO, MINIMUM_MARGIN
from httpx_wireguard._netstack.tcp import ORPHAN_RETRIES, State, TcpConnection
from tests.simnet import Bursts, Link, Network, is_acknowledgment
from tests.tcp_net import CONTROLS, ENDPOINTS, End, EngineHost, Exchange, StackHost, TcpHost

BLOCK = 50  # networks of one test
HANDSHAKE = 6.0  # seconds; REKEY_TIMEOUT and its jitter (WireGuard paper 6.1): after each lost message of a handshake
DELAYED_ACK = 0.04  # seconds
SLOW = 20_000.0  # bytes a second; the least rate
STALL = 1.0  # seconds; the delay of a link while it is stalled


@dataclass
class Plan:
    """A network and what two hosts do on it."""

    seed: int
    tunnel: bool
    version: int
    mtu: int
    links: tuple[Link, Link]
    sizes: list[tuple[int, int]]
    dialogue: bool
    events: list[tuple[str, float]]  # what happens, and after how many seconds
    control: str  # of bare hosts

    @property
    def patience(self) -> float:
        """The longest that a round trip may take when nothing is lost."""
        happens = {event for event, _ in self.events}
        seconds = DELAYED_ACK
        for link in self.links:
            rate = SLOW if "slower" in happens else link.rate
            seconds += max(link.delay, STALL if "stall" in happens else 0.0) + link.jitter + link.tick
            seconds += (link.reorder_delay if link.reorder else 0.0) + ((link.queue + 3000) / rate if rate else 0.0)
        return seconds


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def sometimes(rng: random.Random, probability: float, draw: Callable[[], float]) -> float:
    return draw() if rng.random() < probability else 0.0


def draw_link(rng: random.Random, tunnel: bool) -> Link:
    link = Link(delay=log_uniform(rng, 0.001, 0.3))
    kind = rng.choice(["no loss", "random", "random", "bursts"])
    if kind == "random":
        link.loss = rng.choice([0.001, 0.01, 0.05, 0.1, 0.2])
    elif kind == "bursts":
        link.bursts = Bursts(rng.uniform(0.005, 0.1), rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.0))
    link.jitter = sometimes(rng, 0.4, lambda: link.delay * rng.uniform(0.1, 1.0))
    link.fifo = rng.random() < 0.7
    link.reorder = sometimes(rng, 0.3, lambda: rng.uniform(0.01, 0.3))
    link.reorder_delay = rng.uniform(0.0, 0.1)
    link.duplicate = sometimes(rng, 0.3, lambda: rng.uniform(0.01, 0.3))
    if tunnel:  # bare TCP would take what is corrupt: it does not check its checksum, as WireGuard authenticates all
        link.corrupt = sometimes(rng, 0.3, lambda: rng.uniform(0.01, 0.1))
    link.rate = sometimes(rng, 0.5, lambda: log_uniform(rng, SLOW, 5_000_000))
    link.queue = int(log_uniform(rng, 4_000, 60_000))
    link.tick = sometimes(rng, 0.2, lambda: rng.choice([0.001, 0.01]))
    return link


def draw(seed: int) -> Plan:
    rng = random.Random(seed)
    tunnel, version = rng.random() < 0.4, rng.choice([4, 6])
    sizes = [
        (int(log_uniform(rng, 100, 60_000)), int(log_uniform(rng, 100, 60_000)))
        for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    events = ["blackout", "slower", "stall", "only acknowledgments", "black hole"]
    events += ["rebind", "rebind"] if tunnel else ["narrower", "narrower"]
    return Plan(
        seed=seed,
        tunnel=tunnel,
        version=version,
        mtu=rng.randrange(1280, 1500) if tunnel or version == 6 else rng.randrange(576, 1500),
        links=(draw_link(rng, tunnel), draw_link(rng, tunnel)),
        sizes=sizes,
        dialogue=rng.random() < 0.5,
        events=[(rng.choice(events), log_uniform(rng, 0.01, 5.0)) for _ in range(rng.choice([0, 0, 1, 2, 3]))],
        control=rng.choice(CONTROLS),
    )


def build(plan: Plan) -> tuple[Sequence[TcpHost], Network]:
    hosts: Sequence[TcpHost]
    if plan.tunnel:
        hosts = [EngineHost(0, plan.mtu), EngineHost(1, plan.mtu)]
    else:
        hosts = [StackHost(0, plan.mtu, plan.control), StackHost(1, plan.mtu, plan.control)]
    network = Network(hosts, *plan.links, seed=plan.seed)
    rng = random.Random(plan.seed)
    for number, (event, after) in enumerate(plan.events):
        link, seconds = rng.choice(plan.links), log_uniform(rng, 0.1, 10.0)
        if event == "blackout":
            network.interrupt(after, seconds)
        elif event == "slower":
            network.change(after, link, rate=log_uniform(rng, SLOW, 10 * SLOW))
        elif event == "stall":  # nothing is lost, all is late: as on a mobile network
            network.change(after, link, delay=STALL)
            network.change(after + min(seconds, 2.0), link, delay=link.delay)
        elif event == "only acknowledgments" and not plan.tunnel:
            network.change(after, link, loss=max(link.loss, 0.2), affects=is_acknowledgment)
        elif event == "black hole":  # nobody says that large packets vanish
            network.change(after, link, mtu=rng.randrange(600, 1200), answers=False)
            network.change(after + seconds, link, mtu=65535)
        elif event == "narrower":
            network.change(after, link, mtu=1280 if plan.version == 6 else rng.randrange(552, 1400), answers=True)
        elif event == "rebind":
            network.at(after, partial(network.rebind, 0, (ENDPOINTS[0][0], 50_000 + number)))
    return hosts, network


class Stall(AssertionError):
    """Somebody waits without a reason."""


class Watcher:
    """Looks at one connection whenever something happens, and demands a reason for every moment without progress.

    Progress is that either receiver has the next byte in order (or a SYN or FIN). What is lost holds it up for the
    retransmission timeout; if what is sent again is lost too, for twice as long, and so on (RFC 6298 5.5).
    """

    def __init__(self, plan: Plan, network: Network, ends: Callable[[], list[End]]) -> None:
        self.plan, self.network, self.ends = plan, network, ends
        self.patience = plan.patience
        self.progress = 0
        self.progressed_at = network.now
        self.timeout = 0.0  # the longest that a sender may wait for the first loss since then
        self.trouble: dict[End, int] = {}  # what was lost and sent again so far
        self.clean_from: dict[End, int] = {}  # what was sent since then begins here

    def look(self) -> None:
        now, ends = self.network.now, self.ends()
        progress = sum(end.connection.receiver.next for end in ends)
        if progress != self.progress:
            self._check_gap(now)
            self.progress, self.progressed_at, self.timeout = progress, now, 0.0
            self.timeout = max(end.connection.sender.rtt.timeout for end in ends)
        for end in ends:
            check_timer(end.connection, now)
            self._check_backoff(end)
            self.timeout = max(self.timeout, timeout_without_backoff(end.connection))

    def losses(self) -> int:
        """Moments at which packets were lost, since those that were under way at the last progress left."""
        lost_at = self.network.lost_at
        return len(set(lost_at[bisect_left(lost_at, self.progressed_at - self.patience) :]))

    def _check_gap(self, now: float) -> None:
        gap, losses = now - self.progressed_at, self.losses()
        allowed = 3 * self.patience
        if self.network.lost_at:  # one timeout for what was lost long before, behind what arrived since
            terms = (min(self.timeout * 2.0**number, MAXIMUM_RTO) for number in range(losses + 1))
            allowed += sum(terms) + losses * (HANDSHAKE if self.plan.tunnel else 0.0)
        if gap > allowed:
            raise Stall(f"{gap:.3f} s without progress; {losses} moments of loss explain {allowed:.3f} s")

    def _check_backoff(self, end: End) -> None:
        """What was sent after the last loss and sent once is measured, and that ends the backoff (RFC 6298 5)."""
        sender = end.connection.sender
        trouble = self.network.lost + sender.segments_retransmitted
        if self.trouble.get(end) != trouble:
            self.trouble[end], self.clean_from[end] = trouble, sender.next
        elif sender.unacknowledged > self.clean_from[end] + 2 * sender.mss:
            normal = timeout_without_backoff(end.connection)
            if sender.rtt.timeout > normal + 1e-6:
                raise Stall(f"{end.connection} still waits {sender.rtt.timeout} s, not {normal}, after the last loss")

    def may_give_up(self, end: End) -> bool:
        """Only when so many in a row were lost (RFC 9293 3.8.3)."""
        return isinstance(end.connection.error, ConnectionTimedOut) and self.losses() >= ORPHAN_RETRIES


def check_timer(connection: TcpConnection, now: float) -> None:
    """For whatever is unsent or unacknowledged a timer runs, and not for longer than a timeout."""
    sender = connection.sender
    if sender.unacknowledged == sender.end and sender.unacknowledged == sender.next:
        return
    if connection.state in (State.CLOSED, State.TIME_WAIT):
        return
    due = connection.next_timeout()
    if due is None or due > now + sender.rtt.timeout + 1e-6:
        raise Stall(f"{connection} has {sender.end - sender.unacknowledged} bytes to deliver; {due=}, {now=}")


def timeout_without_backoff(connection: TcpConnection) -> float:
    """RFC 6298 2."""
    rtt = connection.sender.rtt
    return FALLBACK_RTO if rtt.smoothed is None else rtt.smoothed + max(MINIMUM_MARGIN, 4 * rtt.variance)


def simulate(seed: int) -> bool:
    """One network; returns whether a connection gave up, as it may when everything was lost for long enough."""
    plan = draw(seed)
    hosts, network = build(plan)
    exchange = Exchange(hosts, network, plan.sizes, plan.version, dialogue=plan.dialogue)
    watchers = [Watcher(plan, network, partial(exchange.pair, client)) for client in exchange.clients]
    failed: list[bool] = []  # connections, with whether they had reason to

    def done() -> bool:
        for watcher in watchers:
            watcher.look()
            failed.extend(watcher.may_give_up(end) for end in watcher.ends() if end.connection.error is not None)
        return exchange.done() or bool(failed)

    if not network.watch(done, 3600.0) or not all(failed):
        raise Stall(
            f"after {network.now - 1000} s: {[(end.connection, end.connection.error) for end in exchange.ends]}"
        )
    if not failed:
        exchange.check_bytes()
        exchange.check_nothing_left(1000.0)
    return bool(failed)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first, _, last = metafunc.config.getoption("networks").rpartition(":")
    seeds = range(int(first or 0), int(last))
    blocks = [seeds[at : at + BLOCK] for at in range(0, len(seeds), BLOCK)]
    metafunc.parametrize("seeds", blocks, ids=[f"{block.start}:{block.stop}" for block in blocks])


def test_streams_arrive_whole_and_without_needless_stalls(seeds: range) -> None:
    gave_up = 0
    for seed in seeds:
        try:
            gave_up += simulate(seed)
        except BaseException as error:
            error.add_note(f"on {draw(seed)}")
            raise
    assert gave_up <= 1
