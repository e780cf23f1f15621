"""The receiving half: window, reassembly, acknowledgments (RFC 9293 3.8.6)."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from httpx_wireguard._netstack.limits import RECEIVE_FLOOR, ReceiveMemory
from httpx_wireguard._netstack.receiver import INITIAL_BUFFER, MAXIMUM_BUFFER, PIECES, QUICK_ACKS, ROUNDING, Receiver
from tests.measures import deep_size

MSS = 1000


def receiver_at(
    next_sequence: int = 5000,
    *,
    capacity: int = 1 << 17,
    scale: int = 8,
    quick: int = 0,
    rtt: float | None = None,
    timestamps: bool = True,
    memory: ReceiveMemory | None = None,
) -> Receiver:
    """An open connection's receiver that has advertised its first window; without `rtt` it stays as it is."""
    receiver = Receiver(next_sequence, MSS, capacity, memory)
    receiver.reset_edge()
    receiver.scale = scale
    receiver.quick_acks = quick
    receiver.start(0.0, rtt, timestamps=timestamps)
    receiver.window_field()
    receiver.on_ack_sent()
    return receiver


def window(receiver: Receiver) -> int:
    """What the far side reads out of the next segment, in bytes."""
    return receiver.window_field() << receiver.scale


def read_all(receiver: Receiver, now: float = 1.0) -> bytes:
    return receiver.take(1 << 30, now) if receiver.buffered else b""


def round_trip(receiver: Receiver, length: int, now: float) -> int:
    """`length` bytes come and are read within a round trip that ends at `now`; returns the window from then on."""
    while length:
        piece = min(length, 16_000)
        receiver.on_data(receiver.next, bytes(piece), now)
        length -= piece
    read_all(receiver, now)
    told = window(receiver)
    receiver.on_ack_sent()
    return told


# -- data


def test_data_in_order_is_read_at_once() -> None:
    receiver = receiver_at()
    assert receiver.on_data(5000, b"hello", 1.0)
    assert (receiver.next, receiver.buffered) == (5005, 5)
    assert receiver.take(100, 1.0) == b"hello"
    assert receiver.buffered == 0


def test_the_reader_takes_no_more_than_it_asked_for() -> None:
    receiver = receiver_at()
    receiver.on_in_order([b"abc", b"defg"], 7, 3, 1.0)
    assert receiver.take(2, 1.0) == b"ab"
    assert receiver.take(3, 1.0) == b"cde"
    assert receiver.take(9, 1.0) == b"fg"


def test_a_read_that_is_nearly_full_does_not_cut_a_large_piece() -> None:
    """Its rest would have to be copied."""
    receiver = receiver_at()
    pieces = [b"a" * 60_000, b"b" * 60_000, b"c" * 100, b"d" * 60_000]
    receiver.on_in_order(pieces, 180_100, 1368, 1.0)
    assert receiver.take(65_536, 1.0) is pieces[0]
    assert receiver.take(65_536, 1.0) == pieces[1] + pieces[2]
    assert receiver.take(40_000, 1.0) == b"d" * 40_000
    assert receiver.take(65_536, 1.0) == b"d" * 20_000
    assert receiver.buffered == 0


def test_data_behind_a_hole_waits_for_it() -> None:
    """RFC 9293 3.10.7.4 seventh: segments with higher sequence numbers are held."""
    receiver = receiver_at()
    assert not receiver.on_data(5003, b"def", 1.0)
    assert (receiver.next, receiver.buffered) == (5000, 0)
    assert receiver.on_data(5000, b"abc", 1.0)
    assert read_all(receiver) == b"abcdef"


def test_only_the_new_part_of_an_overlap_is_taken() -> None:
    receiver = receiver_at()
    receiver.on_data(5000, b"abcd", 1.0)
    assert receiver.on_data(5002, b"CDEF", 1.0)
    assert read_all(receiver) == b"abcdEF"


def test_data_beyond_the_window_is_cut_off() -> None:
    """RFC 9293 3.10.7.4 first: segments are trimmed to the window."""
    receiver = receiver_at(capacity=1024)
    assert receiver.right_edge == 6024
    receiver.on_data(5000, bytes(2000), 1.0)
    assert receiver.next == 6024


# -- acceptability


