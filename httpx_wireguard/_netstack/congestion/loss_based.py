"""What Reno and CUBIC share: slow start, the end of a recovery, and a restart after a pause."""

from __future__ import annotations

from typing import ClassVar

from httpx_wireguard._netstack.congestion.control import INITIAL_WINDOW_SEGMENTS, UNLIMITED, AckSample
from httpx_wireguard._netstack.congestion.hystart import HyStart

MAXIMUM_HALVINGS = 30  # ours: of a window below UNLIMITED, nothing is left


class LossBased:
    """A control whose window falls at a loss or a mark, and otherwise grows."""

    __slots__ = ("_mss", "_recovering", "_start", "pacing_rate", "threshold", "window")
    model_based: ClassVar[bool] = False

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.window = INITIAL_WINDOW_SEGMENTS * mss
        self.threshold = UNLIMITED
        self.pacing_rate: float | None = None
        self._start = HyStart()
        self._recovering = False  # between `on_congestion` and `on_recovery_end`, unless a timeout or undo came

    def set_mss(self, mss: int) -> None:
        """RFC 5681 3.1: the same number of segments. ssthresh stays: the path carries as many bytes as before."""
        self.window = max(self.window * mss // self._mss, mss)
        self._mss = mss

    def _slow_start(self, ack: AckSample) -> int:
        """Grow below ssthresh; returns the bytes that are left for congestion avoidance.

        Counts what was delivered, not how far SND.UNA moved: after a timeout one acknowledgment may pass over much
        that had been selectively acknowledged long before, which says nothing about the path now (why RFC 3465 2.3
        asks for L = 1 segment there).
        """
        if self.threshold >= UNLIMITED:  # RFC 9406 4.2: the first slow start, the others know where to end
            self.window += self._start.on_ack(ack)
            if self._start.finished:
                self.threshold = self.window
            return 0
        growth = min(ack.delivered, self.threshold - self.window)
        self.window += growth
        return ack.delivered - growth

    def on_lost(
        self, start: int, length: int, tx_in_flight: int, lost_since: int, app_limited: bool, now: float
    ) -> None:
        """Nothing: a loss counts once per window of data, by `on_congestion`."""

    def on_recovery_end(self, now: float) -> None:
        """RFC 9937 6.4: cwnd = ssthresh. Nothing to do after a timeout or an undone reduction."""
        if self._recovering:
            self._recovering = False
            self.window = self.threshold

    def on_restart(self, idle: float, timeout: float, now: float) -> None:
        """Halve the window for each timeout that passed, down to the restart window; ssthresh remembers 3/4 of it.

        Deviates from RFC 5681 4.1, which falls to the restart window at once: RFC 2861 and Linux decay like this. A
        pooled HTTP connection pauses often, for little more than a timeout (which may be 0.2 s); the path seldom
        changes in that time, and pacing keeps the old window from leaving as one burst, the reason of RFC 5681.
        """
        if idle <= timeout:
            return
        restart = min(INITIAL_WINDOW_SEGMENTS * self._mss, self.window)  # RW
        self.threshold = max(self.threshold, self.window * 3 // 4)
        self.window = max(self.window >> min(int(idle / timeout), MAXIMUM_HALVINGS), restart)
        self._start = HyStart()  # RFC 9406 4.2 allows it here; round trips from before the pause are no measure
