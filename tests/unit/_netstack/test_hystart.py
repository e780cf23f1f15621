"""HyStart++ (RFC 9406): slow start ends when the smallest round trip of a round has grown."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion.hystart import HyStart
from tests.control_loops import MSS, sample

BASE = 0.080  # seconds; the threshold is an eighth of it, 10 ms
DELAYED = 0.091


class Rounds:
    """Round trips of a slow start, each acknowledged by as many segments as there are times given."""

    def __init__(self) -> None:
        self.start = HyStart()
        self._number = 0

    def round_trip(self, *rtts: float | None, delivered: int = MSS) -> list[int]:
        """Returns how each acknowledgment grew the window."""
        self._number += 1
        growth = []
        for left, rtt in enumerate(rtts, 1 - len(rtts)):
            last = left == 0
            growth.append(
                self.start.on_ack(
                    sample(
                        delivered,
                        rtt=rtt,
                        unacknowledged=self._number * 100 - (not last),
                        send_next=(self._number + last) * 100,
                    )
                )
            )
        return growth

    @property
    def conservative(self) -> bool:
        """Another whole round at the last delay grows by a quarter."""
        return self.round_trip(None) == [MSS // 4]


def delayed(before: float = BASE, after: float = DELAYED, samples: int = 8) -> Rounds:
    rounds = Rounds()
    rounds.round_trip(*[before] * 8)
    rounds.round_trip(*[after] * samples)
    return rounds


def test_slow_start_grows_by_what_was_delivered() -> None:
    """RFC 9406 4.2."""
    rounds = Rounds()
    assert rounds.round_trip(*[BASE] * 8) == [MSS] * 8
    assert rounds.round_trip(*[BASE] * 16) == [MSS] * 16


def test_one_acknowledgment_of_64_kilobytes_grows_the_window_by_all_of_it() -> None:
    """RFC 9406 4.3: L is infinite for a sender that paces."""
    assert Rounds().round_trip(BASE, delivered=65_000) == [65_000]


def test_a_delay_slows_the_growth_to_a_quarter_from_the_next_acknowledgment_on() -> None:
    """RFC 9406 4.2: CSS_GROWTH_DIVISOR."""
    rounds = Rounds()
    rounds.round_trip(*[BASE] * 8)
    assert rounds.round_trip(*[DELAYED] * 10) == [MSS] * 8 + [MSS // 4] * 2
    assert rounds.round_trip(*[DELAYED] * 2) == [MSS // 4] * 2


def test_seven_samples_are_too_few() -> None:
    """RFC 9406 4.2: N_RTT_SAMPLE."""
    assert not delayed(samples=7).conservative
    assert delayed(samples=8).conservative


def test_rounds_of_a_few_stretches_never_slow_down() -> None:
    """One acknowledgment for 64 KB: three samples a round judge nothing, however long the round trips become."""
    rounds = Rounds()
    for number in range(10):
        assert rounds.round_trip(*[BASE + number * 0.05] * 3, delivered=65_000) == [65_000] * 3


def test_an_acknowledgment_without_a_round_trip_is_no_sample() -> None:
    rounds = Rounds()
    rounds.round_trip(*[BASE] * 8)
    assert rounds.round_trip(*[DELAYED] * 7, None, None) == [MSS] * 9
    assert not rounds.conservative


@pytest.mark.parametrize(("before", "threshold"), [(0.001, 0.004), (0.080, 0.010), (1.0, 0.016)])
def test_the_threshold_is_an_eighth_between_4_and_16_milliseconds(before: float, threshold: float) -> None:
    """RFC 9406 4.2: RttThresh."""
    assert delayed(before, before + threshold + 1e-6).conservative
    assert not delayed(before, before + threshold - 1e-6).conservative


def test_the_smallest_round_trip_of_the_round_counts() -> None:
    rounds = Rounds()
    rounds.round_trip(*[BASE] * 8)
    rounds.round_trip(BASE, *[DELAYED] * 20)
    assert not rounds.conservative


def test_a_round_is_compared_with_the_one_before_it() -> None:
    """RFC 9406 4.2: lastRoundMinRTT. A slow rise is no queue of ours."""
    rounds = Rounds()
    for number in range(10):
        rounds.round_trip(*[BASE + number * 0.009] * 8)
    assert not rounds.conservative


def test_the_first_round_has_nothing_to_compare() -> None:
    rounds = Rounds()
    rounds.round_trip(*[BASE] * 4, *[1.0] * 8)
    assert not rounds.conservative


def test_slow_start_resumes_when_the_delay_was_jitter() -> None:
    """RFC 9406 4.2: below cssBaselineMinRtt."""
    rounds = delayed()
    assert rounds.round_trip(*[DELAYED - 0.001] * 9) == [MSS // 4] * 8 + [MSS]
    assert not rounds.conservative


def test_seven_samples_do_not_resume_it() -> None:
    rounds = delayed()
    rounds.round_trip(*[BASE] * 7)
    assert rounds.conservative


def test_slow_start_ends_after_five_conservative_rounds() -> None:
    """RFC 9406 4.2: CSS_ROUNDS, the round in which it began included."""
    rounds = delayed()
    for _ in range(3):
        rounds.round_trip(*[DELAYED] * 8)
    assert not rounds.start.finished
    rounds.round_trip(*[DELAYED] * 8)
    assert rounds.start.finished


def test_resuming_begins_the_count_of_conservative_rounds_anew() -> None:
    rounds = delayed()
    for _ in range(3):
        rounds.round_trip(*[DELAYED] * 8)
    rounds.round_trip(*[BASE] * 8)
    rounds.round_trip(*[DELAYED] * 8)
    for _ in range(3):
        rounds.round_trip(*[DELAYED] * 8)
        assert not rounds.start.finished
    rounds.round_trip(*[DELAYED] * 8)
    assert rounds.start.finished
