"""The sending half: windows, retransmission, loss recovery (RFC 9293 3.8, RFC 6298, RFC 6675, RFC 6582)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.scoreboard import MAXIMUM_TRANSMISSIONS
from httpx_wireguard._netstack.sender import INITIAL_SEND_BUFFER, MAXIMUM_BURST, MAXIMUM_SEND_BUFFER, Run, Sender
from tests.senders import ISS, MSS, Unpaced, ack, full, send, sender_with, sent

# -- new data


def test_the_first_flight_is_ten_segments() -> None:
    """RFC 6928 2."""
    sender = sender_with(20 * MSS)
    assert send(sender, 0.0) == full(*range(10))
    assert send(sender, 0.0) == []


def test_a_retransmitted_syn_does_not_shrink_the_first_flight_but_a_second_does() -> None:
    """RFC 5681 3.1, RFC 6928 2; once is forgiven as by Linux: the timer may have been too short."""
    sizes = []
    for timeouts in (1, 2):
        sender = Sender(ISS, MSS, Unpaced)
        sender.next = ISS + 1
        sender.start_timer(0.0)
        for _ in range(timeouts):
            sender.on_timeout(1.0)
        sender.start(MSS, sack=True)
        sender.on_established(500, ISS + 1, 1 << 20, 3.0)
        sender.queue.append(bytes(20 * MSS))
        sizes.append(len(send(sender, 3.0)))
    assert sizes == [10, 1]


def test_a_retransmitted_syn_does_not_end_slow_start() -> None:
    sender = Sender(ISS, MSS, Unpaced)
    sender.next = ISS + 1
    sender.start_timer(0.0)
    sender.start(MSS, sack=True)
    sender.on_timeout(1.0)
    sender.on_established(500, ISS + 1, 1 << 20, 1.5)
    sender.queue.append(bytes(60 * MSS))
    assert len(send(sender, 1.5)) == 10
    ack(sender, 10, 1.6)
    assert len(send(sender, 1.6)) == 20


def test_a_handshake_without_sample_starts_data_at_three_seconds() -> None:
    """RFC 6298 5.7."""
    sender = Sender(ISS, MSS, Unpaced)
    sender.next = ISS + 1
    sender.start_timer(0.0)
    sender.on_timeout(1.0)
    sender.start(MSS, sack=True)
    sender.on_established(500, ISS + 1, 1 << 20, 1.5)
    assert sender.rtt.timeout == 3.0


def test_no_more_than_the_window_of_the_far_side_is_sent() -> None:
    """RFC 9293 3.8.6: SND.UNA + SND.WND."""
    sender = sender_with(20 * MSS, window=3 * MSS + 10)
    assert send(sender, 0.0) == full(0, 1, 2)


@pytest.mark.parametrize("make_control", [Unpaced, Reno])
def test_with_nothing_in_flight_one_segment_may_always_leave(make_control: type[Reno]) -> None:
    """A window that PRR or an undone recovery left at nothing would never be opened by an acknowledgment."""
    sender = sender_with(20 * MSS, make_control=make_control)
    sender.congestion.window = 0
    assert send(sender, 0.0) == full(0)
    assert not sender.more_due
    assert send(sender, 0.0) == []


def test_one_call_sends_a_bounded_burst_again() -> None:
    sender = sender_with(1 << 20)
    sender.congestion.window = 1 << 20
    while send(sender, 0.0):
        pass
    sender.set_mss(MSS - 1, 0.1)
    sizes = []
    while segments := send(sender, 0.1):
        sizes.append(sum(length for _, length in segments))
    assert max(sizes) <= MAXIMUM_BURST
    assert sum(sizes) >= 1 << 19


def test_one_call_sends_a_bounded_burst_and_says_that_there_is_more() -> None:
    sender = sender_with(1 << 20)
    sender.congestion.window = 1 << 20
    assert sum(length for _, length in send(sender, 0.0)) <= MAXIMUM_BURST
    assert sender.more_due


def test_a_small_write_is_sent_at_once_behind_others() -> None:
    """RFC 9293 MUST-17: Nagle's algorithm can be off; HTTP clients want it off."""
    sender = sender_with(10)
    send(sender, 0.0)
    sender.queue.append(b"abc")
    assert send(sender, 0.0) == [(110, 3)]


