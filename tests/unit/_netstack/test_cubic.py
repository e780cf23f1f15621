"""CUBIC (RFC 9438); what it shares with Reno is in test_loss_based.py."""

from __future__ import annotations

from math import cbrt

import pytest

from httpx_wireguard._netstack.congestion.cubic import ALPHA, Cubic
from httpx_wireguard._netstack.congestion.reno import Reno
from tests.control_loops import MSS, average_window, sample

RTT = 0.1


def reduced(segments: int, now: float = 0.0) -> Cubic:
    """After a loss at a window of `segments`, and the end of its recovery."""
    control = Cubic(MSS)
    control.window = segments * MSS
    control.on_congestion(segments * MSS, now)
    control.on_recovery_end(now)
    return control


class Clock:
    """Acknowledgments at their pace: the window, once per round trip, in `parts`."""

    def __init__(self, control: Cubic, now: float = 0.0, rtt: float = RTT, parts: int = 50) -> None:
        self.control, self.now, self.rtt, self.parts = control, now, rtt, parts

    def run(self, seconds: float, *, limited: bool = True) -> float:
        """Returns the window in segments."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += self.rtt / self.parts
            delivered = self.control.window // self.parts
            self.control.on_ack(sample(delivered, self.now, rtt=self.rtt, limited=limited))
        return self.control.window / MSS


def cubic(after: float, maximum: float, at_start: float) -> float:
    """RFC 9438 figure 1: C * (t - K)^3 + W_max, in segments."""
    k = cbrt((maximum - at_start) / 0.4)
    return maximum + 0.4 * (after - k) ** 3


# -- growth


def test_the_window_follows_the_cubic_function_of_time() -> None:
    """RFC 9438 4.2, 4.4, 4.5: from 700 segments, level at 1000 after 9.1 s, and up again."""
    clock = Clock(reduced(1000))
    for second in range(1, 20):
        assert clock.run(1.0) == pytest.approx(cubic(second, 1000, 700), rel=0.005)
    assert clock.control.window > 1300 * MSS


@pytest.mark.parametrize("rtt", [0.02, 0.3])
def test_the_growth_does_not_depend_on_the_round_trip(rtt: float) -> None:
    """RFC 9438 3.3."""
    assert Clock(reduced(4000), rtt=rtt).run(6.0) == pytest.approx(cubic(6, 4000, 2800), rel=0.01)


def test_one_acknowledgment_of_a_stretch_counts_as_much_as_its_parts() -> None:
    """Bytes, not acknowledgments: 45 times fewer of them make the same window."""
    assert Clock(reduced(1000), parts=16).run(5.0) == pytest.approx(Clock(reduced(1000), parts=700).run(5.0), rel=0.002)


def test_fractions_of_a_byte_add_up() -> None:
    """On the plateau one segment of ten thousand asks for less than a byte."""
    control = reduced(10_000)
    clock = Clock(control, parts=5000)
    clock.now = 19.0  # K is 19.57 s
    control.on_ack(sample(MSS, 0.0, rtt=RTT))
    control.on_ack(sample(control.window, 19.0, rtt=RTT))
    before = control.window
    clock.run(0.4)
    assert control.window > before


def test_the_window_never_grows_by_more_than_half_in_a_round_trip() -> None:
    """RFC 9438 4.2: the target's upper bound, however much time has passed."""
    control = reduced(100)
    control.on_ack(sample(0, 0.0, rtt=RTT))
    control.on_ack(sample(MSS, 0.0, rtt=RTT))
    window = control.window
    control.on_ack(sample(window, 1000.0, rtt=RTT))
    assert control.window == pytest.approx(1.5 * window, abs=1)


def test_an_acknowledgment_of_more_than_the_window_does_not_overshoot_the_target() -> None:
    control = reduced(1000)
    control.on_ack(sample(MSS, 0.0, rtt=RTT))
    control.on_ack(sample(2 * control.window, 1.0, rtt=RTT))
    assert control.window / MSS <= cubic(1.0 + RTT, 1000, 700)


def test_the_window_never_shrinks_without_a_loss() -> None:
    """RFC 9438 4.2: the target's lower bound."""
    control = reduced(1000)
    control.on_ack(sample(MSS, 0.0, rtt=RTT))
    control.window = 2000 * MSS
    control.on_ack(sample(2000 * MSS, 0.1, rtt=RTT))
    assert control.window >= 2000 * MSS


def test_one_delayed_sample_is_not_the_round_trip() -> None:
    """RFC 9438 4.1: RTT is the smoothed one."""
    outlier, regular = reduced(1000), reduced(1000)
    for control in (outlier, regular):
        control.on_ack(sample(MSS, 0.0, rtt=RTT))
    before = regular.window
    outlier.on_ack(sample(70 * MSS, RTT, rtt=3 * RTT))
    regular.on_ack(sample(70 * MSS, RTT, rtt=RTT))
    assert outlier.window - before < 1.25 * (regular.window - before)


# -- the Reno-friendly region


