"""What the connections of one tunnel share: memory, and the answers that anybody may ask for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

# All ours; docs/limits.md lists them.
RECEIVE_MEMORY = 64 << 20  # bytes received or promised as a window: twice what 1 Gbit/s brings in 250 ms
RECEIVE_FLOOR = 1 << 14  # bytes that every open connection may hold, whatever the others do: it never stands still
SEND_MEMORY = 64 << 20  # bytes written and not acknowledged, of all connections beyond the floor of each
RESERVE = 1 / 8  # the last part of the receive memory is for connections below their share
IDLE_TIME = 1.0  # seconds without a round trip's worth of reading, and a connection's window may be given to others
CHALLENGE_LIMIT = 1000  # challenge acknowledgments in CHALLENGE_PERIOD, on average; Linux' number
CHALLENGE_PERIOD = 1.0  # seconds
TIME_WAIT_LIMIT = 4096  # connections in TIME-WAIT, of about 4 KB each


class Holder(Protocol):
    """A connection's receiver, as the memory sees it."""

    def give_back(self) -> None:
        """It is idle: release all but the floor and what it holds."""


class Waiting(Protocol):
    """A connection in TIME-WAIT."""

    def end_time_wait(self) -> None:
        """Go to CLOSED now."""


class Random(Protocol):
    """Where unpredictable bytes come from."""

    def random(self, n: int) -> bytes: ...


class ReceiveMemory:
    """Memory for what arrived and was not read, granted to connections before they promise it as a window.

    What is granted can always be kept, so a well-behaved far side never loses data to this limit. Idle connections
    give theirs back when it runs short: their window stays promised, for it must not shrink (RFC 9293 SHLD-14), but
    is covered again only when data comes.
    """

    __slots__ = ("_active", "_idle", "free", "limit")

    def __init__(self, limit: int = RECEIVE_MEMORY) -> None:
        self.limit = limit
        self.free = limit  # below zero by the floors of connections beyond the limit
        self._active: OrderedDict[Holder, float] = OrderedDict()  # to the end of the last round trip, oldest first
        self._idle: OrderedDict[Holder, None] = OrderedDict()

    def admit(self) -> int:
        """The floor of a new connection."""
        self.free -= RECEIVE_FLOOR
        return RECEIVE_FLOOR

    def claim(self, length: int, holder: Holder | None = None) -> int:
        """Up to `length` bytes for `holder`: as many as there are once other idle connections gave back."""
        idle = self._idle
        if holder is not None and holder in idle:
            idle.move_to_end(holder)  # it receives: the last to be asked, and not for its own sake
        while self.free < length and idle and next(iter(idle)) is not holder:
            self._reclaim()
        granted = max(min(length, self.free), 0)
        self.free -= granted
        return granted

    def release(self, length: int) -> None:
        self.free += length

    def on_round(self, holder: Holder, now: float) -> int:
        """A connection's reader took data for a round trip; returns how many connections do that at present."""
        active = self._active
        self._idle.pop(holder, None)
        active[holder] = now
        active.move_to_end(holder)
        while now - active[oldest := next(iter(active))] > IDLE_TIME:
            del active[oldest]
            self._idle[oldest] = None
        return len(active)

    def fair_share(self) -> int | None:
        """Bytes that no active connection should exceed at present; None while there is enough."""
        reserve = int(self.limit * RESERVE)
        while self._idle and self.free < reserve:
            self._reclaim()
        return None if self.free >= reserve else self.limit // max(len(self._active), 1)

    def forget(self, holder: Holder, granted: int) -> None:
        """The connection is over."""
        self.free += granted
        self._active.pop(holder, None)
        self._idle.pop(holder, None)

    def _reclaim(self) -> None:
        holder, _ = self._idle.popitem(last=False)
        holder.give_back()


class ChallengeBudget:
    """RFC 5961 7: challenge acknowledgments are limited in rate, for the tunnel as a whole too.

    How many is drawn anew for each period: a fixed number could be counted out from outside, and would tell whether
    somebody else's connection had been challenged (CVE-2016-5696).
    """

    __slots__ = ("_end", "_entropy", "_left")

    def __init__(self, entropy: Random | None) -> None:
        """Without `entropy` there is no limit."""
        self._entropy = entropy
        self._end = float("-inf")
        self._left = 0

    def take(self, now: float) -> bool:
        """Whether one more may be sent."""
        if self._entropy is None:
            return True
        if now >= self._end:
            self._end = now + CHALLENGE_PERIOD
            drawn = int.from_bytes(self._entropy.random(4), "big") % CHALLENGE_LIMIT
            self._left = CHALLENGE_LIMIT // 2 + drawn
        self._left -= 1
        return self._left >= 0


class SharedLimits:
    """One for each tunnel; a connection by itself has its own."""

    __slots__ = ("_time_wait", "challenges", "receive", "send_free")

    def __init__(self, entropy: Random | None = None) -> None:
        self.receive = ReceiveMemory()
        self.send_free = SEND_MEMORY
        self.challenges = ChallengeBudget(entropy)
        self._time_wait: OrderedDict[Waiting, None] = OrderedDict()

    def enter_time_wait(self, connection: Waiting) -> None:
        """The oldest goes when there are too many: nothing but the far side's last retransmission needs it."""
        self._time_wait[connection] = None
        if len(self._time_wait) > TIME_WAIT_LIMIT:
            oldest, _ = self._time_wait.popitem(last=False)
            oldest.end_time_wait()

    def leave_time_wait(self, connection: Waiting) -> None:
        self._time_wait.pop(connection, None)
