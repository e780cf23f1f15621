"""Pacing: a token bucket in pieces of a millisecond (draft-ietf-ccwg-bbr 5.6.3)."""

from __future__ import annotations

from math import inf

import pytest

from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.pacing import (
    COLD_BURST_SEGMENTS,
    LATENESS,
    QUANTUM,
    SHORTEST_PAUSE,
    Pacer,
)
from tests.senders import MSS, ack, send, sender_with

RATE = 10_000_000.0  # bytes a second: ten segments a millisecond


def warm(rate: float = RATE) -> Pacer:
    """One whose first burst is gone, at 0.0 seconds."""
    pacer = Pacer(MSS)
    pacer.allowance(rate, MSS, MSS, 0.0)
    pacer.on_sent(COLD_BURST_SEGMENTS * MSS)
    return pacer


def test_the_first_flight_leaves_at_once() -> None:
    """RFC 6928: ten segments."""
    allowance, again = Pacer(MSS).allowance(1000.0, 50 * MSS, MSS, 0.0)
    assert COLD_BURST_SEGMENTS * MSS <= allowance <= COLD_BURST_SEGMENTS * MSS + 1
    assert again is None


def test_without_a_rate_there_is_no_limit() -> None:
    assert warm().allowance(inf, 1 << 20, MSS, 0.0) == (1 << 20, None)


def test_a_piece_of_a_millisecond_is_waited_for() -> None:
    """draft-ietf-ccwg-bbr 5.6.3: the send quantum."""
    allowance, again = warm().allowance(RATE, 1 << 20, MSS, 0.0)
    assert allowance == 0
    assert again == pytest.approx(QUANTUM)


def test_at_the_time_that_was_named_the_piece_may_leave() -> None:
    pacer = warm()
    _, again = pacer.allowance(RATE, 1 << 20, MSS, 0.0)
    assert again is not None
    allowance, later = pacer.allowance(RATE, 1 << 20, MSS, again)
    assert RATE * QUANTUM <= allowance <= RATE * QUANTUM + 1
    assert later is None


def test_on_a_slow_path_a_piece_is_two_segments() -> None:
    """draft-ietf-ccwg-bbr 5.6.3."""
    _, again = warm(100_000.0).allowance(100_000.0, 1 << 20, MSS, 0.0)
    assert again == pytest.approx(2 * MSS / 100_000.0)


def test_less_than_a_piece_is_waited_for_no_longer_than_it_takes() -> None:
    _, again = warm().allowance(RATE, 5 * MSS, MSS, 0.0)
    assert again == pytest.approx(5 * MSS / RATE)


def test_a_pause_is_never_too_short_for_a_clock() -> None:
    """Else a timer would spin."""
    _, again = warm(1e12).allowance(1e12, MSS, MSS, 0.0)
    assert again == SHORTEST_PAUSE


def test_a_driver_that_wakes_up_late_loses_nothing() -> None:
    """Up to LATENESS."""
    pacer = warm()
    allowance, _ = pacer.allowance(RATE, 1 << 20, MSS, LATENESS)
    assert RATE * LATENESS <= allowance <= RATE * LATENESS + 1


def test_a_driver_that_wakes_up_very_late_gets_no_burst() -> None:
    pacer = warm()
    allowance, _ = pacer.allowance(RATE, 1 << 20, MSS, 10.0)
    assert allowance <= RATE * LATENESS + 1


def test_on_a_slow_path_the_credit_is_ten_segments() -> None:
    pacer = warm(100_000.0)
    allowance, _ = pacer.allowance(100_000.0, 1 << 20, MSS, 10.0)
    assert allowance == 10 * MSS + 1


def test_more_than_was_allowed_makes_later_ones_wait() -> None:
    """A tail probe asks nobody."""
    pacer = warm()
    pacer.on_sent(5 * MSS)
    _, again = pacer.allowance(RATE, 1 << 20, MSS, 0.0)
    assert again == pytest.approx(QUANTUM + 5 * MSS / RATE)


def test_credit_that_is_there_stays_when_the_rate_falls() -> None:
    pacer = warm()
    pacer.allowance(RATE, 1 << 20, MSS, LATENESS)
    allowance, _ = pacer.allowance(RATE / 100, 1 << 20, MSS, LATENESS)
    assert allowance == RATE * LATENESS + 1


