"""Pacing: data leaves in pieces of about a millisecond's worth, not in bursts as large as the window."""

from __future__ import annotations

from math import inf

QUANTUM = 0.001  # seconds between pieces; draft-ietf-ccwg-bbr 5.6.3, and what drivers' timers can do
LATENESS = 0.003  # seconds that a driver may wake up late without loss of rate; ours
SHORTEST_PAUSE = 0.0001  # seconds; ours: a timer that moves no further than a clock's resolution would spin
SLOW_START_GAIN = 2.0  # of the window per round trip: it may double in one; as Linux
AVOIDANCE_GAIN = 1.2  # room to make up for pauses; as Linux
MINIMUM_BURST_SEGMENTS = 2  # draft-ietf-ccwg-bbr 5.6.3
COLD_BURST_SEGMENTS = 10  # RFC 6928: a first flight may leave at once, and so may what a late driver is behind by


class Pacer:
    """A token bucket: credit grows with the pacing rate, and what leaves uses it up. All sizes in bytes."""

    __slots__ = ("_at", "_credit")

    def __init__(self, mss: int) -> None:
        self._credit = float(COLD_BURST_SEGMENTS * mss)
        self._at: float | None = None  # when the credit was right

    def allowance(self, rate: float, wanted: int, mss: int, now: float) -> tuple[int, float | None]:
        """How much of what is `wanted` may leave, and when to ask again if that is nothing.

        Args:
            rate: bytes a second; infinite: no limit.
        """
        if rate == inf:
            return wanted, None
        if self._at is not None:
            limit = max(rate * LATENESS, float(COLD_BURST_SEGMENTS * mss), self._credit)
            self._credit = min(self._credit + rate * max(now - self._at, 0.0), limit)
        self._at = now
        piece = min(wanted, max(rate * QUANTUM, MINIMUM_BURST_SEGMENTS * mss))
        if self._credit >= piece - 1:  # what the timer was set for, whatever the rounding
            return int(self._credit) + 1, None
        return 0, now + max((piece - self._credit) / rate, SHORTEST_PAUSE)

    def restart(self, mss: int) -> None:
        """Nothing is in flight: a first flight may leave at once."""
        self._credit = max(self._credit, float(COLD_BURST_SEGMENTS * mss))

    def on_sent(self, length: int) -> None:
        """`length` bytes left; more than was allowed makes later ones wait."""
        self._credit -= length
