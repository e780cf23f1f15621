"""Proportional Rate Reduction: how much each acknowledgment lets go during fast recovery (RFC 9937)."""

from __future__ import annotations


class Prr:
    """One fast recovery: brings what is in flight down to ssthresh without a burst and without a pause.

    Args:
        threshold: ssthresh, as the congestion control chose it for this recovery.
        recover_flight: RecoverFS, bytes. What was sent and neither acknowledged nor selectively acknowledged just
            before the acknowledgment that begins the recovery (RFC 9937 6.1). The data just found lost counts, and so
            does what limited transmit (RFC 3042) sent; but that was sent before the recovery: not for `on_sent`.
    """

    __slots__ = ("_delivered", "_out", "_recover_flight", "_threshold", "_window")

    def __init__(self, threshold: int, recover_flight: int) -> None:
        self._threshold = threshold
        self._recover_flight = max(recover_flight, 1)
        self._delivered = 0  # prr_delivered
        self._out = 0  # prr_out
        self._window = 0  # cwnd

    def on_ack(self, delivered: int, in_flight: int, lost: int, advanced: bool, mss: int) -> int:
        """RFC 9937 6.2, for each acknowledgment from the one that begins the recovery to the last but one.

        Also for the timer that begins a recovery, or finds more lost in it: then nothing was delivered.

        Args:
            delivered: DeliveredData, bytes newly acknowledged or selectively acknowledged.
            in_flight: bytes in the network now, without what is lost.
            lost: bytes newly declared lost.
            advanced: SND.UNA moved.

        Returns:
            cwnd: `in_flight` and what may be sent now. At least one segment until the first was sent, so that the
            fast retransmit always goes.
        """
        if not delivered:  # cwnd stays: what the timer declared lost may be sent again
            if not self._out:
                self._window = max(self._window, in_flight + mss)
            return self._window
        self._delivered += delivered
        threshold = self._threshold
        if in_flight > threshold:  # in proportion, rounded up
            send = -(-self._delivered * threshold // self._recover_flight) - self._out
        else:
            send = max(self._delivered - self._out, delivered)  # PRR-CRB: as much as arrives
            if advanced and not lost:  # SafeACK
                send += mss  # PRR-SSRB: slow start
            send = min(send, threshold - in_flight)
        if not self._out:
            send = max(
                send, mss
            )  # the fast retransmit; the RFC, which thinks in segments, asks this only where it is 0
        self._window = in_flight + max(send, 0)
        return self._window

    def on_sent(self, length: int) -> None:
        """RFC 9937 6.3: `length` bytes left, new or again, since the recovery began."""
        self._out += length
