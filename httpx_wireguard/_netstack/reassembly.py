"""TCP data that arrived out of order (RFC 9293 3.10.7.4 "seventh", RFC 2018 section 4)."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice

# Our limits; both only refuse data, which the sender keeps until it is acknowledged (RFC 2018 section 8).
MAX_RANGES = 2048  # holes at once: a 16 MiB window of full segments at 10 % loss has about 1100
FEW_RANGES = 64  # that a small buffer may have too
BYTES_PER_SEGMENT = 512  # of buffer for each segment, and each hole: bounds their overhead (CVE-2018-5390)
_JOINED_LENGTH = 65536  # bytes of a joined piece: what one read of the application takes


class _Range:
    """Bytes `start` to `end`, without a hole, as the pieces in which they arrived."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int, end: int, pieces: list[bytes]) -> None:
        self.start = start
        self.end = end
        self.pieces = pieces


class ReassemblyQueue:
    """Holds what arrived behind a hole, until the hole is filled.

    Offsets are unbounded ints: the connection unwraps sequence numbers. The connection also keeps data inside its
    receive window; the limits here are against many small segments, not a substitute for the window.
    Of bytes that arrive twice the first ones stay, so nobody can replace data after it was acknowledged with SACK.
    """

    __slots__ = (
        "_max_bytes",
        "_max_ranges",
        "_max_segments",
        "_most_ranges",
        "_ranges",
        "_recent",
        "_segments",
        "_starts",
        "bytes_held",
    )

    def __init__(self, max_bytes: int, max_ranges: int = MAX_RANGES) -> None:
        """
        Args:
            max_bytes: refuse data beyond this many; see `set_max_bytes`.
            max_ranges: refuse data that would open one more range; a small `max_bytes` allows fewer.
        """
        self._most_ranges = max_ranges
        self.bytes_held = 0
        self._segments = 0  # pieces in all ranges
        self._ranges: list[_Range] = []  # by offset; neither overlap nor touch
        self._starts: list[int] = []  # of the ranges, for bisect
        self._recent: dict[_Range, None] = {}  # the same ranges, the one updated last at the end
        self.set_max_bytes(max_bytes)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def end(self) -> int:
        """The offset behind the last byte held; 0 when there is none."""
        return self._ranges[-1].end if self._ranges else 0

    @property
    def start(self) -> int | None:
        """The lowest offset held."""
        return self._starts[0] if self._starts else None

    def set_max_bytes(self, max_bytes: int) -> None:
        """Change the limit, as the receive window changes. What is held stays."""
        self._max_bytes = max_bytes
        self._max_ranges = min(self._most_ranges, max(FEW_RANGES, max_bytes // BYTES_PER_SEGMENT))
        # At least four times the ranges, so that joining the pieces of each range always frees most of them.
        self._max_segments = max(4 * self._max_ranges, 4 * len(self._ranges), max_bytes // BYTES_PER_SEGMENT)

    def insert(self, start: int, data: bytes) -> int:
        """Keep `data`, which begins at offset `start`.

        Returns:
            The number of new bytes: fewer than `len(data)` when some are held already; 0 when all are, or when a
            limit refuses the segment, which is then dropped as a whole.
        """
        if not data:
            return 0
        if self._ranges and (last := self._ranges[-1]).end == start:  # the common case: behind one hole, in order
            if self.bytes_held + len(data) > self._max_bytes:
                return 0
            last.pieces.append(data)
            last.end += len(data)
            return self._account(last, len(data), 1)
        end = start + len(data)
        first = bisect_right(self._starts, start)
        if first and self._ranges[first - 1].end >= start:
            first -= 1
        behind = bisect_right(self._starts, end, lo=first)
        if first == behind:
            return self._insert_range(first, start, data)
        return self._merge(first, behind, start, data)

    def take_from(self, next_offset: int) -> list[bytes]:
        """Remove and return the data that continues at `next_offset`, and forget everything below it.

        Returns:
            Non-empty pieces in order; an empty list while there is a hole at `next_offset`.
        """
        if not self._ranges or self._starts[0] > next_offset:
            return []
        count = bisect_right(self._starts, next_offset)
        taken = self._ranges[:count]
        del self._ranges[:count], self._starts[:count]
        for held in taken:
            del self._recent[held]
            self.bytes_held -= held.end - held.start
            self._segments -= len(held.pieces)
        last = taken[-1]
        return _without_prefix(last.pieces, next_offset - last.start)

    def ranges(self, limit: int = 4) -> list[tuple[int, int]]:
        """The ranges held as (start, end), the one that the latest segment fell into first, then by age of update.

        Args:
            limit: the most to return; a SACK option holds 4 (RFC 2018 section 3).
        """
        return [(held.start, held.end) for held in islice(reversed(self._recent), limit)]

    def first_held(self, start: int, end: int) -> tuple[int, int] | None:
        """The first stretch of [start, end) that is held; None when nothing of it is."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        for held in self._ranges[index : index + 2]:
            if held.start < end and held.end > start:
                return max(held.start, start), min(held.end, end)
        return None

    def clear(self) -> None:
        """Drop everything."""
        self._ranges.clear()
        self._starts.clear()
        self._recent.clear()
        self.bytes_held = self._segments = 0

    def _insert_range(self, index: int, start: int, data: bytes) -> int:
        """A segment that touches nothing held."""
        if len(self._ranges) >= self._max_ranges or self.bytes_held + len(data) > self._max_bytes:
            return 0
        held = _Range(start, start + len(data), [data])
        self._ranges.insert(index, held)
        self._starts.insert(index, start)
        return self._account(held, len(data), 1)

    def _merge(self, first: int, behind: int, start: int, data: bytes) -> int:
        """A segment that overlaps or touches the ranges `first` to `behind - 1`: they become one."""
        end = start + len(data)
        touched = self._ranges[first:behind]
        new = len(data) - sum(min(end, held.end) - max(start, held.start) for held in touched)
        if new == 0:
            return self._account(touched[0], 0, 0)
        if self.bytes_held + new > self._max_bytes:
            return 0
        target = touched[0]
        added = 0
        if start < target.start:
            target.pieces.insert(0, data[: target.start - start])
            target.start = self._starts[first] = start
            added += 1
        for held in touched[1:]:
            target.pieces.append(data[target.end - start : held.start - start])
            target.pieces += held.pieces
            target.end = held.end
            added += 1
            del self._recent[held]
        if end > target.end:
            target.pieces.append(data[target.end - start :])
            target.end = end
            added += 1
        del self._ranges[first + 1 : behind], self._starts[first + 1 : behind]
        return self._account(target, new, added)

    def _account(self, updated: _Range, new_bytes: int, new_segments: int) -> int:
        self.bytes_held += new_bytes
        self._segments += new_segments
        self._recent.pop(updated, None)
        self._recent[updated] = None
        if self._segments > self._max_segments:
            self._join_pieces()
        return new_bytes

    def _join_pieces(self) -> None:
        """Copy the pieces of every range into large ones.

        Afterwards there is less than one piece per range and 64 KB, a quarter of the limit, so the copy of all bytes
        held is paid for by thousands of segments.
        """
        self._segments = 0
        for held in self._ranges:
            if len(held.pieces) > 1:
                joined = b"".join(held.pieces)
                held.pieces = [joined[i : i + _JOINED_LENGTH] for i in range(0, len(joined), _JOINED_LENGTH)]
            self._segments += len(held.pieces)


def _without_prefix(pieces: list[bytes], count: int) -> list[bytes]:
    """`pieces` without their first `count` bytes."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            rest = pieces[index:]
            rest[0] = piece[count:]
            return rest
        count -= len(piece)
    return []