def test_nagle_holds_a_small_write_until_everything_is_acknowledged() -> None:
    """RFC 9293 3.7.4."""
    sender = sender_with(10)
    sender.nagle = True
    assert send(sender, 0.0) == [(100, 10)]
    sender.queue.append(b"abc")
    assert send(sender, 0.0) == []
    sender.on_ack(110, [], None, False, None, 0.1)
    assert send(sender, 0.1) == [(110, 3)]


def test_nagle_lets_the_end_of_a_large_write_go() -> None:
    """Minshall's variant: full segments in flight hold nothing back, or the end would wait for a delayed ACK."""
    sender = sender_with(2 * MSS + 10)
    sender.nagle = True
    assert [length for _, length in send(sender, 0.0)] == [MSS, MSS, 10]


def test_nagle_sends_the_full_segments_of_what_waits() -> None:
    """Minshall's variant: the small rest waits for the small segment in flight, not the whole."""
    sender = sender_with(10)
    sender.nagle = True
    send(sender, 0.0)
    sender.queue.append(bytes(2 * MSS + 5))
    assert send(sender, 0.0) == [(110, MSS), (110 + MSS, MSS)]
    sender.on_ack(110, [], None, False, None, 0.1)
    assert send(sender, 0.1) == [(110 + 2 * MSS, 5)]


def test_nagle_holds_back_neither_the_last_bytes_nor_the_fin() -> None:
    """Nothing can be added to them any more."""
    sender = sender_with(10)
    sender.nagle = True
    send(sender, 0.0)
    sender.queue.append(b"bye")
    sender.close()
    (run,) = sender.runs_to_send(0.0)
    assert (run.payloads, run.fin) == ([b"bye"], True)


def test_a_window_below_a_segment_and_half_of_the_largest_is_left_alone() -> None:
    """RFC 9293 3.8.6.2.1 (3), MUST-38: no silly windows."""
    sender = sender_with(20 * MSS, window=1000 * 4)
    sender.update_window(501, 100, 999)
    assert send(sender, 0.0) == []
    assert sender.window_closed


def test_a_window_of_half_the_largest_is_used() -> None:
    """RFC 9293 3.8.6.2.1 (3)."""
    sender = sender_with(20 * MSS, window=600)
    sender.update_window(501, 100, 299)
    assert send(sender, 0.0) == []
    sender.update_window(502, 100, 300)
    assert send(sender, 0.0) == [(100, 300)]


def test_a_closed_window_matters_only_to_who_has_something_to_send() -> None:
    """RFC 9293 3.8.6.1: else it need not be probed."""
    sender = sender_with(window=0)
    assert not sender.window_closed
    sender.queue.append(b"x")
    assert sender.window_closed


def test_a_small_window_that_lasts_is_used_after_all() -> None:
    """RFC 9293 3.8.6.2.1 (4): the override timeout."""
    sender = sender_with(20 * MSS, window=1000 * 4)
    sender.update_window(501, 100, 400)
    sender.override_due = True
    assert send(sender, 0.0) == [(100, 400)]
    assert not sender.override_due


def test_everything_that_waits_may_use_a_small_window() -> None:
    """RFC 9293 3.8.6.2.1 (2)."""
    sender = sender_with(50, window=4000)
    sender.update_window(501, 100, 60)
    assert send(sender, 0.0) == [(100, 50)]


def test_an_idle_connection_starts_again_with_ten_segments() -> None:
    """RFC 5681 4.1."""
    sender = sender_with(40 * MSS)
    sender.congestion.window = 40 * MSS
    assert len(send(sender, 0.0)) == 40
    ack(sender, 40, 0.1)
    sender.queue.append(bytes(40 * MSS))
    assert len(send(sender, 9.0)) == 10