def test_a_small_window_grows_like_renos_equal_until_it_is_back() -> None:
    """RFC 9438 4.3: alpha_cubic, 0.53 segments a round trip, because it fell to 0.7 only."""
    clock = Clock(reduced(20), rtt=0.01, parts=14)
    assert clock.run(0.05) == pytest.approx(14 + 5 * ALPHA, abs=0.2)


def test_a_small_window_grows_by_a_segment_a_round_trip_beyond_the_last_loss() -> None:
    """RFC 9438 4.3: alpha_cubic is 1 from cwnd_prior on."""
    clock = Clock(reduced(20), rtt=0.01, parts=14)
    while clock.control.window < 20 * MSS:
        clock.run(0.01)
    assert clock.run(0.1) == pytest.approx(30, abs=0.8)


@pytest.mark.parametrize(
    ("rtt", "loss", "expected", "step"),
    [
        (0.1, 1e-2, 12, 1),
        (0.1, 1e-3, 38, 1),
        (0.1, 1e-4, 187, 4),
        (0.1, 1e-5, 1054, 40),
        (0.1, 1e-6, 5926, 400),
        (0.01, 1e-3, 38, 1),
        (0.01, 1e-4, 120, 8),
        (0.01, 1e-5, 379, 40),
    ],
)
def test_the_average_window_is_that_of_the_response_function(rtt: float, loss: float, expected: int, step: int) -> None:
    """RFC 9438 5.1, tables 1 and 2, the column of C = 0.4."""
    assert average_window(Cubic(MSS), rtt, loss, losses=20, step=step) == pytest.approx(expected, rel=0.06)


def test_in_the_reno_friendly_region_the_average_is_renos() -> None:
    """RFC 9438 3.2."""
    reno = average_window(Reno(MSS), 0.01, 1e-4, losses=20, step=4)
    assert average_window(Cubic(MSS), 0.01, 1e-4, losses=20, step=4) == pytest.approx(reno, rel=0.05)


# -- when the window is not in use


def test_time_without_need_of_the_window_does_not_count() -> None:
    """RFC 9438 4.2, 5.8."""
    clock, always = Clock(reduced(1000)), Clock(reduced(1000))
    clock.run(3.0)
    clock.run(60.0, limited=False)
    clock.run(3.0)
    assert clock.control.window == pytest.approx(always.run(6.0) * MSS, rel=0.001)


def test_a_short_pause_does_not_count() -> None:
    """RFC 9438 5.8."""
    clock, always = Clock(reduced(1000)), Clock(reduced(1000))
    clock.run(3.0)
    for _ in range(20):
        clock.now += 0.9
        clock.control.on_restart(0.9, 1.0, clock.now)
        clock.run(0.02, limited=False)  # the first answer is small
        clock.run(0.1)
    assert clock.control.window == pytest.approx(always.run(5.0) * MSS, rel=0.001)


def test_after_a_long_pause_the_window_of_before_is_the_one_to_come_back_to() -> None:
    """RFC 9438 4.3: ssthresh was set, so cwnd_prior is; below it alpha_cubic is 0.53."""
    clock = Clock(reduced(20), rtt=0.01)
    clock.run(0.5)
    clock.control.on_restart(60.0, 0.2, clock.now)
    clock.control.window = clock.control.threshold
    before = clock.control.window / MSS
    assert clock.run(0.1) == pytest.approx(before + 10 * ALPHA, abs=0.2)


def test_after_a_long_pause_the_window_comes_back_without_a_jump() -> None:
    """Slow start to three quarters, then a stage of its own: nothing from before the pause pulls at the window."""
    clock = Clock(reduced(100), rtt=0.02)
    clock.run(20.0)
    before = clock.control.window
    clock.now += 60.0
    clock.control.on_restart(60.0, 0.2, clock.now)
    assert clock.control.window == 10 * MSS
    while clock.control.window < clock.control.threshold:
        clock.run(clock.rtt / clock.parts)
    assert clock.control.threshold == before * 3 // 4
    assert clock.run(0.1) * MSS < clock.control.threshold * 1.05


# -- reductions


def test_a_loss_leaves_seven_tenths_of_the_window() -> None:
    """RFC 9438 4.6. Of the window while it is in use: a loss told late finds little in flight."""
    control = Cubic(MSS)
    control.window = 100 * MSS
    control.on_congestion(30 * MSS, 0.0)
    assert (control.window, control.threshold) == (70 * MSS, 70 * MSS)


def test_of_an_unused_window_only_what_is_in_flight_counts() -> None:
    """RFC 9438 4.6, RFC 7661 4.4.1; the plateau is there too, not at a window that was never tried."""
    control = Cubic(MSS)
    control.window = 1000 * MSS
    control.on_ack(sample(MSS, limited=False))
    control.on_congestion(20 * MSS, 0.0)
    assert (control.window, control.threshold) == (14 * MSS, 14 * MSS)
    control.on_recovery_end(0.0)
    assert Clock(control).run(2.0) < 30