def test_an_empty_segment_is_acceptable_from_next_to_the_edge() -> None:
    """RFC 9293 3.10.7.4 table."""
    receiver = receiver_at(capacity=1024)
    assert [receiver.acceptable(sequence, 0) for sequence in (4999, 5000, 6024, 6025)] == [False, True, True, False]


def test_a_segment_with_text_is_acceptable_when_some_of_it_is_in_the_window() -> None:
    """RFC 9293 3.10.7.4 table."""
    receiver = receiver_at(capacity=1024)
    assert not receiver.acceptable(4990, 10)
    assert receiver.acceptable(4990, 11)
    assert receiver.acceptable(6023, 10)
    assert not receiver.acceptable(6024, 10)


def test_a_segment_at_the_left_edge_is_acceptable_although_the_window_is_closed() -> None:
    """RFC 9293 3.10.7.4: special allowance for acknowledgments; MUST-66 for resets and urgent pointers."""
    receiver = receiver_at(capacity=1024)
    receiver.on_data(5000, bytes(1024), 1.0)
    assert window(receiver) == 0
    assert receiver.acceptable(6024, 10)
    assert not receiver.on_data(6024, b"probe", 1.0)
    assert receiver.ack_now
    assert receiver.next == 6024
    assert not receiver.acceptable(6025, 1)


# -- window


def test_the_window_of_a_syn_is_not_scaled() -> None:
    """RFC 7323 2.2."""
    receiver = Receiver(0, MSS, 1 << 20)
    receiver.scale = 8
    receiver.open(0.0)
    assert receiver.syn_window_field() == 65535


def test_the_window_of_a_syn_ack_is_the_floor() -> None:
    """RFC 4987: a half-open connection takes no memory; ten segments (RFC 6928) fit."""
    memory = ReceiveMemory()
    receiver = Receiver(0, MSS, 1 << 20, memory)
    assert receiver.syn_window_field() == RECEIVE_FLOOR - ROUNDING >= 10 * 1460
    assert memory.free == memory.limit


def test_data_may_follow_the_window_of_the_syn_at_once() -> None:
    receiver = Receiver(0, MSS, 1 << 20)
    receiver.open(0.0)
    receiver.next = 700
    receiver.reset_edge()
    assert receiver.right_edge == 700 + 65535


def test_the_window_is_scaled() -> None:
    """RFC 7323 2.3."""
    receiver = receiver_at()
    assert receiver.window_field() == (1 << 17) >> 8


def test_an_unscaled_window_stops_at_sixteen_bits() -> None:
    receiver = receiver_at(scale=0)
    assert receiver.window_field() == 65535
    assert receiver.right_edge == 5000 + 65535


def test_unread_data_closes_the_window() -> None:
    """RFC 9293 3.8.6: RCV.WND is the buffer without what waits in it."""
    receiver = receiver_at(capacity=4096)
    receiver.on_data(5000, bytes(1024), 1.0)
    assert window(receiver) == 3072
    receiver.on_data(6024, bytes(3072), 1.0)
    assert window(receiver) == 0


def test_the_right_edge_never_moves_back() -> None:
    """RFC 9293 3.8.6: SHLD-14."""
    receiver = receiver_at(capacity=8192)
    edges = []
    for _ in range(20):
        receiver.on_data(receiver.next, bytes(37), 1.0)
        receiver.window_field()
        edges.append(receiver.right_edge)
    assert edges == sorted(edges)


def test_small_segments_that_nobody_reads_cannot_push_the_window_on() -> None:
    """Rounding up to the scale's unit must not add up: the far side may send at most one unit too much."""
    receiver = receiver_at(capacity=8192)
    while (room := window(receiver)) > 0:
        receiver.on_data(receiver.next, bytes(min(room, 9)), 1.0)
        assert receiver.buffered <= 8192 + 255
    assert receiver.buffered >= 8192


def test_a_window_that_opens_a_little_is_not_told() -> None:
    """RFC 9293 3.8.6.2.2: no silly windows (MUST-39)."""
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.take(MSS - 1, 1.0)
    assert not receiver.window_update_due()
    assert window(receiver) == 0


def test_a_window_that_opens_by_a_segment_is_told_when_asked() -> None:
    """RFC 9293 3.8.6.2.2."""
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.take(MSS, 1.0)
    assert window(receiver) == 1024


def test_a_window_that_opens_by_two_segments_is_worth_a_packet() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.take(2 * MSS, 1.0)
    assert receiver.window_update_due()