def test_the_writer_has_room_for_the_buffer_without_what_waits() -> None:
    sender = sender_with(1000)
    assert sender.space == INITIAL_SEND_BUFFER - 1000


def test_the_writers_buffer_grows_to_twice_the_congestion_window() -> None:
    """So that a window in flight leaves one to be filled; and it never shrinks below what was promised."""
    sender = sender_with(3 * MSS)
    send(sender, 0.0)
    for window, limit in (
        (1000, INITIAL_SEND_BUFFER),
        (3_000_000, 6_000_000),
        (900_000, 6_000_000),
        (1 << 30, MAXIMUM_SEND_BUFFER),
    ):
        sender.congestion.window = window
        sender.on_ack(sender.unacknowledged + 100, [], None, False, None, 0.1)
        assert sender.buffer_limit == limit


# -- FIN


def test_the_fin_leaves_with_the_last_data() -> None:
    sender = sender_with(10)
    sender.close()
    (run,) = sender.runs_to_send(0.0)
    assert (run.payloads, run.fin) == ([bytes(10)], True)
    assert sender.next == 111


def test_the_fin_leaves_alone_when_there_is_no_data() -> None:
    sender = sender_with()
    sender.close()
    assert sender.runs_to_send(0.0) == [Run(100, [b""], True, again=False)]


def test_a_fin_that_the_window_has_no_room_for_stays_behind() -> None:
    """RFC 9293 3.4: it takes a sequence number; the far side would throw it away."""
    sender = sender_with(2 * MSS, window=2 * MSS)
    sender.close()
    assert [run.fin for run in sender.runs_to_send(0.0)] == [False]
    ack(sender, 2, 0.1)
    assert sender.runs_to_send(0.1) == [Run(100 + 2 * MSS, [b""], True, again=False)]


def test_a_fin_waits_for_the_window() -> None:
    sender = sender_with(window=0)
    sender.close()
    assert sender.runs_to_send(0.0) == []
    assert sender.window_closed


def test_a_lost_fin_is_sent_again() -> None:
    sender = sender_with(10)
    sender.close()
    sender.runs_to_send(0.0)
    sender.on_timeout(1.0)
    assert sender.runs_to_send(1.0)[0].fin


def test_a_retransmission_does_not_carry_a_fin_that_was_never_sent() -> None:
    """Its acknowledgment would lie beyond SND.NXT and be thrown away."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 9, 0.1)
    sender.close()
    sender.on_timeout(1.0)
    runs = sender.runs_to_send(1.0)
    assert sent(runs) == full(9)
    assert [run.fin for run in runs] == [False]
    ack(sender, 10, 1.1)
    assert sender.runs_to_send(1.1) == [Run(100 + 10 * MSS, [b""], True, again=False)]


# -- round-trip time


def test_the_handshake_measures_the_path() -> None:
    assert sender_with(rtt=0.1).rtt.smoothed == pytest.approx(0.1)


def test_a_retransmitted_segment_is_not_measured() -> None:
    """RFC 9293 MUST-18, RFC 6298 3: Karn's algorithm."""
    sender = sender_with(10)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    send(sender, 1.0)
    sender.on_ack(110, [], None, False, None, 1.01)
    assert sender.rtt.latest == pytest.approx(0.1)


