"""How large a segment the path takes, where no router tells (RFC 4821, RFC 8899): black holes found and left again."""

from __future__ import annotations

SMALLER = (1208, 1012, 524)  # bytes of payload: a path MTU of 1280 (RFC 8200 5), 1064 and 576 (RFC 1122 3.3.3), about
PATIENCE = 3  # timeouts in a row; MAX_PROBES, RFC 8899 5.1.2
FIRST_RAISE_INTERVAL = 10.0  # seconds; ours: what looked like a black hole may have been a burst of losses
RAISE_INTERVAL = 600.0  # seconds; PMTU_RAISE_TIMER, RFC 8899 5.1.1


class SegmentSize:
    """Steps down while large segments vanish, and tries a full one now and then."""

    __slots__ = ("_full", "_interval", "_probe_end", "_raise_at", "_size")

    def __init__(self, full: int) -> None:
        self._full = full  # what the MTU and the far side allow
        self._size = full
        self._probe_end: int | None = None  # sequence number after the full segment on its way
        self._raise_at = 0.0
        self._interval = FIRST_RAISE_INTERVAL  # until the probe after the next

    def limit(self, full: int) -> None:
        """A router told (RFC 1191, RFC 8201): what is larger need not be tried."""
        self._full = min(self._full, full)
        self._size = min(self._size, full)

    def on_timeout(self, retries: int, length: int) -> int | None:
        """The size to go on with, if the path seems to swallow segments of `length` bytes; else None.

        Args:
            retries: timeouts in a row, this one included.
        """
        self._probe_end = None
        smaller = next((size for size in SMALLER if size < min(length, self._size)), None)
        if retries < PATIENCE or smaller is None:
            return None
        self._size = smaller
        self._raise_at = 0.0  # at once: if a full segment passes now, it was an outage and no black hole
        return smaller

    def probe(self, waiting: int, now: float) -> int:
        """The length of a full segment that should be tried now, of the `waiting` bytes; 0 for none."""
        due = self._size < self._full <= waiting and self._probe_end is None and now >= self._raise_at
        return self._full if due else 0

    def on_probe_sent(self, end: int, now: float) -> None:
        """It left, and ends before sequence number `end`."""
        self._probe_end = end
        self._raise_at = now + self._interval
        self._interval = min(4 * self._interval, RAISE_INTERVAL)

    def on_sent_again(self, start: int, end: int) -> None:
        """[start, end) was lost: if the probe is in it, the path is narrow."""
        if self._probe_end is not None and start < self._probe_end <= end:
            self._probe_end = None

    def on_ack(self, unacknowledged: int) -> int | None:
        """The full size, if the probe that was on its way is acknowledged; else None."""
        if self._probe_end is None or unacknowledged < self._probe_end:
            return None
        self._probe_end = None
        self._size = self._full
        self._interval = FIRST_RAISE_INTERVAL
        return self._full
