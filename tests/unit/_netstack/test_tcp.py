"""One TCP connection, step by step through RFC 9293 3.10, RFC 5961, RFC 7323, RFC 2018 and RFC 2883.

Our initial sequence number is 1000 and the far side's 5000, so that data begins at 1001 and 5001. The connection was
established at 0.0 seconds with a round trip of 0.1 s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest

from httpx_wireguard._errors import (
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    DestinationUnreachable,
    TunnelClosed,
)
from httpx_wireguard._netstack.congestion.control import UNLIMITED
from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.limits import (
    CHALLENGE_PERIOD,
    RECEIVE_FLOOR,
    RECEIVE_MEMORY,
    SEND_MEMORY,
    TIME_WAIT_LIMIT,
    ChallengeBudget,
    SharedLimits,
)
from httpx_wireguard._netstack.sender import INITIAL_SEND_BUFFER
from httpx_wireguard._netstack.tcp import MINIMUM_MSS, MSL, SEND_FLOOR, WRITE_LOW_WATER, State, TcpConnection
from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.trains import SHORTEST_TRAIN, train_length
from tests.simnet import SeededEntropy

SYN, ACK, FIN, RST, PSH, URG = Flags.SYN, Flags.ACK, Flags.FIN, Flags.RST, Flags.PSH, Flags.URG
OURS = (bytes([10, 0, 0, 2]), 40000)
THEIRS = (bytes([10, 0, 0, 1]), 80)
OURS6 = (b"\xfd" + bytes(14) + b"\x02", 40000)
THEIRS6 = (b"\xfd" + bytes(14) + b"\x01", 80)
MSS = 1460
FULL = MSS - 12  # payload of a full segment beside timestamps


class Owner:
    """Writes down what a connection tells its stack."""

    def __init__(self) -> None:
        self.touched: set[TcpConnection] = set()
        self.woken: set[TcpConnection] = set()
        self.established: list[TcpConnection] = []
        self.closed: list[TcpConnection] = []
        self.drops: Counter[str] = Counter()

    def touch(self, connection: TcpConnection) -> None:
        self.touched.add(connection)

    def wake(self, connection: TcpConnection) -> None:
        self.woken.add(connection)

    def on_established(self, connection: TcpConnection) -> None:
        self.established.append(connection)

    def on_closed(self, connection: TcpConnection) -> None:
        self.closed.append(connection)

    def on_path_mtu(self, remote: bytes, mtu: int, now: float) -> None: ...
    def drop(self, reason: str) -> None:
        self.drops[reason] += 1


class Segment(NamedTuple):
    """What the connection sent."""

    flags: Flags
    sequence: int
    acknowledgment: int
    window: int
    payload: bytes
    options: TcpOptions
    length: int  # bytes, the IP header included


class Peer:
    """The far side of one connection, by hand."""

    def __init__(
        self, *, timestamps: bool = True, sack: bool = True, version: int = 4, capacity: int = 1 << 17
    ) -> None:
        self.owner = Owner()
        self.timestamps = timestamps
        self.sack = sack
        self.clock = 70_000  # what our timestamps say next
        self.sequence = 5001  # our next byte
        self.version = version
        self.timeouts = 0
        self.shared = SharedLimits()
        self.connection = TcpConnection(
            self.owner,
            OURS if version == 4 else OURS6,
            THEIRS if version == 4 else THEIRS6,
            initial_sequence=1000,
            mss=MSS,
            socket_capacity=capacity,
            make_control=Reno,
            shared=self.shared,
        )

    def give(
        self,
        flags: Flags,
        sequence: int,
        acknowledgment: int = 0,
        payload: bytes = b"",
        *,
        now: float,
        window: int = 65535,
        timestamp: int | None = None,
        echo: int = 0,
        blocks: tuple[tuple[int, int], ...] = (),
        options: TcpOptions | None = None,
    ) -> None:
        """A segment arrives."""
        if options is None:
            options = TcpOptions(sack_blocks=blocks)
            if self.timestamps:
                options.timestamp_value = self.clock if timestamp is None else timestamp
                options.timestamp_echo = echo
        header = TcpHeader(80, 40000, sequence % 2**32, acknowledgment % 2**32, int(flags), window, options=options)
        self.connection.receive_segment(header, payload, now)

    def syn_options(self, mss: int | None = MSS, scale: int | None = 7) -> TcpOptions:
        options = TcpOptions(mss=mss, window_scale=scale, sack_permitted=self.sack)
        if self.timestamps:
            options.timestamp_value = self.clock
        return options

    def data(self, payload: bytes, now: float, acknowledgment: int = 1001, flags: Flags = ACK | PSH) -> None:
        """The next bytes of the stream arrive."""
        self.give(flags, self.sequence, acknowledgment, payload, now=now)
        self.sequence += len(payload) + bool(flags & FIN)

    def ack(self, acknowledgment: int, now: float, window: int = 65535, echo: int = 0) -> None:
        self.give(ACK, self.sequence, acknowledgment, now=now, window=window, echo=echo)

    def take(self, now: float) -> list[Segment]:
        """What the connection has to send."""
        start = 20 if self.version == 4 else 40
        segments = []
        for packet in self.connection.packets_to_send(now):
            header = TcpHeader.parse(packet, start)
            payload = packet[start + header.header_length :]
            segments.append(
                Segment(
                    Flags(header.flags),
                    header.sequence,
                    header.acknowledgment,
                    header.window,
                    payload,
                    header.options,
                    len(packet),
                )
            )
        return segments

    def one(self, now: float) -> Segment:
        (segment,) = self.take(now)
        return segment

    def flags(self, now: float) -> list[Flags]:
        return [segment.flags for segment in self.take(now)]

    def timeout(self) -> float:
        """Run the next timer; returns when that was."""
        now = self.connection.next_timeout()
        assert now is not None
        self.timeouts += 1
        assert self.timeouts < 500, "it never ends"
        self.connection.handle_timeout(now)
        return now

    def lose_everything(self) -> None:
        """Until the retransmission timer has run out, and what it sends again is lost too."""
        before = self.connection.sender.retries
        while self.connection.sender.retries == before:
            self.take(self.timeout())

    def state(self) -> State:
        return self.connection.state


def opening(**options: bool) -> Peer:
    """In SYN-SENT."""
    peer = Peer(**options)
    peer.connection.open(-0.1)
    peer.take(-0.1)
    return peer


def passive(**options: bool) -> Peer:
    """In SYN-RECEIVED, for a listener."""
    peer = Peer(**options)
    peer.connection.open_passive(TcpHeader(80, 40000, 5000, 0, int(SYN), 65535, options=peer.syn_options()), -0.1)
    assert peer.flags(-0.1) == [SYN | ACK]
    return peer


def established(
    *,
    timestamps: bool = True,
    sack: bool = True,
    version: int = 4,
    scale: int | None = 0,
    window: int = 65535,
    mss: int | None = MSS,
    capacity: int = 1 << 17,
) -> Peer:
    peer = Peer(timestamps=timestamps, sack=sack, version=version, capacity=capacity)
    peer.connection.open(-0.1)
    peer.take(-0.1)
    peer.give(SYN | ACK, 5000, 1001, now=0.0, window=window, options=peer.syn_options(mss, scale))
    assert peer.flags(0.0) == [ACK]
    assert peer.state() is State.ESTABLISHED
    return peer


def fin_wait_1() -> Peer:
    peer = established()
    peer.connection.shutdown_write(0.0)
    assert peer.flags(0.0) == [ACK | PSH | FIN]
    return peer


def fin_wait_2() -> Peer:
    peer = fin_wait_1()
    peer.ack(1002, 0.1)
    assert peer.state() is State.FIN_WAIT_2
    return peer


def closing() -> Peer:
    peer = fin_wait_1()
    peer.data(b"", 0.1, flags=ACK | FIN)
    peer.take(0.1)
    assert peer.state() is State.CLOSING
    return peer


def time_wait() -> Peer:
    peer = fin_wait_2()
    peer.data(b"", 0.2, acknowledgment=1002, flags=ACK | FIN)
    peer.take(0.2)
    assert peer.state() is State.TIME_WAIT
    return peer


def close_wait() -> Peer:
    peer = established()
    peer.data(b"", 0.1, flags=ACK | FIN)
    peer.take(0.1)
    assert peer.state() is State.CLOSE_WAIT
    return peer


def last_ack() -> Peer:
    peer = close_wait()
    peer.connection.close(0.1)
    assert peer.flags(0.1) == [ACK | PSH | FIN]
    assert peer.state() is State.LAST_ACK
    return peer


SYNCHRONIZED = [established, fin_wait_1, fin_wait_2, closing, time_wait, close_wait, last_ack]
synchronized = pytest.mark.parametrize("reach", SYNCHRONIZED, ids=lambda reach: reach.__name__)


# -- 3.10.1 OPEN


def test_an_active_open_sends_a_syn_with_every_option() -> None:
    """RFC 9293 3.10.1, MUST-14; RFC 7323 2.2 and 3.2; RFC 2018 2; RFC 3168 6.1.1."""
    peer = Peer()
    peer.connection.open(0.0)
    syn = peer.one(0.0)
    assert (syn.flags, syn.sequence, syn.acknowledgment, syn.window) == (SYN | Flags.ECE | Flags.CWR, 1000, 0, 65535)
    assert (syn.options.mss, syn.options.window_scale, syn.options.sack_permitted) == (MSS, 8, True)
    assert (syn.options.timestamp_value, syn.options.timestamp_echo) == (0, 0)
    assert peer.state() is State.SYN_SENT
    assert not peer.connection.connected


def test_an_unanswered_syn_is_sent_again_ever_more_slowly() -> None:
    """RFC 6298 2.1, 5.5."""
    peer = Peer()
    peer.connection.open(0.0)
    peer.take(0.0)
    times = []
    for _ in range(4):
        now = peer.timeout()
        assert peer.flags(now) == [SYN]
        times.append(now)
    assert times == [1.0, 3.0, 7.0, 15.0]


def test_an_open_without_any_answer_fails_after_more_than_three_minutes() -> None:
    """RFC 9293 MUST-23: R2 of a SYN."""
    peer = opening()
    now = 0.0
    while peer.state() is State.SYN_SENT:
        now = peer.timeout()
        peer.take(now)
    assert 180.0 < now < 300.0
    assert isinstance(peer.connection.error, ConnectionTimedOut)
    assert "no answer to SYN" in str(peer.connection.error)
    assert peer.owner.closed == [peer.connection]


def test_data_written_before_the_connection_is_open_leaves_with_it() -> None:
    """RFC 9293 3.10.2: SYN-SENT queues the data."""
    peer = opening()
    peer.connection.send(b"early", -0.05)
    assert peer.take(-0.05) == []
    peer.give(SYN | ACK, 5000, 1001, now=0.0, options=peer.syn_options())
    segment = peer.one(0.0)
    assert (segment.payload, segment.sequence, segment.acknowledgment) == (b"early", 1001, 5001)


# -- 3.10.7.3 SYN-SENT


def test_a_syn_with_the_right_acknowledgment_opens_the_connection() -> None:
    """RFC 9293 3.10.7.3 fourth."""
    peer = opening()
    peer.give(SYN | ACK, 5000, 1001, now=0.0, options=peer.syn_options())
    assert peer.state() is State.ESTABLISHED
    assert peer.connection.connected
    assert peer.connection in peer.owner.woken
    ack = peer.one(0.0)
    assert (ack.flags, ack.sequence, ack.acknowledgment) == (ACK, 1001, 5001)
    assert ack.options.timestamp_echo == 70_000


@pytest.mark.parametrize("acknowledgment", [1000, 999, 1002, 0])
def test_an_impossible_acknowledgment_in_syn_sent_draws_a_reset(acknowledgment: int) -> None:
    """RFC 9293 3.10.7.3 first, 3.5.1: so a half-open relic of the far side ends."""
    peer = opening()
    peer.give(ACK, 7777, acknowledgment, now=0.0)
    reset = peer.one(0.0)
    assert (reset.flags, reset.sequence) == (RST, acknowledgment)
    assert peer.state() is State.SYN_SENT
    assert peer.take(0.0) == []


def test_a_reset_with_an_impossible_acknowledgment_is_dropped() -> None:
    """RFC 9293 3.10.7.3 first."""
    peer = opening()
    peer.give(RST | ACK, 0, 1002, now=0.0)
    assert peer.state() is State.SYN_SENT
    assert peer.take(0.0) == []


def test_a_reset_with_the_right_acknowledgment_refuses_the_connection() -> None:
    """RFC 9293 3.10.7.3 second."""
    peer = opening()
    peer.give(RST | ACK, 0, 1001, now=0.0)
    assert peer.state() is State.CLOSED
    assert isinstance(peer.connection.error, ConnectionRefused)
    assert peer.take(0.0) == []


def test_a_reset_without_acknowledgment_in_syn_sent_is_dropped() -> None:
    """RFC 9293 3.10.7.3 second: anybody could send it."""
    peer = opening()
    peer.give(RST, 0, now=0.0)
    assert peer.state() is State.SYN_SENT


def test_an_acknowledgment_alone_does_not_open() -> None:
    """RFC 9293 3.10.7.3 fifth."""
    peer = opening()
    peer.give(ACK, 5000, 1001, now=0.0)
    assert peer.state() is State.SYN_SENT
    assert peer.take(0.0) == []


def test_data_on_the_syn_of_the_far_side_is_kept() -> None:
    """RFC 9293 3.10.7.3: other controls and text are processed too."""
    peer = opening()
    peer.give(SYN | ACK | FIN, 5000, 1001, b"hello", now=0.0, options=peer.syn_options())
    assert peer.connection.receive(99, 0.0) == b"hello"
    assert peer.connection.at_eof
    assert peer.state() is State.CLOSE_WAIT
    assert peer.one(0.0).acknowledgment == 5007


def test_simultaneous_opens_meet() -> None:
    """RFC 9293 3.5 figure 7, MUST-10."""
    peer = opening()
    peer.give(SYN, 5000, now=0.0, options=peer.syn_options())
    assert peer.state() is State.SYN_RECEIVED
    answer = peer.one(0.0)
    assert (answer.flags, answer.sequence, answer.acknowledgment) == (SYN | ACK, 1000, 5001)
    peer.give(SYN | ACK, 5000, 1001, now=0.1, options=peer.syn_options())
    assert peer.state() is State.ESTABLISHED
    assert peer.owner.established == []


def test_a_refusal_after_a_simultaneous_open_is_told() -> None:
    """RFC 9293 3.10.7.4 second: SYN-RECEIVED that began as an active open."""
    peer = opening()
    peer.give(SYN, 5000, now=0.0, options=peer.syn_options())
    peer.give(RST, 5001, now=0.1)
    assert isinstance(peer.connection.error, ConnectionRefused)


# -- options of the SYN


def test_without_an_mss_option_ipv4_segments_hold_536_bytes() -> None:
    """RFC 9293 MUST-15; RFC 6691: options come out of it."""
    peer = established(mss=None)
    peer.connection.send(bytes(2000), 0.0)
    assert peer.take(0.0)[0].length == 20 + 20 + 536


def test_without_an_mss_option_ipv6_segments_hold_1220_bytes() -> None:
    """RFC 9293 MUST-15."""
    peer = established(mss=None, version=6)
    peer.connection.send(bytes(5000), 0.0)
    assert peer.take(0.0)[0].length == 40 + 20 + 1220


def test_a_tiny_mss_is_taken_for_88_bytes() -> None:
    """CVE-2019-11479."""
    peer = established(mss=1)
    peer.connection.send(bytes(2000), 0.0)
    assert peer.take(0.0)[0].length == 40 + MINIMUM_MSS


def test_segments_are_no_larger_than_what_both_sides_take() -> None:
    """RFC 9293 MUST-16: the far side's MSS and our own path."""
    peer = established(mss=9000)
    peer.connection.send(bytes(20000), 0.0)
    assert peer.take(0.0)[0].length == 40 + MSS
    peer = established(mss=1000)
    peer.connection.send(bytes(20000), 0.0)
    assert peer.take(0.0)[0].length == 40 + 1000