def test_a_window_that_is_half_open_needs_no_update() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(3000), 1.0)
    window(receiver)
    receiver.take(3000, 1.0)
    assert not receiver.window_update_due()


def test_a_window_that_the_header_cannot_tell_needs_no_update() -> None:
    """Without scaling the buffer is larger than what the field holds: every read would draw a packet."""
    receiver = receiver_at(scale=0)
    receiver.on_data(5000, bytes(1000), 1.0)
    window(receiver)
    receiver.take(1000, 1.0)
    assert not receiver.window_update_due()
    receiver.on_data(6000, bytes(40_000), 1.0)
    receiver.take(40_000, 1.0)
    assert receiver.window_update_due()


def test_no_window_is_told_after_the_end_of_the_stream() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.fin_received = True
    receiver.take(8192, 1.0)
    assert not receiver.window_update_due()


# -- how large a window


def test_the_window_is_twice_what_the_reader_takes_in_a_round_trip() -> None:
    """So that a loss can be mended while as much again arrives."""
    receiver = receiver_at(rtt=0.1)
    round_trip(receiver, 100_000, 1.0)
    assert round_trip(receiver, 300_000, 2.0) >= 600_000
    settled = round_trip(receiver, 300_000, 3.0)
    assert [round_trip(receiver, 300_000, now) for now in (4.0, 5.0)] == [settled, settled]


def test_the_window_keeps_ahead_of_slow_start() -> None:
    """What comes doubles in every round trip, and doubles twice until a larger window has an effect."""
    receiver = receiver_at(rtt=0.1)
    arrived, told = 10 * MSS, 0
    for trip in range(1, 8):
        told = round_trip(receiver, arrived, float(trip))
        assert told >= 4 * arrived
        arrived *= 2
    assert told < 8 * arrived


def test_what_waited_behind_a_hole_is_no_sign_of_slow_start() -> None:
    """The reader takes at once what several round trips brought."""
    receiver = receiver_at(rtt=0.1)
    round_trip(receiver, 20_000, 1.0)
    for index in range(1, 8):
        receiver.on_data(receiver.next + 10_000 * index, bytes(10_000), 1.05)
    assert round_trip(receiver, 10_000, 1.1) <= 160_000 + 255


def test_a_reader_that_takes_little_keeps_its_first_window() -> None:
    receiver = receiver_at(rtt=0.1)
    assert {round_trip(receiver, 1000, float(trip)) for trip in range(1, 60)} == {INITIAL_BUFFER}


def test_the_window_grows_only_as_far_as_its_scale() -> None:
    """RFC 7323 2.2, 2.3."""
    receiver = receiver_at(rtt=1.0)
    for trip in range(1, 20):
        assert round_trip(receiver, min(window(receiver), 12_000_000), 2.0 * trip) <= MAXIMUM_BUFFER
    assert window(receiver) == MAXIMUM_BUFFER == 65535 << 8


def test_no_growth_within_a_round_trip() -> None:
    receiver = receiver_at(rtt=0.1)
    round_trip(receiver, 100_000, 1.0)
    before = window(receiver)
    assert round_trip(receiver, 400_000, 1.09) == before
    assert round_trip(receiver, 400_000, 1.11) > before


def test_the_window_of_a_short_path_stays_within_the_udp_socket() -> None:
    """What arrives while the driver is busy has to fit there."""
    receiver = receiver_at(capacity=1 << 17, rtt=0.001)
    for trip in range(1, 60):
        assert round_trip(receiver, 100_000, 0.002 * trip) <= (1 << 17) + 255


def test_the_window_of_a_longer_path_may_exceed_the_udp_socket() -> None:
    """It cannot arrive within BURST_TIME: 2 ms of a path of 10 ms hold a fifth."""
    receiver = receiver_at(capacity=1 << 17, rtt=0.01)
    for trip in range(1, 60):
        round_trip(receiver, 500_000, 0.02 * trip)
    assert 5 << 17 <= window(receiver) <= (5 << 17) + 255


@pytest.mark.parametrize(
    "count, rtt, share", [(4, 0.0002, 1 / 4), (4, 0.002, 1 / 2), (9, 0.002, 1 / 3), (9, 0.02, 10 / 3)]
)
def test_connections_that_receive_share_the_udp_socket(count: int, rtt: float, share: float) -> None:
    """On a short path all their windows may be there at once; on a longer one they do not come together."""
    memory = ReceiveMemory()
    receivers = [receiver_at(capacity=1 << 17, rtt=rtt, memory=memory) for _ in range(count)]
    for trip in range(1, 60):
        for receiver in receivers:
            round_trip(receiver, min(window(receiver), 200_000), 0.03 * trip)
    for receiver in receivers:
        assert window(receiver) == pytest.approx(share * (1 << 17), abs=256)


