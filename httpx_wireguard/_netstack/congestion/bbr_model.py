"""What BBR believes of a path: how fast it is, how long, and how much it holds (draft-ietf-ccwg-bbr-06 2.9, 5.5)."""

from __future__ import annotations

from collections import deque
from math import inf

from httpx_wireguard._netstack.congestion.control import AckSample

LOSS_THRESHOLD = 0.02  # BBR.LossThresh, 2.8
BETA = 0.7  # BBR.Beta, 2.8: what a round trip with losses leaves of a short-term bound, at the least
FULL_BANDWIDTH_GROWTH = 1.25  # 5.3.1.2: a round trip that brings less than this is "without much growth"
FULL_BANDWIDTH_ROUNDS = 3  # 5.3.1.2
EXTRA_ACKED_ROUNDS = 10  # BBR.ExtraAckedFilterLen, 2.12
MIN_RTT_LENGTH = 10.0  # seconds; BBR.MinRTTFilterLen, 2.16.1
PROBE_RTT_INTERVAL = 5.0  # seconds; BBR.ProbeRTTInterval, 2.16.2


class WindowedMaximum:
    """The greatest sample of the last `length` steps of some clock."""

    __slots__ = ("_best",)

    def __init__(self) -> None:
        self._best: deque[tuple[int, float]] = deque()  # (time, value): later and smaller from left to right

    def update(self, value: float, time: int, length: int) -> float:
        """Take one sample. Holds at most `length` of them: one for each step of the clock."""
        best = self._best
        while best and best[-1][1] <= value:
            best.pop()
        if not best or best[-1][0] != time:
            best.append((time, value))
        while best[0][0] <= time - length:
            best.popleft()
        return best[0][1]


class FullPipe:
    """The "full pipe" estimator (5.3.1.2): does the delivery rate still grow when we send faster?"""

    __slots__ = ("_baseline", "_count", "now", "reached")

    def __init__(self) -> None:
        self.reached = False  # BBR.full_bw_reached: ever, on this connection
        self.reset(0.0)

    def reset(self, baseline: float) -> None:
        """ResetFullBW: begin to look, from `baseline` bytes a second."""
        self._baseline = baseline  # BBR.full_bw
        self._count = 0  # BBR.full_bw_count
        self.now = False  # BBR.full_bw_now: since we last began to look

    def on_round(self, rate: float) -> None:
        """CheckFullBWReached, for the sample that begins a round trip and was not limited by the application."""
        if self.now:
            return
        if rate >= self._baseline * FULL_BANDWIDTH_GROWTH:
            self.reset(rate)
            return
        self._count += 1
        if self._count >= FULL_BANDWIDTH_ROUNDS:
            self.now = self.reached = True


class Aggregation:
    """How much more than expected is acknowledged at once (5.5.9): batches on the path, and offload at both ends."""

    __slots__ = ("_delivered", "_filter", "_start", "extra")

    def __init__(self) -> None:
        self.extra = 0.0  # BBR.extra_acked
        self._filter = WindowedMaximum()
        self._start = 0.0  # BBR.extra_acked_interval_start
        self._delivered = 0  # BBR.extra_acked_delivered

    def on_ack(self, ack: AckSample, bandwidth: float, window: int, round_count: int, rounds: int) -> None:
        """UpdateACKAggregation, remembering the greatest excess of `rounds` round trips."""
        expected = bandwidth * (ack.now - self._start)
        if self._delivered <= expected:
            self._start = ack.now
            self._delivered = 0
            expected = 0.0
        self._delivered += ack.delivered
        self.extra = self._filter.update(min(self._delivered - expected, window), round_count, rounds)


class RttFloor:
    """The round trip of the empty path (5.3.4.3, 5.5.7), and whether it is time to measure it anew."""

    __slots__ = ("_probed", "_probed_at", "_stamp", "expired", "minimum")

    def __init__(self) -> None:
        self.minimum = inf  # BBR.min_rtt
        self.expired = False  # BBR.probe_rtt_expired
        self._stamp = inf  # BBR.min_rtt_stamp
        self._probed = inf  # BBR.probe_rtt_min_delay
        self._probed_at = inf  # BBR.probe_rtt_min_stamp; no sample yet, so nothing to expire

    def on_ack(self, rtt: float | None, now: float) -> None:
        """UpdateMinRTT."""
        self.expired = now > self._probed_at + PROBE_RTT_INTERVAL
        if rtt is not None and (rtt < self._probed or self.expired):
            self._probed = rtt
            self._probed_at = now
        if self._probed < self.minimum or now > self._stamp + MIN_RTT_LENGTH:
            self.minimum = self._probed
            self._stamp = self._probed_at

    def on_probed(self, now: float) -> None:
        """The path was kept half empty for long enough: the next time is due in PROBE_RTT_INTERVAL."""
        self._probed_at = now


