"""Delivery rate samples (draft-ietf-ccwg-bbr 4.1)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.congestion.control import AckSample
from httpx_wireguard._netstack.delivery_rate import DeliveryRate
from httpx_wireguard._netstack.scoreboard import Delivery, Transmission
from tests.senders import MSS, Unpaced, ack, send, sender_with


class Listener(Unpaced):
    """Keeps what it is told."""

    samples: list[AckSample]

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self.samples = []
        self.lost: list[tuple[int, int, int, bool]] = []

    def on_ack(self, sample: AckSample) -> None:
        self.samples.append(sample)
        super().on_ack(sample)

    def on_lost(
        self, start: int, length: int, tx_in_flight: int, lost_since: int, app_limited: bool, now: float
    ) -> None:
        self.lost.append((length, tx_in_flight, lost_since, app_limited))


def sent(rate: DeliveryRate, start: int, in_flight: int, now: float) -> Transmission:
    one = Transmission(start, start + MSS)
    rate.on_sent(one, in_flight, now)
    return one


def delivered(rate: DeliveryRate, now: float, *transmissions: Transmission, minimum: float = 0.0) -> float | None:
    delivery = Delivery(None, 0.0, now)
    for one in transmissions:
        delivery.add(one, one.end, 0, None)
    return rate.on_delivered(delivery, minimum, now)


# -- one sample


def test_a_sample_is_what_was_delivered_over_the_time_since_the_last_delivery_before_the_sending() -> None:
    """4.1.1.2.2: ack_elapsed."""
    rate = DeliveryRate()
    first, second = sent(rate, 0, 0, 1.0), sent(rate, MSS, MSS, 1.0)
    assert delivered(rate, 1.1, first) == pytest.approx(MSS / 0.1)
    assert delivered(rate, 1.2, second) == pytest.approx(2 * MSS / 0.2)


def test_acknowledgments_that_come_in_a_lump_do_not_count_faster_than_the_sending() -> None:
    """4.1.1.2.3: send_elapsed, the longer of the two."""
    rate = DeliveryRate()
    first = sent(rate, 0, 0, 1.0)
    later = [sent(rate, number * MSS, number * MSS, 1.0 + number / 10) for number in range(1, 5)]
    delivered(rate, 1.45, first)
    assert delivered(rate, 1.45, *later) == pytest.approx(5 * MSS / 0.45)
    rate = DeliveryRate()
    first = sent(rate, 0, 0, 1.0)
    delivered(rate, 1.1, first, sent(rate, MSS, MSS, 1.05))
    one, other = sent(rate, 2 * MSS, MSS, 1.2), sent(rate, 3 * MSS, 2 * MSS, 1.9)
    assert delivered(rate, 1.91, one, other) == pytest.approx(2 * MSS / 0.85)


def test_a_pause_is_not_part_of_the_next_sample() -> None:
    """4.1.2.2: with nothing in flight the interval begins at the sending."""
    rate = DeliveryRate()
    delivered(rate, 1.1, sent(rate, 0, 0, 1.0))
    assert delivered(rate, 9.1, sent(rate, MSS, 0, 9.0)) == pytest.approx(MSS / 0.1)


def test_with_something_in_flight_the_interval_goes_on() -> None:
    """4.1.2.2: only `in_flight` of nothing begins it anew."""
    rate = DeliveryRate()
    first, second = sent(rate, 0, 0, 1.0), sent(rate, MSS, MSS, 1.05)
    delivered(rate, 1.1, first)
    delivered(rate, 1.15, second)
    third = sent(rate, 2 * MSS, 1, 1.2)
    assert (third.first_sent_at, third.delivered_at, third.delivered) == (1.05, 1.15, 2 * MSS)


def test_an_interval_below_the_smallest_round_trip_is_no_sample() -> None:
    """4.1.2.3: it answers an earlier transmission."""
    rate = DeliveryRate()
    one = sent(rate, 0, 0, 1.0)
    assert delivered(rate, 1.05, one, minimum=0.1) is None
    assert rate.delivered == MSS
    assert delivered(rate, 2.1, sent(rate, MSS, 0, 2.0), minimum=0.1) is not None


def test_no_time_is_no_sample() -> None:
    rate = DeliveryRate()
    assert delivered(rate, 1.0, sent(rate, 0, 0, 1.0)) is None


def test_without_a_transmission_to_ask_there_is_no_sample() -> None:
    """4.1.2.3: what may answer an earlier transmission is counted, not sampled."""
    rate = DeliveryRate()
    delivery = Delivery(None, 0.0, 1.0)
    delivery.length = MSS
    assert rate.on_delivered(delivery, 0.0, 1.0) is None
    assert rate.delivered == MSS


def test_the_newest_transmission_is_the_one_asked() -> None:
    """4.1.2.3: is_newest_packet."""
    rate = DeliveryRate()
    first, second = sent(rate, 0, 0, 1.0), sent(rate, MSS, MSS, 1.3)
    delivery = Delivery(None, 0.0, 1.4)
    for one in (second, first):
        delivery.add(one, one.end, 0, None)
    assert delivery.newest is second


# -- application limits


def test_what_is_sent_while_the_application_offers_too_little_is_marked_until_it_is_delivered() -> None:
    """4.1.2.4."""
    rate = DeliveryRate()
    first = sent(rate, 0, 0, 1.0)
    rate.app_limited_until = rate.delivered + MSS
    second = sent(rate, MSS, MSS, 1.0)
    delivered(rate, 1.1, first)
    third = sent(rate, 2 * MSS, MSS, 1.1)
    delivered(rate, 1.1, second)
    fourth = sent(rate, 3 * MSS, MSS, 1.1)
    assert [one.app_limited for one in (first, second, third, fourth)] == [False, True, True, False]


def test_a_writer_with_no_more_limits() -> None:
    """4.1.2.4: nothing to send, and room in the window."""
    sender = sender_with(2 * MSS, make_control=Listener)
    send(sender, 0.0)
    assert sender.rate.app_limited_until == 2 * MSS
    sender.queue.append(bytes(20 * MSS))
    send(sender, 0.0)
    ack(sender, 2, 0.1)
    ack(sender, 3, 0.1)
    control = sender.congestion
    assert isinstance(control, Listener)
    assert [sample.app_limited for sample in control.samples] == [False, True]


def test_a_writer_that_filled_the_window_and_stopped_limits_what_it_writes_later() -> None:
    """4.1.2.4: the acknowledgments made room, and nothing used it."""
    sender = sender_with(10 * MSS, make_control=Listener)
    send(sender, 0.0)
    assert sender.rate.app_limited_until == 0
    ack(sender, 5, 0.1)
    sender.queue.append(bytes(MSS))
    send(sender, 0.15)
    assert sender.board.transmissions[-1].app_limited


def test_a_full_window_is_no_limit_of_the_application() -> None:
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    ack(sender, 5, 0.1)
    send(sender, 0.1)
    assert sender.rate.app_limited_until == 0


def test_lost_data_that_waits_is_no_limit_of_the_application() -> None:
    """4.1.2.4: C.lost_out <= C.retrans_out."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    sender.on_timeout(1.0)
    send(sender, 1.0)
    assert sender.board.lost
    assert sender.rate.app_limited_until == 0


