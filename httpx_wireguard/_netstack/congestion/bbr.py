"""BBR version 3 (draft-ietf-ccwg-bbr-06): sends as fast as the path delivers, not until it drops.

Sections without another name are those of the draft. What the path is believed to be is `bbr_model.py`; this is the
state machine that probes it, and the window and the pacing rate that follow.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf, log
from typing import ClassVar

from httpx_wireguard._netstack.congestion.bbr_model import BETA, LOSS_THRESHOLD, PathModel
from httpx_wireguard._netstack.congestion.control import (
    INITIAL_WINDOW_SEGMENTS,
    LOSS_WINDOW_SEGMENTS,
    UNLIMITED,
    AckSample,
)

HEADROOM = 0.15  # BBR.Headroom, 2.8
MINIMUM_WINDOW_SEGMENTS = 4  # BBR.MinPipeCwnd, 2.8
STARTUP_LOSS_RANGES = 6  # BBRStartupFullLossCnt, 5.3.1.3
DRAIN_ROUNDS = 3  # 5.3.2
PROBE_WAIT = 2.0  # seconds; T_bbr is random between this and one more, 5.3.3.8.2
RENO_ROUNDS = 63  # T_reno_bound, 5.3.3.8.2; one less at random
GROWTH_ROUNDS_LIMIT = 30  # RaiseInflightLongtermSlope, 5.3.3.9
PROBE_RTT_GAIN = 0.5  # BBR.ProbeRTTCwndGain, 2.16.2
PROBE_RTT_DURATION = 0.2  # seconds; BBR.ProbeRTTDuration, 2.16.2
PACING_MARGIN = 0.99  # BBR.PacingMarginPercent, 2.5
QUANTUM_TIME = 0.001  # seconds; SetSendQuantum, 5.6.3
QUANTUM_LIMIT = 65536  # bytes; 5.6.3
QUANTUM_MINIMUM_SEGMENTS = 2  # 5.6.3
OFFLOAD_QUANTA = 3  # 5.5.8.1


class State(Enum):
    """BBR.state (5.1.1)."""

    STARTUP = auto()
    DRAIN = auto()
    PROBE_BW_DOWN = auto()
    PROBE_BW_CRUISE = auto()
    PROBE_BW_REFILL = auto()
    PROBE_BW_UP = auto()
    PROBE_RTT = auto()


GAINS = {  # BBR.pacing_gain and BBR.cwnd_gain, 5.6.1
    State.STARTUP: (4 * log(2), 2.0),
    State.DRAIN: (0.5, 2.0),
    State.PROBE_BW_DOWN: (0.9, 2.0),
    State.PROBE_BW_CRUISE: (1.0, 2.0),
    State.PROBE_BW_REFILL: (1.0, 2.0),
    State.PROBE_BW_UP: (1.25, 2.25),
    State.PROBE_RTT: (1.0, PROBE_RTT_GAIN),
}
PROBE_BW_STATES = (State.PROBE_BW_DOWN, State.PROBE_BW_CRUISE, State.PROBE_BW_REFILL, State.PROBE_BW_UP)
ACCELERATING_STATES = (State.STARTUP, State.PROBE_BW_REFILL, State.PROBE_BW_UP)  # IsProbingBW, 5.3.3.9


class Bbr:
    """BBR version 3.

    Losses are noted when they are reported, and judged with the acknowledgment that follows: the window and the rate
    change only then (5.2.3), and round trips that they begin are counted from what it delivered.
    """

    __slots__ = (
        "_congested",
        "_cycle_start",
        "_drain_start_round",
        "_growth_acknowledged",
        "_growth_rounds",
        "_growth_threshold",
        "_idle_restart",
        "_losses",
        "_lost",
        "_lost_end",
        "_lost_ranges",
        "_marked",
        "_mss",
        "_pacing_gain",
        "_prior_window",
        "_probe_rtt_done",
        "_probe_rtt_round_done",
        "_probe_sample",
        "_probe_stopping",
        "_probe_too_high",
        "_probe_wait",
        "_probe_was_precautionary",
        "_random",
        "_recovering",
        "_rounds_since_probe",
        "_undo",
        "_undo_state",
        "_window_gain",
        "inflight_longterm",
        "model",
        "pacing_rate",
        "state",
        "threshold",
        "window",
    )
    name: ClassVar[str] = "bbr"
    model_based: ClassVar[bool] = True

    def __init__(self, mss: int, seed: int = 0) -> None:
        """5.2.1. `seed` should differ from connection to connection.

        The draft draws the time between two probes at random, so that flows that share a bottleneck do not probe
        together. The core has no entropy; nothing here is a secret, so a generator with a seed does as well.
        """
        self._mss = mss
        self._random = seed & 0xFFFFFFFF
        self.model = PathModel()
        self.window = INITIAL_WINDOW_SEGMENTS * mss
        self.threshold = UNLIMITED
        self.pacing_rate: float | None = None  # until the first round trip is known
        self.inflight_longterm = inf
        self._recovering = False
        self._prior_window = 0
        self._undo: tuple[float, float, float] = (0.0, 0.0, 0.0)  # both short-term bounds, inflight_longterm
        self._undo_state: State | None = None
        self._congested = False  # since the last acknowledgment
        self._marked = False  # likewise, and not by a loss
        self._losses: list[tuple[int, int, int, bool]] = []  # of a probe, likewise: the arguments of `on_lost`
        self._lost_end = -1  # where the newest of the ranges lost ends
        self._lost = 0  # bytes since the last acknowledgment
        self._lost_ranges = 0  # in this round trip
        self._idle_restart = False
        self._init_probing()
        self._enter(State.STARTUP)

    def _init_probing(self) -> None:
        self._drain_start_round = 0
        self._probe_sample = False  # BBR.is_bw_probe_sample
        self._probe_stopping = False  # BBR.ack_phase is ACKS_PROBE_STOPPING; nothing depends on the other phases
        self._probe_too_high = False  # BBR.prev_probe_too_high
        self._probe_was_precautionary = False
        self._probe_wait = 0.0
        self._cycle_start = 0.0
        self._rounds_since_probe = 0
        self._growth_acknowledged = 0  # BBR.bw_probe_up_acked
        self._growth_rounds = 0  # BBR.bw_probe_up_rounds
        self._growth_threshold = self._mss  # BBR.probe_up_acked_per_inc
        self._probe_rtt_done: float | None = None  # BBR.probe_rtt_done_stamp
        self._probe_rtt_round_done = False

    def set_mss(self, mss: int) -> None:
        self.window = max(self.window * mss // self._mss, mss)
        self._mss = mss

    # -- events

    def on_ack(self, ack: AckSample) -> None:
        """UpdateOnACK (5.2.3)."""
        model = self.model
        model.take_sample(ack)
        if self._congested:
            self._handle_losses(ack)
        model.update(ack, self.window, self.pacing_rate or inf, self.state in ACCELERATING_STATES)
        self._rounds_since_probe += model.round_start
        if self.state is State.STARTUP:
            self._check_startup_done(ack)
        if self.state is State.DRAIN:
            self._check_drain_done(ack)
        if model.loss_round_start:
            self._lost_ranges = 0
        if model.full_pipe.reached:
            self._update_probe_bw_cycle(ack)
        model.rtt.on_ack(ack.rtt, ack.now)
        self._check_probe_rtt(ack)
        model.finish()
        if self.pacing_rate is None and ack.rtt:
            # InitPacingRate, 5.6.2. Until here the sender knew the round trip of the handshake, we do not.
            self.pacing_rate = self._pacing_gain * INITIAL_WINDOW_SEGMENTS * self._mss / ack.rtt
        self._set_pacing_rate(self._pacing_gain)
        self._set_window(ack.delivered)

    def on_lost(
        self, start: int, length: int, tx_in_flight: int, lost_since: int, app_limited: bool, now: float
    ) -> None:
        self._congested = True
        self._lost += length
        if start != self._lost_end:
            self._lost_ranges += 1
        self._lost_end = start + length
        if self._probe_sample:
            self._losses.append((length, tx_in_flight, lost_since, app_limited))

    def on_congestion(self, in_flight: int, now: float) -> None:
        """OnEnterFastRecovery (5.6.4.4). An ECN echo, without a loss, counts in the short-term model (3.7)."""
        self._marked = not self._congested
        self._congested = True
        self._save_state()

    def on_recovery_end(self, now: float) -> None:
        """5.6.4.4: back to the window before, as far as the model allows it now."""
        self._recovering = False
        self._restore_window()

    def on_timeout(self, in_flight: int, now: float) -> None:
        """OnEnterRTO (5.6.4.4): all that was in flight counts as lost, so room for one segment is this window."""
        self._save_state()
        self.window = LOSS_WINDOW_SEGMENTS * self._mss

    def on_spurious(self, now: float) -> None:
        """HandleSpuriousLossDetection (5.5.11.2)."""
        model = self.model
        self._recovering = self._congested = self._marked = False
        self._lost = 0
        self._losses.clear()
        model.forget_loss()
        model.full_pipe.reset(0.0)
        rate, inflight, longterm = self._undo
        model.rate_shortterm = max(model.rate_shortterm, rate)
        model.inflight_shortterm = max(model.inflight_shortterm, inflight)
        self.inflight_longterm = max(self.inflight_longterm, longterm)
        if self._undo_state is State.STARTUP:
            model.full_pipe.reached = False
            if self.state is not State.PROBE_RTT:
                self._enter(State.STARTUP)
        elif self._undo_state is State.PROBE_BW_UP and self.state not in (State.PROBE_BW_UP, State.PROBE_RTT):
            self._start_refill()
        self._undo_state = None
        self._restore_window()

    def on_restart(self, idle: float, timeout: float, now: float) -> None:
        """HandleRestartFromIdle (5.4.1): the window stays, the pace is the bandwidth.

        Deviates from draft-ietf-ccwg-bbr-06 5.4.1: what was delivered before the pause is forgotten with its interval,
        else all of it would count as excess of the new one.
        """
        self._idle_restart = True
        self.model.aggregation.restart(now)
        if self.state in PROBE_BW_STATES:
            self._set_pacing_rate(1.0)
        elif self.state is State.PROBE_RTT:
            self._check_probe_rtt_done(now)

    # -- losses, 5.5.10.2

    def _handle_losses(self, ack: AckSample) -> None:
        """NoteLoss, and HandleLostPacket for each loss since the last acknowledgment."""
        self._congested = False
        self.model.note_loss(self._lost, self._marked)
        self._marked = False
        self._lost = 0
        for length, tx_in_flight, lost, app_limited in self._losses:
            if self._is_inflight_too_high(lost, tx_in_flight, ack.selective):
                inflight = _inflight_at_loss(length, tx_in_flight, lost)
                self._handle_inflight_too_high(inflight, app_limited, ack.now)
                break  # BBR.is_bw_probe_sample: only once for a probe
        self._losses.clear()

    def _is_inflight_too_high(self, lost: int, tx_in_flight: int, selective: bool) -> bool:
        """IsInflightTooHigh. Without selective acknowledgments a round trip shows one loss, so one is too much."""
        return lost > tx_in_flight * LOSS_THRESHOLD or (lost > 0 and not selective)

    def _handle_inflight_too_high(self, inflight: float, app_limited: bool, now: float) -> None:
        """HandleInflightTooHigh."""
        self._probe_too_high = True
        self._probe_sample = False
        if not app_limited:
            self.inflight_longterm = int(max(inflight, self._target_inflight() * BETA))
        if self.state is State.PROBE_BW_UP:
            self._undo_state = State.PROBE_BW_UP
            self._start_down(now)

    # -- Startup and Drain, 5.3.1 and 5.3.2

    def _check_startup_done(self, ack: AckSample) -> None:
        """CheckStartupDone, with the three criteria of CheckStartupHighLoss (5.3.1.3)."""
        model = self.model
        lossy = model.loss_round_start and self._lost_ranges >= STARTUP_LOSS_RANGES
        if not ack.selective:
            lossy = ack.lost > 0
        if lossy and self._recovering and self._is_inflight_too_high(ack.lost_since, ack.tx_in_flight, ack.selective):
            self._undo_state = State.STARTUP
            model.full_pipe.reached = True
            self.inflight_longterm = int(max(self._bandwidth_delay(1.0), model.inflight_latest))
        if model.full_pipe.reached:
            self._enter(State.DRAIN)
            self._drain_start_round = model.round_count

    def _check_drain_done(self, ack: AckSample) -> None:
        """CheckDrainDone."""
        drained = ack.in_flight <= self._inflight(1.0)
        if drained or self.model.round_count > self._drain_start_round + DRAIN_ROUNDS:
            self._start_down(ack.now)

    # -- ProbeBW, 5.3.3

    def _update_probe_bw_cycle(self, ack: AckSample) -> None:
        """UpdateProbeBWCyclePhase (5.3.3.9)."""
        if self._adapt_longterm_model(ack):
            return
        if self.state is State.PROBE_BW_DOWN:
            if self._is_time_to_probe(ack.now):
                self._start_refill()
            elif self._is_time_to_cruise(ack.in_flight):
                self._enter(State.PROBE_BW_CRUISE)
        elif self.state is State.PROBE_BW_CRUISE:
            if self._is_time_to_probe(ack.now):
                self._start_refill()
        elif self.state is State.PROBE_BW_REFILL:
            if self.model.round_start:
                self._probe_sample = True
                self._start_up()
        elif self.state is State.PROBE_BW_UP and self._is_time_to_go_down(ack):
            self._probe_too_high = False
            self._start_down(ack.now)

    def _start_down(self, now: float) -> None:
        """StartProbeBW_DOWN."""
        self.model.reset_congestion_signals()
        self._pick_probe_wait()
        self._cycle_start = now
        self._probe_stopping = True
        self.model.start_round()
        self._enter(State.PROBE_BW_DOWN)

    def _start_refill(self) -> None:
        """StartProbeBW_REFILL."""
        self.model.reset_shortterm()
        self._growth_rounds = 0
        self._growth_acknowledged = 0
        self._probe_was_precautionary = False
        self._probe_stopping = False
        self.model.start_round()
        self._enter(State.PROBE_BW_REFILL)

    def _start_up(self) -> None:
        """StartProbeBW_UP."""
        self._probe_stopping = False
        self.model.start_round()
        self.model.full_pipe.reset(self.model.rate)
        self._enter(State.PROBE_BW_UP)
        self._raise_growth()

    def _pick_probe_wait(self) -> None:
        """PickProbeWait (5.3.3.8.3), from one step of a linear congruential generator."""
        # A multiplier of L'Ecuyer's table for modulus 2**32 (1999), large: seeds 1 apart yield waits 2/3 s apart.
        self._random = (self._random * 2891336453 + 1) & 0xFFFFFFFF
        self._rounds_since_probe = self._random >> 31
        self._probe_wait = PROBE_WAIT + (self._random & 0x7FFFFFFF) / 0x80000000

    def _is_time_to_probe(self, now: float) -> bool:
        """IsTimeToProbeBW and IsRenoCoexistenceProbeTime (5.3.3.8.3): as often as Reno would lose a segment here."""
        if now > self._cycle_start + self._probe_wait:
            return True
        return self._rounds_since_probe >= min(self._target_inflight() / self._mss, RENO_ROUNDS)

    def _is_time_to_cruise(self, in_flight: int) -> bool:
        """IsTimeToCruise: the queue is gone and others find room."""
        return in_flight <= self._inflight_with_headroom() and in_flight <= self._quantized(
            self._bandwidth_delay(1.0, self.model.max_bandwidth)
        )

    def _is_time_to_go_down(self, ack: AckSample) -> bool:
        """IsTimeToGoDown (5.3.3.7).

        In flight reaches the bound just before an acknowledgment: after one, which may cover 64 KB, it is below.
        """
        if self._probe_too_high and ack.prior_in_flight >= self.inflight_longterm:
            self._probe_was_precautionary = True
            return True
        if ack.cwnd_limited and self.window >= self.inflight_longterm:
            self.model.full_pipe.reset(self.model.rate)  # the bound limits us, not the path
            return False
        return self.model.full_pipe.now

    def _adapt_longterm_model(self, ack: AckSample) -> bool:
        """AdaptLongTermModel (5.3.3.9); returns whether it changed the state."""
        probing = self.state in PROBE_BW_STATES
        if self._probe_stopping and self.model.round_start:  # the last samples of a probe are in
            self._probe_sample = False
            self._probe_stopping = False
            if probing and not self.model.app_limited:
                self.model.advance_max_bandwidth()
            if probing and self._probe_was_precautionary and not self._probe_too_high:
                self._start_refill()  # 5.3.3.6: it was safe, so once more and further
                return True
        if self.inflight_longterm != inf and not self._is_inflight_too_high(
            ack.lost_since, ack.tx_in_flight, ack.selective
        ):
            self.inflight_longterm = max(self.inflight_longterm, ack.tx_in_flight)
            if self.state is State.PROBE_BW_UP:
                self._grow_inflight_longterm(ack)
        return False

    def _raise_growth(self) -> None:
        """RaiseInflightLongtermSlope: one segment in the first round trip, then 2, 4, 8 ..."""
        self._growth_threshold = max(self.window >> self._growth_rounds, self._mss)
        self._growth_rounds = min(self._growth_rounds + 1, GROWTH_ROUNDS_LIMIT)

    def _grow_inflight_longterm(self, ack: AckSample) -> None:
        """ProbeInflightLongtermUpward."""
        if not ack.cwnd_limited or self.window < self.inflight_longterm:
            return  # it is not in full use
        steps, self._growth_acknowledged = divmod(self._growth_acknowledged + ack.delivered, self._growth_threshold)
        self.inflight_longterm += steps * self._mss
        if self.model.round_start:
            self._raise_growth()

    # -- ProbeRTT, 5.3.4

    def _check_probe_rtt(self, ack: AckSample) -> None:
        """CheckProbeRTT."""
        if self.state is not State.PROBE_RTT and self.model.rtt.expired and not self._idle_restart:
            self._save_window()
            self._enter(State.PROBE_RTT)
            self._probe_rtt_done = None
            self.model.begin_to_hold_back()
            self._probe_stopping = True
            self.model.start_round()
        if self.state is State.PROBE_RTT:
            self._handle_probe_rtt(ack)
        self._idle_restart = False

    def _handle_probe_rtt(self, ack: AckSample) -> None:
        """HandleProbeRTT: for at least PROBE_RTT_DURATION and a round trip."""
        self.model.hold_back(ack.in_flight)
        if self._probe_rtt_done is None:
            if ack.in_flight <= self._probe_rtt_window():
                self._probe_rtt_done = ack.now + PROBE_RTT_DURATION
                self._probe_rtt_round_done = False
                self.model.start_round()
            return
        if self.model.round_start:
            self._probe_rtt_round_done = True
        if self._probe_rtt_round_done:
            self._check_probe_rtt_done(ack.now)

    def _check_probe_rtt_done(self, now: float) -> None:
        """CheckProbeRTTDone and ExitProbeRTT."""
        if self._probe_rtt_done is None or now <= self._probe_rtt_done:
            return
        self.model.rtt.on_probed(now)
        self.model.reset_shortterm()
        if self.model.full_pipe.reached:
            self._start_down(now)
            self._enter(State.PROBE_BW_CRUISE)  # 5.3.4.4: nothing is left to drain
        else:
            self._enter(State.STARTUP)
        self._restore_window()

    # -- what was, for the case that a loss was none: 5.5.11.1 and 5.6.4.4

    def _save_state(self) -> None:
        """SaveStateUponLoss.

        Deviates from draft-ietf-ccwg-bbr-06 5.5.10.2: only where a recovery begins, as 5.5.11.1 says in prose, not in
        each of its round trips; the second would save what the first has cut.
        """
        self._save_window()
        self._recovering = True
        self._undo = (self.model.rate_shortterm, self.model.inflight_shortterm, self.inflight_longterm)
        self._undo_state = None

    def _save_window(self) -> None:
        """SaveCwnd."""
        if self._recovering or self.state is State.PROBE_RTT:
            self._prior_window = max(self._prior_window, self.window)
        else:
            self._prior_window = self.window

    def _restore_window(self) -> None:
        """RestoreCwnd, within the bounds that otherwise only the next acknowledgment would apply."""
        self.window = max(self.window, self._prior_window)
        self._set_window(0)

    # -- what follows for the sender, 5.6

    def _enter(self, state: State) -> None:
        self.state = state
        self._pacing_gain, self._window_gain = GAINS[state]

    def _set_pacing_rate(self, gain: float) -> None:
        """SetPacingRateWithGain (5.6.2)."""
        rate = gain * self.model.bandwidth * PACING_MARGIN
        if rate and (self.model.full_pipe.reached or self.pacing_rate is None or rate > self.pacing_rate):
            self.pacing_rate = rate

    def _set_window(self, acknowledged: int) -> None:
        """SetCwnd (5.6.4.6)."""
        most = self._quantized(self._bandwidth_delay(self._window_gain) + self.model.aggregation.extra)
        window: float = self.window
        if self.model.full_pipe.reached:
            window = min(window + acknowledged, most)
        elif window < most or self.model.delivered < INITIAL_WINDOW_SEGMENTS * self._mss:
            window += acknowledged
        window = max(window, MINIMUM_WINDOW_SEGMENTS * self._mss)
        if self.state is State.PROBE_RTT:
            window = min(window, self._probe_rtt_window())
        self.window = int(min(window, self._window_bound()))

    def _window_bound(self) -> float:
        """BoundCwndForModel (5.6.4.7)."""
        bound = self.model.inflight_shortterm
        if self.state in (State.PROBE_RTT, State.PROBE_BW_CRUISE):
            bound = min(bound, self._inflight_with_headroom())
        elif self.state in PROBE_BW_STATES:
            bound = min(bound, self.inflight_longterm)
        return max(bound, MINIMUM_WINDOW_SEGMENTS * self._mss)

    def _bandwidth_delay(self, gain: float, bandwidth: float | None = None) -> float:
        """BDPMultiple (5.6.4.2)."""
        if self.model.rtt.minimum == inf:
            return INITIAL_WINDOW_SEGMENTS * self._mss
        return gain * (self.model.bandwidth if bandwidth is None else bandwidth) * self.model.rtt.minimum

    def _quantized(self, inflight: float) -> float:
        """QuantizationBudget (5.6.4.2): at least what offload at both ends holds back at a time (5.5.8.1)."""
        quantum = min((self.pacing_rate or 0.0) * QUANTUM_TIME, QUANTUM_LIMIT)  # SetSendQuantum, 5.6.3
        quantum = max(quantum, QUANTUM_MINIMUM_SEGMENTS * self._mss)
        inflight = max(inflight, OFFLOAD_QUANTA * quantum, MINIMUM_WINDOW_SEGMENTS * self._mss)
        return inflight + 2 * self._mss if self.state is State.PROBE_BW_UP else inflight

    def _inflight(self, gain: float) -> float:
        """Inflight (5.6.4.2)."""
        return self._quantized(self._bandwidth_delay(gain))

    def _target_inflight(self) -> float:
        """TargetInflight (5.3.3.8.3)."""
        return min(self._bandwidth_delay(1.0), self.window)

    def _inflight_with_headroom(self) -> float:
        """InflightWithHeadroom (5.3.3.9)."""
        if self.inflight_longterm == inf:
            return inf
        headroom = max(self._mss, HEADROOM * self.inflight_longterm)
        return max(self.inflight_longterm - headroom, MINIMUM_WINDOW_SEGMENTS * self._mss)

    def _probe_rtt_window(self) -> float:
        """ProbeRTTCwnd (5.6.4.5)."""
        return max(self._bandwidth_delay(PROBE_RTT_GAIN), MINIMUM_WINDOW_SEGMENTS * self._mss)


def _inflight_at_loss(length: int, tx_in_flight: int, lost: int) -> float:
    """InflightAtLoss (5.5.10.2): how much was in flight when the losses passed LOSS_THRESHOLD, within this segment."""
    before = tx_in_flight - length
    lost_before = lost - length
    return before + max(0.0, LOSS_THRESHOLD * before - lost_before) / (1 - LOSS_THRESHOLD)