def test_an_mss_option_after_the_handshake_is_ignored() -> None:
    """RFC 9293 MUST-65: only on a SYN."""
    peer = established()
    peer.give(ACK, 5001, 1001, now=0.0, options=TcpOptions(mss=100, timestamp_value=70_000))
    peer.connection.send(bytes(2000), 0.0)
    assert len(peer.take(0.0)[0].payload) == FULL


def test_window_scaling_works_in_both_directions_when_both_offer_it() -> None:
    """RFC 7323 2.2."""
    peer = established(scale=3, window=50)
    assert peer.connection.sender.window == 50  # the window of a SYN is not scaled
    peer.ack(1001, 0.1, window=50)
    assert peer.connection.sender.window == 400
    peer.data(b"x", 0.1)
    assert peer.one(0.1).window == (1 << 17) >> 8


def test_without_the_far_sides_offer_no_window_is_scaled() -> None:
    """RFC 7323 2.2: both or none."""
    peer = established(scale=None)
    peer.ack(1001, 0.1, window=50)
    assert peer.connection.sender.window == 50
    peer.data(b"x", 0.1)
    assert peer.one(0.1).window == 65535


def test_a_passive_open_offers_only_what_was_offered() -> None:
    """RFC 7323 2.2, 3.2; RFC 2018 2: options are negotiated by the SYN."""
    peer = Peer(timestamps=False)
    peer.connection.open_passive(TcpHeader(80, 40000, 5000, 0, int(SYN), 100), 0.0)
    answer = peer.one(0.0)
    assert answer.flags == SYN | ACK
    assert answer.options == TcpOptions(mss=MSS)


def test_a_passive_open_answers_every_offer() -> None:
    peer = Peer()
    peer.connection.open_passive(TcpHeader(80, 40000, 5000, 0, int(SYN), 100, options=peer.syn_options()), 0.0)
    options = peer.one(0.0).options
    assert (options.mss, options.window_scale, options.sack_permitted) == (MSS, 8, True)
    assert (options.timestamp_value, options.timestamp_echo) == (0, 70_000)


def test_without_timestamps_segments_use_the_whole_mss() -> None:
    peer = established(timestamps=False)
    peer.connection.send(bytes(5000), 0.0)
    segment = peer.take(0.0)[0]
    assert len(segment.payload) == MSS
    assert segment.options.timestamp_value is None


# -- 3.10.7.4 SYN-RECEIVED


def test_the_acknowledgment_of_our_syn_establishes_a_passive_open() -> None:
    """RFC 9293 3.10.7.4 fifth."""
    peer = passive()
    peer.give(ACK, 5001, 1001, b"GET", now=0.0)
    assert peer.state() is State.ESTABLISHED
    assert peer.owner.established == [peer.connection]
    assert peer.connection.receive(9, 0.0) == b"GET"


def test_a_lost_syn_ack_is_sent_again_by_the_timer() -> None:
    peer = passive()
    assert peer.flags(peer.timeout()) == [SYN | ACK]


def test_a_repeated_syn_draws_the_syn_ack_again() -> None:
    """RFC 9293 3.10.7.4 first: not acceptable, so tell where we are; ours was lost."""
    peer = passive()
    peer.give(SYN, 5000, now=0.5, options=peer.syn_options())
    answer = peer.one(0.5)
    assert (answer.flags, answer.sequence, answer.acknowledgment) == (SYN | ACK, 1000, 5001)
    peer.give(SYN, 5000, now=0.6, options=peer.syn_options())
    assert peer.take(0.6) == []  # limited in rate


def test_an_impossible_acknowledgment_in_syn_received_draws_a_reset() -> None:
    """RFC 9293 3.10.7.4 fifth: <SEQ=SEG.ACK><CTL=RST>."""
    peer = passive()
    peer.give(ACK, 5001, 1002, now=0.0)
    reset = peer.one(0.0)
    assert (reset.flags, reset.sequence) == (RST, 1002)
    assert peer.state() is State.SYN_RECEIVED
    assert peer.owner.established == []


def test_a_reset_of_a_passive_open_returns_to_listen_without_error() -> None:
    """RFC 9293 3.10.7.4 second: the user need not be informed."""
    peer = passive()
    peer.give(RST, 5001, now=0.0)
    assert peer.state() is State.CLOSED
    assert peer.connection.error is None
    assert peer.owner.closed == [peer.connection]


def test_another_syn_in_the_window_of_a_passive_open_returns_to_listen() -> None:
    """RFC 9293 3.10.7.4 fourth."""
    peer = passive()
    peer.give(SYN, 5100, now=0.0)
    assert peer.state() is State.CLOSED
    assert peer.owner.closed == [peer.connection]


