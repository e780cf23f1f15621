"""One flow through one bottleneck, in virtual time: what a congestion control meets, without a stack around it.

The flow paces and fills its window exactly as the control says, has a selective acknowledgment for everything, and
reports the samples of draft-ietf-ccwg-bbr-06 4.1. Nothing is reordered, so what a later segment overtook is lost.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from math import ceil, inf
from statistics import median

from httpx_wireguard._netstack.congestion.control import AckSample, CongestionControl

QUANTUM_TIME = 0.001  # seconds' worth of a burst, at most QUANTUM_LIMIT bytes
QUANTUM_LIMIT = 65536
TIMEOUT = 1.0  # seconds; for the case that a whole flight is lost


@dataclass(slots=True)
class Transmission:
    """One segment sent, with the P of draft-ietf-ccwg-bbr-06 4.1.2.1.2."""

    number: int
    sent: float
    first_sent: float
    delivered: int
    delivered_time: float
    lost: int
    in_flight: int
    app_limited: bool


class Flow:
    """A flow with endless data, or with what `offer` gives it. Rates in bytes a second, volumes in bytes.

    `acknowledge_every` is how long the far side lets data wait for an acknowledgment of all of it.
    """

    def __init__(
        self,
        control: CongestionControl,
        *,
        rate: float,
        rtt: float,
        buffer: float,
        loss: float = 0.0,
        acknowledge_every: float = 0.0,
        endless: bool = True,
        mss: int = 1420,
    ) -> None:
        self.control = control
        self.rate = rate
        self.rtt = rtt
        self.buffer = buffer
        self.loss = loss
        self.now = 0.0
        self.delivered = 0
        self.lost = 0
        self.in_flight = 0
        self.history: list[tuple[float, int, int]] = []  # time, delivered, in flight; after each acknowledgment
        self._every = acknowledge_every
        self._mss = mss
        self._offered: float = inf if endless else 0.0
        self._random = random.Random(1)
        self._outstanding: deque[Transmission] = deque()
        self._arrivals: deque[tuple[float, Transmission]] = deque()  # acknowledged when
        self._number = 0
        self._busy_until = 0.0
        self._next_send = 0.0
        self._first_sent = self._delivered_time = self._last_sent = 0.0
        self._app_limited_until = 0
        self._window_limited_until = 0
        self._recovery_point: int | None = None
        self._shortest = inf

    def offer(self, length: float) -> None:
        self._offered += length

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        while True:
            acknowledged = self._arrivals[0][0] if self._arrivals else inf
            can_send = self._offered >= self._mss and self.in_flight + self._mss <= self.control.window
            now = min(acknowledged, max(self._next_send, self.now) if can_send else inf)
            if now == inf and self.in_flight:
                self._time_out()
                continue
            if now > until:
                break
            self.now = now
            if acknowledged <= now:
                self._acknowledge()
            self._transmit()
        self.now = until

    def throughput(self, start: float, end: float) -> float:
        """Bytes a second that arrived between two times."""
        before = max((delivered for time, delivered, _ in self.history if time <= start), default=0)
        return (max(delivered for time, delivered, _ in self.history if time <= end) - before) / (end - start)

    def median_in_flight(self, start: float, end: float) -> float:
        return median(in_flight for time, _, in_flight in self.history if start <= time <= end)

    # -- sending

    def _transmit(self) -> None:
        if self.now < self._next_send:
            return
        pace = self.control.pacing_rate or 2 * self.control.window / self.rtt
        burst = max(min(pace * QUANTUM_TIME, QUANTUM_LIMIT), 2 * self._mss)
        sent = 0
        while self._offered >= self._mss and sent + self._mss <= burst:
            if self.in_flight + self._mss > self.control.window:
                self._window_limited_until = self.delivered + self.in_flight
                break
            if not self.in_flight and self._last_sent:
                self.control.on_restart(self.now - self._last_sent, TIMEOUT, self.now)
            self._send_segment()
            sent += self._mss
        if self._offered < self._mss and self.in_flight < self.control.window:
            self._app_limited_until = self.delivered + max(self.in_flight, 1)
        self._next_send = self.now + sent / pace

    def _send_segment(self) -> None:
        """OnPacketSent (4.1.2.2), and the way through the bottleneck."""
        if not self.in_flight:
            self._first_sent = self._delivered_time = self.now
        self._offered -= self._mss
        self.in_flight += self._mss
        segment = Transmission(
            self._number,
            self.now,
            self._first_sent,
            self.delivered,
            self._delivered_time,
            self.lost,
            self.in_flight,
            self._app_limited_until > 0,
        )
        self._number += 1
        self._last_sent = self.now
        self._outstanding.append(segment)
        if (self._busy_until - self.now) * self.rate + self._mss > self.buffer or self._random.random() < self.loss:
            return
        self._busy_until = max(self._busy_until, self.now) + self._mss / self.rate
        arrival = self._busy_until + self.rtt
        if self._every:
            arrival = ceil(arrival / self._every) * self._every
        self._arrivals.append((arrival, segment))

    # -- acknowledgments

    def _acknowledge(self) -> None:
        """UpdateRateSample and GenerateRateSample (4.1.2.3), then what was overtaken."""
        prior_in_flight, delivered_before, lost_before = self.in_flight, self.delivered, self.lost
        arrived: list[Transmission] = []
        while self._arrivals and self._arrivals[0][0] <= self.now:
            arrived.append(self._arrivals.popleft()[1])
        newest = arrived[-1]
        self.delivered += len(arrived) * self._mss
        self.in_flight -= len(arrived) * self._mss
        self._delivered_time = self.now
        self._first_sent = newest.sent
        if self.delivered > self._app_limited_until:
            self._app_limited_until = 0
        self._detect_losses({segment.number for segment in arrived}, newest.number)
        recovered = self._recovery_point is not None and newest.number >= self._recovery_point
        self.control.on_ack(self._sample(newest, prior_in_flight, delivered_before, lost_before))
        if recovered:
            self._recovery_point = None
            self.control.on_recovery_end(self.now)
        self.history.append((self.now, self.delivered, self.in_flight))

    def _sample(self, newest: Transmission, prior_in_flight: int, delivered: int, lost: int) -> AckSample:
        interval = max(newest.sent - newest.first_sent, self.now - newest.delivered_time)
        rtt = self.now - newest.sent
        self._shortest = min(self._shortest, rtt)
        volume = self.delivered - newest.delivered
        return AckSample(
            now=self.now,
            unacknowledged=(newest.number + 1) * self._mss,
            next=self._number * self._mss,
            acknowledged=self.delivered - delivered,
            delivered=self.delivered - delivered,
            lost=self.lost - lost,
            prior_in_flight=prior_in_flight,
            in_flight=self.in_flight,
            rtt=rtt,
            recovering=self._recovery_point is not None,
            cwnd_limited=self.delivered <= self._window_limited_until,
            total_delivered=self.delivered,
            prior_delivered=newest.delivered,
            delivery_rate=volume / interval if interval >= self._shortest else None,
            app_limited=newest.app_limited,
            tx_in_flight=newest.in_flight,
            lost_since=self.lost - newest.lost,
            selective=True,
        )

    def _detect_losses(self, arrived: set[int], newest: int) -> None:
        flight = self.in_flight
        while self._outstanding and self._outstanding[0].number <= newest:
            segment = self._outstanding.popleft()
            if segment.number not in arrived:
                self._lose(segment)
        if self.in_flight < flight and self._recovery_point is None:
            self._recovery_point = self._number
            self.control.on_congestion(flight, self.now)

    def _lose(self, segment: Transmission) -> None:
        self.lost += self._mss
        self.in_flight -= self._mss
        self._offered += self._mss
        start = segment.number * self._mss
        lost = self.lost - segment.lost
        self.control.on_lost(start, self._mss, segment.in_flight, lost, segment.app_limited, self.now)

    def _time_out(self) -> None:
        self.now += TIMEOUT
        self.control.on_timeout(self.in_flight, self.now)
        self._recovery_point = self._number
        while self._outstanding:
            self._lose(self._outstanding.popleft())