class PathModel:
    """The network path model. Rates in bytes a second, volumes in bytes, times in seconds."""

    __slots__ = (
        "_current_bandwidth",
        "_held_back",
        "_limited_from",
        "_limited_until",
        "_loss_from",
        "_loss_in_round",
        "_loss_round_end",
        "_lost",
        "_mark_in_round",
        "_previous_bandwidth",
        "_rate_latest",
        "_round_end",
        "_slowest",
        "_slowest_before",
        "_volume",
        "aggregation",
        "app_limited",
        "bandwidth",
        "delivered",
        "full_pipe",
        "inflight_latest",
        "inflight_shortterm",
        "loss_round_start",
        "max_bandwidth",
        "rate",
        "rate_shortterm",
        "round_count",
        "round_start",
        "rtt",
    )

    def __init__(self) -> None:
        self.full_pipe = FullPipe()
        self.aggregation = Aggregation()
        self.rtt = RttFloor()
        self.delivered = 0  # C.delivered
        self.rate = 0.0  # RS.delivery_rate; 0: the sample has none
        self._volume = 0  # RS.delivered
        self._held_back = False  # by ourselves
        self.app_limited = False  # RS.is_app_limited: by the application, or by ourselves
        self._limited_from = 1  # segments sent when `delivered` was from here ...
        self._limited_until = 0  # ... to here were held back by ourselves
        self.round_count = 0
        self.round_start = False
        self._round_end = 0  # BBR.next_round_delivered
        self.max_bandwidth = 0.0  # BBR.max_bw
        self._previous_bandwidth = 0.0  # BBR.max_bw_filter: the last cycle ...
        self._current_bandwidth = 0.0  # ... and this one
        self.bandwidth = 0.0  # BBR.bw
        self._loss_in_round = False
        self._mark_in_round = False
        self.loss_round_start = False
        self._loss_round_end = 0  # BBR.loss_round_delivered
        self._loss_from = 0  # what was delivered when it began
        self._lost = 0  # bytes since then
        self._slowest = inf  # pacing rate since then ...
        self._slowest_before = inf  # ... and in the round trip before
        self.reset_congestion_signals()
        self.reset_shortterm()

    def take_sample(self, ack: AckSample) -> None:
        """What the rest of the acknowledgment's processing takes as RS."""
        self.delivered = ack.total_delivered
        self.rate = ack.delivery_rate or 0.0
        self._volume = ack.total_delivered - ack.prior_delivered
        self._held_back = self._limited_from <= ack.prior_delivered <= self._limited_until
        self.app_limited = ack.app_limited or self._held_back

    def update(self, ack: AckSample, window: int, pace: float, probing: bool) -> None:
        """The part of UpdateModelAndState that no state of the machine decides (5.2.3)."""
        self._update_latest_signals(ack)
        self._update_round(ack)
        self._update_max_bandwidth()
        if self.loss_round_start:  # UpdateCongestionSignals, 5.5.10.3
            if self._loss_in_round and not probing and (self._mark_in_round or not self._arrives(pace)):
                self._lower_shortterm_bounds(window)
            self._loss_in_round = self._mark_in_round = False
            self._slowest_before, self._slowest = self._slowest, pace
        elif pace < self._slowest:
            self._slowest = pace
        rounds = EXTRA_ACKED_ROUNDS if self.full_pipe.reached else 1  # 5.5.9
        self.aggregation.on_ack(ack, self.bandwidth, window, self.round_count, rounds)
        # Deviates from draft-ietf-ccwg-bbr-06 5.3.1.2: a sample without a rate, there 0, is no sign of a full pipe.
        if self.round_start and self.rate and not self.app_limited:
            self.full_pipe.on_round(self.rate)

    def finish(self) -> None:
        """AdvanceLatestDeliverySignals and BoundBWForModel (5.5.10.3)."""
        if self.loss_round_start:
            self._rate_latest = self.rate
            self.inflight_latest = self._volume
        self.bandwidth = min(self.max_bandwidth, self.rate_shortterm)

    # -- round trips, 5.5.1

    def start_round(self) -> None:
        """StartRound: the next round trip ends when something sent from now on is delivered."""
        self._round_end = self.delivered

    def _update_round(self, ack: AckSample) -> None:
        self.round_start = ack.prior_delivered >= self._round_end
        if self.round_start:
            self.start_round()
            self.round_count += 1

    # -- the bandwidth, 5.5.2 to 5.5.6

    def _update_max_bandwidth(self) -> None:
        """UpdateMaxBw: a sample limited by the application counts only where it shows more than we knew."""
        if self.rate >= self.max_bandwidth or not self.app_limited:
            if self.rate > self._current_bandwidth:
                self._current_bandwidth = self.rate
            self.max_bandwidth = max(self._previous_bandwidth, self._current_bandwidth)

    def advance_max_bandwidth(self) -> None:
        """AdvanceMaxBwFilter: a cycle is over. One without samples does not displace the one before."""
        if self._current_bandwidth:
            self.max_bandwidth = self._previous_bandwidth = self._current_bandwidth
            self._current_bandwidth = 0.0

    def begin_to_hold_back(self) -> None:
        """From now on what we send is slow because we want it so.

        The sender, which marks what the application limits, does not know of this; so the span is kept here.
        """
        self._limited_from = self.delivered

    def hold_back(self, in_flight: int) -> None:
        """MarkConnectionAppLimited (4.1.2.4): at least until all this is delivered."""
        self._limited_until = self.delivered + in_flight

    # -- congestion, 5.5.10

    def note_loss(self, length: int, marked: bool) -> None:
        """NoteLoss: the losses of the round trip that begins with the first one count as one; so do ECN echoes."""
        self._mark_in_round |= marked
        if not self._loss_in_round:
            self._loss_round_end = self._loss_from = self.delivered
            self._loss_in_round = True
            self._lost = 0
        self._lost += length

    def forget_loss(self) -> None:
        self._loss_in_round = self._mark_in_round = False

    def reset_congestion_signals(self) -> None:
        """ResetCongestionSignals."""
        self._loss_in_round = self._mark_in_round = False
        self._rate_latest = 0.0  # BBR.bw_latest
        self.inflight_latest = 0

    def reset_shortterm(self) -> None:
        """ResetShortTermModel."""
        self.rate_shortterm = inf  # BBR.bw_shortterm
        self.inflight_shortterm = inf

    def _update_latest_signals(self, ack: AckSample) -> None:
        """UpdateLatestDeliverySignals."""
        if self.rate > self._rate_latest:
            self._rate_latest = self.rate
        if self._volume > self.inflight_latest:
            self.inflight_latest = self._volume
        self.loss_round_start = ack.prior_delivered >= self._loss_round_end
        if self.loss_round_start:
            self._loss_round_end = ack.total_delivered

    def _arrives(self, pace: float) -> bool:
        """Whether the round trip that lost something lost at most LossThresh, or brought all but that of our pace.

        Deviates from draft-ietf-ccwg-bbr-06 5.5.10.3, which then lowers the bounds too: by the lost part, by our pacing
        margin, and by the gain of ProbeBW_DOWN, in each round trip. Random losses of 1 % halve the rate between two
        probes that way, though the path is free. A queue that fills or a rival leaves less to arrive than this.
        """
        # What arrived in this round trip was sent in the one before, and measured from when that began.
        slowest = min(pace, self._slowest, self._slowest_before)
        few = self._lost <= LOSS_THRESHOLD * (self.delivered - self._loss_from + self._lost)
        return few or self._held_back or self._rate_latest >= slowest * (1 - LOSS_THRESHOLD)

    def _lower_shortterm_bounds(self, window: int) -> None:
        """InitLowerBounds and LossLowerBounds: down to what arrives, but not by more than Beta."""
        rate = self.max_bandwidth if self.rate_shortterm == inf else self.rate_shortterm
        inflight = window if self.inflight_shortterm == inf else self.inflight_shortterm
        self.rate_shortterm = max(self._rate_latest, BETA * rate)
        self.inflight_shortterm = max(self.inflight_latest, BETA * inflight)
