"""Explicit Congestion Notification on one TCP connection, packet by packet (RFC 3168 6.1).

Our initial sequence number is 1000 and the far side's 5000. The round trip is 0.1 s.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from httpx_wireguard._netstack.tcp import State, TcpConnection
from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, ecn_of
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.trains import train_length
from tests.senders import Unpaced

SYN, ACK, FIN, PSH, ECE, CWR = Flags.SYN, Flags.ACK, Flags.FIN, Flags.PSH, Flags.ECE, Flags.CWR
NOTHING = Flags(0)
ADDRESSES = {4: (bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])), 6: (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(15))}
MSS = 1012
FULL = MSS - 12  # payload of a full segment beside timestamps


class Owner:
    """Hears everything and does nothing."""

    def touch(self, connection: TcpConnection) -> None: ...
    def wake(self, connection: TcpConnection) -> None: ...
    def on_established(self, connection: TcpConnection) -> None: ...
    def on_closed(self, connection: TcpConnection) -> None: ...
    def on_path_mtu(self, remote: bytes, mtu: int, now: float) -> None: ...
    def drop(self, reason: str) -> None: ...


class Packet(NamedTuple):
    """What the connection sent."""

    ecn: int
    flags: Flags
    sequence: int
    payload: bytes


class Peer:
    """The far side of one connection, by hand."""

    def __init__(self, version: int = 4) -> None:
        self.version = version
        self.ours, self.theirs = ADDRESSES[version]
        self.sequence = 5001  # our next byte
        self.connection = TcpConnection(
            Owner(),
            (self.ours, 40000),
            (self.theirs, 80),
            initial_sequence=1000,
            mss=MSS,
            socket_capacity=1 << 17,
            make_control=Unpaced,
        )

    def packet(self, sequence: int, acknowledgment: int, payload: bytes, flags: Flags, ecn: int) -> bytes:
        header = TcpHeader(80, 40000, sequence, acknowledgment, int(flags), 65535)
        header.options = TcpOptions(timestamp_value=1)
        if flags & SYN:
            header.options.mss, header.options.sack_permitted = MSS, True
        segment = header.serialize() + payload
        if self.version == 4:
            ip = Ipv4Header(self.theirs, self.ours, PROTOCOL_TCP, 20 + len(segment), traffic_class=ecn)
            return ip.serialize() + segment
        return Ipv6Header(self.theirs, self.ours, PROTOCOL_TCP, len(segment), traffic_class=ecn).serialize() + segment

    def give(self, *packets: bytes, now: float) -> None:
        self.connection.receive_packets(packets, 20 if self.version == 4 else 40, now)

    def data(
        self, payload: bytes, now: float, ecn: int = ECT_0, flags: Flags = NOTHING, acknowledgment: int = 1001
    ) -> None:
        """The next bytes of the stream arrive."""
        self.give(self.packet(self.sequence, acknowledgment, payload, ACK | flags, ecn), now=now)
        self.sequence += len(payload)

    def ack(self, acknowledgment: int, now: float, flags: Flags = NOTHING) -> None:
        self.give(self.packet(self.sequence, acknowledgment, b"", ACK | flags, NOT_ECT), now=now)

    def take(self, now: float) -> list[Packet]:
        start = 20 if self.version == 4 else 40
        packets = []
        for packet in self.connection.packets_to_send(now):
            header = TcpHeader.parse(packet, start)
            payload = packet[start + header.header_length :]
            packets.append(Packet(ecn_of(packet), Flags(header.flags), header.sequence, payload))
        return packets

    def one(self, now: float) -> Packet:
        (packet,) = self.take(now)
        return packet

    def timeout(self) -> float:
        """Run the next timer; returns when that was."""
        now = self.connection.next_timeout()
        assert now is not None
        self.connection.handle_timeout(now)
        return now

    def window(self) -> int:
        return self.connection.sender.congestion.window


def opened(answer: Flags = ECE, *, version: int = 4, timeouts: int = 0) -> Peer:
    """Opened by us; the SYN-ACK carries `answer`, and came after that many timeouts of our SYN."""
    peer = Peer(version)
    peer.connection.open(-0.1)
    peer.take(-0.1)
    for _ in range(timeouts):
        peer.take(peer.timeout())
    peer.give(peer.packet(5000, 1001, b"", SYN | ACK | answer, NOT_ECT), now=0.0)
    assert peer.take(0.0) == [Packet(NOT_ECT, ACK, 1001, b"")]
    return peer


def accepted(request: Flags = ECE | CWR) -> Peer:
    """Opened by the far side, whose SYN carries `request`."""
    peer = Peer()
    header = TcpHeader(80, 40000, 5000, 0, int(SYN | request), 65535)
    header.options = TcpOptions(timestamp_value=1, mss=MSS)
    peer.connection.open_passive(header, -0.1)
    return peer


def speaks(peer: Peer, now: float = 0.5) -> tuple[bool, bool]:
    """Whether our data is ECN-capable, and whether we report marks on theirs."""
    peer.connection.send(b"ours", now)
    sent = [packet for packet in peer.take(now) if packet.payload]
    peer.data(b"theirs", now, CE)
    return sent[0].ecn == ECT_0, bool(peer.one(now).flags & ECE)


# -- negotiation


def test_an_active_open_asks_for_ecn_on_a_packet_that_is_not_capable() -> None:
    """RFC 3168 6.1.1: both bits; no ECT on a SYN."""
    peer = Peer()
    peer.connection.open(0.0)
    assert peer.one(0.0) == Packet(NOT_ECT, SYN | ECE | CWR, 1000, b"")


@pytest.mark.parametrize("answer", [NOTHING, ECE, CWR, ECE | CWR], ids=str)
@pytest.mark.parametrize("version", [4, 6])
def test_only_a_syn_ack_with_ece_alone_agrees(answer: Flags, version: int) -> None:
    """RFC 3168 6.1.1, 6.1.1.2: a far side that reflects reserved bits knows nothing of ECN."""
    assert speaks(opened(answer, version=version)) == (answer == ECE, answer == ECE)


def test_a_syn_that_is_sent_again_does_not_ask() -> None:
    """RFC 3168 6.1.1.1: something on the path may drop SYNs with these bits."""
    peer = Peer()
    peer.connection.open(0.0)
    peer.take(0.0)
    assert [peer.one(peer.timeout()).flags for _ in range(3)] == [SYN] * 3


def test_an_answer_to_the_first_syn_after_the_second_lets_the_far_side_use_ecn_but_not_us() -> None:
    """RFC 3168 6.1.1: no ECT from who has sent a SYN without the bits; marks are processed by who has sent one with."""
    assert speaks(opened(timeouts=1), 5.0) == (False, True)
    assert speaks(opened(NOTHING, timeouts=1), 5.0) == (False, False)


@pytest.mark.parametrize("request_", [NOTHING, ECE, CWR, ECE | CWR], ids=str)
def test_only_a_syn_with_both_bits_is_granted_ecn(request_: Flags) -> None:
    """RFC 3168 6.1.1: by ECE alone, and not on an ECN-capable packet."""
    peer, asked = accepted(request_), request_ == ECE | CWR
    assert peer.one(-0.1) == Packet(NOT_ECT, SYN | ACK | ECE if asked else SYN | ACK, 1000, b"")
    peer.ack(1001, 0.0)
    assert speaks(peer) == (asked, asked)


def test_a_syn_ack_that_is_sent_again_still_grants_it() -> None:
    """A listener does not know whether its answer was lost: the far side may have it and use ECN."""
    peer = accepted()
    peer.take(-0.1)
    assert peer.one(peer.timeout()).flags == SYN | ACK | ECE


def test_a_far_side_that_asks_again_without_the_bits_is_answered_without() -> None:
    """RFC 3168 6.1.1, and the scenario of 6.1.1.1."""
    peer = accepted()
    peer.take(-0.1)
    peer.give(peer.packet(5000, 0, b"", SYN, NOT_ECT), now=0.9)
    assert peer.one(0.9).flags == SYN | ACK
    peer.ack(1001, 1.0)
    assert not speaks(peer, 1.5)[0]


def test_a_repeated_request_changes_nothing() -> None:
    peer = accepted()
    peer.take(-0.1)
    peer.give(peer.packet(5000, 0, b"", SYN | ECE | CWR, NOT_ECT), now=0.9)
    assert peer.one(0.9).flags == SYN | ACK | ECE


def test_simultaneous_opens_agree() -> None:
    """RFC 3168 6.1.1: each has sent and received an ECN-setup SYN."""
    peer = Peer()
    peer.connection.open(-0.1)
    peer.take(-0.1)
    peer.give(peer.packet(5000, 0, b"", SYN | ECE | CWR, NOT_ECT), now=0.0)
    assert peer.one(0.0).flags == SYN | ACK | ECE
    peer.give(peer.packet(5000, 1001, b"", SYN | ACK | ECE, NOT_ECT), now=0.1)
    assert peer.connection.state is State.ESTABLISHED
    assert speaks(peer) == (True, True)


# -- what is ECN-capable


@pytest.mark.parametrize("version", [4, 6])
def test_new_data_is_capable_and_acknowledgments_are_not(version: int) -> None:
    """RFC 3168 6.1.2: ECT(0); 6.1.4: never a pure acknowledgment."""
    peer = opened(version=version)
    peer.connection.send(bytes(3 * FULL), 0.1)
    assert [packet.ecn for packet in peer.take(0.1)] == [ECT_0] * 3
    peer.ack(1001 + 3 * FULL, 0.2)
    peer.data(b"x", 0.2, acknowledgment=1001 + 3 * FULL)
    assert peer.one(0.2).ecn == NOT_ECT


def test_what_is_sent_again_is_not_capable() -> None:
    """RFC 3168 6.1.5: after a timeout, and beside new data."""
    peer = opened()
    peer.connection.send(bytes(2 * FULL), 0.1)
    peer.take(0.1)
    (probe,) = peer.take(peer.timeout())
    assert (probe.sequence, probe.ecn) == (1001 + FULL, NOT_ECT)
    (again,) = peer.take(peer.timeout())
    assert (again.sequence, len(again.payload), again.ecn) == (1001, FULL, NOT_ECT)
    peer.ack(1001 + 2 * FULL, 2.0)
    peer.connection.send(b"new", 2.0)
    assert peer.one(2.0).ecn == ECT_0


def test_a_fin_is_capable_only_with_data() -> None:
    peer = opened()
    peer.connection.send(b"bye", 0.1)
    peer.connection.shutdown_write(0.1)
    assert peer.one(0.1) == Packet(ECT_0, ACK | PSH | FIN, 1001, b"bye")
    peer = opened()
    peer.connection.shutdown_write(0.1)
    assert peer.one(0.1) == Packet(NOT_ECT, ACK | PSH | FIN, 1001, b"")


def test_probes_are_not_capable() -> None:
    """RFC 3168 6.1.6; a keep-alive probe is as old a sequence number."""
    peer = opened()
    peer.connection.set_keepalive(10.0, 1.0, 3, 0.0)
    probe = peer.one(peer.timeout())
    assert (probe.sequence, probe.ecn) == (1000, NOT_ECT)


def test_nothing_is_capable_without_agreement() -> None:
    peer = opened(NOTHING)
    peer.connection.send(bytes(3 * FULL), 0.1)
    assert [packet.ecn for packet in peer.take(0.1)] == [NOT_ECT] * 3


# -- the receiver


@pytest.mark.parametrize("version", [4, 6])
def test_a_mark_is_reported_at_once_and_on_every_acknowledgment_until_the_sender_answers(version: int) -> None:
    """RFC 3168 6.1.3."""
    peer = opened(version=version)
    peer.connection.receiver.quick_acks = 0
    peer.data(b"a", 0.1)
    assert peer.take(0.1) == []
    peer.data(b"b", 0.1, CE)
    assert peer.one(0.1).flags == ACK | ECE
    peer.data(bytes(FULL), 0.2)
    peer.data(bytes(FULL), 0.2)
    assert peer.one(0.2).flags == ACK | ECE
    peer.connection.send(b"data too", 0.2)
    assert peer.one(0.2).flags == ACK | PSH | ECE
    peer.data(b"c", 0.3, flags=CWR)
    assert peer.one(0.3).flags == ACK
    peer.data(bytes(FULL), 0.4)
    peer.data(bytes(FULL), 0.4)
    assert peer.one(0.4).flags == ACK


def test_a_mark_on_the_answer_itself_is_a_new_one() -> None:
    """RFC 3168 6.1.3: another CE packet."""
    peer = opened()
    peer.data(b"a", 0.1, CE)
    peer.data(b"b", 0.2, CE, CWR)
    assert peer.one(0.2).flags == ACK | ECE


def test_marks_on_acknowledgments_are_ignored() -> None:
    """RFC 3168 6.1.4."""
    peer = opened()
    peer.give(peer.packet(5001, 1001, b"", ACK, CE), now=0.1)
    peer.data(b"x", 0.2)
    assert peer.one(0.2).flags == ACK


def test_an_answer_without_data_is_ignored() -> None:
    """RFC 3168 6.1.2: CWR stands on new data."""
    peer = opened()
    peer.data(b"a", 0.1, CE)
    peer.ack(1001, 0.2, CWR)
    assert peer.one(0.2).flags == ACK | ECE


@pytest.mark.parametrize("sequence", [4000, 5001 + (1 << 20)])
def test_marks_and_answers_outside_the_window_are_ignored(sequence: int) -> None:
    """RFC 3168 6.1.5: they may be forged."""
    peer = opened()
    peer.give(peer.packet(sequence, 1001, b"xyz", ACK, CE), now=0.1)
    assert peer.one(0.1).flags == ACK
    peer.data(b"a", 0.2, CE)
    peer.give(peer.packet(sequence, 1001, b"xyz", ACK | CWR, ECT_0), now=0.3)
    assert peer.one(0.3).flags == ACK | ECE


def test_a_mark_on_data_ahead_of_a_hole_counts() -> None:
    peer = opened()
    peer.give(peer.packet(6001, 1001, b"later", ACK, CE), now=0.1)
    assert peer.one(0.1).flags == ACK | ECE


def test_ect_1_is_no_mark() -> None:
    peer = opened()
    peer.data(b"x", 0.1, ECT_1)
    assert peer.one(0.1).flags == ACK


def test_marks_mean_nothing_without_agreement() -> None:
    peer = opened(NOTHING)
    for _ in range(3):
        peer.data(bytes(FULL), 0.1, CE)
        assert peer.one(0.1).flags == ACK


def test_one_marked_segment_of_a_batch_is_reported() -> None:
    """On the fast path."""
    peer = opened()
    batch = [peer.packet(5001 + at, 1001, bytes(10), ACK, CE if at == 20 else ECT_0) for at in range(0, 60, 10)]
    peer.give(*batch, now=0.1)
    assert peer.connection.receiver.next == 5061
    assert peer.one(0.1).flags == ACK | ECE


@pytest.mark.parametrize("version", [4, 6])
def test_a_marked_train_is_reported(version: int) -> None:
    """All of it is marked, for its headers are alike."""
    peer = opened(version=version)
    batch = [peer.packet(5001 + at, 1001, bytes(10), ACK, CE) for at in range(0, 60, 10)]
    assert train_length(batch) == 6
    peer.give(*batch, now=0.1)
    assert peer.connection.receiver.next == 5061
    assert peer.one(0.1).flags == ACK | ECE


def test_no_reset_reports_marks() -> None:
    peer = opened()
    peer.data(b"x", 0.1, CE)
    peer.connection.abort(0.1)
    assert peer.one(0.1).flags == ACK | Flags.RST


# -- the sender


def sending() -> Peer:
    """Ten segments are in flight, and as many as anybody likes wait."""
    peer = opened()
    peer.connection.send(bytes(1 << 20), 0.1)
    assert len(peer.take(0.1)) == 10
    return peer


def test_a_report_halves_the_window_and_the_next_new_segment_says_so() -> None:
    """RFC 3168 6.1.2: as a loss would, without one; CWR on the first new segment alone."""
    peer = sending()
    peer.ack(1001 + FULL, 0.2, ECE)
    assert peer.window() == 5 * FULL
    assert peer.take(0.2) == []
    peer.ack(1001 + 8 * FULL, 0.2)
    first, *others = peer.take(0.2)
    assert (first.flags, first.sequence, first.ecn, len(first.payload)) == (ACK | CWR, 1001 + 10 * FULL, ECT_0, FULL)
    assert [(packet.flags & CWR, packet.ecn) for packet in others] == [(NOTHING, ECT_0)] * 2
    assert [packet.sequence for packet in others] == [1001 + 11 * FULL, 1001 + 12 * FULL]
    peer.ack(1001 + 10 * FULL, 0.21)
    assert not any(packet.flags & CWR for packet in peer.take(0.21))


def test_a_last_segment_that_says_so_ends_the_run_as_any_other() -> None:
    peer = opened()
    peer.connection.send(bytes(2 * FULL), 0.1)
    peer.take(0.1)
    peer.ack(1001 + 2 * FULL, 0.2, ECE)
    peer.connection.send(b"bye", 0.2)
    peer.connection.shutdown_write(0.2)
    assert peer.one(0.2) == Packet(ECT_0, ACK | PSH | FIN | CWR, 1001 + 2 * FULL, b"bye")


def test_reports_of_one_window_of_data_halve_it_once() -> None:
    """RFC 3168 6.1.2: once in a round trip; and no growth on acknowledgments with ECE."""
    peer = sending()
    for number in range(1, 11):
        peer.ack(1001 + number * FULL, 0.2 + number / 1000, ECE)
        assert peer.window() == 5 * FULL
        peer.take(0.2 + number / 1000)


def test_reports_that_go_on_until_our_answer_arrives_are_old() -> None:
    """All that was sent before the reduction has arrived, and what tells of it is still on its way."""
    peer = sending()
    peer.ack(1001 + 10 * FULL, 0.2, ECE)
    peer.take(0.2)
    peer.ack(1001 + 10 * FULL, 0.21, ECE)
    peer.data(b"data too", 0.22, flags=ECE, acknowledgment=1001 + 10 * FULL)
    assert peer.window() == 5 * FULL


def test_a_report_of_data_sent_after_the_reduction_halves_it_again() -> None:
    peer = sending()
    peer.ack(1001 + 10 * FULL, 0.2, ECE)
    assert len(peer.take(0.2)) == 5
    peer.ack(1001 + 11 * FULL, 0.3, ECE)
    peer.ack(1001 + 12 * FULL, 0.3, ECE)
    assert peer.window() <= 3 * FULL
    peer.ack(1001 + 15 * FULL, 0.3)
    assert [bool(packet.flags & CWR) for packet in peer.take(0.3)] == [True, False]


def test_growth_goes_on_after_the_reduced_window() -> None:
    peer = sending()
    peer.ack(1001 + 10 * FULL, 0.2, ECE)
    peer.take(0.2)
    for number in range(11, 40):
        peer.ack(1001 + number * FULL, 0.2 + number / 100)
        peer.take(0.2 + number / 100)
    assert peer.window() > 6 * FULL


def test_a_report_of_nothing_new_reduces_nothing() -> None:
    """A far side that repeats itself while we are silent must not wear our window down."""
    peer = opened()
    peer.connection.send(bytes(FULL), 0.1)
    peer.take(0.1)
    peer.ack(1001 + FULL, 0.2, ECE)
    before = peer.window()
    for number in range(20):
        peer.ack(1001 + FULL, 1.0 + number, ECE)
    assert peer.window() == before


def test_a_report_that_acknowledges_what_was_never_sent_is_ignored() -> None:
    """RFC 5961 5.2."""
    peer = sending()
    peer.ack(1001 + 11 * FULL, 0.2, ECE)
    peer.ack(900, 0.2, ECE)
    assert peer.window() == 10 * FULL


@pytest.mark.parametrize("answer", [NOTHING, ECE | CWR], ids=str)
def test_reports_mean_nothing_without_agreement(answer: Flags) -> None:
    peer = opened(answer)
    peer.connection.send(bytes(1 << 20), 0.1)
    peer.take(0.1)
    peer.ack(1001 + 10 * FULL, 0.2, ECE)
    packets = peer.take(0.2)
    assert peer.window() == 20 * FULL
    assert len(packets) == 20
    assert not any(packet.flags & CWR for packet in packets)


def test_after_a_timeout_the_first_new_segment_says_so_and_what_is_sent_again_does_not() -> None:
    """RFC 3168 6.1.2: a reduction for any reason; CWR not on retransmissions."""
    peer = opened()
    peer.connection.send(bytes(2 * FULL), 0.1)
    peer.take(0.1)
    for _ in ("tail probe", "timeout"):
        assert not peer.one(peer.timeout()).flags & CWR
    peer.ack(1001 + 2 * FULL, 2.0)
    peer.connection.send(bytes(FULL), 2.0)
    assert peer.one(2.0).flags == ACK | PSH | CWR


def test_a_far_side_that_always_reports_slows_us_down_but_never_stops_us() -> None:
    """A liar costs itself throughput."""
    peer = sending()
    acknowledgment, received, now = 1001 + 10 * FULL, 10, 0.2
    for _ in range(100):
        peer.ack(acknowledgment, now, ECE)
        packets = peer.take(now)
        assert packets, "it stalled"
        acknowledgment = packets[-1].sequence + len(packets[-1].payload)
        received += len(packets)
        now += 0.1
    assert FULL <= peer.window() <= 3 * FULL
    assert received < 300


def test_a_far_side_that_goes_on_reporting_is_told_again_and_again() -> None:
    """Each reduction says so, on its first new segment."""
    peer = sending()
    acknowledgment, answers = 1001 + 10 * FULL, 0
    for number in range(10):
        peer.ack(acknowledgment, 0.2 + number / 10, ECE)
        packets = peer.take(0.2 + number / 10)
        assert not any(packet.flags & CWR for packet in packets[1:])
        answers += bool(packets[0].flags & CWR)
        acknowledgment = packets[-1].sequence + len(packets[-1].payload)
    assert 5 <= answers <= 10
