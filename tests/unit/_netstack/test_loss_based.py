"""What Reno and CUBIC have in common: slow start, recovery, pauses; and each in a closed loop."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion import CONTROLS
from httpx_wireguard._netstack.congestion.cubic import Cubic
from httpx_wireguard._netstack.congestion.reno import Reno
from tests.control_loops import MSS, Bottleneck, sample

LOSS_BASED = pytest.mark.parametrize("kind", [Cubic, Reno])
Kind = type[Cubic] | type[Reno]


def with_window(kind: Kind, segments: int) -> Cubic | Reno:
    """In slow start, all of the window in use."""
    control = kind(MSS)
    control.on_ack(sample((segments - 10) * MSS))
    assert control.window == segments * MSS
    return control


def test_each_control_is_known_by_its_name() -> None:
    for name, make in CONTROLS.items():
        assert make(MSS).name == name


# -- slow start


@LOSS_BASED
def test_the_initial_window_is_ten_segments(kind: Kind) -> None:
    """RFC 6928 2."""
    assert kind(MSS).window == 10 * MSS


@LOSS_BASED
def test_slow_start_doubles_the_window_in_a_round_trip(kind: Kind) -> None:
    """RFC 5681 3.1, RFC 3465 2.2."""
    control = kind(MSS)
    for _ in range(10):
        control.on_ack(sample(MSS))
    assert control.window == 20 * MSS


@LOSS_BASED
def test_a_window_that_is_not_in_use_does_not_grow(kind: Kind) -> None:
    """RFC 7661 4.3, RFC 9438 5.8: it was not tried on the path."""
    control = kind(MSS)
    control.on_ack(sample(MSS, limited=False))
    assert control.window == 10 * MSS
    control.on_congestion(10 * MSS, 0.0)
    control.on_recovery_end(0.0)
    window = control.window
    for number in range(100):
        control.on_ack(sample(MSS, number / 10, rtt=0.1, limited=False))
    assert control.window == window


@LOSS_BASED
def test_the_window_does_not_grow_in_recovery(kind: Kind) -> None:
    """RFC 9937: PRR sets it."""
    control = kind(MSS)
    control.on_congestion(10 * MSS, 0.0)
    window = control.window
    control.on_ack(sample(30 * MSS, 1.0, rtt=0.1, recovering=True))
    assert control.window == window


@LOSS_BASED
def test_a_growing_delay_ends_slow_start_at_the_window_of_then(kind: Kind) -> None:
    """RFC 9406 4.2: ssthresh = cwnd after five conservative rounds."""
    control = kind(MSS)
    for number in range(1, 8):
        for left in range(8):
            rtt = 0.1 if number == 1 else 0.2
            control.on_ack(sample(MSS, rtt=rtt, unacknowledged=number - (left < 7), send_next=number + (left == 7)))
    assert control.threshold == (10 + 8 + 8 + 4 * 8 // 4) * MSS
    assert control.threshold <= control.window <= control.threshold + MSS


@LOSS_BASED
def test_slow_start_after_a_timeout_ends_at_ssthresh(kind: Kind) -> None:
    """RFC 5681 3.1, RFC 9438 4.8; HyStart++ is for the first slow start (RFC 9406 4.3)."""
    control = with_window(kind, 100)
    control.on_timeout(100 * MSS, 0.0)
    assert control.window == MSS
    threshold = control.threshold
    control.on_ack(sample(MSS, rtt=0.1))
    assert control.window == 2 * MSS
    for number in range(1, 7):
        for left in range(8):
            control.on_ack(sample(MSS, rtt=number / 10, unacknowledged=number - (left < 7), send_next=number))
    assert control.threshold == threshold
    control.on_ack(sample(threshold - control.window, rtt=0.1))
    assert control.window == threshold
    control.on_ack(sample(MSS, rtt=0.1))
    assert control.window <= threshold + MSS // 2


@LOSS_BASED
def test_of_an_acknowledgment_beyond_ssthresh_the_rest_is_congestion_avoidance(kind: Kind) -> None:
    control = with_window(kind, 100)
    control.on_timeout(100 * MSS, 0.0)
    control.on_ack(sample(139 * MSS, rtt=0.1))
    assert control.threshold < control.window <= control.threshold + 2 * MSS


@LOSS_BASED
def test_what_was_selectively_acknowledged_before_does_not_count_again(kind: Kind) -> None:
    """After a timeout SND.UNA may pass over a whole window at once (RFC 3465 2.3)."""
    control = with_window(kind, 100)
    control.on_timeout(100 * MSS, 0.0)
    jump = sample(MSS)
    jump.acknowledged = 50 * MSS
    control.on_ack(jump)
    assert control.window == 2 * MSS


# -- reductions


@LOSS_BASED
def test_ssthresh_is_at_least_two_segments(kind: Kind) -> None:
    """RFC 5681 3.1 equation 4, RFC 9438 4.6."""
    control = kind(MSS)
    for _ in range(10):
        control.on_congestion(control.window, 0.0)
        control.on_recovery_end(0.0)
    assert (control.window, control.threshold) == (2 * MSS, 2 * MSS)
    control.on_timeout(MSS, 0.0)
    assert (control.window, control.threshold) == (MSS, 2 * MSS)


@LOSS_BASED
def test_a_recovery_ends_with_ssthresh_as_the_window(kind: Kind) -> None:
    """RFC 9937 6.4: whatever PRR made of it."""
    control = with_window(kind, 100)
    control.on_congestion(100 * MSS, 0.0)
    control.window = 3 * MSS
    control.on_recovery_end(1.0)
    assert control.window == control.threshold >= 50 * MSS


@LOSS_BASED
def test_the_end_of_a_recovery_that_a_timeout_took_over_leaves_slow_start_alone(kind: Kind) -> None:
    control = with_window(kind, 100)
    control.on_congestion(100 * MSS, 0.0)
    control.on_timeout(50 * MSS, 1.0)
    control.on_recovery_end(2.0)
    assert control.window == MSS


@LOSS_BASED
def test_an_undone_reduction_gives_back_window_and_ssthresh(kind: Kind) -> None:
    """RFC 4015 3.2, RFC 9438 4.9; once, and not again at the end of the recovery."""
    control = with_window(kind, 100)
    threshold = control.threshold
    control.on_congestion(100 * MSS, 0.0)
    control.window = 3 * MSS
    control.on_spurious(0.1)
    assert (control.window, control.threshold) == (100 * MSS, threshold)
    control.on_recovery_end(0.2)
    assert control.window == 100 * MSS
    control.window = 3 * MSS
    control.on_spurious(0.3)
    assert control.window == 3 * MSS


@LOSS_BASED
def test_an_undone_timeout_gives_back_window_and_ssthresh(kind: Kind) -> None:
    """RFC 4015 3.2, RFC 9438 4.9.1."""
    control = with_window(kind, 100)
    threshold = control.threshold
    control.on_timeout(100 * MSS, 0.0)
    control.on_ack(sample(2 * MSS, 0.1))
    control.on_spurious(0.1)
    assert (control.window, control.threshold) == (100 * MSS, threshold)


@LOSS_BASED
def test_a_smaller_segment_size_keeps_the_number_of_segments(kind: Kind) -> None:
    """RFC 5681 3.1."""
    control = kind(MSS)
    control.set_mss(500)
    assert control.window == 10 * 500
    control.on_timeout(10 * 500, 0.0)
    control.set_mss(499)
    assert control.window == 499


# -- pauses


@LOSS_BASED
def test_a_pause_halves_the_window_for_each_timeout_that_passed(kind: Kind) -> None:
    """RFC 2861, as Linux; ssthresh remembers three quarters."""
    control = with_window(kind, 100)
    control.on_congestion(200 * MSS, 0.0)
    control.on_recovery_end(0.0)
    before = control.window
    control.on_restart(0.2, 0.2, 1.0)
    assert control.window == before
    control.on_restart(0.45, 0.2, 2.0)
    assert control.window == before // 4
    assert control.threshold == before
    control.on_restart(0.25, 0.2, 2.0)
    assert control.window == 10 * MSS
    assert control.threshold == before


@LOSS_BASED
def test_a_grown_window_leaves_three_quarters_as_ssthresh(kind: Kind) -> None:
    """RFC 2861."""
    control = kind(MSS)
    control.on_timeout(4 * MSS, 0.0)
    control.threshold = 100 * MSS
    control.on_ack(sample(159 * MSS, 0.1))
    control.window = 160 * MSS
    control.on_restart(1.0, 0.2, 2.0)
    assert (control.window, control.threshold) == (10 * MSS, 120 * MSS)


@LOSS_BASED
def test_a_long_pause_leaves_the_restart_window(kind: Kind) -> None:
    """RFC 5681 4.1: the smaller of the initial window and the present one."""
    control = with_window(kind, 100)
    control.on_restart(1e6, 0.2, 1e6)
    assert control.window == 10 * MSS
    control.on_timeout(4 * MSS, 1e6)
    control.on_restart(1e6, 0.2, 2e6)
    assert control.window == MSS


@LOSS_BASED
def test_the_first_slow_start_measures_anew_after_a_pause(kind: Kind) -> None:
    """RFC 9406 4.3: a path that became longer in the meantime is no queue."""
    control = kind(MSS)
    for rtt, number in ((0.1, 1), (0.3, 2)):
        for left in range(8):
            control.on_ack(sample(MSS, rtt=rtt, unacknowledged=number - (left < 7), send_next=number + (left == 7)))
        control.on_restart(5.0, 0.2, 5.0)
    window = control.window
    control.on_ack(sample(MSS, rtt=0.3, unacknowledged=2, send_next=3))
    assert control.window == window + MSS


# -- in a closed loop


@LOSS_BASED
def test_slow_start_ends_without_flooding_a_deep_queue(kind: Kind) -> None:
    """RFC 9406 1: standard slow start drops five times what the path holds here."""
    path = Bottleneck(kind(MSS), 12.5e6, 0.040, queue=2_000_000)
    path.run_until_slow_start_ends()
    path.run_until(path.now + 0.5)
    assert path.dropped < 1.2 * path.bandwidth_delay_product


@LOSS_BASED
@pytest.mark.parametrize("stretch", [1, 10])
def test_a_queue_as_large_as_the_path_keeps_the_link_busy(kind: Kind, stretch: int) -> None:
    """The reduction empties the queue, not the link: 10 Mbit/s, 40 ms."""
    path = Bottleneck(kind(MSS), 1.25e6, 0.040, queue=80_000, stretch=stretch)
    path.run_until(8.0)
    delivered, dropped = path.delivered, path.dropped
    path.run_until(23.0)
    assert path.delivered - delivered > 0.97 * 15 * path.rate
    assert 0 < path.dropped - dropped < 0.001 * 15 * path.rate
