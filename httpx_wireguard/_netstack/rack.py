"""RACK: what left well before something that has arrived is lost (RFC 8985 6)."""

from __future__ import annotations

from httpx_wireguard._netstack.rtt import RttEstimator
from httpx_wireguard._netstack.scoreboard import Delivery, Scoreboard, Transmission

DUPLICATE_THRESHOLD = 3  # DupThresh, RFC 8985 6.2 step 4, RFC 5681 3.2
WINDOW_DIVISOR = 4  # RFC 8985 6.2 step 4: a quarter of the smallest round trip for each step
WINDOW_PERSIST = 16  # recoveries, RFC 8985 6.2 step 4


class Rack:
    """The most recent delivery, and how much reordering the path is given credit for."""

    __slots__ = ("_end", "_persist", "_reordering_seen", "_rtt", "_sent_at", "_steps", "_widened_at", "recheck_at")

    def __init__(self) -> None:
        self._sent_at = float("-inf")  # RACK.xmit_ts
        self._end = 0  # RACK.end_seq
        self._rtt = 0.0  # RACK.rtt
        self._reordering_seen = False  # RACK.reordering_seen
        self._steps = 1  # RACK.reo_wnd_mult
        self._persist = WINDOW_PERSIST  # RACK.reo_wnd_persist
        self._widened_at: int | None = None  # RACK.dsack_round: SND.NXT when a D-SACK last widened the window
        self.recheck_at: float | None = None  # when to look again: the reordering timer

    def on_delivered(self, delivery: Delivery, now: float) -> None:
        """RFC 8985 6.2 steps 2 and 3."""
        newest = delivery.newest
        if newest is not None and (newest.sent_at, delivery.newest_end) > (self._sent_at, self._end):
            self._sent_at, self._end = newest.sent_at, delivery.newest_end
            self._rtt = now - newest.sent_at
        self._reordering_seen = self._reordering_seen or delivery.reordered

    def on_duplicate_reported(self, unacknowledged: int, send_next: int) -> None:
        """RFC 8985 6.2 step 4: a D-SACK says that we were too quick; once per round trip the window grows."""
        if self._widened_at is None or unacknowledged >= self._widened_at:
            self._widened_at = send_next
            self._steps += 1
            self._persist = WINDOW_PERSIST

    def on_reordering(self) -> None:
        """What was declared lost arrived after all."""
        self._reordering_seen = True

    def on_recovery_end(self) -> None:
        """RFC 8985 6.2 step 4: after 16 recoveries without a D-SACK it shrinks again."""
        self._persist -= 1
        if self._persist <= 0:
            self._steps, self._persist = 1, WINDOW_PERSIST

    def detect_losses(
        self, board: Scoreboard, rtt: RttEstimator, mss: int, recovering: bool, now: float
    ) -> list[Transmission]:
        """RFC 8985 6.2 step 5: mark what is lost, and set the timer for what may be."""
        window = self._reordering_window(board, rtt, mss, recovering)
        overdue = self._sent_at, self._end
        found: list[Transmission] = []
        self.recheck_at = None
        for one in board.transmissions:
            if one.sacked or one.lost:
                continue
            if (one.sent_at, one.end) >= overdue:
                if not one.retransmitted:
                    break  # all that follows left for the first time later than this, and again later still
                continue
            lost_at = one.sent_at + self._rtt + window
            if lost_at <= now:
                board.mark_lost(one)
                found.append(one)
            elif self.recheck_at is None or lost_at > self.recheck_at:
                self.recheck_at = lost_at
        return found

    def _reordering_window(self, board: Scoreboard, rtt: RttEstimator, mss: int, recovering: bool) -> float:
        """RACK_update_reo_wnd of RFC 8985 6.2 step 4: zero while nothing speaks for reordering."""
        if not self._reordering_seen and (
            recovering or board.sacked > (DUPLICATE_THRESHOLD - 1) * mss or board.pieces_sacked >= DUPLICATE_THRESHOLD
        ):
            return 0.0
        if rtt.minimum is None or rtt.smoothed is None:
            return 0.0
        return min(self._steps * rtt.minimum / WINDOW_DIVISOR, rtt.smoothed)
