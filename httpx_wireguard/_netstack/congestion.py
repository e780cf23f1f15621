"""Congestion control: how many bytes may be in flight."""

from __future__ import annotations

from typing import Protocol

INITIAL_WINDOW_SEGMENTS = 10  # RFC 6928
MINIMUM_SSTHRESH_SEGMENTS = 2  # RFC 5681 3.1 equation 4
LOSS_WINDOW_SEGMENTS = 1  # RFC 5681 3.1


class CongestionControl(Protocol):
    """What a sender asks of its congestion control. All sizes in bytes, all times in seconds."""

    window: int  # cwnd

    def set_mss(self, mss: int) -> None: ...

    def on_ack(self, acknowledged: int, in_flight: int, now: float) -> None: ...

    def on_loss(self, in_flight: int, now: float) -> None: ...

    def on_timeout(self, in_flight: int, now: float) -> None: ...

    def on_idle(self, now: float) -> None: ...


class NewReno:
    """Slow start and congestion avoidance (RFC 5681) with byte counting (RFC 3465)."""

    __slots__ = ("_credit", "_mss", "threshold", "window")

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.window = INITIAL_WINDOW_SEGMENTS * mss
        self.threshold = 1 << 30  # ssthresh: arbitrarily high at first, RFC 5681 3.1
        self._credit = 0

    def set_mss(self, mss: int) -> None:
        """The path took a smaller segment than we thought."""
        self.window = max(self.window * mss // self._mss, mss)
        self._mss = mss

    def on_ack(self, acknowledged: int, in_flight: int, now: float) -> None:
        """New data was acknowledged outside loss recovery; `in_flight` as it was before this acknowledgment."""
        if in_flight * 2 < self.window:
            return  # limited by the application: an unused window says nothing about the path (RFC 7661)
        if self.window < self.threshold:
            self.window += acknowledged  # slow start, RFC 3465 2.2 with L = the whole stretch
            return
        self._credit += acknowledged
        if self._credit >= self.window:
            self._credit -= self.window
            self.window += self._mss

    def on_loss(self, in_flight: int, now: float) -> None:
        """RFC 5681 3.2: half of what was in flight."""
        self.threshold = max(in_flight // 2, MINIMUM_SSTHRESH_SEGMENTS * self._mss)
        self.window = self.threshold
        self._credit = 0

    def on_timeout(self, in_flight: int, now: float) -> None:
        self.on_loss(in_flight, now)
        self.window = LOSS_WINDOW_SEGMENTS * self._mss

    def on_idle(self, now: float) -> None:
        """RFC 5681 4.1: nothing was sent for a retransmission timeout, the old window is stale."""
        self.window = min(self.window, INITIAL_WINDOW_SEGMENTS * self._mss)
