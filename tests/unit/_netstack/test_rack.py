"""RACK: what left well before something that has arrived is lost (RFC 8985 6)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.rack import Rack
from httpx_wireguard._netstack.rtt import RttEstimator
from httpx_wireguard._netstack.scoreboard import Delivery, Scoreboard, Transmission
from httpx_wireguard._netstack.sender import Sender
from tests.senders import MSS, ack, full, send, sender_with

RTT = 0.1
WINDOW = RTT / 4  # the smallest reordering window


class Flight:
    """Transmissions of ten bytes, and what RACK makes of their arrival."""

    def __init__(self, *sent_at: float, minimum: float = RTT) -> None:
        self.board = Scoreboard()
        self.rack = Rack()
        self.rtt = RttEstimator()
        self.rtt.on_sample(minimum)
        for number, moment in enumerate(sent_at):
            one = Transmission(10 * number, 10 * number + 10)
            one.sent_at = moment
            self.board.add(one)

    def sack(self, *numbers: int, now: float) -> None:
        delivery = Delivery(None, 0.0, now)
        for number in numbers:
            self.board.sack(10 * number, 10 * number + 10, delivery)
        self.rack.on_delivered(delivery, now)

    def lost(self, now: float, *, mss: int = 1000, recovering: bool = False) -> list[int]:
        """The numbers of what is declared lost."""
        found = self.rack.detect_losses(self.board, self.rtt, mss, recovering, now)
        return [one.start // 10 for one in found]


# -- what is lost


def test_what_left_a_window_before_a_delivery_is_lost() -> None:
    """RFC 8985 6.2 step 5: sent_at + RACK.rtt + reo_wnd <= now."""
    flight = Flight(0.0, 0.0, 0.05)
    flight.sack(2, now=0.15)
    assert flight.lost(0.15) == [0, 1]
    assert flight.board.lost == 20


def test_what_left_just_before_a_delivery_may_be_on_its_way() -> None:
    """RFC 8985 6.2 step 5: the timer says when it is lost."""
    flight = Flight(0.0, 0.0)
    flight.sack(1, now=0.1)
    assert flight.lost(0.1) == []
    due = flight.rack.recheck_at
    assert due == pytest.approx(0.125)
    assert due is not None
    assert flight.lost(0.124) == []
    assert flight.lost(due) == [0]
    assert flight.rack.recheck_at is None


def test_the_timer_waits_for_the_last_that_is_in_doubt() -> None:
    """RFC 8985 6.2 step 5: timeout = max(remaining, timeout)."""
    flight = Flight(0.0, 0.01, 0.02)
    flight.sack(2, now=0.12)
    assert flight.lost(0.12) == []
    assert flight.rack.recheck_at == pytest.approx(0.01 + 0.1 + WINDOW)


def test_what_left_after_a_delivery_is_not_lost_however_long_ago_that_is() -> None:
    """RFC 8985 6.2 step 5: RACK_sent_after."""
    flight = Flight(0.0, 0.0, 0.01)
    flight.sack(1, now=0.1)
    assert flight.lost(99.0) == [0]
    assert flight.rack.recheck_at is None


def test_of_one_burst_the_order_of_sequence_numbers_decides() -> None:
    """RFC 8985 6.1: RACK.end_seq breaks the tie."""
    flight = Flight(0.0, 0.0, 0.0, 0.0)
    flight.sack(2, now=0.1)
    assert flight.lost(9.0) == [0, 1]


def test_the_newest_delivery_counts_not_the_last() -> None:
    """RFC 8985 6.2 step 2: RACK_sent_after(Segment, RACK)."""
    flight = Flight(0.0, 0.01, 0.05, 0.06)
    flight.sack(2, now=0.15)
    flight.sack(0, now=0.16)
    assert flight.lost(0.2) == [1]


def test_a_delivery_is_measured_by_its_own_round_trip() -> None:
    """RFC 8985 6.2 step 2: RACK.rtt is that of the newest delivery, not the smallest."""
    flight = Flight(0.0, 0.05)
    flight.sack(1, now=0.35)
    assert flight.lost(0.32) == []
    assert flight.rack.recheck_at == pytest.approx(0.3 + WINDOW)


def test_a_lost_retransmission_is_lost_again() -> None:
    """RFC 8985 4: the dynamic approach; its new time counts."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 10))
    assert full(0)[0] in send(sender, 0.1)
    newer = sender.next
    sender.queue.append(bytes(MSS))
    sender.congestion.window = 20 * MSS
    assert send(sender, 0.14)
    last = (sender.next - 100) // MSS
    ack(sender, 0, 0.24, (1, (newer - 100) // MSS + 1), (last - 1, last))
    assert send(sender, 0.24)[:1] == full(0)


def test_a_retransmission_that_arrived_shows_an_earlier_one_lost() -> None:
    """RFC 8985 4, with timestamps: the echo of a selective acknowledgment is of what came before the hole."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 4), (5, 10), echo=0.0)
    sender.congestion.window = MSS
    assert send(sender, 0.1) == full(0)
    sender.congestion.window = 20 * MSS
    assert send(sender, 0.14) == full(4)
    ack(sender, 0, 0.24, (1, 10), echo=0.0)
    assert send(sender, 0.24) == full(0)


def test_an_acknowledgment_too_fast_for_a_retransmission_is_not_of_it() -> None:
    """RFC 8985 6.2 step 2: rtt < RACK.min_RTT."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 4), (5, 10))
    sender.congestion.window = MSS
    assert send(sender, 0.1) == full(0)
    sender.congestion.window = 20 * MSS
    assert send(sender, 0.15) == full(4)
    ack(sender, 0, 0.22, (1, 10))
    assert send(sender, 0.5) == []


def test_an_older_echo_is_not_of_the_retransmission() -> None:
    """RFC 8985 6.2 step 2: ACK.ts_option.echo_reply < Segment.xmit_ts."""
    for echo, sent_at in (0.4, 0.0), (0.5, 0.5):
        one = Transmission(0, 10)
        one.sent_at, one.retransmitted = 0.5, True
        delivery = Delivery(int(echo * 1000), 0.0, 0.6)
        delivery.add(one, 10, 0, delivery.echo)
        assert (delivery.newest is one) == (sent_at == 0.5)
        assert delivery.length == 10


def test_the_detection_goes_on_after_a_recovery() -> None:
    """What recovery sent as new, before the retransmission that ended it, is lost as well."""
    sender = sender_with(11 * MSS)
    sender.congestion.window = 11 * MSS
    assert len(send(sender, 0.0)) == 11
    ack(sender, 0, 0.1, (1, 10))
    sender.queue.append(bytes(MSS))
    sender.congestion.window = 2 * MSS
    assert send(sender, 0.1) == full(0)
    ack(sender, 10, 0.25)
    assert sender.board.lost or sender.rack.recheck_at is not None


# -- the reordering window (RFC 8985 6.2 step 4)


def reordered() -> Flight:
    """A path that has shown reordering: the second of two arrived before the first."""
    flight = Flight(0.0, 0.0, *[0.0] * 8)
    flight.sack(1, now=0.1)
    flight.sack(0, now=0.11)
    return flight


def test_without_reordering_three_segments_end_the_patience() -> None:
    """RFC 8985 6.2 step 4: RACK.sacked >= DupThresh, counted as pieces or as bytes."""
    flight = Flight(*[0.0] * 6)
    flight.sack(1, 3, now=0.1)
    assert flight.lost(0.1) == []
    flight.sack(5, now=0.1)
    assert flight.lost(0.1) == [0, 2, 4]
    flight = Flight(*[0.0] * 6)
    flight.sack(4, now=0.1)
    assert flight.lost(0.1, mss=5) == []
    assert flight.lost(0.1, mss=4) == [0, 1, 2, 3]


def test_without_reordering_there_is_no_patience_in_recovery() -> None:
    """RFC 8985 6.2 step 4."""
    flight = Flight(0.0, 0.0)
    flight.sack(1, now=0.1)
    assert flight.lost(0.1, recovering=True) == [0]


def test_with_reordering_there_is_patience_always() -> None:
    """RFC 8985 6.2 step 4: three segments, and recovery, make no difference."""
    flight = reordered()
    flight.sack(3, 5, 7, now=0.1)
    assert flight.lost(0.1, recovering=True) == []
    assert flight.rack.recheck_at == pytest.approx(0.1 + WINDOW)


def test_a_retransmission_that_arrives_late_is_no_reordering() -> None:
    """RFC 8985 6.2 step 3: only what left once."""
    flight = Flight(0.0, 0.0, 0.0, 0.0)
    flight.sack(1, now=0.1)
    flight.board.transmissions[0].retransmitted = True
    flight.sack(0, now=0.11)
    flight.sack(3, now=0.12)
    assert flight.lost(0.12, recovering=True) == [2]


def test_what_arrives_in_order_is_no_reordering() -> None:
    """RFC 8985 6.2 step 3: below RACK.fack."""
    flight = Flight(0.0, 0.0, 0.0, 0.0)
    flight.sack(0, 1, now=0.1)
    flight.sack(3, now=0.12)
    assert flight.lost(0.12, recovering=True) == [2]


def test_each_round_with_a_duplicate_report_widens_the_window_by_a_quarter() -> None:
    """RFC 8985 6.2 step 4: reo_wnd_mult, once per round trip."""
    flight = reordered()
    flight.rack.on_duplicate_reported(0, 1000)
    flight.rack.on_duplicate_reported(500, 2000)  # the same round
    flight.sack(3, now=0.12)
    flight.lost(0.12)
    assert flight.rack.recheck_at == pytest.approx(0.12 + 2 * WINDOW)
    flight.rack.on_duplicate_reported(1000, 3000)
    flight.lost(0.12)
    assert flight.rack.recheck_at == pytest.approx(0.12 + 3 * WINDOW)


def test_the_window_is_never_wider_than_a_round_trip() -> None:
    """RFC 8985 6.2 step 4: SRTT, whatever the far side reports."""
    flight = reordered()
    for number in range(50):
        flight.rack.on_duplicate_reported(number * 1000, number * 1000 + 1)
    flight.sack(3, now=0.12)
    flight.lost(0.12)
    assert flight.rack.recheck_at == pytest.approx(0.12 + RTT)


def test_the_window_shrinks_after_sixteen_recoveries_without_a_report() -> None:
    """RFC 8985 6.2 step 4: reo_wnd_persist."""
    flight = reordered()
    flight.rack.on_duplicate_reported(0, 1000)
    for _ in range(15):
        flight.rack.on_recovery_end()
    flight.rack.on_duplicate_reported(1000, 2000)  # another one: from the beginning
    flight.sack(3, now=0.12)
    for expected, recoveries in (3, 15), (1, 1):
        for _ in range(recoveries):
            flight.rack.on_recovery_end()
        flight.lost(0.12)
        assert flight.rack.recheck_at == pytest.approx(0.12 + expected * WINDOW)
    flight.rack.on_duplicate_reported(2000, 3000)
    for _ in range(15):
        flight.rack.on_recovery_end()
    flight.lost(0.12)
    assert flight.rack.recheck_at == pytest.approx(0.12 + 2 * WINDOW)


def test_without_a_measurement_there_is_no_window() -> None:
    flight = Flight(0.0, 0.0)
    flight.rtt = RttEstimator()
    flight.sack(1, now=0.1)
    assert flight.lost(0.1) == [0]


# -- in a sender


def reordering_sender() -> Sender:
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 2))
    return sender


