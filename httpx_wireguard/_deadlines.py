"""A set of deadlines, one per item, that costs a dictionary write to move."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)


class Deadlines(Generic[_T]):
    """Which item is due next, for thousands of items.

    A deadline that moves later (a retransmission timer restarted by every acknowledgment) only updates a
    dictionary; the heap entry is put right when it comes up. So `next` may be too early, never too late.
    """

    __slots__ = ("_counter", "_due", "_heap", "_queued")

    def __init__(self) -> None:
        self._due: dict[_T, float] = {}
        self._queued: dict[_T, float] = {}  # the earliest heap entry of each item
        self._heap: list[tuple[float, int, _T]] = []
        self._counter = count()  # breaks ties, so that items are never compared

    def set(self, item: _T, due: float | None) -> None:
        """Set, move or (None) drop the item's deadline, in seconds on the caller's clock."""
        if due is None:
            self._due.pop(item, None)
            return
        self._due[item] = due
        queued = self._queued.get(item)
        if queued is None or due < queued:
            self._queued[item] = due
            heapq.heappush(self._heap, (due, next(self._counter), item))
            if len(self._heap) > 4 * len(self._due) + 64:  # ours: stale entries with far deadlines would pile up
                self._rebuild()

    def _rebuild(self) -> None:
        self._queued = dict(self._due)
        self._heap = [(due, next(self._counter), item) for item, due in self._due.items()]
        heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest time at which an item may be due; None when there is none."""
        heap = self._heap
        while heap:
            when, _, item = heap[0]
            if self._queued.get(item) == when and item in self._due:
                return when
            heapq.heappop(heap)
            if self._queued.get(item) == when:
                del self._queued[item]
        return None

    def take_due(self, now: float) -> list[_T]:
        """Remove and return the items whose deadline is at or before `now`."""
        ready: list[_T] = []
        while self._heap and self._heap[0][0] <= now:
            when, _, item = heapq.heappop(self._heap)
            if self._queued.get(item) != when:
                continue  # an older entry of an item that was queued again
            del self._queued[item]
            due = self._due.get(item)
            if due is None:
                continue
            if due <= now:
                del self._due[item]
                ready.append(item)
            else:
                self.set(item, due)
        return ready