def test_a_second_loss_below_the_first_makes_room_for_others() -> None:
    """RFC 9438 4.7, fast convergence: the plateau is at 0.85 of the window at the second."""
    clock = Clock(reduced(1000))
    window = clock.run(2.0)
    assert 800 < window < 900
    clock.control.on_congestion(clock.control.window, clock.now)
    clock.control.on_recovery_end(clock.now)
    for second in range(1, 10):
        assert clock.run(1.0) == pytest.approx(cubic(second, window * 0.85, window * 0.7), rel=0.005)


def test_a_second_loss_above_the_first_does_not() -> None:
    """RFC 9438 4.7."""
    control = reduced(1000)
    control.window = 1010 * MSS
    control.on_congestion(1010 * MSS, 0.0)
    control.on_recovery_end(0.0)
    assert Clock(control).run(5.0) == pytest.approx(cubic(5, 1010, 707), rel=0.005)


def test_a_timeout_leaves_one_segment_and_seven_tenths_as_ssthresh() -> None:
    """RFC 9438 4.8."""
    control = Cubic(MSS)
    control.window = 100 * MSS
    control.on_timeout(100 * MSS, 0.0)
    assert (control.window, control.threshold) == (MSS, 70 * MSS)


def test_after_a_timeout_the_plateau_is_where_congestion_avoidance_begins() -> None:
    """RFC 9438 4.8: K = 0."""
    clock = Clock(reduced(1000))
    clock.run(2.0)
    control = clock.control
    control.on_timeout(control.window, clock.now)
    control.on_ack(sample(control.threshold - MSS, clock.now + RTT, rtt=RTT))
    start = control.window / MSS
    assert control.window == control.threshold
    for second in range(1, 10):
        assert clock.run(1.0) == pytest.approx(start + max(0.4 * second**3, 10 * ALPHA * second), rel=0.01)


def test_after_hystart_the_plateau_is_where_congestion_avoidance_begins() -> None:
    """RFC 9438 4.10: W_max is undefined; and Reno's window grows by one segment a round trip from the start."""
    control = Cubic(MSS)
    control.window = control.threshold = 500 * MSS  # as slow start leaves them
    clock = Clock(control)
    for second in range(1, 10):
        assert clock.run(1.0) == pytest.approx(max(500 + 0.4 * second**3, 500 + 10 * second), rel=0.01)


# -- undone reductions


@pytest.mark.parametrize("timeout", [False, True])
def test_an_undone_reduction_leaves_the_growth_as_if_nothing_had_been(timeout: bool) -> None:
    """RFC 9438 4.9: cwnd, cwnd_prior, ssthresh, W_max, K, t_epoch and W_est, though a stage had begun meanwhile."""
    clock, undisturbed = Clock(reduced(1000)), Clock(reduced(1000))
    for each in (clock, undisturbed):
        each.run(3.0)
    control = clock.control
    if timeout:
        control.on_timeout(control.window, clock.now)
        control.window = control.threshold  # slow start is over
    else:
        control.on_congestion(control.window, clock.now)
        control.window = 5 * MSS  # PRR
        control.on_recovery_end(clock.now)
    clock.run(RTT)
    control.on_spurious(clock.now)
    undisturbed.now += RTT
    for _ in range(8):
        assert clock.run(1.0) == pytest.approx(undisturbed.run(1.0), rel=1e-6)


def test_an_undone_reduction_in_renos_region_leaves_its_estimate() -> None:
    """RFC 9438 4.9.2: W_est, and cwnd_prior, below which it grows by 0.53 segments."""
    clock, undisturbed = Clock(reduced(20), rtt=0.01), Clock(reduced(20), rtt=0.01)
    for each in (clock, undisturbed):
        each.run(0.05)
    clock.control.on_congestion(clock.control.window, clock.now)
    clock.control.on_recovery_end(clock.now)
    clock.run(0.01)
    clock.control.on_spurious(clock.now)
    undisturbed.now += 0.01
    assert clock.run(0.03) == undisturbed.run(0.03)


def test_a_reduction_found_spurious_too_late_stays() -> None:
    """RFC 9438 4.9.2: the window is larger than before it already."""
    control = reduced(100)
    clock = Clock(control, rtt=0.01)
    clock.run(10.0)
    window, threshold = control.window, control.threshold
    assert window > 100 * MSS
    control.on_spurious(clock.now)
    assert (control.window, control.threshold) == (window, threshold)


def test_a_smaller_segment_size_begins_a_stage_of_its_own() -> None:
    """The window of before would come back in one round trip."""
    clock = Clock(reduced(1000))
    clock.run(20.0)
    clock.control.set_mss(900)
    window = clock.control.window
    assert window > clock.control.threshold
    clock.run(RTT)
    assert clock.control.window < 1.01 * window


def test_a_smaller_segment_size_cannot_be_undone() -> None:
    control = reduced(1000)
    control.set_mss(500)
    window = control.window
    control.on_spurious(1.0)
    assert control.window == window
