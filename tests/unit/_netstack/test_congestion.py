"""Congestion control by the book (RFC 5681, RFC 3465, RFC 6928)."""

from __future__ import annotations

from httpx_wireguard._netstack.congestion import NewReno

MSS = 1000


def in_congestion_avoidance() -> NewReno:
    control = NewReno(MSS)
    control.on_loss(20 * MSS, 0.0)
    assert control.window == 10 * MSS
    return control


def test_the_initial_window_is_ten_segments() -> None:
    """RFC 6928 2."""
    assert NewReno(MSS).window == 10 * MSS


def test_slow_start_grows_by_what_is_acknowledged() -> None:
    """RFC 3465 2.2, RFC 5681 3.1: twice the window after one round trip."""
    control = NewReno(MSS)
    for _ in range(10):
        control.on_ack(MSS, control.window, 0.0)
    assert control.window == 20 * MSS


def test_an_unused_window_does_not_grow() -> None:
    """RFC 7661 4.3: it was not tested against the path."""
    control = NewReno(MSS)
    control.on_ack(MSS, 4 * MSS, 0.0)
    assert control.window == 10 * MSS


def test_a_loss_halves_the_window() -> None:
    """RFC 5681 3.2, equation 4."""
    control = NewReno(MSS)
    control.on_loss(30 * MSS, 0.0)
    assert (control.window, control.threshold) == (15 * MSS, 15 * MSS)


def test_the_threshold_is_at_least_two_segments() -> None:
    """RFC 5681 3.1, equation 4."""
    control = NewReno(MSS)
    control.on_loss(MSS, 0.0)
    assert control.threshold == 2 * MSS


def test_congestion_avoidance_adds_one_segment_for_a_window_acknowledged() -> None:
    """RFC 5681 3.1, RFC 3465 2.1."""
    control = in_congestion_avoidance()
    for _ in range(9):
        control.on_ack(MSS, 10 * MSS, 0.0)
    assert control.window == 10 * MSS
    for _ in range(11):
        control.on_ack(MSS, 11 * MSS, 0.0)
        assert control.window == 11 * MSS
    control.on_ack(MSS, 11 * MSS, 0.0)
    assert control.window == 12 * MSS


def test_a_timeout_leaves_one_segment_and_half_as_threshold() -> None:
    """RFC 5681 3.1: the loss window."""
    control = NewReno(MSS)
    control.on_timeout(10 * MSS, 0.0)
    assert (control.window, control.threshold) == (MSS, 5 * MSS)


def test_slow_start_after_a_timeout_ends_at_the_threshold() -> None:
    control = NewReno(MSS)
    control.on_timeout(8 * MSS, 0.0)
    for _ in range(3):
        control.on_ack(MSS, control.window, 0.0)
    assert control.window == 4 * MSS
    control.on_ack(MSS, control.window, 0.0)
    assert control.window == 4 * MSS


def test_an_idle_connection_restarts_with_the_initial_window() -> None:
    """RFC 5681 4.1: the smaller of both."""
    control = NewReno(MSS)
    control.on_ack(90 * MSS, 10 * MSS, 0.0)
    control.on_idle(5.0)
    assert control.window == 10 * MSS
    control.on_timeout(4 * MSS, 5.0)
    control.on_idle(9.0)
    assert control.window == MSS


def test_a_smaller_segment_size_keeps_the_number_of_segments() -> None:
    control = NewReno(MSS)
    control.set_mss(500)
    assert control.window == 10 * 500


def test_a_smaller_segment_size_leaves_at_least_one_segment() -> None:
    control = NewReno(MSS)
    control.on_timeout(MSS, 0.0)
    control.set_mss(999)
    assert control.window == 999
