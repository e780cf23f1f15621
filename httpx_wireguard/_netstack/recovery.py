"""The course of one loss recovery: how it began, and whether it was a mistake (RFC 3522, RFC 5682, RFC 3708)."""

from __future__ import annotations

from enum import Enum

from httpx_wireguard._netstack.congestion.prr import Prr
from httpx_wireguard._netstack.scoreboard import Delivery


class Forward(Enum):
    """Where F-RTO stands: RFC 5682 3.1."""

    OFF = "conventional recovery"
    RETRANSMITTED = "step 2: the first segment was sent again, its acknowledgment will tell"
    NEW_DATA = "step 3: new data was sent instead of the rest"


class Recovery:
    """From the first loss until everything that was in flight then (`point`) is acknowledged.

    It is kept a little longer, until more than `forget_at` is acknowledged: D-SACKs that prove it needless come late,
    and so do duplicate acknowledgments of what it sent again.
    """

    __slots__ = (
        "_doubtful",
        "_eifel_pending",
        "_first_again",
        "after_timeout",
        "asked_from",
        "began_at",
        "forget_at",
        "forward",
        "point",
        "prr",
        "reduced",
        "retransmitted",
    )

    def __init__(self, point: int, now: float, *, after_timeout: bool, prr: Prr | None, reduced: bool) -> None:
        """
        Args:
            point: RecoveryPoint, SND.NXT when it began.
            prr: None: the congestion control sets the window itself.
            reduced: the congestion control reduced the window for it.
        """
        self.point = point
        self.began_at = now
        self.after_timeout = after_timeout
        self.prr = prr
        self.reduced = reduced
        self.forward = Forward.RETRANSMITTED if after_timeout else Forward.OFF
        self.asked_from = 0  # SND.NXT when F-RTO began to send new data
        self.forget_at: int | None = None  # sequence number; None while it lasts
        self.retransmitted = False  # something was sent again
        self._doubtful: list[tuple[int, int]] = []  # of this, what no D-SACK named
        self._first_again: tuple[int, int] | None = None  # its first sequence number, and RetransmitTS (RFC 3522 3.2)
        self._eifel_pending = True

    def on_sent(self, start: int, end: int, now: float, *, again: bool) -> None:
        """What lies between two sequence numbers leaves while it lasts; `again`: not for the first time."""
        if self.prr is not None:
            self.prr.on_sent(end - start)
        if not again:
            return
        self.retransmitted = True
        if self._first_again is None:
            self._first_again = start, int(now * 1000)
        if self._doubtful and self._doubtful[-1][1] == start:
            start = self._doubtful.pop()[0]
        self._doubtful.append((start, end))

    def on_duplicate_reported(self, start: int, end: int) -> None:
        """RFC 3708 2: cross off what came twice. What was not sent again does not count: the network made a copy."""
        left: list[tuple[int, int]] = []
        for first, last in self._doubtful:
            if first < start:
                left.append((first, min(last, start)))
            if end < last:
                left.append((max(first, end), last))
        self._doubtful = left

    def is_spurious(self, delivery: Delivery, unacknowledged: int, echo: int | None) -> bool:
        """What an acknowledgment says of it: True if nothing had been lost.

        Args:
            unacknowledged: SND.UNA after it.
            echo: as for `Delivery`.
        """
        if self._eifel_pending and self._first_again is not None and unacknowledged > self._first_again[0]:
            self._eifel_pending = False
            if echo is not None and echo < self._first_again[1]:
                return True  # RFC 3522 3.2 (5): it answers the first transmission
        if self.forward is not Forward.NEW_DATA:
            return False
        # RFC 5682 3.1 (3b): what left before the timeout, and once only, arrived
        return delivery.oldest_original is not None and delivery.oldest_original < self.began_at

    def advance_forward(self, advanced: bool, sack: bool, send_next: int) -> None:
        """RFC 5682 2.1, 3.1: an acknowledgment that proves nothing."""
        if self.forward is Forward.RETRANSMITTED and advanced:
            self.forward = Forward.NEW_DATA  # (2b)
            self.asked_from = send_next
        elif self.forward is Forward.NEW_DATA or not sack:
            self.forward = Forward.OFF  # (3a), 2.1 (2a)

    def proven_needless(self) -> bool:
        """RFC 3708 2: every retransmission was reported as a duplicate (RFC 2883)."""
        return self.retransmitted and not self._doubtful