def test_a_limit_before_anything_was_sent_marks_the_first() -> None:
    """4.1.2.4: C.app_limited is 1 at least, or it would be none."""
    rate = DeliveryRate()
    rate.app_limited_until = 1
    first = sent(rate, 0, 0, 1.0)
    delivered(rate, 1.1, first)
    assert [first.app_limited, sent(rate, MSS, 0, 1.1).app_limited] == [True, False]


# -- what a congestion control is told


def test_what_was_lost_before_the_sending_does_not_count() -> None:
    """4.1.2.2: P.lost."""
    rate = DeliveryRate()
    rate.lost = 500
    assert sent(rate, 0, 0, 1.0).lost_before == 500


def test_a_loss_is_told_with_the_flight_in_which_it_was_sent() -> None:
    """4.1.2.2, 4.1.2.3: P.tx_in_flight, P.lost."""
    sender = sender_with(40 * MSS, make_control=Listener)
    send(sender, 5.0)
    ack(sender, 0, 5.1, (1, 2), (3, 10))
    control = sender.congestion
    assert isinstance(control, Listener)
    assert control.lost == [(MSS, 10 * MSS, MSS, False), (MSS, 10 * MSS, 2 * MSS, False)]
    (sample,) = control.samples
    assert (sample.lost, sample.delivered, sample.acknowledged) == (2 * MSS, 8 * MSS, 0)
    assert (sample.prior_in_flight, sample.in_flight) == (10 * MSS, 0)
    assert (sample.tx_in_flight, sample.lost_since) == (10 * MSS, 2 * MSS)
    assert sample.recovering
    assert sample.rtt == pytest.approx(0.1)
    assert sample.delivery_rate == pytest.approx(8 * MSS / 0.1)
    assert (sample.total_delivered, sample.prior_delivered) == (8 * MSS, 0)


def test_a_retransmission_is_in_flight_once() -> None:
    """P.tx_in_flight: what was in flight with it."""
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 4))
    send(sender, 0.1)
    assert sender.board.transmissions[0].in_flight == sender.size == 7 * MSS