def test_a_close_before_the_handshake_is_over_sends_fin_after_it() -> None:
    """RFC 9293 3.10.4: SYN-RECEIVED queues the close."""
    peer = opening()
    peer.give(SYN, 5000, now=0.0, options=peer.syn_options())
    peer.take(0.0)
    peer.connection.close(0.0)
    assert peer.take(0.0) == []
    assert peer.flags(peer.timeout()) == [SYN | ACK]
    peer.give(ACK, 5001, 1001, now=1.5)
    assert peer.state() is State.FIN_WAIT_1
    fin = peer.one(1.5)
    assert (fin.flags & FIN, fin.sequence) == (FIN, 1001)


def test_a_close_in_syn_sent_deletes_the_connection() -> None:
    """RFC 9293 3.10.4."""
    peer = opening()
    peer.connection.close(0.0)
    assert peer.state() is State.CLOSED
    assert peer.take(0.0) == []
    assert peer.connection.next_timeout() is None


# -- first check: sequence number


@synchronized
def test_a_segment_outside_the_window_is_answered_and_dropped(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.7.4 first: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>."""
    peer = reach()
    state = peer.state()
    peer.give(ACK, peer.sequence + 10_000_000, 1001, b"x", now=0.5)
    answer = peer.one(0.5)
    assert (answer.flags, answer.acknowledgment, answer.sequence) == (ACK, peer.sequence, peer.connection.sender.next)
    assert peer.state() is state


@synchronized
def test_a_reset_outside_the_window_is_dropped_silently(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.7.4 first."""
    peer = reach()
    state = peer.state()
    peer.give(RST, peer.sequence - 1, now=0.5)
    assert peer.take(0.5) == []
    assert peer.state() is state


def test_answers_to_empty_segments_outside_the_window_are_limited_in_rate() -> None:
    """RFC 5961 7: or two ends that disagree answer each other for ever."""
    peer = established()
    answers = []
    for step in range(100):
        peer.give(ACK, 4000, 1001, now=step / 100)
        answers += peer.take(step / 100)
    assert len(answers) == 2


def test_old_data_is_acknowledged_every_time() -> None:
    """RFC 9293 3.10.7.4 first: the far side did not get our acknowledgment."""
    peer = established()
    peer.data(b"hello", 0.1)
    peer.take(0.1)
    for step in range(5):
        peer.give(ACK, 5001, 1001, b"hello", now=0.1)
        assert peer.one(0.1).acknowledgment == 5006, step
    assert peer.connection.receive(99, 0.1) == b"hello"


def test_a_keep_alive_of_the_far_side_is_answered() -> None:
    """RFC 9293 3.8.4: an old sequence number draws an acknowledgment."""
    peer = established()
    peer.give(ACK, 5000, 1001, now=10.0)
    assert peer.one(10.0).acknowledgment == 5001


def test_a_keep_alive_with_a_byte_of_garbage_is_answered() -> None:
    """RFC 9293 3.8.4: some implementations send one."""
    peer = established()
    peer.give(ACK, 5000, 1001, b"\0", now=10.0)
    assert peer.one(10.0).acknowledgment == 5001
    assert peer.connection.receive(9, 10.0) == b""


def test_a_zero_window_still_takes_acknowledgments() -> None:
    """RFC 9293 3.10.7.4: special allowance."""
    peer = established(capacity=1024)
    peer.connection.send(b"question", 0.0)
    peer.take(0.0)
    peer.data(bytes(1024), 0.1)
    assert peer.one(0.1).window == 0
    peer.give(ACK, 6025, 1009, b"probe", now=0.2)
    assert peer.connection.sender.unacknowledged == 1009
    assert peer.one(0.2).acknowledgment == 6025


def test_a_zero_window_still_takes_a_reset_with_text() -> None:
    """RFC 9293 MUST-66; RFC 1122 4.2.2.12: a reset may say why."""
    peer = established(capacity=1024)
    peer.data(bytes(1024), 0.1)
    assert peer.one(0.1).window == 0
    peer.give(RST, 6025, 1001, b"because", now=0.2)
    assert isinstance(peer.connection.error, ConnectionReset)


# -- PAWS


def test_an_old_timestamp_shows_an_old_duplicate() -> None:
    """RFC 7323 5.3 R1: drop it and acknowledge."""
    peer = established()
    peer.give(ACK, 5001, 1001, b"old", now=0.1, timestamp=69_999)
    assert peer.connection.receive(9, 0.1) == b""
    assert peer.one(0.1).acknowledgment == 5001


def test_timestamps_wrap_around() -> None:
    """RFC 7323 5.2: compared modulo 2**32."""
    peer = Peer()
    peer.clock = 2**32 - 1
    peer.connection.open(-0.1)
    peer.take(-0.1)
    peer.give(SYN | ACK, 5000, 1001, now=0.0, options=peer.syn_options())
    peer.take(0.0)
    peer.give(ACK, 5001, 1001, b"new", now=0.1, timestamp=5)
    assert peer.connection.receive(9, 0.1) == b"new"


def test_a_reset_is_exempt_from_the_timestamp_check() -> None:
    """RFC 7323 5.3 R1."""
    peer = established()
    peer.give(RST, 5001, now=0.1, timestamp=1)
    assert isinstance(peer.connection.error, ConnectionReset)


def test_after_24_days_of_silence_any_timestamp_will_do() -> None:
    """RFC 7323 5.5: the far side's clock may have gone half around."""
    peer = established()
    later = 25 * 86400.0
    peer.give(ACK, 5001, 1001, b"new", now=later, timestamp=(70_000 + 25 * 86_400_000) % 2**32)
    assert peer.connection.receive(9, later) == b"new"


def test_the_echoed_timestamp_is_the_first_since_our_last_acknowledgment() -> None:
    """RFC 7323 4.3: so that the far side's measurement includes our delay."""
    peer = established()
    peer.connection.receiver.quick_acks = 0
    for step in range(3):
        peer.clock = 71_000 + step
        peer.data(b"x" * 100, 0.1)
    assert peer.one(peer.timeout()).options.timestamp_echo == 71_000


def test_a_segment_behind_a_hole_does_not_change_the_echoed_timestamp() -> None:
    """RFC 7323 4.3 (2)."""
    peer = established()
    peer.give(ACK, 5100, 1001, b"later", now=0.1, timestamp=75_000)
    assert peer.one(0.1).options.timestamp_echo == 70_000


def test_every_segment_carries_our_clock_in_milliseconds() -> None:
    """RFC 7323 3.2, 5.4."""
    peer = established()
    peer.connection.send(b"x", 1.5)
    assert peer.one(1.5).options.timestamp_value == 1500


# -- second check: RST


@pytest.mark.parametrize("reach", [established, fin_wait_1, fin_wait_2, close_wait, closing, last_ack])
def test_a_reset_at_exactly_the_next_byte_ends_the_connection(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.7.4 second, RFC 5961 3.2 (1)."""
    peer = reach()
    peer.owner.woken.clear()
    peer.give(RST, peer.sequence, now=0.5)
    assert peer.state() is State.CLOSED
    assert isinstance(peer.connection.error, ConnectionReset)
    assert peer.owner.closed == [peer.connection]
    assert peer.connection in peer.owner.woken
    assert peer.connection.next_timeout() is None
    assert peer.take(0.5) == []


@synchronized
def test_a_reset_elsewhere_in_the_window_draws_a_challenge(reach: Callable[[], Peer]) -> None:
    """RFC 5961 3.2 (3)."""
    peer = reach()
    state = peer.state()
    peer.give(RST, peer.sequence + 1, now=0.5)
    assert peer.flags(0.5) == [ACK]
    assert peer.state() is state
    peer.give(RST, peer.sequence + 1, now=0.6)
    assert peer.take(0.6) == []  # RFC 5961 7: limited in rate


def test_a_reset_does_not_cut_time_wait_short() -> None:
    """RFC 1337."""
    peer = time_wait()
    peer.give(RST, peer.sequence, now=0.5)
    assert peer.state() is State.TIME_WAIT


def test_data_that_came_before_a_reset_is_still_read() -> None:
    peer = established()
    peer.data(b"last words", 0.1)
    peer.give(RST, peer.sequence, now=0.1)
    assert peer.connection.readable
    assert peer.connection.receive(99, 0.2) == b"last words"
    with pytest.raises(ConnectionReset):
        peer.connection.receive(99, 0.2)


# -- fourth check: SYN


@synchronized
@pytest.mark.parametrize("offset", [-1, 0, 1000, 10_000_000])
def test_a_syn_on_a_synchronized_connection_draws_a_challenge(reach: Callable[[], Peer], offset: int) -> None:
    """RFC 9293 3.10.7.4 fourth, RFC 5961 4.2: whatever its sequence number."""
    peer = reach()
    state = peer.state()
    peer.give(SYN, peer.sequence + offset, now=0.5)
    challenge = peer.one(0.5)
    assert (challenge.flags, challenge.acknowledgment) == (ACK, peer.sequence)
    assert peer.state() is state


def test_a_repeated_syn_ack_is_acknowledged_again() -> None:
    """RFC 9293 3.5: our acknowledgment was lost."""
    peer = established()
    peer.give(SYN | ACK, 5000, 1001, now=1.0, options=peer.syn_options())
    assert peer.one(1.0).acknowledgment == 5001


# -- fifth check: ACK


@synchronized
def test_a_segment_without_acknowledgment_is_dropped(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.7.4 fifth."""
    peer = reach()
    state = peer.state()
    peer.give(PSH, peer.sequence, 0, b"text", now=0.5)
    assert peer.state() is state
    assert peer.connection.receiver.buffered == 0


def test_an_acknowledgment_of_data_never_sent_is_answered_and_dropped() -> None:
    """RFC 9293 3.10.7.4 fifth, RFC 5961 5.2."""
    peer = established()
    peer.give(ACK, 5001, 1002, b"text", now=0.5)
    answer = peer.one(0.5)
    assert (answer.flags, answer.sequence, answer.acknowledgment) == (ACK, 1001, 5001)
    assert peer.connection.receive(9, 0.5) == b""


def test_an_acknowledgment_older_than_the_largest_window_is_answered_and_dropped() -> None:
    """RFC 5961 5.2: SND.UNA - MAX.SND.WND."""
    peer = established(window=100)
    peer.give(ACK, 5001, 1001 - 101, b"text", now=0.5)
    assert peer.flags(0.5) == [ACK]
    assert peer.connection.receive(9, 0.5) == b""


def test_a_slightly_old_acknowledgment_brings_its_data_but_not_its_window() -> None:
    """RFC 9293 3.10.7.4 fifth: the window is updated if SND.UNA =< SEG.ACK."""
    peer = established(window=4000)
    peer.give(ACK, 5001, 1001 - 4000, b"text", now=0.5, window=1)
    assert peer.connection.receive(9, 0.5) == b"text"
    assert peer.connection.sender.window == 4000


def test_acknowledged_data_makes_room_and_wakes_the_writer() -> None:
    peer = established()
    connection = peer.connection
    assert connection.send(bytes(INITIAL_SEND_BUFFER + 5), 0.0) == INITIAL_SEND_BUFFER
    assert connection.send(b"x", 0.0) == 0
    while_full = connection.writable
    assert not while_full
    acknowledged, now = 1001, 0.0
    while not connection.writable:
        now += 0.05
        acknowledged += sum(len(segment.payload) for segment in peer.take(now))
        peer.ack(acknowledged, now)
    assert acknowledged - 1001 >= WRITE_LOW_WATER
    assert connection in peer.owner.woken


def test_the_window_follows_the_newest_segment() -> None:
    """RFC 9293 3.10.7.4 fifth: SND.WL1, SND.WL2."""
    peer = established()
    peer.give(ACK, 5011, 1001, b"behind a hole", now=0.1, window=3000)
    peer.give(ACK, 5001, 1001, b"0123456789", now=0.1, window=9000)
    assert peer.connection.sender.window == 3000


def test_three_duplicate_acknowledgments_retransmit() -> None:
    """RFC 5681 3.2, for a far side without SACK."""
    peer = established(sack=False)
    peer.connection.send(bytes(5 * FULL), 0.0)
    assert len(peer.take(0.0)) == 5
    for _ in range(3):
        peer.ack(1001, 0.1)
    (again,) = peer.take(0.1)
    assert (again.sequence, len(again.payload)) == (1001, FULL)


@pytest.mark.parametrize("payload, window", [(b"data", 65535), (b"", 50000)])
def test_data_and_window_updates_are_no_duplicates(payload: bytes, window: int) -> None:
    """RFC 5681 2."""
    peer = established(sack=False)
    peer.connection.send(bytes(5 * FULL), 0.0)
    peer.take(0.0)
    for step in range(3):
        peer.give(ACK, 5001 + step * len(payload), 1001, payload, now=0.1, window=window - step * (not payload))
    assert [segment for segment in peer.take(0.1) if len(segment.payload) == FULL] == []


def test_the_probe_of_the_tail_takes_the_place_of_the_retransmission_timer() -> None:
    """RFC 8985 7.2: it comes at the latest when that would have run out; then the timer starts anew."""
    peer = established()
    sender = peer.connection.sender
    for _ in range(50):
        sender.rtt.on_sample(0.5)  # RTO 0.7 s, less than two round trips
    peer.connection.send(b"hello", 1.0)
    peer.take(1.0)
    due = peer.connection.next_timeout()
    assert due is not None
    assert due == sender.retransmit_at
    assert due is not None
    peer.connection.handle_timeout(due)
    assert [segment.payload for segment in peer.take(due)] == [b"hello"]
    assert sender.retries == 0
    peer.connection.handle_timeout(due + 0.8)
    assert sender.retries == 1


def test_a_tail_probe_that_was_not_needed_shows_by_a_bare_duplicate() -> None:
    """RFC 8985 7.4.2: from a peer without D-SACK, when nothing is in flight any more."""
    peer = established()
    peer.connection.send(b"hello", 1.0)
    peer.take(1.0)
    peer.connection.handle_timeout(1.45)
    assert [segment.payload for segment in peer.take(1.45)] == [b"hello"]
    peer.ack(1006, 1.5, echo=1450)
    peer.ack(1006, 1.55, echo=1450)
    peer.connection.send(b"more", 2.0)
    peer.take(2.0)
    peer.ack(1010, 2.1, echo=2000)
    assert peer.connection.sender.congestion.threshold == UNLIMITED


def test_selective_acknowledgments_retransmit_only_the_holes() -> None:
    """RFC 6675 5."""
    peer = established()
    peer.connection.send(bytes(8 * FULL), 0.0)
    peer.take(0.0)
    starts = [1001 + index * FULL for index in range(9)]
    peer.give(ACK, 5001, 1001, now=0.1, blocks=((starts[1], starts[2]), (starts[3], starts[8])))
    assert [segment.sequence for segment in peer.take(0.1)] == [starts[0], starts[2]]


def test_selective_acknowledgments_of_data_never_sent_are_ignored() -> None:
    """RFC 6675 4: blocks above HighData are lies."""
    peer = established()
    peer.connection.send(bytes(2 * FULL), 0.0)
    peer.take(0.0)
    for _ in range(5):
        peer.give(ACK, 5001, 1001, now=0.1, blocks=((9001, 99_001), (1001, 1101), (1500, 1400)))
    assert peer.take(0.1) == []
    assert peer.connection.sender.board.sacked == 0


def test_selective_acknowledgments_that_were_not_negotiated_are_ignored() -> None:
    """RFC 2018 2."""
    peer = established(sack=False)
    peer.connection.send(bytes(8 * FULL), 0.0)
    peer.take(0.0)
    peer.give(ACK, 5001, 1001, now=0.1, blocks=((1001 + FULL, 1001 + 8 * FULL),))
    assert peer.connection.sender.board.sacked == 0


def test_the_echo_of_our_timestamp_tells_a_slow_path_from_a_lost_segment() -> None:
    """RFC 7323 4.1: after a timeout only the echo can measure, and end the backoff."""
    peer = established()
    peer.connection.send(b"x", 1.0)
    sent = peer.one(1.0).options.timestamp_value
    assert sent is not None
    peer.lose_everything()
    peer.ack(1002, 1.8, echo=sent)
    assert peer.connection.sender.rtt.latest == pytest.approx(0.8)


def test_the_echo_in_a_report_of_a_duplicate_measures_nothing() -> None:
    """RFC 2883 5: our first transmission arrived and its acknowledgment was lost; the echo would measure our timer."""
    peer = established()
    peer.connection.send(b"x", 1.0)
    sent = peer.one(1.0).options.timestamp_value
    assert sent is not None
    peer.lose_everything()
    peer.give(ACK, 5001, 1002, now=1.8, echo=sent, blocks=((1001, 1002),))
    assert peer.connection.sender.rtt.latest == pytest.approx(0.1)
    assert peer.connection.sender.rtt.backed_off


def test_an_impossible_echo_measures_nothing() -> None:
    peer = established()
    peer.connection.send(b"x", 1.0)
    peer.take(1.0)
    peer.lose_everything()
    peer.ack(1002, 1.8, echo=5_000_000)
    assert peer.connection.sender.rtt.latest == pytest.approx(0.1)


# -- seventh: text


def test_text_in_order_is_read_and_wakes_the_reader() -> None:
    peer = established()
    peer.owner.woken.clear()
    peer.data(b"hello", 0.1)
    assert peer.connection in peer.owner.woken
    assert peer.connection.readable
    assert peer.connection.receive(99, 0.1) == b"hello"
    assert not peer.connection.readable


def test_text_out_of_order_is_held_and_reported() -> None:
    """RFC 9293 3.10.7.4 seventh, RFC 2018 4."""
    peer = established()
    peer.give(ACK, 5004, 1001, b"def", now=0.1)
    report = peer.one(0.1)
    assert (report.acknowledgment, report.options.sack_blocks) == (5001, ((5004, 5007),))
    peer.data(b"abc", 0.1)
    assert peer.connection.receive(99, 0.1) == b"abcdef"
    assert peer.one(0.1).options.sack_blocks == ()


def test_without_sack_nothing_is_reported() -> None:
    """RFC 2018 2."""
    peer = established(sack=False)
    peer.give(ACK, 5004, 1001, b"def", now=0.1)
    assert peer.one(0.1).options.sack_blocks == ()


def test_at_most_three_blocks_stand_beside_a_timestamp() -> None:
    """RFC 2018 3: 40 bytes of options."""
    peer = established()
    for start in (5010, 5020, 5030, 5040, 5050):
        peer.give(ACK, start, 1001, b"x", now=0.1)
    assert peer.one(0.1).options.sack_blocks == ((5050, 5051), (5040, 5041), (5030, 5031))


def test_without_timestamps_four_blocks_fit() -> None:
    """RFC 2018 3."""
    peer = established(timestamps=False)
    for start in (5010, 5020, 5030, 5040, 5050):
        peer.give(ACK, start, 1001, b"x", now=0.1)
    assert len(peer.one(0.1).options.sack_blocks) == 4


def test_data_that_came_twice_is_reported_as_such() -> None:
    """RFC 2883 4.1."""
    peer = established()
    peer.data(b"hello", 0.1)
    peer.take(0.1)
    peer.give(ACK, 5001, 1001, b"hello", now=0.2)
    assert peer.one(0.2).options.sack_blocks == ((5001, 5006),)


def test_a_report_does_not_make_a_full_segment_larger_than_the_path() -> None:
    """RFC 6691 4: SACK blocks go on an acknowledgment of their own."""
    peer = established()
    peer.give(ACK, 5004, 1001, b"def", now=0.1)
    peer.connection.send(bytes(3 * FULL), 0.1)
    segments = peer.take(0.1)
    assert max(segment.length for segment in segments) == 40 + MSS
    assert [segment.options.sack_blocks for segment in segments if not segment.payload] == [((5004, 5007),)]


def test_of_overlapping_retransmissions_the_first_bytes_count() -> None:
    """RFC 9293 3.10.7.4: segments are trimmed to what is new."""
    peer = established()
    peer.data(b"abcd", 0.1)
    peer.give(ACK, 5003, 1001, b"XXef", now=0.1)
    peer.give(ACK, 5002, 1001, b"XXXXXgh", now=0.1)
    assert peer.connection.receive(99, 0.1) == b"abcdefgh"


def test_text_beyond_the_window_is_cut_off() -> None:
    """RFC 9293 3.10.7.4 first."""
    peer = established(capacity=1024)
    peer.data(bytes(1500), 0.1)
    assert peer.one(0.1).acknowledgment == 6025


def test_urgent_data_is_delivered_in_line() -> None:
    """RFC 6093 4."""
    peer = established()
    header = TcpHeader(80, 40000, 5001, 1001, int(ACK | URG), 65535, urgent_pointer=2)
    header.options.timestamp_value = 70_000
    peer.connection.receive_segment(header, b"ab!c", 0.1)
    assert peer.connection.receive(99, 0.1) == b"ab!c"


def test_an_unread_stream_closes_the_window_and_reading_opens_it() -> None:
    """RFC 9293 3.8.6."""
    peer = established(capacity=10_000)
    peer.data(bytes(10_000), 0.1)
    assert peer.one(0.1).window == 0
    peer.connection.receive(100, 0.2)
    assert peer.take(0.2) == []  # 3.8.6.2.2: too little to tell
    peer.connection.receive(9_900, 0.2)
    update = peer.one(0.2)
    assert (update.acknowledgment, update.window) == (15_001, 10_000 // 256 + 1)


def test_an_acknowledgment_waits_40_ms_for_an_answer_to_carry_it() -> None:
    """RFC 9293 MUST-40, MUST-58."""
    peer = established()
    peer.connection.receiver.quick_acks = 0
    peer.data(b"question", 1.0)
    assert peer.take(1.0) == []
    assert peer.connection.next_timeout() == pytest.approx(1.04)
    peer.connection.send(b"answer", 1.01)
    assert peer.one(1.01).acknowledgment == 5009
    assert peer.connection.receiver.ack_deadline is None


def test_a_delayed_acknowledgment_goes_out_alone_in_the_end() -> None:
    peer = established()
    peer.connection.receiver.quick_acks = 0
    peer.data(b"question", 1.0)
    assert peer.flags(peer.timeout()) == [ACK]


def test_every_second_full_segment_is_acknowledged() -> None:
    """RFC 9293 MUST-58, SHLD-18."""
    peer = established()
    peer.connection.receiver.quick_acks = 0
    acknowledgments = 0
    for _ in range(8):
        peer.data(bytes(FULL), 0.1)
        acknowledgments += len(peer.take(0.1))
        peer.connection.receive(9999, 0.1)
    assert acknowledgments == 4


@pytest.mark.parametrize("reach", [close_wait, last_ack, time_wait, closing])
def test_text_after_the_far_sides_fin_is_ignored(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.7.4 seventh: this should not occur."""
    peer = reach()
    state = peer.state()
    peer.give(ACK, peer.sequence, peer.connection.sender.unacknowledged, b"more", now=0.5)
    assert peer.connection.receiver.buffered == 0
    assert peer.state() is state


# -- eighth: FIN


def test_a_fin_is_acknowledged_and_ends_the_stream_for_the_reader() -> None:
    """RFC 9293 3.10.7.4 eighth."""
    peer = established()
    peer.data(b"bye", 0.1, flags=ACK | FIN)
    assert peer.state() is State.CLOSE_WAIT
    assert peer.one(0.1).acknowledgment == 5005
    unread = peer.connection.at_eof
    assert peer.connection.receive(99, 0.1) == b"bye"
    assert (unread, peer.connection.at_eof) == (False, True)
    assert peer.connection.readable
    assert peer.connection.receive(99, 0.1) == b""


def test_the_writer_may_go_on_after_the_far_side_closed() -> None:
    """RFC 9293 3.6: half-close, CLOSE-WAIT."""
    peer = close_wait()
    assert peer.connection.writable
    peer.connection.send(b"answer", 0.2)
    assert peer.one(0.2).payload == b"answer"


def test_a_fin_that_overtakes_its_data_waits_for_it() -> None:
    """RFC 9293 3.10.7.4 eighth: in sequence."""
    peer = established()
    peer.give(ACK | FIN, 5006, 1001, now=0.1)
    assert peer.state() is State.ESTABLISHED
    assert peer.one(0.1).acknowledgment == 5001
    peer.give(ACK, 5001, 1001, b"hello", now=0.2)
    assert peer.state() is State.CLOSE_WAIT
    assert peer.one(0.2).acknowledgment == 5007
    assert peer.connection.receive(99, 0.2) == b"hello"


def test_a_fin_with_data_behind_a_hole_waits_for_it() -> None:
    peer = established()
    peer.give(ACK | FIN, 5004, 1001, b"def", now=0.1)
    peer.give(ACK, 5001, 1001, b"abc", now=0.1)
    assert peer.state() is State.CLOSE_WAIT
    assert peer.connection.receive(99, 0.1) == b"abcdef"


def test_a_fin_beyond_the_window_is_not_taken() -> None:
    peer = established(capacity=1024)
    peer.data(bytes(1500), 0.1, flags=ACK | FIN)
    assert peer.state() is State.ESTABLISHED
    assert not peer.connection.receiver.fin_received


def test_a_bare_fin_is_taken_although_the_window_is_closed() -> None:
    """It needs no room."""
    peer = established(capacity=1024)
    peer.data(bytes(1024), 0.1)
    peer.take(0.1)
    peer.give(ACK | FIN, 6025, 1001, now=0.2)
    assert peer.state() is State.CLOSE_WAIT


def test_data_behind_the_fin_is_dropped() -> None:
    peer = established()
    peer.give(ACK | FIN, 5006, 1001, now=0.1)
    peer.give(ACK, 5001, 1001, b"hello, world", now=0.1)
    assert peer.state() is State.CLOSE_WAIT
    assert peer.connection.receive(99, 0.1) == b"hello"


def test_a_second_fin_elsewhere_does_not_move_the_end() -> None:
    peer = established()
    peer.give(ACK | FIN, 5006, 1001, now=0.1)
    peer.give(ACK | FIN, 5003, 1001, now=0.1)
    peer.give(ACK, 5001, 1001, b"hello", now=0.1)
    assert peer.connection.receive(99, 0.1) == b"hello"


def test_a_fin_in_front_of_data_that_is_here_is_no_end() -> None:
    """RFC 9293 3.10.7.4 eighth: nothing follows a FIN; of two claims that exclude each other the first stays."""
    peer = established()
    peer.give(ACK, 5007, 1001, b"held", now=0.1)
    peer.give(ACK | FIN, 5009, 1001, now=0.1)
    peer.give(ACK, 5001, 1001, b"it is ", now=0.1)
    assert peer.connection.receive(99, 0.1) == b"it is held"
    assert not peer.connection.at_eof
    peer.give(ACK | FIN, 5011, 1001, now=0.2)
    assert peer.connection.at_eof


def test_a_repeated_fin_is_acknowledged_again() -> None:
    peer = close_wait()
    peer.give(ACK | FIN, 5001, 1001, now=0.5)
    assert peer.one(0.5).acknowledgment == 5002
    assert peer.state() is State.CLOSE_WAIT


# -- closing, RFC 9293 3.6


def test_a_close_sends_what_is_queued_and_then_a_fin() -> None:
    """RFC 9293 3.10.4."""
    peer = established()
    peer.connection.send(bytes(FULL + 10), 0.0)
    peer.connection.close(0.0)
    assert peer.state() is State.FIN_WAIT_1
    first, last = peer.take(0.0)
    assert not first.flags & FIN
    assert last.flags & FIN
    assert len(last.payload) == 10


def test_nothing_can_be_sent_after_a_close() -> None:
    """RFC 9293 3.10.2: "connection closing"."""
    peer = fin_wait_1()
    assert peer.connection.writable  # the attempt raises at once
    with pytest.raises(ConnectionReset, match="already closed for sending"):
        peer.connection.send(b"more", 0.1)


def test_reading_goes_on_after_our_half_is_closed() -> None:
    """RFC 9293 3.6: FIN-WAIT-2 is a half-open connection that still receives."""
    peer = fin_wait_2()
    peer.data(b"answer", 0.3, acknowledgment=1002)
    assert peer.connection.receive(99, 0.3) == b"answer"
    assert peer.connection.next_timeout() is None or peer.state() is State.FIN_WAIT_2


def test_the_active_closer_goes_through_both_fin_waits_to_time_wait() -> None:
    """RFC 9293 3.6 figure 12."""
    peer = established()
    peer.connection.close(0.0)
    peer.take(0.0)
    peer.ack(1002, 0.1)
    assert peer.state() is State.FIN_WAIT_2
    peer.data(b"", 0.2, acknowledgment=1002, flags=ACK | FIN)
    assert peer.state() is State.TIME_WAIT
    assert peer.one(0.2).acknowledgment == 5002
    peer.connection.handle_timeout(0.2 + 2 * MSL)
    assert peer.state() is State.CLOSED
    assert peer.connection.error is None
    assert peer.owner.closed == [peer.connection]


def test_a_fin_that_acknowledges_ours_leads_straight_to_time_wait() -> None:
    peer = fin_wait_1()
    peer.data(b"", 0.1, acknowledgment=1002, flags=ACK | FIN)
    assert peer.state() is State.TIME_WAIT


def test_simultaneous_closes_meet() -> None:
    """RFC 9293 3.6 figure 13."""
    peer = fin_wait_1()
    peer.data(b"", 0.1, acknowledgment=1001, flags=ACK | FIN)
    assert peer.state() is State.CLOSING
    assert peer.one(0.1).acknowledgment == 5002
    peer.ack(1002, 0.2)
    assert peer.state() is State.TIME_WAIT


def test_the_passive_closer_ends_with_the_acknowledgment_of_its_fin() -> None:
    """RFC 9293 3.6: LAST-ACK."""
    peer = last_ack()
    peer.ack(1001, 0.2)
    assert peer.state() is State.LAST_ACK
    peer.ack(1002, 0.2)
    assert peer.state() is State.CLOSED
    assert peer.connection.error is None
    assert peer.connection.next_timeout() is None


@pytest.mark.parametrize("reach", [fin_wait_1, closing, last_ack])
def test_a_lost_fin_is_sent_again(reach: Callable[[], Peer]) -> None:
    peer = reach()
    segment = peer.one(peer.timeout())
    assert segment.flags & FIN
    assert segment.sequence == 1001


def test_a_fin_in_time_wait_is_acknowledged_and_starts_the_wait_again() -> None:
    """RFC 9293 3.10.7.4 eighth."""
    peer = time_wait()
    peer.give(ACK | FIN, 5001, 1002, now=30.0)
    assert peer.one(30.0).acknowledgment == 5002
    assert peer.connection.next_timeout() == 30.0 + 2 * MSL


def test_closing_twice_changes_nothing() -> None:
    peer = fin_wait_1()
    peer.connection.close(0.0)
    peer.connection.close(0.0)
    peer.connection.shutdown_write(0.0)
    assert peer.state() is State.FIN_WAIT_1
    assert peer.take(0.0) == []


def test_a_close_with_unread_data_resets() -> None:
    """RFC 2525 2.17, RFC 1122 4.2.2.13: the far side must learn that data was lost."""
    peer = established()
    peer.data(b"unread", 0.1)
    peer.connection.close(0.1)
    reset = peer.one(0.1)
    assert (reset.flags, reset.sequence) == (RST | ACK, 1001)
    assert peer.state() is State.CLOSED
    assert peer.take(0.1) == []


def test_a_close_with_unread_data_does_not_cut_time_wait_short() -> None:
    """Nothing is lost on the far side: both streams are complete."""
    peer = fin_wait_2()
    peer.data(b"unread", 0.2, acknowledgment=1002, flags=ACK | FIN)
    peer.take(0.2)
    peer.connection.close(0.3)
    assert peer.state() is State.TIME_WAIT


@pytest.mark.parametrize("state", [State.FIN_WAIT_1, State.FIN_WAIT_2])
def test_data_for_a_closed_socket_is_answered_by_a_reset(state: State) -> None:
    """RFC 1122 4.2.2.13: nobody will read it."""
    peer = established()
    peer.connection.close(0.0)
    peer.take(0.0)
    if state is State.FIN_WAIT_2:
        peer.ack(1002, 0.1)
    assert peer.state() is state
    peer.data(b"more", 0.2, acknowledgment=peer.connection.sender.unacknowledged)
    assert peer.flags(0.2) == [RST | ACK]
    assert peer.state() is State.CLOSED


def test_an_orphan_waits_a_minute_for_the_far_side_to_close() -> None:
    """Linux: tcp_fin_timeout."""
    peer = established()
    peer.connection.close(0.0)
    peer.take(0.0)
    peer.ack(1002, 0.1)
    assert peer.connection.next_timeout() == 60.1
    peer.connection.handle_timeout(60.1)
    assert peer.state() is State.CLOSED


def test_a_socket_closed_in_fin_wait_2_becomes_an_orphan() -> None:
    peer = fin_wait_2()
    assert peer.connection.next_timeout() is None
    peer.connection.close(5.0)
    assert peer.connection.next_timeout() == 65.0


# -- ABORT, RFC 9293 3.10.5


@pytest.mark.parametrize("reach", [established, fin_wait_1, fin_wait_2, close_wait, passive])
def test_an_abort_sends_a_reset(reach: Callable[[], Peer]) -> None:
    peer = reach()
    peer.connection.abort(0.3)
    reset = peer.one(0.3)
    assert (reset.flags, reset.sequence) == (RST | ACK, peer.connection.sender.next)
    assert peer.state() is State.CLOSED
    assert isinstance(peer.connection.error, ConnectionReset)


@pytest.mark.parametrize("reach", [opening, closing, last_ack, time_wait])
def test_an_abort_is_silent_where_the_far_side_has_nothing_to_learn(reach: Callable[[], Peer]) -> None:
    """RFC 9293 3.10.5: SYN-SENT, CLOSING, LAST-ACK and TIME-WAIT only delete the connection."""
    peer = reach()
    peer.connection.abort(0.3)
    assert peer.take(0.3) == []
    assert peer.state() is State.CLOSED
    assert peer.owner.closed == [peer.connection]


def test_an_abort_with_unsent_data_resets_even_in_last_ack() -> None:
    """Ours enters LAST-ACK before its FIN has left; the RFC's does not."""
    peer = close_wait()
    peer.give(ACK, 5002, 1001, now=0.2, window=0)
    peer.connection.send(b"stuck", 0.2)
    peer.connection.close(0.2)
    assert peer.take(0.2) == []
    peer.connection.abort(0.3)
    assert peer.flags(0.3) == [RST | ACK]


def test_an_abort_tells_waiters_its_reason() -> None:
    peer = established()
    reason = TunnelClosed("the tunnel is closed")
    peer.connection.abort(0.3, reason)
    with pytest.raises(TunnelClosed):
        peer.connection.receive(9, 0.3)
    with pytest.raises(TunnelClosed):
        peer.connection.send(b"x", 0.3)
    assert peer.connection.readable
    assert peer.connection.writable


def test_a_closed_connection_is_deaf() -> None:
    peer = established()
    peer.connection.abort(0.3)
    peer.take(0.3)
    peer.data(b"hello", 0.4)
    assert peer.take(0.4) == []
    assert peer.connection.next_timeout() is None


# -- retransmission limits, RFC 9293 3.8.3


def test_unacknowledged_data_ends_the_connection_in_the_end() -> None:
    """RFC 9293 SHLD-11: R2 of at least 100 seconds; Linux: 15 times."""
    peer = established()
    peer.connection.send(b"hello", 0.0)
    peer.take(0.0)
    retransmissions, now = 0, 0.0
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        retransmissions += len(peer.take(now))
    assert retransmissions == 1 + 15  # a probe of the tail first
    assert now > 100
    assert isinstance(peer.connection.error, ConnectionTimedOut)


def test_an_orphan_gives_up_sooner() -> None:
    """Linux: tcp_orphan_retries."""
    peer = established()
    peer.connection.send(b"hello", 0.0)
    peer.connection.close(0.0)
    peer.take(0.0)
    retransmissions = 0
    while peer.state() is not State.CLOSED:
        retransmissions += len(peer.take(peer.timeout()))
    assert retransmissions == 1 + 8  # a probe of the tail first


# -- zero window, RFC 9293 3.8.6.1


def stuck(window: int = 0) -> Peer:
    """Something to send, and a window that holds it back."""
    peer = established()
    peer.ack(1001, 0.0, window=window)
    peer.connection.send(bytes(5000), 0.0)
    assert peer.take(0.0) == []
    return peer


def test_a_closed_window_is_probed_with_an_old_sequence_number() -> None:
    """RFC 9293 MUST-35, MUST-36."""
    peer = stuck()
    probe = peer.one(peer.timeout())
    assert (probe.flags, probe.sequence, probe.payload) == (ACK, 1000, b"")


def test_probes_slow_down_to_one_a_minute() -> None:
    """RFC 9293 SHLD-30: exponentially."""
    peer = stuck()
    times = [0.0]
    for _ in range(12):
        now = peer.timeout()
        assert len(peer.take(now)) == 1
        peer.ack(1001, now, window=0)
        peer.take(now)
        times.append(now)
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[0] == pytest.approx(0.3)
    assert gaps[1] == pytest.approx(0.6)
    assert gaps[-1] == pytest.approx(60.0)


def test_a_far_side_that_answers_may_keep_its_window_closed_for_ever() -> None:
    """RFC 9293 MUST-37."""
    peer = stuck()
    for _ in range(200):
        now = peer.timeout()
        assert len(peer.take(now)) == 1
        peer.ack(1001, now, window=0)
        peer.take(now)
    assert peer.state() is State.ESTABLISHED
    peer.ack(1001, now, window=65535)
    assert sum(len(segment.payload) for segment in peer.take(now)) == 5000


def test_probes_that_nobody_answers_end_the_connection() -> None:
    """RFC 9293 3.8.6.1 allows no more than this: only a far side that acknowledges may take for ever."""
    peer = stuck()
    probes, now = 0, 0.0
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        probes += sum(segment.flags == ACK for segment in peer.take(now))
    assert probes == 15
    assert isinstance(peer.connection.error, ConnectionTimedOut)


def test_an_orphan_does_not_wait_for_a_window_for_ever() -> None:
    """Or a far side could make us keep its data: Linux' tcp_orphan_retries."""
    peer = stuck()
    peer.connection.close(0.0)
    for _ in range(20):
        if peer.state() is State.CLOSED:
            break
        now = peer.timeout()
        peer.take(now)
        peer.ack(1001, now, window=0)
        peer.take(now)
    assert peer.state() is State.CLOSED


def test_data_in_flight_behind_a_closing_window_is_kept_alive_by_any_answer() -> None:
    """RFC 9293 MUST-37."""
    peer = established()
    peer.connection.send(b"hello", 0.0)
    peer.take(0.0)
    for _ in range(40):
        now = peer.timeout()
        assert peer.one(now).payload == b"hello"
        peer.ack(1001, now, window=0)
    assert peer.state() is State.ESTABLISHED


def test_a_window_that_stays_small_is_filled_in_the_end() -> None:
    """RFC 9293 3.8.6.2.1 (4): the override timeout."""
    peer = stuck(window=100)
    segment = peer.one(peer.timeout())
    assert (segment.sequence, len(segment.payload)) == (1001, 100)


def test_a_window_that_opens_ends_the_probing() -> None:
    peer = stuck()
    peer.take(peer.timeout())
    peer.ack(1001, 1.0, window=65535)
    assert sum(len(segment.payload) for segment in peer.take(1.0)) == 5000
    peer.ack(6001, 1.1)
    assert peer.take(1.1) == []
    assert peer.connection.next_timeout() is None


def test_a_window_that_shrinks_does_not_hurt() -> None:
    """RFC 9293 MUST-34."""
    peer = established()
    peer.connection.send(bytes(20 * FULL), 0.0)
    assert len(peer.take(0.0)) == 10
    peer.ack(1001 + FULL, 0.1, window=FULL)
    assert peer.take(0.1) == []
    peer.ack(1001 + 10 * FULL, 0.2, window=2 * FULL)
    assert len(peer.take(0.2)) == 2


# -- keep-alive, RFC 9293 3.8.4


def test_an_idle_connection_is_silent_for_ever() -> None:
    """RFC 9293 MUST-25: keep-alives are off by default."""
    assert established().connection.next_timeout() is None


def test_keep_alives_probe_an_idle_connection() -> None:
    """RFC 9293 3.8.4: SEG.SEQ = SND.NXT-1."""
    peer = established()
    peer.connection.set_keepalive(100.0, 10.0, 3, 0.0)
    assert peer.timeout() == 100.0
    probe = peer.one(100.0)
    assert (probe.flags, probe.sequence, probe.payload) == (ACK, 1000, b"")


def test_traffic_puts_the_keep_alive_off() -> None:
    peer = established()
    peer.connection.set_keepalive(100.0, 10.0, 3, 0.0)
    peer.data(b"x", 60.0)
    peer.connection.receive(9, 60.0)
    peer.take(60.0)
    peer.connection.handle_timeout(100.0)
    assert peer.take(100.0) == []
    assert peer.timeout() == 160.0
    assert peer.flags(160.0) == [ACK]


def test_an_answered_keep_alive_starts_the_clock_again() -> None:
    peer = established()
    peer.connection.set_keepalive(100.0, 10.0, 2, 0.0)
    for round_ in range(1, 4):
        peer.take(peer.timeout())
        peer.ack(1001, 101.0 * round_)
        peer.timeout()  # notices
    assert peer.state() is State.ESTABLISHED


def test_unanswered_keep_alives_end_the_connection() -> None:
    """RFC 9293 MUST-28: not because a single one is lost."""
    peer = established()
    peer.connection.set_keepalive(100.0, 10.0, 3, 0.0)
    times = []
    while peer.state() is State.ESTABLISHED:
        times.append(peer.timeout())
        last = peer.flags(times[-1])
    assert times == [100.0, 110.0, 120.0, 130.0]
    assert last == [RST | ACK]
    assert isinstance(peer.connection.error, ConnectionTimedOut)


def test_keep_alives_leave_retransmissions_to_their_timer() -> None:
    """RFC 9293 3.8.4: only when nothing is in flight."""
    peer = established()
    peer.connection.set_keepalive(0.1, 0.1, 1, 0.0)
    peer.connection.send(b"x", 0.0)
    peer.take(0.0)
    peer.connection.handle_timeout(0.1)
    assert peer.take(0.1) == []
    assert peer.state() is State.ESTABLISHED


@pytest.mark.parametrize("end", ["time_wait", "closed"])
def test_keep_alives_cannot_revive_a_finished_connection(end: str) -> None:
    peer = time_wait()
    if end == "closed":
        peer.connection.abort(0.3)
    before = peer.connection.next_timeout()
    peer.connection.set_keepalive(1.0, 1.0, 1, 0.3)
    assert peer.connection.next_timeout() == before


# -- ICMP, RFC 9293 3.9.2.2, RFC 5927


def test_a_hard_error_ends_an_open() -> None:
    """RFC 9293 3.9.2.2: SHLD-26."""
    peer = opening()
    peer.connection.on_unreachable("port unreachable", True, 1000)
    assert isinstance(peer.connection.error, DestinationUnreachable)


def test_a_soft_error_only_explains_a_later_timeout() -> None:
    """RFC 9293 MUST-56."""
    peer = opening()
    peer.connection.on_unreachable("host unreachable", False, 1000)
    assert peer.state() is State.SYN_SENT
    while peer.state() is State.SYN_SENT:
        peer.take(peer.timeout())
    assert "host unreachable" in str(peer.connection.error)


def test_a_hard_error_does_not_end_an_open_connection() -> None:
    """RFC 5927 5.2: an attacker's favourite."""
    peer = established()
    peer.connection.send(b"x", 0.0)
    peer.take(0.0)
    peer.connection.on_unreachable("port unreachable", True, 1001)
    assert peer.state() is State.ESTABLISHED


@pytest.mark.parametrize("sequence", [999, 1001, 0])
def test_an_error_about_nothing_in_flight_is_a_forgery(sequence: int) -> None:
    """RFC 5927 4.1."""
    peer = opening()
    peer.connection.on_unreachable("port unreachable", True, sequence)
    assert peer.state() is State.SYN_SENT
    assert peer.connection.hard_error_hint is None


def test_packet_too_big_sends_smaller_segments_again() -> None:
    """RFC 1191 6.5, RFC 8201."""
    peer = established()
    peer.connection.send(bytes(2 * FULL), 0.0)
    peer.take(0.0)
    assert peer.connection.on_packet_too_big(1000, 1001, 0.0)
    segments = peer.take(0.1)
    assert [segment.sequence for segment in segments] == [1001, 1989, 2977]
    assert max(segment.length for segment in segments) == 40 + 1000
    assert sum(len(segment.payload) for segment in segments) == 2 * FULL


def test_packet_too_big_about_nothing_in_flight_is_a_forgery() -> None:
    """RFC 5927 7."""
    peer = established()
    peer.connection.send(bytes(FULL), 0.0)
    peer.take(0.0)
    assert not peer.connection.on_packet_too_big(1000, 1001 + FULL, 0.0)
    assert not peer.connection.on_packet_too_big(1000, 1000, 0.0)
    assert peer.connection.sender.mss == FULL


def test_packet_too_big_makes_segments_no_smaller_than_the_floor() -> None:
    """CVE-2019-11479."""
    peer = established()
    peer.connection.send(bytes(FULL), 0.0)
    peer.take(0.0)
    peer.connection.on_packet_too_big(1, 1001, 0.0)
    assert peer.take(0.1)[0].length == 40 + MINIMUM_MSS


# -- malformed input and options


@pytest.mark.parametrize(
    "options",
    [
        b"\x02\x00\x00\x00",  # length 0
        b"\x02\x01\x00\x00",  # length 1
        b"\x02\xff\x00\x00",  # beyond the header
        b"\x08\x0a\x00\x00",  # a timestamp cut short
        b"\x05\x22" + b"\xff" * 34,  # SACK blocks of everything
        b"\x01" * 40,
        b"\xfe\x02" * 20,
    ],
)
def test_illegal_options_are_survived(options: bytes) -> None:
    """RFC 9293 MUST-6, MUST-7."""
    peer = established()
    header = TcpHeader(80, 40000, 5001, 1001, int(ACK), 65535).serialize()
    options = options.ljust(-(-len(options) // 4) * 4, b"\0")
    packet = bytearray(20) + header[:12] + bytes([(20 + len(options)) << 2]) + header[13:] + options + b"hello"
    peer.connection.receive_packets([bytes(packet)], 20, 0.1)
    assert peer.connection.receive(9, 0.1) == b"hello"


@pytest.mark.parametrize("segment", [b"", b"\0" * 19, b"\0" * 12 + b"\x40" + bytes(7), b"\0" * 12 + b"\xf0" + bytes(7)])
def test_a_malformed_header_is_counted(segment: bytes) -> None:
    peer = established()
    peer.connection.receive_packets([bytes(20) + segment], 20, 0.1)
    assert peer.owner.drops["malformed TCP header"] == 1


def test_sequence_numbers_wrap_around() -> None:
    """RFC 9293 3.4."""
    owner = Owner()
    connection = TcpConnection(
        owner,
        OURS,
        THEIRS,
        initial_sequence=2**32 - 3,
        mss=MSS,
        socket_capacity=1 << 17,
        make_control=Reno,
        timestamp_offset=2**32 - 5,
    )
    connection.open(0.0)
    connection.packets_to_send(0.0)
    connection.receive_segment(TcpHeader(80, 40000, 2**32 - 2, 2**32 - 2, int(SYN | ACK), 9999), b"", 0.1)
    connection.send(b"abcdefgh", 0.1)
    (packet,) = connection.packets_to_send(0.1)
    assert TcpHeader.parse(packet, 20).sequence == 2**32 - 2
    connection.receive_segment(TcpHeader(80, 40000, 2**32 - 1, 6, int(ACK), 9999), b"hello", 0.2)
    assert connection.receive(9, 0.2) == b"hello"
    assert connection.sender.next == connection.sender.unacknowledged
    (packet,) = connection.packets_to_send(0.2)
    assert TcpHeader.parse(packet, 20).acknowledgment == 4


# -- the fast path


def packet(
    sequence: int,
    payload: bytes,
    *,
    flags: Flags = ACK,
    timestamp: int = 70_000,
    echo: int = 0,
    acknowledgment: int = 1001,
) -> bytes:
    header = TcpHeader(80, 40000, sequence, acknowledgment, int(flags), 65535)
    header.options.timestamp_value, header.options.timestamp_echo = timestamp, echo
    return bytes(20) + header.serialize() + payload


def test_a_batch_of_consecutive_segments_is_taken_at_once() -> None:
    peer = established()
    batch = [packet(5001, b"abc"), packet(5004, b"def"), packet(5007, b"ghi")]
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.connection.receive(99, 0.1) == b"abcdefghi"
    assert peer.one(0.1).acknowledgment == 5010


@pytest.mark.parametrize("offset", [20, 40])
def test_a_dialogue_is_predicted(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Data that acknowledges all of ours, or some of it, or an acknowledgment alone."""
    peer = established()
    connection = peer.connection
    monkeypatch.setattr(TcpConnection, "receive_segment", None)
    exchanges = [(b"pong", 1005, ACK | PSH), (b"po", 1007, ACK), (b"", 1013, ACK), (b"ng", 1017, ACK | PSH)]
    for payload, acknowledged, flags in exchanges:
        connection.send(b"ping", 0.1)
        assert [segment.payload for segment in peer.take(0.1)] == [b"ping"]
        answer = packet(connection.receiver.next, payload, flags=flags, acknowledgment=acknowledged)
        assert connection.receive_packets([bytes(offset - 20) + answer], offset, 0.2) == 1
        assert connection.receive(99, 0.2) == payload
        assert connection.sender.unacknowledged == acknowledged


def test_an_acknowledgment_of_what_was_never_sent_is_not_predicted() -> None:
    """RFC 5961 5.2."""
    peer = established()
    peer.connection.receive_packets([packet(5001, b"abc", acknowledgment=1002)], 20, 1.0)
    assert peer.flags(1.0) == [ACK]
    assert not peer.connection.receiver.buffered


def test_a_batch_fills_the_window_and_no_more() -> None:
    peer = established(capacity=1024)
    batch = [packet(5001 + 300 * index, bytes(300)) for index in range(5)]
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.connection.receiver.buffered == 1024


def test_a_batch_takes_no_more_than_there_is_memory_for() -> None:
    """The window may be larger: it was promised before the connection was idle, and gave its memory back."""
    peer = established()
    memory = peer.shared.receive
    peer.connection.receiver.give_back()
    memory.claim(memory.free)
    batch = [packet(5001 + 1000 * index, bytes(1000)) for index in range(40)]
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.connection.receiver.buffered == RECEIVE_FLOOR // 1000 * 1000


def test_a_batch_with_an_old_timestamp_in_it_stops_there() -> None:
    """RFC 7323 5.3."""
    peer = established()
    peer.connection.receive_packets([packet(5001, b"abc"), packet(5004, b"def", timestamp=1)], 20, 0.1)
    assert peer.connection.receive(99, 0.1) == b"abc"


def test_a_batch_for_a_closed_socket_is_answered_by_a_reset() -> None:
    """RFC 1122 4.2.2.13, on the fast path too."""
    peer = established()
    peer.connection.close(0.0)
    peer.take(0.0)
    peer.ack(1002, 0.1)
    header = TcpHeader(80, 40000, 5001, 1002, int(ACK), 65535)
    header.options.timestamp_value = 70_000
    peer.connection.receive_packets([bytes(20) + header.serialize() + b"more"], 20, 0.2)
    assert peer.flags(0.2) == [RST | ACK]


def test_a_batch_that_reaches_an_early_fin_ends_the_stream() -> None:
    peer = established()
    peer.connection.receive_packets([packet(5004, b"", flags=ACK | FIN), packet(5001, b"abc")], 20, 0.1)
    assert peer.state() is State.CLOSE_WAIT
    assert peer.connection.receive(99, 0.1) == b"abc"


def test_a_batch_confirms_the_window_it_repeats() -> None:
    """RFC 9293 3.10.7.4 fifth: SND.WL1 follows, so that an older segment cannot bring an older window."""
    peer = established()
    batch = [packet(5001, b"abc"), packet(5004, b"def")]
    peer.connection.receive_packets(batch, 20, 0.1)
    peer.give(ACK, 5002, 1001, b"bcdefghi", now=0.1, window=1)
    assert peer.connection.sender.window == 65535
    assert peer.connection.receive(99, 0.1) == b"abcdefghi"


def test_a_batch_echoes_its_first_timestamp() -> None:
    """RFC 7323 4.3."""
    peer = established()
    batch = [packet(5001, b"abc", timestamp=71_000), packet(5004, b"def", timestamp=72_000)]
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.one(0.1).options.timestamp_echo == 71_000


def train(sequence: int, count: int, *, timestamp: int = 70_000) -> list[bytes]:
    addresses = THEIRS[0], OURS[0]
    segments = [packet(sequence + 300 * index, bytes(300), timestamp=timestamp)[20:] for index in range(count)]
    headers = [Ipv4Header(*addresses, PROTOCOL_TCP, 20 + len(segment)).serialize() for segment in segments]
    return [header + segment for header, segment in zip(headers, segments, strict=True)]


def test_a_train_and_an_acknowledgment_bring_timestamps_to_echo() -> None:
    """RFC 7323 4.3."""
    peer = established()
    peer.connection.receive_packets(train(5001, SHORTEST_TRAIN, timestamp=71_000), 20, 0.1)
    assert peer.one(0.1).options.timestamp_echo == 71_000
    peer.connection.send(b"ping", 0.2)
    peer.take(0.2)
    answer = packet(5001 + 300 * SHORTEST_TRAIN, b"", acknowledgment=1005, timestamp=72_000)
    peer.connection.receive_packets([answer], 20, 0.3)
    peer.connection.send(b"ping", 0.4)
    assert peer.one(0.4).options.timestamp_echo == 72_000


def test_a_train_with_an_old_timestamp_is_dropped() -> None:
    """RFC 7323 5.3."""
    peer = established()
    batch = train(5001, 5, timestamp=1)
    assert train_length(batch) == 5
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.connection.receiver.buffered == 0


def test_one_train_after_the_other_is_taken_from_a_batch() -> None:
    peer = established()
    batch = [*train(5001, 5), *train(6501, 4, timestamp=70_001), packet(7701, b"end")]
    peer.connection.receive_packets(batch, 20, 0.1)
    assert peer.connection.receive(9999, 0.1) == bytes(9 * 300) + b"end"
    assert peer.one(0.1).options.timestamp_echo == 70_000


# -- user timeout, RFC 5482


def test_data_that_stays_unacknowledged_for_the_user_timeout_ends_the_connection() -> None:
    """RFC 9293 3.10.8."""
    peer = established()
    peer.connection.user_timeout = 5.0
    peer.connection.send(b"x", 2.0)
    peer.take(2.0)
    now = 2.0
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        last = peer.flags(now)
    assert now == 7.0
    assert last == [RST | ACK]
    assert isinstance(peer.connection.error, ConnectionTimedOut)
    assert "nothing acknowledged for 5 s, the user timeout" in str(peer.connection.error)


def test_each_acknowledgment_starts_the_user_timeout_again() -> None:
    """RFC 5482 2: it counts while data remains unacknowledged, and any of it is progress."""
    peer = established()
    peer.connection.user_timeout = 5.0
    peer.connection.send(bytes(3000), 0.0)
    peer.take(0.0)
    peer.ack(2001, 4.0)
    peer.ack(3001, 8.0)
    peer.connection.handle_timeout(12.9)
    assert peer.state() is State.ESTABLISHED
    peer.connection.handle_timeout(13.0)
    assert peer.state() is State.CLOSED


def test_an_idle_connection_has_no_user_timeout() -> None:
    peer = established()
    peer.connection.user_timeout = 5.0
    assert peer.connection.next_timeout() is None
    peer.connection.send(b"x", 100.0)
    peer.take(100.0)
    peer.ack(1002, 100.1)
    assert peer.connection.next_timeout() is None
    peer.connection.shutdown_write(200.0)
    peer.take(200.0)
    peer.connection.handle_timeout(204.9)
    assert peer.state() is State.FIN_WAIT_1
    peer.connection.handle_timeout(205.0)
    assert peer.state() is State.CLOSED


def test_a_window_that_stays_closed_for_the_user_timeout_ends_the_connection() -> None:
    """RFC 9293 MUST-37 lets it stay closed for ever; the user need not wait that long (RFC 1122 4.2.2.17)."""
    peer = stuck()
    peer.connection.user_timeout = 30.0
    now = 0.0
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        peer.take(now)
        peer.ack(1001, now, window=0)
        peer.take(now)
    assert now == 30.0
    assert isinstance(peer.connection.error, ConnectionTimedOut)


def test_a_user_timeout_set_while_data_waits_counts_from_when_it_began_to() -> None:
    peer = established()
    peer.connection.send(b"x", 1.0)
    peer.take(1.0)
    peer.owner.touched.clear()
    peer.connection.user_timeout = 4.0
    assert peer.connection in peer.owner.touched
    assert peer.connection.next_timeout() == pytest.approx(1.3)
    peer.connection.handle_timeout(5.0)
    assert peer.state() is State.CLOSED


def test_a_long_user_timeout_outlasts_the_number_of_retransmissions() -> None:
    """RFC 9293 MUST-21: the user sets R2."""
    peer = established()
    peer.connection.user_timeout = 10_000.0
    peer.connection.send(b"x", 0.0)
    peer.take(0.0)
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        peer.take(now)
    assert now == 10_000.0


def test_an_unanswered_open_obeys_the_user_timeout_and_sends_no_reset() -> None:
    """RFC 9293 3.10.1: OPEN takes a timeout."""
    peer = opening()
    peer.connection.user_timeout = 2.5
    while peer.state() is State.SYN_SENT:
        now = peer.timeout()
        last = peer.flags(now)
    assert now == pytest.approx(2.4)
    assert last == []


def test_the_user_timeout_decides_about_keep_alives_too() -> None:
    """Linux: TCP_USER_TIMEOUT overrides TCP_KEEPCNT."""
    peer = established()
    peer.connection.set_keepalive(100.0, 10.0, 3, 0.0)
    peer.connection.user_timeout = 165.0
    while peer.state() is State.ESTABLISHED:
        now = peer.timeout()
        peer.take(now)
    assert now == 170.0
    assert "7 keep-alive probes went unanswered" in str(peer.connection.error)


# -- what connections share


def test_a_writer_may_have_a_floor_waiting_whatever_the_others_do() -> None:
    peer = established()
    peer.shared.send_free = 0
    assert peer.connection.writable
    assert peer.connection.send(bytes(1 << 20), 0.0) == SEND_FLOOR
    assert not peer.connection.writable


def test_what_a_writer_has_waiting_is_charged_until_it_is_acknowledged() -> None:
    peer = established()
    taken = peer.connection.send(bytes(1 << 20), 0.0)
    assert peer.shared.send_free == SEND_MEMORY - (taken - SEND_FLOOR)
    acknowledged, now = 1001, 0.0
    while acknowledged < 1001 + taken:
        now += 0.05
        acknowledged += sum(len(segment.payload) for segment in peer.take(now))
        peer.ack(acknowledged, now)
        assert peer.shared.send_free == SEND_MEMORY - max(taken - (acknowledged - 1001) - SEND_FLOOR, 0)


@pytest.mark.parametrize("end", ["abort", "reset"])
def test_the_end_of_a_connection_gives_everything_back(end: str) -> None:
    peer = established()
    peer.connection.send(bytes(1 << 20), 0.0)
    peer.data(b"unread", 0.1)
    if end == "abort":
        peer.connection.abort(0.2)
    else:
        peer.give(RST, peer.sequence, now=0.2)
    assert peer.shared.send_free == SEND_MEMORY
    assert peer.shared.receive.free == RECEIVE_MEMORY


def test_a_challenge_needs_the_leave_of_the_tunnel() -> None:
    """RFC 5961 7: none when the tunnel's budget for this second is spent, and the connection's own is not used up."""
    peer = established()
    challenges = peer.shared.challenges = ChallengeBudget(SeededEntropy(1))
    while challenges.take(1.0):
        pass
    peer.give(SYN, 5001, now=1.0)
    assert peer.take(1.0) == []
    peer.give(SYN, 5001, now=1.0 + CHALLENGE_PERIOD)
    assert peer.flags(1.0 + CHALLENGE_PERIOD) == [ACK]


def test_time_wait_ends_early_where_too_many_wait() -> None:
    peer = time_wait()

    class Other:
        def end_time_wait(self) -> None: ...

    for _ in range(TIME_WAIT_LIMIT):
        assert peer.state() is State.TIME_WAIT
        peer.shared.enter_time_wait(Other())
    assert peer.state() is State.CLOSED
    assert peer.connection.error is None
    assert peer.owner.closed == [peer.connection]


# -- the path as the receiving side sees it


def test_full_segments_of_a_batch_measure_the_path_by_our_timestamp() -> None:
    """RFC 7323 4.1: a download acknowledges only, so nothing of ours is acknowledged that could be timed."""
    peer = established()
    assert peer.connection.receiver.rtt == pytest.approx(0.1)
    peer.connection.receive_packets([packet(5001, bytes(FULL), echo=2000)], 20, 2.05)
    assert peer.connection.receiver.rtt == pytest.approx(0.05)
    peer.connection.receive_packets([packet(5001 + FULL, bytes(FULL), echo=2000)], 20, 2.09)
    assert peer.connection.receiver.rtt == pytest.approx(0.05)  # an echo seen before: the sender waited
    peer.connection.receive_packets([packet(5001 + 2 * FULL, b"short", echo=2089)], 20, 2.1)
    assert peer.connection.receiver.rtt == pytest.approx(0.05)  # perhaps the sender waited for its application


def test_an_echo_of_the_future_measures_nothing() -> None:
    peer = established()
    peer.connection.receive_packets([packet(5001, bytes(FULL), echo=2060)], 20, 2.05)
    peer.connection.receive_packets([packet(5001 + FULL, bytes(FULL), echo=2**31)], 20, 2.05)
    assert peer.connection.receiver.rtt == pytest.approx(0.1)


def test_the_name_tells_both_ends_and_the_state() -> None:
    assert repr(established().connection) == "<TcpConnection ('10.0.0.2', 40000) -> ('10.0.0.1', 80) ESTABLISHED>"
