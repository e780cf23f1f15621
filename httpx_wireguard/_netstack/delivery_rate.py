"""How fast the network delivers (draft-ietf-ccwg-bbr 4.1, delivery rate samples)."""

from __future__ import annotations

from httpx_wireguard._netstack.scoreboard import Delivery, Transmission


class DeliveryRate:
    """C.delivered and what is sampled with it. All sizes in bytes, times in monotonic seconds."""

    __slots__ = ("_delivered_at", "_first_sent_at", "app_limited_until", "delivered", "lost")

    def __init__(self) -> None:
        self.delivered = 0  # C.delivered
        self.lost = 0  # C.lost
        self.app_limited_until = 0  # C.app_limited: until this much is delivered, the application was the limit
        self._delivered_at = 0.0  # C.delivered_time
        self._first_sent_at = 0.0  # C.first_sent_time

    def on_sent(self, one: Transmission, in_flight: int, now: float) -> None:
        """`one` leaves; `in_flight` without it (4.1.2.2)."""
        if in_flight == 0:
            self._first_sent_at = self._delivered_at = now
        one.sent_at = now
        one.first_sent_at = self._first_sent_at
        one.delivered, one.delivered_at = self.delivered, self._delivered_at
        one.app_limited = self.app_limited_until > 0
        one.in_flight = in_flight + one.end - one.start
        one.lost_before = self.lost

    def on_delivered(self, delivery: Delivery, minimum_rtt: float, now: float) -> float | None:
        """Count what an acknowledgment delivered; returns bytes a second, or None without a valid sample (4.1.2.3)."""
        self.delivered += delivery.length
        self._delivered_at = now
        if self.delivered > self.app_limited_until:
            self.app_limited_until = 0
        newest = delivery.newest
        if newest is None:
            return None
        interval = max(newest.sent_at - newest.first_sent_at, now - newest.delivered_at)
        self._first_sent_at = newest.sent_at
        if interval < minimum_rtt or interval <= 0.0:
            return None
        return (self.delivered - newest.delivered) / interval
