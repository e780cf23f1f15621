"""Tail loss probe: the end of a flight is asked after before the retransmission timer would (RFC 8985 7)."""

from __future__ import annotations

from httpx_wireguard._netstack.rtt import INITIAL_RTO, RttEstimator

MAXIMUM_ACK_DELAY = 0.2  # seconds; TLP.max_ack_delay, RFC 8985 7.2
GRANULARITY = 0.002  # seconds; as Linux: drivers' timers are no finer, and a probe at the last moment helps nobody


class TailProbe:
    """One probe at most is on its way. Sequence numbers are unwrapped, times monotonic seconds."""

    __slots__ = ("_again", "_end", "due", "probe_at")

    def __init__(self) -> None:
        self.probe_at: float | None = None  # PTO
        self.due = False  # the timer ran out: send it
        self._end: int | None = None  # TLP.end_seq: SND.NXT when the probe on its way left
        self._again = False  # TLP.is_retrans

    def arm(self, rtt: RttEstimator, single: bool, retransmit_at: float, now: float) -> None:
        """RFC 8985 7.2: new data was sent or acknowledged; `single`: at most one segment is in flight."""
        if self._end is not None:
            return
        timeout = INITIAL_RTO if rtt.smoothed is None else 2 * rtt.smoothed + GRANULARITY
        if single:
            timeout += MAXIMUM_ACK_DELAY
        self.probe_at = min(now + timeout, retransmit_at)

    def on_sent(self, send_next: int, again: bool) -> None:
        """The probe left: as new data, or as a retransmission."""
        self._end, self._again = send_next, again
        self.probe_at = None  # which new data, the probe itself, has set

    def cancel(self) -> None:
        """Recovery looks after the flight now."""
        self.probe_at = self._end = None
        self.due = False

    def explains(self, reported: tuple[int, int]) -> bool:
        """Whether a D-SACK is of the probe itself, which no detection of losses sent."""
        return self._again and reported[1] == self._end

    def repaired_a_loss(self, acknowledgment: int, duplicate: bool, reported: tuple[int, int] | None) -> bool:
        """RFC 8985 7.4.2: whether an acknowledgment shows that the probe replaced what was lost.

        Args:
            duplicate: it acknowledges nothing new and carries no data.
            reported: the D-SACK in it (RFC 2883).
        """
        if self._end is None or acknowledgment < self._end:
            return False
        if not self._again or (reported is not None and self.explains(reported)):
            self._end = None
        elif acknowledgment > self._end:
            self._end = None
            return True
        elif duplicate:
            self._end = None
        return False