def test_a_flight_with_a_fast_retransmission_is_not_measured() -> None:
    """Karn's algorithm: the acknowledgment waited for the hole."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 9))
    send(sender, 5.0)
    ack(sender, 10, 5.1)
    assert sender.rtt.latest == pytest.approx(0.1)


def test_new_data_behind_a_hole_is_not_measured() -> None:
    """Its acknowledgment waits for the hole too."""
    sender = sender_with(30 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 10))
    assert full(10)[0] in send(sender, 0.1)
    ack(sender, sender.next // MSS, 5.0)
    assert sender.rtt.latest == pytest.approx(0.1)


def test_the_backoff_lasts_until_a_segment_is_measured() -> None:
    """Karn's algorithm: else a path slower than the timeout would be misjudged for ever."""
    sender = sender_with(10)
    send(sender, 0.0)
    before = sender.rtt.timeout
    sender.on_timeout(1.0)
    send(sender, 1.0)
    sender.on_ack(110, [], None, False, None, 1.5)
    assert sender.rtt.timeout == pytest.approx(2 * before)
    sender.queue.append(b"x")
    send(sender, 2.0)
    sender.on_ack(111, [], None, False, None, 2.5)
    assert sender.rtt.latest == pytest.approx(0.5)


def test_a_round_trip_is_measured_once() -> None:
    """RFC 6298 3: with what was sent after the last measurement; the smallest is taken of all."""
    sender = sender_with(60 * MSS)
    send(sender, 0.0)
    ack(sender, 2, 0.1)
    send(sender, 0.1)
    before = sender.rtt.smoothed
    ack(sender, 6, 0.5)
    ack(sender, 10, 0.05)
    assert sender.rtt.smoothed == before
    assert sender.rtt.minimum == pytest.approx(0.05)
    ack(sender, 11, 0.5)
    assert sender.rtt.smoothed == pytest.approx(0.1 * 7 / 8 + 0.4 / 8)


def test_progress_after_many_timeouts_leaves_one_doubling() -> None:
    """Else a path that loses much, to a peer without timestamps, would stand still for minutes."""
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    before = sender.rtt.timeout
    for number in range(5):
        sender.on_timeout(10.0 * number)
        send(sender, 10.0 * number)
    assert sender.rtt.timeout == pytest.approx(32 * before)
    ack(sender, 1, 41.0)
    assert sender.rtt.timeout == pytest.approx(2 * before)
    assert sender.retransmit_at == pytest.approx(41.0 + 2 * before)


def test_an_echoed_timestamp_ends_the_backoff() -> None:
    """RFC 7323 4.1: it tells which of the two transmissions was answered."""
    sender = sender_with(10)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    send(sender, 1.0)
    sender.on_ack(110, [], None, False, 1000, 1.5)
    assert not sender.rtt.backed_off
    assert sender.rtt.latest == 0.5


# -- timer


def test_the_timer_runs_while_anything_is_in_flight() -> None:
    """RFC 6298 5.1, 5.2, 5.3."""
    sender = sender_with(2 * MSS, rtt=0.1)
    assert sender.retransmit_at is None
    send(sender, 10.0)
    assert sender.retransmit_at == pytest.approx(10.3)
    ack(sender, 1, 10.2)
    assert sender.retransmit_at == pytest.approx(10.2 + sender.rtt.timeout)
    ack(sender, 2, 10.25)
    assert sender.retransmit_at is None


