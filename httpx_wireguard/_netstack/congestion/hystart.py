"""HyStart++: leave slow start when the round trips grow, before the queue overflows (RFC 9406)."""

from __future__ import annotations

from math import inf

from httpx_wireguard._netstack.congestion.control import AckSample

MIN_RTT_THRESH = 0.004  # seconds; these six: RFC 9406 4.3
MAX_RTT_THRESH = 0.016  # seconds
MIN_RTT_DIVISOR = 8
N_RTT_SAMPLE = 8
CSS_GROWTH_DIVISOR = 4
CSS_ROUNDS = 5


class HyStart:
    """One slow start. L, the limit on the growth per acknowledgment, is infinite: the sender paces (RFC 9406 4.3).

    A far side that coalesces what it receives acknowledges up to 64 KB at once: a round then has fewer than
    N_RTT_SAMPLE samples until the window holds eight such stretches, half a megabyte, and it judges nothing. Slow
    start goes on as without HyStart++; above that size a queue is noticed half a megabyte into the round, not eight
    segments. To judge a short round on what it has would help little: only what arrives back to back is coalesced,
    and where half a megabyte does, it is a queue of about MIN_RTT_THRESH or less. It would harm: one or two samples
    are as likely to show a busy interpreter as a queue.
    """

    __slots__ = ("_baseline", "_current", "_last", "_rounds", "_samples", "_window_end", "finished")

    def __init__(self) -> None:
        self._window_end: int | None = None  # windowEnd; None before the first acknowledgment
        self._last = inf  # lastRoundMinRTT
        self._current = inf  # currentRoundMinRTT
        self._samples = 0  # rttSampleCount
        self._baseline = inf  # cssBaselineMinRtt; finite during conservative slow start (CSS)
        self._rounds = 0  # of CSS, ended
        self.finished = False  # CSS_ROUNDS are over: ssthresh = cwnd

    def on_ack(self, ack: AckSample) -> int:
        """RFC 9406 4.2, for an acknowledgment that may grow the window. Returns by how many bytes."""
        growth = ack.delivered if self._baseline == inf else ack.delivered // CSS_GROWTH_DIVISOR
        rtt = ack.rtt
        if rtt is not None:
            self._samples += 1
            if rtt < self._current:
                self._current = rtt
            if self._samples >= N_RTT_SAMPLE:
                self._judge()
        if self._window_end is None:
            self._window_end = ack.next
        elif ack.unacknowledged >= self._window_end:
            self._end_round(ack.next)
        return growth

    def _judge(self) -> None:
        if self._baseline == inf:
            threshold = max(MIN_RTT_THRESH, min(self._last / MIN_RTT_DIVISOR, MAX_RTT_THRESH))  # RttThresh
            if self._current >= self._last + threshold:
                self._baseline = self._current
                self._rounds = 0
        elif self._current < self._baseline:
            self._baseline = inf  # the delay went away: it was jitter, back to slow start

    def _end_round(self, send_next: int) -> None:
        self._window_end = send_next
        self._last = self._current
        self._current = inf
        self._samples = 0
        if self._baseline != inf:
            self._rounds += 1  # the round in which CSS began counts too
            self.finished = self._rounds >= CSS_ROUNDS