def test_connections_that_receive_nothing_take_no_share() -> None:
    memory = ReceiveMemory()
    receivers = [receiver_at(rtt=0.001, memory=memory) for _ in range(9)]
    for trip in range(1, 60):
        round_trip(receivers[0], min(window(receivers[0]), 100_000), 0.05 * trip)
    assert window(receivers[0]) == 1 << 17


def test_connections_that_open_together_have_small_windows_in_their_syns() -> None:
    """Or fifty answers would come at once; the segment after the SYN tells what the path allows."""
    memory = ReceiveMemory()
    receivers = [Receiver(0, MSS, 1 << 17, memory) for _ in range(50)]
    for receiver in receivers:
        receiver.open(0.0)
    assert receivers[0].syn_window_field() == 65535
    assert receivers[-1].syn_window_field() == (1 << 17) // 50
    receivers[-1].scale = 8
    receivers[-1].start(0.1, 0.1, timestamps=True)
    assert window(receivers[-1]) == INITIAL_BUFFER


# -- the round trip as a receiver sees it


def test_a_shorter_round_trip_is_believed_at_once_and_a_longer_one_by_and_by() -> None:
    """A sender that waits for its application delays the echo; nothing hastens it."""
    receiver = receiver_at(rtt=0.2)
    receiver.on_echo(100)
    assert receiver.rtt == 0.1
    receiver.on_echo(180)
    assert receiver.rtt == pytest.approx(0.11)


def test_the_echo_measures_when_the_handshake_did_not() -> None:
    """Its SYN was sent twice: Karn's algorithm."""
    receiver = receiver_at()
    receiver.on_echo(30)
    assert receiver.rtt == 0.03


@pytest.mark.parametrize("ticks", [0, 1])
def test_the_clock_of_timestamps_is_too_coarse_for_a_short_path(ticks: int) -> None:
    receiver = receiver_at(rtt=0.0003)
    receiver.on_echo(ticks)
    assert receiver.rtt == 0.0003
    receiver = receiver_at(rtt=0.05)
    receiver.on_echo(ticks)
    assert receiver.rtt == 0.001


def test_without_timestamps_the_window_measures() -> None:
    """What a window forbade can come only a round trip after a later one was told."""
    receiver = receiver_at(timestamps=False, capacity=8192)
    receiver.on_data(5000, bytes(receiver.right_edge - 5000), 1.0)
    assert not receiver.rtt
    read_all(receiver, 1.0)
    window(receiver)
    receiver.on_data(receiver.next, b"x", 1.3)
    assert receiver.rtt == 1.3
    read_all(receiver, 1.3)
    window(receiver)
    receiver.on_data(receiver.next, bytes(8192), 1.5)
    assert receiver.rtt == pytest.approx(0.2)


# -- memory shared with other connections


def test_windows_never_promise_more_than_the_memory_holds() -> None:
    memory = ReceiveMemory(1 << 20)
    receivers = [receiver_at(rtt=0.1, memory=memory) for _ in range(4)]
    for trip in range(1, 40):
        for receiver in receivers:
            round_trip(receiver, min(window(receiver), 900_000), 0.2 * trip)
        assert sum(window(receiver) for receiver in receivers) <= 1 << 20
        assert memory.free >= 0
    assert all(window(receiver) > 150_000 for receiver in receivers)


def test_a_connection_with_more_than_its_share_gives_way_without_moving_its_edge_back() -> None:
    """RFC 9293 SHLD-14: the window shrinks only as it is used."""
    memory = ReceiveMemory(4 << 20)
    first = receiver_at(rtt=0.1, memory=memory)
    for trip in range(1, 20):
        round_trip(first, min(window(first), 2_000_000), 0.2 * trip)
    alone = window(first)
    second = receiver_at(rtt=0.1, memory=memory)
    edges = []
    for trip in range(20, 60):
        for receiver in (first, second):
            round_trip(receiver, min(window(receiver), 1_000_000), 0.2 * trip)
        edges.append(first.right_edge)
    assert edges == sorted(edges)
    assert alone > 3 << 20
    assert window(first) < 2.7e6
    assert window(second) > 1.2e6


