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

    It is kept a little longer, until more than `forget_at` is acknowledged: D-SACKs that prove it needless come late, and
    so do duplicate acknowledgments of what it sent again.
    """

    __slots__ = (
        "_eifel_pending",
        "_retransmitted_at",
        "after_timeout",
        "began_at",
        "forget_at",
        "forward",
        "needless",
        "point",
        "prr",
        "retransmitted",
        "start",
    )

    def __init__(self, start: int, point: int, now: float, *, after_timeout: bool, prr: Prr | None) -> None:
        self.start = start  # SND.UNA when it began
        self.point = point  # RecoveryPoint: SND.NXT when it began
        self.began_at = now
        self.after_timeout = after_timeout
        self.prr = prr  # None: the congestion control sets the window itself
        self.forward = Forward.RETRANSMITTED if after_timeout else Forward.OFF
        self.forget_at: int | None = None  # sequence number; None while it lasts
        self.retransmitted = 0  # bytes sent again
        self.needless = 0  # bytes of these that D-SACKs named
        self._retransmitted_at: int | None = None  # ms; RetransmitTS of RFC 3522 3.2
        self._eifel_pending = True

    def on_sent(self, length: int, now: float, *, again: bool) -> None:
        """`length` bytes leave while it lasts; `again`: not for the first time."""
        if self.prr is not None:
            self.prr.on_sent(length)
        if again:
            self.retransmitted += length
            if self._retransmitted_at is None:
                self._retransmitted_at = int(now * 1000)

    def is_spurious(self, delivery: Delivery, advanced: bool, echo: int | None) -> bool:
        """What an acknowledgment says of it: True if nothing had been lost.

        Args:
            echo: as for `Delivery`.
        """
        if advanced and self._eifel_pending and self._retransmitted_at is not None:
            self._eifel_pending = False
            if echo is not None and echo < self._retransmitted_at:
                return True  # RFC 3522 3.2 (5): it answers the first transmission
        if self.forward is not Forward.NEW_DATA:
            return False
        # RFC 5682 3.1 (3b): what left before the timeout, and once only, arrived
        return delivery.oldest_original is not None and delivery.oldest_original < self.began_at

    def advance_forward(self, advanced: bool) -> None:
        """RFC 5682 3.1: an acknowledgment that proves nothing."""
        if self.forward is Forward.RETRANSMITTED and advanced:
            self.forward = Forward.NEW_DATA  # (2b)
        elif self.forward is Forward.NEW_DATA:
            self.forward = Forward.OFF  # (3a)

    def proven_needless(self) -> bool:
        """RFC 3708 2: every retransmission was reported as a duplicate (RFC 2883)."""
        return 0 < self.retransmitted <= self.needless