def test_the_timer_declares_the_loss_and_the_recovery_begins() -> None:
    """RFC 8985 6.3: with PRR's fast retransmit, and with time for what is sent again."""
    sender = reordering_sender()
    now = sender.next_timeout()
    assert now == pytest.approx(0.1 + WINDOW)
    assert now is not None
    sender.handle_timeout(now)
    assert sender.recovering
    assert send(sender, now)[:1] == full(0)
    assert sender.retransmit_at == now + sender.rtt.timeout


def test_a_timer_that_ran_out_for_nothing_does_nothing() -> None:
    sender = reordering_sender()
    assert sender.rack.recheck_at is not None
    before, window = sender.retransmit_at, sender.congestion.window
    sender.handle_timeout(sender.rack.recheck_at - 0.001)
    assert not sender.recovering
    assert (sender.retransmit_at, sender.congestion.window) == (before, window)


def test_what_arrives_in_time_was_not_lost() -> None:
    sender = reordering_sender()
    ack(sender, 2, 0.11)
    assert sender.rack.recheck_at is None
    assert not sender.recovering
    assert sender.congestion.window >= 10 * MSS


def test_a_second_loss_that_the_timer_finds_in_recovery_is_sent_again_too() -> None:
    """RFC 9937 6.2: what the timer finds counts with what is in flight, and the window is not reduced again."""
    sender = reordering_sender()
    ack(sender, 2, 0.11)  # reordering seen
    sender.queue.append(bytes(40 * MSS))
    send(sender, 0.11)
    ack(sender, 2, 0.2, (3, 8))
    sender.handle_timeout(sender.rack.recheck_at or 9.0)
    assert send(sender, 0.21)[:1] == full(2)
    threshold = sender.congestion.threshold
    ack(sender, 2, 0.22, (3, 8), (9, 10))
    assert sender.rack.recheck_at is not None
    now = sender.rack.recheck_at
    sender.handle_timeout(now)
    assert sender.board.lost == MSS
    assert sender.congestion.threshold == threshold