def test_idle_connections_give_their_memory_to_one_that_needs_it() -> None:
    memory = ReceiveMemory(4 << 20)
    idle = receiver_at(rtt=0.1, memory=memory)
    for trip in range(1, 20):
        round_trip(idle, min(window(idle), 2_000_000), 0.2 * trip)
    edge = idle.right_edge
    busy = receiver_at(rtt=0.1, memory=memory)
    for trip in range(60, 80):
        round_trip(busy, min(window(busy), 1_500_000), 0.2 * trip)
    assert window(busy) >= 3_000_000
    window(idle)
    assert idle.right_edge == edge


def test_an_idle_connection_that_gave_its_memory_away_receives_on() -> None:
    """Its window stands; the memory is asked for again when it is used."""
    memory = ReceiveMemory(8 << 20)
    receiver = receiver_at(rtt=0.1, memory=memory)
    for trip in range(1, 20):
        round_trip(receiver, min(window(receiver), 1_000_000), 0.2 * trip)
    room = window(receiver)
    receiver.give_back()
    assert memory.free == (8 << 20) - RECEIVE_FLOOR
    receiver.on_data(receiver.next, bytes(room - 1000), 9.0)
    assert receiver.buffered == room - 1000
    assert memory.free == (8 << 20) - receiver.buffered - RECEIVE_FLOOR


def test_data_that_no_memory_is_left_for_is_refused_until_the_reader_takes_some() -> None:
    """Only what a connection promised before it gave its memory back can meet this."""
    memory = ReceiveMemory(1 << 18)
    receiver = receiver_at(memory=memory)
    receiver.give_back()
    memory.claim(memory.free)
    assert not receiver.on_data(5000, bytes(RECEIVE_FLOOR + 1), 1.0)
    assert receiver.ack_now
    assert receiver.on_data(5000, bytes(RECEIVE_FLOOR), 1.0)
    assert not receiver.on_data(receiver.next, b"x", 1.0)
    read_all(receiver)
    assert receiver.on_data(receiver.next, b"x", 1.0)


def test_an_idle_connection_that_asks_is_not_made_to_pay_for_it_itself() -> None:
    memory = ReceiveMemory(1 << 18)
    receiver = receiver_at(rtt=0.1, memory=memory)
    receiver.give_back()
    round_trip(receiver, 12_000, 1.0)
    memory.on_round(receiver_at(memory=memory), 5.0)
    granted = receiver._granted
    assert granted > RECEIVE_FLOOR
    memory.claim(memory.free)
    assert not receiver.on_data(receiver.next, bytes(granted + 1), 6.0)
    assert receiver._granted == granted
    assert receiver.on_data(receiver.next, bytes(granted), 6.0)


def test_what_is_in_order_goes_before_what_is_not_when_memory_is_short() -> None:
    """RFC 2018 8: the reader gets on, and what was only selectively acknowledged comes again."""
    memory = ReceiveMemory(1 << 18)
    receiver = receiver_at(memory=memory)
    receiver.give_back()
    memory.claim(memory.free)
    receiver.on_data(5100, bytes(RECEIVE_FLOOR), 1.0)
    assert not receiver.on_data(5100 + RECEIVE_FLOOR, b"x", 1.0)
    assert receiver.on_data(5000, b"y" * 100, 1.0)
    assert receiver.sack_blocks(4) == []
    assert receiver.on_data(5100, bytes(1000), 1.0)


def test_the_end_of_the_stream_gives_back_all_but_what_is_unread() -> None:
    memory = ReceiveMemory()
    receiver = receiver_at(memory=memory)
    receiver.on_data(5000, bytes(700), 1.0)
    receiver.on_fin()
    assert memory.free == memory.limit - 700
    receiver.take(300, 1.0)
    assert memory.free == memory.limit - 400
    receiver.leave()
    assert memory.free == memory.limit


@pytest.mark.parametrize("rtt", [None, 0.01])
def test_a_connection_that_is_over_leaves_no_trace_in_the_memory(rtt: float | None) -> None:
    memory = ReceiveMemory()
    receiver = receiver_at(memory=memory, rtt=rtt)
    round_trip(receiver, 100_000, 1.0)
    receiver.on_data(receiver.next, b"unread", 2.0)
    receiver.leave()
    assert read_all(receiver, 3.0) == b"unread"
    assert memory.free == memory.limit
    other = receiver_at(memory=memory)
    assert memory.on_round(other, 0.5) == 1


