"""Tail loss probes (RFC 8985 7)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.sender import Run, Sender
from tests.senders import MSS, ack, full, send, sender_with


def probed(sender: Sender) -> float:
    """Let the probe's timer run out; when."""
    now = sender.tail.probe_at
    assert now is not None
    sender.handle_timeout(now)
    return now


# -- when


def test_the_tail_is_asked_after_two_round_trips() -> None:
    """RFC 8985 7.2: PTO = 2 * SRTT."""
    sender = sender_with(2 * MSS, rtt=0.05)
    send(sender, 1.0)
    assert sender.tail.probe_at == pytest.approx(1.0 + 0.102)
    assert sender.next_timeout() == sender.tail.probe_at


def test_a_single_segment_is_given_time_for_a_delayed_acknowledgment() -> None:
    """RFC 8985 7.2: TLP.max_ack_delay, if FlightSize is one segment."""
    sender = sender_with(MSS, rtt=0.01)
    sender.rtt.timeout = 9.0
    send(sender, 1.0)
    assert sender.tail.probe_at == pytest.approx(1.0 + 0.022 + 0.2)


def test_without_a_measurement_the_probe_waits_for_a_second() -> None:
    """RFC 8985 7.2: else PTO = 1 s."""
    sender = sender_with(2 * MSS)
    sender.rtt.smoothed = None
    sender.rtt.timeout = 9.0
    send(sender, 1.0)
    assert sender.tail.probe_at == 2.0


def test_the_probe_never_comes_after_the_retransmission_timer() -> None:
    """RFC 8985 7.2."""
    sender = sender_with(2 * MSS)
    sender.rtt.timeout = 0.15
    send(sender, 1.0)
    assert sender.tail.probe_at == sender.retransmit_at == 1.15


def test_an_acknowledgment_sets_the_timer_anew() -> None:
    """RFC 8985 7.2: new data was acknowledged."""
    sender = sender_with(4 * MSS, rtt=0.1)
    send(sender, 1.0)
    ack(sender, 1, 1.1)
    assert sender.tail.probe_at == pytest.approx(1.302)
    ack(sender, 4, 1.2)
    assert sender.tail.probe_at is None


def test_there_is_no_probe_for_a_peer_without_sack() -> None:
    """RFC 8985 7.2."""
    sender = sender_with(4 * MSS, sack=False)
    send(sender, 1.0)
    assert sender.tail.probe_at is None


def test_there_is_no_probe_while_something_is_selectively_acknowledged() -> None:
    """RFC 8985 7.2: the reordering timer looks after it."""
    sender = sender_with(10 * MSS)
    send(sender, 1.0)
    ack(sender, 1, 1.1, (2, 3))
    assert sender.tail.probe_at is None
    assert sender.next_timeout() == sender.rack.recheck_at is not None


def test_there_is_no_probe_during_recovery() -> None:
    """RFC 8985 7.2."""
    sender = sender_with(20 * MSS)
    send(sender, 1.0)
    ack(sender, 0, 1.1, (1, 10))
    assert send(sender, 1.1)
    assert sender.tail.probe_at is None


def test_a_timeout_cancels_the_probe() -> None:
    sender = sender_with(2 * MSS)
    send(sender, 1.0)
    sender.on_timeout(1.05)
    assert sender.tail.probe_at is None
    assert not sender.tail.due


# -- what


def test_new_data_is_the_probe_if_there_is_any_even_beyond_the_window() -> None:
    """RFC 8985 7.3."""
    sender = sender_with(20 * MSS)
    send(sender, 1.0)
    assert send(sender, probed(sender)) == full(10)
    assert sender.segments_retransmitted == 0


def test_the_last_segment_is_the_probe_if_there_is_no_new_data() -> None:
    """RFC 8985 7.3."""
    sender = sender_with(5 * MSS)
    send(sender, 1.0)
    assert send(sender, probed(sender)) == full(4)
    assert sender.segments_retransmitted == 1


def test_the_last_segment_is_the_probe_if_the_far_side_takes_no_more() -> None:
    """RFC 8985 7.3: the receive window counts."""
    sender = sender_with(9 * MSS, window=5 * MSS)
    send(sender, 1.0)
    assert send(sender, probed(sender)) == full(4)


def test_the_probe_of_a_short_last_segment_is_that_segment() -> None:
    sender = sender_with(4 * MSS + 10)
    send(sender, 1.0)
    assert send(sender, probed(sender)) == [(100 + 4 * MSS, 10)]


def test_the_probe_of_a_fin_is_the_segment_that_carried_it() -> None:
    sender = sender_with(MSS + 10)
    sender.close()
    sender.runs_to_send(1.0)
    assert sender.runs_to_send(probed(sender)) == [Run(100 + MSS, [bytes(10)], True, again=True)]


def test_the_probe_of_a_fin_behind_a_full_segment_is_both() -> None:
    """Else the far side would be asked for a FIN alone, and the loss of the data repaired later."""
    sender = sender_with(2 * MSS)
    sender.close()
    sender.runs_to_send(1.0)
    assert sender.runs_to_send(probed(sender)) == [Run(100 + MSS, [bytes(MSS)], True, again=True)]


def test_the_probe_of_a_fin_that_left_alone_is_a_fin() -> None:
    sender = sender_with(MSS)
    send(sender, 1.0)
    sender.close()
    sender.runs_to_send(1.0)
    assert sender.runs_to_send(probed(sender)) == [Run(100 + MSS, [b""], True, again=True)]


def test_the_probe_restarts_the_retransmission_timer() -> None:
    """RFC 8985 7.3."""
    sender = sender_with(5 * MSS)
    send(sender, 1.0)
    now = probed(sender)
    assert sender.retransmit_at == now + sender.rtt.timeout