def test_a_clock_that_stands_still_gives_no_credit() -> None:
    pacer = warm()
    for _ in range(1000):
        assert pacer.allowance(RATE, 1 << 20, MSS, 0.0)[0] == 0
    assert pacer.allowance(RATE, 1 << 20, MSS, -1.0)[0] == 0


def test_a_new_first_flight_leaves_at_once_too() -> None:
    """RFC 5681 4.1 with RFC 6928: and an old credit is not added."""
    pacer = warm()
    pacer.restart(MSS)
    pacer.restart(MSS)
    allowance, _ = pacer.allowance(RATE, 1 << 20, MSS, 0.0)
    assert COLD_BURST_SEGMENTS * MSS <= allowance <= COLD_BURST_SEGMENTS * MSS + 1
    pacer = warm()
    pacer.allowance(RATE, 1 << 20, MSS, LATENESS)
    pacer.restart(MSS)
    assert pacer.allowance(RATE, 1 << 20, MSS, LATENESS)[0] >= RATE * LATENESS


# -- in a sender


def paced(window: int, threshold: int = 1 << 30) -> float:
    """Seconds between two pieces, of a sender with a round trip of 0.1 s."""
    sender = sender_with(1 << 20, make_control=Reno)
    sender.congestion.window, sender.congestion.threshold = window, threshold
    sent = sum(length for _, length in send(sender, 0.0))
    assert sender.pace_at is not None
    before = sender.pace_at
    sender.handle_timeout(before)
    sent = sum(length for _, length in send(sender, before))
    assert sent > 0
    assert sender.pace_at is not None
    assert sender.next_timeout() == sender.pace_at
    return (sender.pace_at - before) / sent


def test_in_slow_start_two_windows_leave_in_a_round_trip() -> None:
    """The window may double in one."""
    assert paced(100 * MSS) == pytest.approx(0.1 / (2 * 100 * MSS), rel=0.01)


def test_in_congestion_avoidance_little_more_than_a_window_does() -> None:
    assert paced(100 * MSS, 50 * MSS) == pytest.approx(0.1 / (1.2 * 100 * MSS), rel=0.01)


def test_a_control_may_set_the_pace_itself() -> None:
    sender = sender_with(1 << 20, make_control=Reno)
    sender.congestion.window = 1 << 20
    sender.congestion.pacing_rate = 1_000_000.0
    assert len(send(sender, 0.0)) == 10
    assert sender.pace_at == pytest.approx(2 * MSS / 1_000_000.0, rel=0.01)


def test_without_a_measurement_nothing_is_paced() -> None:
    sender = sender_with(1 << 20, make_control=Reno)
    sender.rtt.smoothed = None
    sender.congestion.window = 50 * MSS
    assert len(send(sender, 0.0)) == 50
    assert sender.pace_at is None


def test_lost_data_is_paced_too() -> None:
    sender = sender_with(40 * MSS, make_control=Reno)
    sender.congestion.window = 40 * MSS
    now = 0.0
    while sender.next < sender.end:
        send(sender, now)
        now = sender.pace_at or now
    sender.on_timeout(1.0)
    sender.congestion.window = 40 * MSS
    assert 0 < len(send(sender, 1.0)) < 40
    assert sender.pace_at is not None


def test_a_rest_of_one_segment_waits_for_one_segment() -> None:
    sender = sender_with(11 * MSS, make_control=Reno)
    sender.congestion.window = 100 * MSS
    assert len(send(sender, 0.0)) == 10
    due = sender.pace_at
    assert due == pytest.approx(MSS * 0.1 / (2 * 100 * MSS), rel=0.01)
    assert due is not None
    assert len(send(sender, due)) == 1
    assert sender.pace_at is None


def test_after_a_pause_the_first_flight_is_not_paced() -> None:
    """RFC 5681 4.1: the restart window."""
    sender = sender_with(10 * MSS, make_control=Reno)
    send(sender, 0.0)
    ack(sender, 10, 0.1)
    sender.queue.append(bytes(10 * MSS))
    assert len(send(sender, 9.0)) == 10
