"""The receiving half: window, reassembly, acknowledgments (RFC 9293 3.8.6)."""

from __future__ import annotations

import tracemalloc

from httpx_wireguard._netstack.receiver import PIECES, QUICK_ACKS, Receiver

MSS = 1000


def receiver_at(next_sequence: int = 5000, *, capacity: int = 1 << 17, scale: int = 8, quick: int = 0) -> Receiver:
    """An open connection's receiver that has advertised its first window."""
    receiver = Receiver(next_sequence, MSS, capacity)
    receiver.reset_edge()
    receiver.scale = scale
    receiver.quick_acks = quick
    receiver.window_field()
    receiver.on_ack_sent()
    return receiver


def window(receiver: Receiver) -> int:
    """What the far side reads out of the next segment, in bytes."""
    return receiver.window_field() << receiver.scale


def read_all(receiver: Receiver, now: float = 1.0, rtt: float | None = None) -> bytes:
    return receiver.take(1 << 30, now, rtt) if receiver.buffered else b""


# -- data


def test_data_in_order_is_read_at_once() -> None:
    receiver = receiver_at()
    assert receiver.on_data(5000, b"hello", 1.0)
    assert (receiver.next, receiver.buffered) == (5005, 5)
    assert receiver.take(100, 1.0, None) == b"hello"
    assert receiver.buffered == 0


def test_the_reader_takes_no_more_than_it_asked_for() -> None:
    receiver = receiver_at()
    receiver.on_in_order([b"abc", b"defg"], 7, 1.0)
    assert receiver.take(2, 1.0, None) == b"ab"
    assert receiver.take(3, 1.0, None) == b"cde"
    assert receiver.take(9, 1.0, None) == b"fg"


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
    assert receiver.syn_window_field() == 65535


def test_data_may_follow_the_window_of_the_syn_at_once() -> None:
    receiver = Receiver(0, MSS, 1 << 20)
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
    receiver.take(MSS - 1, 1.0, None)
    assert not receiver.window_update_due()
    assert window(receiver) == 0


def test_a_window_that_opens_by_a_segment_is_told_when_asked() -> None:
    """RFC 9293 3.8.6.2.2."""
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.take(MSS, 1.0, None)
    assert window(receiver) == 1024


def test_a_window_that_opens_by_two_segments_is_worth_a_packet() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.take(2 * MSS, 1.0, None)
    assert receiver.window_update_due()


def test_a_window_that_is_half_open_needs_no_update() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(3000), 1.0)
    window(receiver)
    receiver.take(3000, 1.0, None)
    assert not receiver.window_update_due()


def test_a_window_that_the_header_cannot_tell_needs_no_update() -> None:
    """Without scaling the buffer is larger than what the field holds: every read would draw a packet."""
    receiver = receiver_at(scale=0)
    receiver.on_data(5000, bytes(1000), 1.0)
    window(receiver)
    receiver.take(1000, 1.0, None)
    assert not receiver.window_update_due()
    receiver.on_data(6000, bytes(40_000), 1.0)
    receiver.take(40_000, 1.0, None)
    assert receiver.window_update_due()


def test_no_window_is_told_after_the_end_of_the_stream() -> None:
    receiver = receiver_at(capacity=8192)
    receiver.on_data(5000, bytes(8192), 1.0)
    assert window(receiver) == 0
    receiver.fin_received = True
    receiver.take(8192, 1.0, None)
    assert not receiver.window_update_due()


def test_the_buffer_grows_while_the_reader_keeps_up() -> None:
    """A reader that takes more than half of the window per round trip gets a larger one."""
    receiver = receiver_at(capacity=1 << 17)
    now = 1.0
    for _ in range(60):
        room = window(receiver)
        receiver.on_data(receiver.next, bytes(min(room, 100_000)), now)
        read_all(receiver, now, rtt=0.1)
        now += 0.05
    assert window(receiver) > 1 << 17


def test_the_buffer_of_a_short_path_stays_within_the_udp_socket() -> None:
    """What arrives while the driver is busy has to fit there."""
    receiver = receiver_at(capacity=1 << 17)
    now = 1.0
    for _ in range(60):
        receiver.on_data(receiver.next, bytes(100_000), now)
        read_all(receiver, now, rtt=0.001)
        window(receiver)
        now += 0.002
    assert window(receiver) <= (1 << 17) + 255


def test_the_buffer_stays_while_the_reader_is_slow() -> None:
    receiver = receiver_at(capacity=1 << 17)
    for step in range(60):
        receiver.on_data(receiver.next, bytes(1000), 1.0 + step)
        read_all(receiver, 1.0 + step, rtt=0.1)
        assert window(receiver) <= (1 << 17) + 255


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
    receiver.on_in_order([bytes(MSS - 12)], MSS - 12, 1.0)
    assert not receiver.ack_now
    receiver.on_in_order([bytes(MSS - 12)], MSS - 12, 1.0)
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
    for index in range(1024):
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
