"""The simulated network itself: what the figures of every scenario rest on."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import pytest

from httpx_wireguard._wire import PROTOCOL_ICMPV6, PROTOCOL_TCP
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader
from tests.simnet import Bottleneck, Bursts, Link, Network, congestion_experienced, is_acknowledgment

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


class Mailbox:
    """A host that sends what it is told and keeps what it gets."""

    def __init__(self, name: str) -> None:
        self.addresses = [name]
        self.outbox: list[tuple[Hashable, list[bytes]]] = []
        self.received: list[tuple[float, bytes]] = []
        self.batches: list[int] = []
        self.sources: list[Hashable] = []
        self.timeout: float | None = None
        self.asked = 0

    def say(self, packet: bytes) -> None:
        self.outbox.append(("two", [packet]))

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None:
        self.batches.append(len(packets))
        self.received += [(round(now - 1000, 6), packet) for packet in packets]
        self.sources += [source] * len(packets)

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        self.asked += 1
        out, self.outbox = self.outbox, []
        return out

    def next_timeout(self) -> float | None:
        return self.timeout

    def handle_timeout(self, now: float) -> None:
        """It stays due."""


def pair(*links: Link, seed: int = 1) -> tuple[Mailbox, Mailbox, Network]:
    hosts = Mailbox("one"), Mailbox("two")
    return *hosts, Network(hosts, *links, seed=seed)


def arrivals(link: Link, packets: list[bytes], seconds: float = 60.0) -> list[tuple[float, bytes]]:
    """When what arrived of packets that were sent at once."""
    one, two, network = pair(link)
    one.outbox.append(("two", packets))
    network.advance(seconds)
    return two.received


def many(link: Link, count: int = 10_000, seed: int = 1) -> list[int]:
    """Which of so many packets arrive, in order of arrival."""
    one, two, network = pair(link, seed=seed)
    one.outbox.append(("two", [number.to_bytes(4, "big") for number in range(count)]))
    network.advance(60.0)
    return [int.from_bytes(packet, "big") for _, packet in two.received]


def test_packets_arrive_after_the_delay_and_together_in_one_batch() -> None:
    one, two, network = pair(Link(delay=0.03))
    one.outbox.append(("two", [b"1", b"2", b"3"]))
    network.advance(1.0)
    assert two.received == [(0.03, b"1"), (0.03, b"2"), (0.03, b"3")]
    assert two.batches == [3]
    assert network.now == 1001.0


def test_a_rate_spaces_packets_by_their_length() -> None:
    assert arrivals(Link(delay=0.01, rate=1000), [bytes(100), bytes(50), bytes(10)]) == [
        (0.11, bytes(100)),
        (0.16, bytes(50)),
        (0.17, bytes(10)),
    ]


def test_the_queue_holds_exactly_its_bytes_besides_the_packet_that_is_sent() -> None:
    link = Link(delay=0.0, rate=1000, queue=300)
    assert [when for when, _ in arrivals(link, [bytes(100)] * 10)] == [0.1, 0.2, 0.3, 0.4]


def test_the_queue_has_room_again_when_the_next_packet_is_sent() -> None:
    one, two, network = pair(Link(delay=0.0, rate=1000, queue=100))
    for after in (0.0, 0.01, 0.09, 0.101, 0.15):
        network.at(after, partial(one.say, bytes(100)))
    network.advance(2.0)
    assert [when for when, _ in two.received] == [0.1, 0.2, 0.3]
    assert network.lost_at == pytest.approx([1000.09, 1000.15])
    assert network.path(0, 1).queue.peak == 100
    assert network.path(0, 1).queue.dropped == network.path(0, 1).lost == 2


def test_a_rate_that_changes_holds_from_the_next_packet_on() -> None:
    link = Link(delay=0.0, rate=1000)
    one, two, network = pair(link)
    one.outbox.append(("two", [bytes(100)] * 3))
    network.change(0.05, link, rate=100)
    network.advance(10.0)
    assert [when for when, _ in two.received] == [0.1, 1.1, 2.1]


def test_links_that_share_a_bottleneck_share_its_rate_and_its_queue() -> None:
    hosts = [Mailbox("one"), Mailbox("two"), Mailbox("three")]
    shared = Bottleneck(1000, 100)
    network = Network(hosts, Link(delay=0.0, bottleneck=shared), Link(delay=1.0, bottleneck=shared))
    for host in hosts[:2]:
        host.outbox.append(("three", [host.addresses[0].encode() * 25] * 2))
    network.advance(10.0)
    assert [when for when, _ in hosts[2].received] == [0.075, 0.15]  # of the second host nothing had room
    assert network.path(1, 2).queue is network.path(0, 2).queue
    assert network.path(1, 2).lost == 2


def test_pairs_that_use_one_link_have_a_queue_each() -> None:
    one, two, network = pair(Link(delay=0.0, rate=1000))
    one.outbox.append(("two", [bytes(100)]))
    two.outbox.append(("one", [bytes(100)]))
    network.advance(10.0)
    assert one.received == two.received == [(0.1, bytes(100))]


def test_another_link_may_join_two_hosts() -> None:
    hosts = [Mailbox("one"), Mailbox("two"), Mailbox("three")]
    network = Network(hosts, Link(delay=0.01))
    network.join(0, 2, Link(delay=0.5))
    hosts[0].outbox += [("three", [b"3"]), ("two", [b"2"])]
    network.advance(1.0)
    assert (hosts[1].received, hosts[2].received) == ([(0.01, b"2")], [(0.5, b"3")])


def test_jitter_alone_keeps_the_order() -> None:
    got = many(Link(jitter=0.05))
    assert got == sorted(got)
    assert len(got) == 10_000


def test_jitter_without_order_and_reordering_change_it() -> None:
    for link in (Link(jitter=0.05, fifo=False), Link(reorder=0.1, reorder_delay=0.05)):
        got = many(link)
        assert got != sorted(got)
        assert sorted(got) == list(range(10_000))


def test_reordered_packets_are_as_many_as_asked_for() -> None:
    got = arrivals(Link(delay=0.01, reorder=0.1, reorder_delay=0.05), [bytes(4)] * 10_000)
    assert 0.09 < sum(when > 0.01 for when, _ in got) / 10_000 < 0.11
    assert max(when for when, _ in got) < 0.06


def test_a_longer_delay_for_a_while_holds_up_what_comes_after_it() -> None:
    link = Link(delay=0.01)
    one, two, network = pair(link)
    for number in range(5):
        network.at(number / 10, partial(one.say, bytes([number])))
    network.change(0.05, link, delay=0.5)
    network.change(0.15, link, delay=0.01)
    network.advance(2.0)
    assert two.received == [(0.01, b"\0"), (0.6, b"\1"), (0.6, b"\2"), (0.6, b"\3"), (0.6, b"\4")]


def test_loss_and_duplicates_are_as_frequent_as_asked_for() -> None:
    assert 0.18 < 1 - len(many(Link(loss=0.2))) / 10_000 < 0.22
    assert 0.18 < len(many(Link(duplicate=0.2))) / 10_000 - 1 < 0.22


def test_bursts_lose_what_the_model_of_gilbert_and_elliott_loses() -> None:
    """In the bad state p / (p + r) of the time, for 1 / r packets on average."""
    got = set(many(Link(bursts=Bursts(enter=0.02, leave=0.25)), 30_000))
    lost = [number not in got for number in range(30_000)]
    runs = sum(here and not before for before, here in zip([False, *lost], lost, strict=False))
    assert 0.9 < sum(lost) / 30_000 / (0.02 / 0.27) < 1.1
    assert 3.6 < sum(lost) / runs < 4.4
    half = 1 - len(many(Link(bursts=Bursts(enter=0.02, leave=0.25, loss=0.5)), 30_000)) / 30_000
    assert 0.9 < half / (0.01 / 0.27) < 1.1


def test_loss_may_be_of_acknowledgments_only() -> None:
    data = TcpHeader(1, 2, 3, 4, int(Flags.ACK), 5).serialize_segment(A, B, b"data")
    empty = TcpHeader(1, 2, 3, 4, int(Flags.ACK), 5).serialize_segment(A, B)
    end = TcpHeader(1, 2, 3, 4, int(Flags.ACK | Flags.FIN), 5).serialize_segment(A, B)
    packets = [Ipv4Header(A, B, PROTOCOL_TCP, 20 + len(body)).serialize() + body for body in (data, empty, end)]
    packets += [Ipv6Header(A * 4, B * 4, PROTOCOL_TCP, len(body)).serialize() + body for body in (data, empty, end)]
    got = [packet for _, packet in arrivals(Link(loss=1.0, affects=is_acknowledgment), packets)]
    assert got == [packets[0], packets[2], packets[3], packets[5]]


def test_corruption_turns_one_bit_over() -> None:
    got = [packet for _, packet in arrivals(Link(corrupt=0.5), [bytes(100)] * 1000)]
    bits = [int.from_bytes(packet, "big").bit_count() for packet in got]
    assert set(bits) == {0, 1}
    assert 400 < sum(bits) < 600


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_that_is_too_big_vanishes_or_draws_an_answer(version: int) -> None:
    packet = Ipv4Header(A, B, PROTOCOL_TCP, 1300).serialize() + bytes(1280)
    if version == 6:
        packet = Ipv6Header(A * 4, B * 4, PROTOCOL_TCP, 1260).serialize() + bytes(1260)
    link = Link(mtu=len(packet) - 1)
    one, two, network = pair(link)
    for answers in (False, True):
        link.answers = answers
        one.outbox.append(("two", [packet]))
        network.advance(1.0)
        assert len(one.received) == answers
    assert two.received == []
    answer = one.received[0][1]
    if version == 4:
        message = IcmpMessage.parse(answer[20:])
    else:
        message = IcmpMessage.parse(
            answer[40:], pseudo_header_sum(answer[8:24], answer[24:40], PROTOCOL_ICMPV6, len(answer) - 40)
        )
    assert message.next_hop_mtu(version) == len(packet) - 1
    assert arrivals(Link(mtu=len(packet)), [packet])


def test_a_full_queue_marks_what_can_be_marked() -> None:
    """RFC 3168 5: ECT(0) and ECT(1) become CE, and the header's checksum stays right; Not-ECT stays."""
    packets = [
        Ipv4Header(A, B, PROTOCOL_TCP, 100, traffic_class=codepoint).serialize() + bytes(80)
        for codepoint in (0, 2, 2, 1)
    ]
    packets += [
        Ipv6Header(A * 4, B * 4, PROTOCOL_TCP, 60, traffic_class=codepoint).serialize() + bytes(60)
        for codepoint in (0, 2)
    ]
    got = [packet for _, packet in arrivals(Link(rate=1000, mark_above=99), packets)]
    classes = [Ipv4Header.parse(packet).traffic_class for packet in got[:4]]
    classes += [Ipv6Header.parse(packet).traffic_class for packet in got[4:]]
    assert classes == [0, 2, 3, 3, 0, 3]
    assert [packet[20:] for packet in got] == [packet[20:] for packet in packets]