def test_a_connection_beyond_the_memory_still_gets_its_floor() -> None:
    memory = ReceiveMemory(0)
    assert window(receiver_at(memory=memory)) == RECEIVE_FLOOR - ROUNDING
    assert memory.free == -RECEIVE_FLOOR
    opening = Receiver(0, MSS, 1 << 17, memory)
    opening.open(0.0)
    assert opening.syn_window_field() == RECEIVE_FLOOR - ROUNDING
    opening.start(0.1, 0.1, timestamps=True)
    assert memory.free == -2 * RECEIVE_FLOOR


# -- acknowledgments


def test_one_segment_is_acknowledged_after_forty_milliseconds() -> None:
    """RFC 9293 MUST-40: within half a second; Linux: 40 ms."""
    receiver = receiver_at()
    receiver.on_data(5000, bytes(MSS), 1.0)
    assert not receiver.ack_now
    assert receiver.ack_deadline == 1.04


def test_the_clock_of_a_delayed_acknowledgment_starts_with_the_first_byte() -> None:
    """RFC 9293 3.8.6.3: the delay must not add up."""
    receiver = receiver_at()
    receiver.on_data(5000, b"a", 1.0)
    receiver.on_data(5001, b"b", 1.03)
    assert receiver.ack_deadline == 1.04


def test_every_second_full_segment_is_acknowledged_at_once() -> None:
    """RFC 9293 MUST-58, SHLD-18."""
    receiver = receiver_at()
    receiver.on_data(5000, bytes(MSS), 1.0)
    receiver.on_data(6000, bytes(MSS), 1.0)
    assert receiver.ack_now


def test_segments_that_timestamps_made_smaller_count_as_full() -> None:
    """RFC 9293 MUST-58: full-sized is what the far side sends, not what we offered (RFC 6691)."""
    receiver = receiver_at()
    receiver.on_in_order([bytes(MSS - 12)], MSS - 12, MSS - 12, 1.0)
    assert not receiver.ack_now
    receiver.on_in_order([bytes(MSS - 12)], MSS - 12, MSS - 12, 1.0)
    assert receiver.ack_now


def test_small_segments_share_an_acknowledgment() -> None:
    receiver = receiver_at()
    for index in range(5):
        receiver.on_data(5000 + 100 * index, bytes(100), 1.0)
    assert not receiver.ack_now
    receiver.on_data(5500, bytes(100), 1.0)
    assert receiver.ack_now


def test_the_first_segments_of_a_connection_are_acknowledged_at_once() -> None:
    """The far side's slow start counts acknowledgments."""
    receiver = receiver_at(quick=QUICK_ACKS)
    for index in range(QUICK_ACKS):
        receiver.on_data(5000 + index, b"x", 1.0)
        assert receiver.ack_now
        receiver.on_ack_sent()
    receiver.on_data(receiver.next, b"x", 1.0)
    assert not receiver.ack_now


def test_an_acknowledgment_that_waited_in_vain_makes_the_next_two_quick() -> None:
    receiver = receiver_at()
    receiver.on_data(5000, b"x", 1.0)
    receiver.on_ack_timeout()
    assert receiver.ack_now
    assert receiver.ack_deadline is None
    for _ in range(2):
        receiver.on_ack_sent()
        receiver.on_data(receiver.next, b"x", 2.0)
        assert receiver.ack_now


def test_sending_anything_acknowledges_everything() -> None:
    receiver = receiver_at()
    receiver.on_data(5000, b"x", 1.0)
    receiver.on_ack_sent()
    assert receiver.ack_deadline is None
    assert receiver.last_acknowledgment == 5001


def test_data_behind_a_hole_is_acknowledged_at_once() -> None:
    """RFC 5681 4.2."""
    receiver = receiver_at()
    receiver.on_data(5001, b"x", 1.0)
    assert receiver.ack_now


def test_data_that_fills_a_hole_is_acknowledged_at_once() -> None:
    """RFC 5681 4.2."""
    receiver = receiver_at()
    receiver.on_data(5002, b"c", 1.0)
    receiver.on_ack_sent()
    receiver.on_data(5000, b"a", 1.0)
    assert (receiver.next, receiver.ack_now) == (5001, True)
    receiver.on_ack_sent()
    receiver.on_data(5001, b"b", 1.0)
    assert receiver.ack_now
    assert receiver.next == 5003


