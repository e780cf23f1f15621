"""Reno by the book (RFC 5681, RFC 3465); what it shares with CUBIC is in test_loss_based.py."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion.reno import Reno
from tests.control_loops import MSS, average_window, sample


def in_congestion_avoidance(segments: int) -> Reno:
    control = Reno(MSS)
    control.window = 2 * segments * MSS
    control.on_congestion(2 * segments * MSS, 0.0)
    control.on_recovery_end(0.0)
    assert control.window == segments * MSS
    return control


def test_a_loss_halves_what_is_in_flight() -> None:
    """RFC 5681 3.1 equation 4: FlightSize, of which the window may be more."""
    control = Reno(MSS)
    control.on_congestion(8 * MSS, 0.0)
    assert (control.window, control.threshold) == (4 * MSS, 4 * MSS)


def test_what_limited_transmit_sent_is_not_halved() -> None:
    """RFC 5681 3.2 step 2."""
    control = Reno(MSS)
    control.on_congestion(12 * MSS, 0.0)
    assert control.threshold == 5 * MSS


def test_a_timeout_leaves_one_segment_and_half_as_ssthresh() -> None:
    """RFC 5681 3.1."""
    control = Reno(MSS)
    control.on_timeout(8 * MSS, 0.0)
    assert (control.window, control.threshold) == (MSS, 4 * MSS)


def test_congestion_avoidance_adds_one_segment_for_a_window_delivered() -> None:
    """RFC 5681 3.1, RFC 3465 2.1."""
    control = in_congestion_avoidance(10)
    for _ in range(9):
        control.on_ack(sample(MSS))
    assert control.window == 10 * MSS
    for _ in range(11):
        control.on_ack(sample(MSS))
        assert control.window == 11 * MSS
    control.on_ack(sample(MSS))
    assert control.window == 12 * MSS


def test_what_was_delivered_beyond_a_window_counts_for_the_next_segment() -> None:
    """RFC 3465 2.1: bytes_acked less cwnd."""
    control = in_congestion_avoidance(10)
    windows = []
    for _ in range(7):
        control.on_ack(sample(3 * MSS))
        windows.append(control.window // MSS)
    assert windows == [10, 10, 10, 11, 11, 11, 12]


def test_what_was_delivered_before_a_loss_does_not_grow_the_window_after_it() -> None:
    control = in_congestion_avoidance(10)
    control.on_ack(sample(9 * MSS))
    control.on_congestion(10 * MSS, 0.0)
    control.on_recovery_end(0.0)
    control.on_ack(sample(4 * MSS))
    assert control.window == 5 * MSS
    control.on_ack(sample(MSS))
    assert control.window == 6 * MSS


def test_an_undone_reduction_does_not_shrink_a_window_that_has_grown() -> None:
    """RFC 4015 3.2."""
    control = Reno(MSS)
    control.on_congestion(10 * MSS, 0.0)
    control.on_recovery_end(0.0)
    for _ in range(200):
        control.on_ack(sample(MSS))
    window = control.window
    assert window > 10 * MSS
    control.on_spurious(1.0)
    assert control.window == window


@pytest.mark.parametrize(("loss", "expected", "step"), [(1e-2, 12, 1), (1e-3, 38, 1), (1e-4, 120, 4), (1e-5, 379, 40)])
def test_the_average_window_is_that_of_the_response_function(loss: float, expected: int, step: int) -> None:
    """RFC 9438 5.1, tables 1 and 2: 1.2 / sqrt(p), whatever the round trip."""
    assert average_window(Reno(MSS), 0.1, loss, losses=20, step=step) == pytest.approx(expected, rel=0.05)