def test_the_first_segment_sent_again_starts_the_timer_again() -> None:
    """RFC 6675 6: else it runs out, on a long path, before the retransmission can be answered; RFC 6298 5.1."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 2), (3, 10))
    assert send(sender, 0.15) == full(0, 2)
    assert sender.retransmit_at == 0.15 + sender.rtt.timeout


def test_a_timeout_sends_the_first_segment_again_and_doubles_the_timer() -> None:
    """RFC 6298 5.4 to 5.6."""
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    before = sender.rtt.timeout
    sender.on_timeout(1.0)
    assert send(sender, 1.0) == full(0)
    assert sender.retransmit_at == pytest.approx(1.0 + 2 * before)
    assert sender.retries == 1


def test_after_a_timeout_slow_start_sends_the_rest_again() -> None:
    """RFC 5681 3.1: the loss window is one segment."""
    sender = sender_with(8 * MSS, sack=False)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    assert send(sender, 1.0) == full(0)
    ack(sender, 1, 1.1)
    assert send(sender, 1.1) == full(1, 2)
    ack(sender, 3, 1.2)
    assert send(sender, 1.2) == full(3, 4, 5, 6)
    assert sender.segments_retransmitted == 7


def test_after_a_timeout_only_what_is_missing_is_sent_again() -> None:
    """RFC 6675 5.1."""
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 3))
    sender.on_timeout(1.0)
    sender.congestion.window = 10 * MSS
    assert send(sender, 1.0) == full(0, 3, 4)


def test_a_second_timeout_forgets_selective_acknowledgments() -> None:
    """RFC 2018 8: the far side may have reneged."""
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 3))
    sender.on_timeout(1.0)
    sender.on_timeout(3.0)
    sender.congestion.window = 10 * MSS
    assert sum(length for _, length in send(sender, 3.0)) == 5 * MSS


def test_a_timeout_halves_what_was_in_flight() -> None:
    """RFC 5681 3.1 equation 4: not the window, if that was not in use."""
    sender = sender_with(6 * MSS)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    assert sender.congestion.threshold == 3 * MSS


def test_every_timeout_begins_from_the_loss_window() -> None:
    """RFC 5681 3.1: cwnd is at most LW, whatever SACKs made of it since the last one; ssthresh stays."""
    sender = sender_with(20 * MSS)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    send(sender, 1.0)
    ack(sender, 0, 1.1, (1, 4))
    sender.congestion.window = 9 * MSS
    sender.on_timeout(3.0)
    assert sender.congestion.window == sender.mss
    assert sender.congestion.threshold == 5 * MSS
    assert send(sender, 3.0) == full(0)


def test_progress_sets_the_count_of_timeouts_back() -> None:
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    ack(sender, 1, 1.1)
    assert sender.retries == 0


# -- fast retransmit with SACK


def test_one_segment_reordered_is_not_lost() -> None:
    """RFC 6675 4: DupThresh."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 3))
    assert send(sender, 0.1) == []


def test_three_segments_selectively_acknowledged_show_a_loss() -> None:
    """RFC 6675 5 (4): retransmit, halve the window."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 4))
    assert send(sender, 0.1) == full(0)
    assert sender.congestion.threshold == 5 * MSS


def test_every_hole_is_sent_again_in_one_round_trip() -> None:
    """RFC 6675 5 (C): as the pipe allows."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 2), (3, 4), (5, 10))
    assert send(sender, 0.1) == full(0, 2, 4)
    assert sender.congestion.window == 5 * MSS


def test_a_hole_is_sent_again_once_only() -> None:
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 5))
    send(sender, 0.1)
    ack(sender, 0, 0.1, (1, 8))
    assert send(sender, 0.1) == []


def test_the_window_is_halved_once_per_flight() -> None:
    """RFC 6675 5: until RecoveryPoint is acknowledged."""
    sender = sender_with(20 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 5))
    send(sender, 0.1)
    ack(sender, 5, 0.2, (6, 10))
    assert sender.congestion.window == 5 * MSS