def test_what_is_no_ip_packet_is_not_marked() -> None:
    assert congestion_experienced(b"\x04\xff\xff\xff") == b"\x04\xff\xff\xff"


def test_who_moves_is_reached_by_the_new_address_only() -> None:
    one, two, network = pair(Link(delay=0.01))
    one.outbox.append(("two", [b"old source"]))
    network.collect()
    network.rebind(0, "elsewhere")
    one.outbox.append(("two", [b"new source"]))
    two.outbox += [("one", [b"lost"]), ("elsewhere", [b"found"])]
    network.advance(1.0)
    assert two.sources == ["one", "elsewhere"]
    assert one.received == [(0.01, b"found")]
    assert network.lost == 1


def test_an_interruption_ends() -> None:
    link = Link(delay=0.0)
    one, two, network = pair(link)
    network.interrupt(0.2, 0.2)
    for number in range(6):
        network.at(number / 10 + 0.01, partial(one.say, bytes([number])))
    network.advance(2.0)
    assert [packet[0] for _, packet in two.received] == [0, 1, 4, 5]


def test_arrivals_wait_for_the_tick() -> None:
    link = Link(delay=0.0101, rate=100_000, tick=0.002)
    assert [when for when, _ in arrivals(link, [bytes(100)] * 4)] == [0.012, 0.014, 0.014, 0.016]


def test_a_seed_repeats_everything() -> None:
    link = Link(loss=0.1, jitter=0.1, fifo=False, duplicate=0.1, reorder=0.1, bursts=Bursts(0.1, 0.3))
    assert many(link, 2000, seed=5) == many(link, 2000, seed=5) != many(link, 2000, seed=6)


def test_only_hosts_that_something_happened_to_are_asked() -> None:
    hosts = [Mailbox(str(number)) for number in range(1000)]
    network = Network(hosts)
    hosts[0].outbox.append(("1", [b"packet"]))
    network.advance(1.0)
    assert [host.asked for host in hosts] == [1, 2, *[1] * 998]


def test_a_timer_that_stays_due_is_not_waited_for_for_ever() -> None:
    one, _, network = pair()
    one.timeout = 1000.5
    with pytest.raises(AssertionError, match="time stands still"):
        network.advance(1.0)