# -- selective acknowledgments


def test_the_newest_block_is_reported_first() -> None:
    """RFC 2018 4."""
    receiver = receiver_at()
    for start in (5100, 5300, 5200):
        receiver.on_data(start, b"x" * 10, 1.0)
    assert receiver.sack_blocks(4) == [(5200, 5210), (5300, 5310), (5100, 5110)]
    assert receiver.sack_blocks(2) == [(5200, 5210), (5300, 5310)]


def test_a_duplicate_below_the_window_is_reported_once_and_first() -> None:
    """RFC 2883 4.1."""
    receiver = receiver_at()
    receiver.on_data(5000, b"abcdef", 1.0)
    receiver.on_data(5100, b"x", 1.0)
    receiver.on_data(5001, b"bc", 1.0)
    assert receiver.sack_blocks(3) == [(5001, 5003), (5100, 5101)]
    receiver.on_ack_sent()
    assert receiver.sack_blocks(3) == [(5100, 5101)]


def test_the_repeated_part_of_an_overlap_is_reported() -> None:
    """RFC 2883 4.1: the duplicate is the contiguous sequence that came before."""
    receiver = receiver_at()
    receiver.on_data(5000, b"abcd", 1.0)
    receiver.on_data(5002, b"cdef", 1.0)
    assert receiver.sack_blocks(3) == [(5002, 5004)]


def test_a_duplicate_behind_a_hole_is_reported_before_the_block_that_holds_it() -> None:
    """RFC 2883 4.2.1."""
    receiver = receiver_at()
    receiver.on_data(5100, b"x" * 100, 1.0)
    receiver.on_ack_sent()
    receiver.on_data(5120, b"x" * 10, 1.0)
    assert receiver.sack_blocks(3) == [(5120, 5130), (5100, 5200)]


def test_of_a_segment_with_old_and_new_parts_the_first_old_one_is_reported() -> None:
    """RFC 2883 4.2.3; also where the segment fills the hole before it."""
    receiver = receiver_at()
    for start in (5100, 5300):
        receiver.on_data(start, b"x" * 100, 1.0)
    receiver.on_ack_sent()
    receiver.on_data(5050, b"x" * 350, 1.0)
    assert receiver.sack_blocks(3) == [(5100, 5200), (5050, 5400)]
    receiver.on_ack_sent()
    receiver.on_data(5000, b"x" * 80, 1.0)
    assert receiver.next == 5400
    assert receiver.sack_blocks(3) == [(5050, 5080)]


def test_data_that_a_limit_refused_is_not_reported() -> None:
    """RFC 2018 8: the far side would not send it again before its timer."""
    receiver = receiver_at(capacity=1 << 20)
    for index in range(2048):
        receiver.on_data(5010 + 2 * index, b"x", 1.0)
    receiver.on_ack_sent()
    receiver.on_data(5005, b"x", 1.0)
    assert (5005, 5006) not in receiver.sack_blocks(4)


# -- memory


def test_many_small_pieces_are_joined() -> None:
    """CVE-2018-5390: a byte must not cost the memory of an object."""
    receiver = receiver_at(capacity=1 << 17)
    expected = bytearray()
    tracemalloc.start()
    for index in range(20 * PIECES):
        data = bytes([index & 0xFF, index >> 8])
        expected += data
        receiver.on_data(receiver.next, data, 1.0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * len(expected)
    assert read_all(receiver) == bytes(expected)


@pytest.mark.parametrize("size", [1, 1000, 8192, 40_000])
def test_a_large_piece_is_read_in_small_ones(size: int) -> None:
    receiver, data = receiver_at(), random.Random(8).randbytes(60_000)
    receiver.on_in_order([data], len(data), 1380, 0.0)
    read: list[bytes] = []
    while receiver.buffered:
        read.append(receiver.take(size, 0.0))
        if receiver.buffered:
            assert deep_size(receiver._chunks) < 2 * receiver.buffered + 2000, "what was read is let go"
    assert all(type(piece) is bytes for piece in read)
    assert b"".join(read) == data


def test_a_piece_that_is_read_whole_is_not_copied() -> None:
    receiver, data = receiver_at(), bytes(60_000)
    receiver.on_in_order([data], len(data), 1380, 0.0)
    assert receiver.take(65_536, 0.0) is data