def test_recovery_ends_when_its_flight_is_acknowledged() -> None:
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 10))
    send(sender, 0.1)
    ack(sender, sender.next // MSS, 0.2)
    assert len(send(sender, 0.2)) == 5
    ack(sender, 0, 0.2)
    assert sender.congestion.window == 5 * MSS


def test_the_first_reports_of_reordering_let_new_data_go() -> None:
    """RFC 3042: limited transmit; each says that a segment left the network."""
    for sack in (True, False):
        sender = sender_with(20 * MSS, sack=sack)
        sender.congestion.threshold = sender.congestion.window
        send(sender, 0.0)
        for number in range(2):
            ack(sender, 0, 0.1, *([(1, 2 + number)] if sack else []))
            assert send(sender, 0.1) == full(10 + number)


def test_recovery_sends_in_proportion_to_what_arrives() -> None:
    """RFC 9937 6.2: half as much, without a pause and without a burst; at its end ssthresh is in flight."""
    sender = sender_with(60 * MSS)
    sender.congestion.window = sender.congestion.threshold = 20 * MSS
    send(sender, 0.0)
    sizes = []
    for number in range(2, 21):
        ack(sender, 0, 0.1, (1, number))
        sizes.append(len(send(sender, 0.1)))
    assert sizes[:3] == [1, 1, 1]
    assert all(sum(sizes[number : number + 3]) in (1, 2) for number in range(2, 17))
    assert sum(sizes) == 10
    assert sender.size == 10 * MSS
    ack(sender, 20, 0.2)
    assert sender.congestion.window == 10 * MSS


def test_a_closed_window_stops_no_retransmission() -> None:
    """RFC 9293 MUST-34: what was in the window once may be sent again."""
    sender = sender_with(20 * MSS)
    send(sender, 0.0)
    sender.update_window(501, 100, 0)
    ack(sender, 0, 0.1, (1, 10))
    assert send(sender, 0.1) == full(0)
    ack(sender, 10, 0.2)
    assert send(sender, 0.2) == []
    assert sender.window_closed
    assert sender.next_timeout() is None


def test_what_the_far_side_threw_away_is_sent_again_after_the_timeout() -> None:
    """RFC 2018 8: an acknowledgment that stops before what was selectively acknowledged."""
    sender = sender_with(5 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 3))
    ack(sender, 1, 0.2)
    sender.on_timeout(1.0)
    sender.congestion.window = 10 * MSS
    sender.board.unmark()
    sender.board.lose_all()
    assert full(1)[0] in send(sender, 1.0)


def test_too_many_small_segments_wait_for_an_acknowledgment() -> None:
    """CVE-2019-11478: the memory and the work that they cost are bounded."""
    sender = sender_with()
    sender.congestion.window = 1 << 20
    for _ in range(MAXIMUM_TRANSMISSIONS + 5):
        sender.queue.append(b"x")
        sender.runs_to_send(0.0)
    assert sender.next == 100 + MAXIMUM_TRANSMISSIONS
    assert not sender.more_due
    sender.on_ack(101, [], None, False, None, 0.1)
    assert send(sender, 0.1) == [(100 + MAXIMUM_TRANSMISSIONS, 5)]


# -- the congestion window


def test_a_window_that_is_not_in_use_does_not_grow() -> None:
    """RFC 7661 4.3; in slow start half of it is use enough."""
    for segments, grows in (4, False), (5, True), (10, True):
        sender = sender_with(segments * MSS)
        send(sender, 0.0)
        ack(sender, segments, 0.1)
        assert (sender.congestion.window > 10 * MSS) == grows


def test_in_congestion_avoidance_all_of_it_has_to_be_in_use() -> None:
    """RFC 7661 4.3: until what was sent when it was full is acknowledged."""
    for data, grows in (9, False), (11, True):
        sender = sender_with(data * MSS)
        sender.congestion.threshold = sender.congestion.window
        send(sender, 0.0)
        ack(sender, 5, 0.1)
        ack(sender, 9, 0.1)
        ack(sender, min(data, 10), 0.1)
        assert (sender.congestion.window > 10 * MSS) == grows


