"""The retransmission timeout (RFC 6298)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.rtt import RttEstimator


def estimator(*samples: float) -> RttEstimator:
    rtt = RttEstimator()
    for sample in samples:
        rtt.on_sample(sample)
    return rtt


def test_the_first_timeout_is_one_second() -> None:
    """RFC 6298 2.1."""
    assert RttEstimator().timeout == 1.0


def test_the_first_sample_sets_the_estimate_and_half_of_it_as_variance() -> None:
    """RFC 6298 2.2: RTO = SRTT + 4 * RTTVAR = 3 R."""
    rtt = estimator(0.5)
    assert (rtt.smoothed, rtt.variance) == (0.5, 0.25)
    assert rtt.timeout == pytest.approx(1.5)


def test_later_samples_move_variance_first_and_with_the_old_estimate() -> None:
    """RFC 6298 2.3: beta 1/4, alpha 1/8."""
    rtt = estimator(0.4, 0.8)
    assert rtt.variance == pytest.approx(0.75 * 0.2 + 0.25 * 0.4)
    assert rtt.smoothed == pytest.approx(0.875 * 0.4 + 0.125 * 0.8)
    assert rtt.timeout == pytest.approx(0.45 + 4 * 0.25)


@pytest.mark.parametrize("path", [0.001, 0.5])
def test_a_steady_path_still_leaves_a_fifth_of_a_second_for_a_delayed_acknowledgment(path: float) -> None:
    """Deviates from RFC 6298 2.4 as Linux does."""
    assert estimator(*[path] * 200).timeout == pytest.approx(path + 0.2)


def test_progress_leaves_one_doubling() -> None:
    rtt = estimator(1.0)
    for _ in range(5):
        rtt.back_off()
    rtt.relax()
    assert rtt.timeout == pytest.approx(6.0)
    rtt.relax()
    assert rtt.backed_off


def test_each_backoff_doubles_the_timeout() -> None:
    """RFC 6298 5.5."""
    rtt = RttEstimator()
    timeouts = []
    for _ in range(3):
        rtt.back_off()
        timeouts.append(rtt.timeout)
    assert timeouts == [2.0, 4.0, 8.0]
    assert rtt.backed_off


def test_the_timeout_never_exceeds_two_minutes() -> None:
    """RFC 6298 2.5: a maximum of at least 60 seconds."""
    rtt = estimator(1.0)
    for _ in range(50):
        rtt.back_off()
    assert rtt.timeout == 120.0


def test_a_sample_ends_the_backoff() -> None:
    """RFC 6298 5.7 note: a new measurement may collapse the timeout."""
    rtt = estimator(0.5)
    rtt.back_off()
    rtt.on_sample(0.5)
    assert rtt.timeout < 1.5
    assert not rtt.backed_off


def test_a_handshake_without_measurement_starts_data_at_three_seconds() -> None:
    """RFC 6298 5.7."""
    rtt = RttEstimator()
    rtt.back_off()
    rtt.fall_back()
    assert rtt.timeout == 3.0
    rtt.back_off()
    assert rtt.timeout == 6.0


def test_a_measured_handshake_does_not_fall_back() -> None:
    rtt = estimator(0.1)
    rtt.fall_back()
    assert rtt.timeout == pytest.approx(0.3)


def test_the_smallest_and_the_latest_sample_are_known() -> None:
    rtt = estimator(0.3, 0.1, 0.2)
    assert (rtt.minimum, rtt.latest) == (0.1, 0.2)