def test_there_is_one_probe_at_a_time() -> None:
    """RFC 8985 7.3: TLP.end_seq is None."""
    sender = sender_with(5 * MSS)
    send(sender, 1.0)
    now = probed(sender)
    send(sender, now)
    assert sender.tail.probe_at is None
    sender.queue.append(bytes(MSS))
    send(sender, now)
    assert sender.tail.probe_at is None


def test_a_probe_of_new_data_is_followed_by_no_other() -> None:
    """RFC 8985 7.3: until it is answered."""
    sender = sender_with(20 * MSS)
    send(sender, 1.0)
    assert send(sender, probed(sender)) == full(10)
    assert sender.tail.probe_at is None


def test_recovery_takes_the_place_of_a_probe_that_is_due() -> None:
    sender = sender_with(5 * MSS)
    send(sender, 1.0)
    now = probed(sender)
    sender.on_timeout(now)
    assert not sender.tail.due
    assert send(sender, now) == full(0)


def test_a_probe_whose_flight_arrived_meanwhile_sends_nothing() -> None:
    sender = sender_with(5 * MSS)
    send(sender, 1.0)
    now = probed(sender)
    ack(sender, 5, now)
    assert send(sender, now) == []
    assert not sender.tail.due
    assert sender.next_timeout() is None


# -- what it showed


def lost_tail(segments: int) -> tuple[Sender, float]:
    """`segments` were sent and a probe, the last one again."""
    sender = sender_with(segments * MSS)
    send(sender, 1.0)
    now = probed(sender)
    assert send(sender, now) == full(segments - 1)
    return sender, now


def test_a_probe_selectively_acknowledged_shows_what_was_lost_before_it() -> None:
    """RFC 8985 7: the point of it all. The echo is of what came before the hole (RFC 7323 4.3), so it is no judge."""
    sender, now = lost_tail(5)
    ack(sender, 0, now + 0.1, (4, 5), echo=0.9)
    assert send(sender, now + 0.1)[:1] == full(0)
    assert sender.congestion.threshold == 2.5 * MSS


def test_a_probe_that_repaired_the_only_loss_is_answered_by_the_congestion_control() -> None:
    """RFC 8985 7.4.2: acknowledged together with newer data, and nothing reported twice."""
    sender, now = lost_tail(5)
    ack(sender, 5, now + 0.1)
    assert sender.congestion.threshold > 10 * MSS
    sender.queue.append(bytes(MSS))
    send(sender, now + 0.1)
    ack(sender, 6, now + 0.2)
    assert sender.congestion.threshold < 10 * MSS
    sender.queue.append(bytes(MSS))
    send(sender, now + 0.2)
    assert sender.tail.probe_at is not None  # that was it: the next tail has a probe of its own


def test_a_probe_reported_twice_was_not_needed() -> None:
    """RFC 8985 7.4.2: a D-SACK that ends where the probe did."""
    sender, now = lost_tail(5)
    ack(sender, 5, now + 0.1)
    ack(sender, 5, now + 0.1, twice=(4, 5))
    sender.queue.append(bytes(MSS))
    send(sender, now + 0.1)
    ack(sender, 6, now + 0.2)
    assert sender.congestion.threshold > 10 * MSS


def test_a_report_of_something_else_says_nothing_of_the_probe() -> None:
    """RFC 8985 7.4.2: matching TLP.end_seq."""
    sender, now = lost_tail(5)
    sender.queue.append(bytes(MSS))
    send(sender, now)
    ack(sender, 6, now + 0.2, twice=(1, 2))
    assert sender.congestion.threshold < 10 * MSS


def test_a_duplicate_acknowledgment_of_the_probe_shows_that_it_was_not_needed() -> None:
    """RFC 8985 7.4.2, for a peer that has no D-SACK."""
    sender, now = lost_tail(5)
    ack(sender, 5, now + 0.1)
    ack(sender, 5, now + 0.1)
    sender.queue.append(bytes(MSS))
    send(sender, now + 0.1)
    ack(sender, 6, now + 0.2)
    assert sender.congestion.threshold > 10 * MSS


def test_a_probe_of_new_data_repairs_nothing() -> None:
    """RFC 8985 7.4.2: not TLP.is_retrans."""
    sender = sender_with(11 * MSS)
    send(sender, 1.0)
    now = probed(sender)
    assert send(sender, now) == full(10)
    ack(sender, 11, now + 0.1)
    sender.queue.append(bytes(MSS))
    send(sender, now + 0.1)
    assert sender.tail.probe_at is not None
    ack(sender, 12, now + 0.2)
    assert sender.congestion.threshold > 10 * MSS


def test_an_acknowledgment_short_of_the_probe_decides_nothing() -> None:
    """RFC 8985 7.4.2: ACK >= TLP.end_seq."""
    sender, now = lost_tail(5)
    ack(sender, 4, now + 0.1)
    ack(sender, 4, now + 0.1)
    assert sender.tail.probe_at is None  # it is still on its way
    assert sender.congestion.threshold > 10 * MSS


def test_a_needless_probe_does_not_widen_the_reordering_window() -> None:
    """RFC 8985 6.2 step 4 is about detection that was too quick; a timer sent the probe."""
    sender, now = lost_tail(5)
    ack(sender, 5, now + 0.1)
    ack(sender, 5, now + 0.1, twice=(4, 5))
    sender.queue.append(bytes(10 * MSS))
    send(sender, 9.0)
    ack(sender, 5, 9.1, (6, 7))
    assert sender.rack.recheck_at == pytest.approx(9.0 + 0.1 + sender.rtt.minimum / 4)  # type: ignore[operator]
