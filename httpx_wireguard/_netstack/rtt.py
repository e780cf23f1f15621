"""Round-trip time and the retransmission timeout (RFC 6298)."""

from __future__ import annotations

INITIAL_RTO = 1.0  # seconds; RFC 6298 2.1
FALLBACK_RTO = 3.0  # seconds; RFC 6298 5.7: when the SYN had to be sent again
MINIMUM_RTO = 0.2  # seconds; Deviates from RFC 6298 2.4 (1 s): Linux, FreeBSD and Windows all use less
MAXIMUM_RTO = 120.0  # seconds; RFC 6298 2.5 allows any maximum of at least 60 s
GRANULARITY = 0.001  # seconds; G of RFC 6298 2.3: drivers wake up no more exactly than this


class RttEstimator:
    """Smoothed round-trip time and its variance; all times in seconds."""

    __slots__ = ("_backoff", "_initial", "latest", "minimum", "smoothed", "timeout", "variance")

    def __init__(self) -> None:
        self.smoothed: float | None = None  # SRTT
        self.variance = 0.0  # RTTVAR
        self.latest: float | None = None
        self.minimum: float | None = None
        self._initial = INITIAL_RTO
        self._backoff = 0  # doublings since the last measurement
        self.timeout = INITIAL_RTO  # RTO with its backoff

    def on_sample(self, rtt: float) -> None:
        """One measurement of a segment that was sent once only (Karn's algorithm, RFC 6298 3)."""
        self.latest = rtt
        self.minimum = rtt if self.minimum is None else min(self.minimum, rtt)
        if self.smoothed is None:  # RFC 6298 2.2
            self.smoothed = rtt
            self.variance = rtt / 2
        else:  # RFC 6298 2.3: RTTVAR first, with the old SRTT
            self.variance = 0.75 * self.variance + 0.25 * abs(self.smoothed - rtt)
            self.smoothed = 0.875 * self.smoothed + 0.125 * rtt
        self._backoff = 0
        self._update()

    def back_off(self) -> None:
        """RFC 6298 5.5: double the timeout."""
        self._backoff += 1
        self._update()

    @property
    def backed_off(self) -> bool:
        """The timeout stays doubled until a new measurement: Karn's algorithm (RFC 9293 MUST-18)."""
        return self._backoff > 0

    def fall_back(self) -> None:
        """RFC 6298 5.7: the handshake gave no measurement because its SYN was sent again."""
        if self.smoothed is None:
            self._initial, self._backoff = FALLBACK_RTO, 0
            self._update()

    def _update(self) -> None:
        if self.smoothed is None:
            base = self._initial
        else:
            base = max(MINIMUM_RTO, self.smoothed + max(GRANULARITY, 4 * self.variance))
        self.timeout = min(MAXIMUM_RTO, base * 2.0 ** min(self._backoff, 10))
