"""Reno: slow start and congestion avoidance by the book (RFC 5681)."""

from __future__ import annotations

from httpx_wireguard._netstack.congestion.control import (
    INITIAL_WINDOW_SEGMENTS,
    LOSS_WINDOW_SEGMENTS,
    MINIMUM_SSTHRESH_SEGMENTS,
    UNLIMITED,
    AckSample,
)


class Reno:
    """Slow start and congestion avoidance (RFC 5681) with byte counting (RFC 3465)."""

    __slots__ = ("_before", "_credit", "_mss", "pacing_rate", "threshold", "window")
    name = "reno"
    model_based = False

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.window = INITIAL_WINDOW_SEGMENTS * mss
        self.threshold = UNLIMITED
        self.pacing_rate: float | None = None
        self._credit = 0
        self._before: tuple[int, int] | None = None  # window and threshold before the last reduction

    def set_mss(self, mss: int) -> None:
        self.window = max(self.window * mss // self._mss, mss)
        self._mss = mss

    def on_ack(self, ack: AckSample) -> None:
        if ack.recovering or not ack.cwnd_limited:
            return  # an unused window says nothing about the path (RFC 7661)
        if self.window < self.threshold:
            self.window += ack.acknowledged  # slow start, RFC 3465 2.2 with L = the whole stretch
            return
        self._credit += ack.acknowledged
        if self._credit >= self.window:
            self._credit -= self.window
            self.window += self._mss

    def on_lost(self, length: int, tx_in_flight: int, lost_since: int, app_limited: bool, now: float) -> None:
        pass

    def on_congestion(self, in_flight: int, now: float) -> None:
        """RFC 5681 3.2: half of what was in flight."""
        self._before = (self.window, self.threshold)
        self.threshold = max(in_flight // 2, MINIMUM_SSTHRESH_SEGMENTS * self._mss)
        self.window = self.threshold
        self._credit = 0

    def on_recovery_end(self, now: float) -> None:
        self.window = self.threshold

    def on_timeout(self, in_flight: int, now: float) -> None:
        self.on_congestion(in_flight, now)
        self.window = LOSS_WINDOW_SEGMENTS * self._mss

    def on_spurious(self, now: float) -> None:
        if self._before is not None:
            window, self.threshold = self._before
            self.window = max(self.window, window)
            self._before = None

    def on_restart(self, idle: float, timeout: float, now: float) -> None:
        """RFC 5681 4.1: after a retransmission timeout without sending the old window is stale."""
        if idle > timeout:
            self.window = min(self.window, INITIAL_WINDOW_SEGMENTS * self._mss)
