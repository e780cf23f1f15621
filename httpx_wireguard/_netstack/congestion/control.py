"""Congestion control: how many bytes may be in flight, and how fast they may leave.

Loss recovery decides *what* was lost (`recovery.py`), a congestion control what that means for the sending rate. It
sees bytes and seconds, never the contents of segments, and keeps no timers.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from httpx_wireguard._records import record

INITIAL_WINDOW_SEGMENTS = 10  # RFC 6928
MINIMUM_SSTHRESH_SEGMENTS = 2  # RFC 5681 3.1 equation 4
LOSS_WINDOW_SEGMENTS = 1  # RFC 5681 3.1
UNLIMITED = 1 << 30  # ssthresh: arbitrarily high at first, RFC 5681 3.1


@record
class AckSample:
    """What one acknowledgment told. Sizes in bytes, times in seconds, sequence numbers unwrapped.

    The rate sample is that of draft-ietf-ccwg-bbr 4.1.2: of the newest segment that this acknowledgment delivered.
    """

    now: float
    unacknowledged: int  # SND.UNA after it
    next: int  # SND.NXT
    acknowledged: int  # how far SND.UNA moved
    delivered: int  # newly known to have arrived, by SND.UNA or SACK
    lost: int  # newly declared lost
    prior_in_flight: int  # in the network before it
    in_flight: int  # and after it
    rtt: float | None  # of the newest segment delivered that was sent once only
    recovering: bool  # fast recovery: the window is PRR's, unless the control paces by itself
    cwnd_limited: bool  # the window was in full use lately (RFC 7661 4.3)
    total_delivered: int  # C.delivered, after it
    prior_delivered: int  # C.delivered when the segment was sent
    delivery_rate: float | None  # bytes a second over the sampled interval; None: no valid sample
    app_limited: bool  # the segment was sent while the application offered too little
    tx_in_flight: int  # in flight when the segment was sent, itself included
    lost_since: int  # lost between its sending and now
    selective: bool  # the far side reports what it holds (RFC 2018): more than one loss a round trip shows


class CongestionControl(Protocol):
    """What a sender asks of its congestion control. All sizes in bytes, all times in seconds."""

    name: ClassVar[str]
    model_based: ClassVar[bool]  # it sets the window in recovery too; else PRR (RFC 9937) does

    window: int  # cwnd
    threshold: int  # ssthresh
    pacing_rate: float | None  # bytes a second, infinite: unpaced; None: as follows from the window and the round trip

    def set_mss(self, mss: int) -> None:
        """The path takes only smaller segments than we thought."""

    def on_ack(self, ack: AckSample) -> None:
        """Data was delivered. Called in recovery too, with `ack.recovering`."""

    def on_lost(
        self, start: int, length: int, tx_in_flight: int, lost_since: int, app_limited: bool, now: float
    ) -> None:
        """`length` bytes from sequence number `start` were declared lost, themselves counted in `lost_since`.

        The rest is as in `AckSample`, of the moment when they were sent. Where an acknowledgment shows the loss, its
        `on_ack` comes after this.
        """

    def on_congestion(self, in_flight: int, now: float) -> None:
        """A loss or an ECN echo (RFC 3168 6.1.2) begins a recovery: at most once per window of data."""

    def on_recovery_end(self, now: float) -> None:
        """Everything sent before the recovery began is acknowledged."""

    def on_timeout(self, in_flight: int, now: float) -> None:
        """The retransmission timer ran out for the first time for this data (RFC 5681 3.1)."""

    def on_spurious(self, now: float) -> None:
        """The last `on_congestion` or `on_timeout` was a mistake: nothing was lost (RFC 4015 3.2, RFC 9438 4.9)."""

    def on_restart(self, idle: float, timeout: float, now: float) -> None:
        """About to send with nothing in flight, `idle` seconds after the last transmission (RFC 5681 4.1)."""
