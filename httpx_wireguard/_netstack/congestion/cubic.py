"""CUBIC: a window that grows with the time since the last loss, not with the number of round trips (RFC 9438)."""

from __future__ import annotations

from math import cbrt
from typing import ClassVar

from httpx_wireguard._netstack.congestion.control import LOSS_WINDOW_SEGMENTS, MINIMUM_SSTHRESH_SEGMENTS, AckSample
from httpx_wireguard._netstack.congestion.loss_based import LossBased

C = 0.4  # segments a second^3; RFC 9438 5.1
BETA = 0.7  # beta_cubic, RFC 9438 4.6
ALPHA = 3 * (1 - BETA) / (1 + BETA)  # alpha_cubic, RFC 9438 4.3
FAST_CONVERGENCE = (1 + BETA) / 2  # RFC 9438 4.7
FASTEST = 1.5  # of cwnd: the highest target one round trip ahead, RFC 9438 4.2
RTT_GAIN = 1 / 8  # RFC 6298 2.3


class Cubic(LossBased):
    """The default of Linux, Windows and macOS. Windows are bytes here, segments in the RFC.

    The RFC's RTT is the smoothed one. We smooth the samples ourselves: one that waited for a delayed acknowledgment
    would otherwise ask for the window of a quarter of a second ahead.
    """

    __slots__ = (
        "_acked_at",
        "_epoch",
        "_estimate",
        "_fraction",
        "_k",
        "_limited",
        "_maximum",
        "_prior",
        "_rtt",
        "_undo",
    )
    name: ClassVar[str] = "cubic"

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self._maximum = 0.0  # W_max, bytes; 0: none, as after HyStart++ (RFC 9438 4.10) and a timeout (4.8)
        self._prior = 0.0  # cwnd_prior, bytes: when ssthresh was last set
        self._epoch: float | None = None  # t_epoch, later by the time without need of the window; None: not begun
        self._k = 0.0  # K, seconds
        self._estimate = 0.0  # W_est, bytes
        self._fraction = 0.0  # of a byte that the window has grown
        self._rtt = 0.0  # RTT, seconds; 0: not measured
        self._acked_at = 0.0  # when the last acknowledgment came, or sending began again
        self._limited = True  # the window was in full use lately
        self._undo: tuple[int, int, float, float, float | None, float, float] | None = None

    def set_mss(self, mss: int) -> None:
        """W_max stays like ssthresh: the path carries as many bytes as before. The smaller window begins an epoch."""
        super().set_mss(mss)
        self._epoch = None
        self._undo = None

    # -- growth

    def on_ack(self, ack: AckSample) -> None:
        """RFC 9438 4.2, 4.10. Where the window is not in use it does not grow, and t does not run (4.2, 5.8)."""
        rtt = ack.rtt
        if rtt is not None:
            self._rtt = self._rtt + RTT_GAIN * (rtt - self._rtt) if self._rtt else rtt
        before, self._acked_at = self._acked_at, ack.now
        self._limited = ack.cwnd_limited
        if ack.recovering or not ack.acknowledged:  # RFC 3042 2: what only SACKs tell of makes nothing grow
            return
        if not ack.cwnd_limited:
            if self._epoch is not None:
                self._epoch += ack.now - before
            return
        delivered = ack.delivered
        if self.window < self.threshold:
            delivered = self._slow_start(ack)
        if delivered:
            self._avoid_congestion(delivered, ack.now)

    def _avoid_congestion(self, delivered: int, now: float) -> None:
        """RFC 9438 4.3-4.5: the higher of Reno's window and the cubic function.

        The RFC adds (target - cwnd) / cwnd segments for each acknowledgment; we, who count bytes, for each segment
        acknowledged: an acknowledgment of 64 KB is worth as much as those that it stands for.
        """
        window = self.window
        epoch = self._begin_epoch(now) if self._epoch is None else self._epoch
        after = now - epoch - self._k  # t - K
        scale = C * self._mss
        alpha = ALPHA if self._estimate < self._prior else 1.0
        self._estimate += alpha * self._mss * delivered / window
        if self._maximum + scale * after**3 < self._estimate:  # the Reno-friendly region, 4.3
            self.window = max(window, int(self._estimate))
            return
        target = self._maximum + scale * (after + self._rtt) ** 3
        target = min(max(target, window), FASTEST * window)
        growth = self._fraction + (target - window) * min(delivered / window, 1.0)
        whole = int(growth)
        self._fraction = growth - whole
        self.window = window + whole

    def _begin_epoch(self, now: float) -> float:
        """A congestion avoidance stage begins: RFC 9438 4.2; on the plateau, if there is no W_max above the window."""
        window = self.window
        self._epoch = now
        self._estimate = float(window)  # cwnd_epoch
        self._fraction = 0.0
        if window < self._maximum:
            self._k = cbrt((self._maximum - window) / (C * self._mss))
        else:
            self._k = 0.0
            self._maximum = float(window)
        return now

    # -- reductions

    def _reduce(self, in_flight: int) -> None:
        """RFC 9438 4.6, 4.7: ssthresh from the window if that was in use lately, else from the FlightSize.

        The window is the better measure while it is in use, since a loss can be told late, with little left in
        flight; the RFC allows it to who does not let an unused window grow. But an unused one was never tried on the
        path, so then it counts for no more than what is in flight (RFC 7661 4.4.1).
        """
        self._undo = (
            self.window,
            self.threshold,
            self._maximum,
            self._prior,
            self._epoch,
            self._k,
            self._estimate,
        )
        window = self.window if self._limited else min(self.window, in_flight)
        self._maximum = window * FAST_CONVERGENCE if window < self._maximum else float(window)
        self._prior = float(window)
        self.threshold = max(round(window * BETA), MINIMUM_SSTHRESH_SEGMENTS * self._mss)
        self._epoch = None

    def on_congestion(self, in_flight: int, now: float) -> None:
        """RFC 9438 4.6. Deviates from it after an ECN echo: the window stops at two segments, as after a loss."""
        self._reduce(in_flight)
        self.window = self.threshold
        self._recovering = True

    def on_timeout(self, in_flight: int, now: float) -> None:
        """RFC 9438 4.8: slow start from the loss window; then the cubic function from its plateau on."""
        self._reduce(in_flight)
        self.window = LOSS_WINDOW_SEGMENTS * self._mss
        self._maximum = 0.0
        self._recovering = False

    def on_spurious(self, now: float) -> None:
        """RFC 9438 4.9: as if it had not been, unless the window is as large again already."""
        undo, self._undo = self._undo, None
        if undo is None:
            return
        self._recovering = False
        if self.window < undo[0]:
            self.window, self.threshold, self._maximum, self._prior, self._epoch, self._k, self._estimate = undo

    def on_restart(self, idle: float, timeout: float, now: float) -> None:
        """RFC 9438 5.8: the pause is not part of t. If the window fell, slow start ends at a new epoch."""
        before = self.window
        super().on_restart(idle, timeout, now)
        if self.window < before:
            self._prior = float(before)
            self._epoch = None
        elif self._epoch is not None:
            self._epoch += now - self._acked_at
        self._acked_at = now
