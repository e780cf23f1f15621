"""Round-trip time and the retransmission timeout (RFC 6298)."""

from __future__ import annotations

INITIAL_RTO = 1.0  # seconds; RFC 6298 2.1
FALLBACK_RTO = 3.0  # seconds; RFC 6298 5.7: when the SYN had to be sent again
# Deviates from RFC 6298 2.4 (1 s for the whole timeout): as Linux, at least this above the smoothed round trip, which
# leaves room for the far side's delayed acknowledgment.
MINIMUM_MARGIN = 0.2  # seconds
MAXIMUM_RTO = 120.0  # seconds; RFC 6298 2.5 allows any maximum of at least 60 s


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

    def observe(self, rtt: float) -> None:
        """A measurement of a segment that was sent once only, of which there may be many in a round trip."""
        self.latest = rtt
        self.minimum = rtt if self.minimum is None else min(self.minimum, rtt)

    def on_sample(self, rtt: float) -> None:
        """The measurement of a round trip (RFC 6298 2); Karn's algorithm is the caller's."""
        self.observe(rtt)
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

    def relax(self) -> None:
        """New data was acknowledged. Deviates from RFC 6298 5.7 and Karn's algorithm, by which the timeout stays as far
        backed off as it is until a sample: on a path that loses much, to a peer without timestamps, that takes minutes.
        One doubling is kept, for a path that has become slower."""
        if self._backoff > 1:
            self._backoff = 1
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
        smoothed = self.smoothed
        base = self._initial if smoothed is None else smoothed + max(MINIMUM_MARGIN, 4 * self.variance)
        self.timeout = min(MAXIMUM_RTO, base * 2.0 ** min(self._backoff, 10))
