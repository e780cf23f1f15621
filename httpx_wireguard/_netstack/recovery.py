"""Which bytes in flight are lost: the SACK scoreboard (RFC 2018, RFC 6675)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

DUPLICATE_THRESHOLD = 3  # DupThresh, RFC 6675 2
MAXIMUM_RANGES = 2048  # ours: bounds the work that selective acknowledgments of single bytes ask for (CVE-2019-11478)


class Scoreboard:
    """What the far side holds above SND.UNA, as disjoint ranges of unwrapped sequence numbers.

    A hole is lost once DupThresh ranges, or more than DupThresh - 1 full segments, above it were selectively
    acknowledged, or once a timeout declared everything in flight lost. A peer without SACK is served by counting
    duplicate acknowledgments.
    """

    __slots__ = (
        "_ends",
        "_starts",
        "after_timeout",
        "duplicates",
        "lost_below",
        "recovery_point",
        "retransmitted_below",
        "sacked",
    )

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.sacked = 0  # bytes in the ranges
        self.duplicates = 0  # duplicate acknowledgments without SACK information
        self.lost_below = 0  # holes before this sequence number are lost
        self.retransmitted_below = 0  # HighRxt: holes before this were sent again
        self.recovery_point: int | None = None  # RecoveryPoint; None outside recovery
        self.after_timeout = False  # this recovery was begun by a timeout, not by selective acknowledgments

    def add(self, start: int, end: int) -> int:
        """Mark [start, end) as held by the far side; returns how many bytes of it are news."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        known = 0
        if first == last and len(self._starts) >= MAXIMUM_RANGES:
            return 0  # as if it had not been said: it will be sent once more
        if first < last:
            known = sum(self._ends[first:last]) - sum(self._starts[first:last])
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        news = end - start - known
        self.sacked += news
        return news

    def release(self, unacknowledged: int) -> None:
        """SND.UNA moved to `unacknowledged`: forget what lies before it."""
        keep = bisect_right(self._ends, unacknowledged)
        if keep:
            self.sacked -= sum(self._ends[:keep]) - sum(self._starts[:keep])
            del self._starts[:keep], self._ends[:keep]
        if self._starts and self._starts[0] < unacknowledged:
            self.sacked -= unacknowledged - self._starts[0]
            self._starts[0] = unacknowledged

    def clear(self) -> None:
        """Forget everything: the peer may have reneged (RFC 2018 8)."""
        self._starts.clear()
        self._ends.clear()
        self.sacked = 0
        self.duplicates = 0

    def mark_lost(self, mss: int) -> None:
        """RFC 6675 4 IsLost: raise `lost_below` to the last hole with enough above it."""
        above = 0
        newest = zip(reversed(self._starts), reversed(self._ends), strict=True)
        for count, (start, end) in enumerate(newest, 1):
            above += end - start
            if count >= DUPLICATE_THRESHOLD or above > (DUPLICATE_THRESHOLD - 1) * mss:
                self.lost_below = max(self.lost_below, start)
                return

    def lose_all(self, unacknowledged: int, send_next: int) -> None:
        """Begin a recovery in which all that is in flight, and was not selectively acknowledged, is lost."""
        self.lost_below = send_next
        self.retransmitted_below = unacknowledged
        self.recovery_point = send_next

    def holes(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges between `start` and `stop` that were not selectively acknowledged."""
        found: list[tuple[int, int]] = []
        index = bisect_right(self._ends, start)
        while start < stop and index < len(self._starts):
            if self._starts[index] > start:
                found.append((start, min(self._starts[index], stop)))
            start = self._ends[index]
            index += 1
        if start < stop:
            found.append((start, stop))
        return found

    def next_hole(self, unacknowledged: int) -> tuple[int, int] | None:
        """RFC 6675 4 NextSeg rule 1: the first lost range that was not yet sent again."""
        start = max(self.retransmitted_below, unacknowledged)
        if start >= self.lost_below:
            return None
        index = bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] <= start:
            start = self._ends[index]
            index += 1
        if start >= self.lost_below:
            return None
        stop = self._starts[index] if index < len(self._starts) else self.lost_below
        return start, min(stop, self.lost_below)

    def in_flight(self, unacknowledged: int, send_next: int, mss: int) -> int:
        """RFC 6675 4 SetPipe: bytes that are still in the network."""
        pipe = send_next - unacknowledged - self.sacked - self.duplicates * mss
        start = max(self.retransmitted_below, unacknowledged)
        if start < self.lost_below:
            pipe -= sum(end - begin for begin, end in self.holes(start, self.lost_below))
        return max(pipe, 0)