def test_an_echo_of_congestion_counts_once_for_a_window_of_data() -> None:
    """RFC 3168 6.1.2; the far side is told with the next new data."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    sender.on_ecn_echo(0.1)
    assert sender.congestion.window == 5 * MSS
    assert sender.cwr_due
    sender.cwr_due = False
    ack(sender, 9, 0.1)
    sender.on_ecn_echo(0.1)
    assert not sender.cwr_due
    assert sender.congestion.threshold == 5 * MSS
    send(sender, 0.1)
    ack(sender, 10, 0.1)
    sender.on_ecn_echo(0.2)
    assert not sender.cwr_due  # what carries CWR is not acknowledged yet
    send(sender, 0.2)
    ack(sender, 11, 0.2)
    sender.on_ecn_echo(0.3)
    assert sender.cwr_due


def test_a_stopped_sender_has_no_timer() -> None:
    sender = sender_with(40 * MSS, make_control=Reno)
    sender.congestion.window = 20 * MSS
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 2))
    assert None not in (sender.retransmit_at, sender.rack.recheck_at)
    sender.stop_timers()
    assert sender.next_timeout() is None


def test_a_discarded_sender_has_nothing_to_send() -> None:
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    sender.discard()
    assert sender.board.lost == 0
    assert sender.end == sender.next
    assert sender.board.transmissions == []


# -- fast retransmit without SACK


def test_three_duplicates_retransmit_the_first_segment() -> None:
    """RFC 5681 3.2."""
    sender = sender_with(10 * MSS, sack=False)
    send(sender, 0.0)
    for _ in range(2):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1) == []
    ack(sender, 0, 0.1)
    assert send(sender, 0.1) == full(0)


def test_further_duplicates_let_new_data_go() -> None:
    """RFC 5681 3.2 (4): each one says that a segment left the network."""
    sender = sender_with(20 * MSS, sack=False)
    send(sender, 0.0)
    for _ in range(9):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1) == full(0, 10, 11, 12, 13)


def test_a_partial_acknowledgment_retransmits_the_next_hole() -> None:
    """RFC 6582 3.2 (3)."""
    sender = sender_with(10 * MSS, sack=False)
    send(sender, 0.0)
    for _ in range(3):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1) == full(0)
    ack(sender, 4, 0.2)
    assert full(4)[0] in send(sender, 0.2)


def test_three_duplicates_of_small_segments_retransmit_too() -> None:
    """RFC 5681 3.2: whatever their size."""
    sender = sender_with(sack=False)
    for _ in range(5):
        sender.queue.append(b"abc")
        send(sender, 0.0)
    for _ in range(3):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1)[0][0] == 100


def test_duplicates_with_nothing_in_flight_count_for_nothing() -> None:
    """RFC 5681 2: (a)."""
    sender = sender_with(sack=False)
    for _ in range(5):
        ack(sender, 0, 0.1)
    assert sender.board.duplicates == 0
    sender.queue.append(bytes(10 * MSS))
    assert send(sender, 0.1) == full(*range(10))


def test_what_duplicates_told_of_is_not_delivered_again_when_it_is_acknowledged() -> None:
    """RFC 9937 6.2: DeliveredData; outside of recovery the count begins anew (RFC 5681 3.2)."""
    sender = sender_with(20 * MSS, sack=False)
    send(sender, 0.0)
    ack(sender, 0, 0.1)
    ack(sender, 0, 0.1)
    assert sender.rate.delivered == 2 * MSS
    assert sender.size == 8 * MSS
    ack(sender, 3, 0.2)
    assert sender.rate.delivered == 3 * MSS
    assert (sender.board.duplicates, sender.size) == (0, 7 * MSS)


def test_in_recovery_the_duplicates_of_what_lies_above_go_on_counting() -> None:
    """RFC 6582 3.2 step 3: deflate by what is acknowledged."""
    sender = sender_with(10 * MSS, sack=False)
    send(sender, 0.0)
    for _ in range(8):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1) == full(0)
    ack(sender, 4, 0.2)
    assert sender.board.duplicates == 4
    assert sender.size == 10 * MSS - 4 * MSS - 4 * MSS - MSS
    assert send(sender, 0.2) == full(4)


def test_more_duplicates_than_segments_count_for_no_more() -> None:
    """The far side cannot open the window by inventing them."""
    sender = sender_with(30 * MSS, sack=False)
    send(sender, 0.0)
    for _ in range(100):
        ack(sender, 0, 0.1)
    assert len(send(sender, 0.1)) <= 1 + 5


def test_slow_start_after_a_timeout_sends_nothing_a_third_time() -> None:
    """RFC 6582 3.2 step 3 is of fast recovery: after a timeout a partial acknowledgment declares nothing lost."""
    sender = sender_with(8 * MSS, sack=False)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    assert send(sender, 1.0) == full(0)
    ack(sender, 1, 1.1)
    assert send(sender, 1.1) == full(1, 2)
    ack(sender, 2, 1.2)
    assert send(sender, 1.2) == full(3, 4)


def test_duplicates_that_a_timeout_caused_retransmit_nothing() -> None:
    """RFC 6582 3.2 step 2: the acknowledgment must cover more than "recover"."""
    sender = sender_with(8 * MSS, sack=False)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    send(sender, 1.0)
    ack(sender, 1, 1.1)
    send(sender, 1.1)
    ack(sender, 8, 1.2)
    sender.queue.append(bytes(8 * MSS))
    assert send(sender, 1.2)[:1] == full(8)
    for _ in range(4):
        ack(sender, 8, 1.3)
    assert full(8)[0] not in send(sender, 1.3)
    ack(sender, 9, 1.4)
    for _ in range(3):
        ack(sender, 9, 1.4)
    assert full(9)[0] in send(sender, 1.4)


def test_a_retransmission_never_runs_into_data_not_yet_sent() -> None:
    """Else its acknowledgment would lie beyond SND.NXT."""
    sender = sender_with(4 * MSS + 100, sack=False)
    send(sender, 0.0)
    for _ in range(3):
        ack(sender, 0, 0.1)
    assert send(sender, 0.1) == full(0)
    sender.queue.append(bytes(5000))
    sender.congestion.window = 0
    ack(sender, 4, 0.2)
    assert send(sender, 0.2) == [(100 + 4 * MSS, 100)]


# -- pacing


def test_the_pace_of_what_needs_not_be_sent_any_more_is_not_waited_for() -> None:
    """Else the timer, once past, would be due for ever."""
    sender = sender_with(100 * MSS, make_control=Reno)
    sender.congestion.window = 100 * MSS
    while sender.next < sender.end:
        send(sender, sender.pace_at or 0.0)
    sender.on_timeout(1.0)
    sender.congestion.window = 100 * MSS
    send(sender, 1.0)
    paced = sender.pace_at
    assert paced is not None
    ack(sender, 100, 1.0001)
    assert not sender.board.lost
    sender.handle_timeout(paced)
    assert sender.next_timeout() is None


# -- window updates


def test_an_old_segment_does_not_move_the_window() -> None:
    """RFC 9293 3.10.7.4 fifth: SND.WL1 and SND.WL2."""
    sender = sender_with(window=5000)
    assert sender.update_window(600, 100, 7000)
    assert not sender.update_window(599, 100, 9000)
    assert sender.window == 7000


def test_a_shrunk_window_stops_new_data_only() -> None:
    """RFC 9293 MUST-34."""
    sender = sender_with(20 * MSS, window=8 * MSS)
    assert len(send(sender, 0.0)) == 8
    sender.update_window(501, 100, 2 * MSS)
    ack(sender, 1, 0.1)
    assert send(sender, 0.1) == []
    ack(sender, 8, 0.2)
    assert send(sender, 0.2) == full(8, 9)


def test_the_window_is_scaled() -> None:
    """RFC 7323 2.3."""
    sender = sender_with()
    sender.scale = 7
    sender.update_window(501, 100, 100)
    assert sender.window == 12800


# -- path MTU


def test_a_smaller_path_sends_everything_in_flight_again_in_smaller_segments() -> None:
    """RFC 1191 6.5."""
    sender = sender_with(2 * MSS)
    send(sender, 0.0)
    sender.set_mss(600, 0.1)
    assert send(sender, 0.1) == [(100, 600), (700, 600), (1300, 600), (1900, 200)]


def test_the_segment_size_never_grows() -> None:
    sender = sender_with(2 * MSS)
    sender.set_mss(5000, 0.1)
    assert sender.mss == MSS
