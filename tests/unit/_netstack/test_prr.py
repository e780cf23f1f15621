"""Proportional Rate Reduction (RFC 9937)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion.prr import Prr

MSS = 1000


class Recovery:
    """A sender that always has data, whole segments, and no other limit than PRR."""

    def __init__(self, threshold: int, recover_flight: int, in_flight: int) -> None:
        self.prr = Prr(threshold * MSS, recover_flight * MSS)
        self.in_flight = in_flight * MSS

    def acknowledge(self, delivered: int = 1, *, lost: int = 0, advanced: bool = False) -> int:
        """Returns how many segments were sent."""
        self.in_flight -= (delivered + lost) * MSS
        window = self.prr.on_ack(delivered * MSS, self.in_flight, lost * MSS, advanced, MSS)
        sent = max(window - self.in_flight, 0) // MSS
        self.in_flight += sent * MSS
        self.prr.on_sent(sent * MSS)
        return sent


def test_a_single_loss_halves_the_flight_evenly() -> None:
    """RFC 9937 8: 20 segments, the first lost; limited transmit sent two on the first two duplicates."""
    recovery = Recovery(threshold=10, recover_flight=20, in_flight=20)
    sent = [recovery.acknowledge(lost=1)]  # the third duplicate
    sent += [recovery.acknowledge() for _ in range(18)]
    assert sent[:15] == [1, 0, 0] + [1, 0] * 6  # the first a whole segment, though half of one was due
    assert recovery.in_flight == 10 * MSS


@pytest.mark.parametrize("threshold", [70, 50, 35])
def test_the_flight_ends_at_ssthresh_whatever_the_factor(threshold: int) -> None:
    """RFC 9937 7: never a pause of half a round trip, never a burst."""
    recovery = Recovery(threshold, recover_flight=100, in_flight=100)
    sent = [recovery.acknowledge(lost=1)] + [recovery.acknowledge() for _ in range(98)]
    assert recovery.in_flight == threshold * MSS
    assert max(sent) == 1
    assert sum(sent[:50]) == pytest.approx(threshold / 2, abs=1)


def test_a_stretch_of_acknowledgments_lets_go_what_its_parts_would() -> None:
    recovery = Recovery(threshold=70, recover_flight=100, in_flight=100)
    assert recovery.acknowledge(lost=1) == 1
    assert recovery.acknowledge(19) == 13  # ceil(20 * 0.7) less the first


def test_fractions_of_a_segment_add_up() -> None:
    """RFC 9937 6.2: from the totals, rounded up."""
    prr = Prr(7 * MSS, 10 * MSS)
    prr.on_sent(MSS)
    assert prr.on_ack(MSS, 8 * MSS, 0, False, MSS) == 8 * MSS  # 700 of the 1000 sent already
    assert prr.on_ack(MSS, 8 * MSS, 0, False, MSS) == 8 * MSS + 400
    assert prr.on_ack(1, 8 * MSS, 0, False, MSS) == 8 * MSS + 401  # 1400.7, rounded up


def test_the_fast_retransmit_goes_whatever_the_flight() -> None:
    """RFC 9937 6.2: a hundred lost with the first, and the one byte delivered asks for less than a segment."""
    prr = Prr(10 * MSS, 200 * MSS)
    assert prr.on_ack(1, 99 * MSS, 100 * MSS, False, MSS) == 100 * MSS
    prr.on_sent(MSS)
    assert prr.on_ack(1, 99 * MSS, 0, False, MSS) == 99 * MSS


def test_a_recovery_begun_by_a_timer_may_send_one_segment() -> None:
    """RFC 8985 6.3: the reordering timer declares a loss; nothing was delivered."""
    prr = Prr(70 * MSS, 100 * MSS)
    assert prr.on_ack(0, 90 * MSS, 10 * MSS, False, MSS) == 91 * MSS
    prr.on_sent(MSS)
    assert prr.on_ack(0, 91 * MSS, 0, False, MSS) == 91 * MSS


def test_without_delivery_the_window_stays_and_what_is_declared_lost_makes_room() -> None:
    """RFC 9937 6.2: DeliveredData is 0."""
    prr = Prr(70 * MSS, 100 * MSS)
    assert prr.on_ack(MSS, 98 * MSS, MSS, False, MSS) == 99 * MSS
    prr.on_sent(MSS)
    assert prr.on_ack(0, 89 * MSS, 10 * MSS, False, MSS) == 99 * MSS


def test_many_losses_are_sent_again_as_fast_as_data_arrives() -> None:
    """RFC 9937 6.2, PRR-CRB: below ssthresh, and SND.UNA stands."""
    recovery = Recovery(threshold=10, recover_flight=20, in_flight=20)
    assert [recovery.acknowledge(lost=15)] + [recovery.acknowledge() for _ in range(4)] == [1] * 5
    assert recovery.in_flight == 5 * MSS


def test_what_was_not_sent_then_may_be_sent_later() -> None:
    """RFC 9937 6.2, PRR-CRB: prr_delivered - prr_out."""
    prr = Prr(10 * MSS, 20 * MSS)
    assert prr.on_ack(3 * MSS, 2 * MSS, 15 * MSS, False, MSS) == 5 * MSS
    assert prr.on_ack(MSS, MSS, 0, False, MSS) == 5 * MSS
    prr.on_sent(4 * MSS)
    assert prr.on_ack(MSS, 4 * MSS, 0, False, MSS) == 5 * MSS


def test_progress_without_new_losses_is_slow_start() -> None:
    """RFC 9937 6.2, PRR-SSRB: SafeACK."""
    recovery = Recovery(threshold=10, recover_flight=20, in_flight=20)
    recovery.acknowledge(lost=15)
    assert [recovery.acknowledge(advanced=True) for _ in range(4)] == [2] * 4
    assert recovery.acknowledge(advanced=True, lost=1) == 1
    assert recovery.acknowledge(advanced=False) == 1


def test_catching_up_stops_at_ssthresh() -> None:
    """RFC 9937 6.2."""
    recovery = Recovery(threshold=10, recover_flight=20, in_flight=20)
    recovery.acknowledge(lost=15)
    for _ in range(40):
        recovery.acknowledge(advanced=True)
        assert recovery.in_flight <= 10 * MSS
    assert recovery.in_flight == 10 * MSS


def test_what_was_sent_beyond_the_limit_is_not_a_negative_window() -> None:
    prr = Prr(10 * MSS, 20 * MSS)
    prr.on_sent(5 * MSS)
    assert prr.on_ack(MSS, 15 * MSS, 0, False, MSS) == 15 * MSS
