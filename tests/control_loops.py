"""A congestion control in a closed loop: one flow that always has data, in virtual time, without segments."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from httpx_wireguard._netstack.congestion.control import AckSample, CongestionControl
from httpx_wireguard._netstack.congestion.prr import Prr

MSS = 1000


def sample(
    delivered: int,
    now: float = 0.0,
    *,
    unacknowledged: int = 0,
    send_next: int = 0,
    rtt: float | None = None,
    limited: bool = True,
    recovering: bool = False,
    lost: int = 0,
) -> AckSample:
    """An acknowledgment as a loss-based control sees it; the rate sample is left out."""
    return AckSample(
        now=now,
        unacknowledged=unacknowledged,
        next=send_next,
        acknowledged=delivered,
        delivered=delivered,
        lost=lost,
        prior_in_flight=0,
        in_flight=0,
        rtt=rtt,
        recovering=recovering,
        cwnd_limited=limited,
        total_delivered=0,
        prior_delivered=0,
        delivery_rate=None,
        app_limited=False,
        tx_in_flight=0,
        lost_since=0,
        selective=True,
    )


def average_window(control: CongestionControl, rtt: float, loss: float, losses: int, step: int = 1) -> float:
    """The deterministic loss model of RFC 9438 5: every 1/`loss`-th segment is lost, and recovery takes no time.

    Acknowledgments come evenly over the round trip, one for `step` segments. The first half of the `losses` lets the
    control settle; returns segments per round trip over the second half.
    """
    now = start = 0.0
    arrived = 0
    control.on_congestion(control.window, now)  # no slow start
    control.on_recovery_end(now)
    for index in range(losses):
        if index == losses // 2:
            start, arrived = now, 0
        left = round(1 / loss)
        while left > 0:
            now += rtt * step * MSS / control.window
            control.on_ack(sample(step * MSS, now, rtt=rtt))
            left -= step
            arrived += step
        control.on_congestion(control.window, now)
        control.on_recovery_end(now)
    return arrived * rtt / (now - start)


@dataclass(slots=True)
class _Segment:
    end: int
    sent_at: float
    acknowledged_at: float
    dropped: bool


class Bottleneck:
    """A link of `rate` bytes a second behind a queue of `queue` bytes, `rtt` seconds there and back when empty.

    One acknowledgment comes for `stretch` segments, or for all that is in flight. The sender paces as Linux does, at
    twice the window per round trip in slow start and 1.2 times after it. A dropped segment is missed when its turn
    comes; sending it again is sending anything, so that losing it again is a new congestion event (RFC 5681 4.3).
    """

    def __init__(self, control: CongestionControl, rate: float, rtt: float, queue: int, stretch: int = 1) -> None:
        self.control = control
        self.rate, self.rtt, self.queue, self.stretch = rate, rtt, queue, stretch
        self.now = 0.0
        self.delivered = 0  # bytes, as `dropped`
        self.dropped = 0
        self.in_flight = 0
        self._segments: deque[_Segment] = deque()
        self._next = 0
        self._free_at = 0.0  # the queue is empty
        self._pace_at = 0.0
        self._smoothed = rtt
        self._prr: Prr | None = None
        self._recovery_point = 0

    @property
    def bandwidth_delay_product(self) -> float:
        return self.rate * self.rtt

    def run_until(self, end: float) -> None:
        while self.now < end:
            if self.in_flight + MSS <= self.control.window and self._pace_at <= self._next_acknowledgment():
                self._send()
            else:
                self._acknowledge()

    def run_until_slow_start_ends(self) -> None:
        while self.control.window < self.control.threshold:
            self.run_until(self.now + 1e-9)

    def _next_acknowledgment(self) -> float:
        if not self._segments:
            return float("inf")
        last = self._segments[min(self.stretch, len(self._segments)) - 1]
        return max(last.acknowledged_at, self._segments[0].acknowledged_at)

    def _send(self) -> None:
        self.now = now = max(self.now, self._pace_at)
        slow_start = self.control.window < self.control.threshold and self._prr is None
        self._pace_at = now + MSS * self._smoothed / (self.control.window * (2.0 if slow_start else 1.2))
        self._next += MSS
        self.in_flight += MSS
        if self._prr is not None:
            self._prr.on_sent(MSS)
        dropped = (self._free_at - now) * self.rate > self.queue
        if not dropped:
            self._free_at = max(self._free_at, now) + MSS / self.rate
        self._segments.append(_Segment(self._next, now, max(self._free_at, now) + self.rtt, dropped))

    def _acknowledge(self) -> None:
        self.now = self._next_acknowledgment()
        taken = [self._segments.popleft() for _ in range(min(self.stretch, len(self._segments)))]
        delivered = sum(MSS for segment in taken if not segment.dropped)
        lost = len(taken) * MSS - delivered
        prior = self.in_flight
        self.in_flight -= len(taken) * MSS
        self.delivered += delivered
        self.dropped += lost
        arrived = [segment for segment in taken if not segment.dropped]
        rtt = self.now - arrived[-1].sent_at if arrived else None
        if rtt is not None:
            self._smoothed += (rtt - self._smoothed) / 8
        una = taken[-1].end
        if self._prr is not None and una >= self._recovery_point:
            self._prr = None
            self.control.on_recovery_end(self.now)
        if lost and self._prr is None:
            self.control.on_congestion(prior, self.now)
            self._prr = Prr(self.control.threshold, prior)
            self._recovery_point = self._next
        self.control.on_ack(
            sample(
                delivered,
                self.now,
                unacknowledged=una,
                send_next=self._next,
                rtt=rtt,
                recovering=self._prr is not None,
                lost=lost,
            )
        )
        if self._prr is not None:
            self.control.window = self._prr.on_ack(delivered, self.in_flight, lost, not lost, MSS)
