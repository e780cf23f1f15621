"""Two hosts with WireGuard between them, and routers that mark congestion instead of dropping, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._engine import Engine
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire.ecn import CE, ECT_0, NOT_ECT
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.drops import Drop
from tests.simnet import Link, Network, SeededEntropy

KEYS = (b"client".ljust(32, b"."), b"server".ljust(32, b"."))
INNER = ("10.0.0.2", "10.0.0.1")
OUTER = (("192.0.2.1", 40000), ("192.0.2.2", 51820))
RATE = 1_000_000.0  # bytes a second, of the narrow link in each direction
DELAY = 0.02  # seconds, one way
SIZE = 2_000_000  # bytes in each direction


class Host:
    """A host behind WireGuard. What it sends passes a router in front of the narrow link.

    Packets on the simulated network are one byte, the ECN field of the outer IP header, and a datagram.
    """

    def __init__(self, index: int, *, marks_above: float | None, ignores_outer: bool = False) -> None:
        """`marks_above`: seconds of queue from which on the router marks; None: never."""
        peer = PeerConfig(PrivateKey(KEYS[1 - index]).public, INNER[1 - index], "192.0.2.9:9")
        self.index = index
        self.addresses = [OUTER[index]]
        self.engine = Engine(Config(KEYS[index], (f"{INNER[index]}/24",), (peer,)), SeededEntropy(index + 1))
        self.engine.device.peers[0].endpoint = OUTER[1 - index]
        self.marks_above = marks_above
        self.ignores_outer = ignores_outer
        self.sent = [0, 0, 0, 0]  # datagrams that left, by codepoint
        self.marked = 0
        self.longest_queue = 0.0  # seconds
        self._busy_until = 0.0

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None:
        assert isinstance(source, tuple)
        for packet in packets:
            ecn = NOT_ECT if self.ignores_outer else packet[0]
            self.engine.receive_datagrams(memoryview(packet)[1:], len(packet) - 1, source, now, ecn=ecn)

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        out: list[tuple[Hashable, list[bytes]]] = []
        while runs := self.engine.datagrams_to_send(now):
            for run in runs:
                data, ecn = b"".join(run.buffers), NOT_ECT if self.ignores_outer else run.ecn
                for at in range(0, len(data), run.segment_size):
                    datagram = data[at : at + run.segment_size]
                    self.sent[ecn] += 1
                    out.append((run.endpoint, [bytes([self._route(ecn, len(datagram) + 1, now)]) + datagram]))
        return out

    def _route(self, ecn: int, length: int, now: float) -> int:
        """The field after the router, whose queue is that of the link."""
        start = max(now, self._busy_until)
        self._busy_until = start + length / RATE
        self.longest_queue = max(self.longest_queue, start - now)
        if self.marks_above is not None and start - now > self.marks_above and ecn != NOT_ECT:
            self.marked += 1
            return CE
        return ecn

    def next_timeout(self) -> float | None:
        return self.engine.next_timeout()

    def handle_timeout(self, now: float) -> None:
        self.engine.handle_timeout(now)


class Transfer:
    """Both ends write a stream at once, and read the other's."""

    def __init__(self, *hosts: Host, queue: int = 1 << 20) -> None:
        self.hosts = hosts
        self.network = Network([*hosts], Link(delay=DELAY, rate=RATE, queue=queue))
        listener = hosts[1].engine.listen_tcp(80)
        connection = hosts[0].engine.open_tcp((INNER[1], 80), self.network.now)
        accepted: list[TcpConnection] = []

        def opened() -> bool:
            served = listener.accept(self.network.now)
            accepted.extend([served] if served is not None else [])
            return bool(accepted)

        assert self.network.run(opened)
        self.ends = [connection, accepted[0]]
        self.streams = [random.Random(seed).randbytes(SIZE) for seed in (1, 2)]
        self.written = [0, 0]
        self.read = [bytearray(), bytearray()]

    def run(self, seconds: float = 60.0) -> float:
        """Until both streams have arrived; returns how long that took."""
        began = self.network.now
        assert self.network.run(self._step, seconds)
        assert self.read == self.streams[::-1]
        return self.network.now - began

    def _step(self) -> bool:
        now = self.network.now
        for side, end in enumerate(self.ends):
            rest = memoryview(self.streams[side])[self.written[side] : self.written[side] + 65536]
            self.written[side] += end.send(rest, now) if rest else 0
            self.read[side] += end.receive(1 << 20, now)
        return all(len(read) == SIZE for read in self.read)

    def retransmitted(self) -> int:
        return sum(end.sender.segments_retransmitted for end in self.ends)


def test_marks_on_the_outer_header_slow_both_ends_down_and_nothing_is_lost() -> None:
    """RFC 6040 and RFC 3168, from the router to the sender's window and back to its queue."""
    hosts = [Host(index, marks_above=0.03) for index in (0, 1)]
    transfer = Transfer(*hosts)
    seconds = transfer.run()
    assert transfer.network.lost == transfer.retransmitted() == 0
    assert seconds < 1.5 * SIZE / RATE
    for host in hosts:
        assert host.marked > 0
        assert host.longest_queue < 0.1
        assert host.sent[ECT_0] > 0.9 * SIZE / 1400
        assert not host.engine.device.drops
        assert not host.engine.stack.drops


def test_without_marks_the_queue_overflows() -> None:
    """The network of the test above is one where marks matter."""
    hosts = [Host(index, marks_above=None) for index in (0, 1)]
    transfer = Transfer(*hosts, queue=100_000)
    transfer.run()
    assert transfer.network.lost > 0
    assert transfer.retransmitted() > 0


@pytest.mark.parametrize("ignorant", [0, 1])
def test_towards_a_far_side_that_ignores_the_outer_header_no_mark_gets_lost(ignorant: int) -> None:
    """RFC 6040 4.3: what it could not see is not sent ECN-capable, but one datagram, so the router drops instead."""
    hosts = [Host(index, marks_above=0.01, ignores_outer=index == ignorant) for index in (0, 1)]
    transfer = Transfer(*hosts, queue=100_000)
    transfer.run()
    assert [host.sent[ECT_0] for host in hosts] == [int(host.index != ignorant) for host in hosts]
    assert all(host.marked <= 1 for host in hosts)
    assert transfer.network.lost > 0


def test_a_router_that_marks_what_has_no_ecn_makes_it_lost() -> None:
    """RFC 6040 4.2: the mark may not be dropped, so the packet is; a retransmission repairs it as any loss."""
    hosts = [Host(index, marks_above=0.03) for index in (0, 1)]
    transfer = Transfer(*hosts)
    honest, seen = hosts[0]._route, 0

    def broken(ecn: int, length: int, now: float) -> int:
        nonlocal seen
        seen += ecn == NOT_ECT
        return CE if ecn == NOT_ECT and 100 <= seen < 103 else honest(ecn, length, now)

    hosts[0]._route = broken  # type: ignore[method-assign]  # the host stays as it is
    transfer.run()
    assert hosts[1].engine.device.drops == {Drop.CONGESTION: 3}
