"""Reno: slow start and congestion avoidance by the book (RFC 5681), with HyStart++ (RFC 9406)."""

from __future__ import annotations

from typing import ClassVar

from httpx_wireguard._netstack.congestion.control import LOSS_WINDOW_SEGMENTS, MINIMUM_SSTHRESH_SEGMENTS, AckSample
from httpx_wireguard._netstack.congestion.loss_based import LossBased


class Reno(LossBased):
    """One segment more for each window that arrived, half of the flight after a loss. Counts bytes (RFC 3465)."""

    __slots__ = ("_credit", "_undo")
    name: ClassVar[str] = "reno"

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self._credit = 0  # bytes_acked, RFC 3465 2.1
        self._undo: tuple[int, int] | None = None  # window and threshold before the last reduction

    def on_ack(self, ack: AckSample) -> None:
        """RFC 5681 3.1. A window that is not in use does not grow: it says nothing about the path (RFC 7661 4.3)."""
        if ack.recovering or not ack.cwnd_limited or not ack.acknowledged:
            return
        delivered = ack.delivered
        if self.window < self.threshold:
            delivered = self._slow_start(ack)
        self._credit += delivered
        if self._credit >= self.window:
            self._credit -= self.window
            self.window += self._mss

    def on_congestion(self, in_flight: int, now: float) -> None:
        """RFC 5681 3.1 equation 4. What limited transmit sent beyond the window does not count (3.2 step 2)."""
        self._undo = (self.window, self.threshold)
        self.threshold = max(min(in_flight, self.window) // 2, MINIMUM_SSTHRESH_SEGMENTS * self._mss)
        self.window = self.threshold
        self._credit = 0
        self._recovering = True

    def on_timeout(self, in_flight: int, now: float) -> None:
        """RFC 5681 3.1: as after a loss, but from the loss window on, by slow start."""
        self.on_congestion(in_flight, now)
        self.window = LOSS_WINDOW_SEGMENTS * self._mss
        self._recovering = False

    def on_spurious(self, now: float) -> None:
        """RFC 4015 3.2, but the whole window at once: pacing prevents the burst that its step 8 prevents."""
        if self._undo is not None:
            window, self.threshold = self._undo
            self.window = max(self.window, window)
            self._undo = None
            self._recovering = False
