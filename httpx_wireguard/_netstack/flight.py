"""What was sent and is not acknowledged: timing it, finding losses, deciding how much more may be in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from httpx_wireguard._netstack.congestion.control import LOSS_WINDOW_SEGMENTS, AckSample, CongestionControl
from httpx_wireguard._netstack.congestion.prr import Prr
from httpx_wireguard._netstack.delivery_rate import DeliveryRate
from httpx_wireguard._netstack.rack import DUPLICATE_THRESHOLD, Rack
from httpx_wireguard._netstack.recovery import Forward, Recovery
from httpx_wireguard._netstack.rtt import RttEstimator
from httpx_wireguard._netstack.scoreboard import Delivery, Scoreboard, Transmission
from httpx_wireguard._netstack.tail_probe import TailProbe


class Flight:
    """Loss recovery by RACK-TLP (RFC 8985), by duplicate acknowledgments (RFC 6582) for a peer without SACK.

    Sequence numbers are unwrapped, times monotonic seconds, sizes bytes.
    """

    __slots__ = (
        "_marked_until",
        "_reduced_until",
        "_sampled_until",
        "_timed_out_at",
        "board",
        "congestion",
        "cwnd_limited_until",
        "cwr_due",
        "mss",
        "next",
        "rack",
        "rate",
        "recovery",
        "retransmit_at",
        "retries",
        "rtt",
        "sack",
        "segments_retransmitted",
        "tail",
        "unacknowledged",
    )

    def __init__(self, initial_sequence: int, mss: int, make_control: Callable[[int], CongestionControl]) -> None:
        self.unacknowledged = initial_sequence  # SND.UNA
        self.next = initial_sequence  # SND.NXT
        self.mss = mss  # payload bytes of a full segment
        self.sack = False
        self.board = Scoreboard()
        self.rtt = RttEstimator()
        self.rack = Rack()
        self.tail = TailProbe()
        self.rate = DeliveryRate()
        self.congestion = make_control(mss)
        self.recovery: Recovery | None = None  # the last one, over or not
        self.retransmit_at: float | None = None
        self.retries = 0  # timeouts in a row without progress
        self.segments_retransmitted = 0
        self.cwnd_limited_until = 0  # acknowledgments up to here find the window in full use (RFC 7661 4.3)
        self._reduced_until = 0  # what was sent before this has had its congestion response (RFC 3168 6.1.2)
        self._marked_until = 0  # the same by an ECN echo: until then the window does not grow
        self.cwr_due = False  # RFC 3168 6.1.2: the next new data tells that the window was reduced
        self._timed_out_at = float("-inf")
        self._sampled_until = 0  # SND.NXT at the last measurement: one a round trip (RFC 6298 3)

    @property
    def size(self) -> int:
        """RFC 6675 4 SetPipe: bytes that are still in the network."""
        board = self.board
        size = self.next - self.unacknowledged - board.sacked - board.lost - board.duplicates * self.mss
        return size if size > 0 else 0

    @property
    def recovering(self) -> bool:
        """What was in flight when a loss showed is not all acknowledged yet."""
        return self.recovery is not None and self.recovery.forget_at is None

    # -- what leaves

    def on_sent(self, length: int, now: float) -> None:
        """`length` bytes of new data, the FIN included, leave at SND.NXT."""
        one = Transmission(self.next, self.next + length)
        self.rate.on_sent(one, self.size, now)
        self.board.add(one)
        self.next += length
        if self.recovery is not None and self.recovering:
            self.recovery.on_sent(one.start, one.end, now, again=False)
        if self.retransmit_at is None:
            self.retransmit_at = now + self.rtt.timeout  # RFC 6298 5.1
        self._arm_tail_probe(now)

    def on_sent_again(self, one: Transmission, end: int, now: float) -> None:
        """`one` leaves once more, up to `end`."""
        again = self.board.send_again(one, end)
        length = again.end - again.start
        self.rate.on_sent(again, self.size - length, now)
        if self.recovery is not None and self.recovering:
            self.recovery.on_sent(again.start, again.end, now, again=True)
        if self.retransmit_at is None or again.start == self.unacknowledged:  # RFC 6675 6
            self.retransmit_at = now + self.rtt.timeout
        self.segments_retransmitted += -(-length // self.mss)

    @property
    def tries_new_data(self) -> bool:
        """F-RTO sends new data in place of what the timeout declared lost (RFC 5682 3.1 step 2b)."""
        return self.recovery is not None and self.recovering and self.recovery.forward is Forward.NEW_DATA

    # -- what is acknowledged

    def on_ack(
        self,
        acknowledgment: int,
        blocks: Sequence[tuple[int, int]],
        reported: tuple[int, int] | None,
        duplicate: bool,
        echo: int | None,
        now: float,
    ) -> None:
        """An acceptable acknowledgment, SND.UNA <= `acknowledgment` <= SND.NXT.

        Args:
            blocks: SACK blocks above it, in ascending order, within what is in flight.
            reported: what came twice (RFC 2883).
            duplicate: by RFC 5681 2, whether anything is in flight or not.
            echo: as for `Delivery`.
        """
        board, before = self.board, self.size
        delivery = Delivery(echo, self.rtt.minimum or 0.0, now)
        advanced = acknowledgment - self.unacknowledged
        if advanced:
            self.unacknowledged = acknowledgment
            board.acknowledge(acknowledgment, delivery)
        for start, end in blocks:
            board.sack(start, end, delivery)
        if not self.sack:
            self._count_duplicates(delivery, advanced, duplicate)
        self._measure(delivery, echo if self.sack and reported is None else None, now)
        rate = self.rate.on_delivered(delivery, self.rtt.minimum or 0.0, now) if delivery.length else None
        if self.sack:
            self.rack.on_delivered(delivery, now)
        if reported is not None:
            self._on_reported(reported)
        if self.tail.repaired_a_loss(acknowledgment, duplicate, reported):
            self.on_congestion(now)  # RFC 8985 7.4.1: as fast recovery would have
        ended = self.recovery is not None and self._review(delivery, advanced > 0, echo, now)
        lost = self.find_losses(advanced > 0, before, now)
        if delivery.length or lost:
            self._inform(delivery, rate, advanced, lost, before, ended, now)
        if advanced:
            self.retries = 0
            self.rtt.relax()
            self.retransmit_at = now + self.rtt.timeout if self.next > acknowledgment else None  # RFC 6298 5.2, 5.3
            self._arm_tail_probe(now)
        elif self.retransmit_at is not None:  # a measurement may have ended a long backoff
            self.retransmit_at = min(self.retransmit_at, now + self.rtt.timeout)

    def _count_duplicates(self, delivery: Delivery, advanced: int, duplicate: bool) -> None:
        """A duplicate acknowledgment is a segment delivered, nobody knows which (RFC 9937 6.2, RFC 6582 3.2)."""
        board = self.board
        if advanced:
            known = min(board.duplicates, advanced // self.mss)
            board.duplicates = board.duplicates - known if self.recovering else 0
            delivery.length = max(delivery.length - known * self.mss, 1)
        elif duplicate and self.next > self.unacknowledged:
            before = self.size
            if before >= self.mss or board.duplicates < DUPLICATE_THRESHOLD:  # small segments: three are enough
                board.duplicates += 1
                delivery.length += before - self.size

    def _measure(self, delivery: Delivery, echo: int | None, now: float) -> None:
        """RFC 6298 3: a sample a round trip, of what left once only (Karn's algorithm).

        While a backoff waits for a sample, the timestamp serves too (RFC 7323 4.1), if the far side reports
        duplicates, and reported none: else the acknowledgment before may have been lost, and this one, which echoes
        the first transmission, would measure our own timeout.
        """
        clean = delivery.clean
        if clean is not None and clean.sent_at <= self._timed_out_at:
            clean = delivery.clean = None  # no matter when it arrived: what told us may have been lost
        if clean is not None:
            self.rtt.observe(now - clean.sent_at)
            if self.rtt.backed_off or max(clean.end, self.unacknowledged) > self._sampled_until:
                self._sampled_until = self.next
                self.rtt.on_sample(now - clean.sent_at)
        elif delivery.length and echo is not None and self.rtt.backed_off:
            self.rtt.on_sample(max(now - echo / 1000, 0.001))

    def _inform(
        self,
        delivery: Delivery,
        rate: float | None,
        advanced: int,
        lost: int,
        before: int,
        ended: bool,
        now: float,
    ) -> None:
        """Tell the congestion control, and let PRR have the last word on the window."""
        newest, control, recovery = delivery.newest, self.congestion, self.recovery
        fast = recovery is not None and self.recovering and not recovery.after_timeout
        size = self.size
        control.on_ack(
            AckSample(
                now=now,
                unacknowledged=self.unacknowledged,
                next=self.next,
                acknowledged=advanced,
                delivered=delivery.length,
                lost=lost,
                prior_in_flight=before,
                in_flight=size,
                rtt=None if delivery.clean is None else now - delivery.clean.sent_at,
                recovering=fast or ended or self.unacknowledged <= self._marked_until,
                cwnd_limited=self._cwnd_limited(before),
                total_delivered=self.rate.delivered,
                prior_delivered=0 if newest is None else newest.delivered,
                delivery_rate=rate,
                app_limited=newest is not None and newest.app_limited,
                tx_in_flight=0 if newest is None else newest.in_flight,
                lost_since=0 if newest is None else self.rate.lost - newest.lost_before,
                selective=self.sack,
            )
        )
        if fast and recovery is not None and recovery.prr is not None:
            window = recovery.prr.on_ack(delivery.length, size, lost, advanced > 0, self.mss)
            # RFC 6582 3.2 (3): a partial acknowledgment always sends the next hole again
            control.window = window if self.sack or not lost else max(window, size + self.mss)

    def _cwnd_limited(self, before: int) -> bool:
        """RFC 7661 4.3; in slow start half of the window is use enough, as in Linux: it doubles in a round trip."""
        control = self.congestion
        if control.window < control.threshold and 2 * before >= control.window:
            return True
        return self.unacknowledged <= self.cwnd_limited_until

    # -- losses

    def find_losses(self, advanced: bool, flight: int, now: float) -> int:
        """Declare lost what is, and begin a recovery if there is none; returns how many bytes.

        Args:
            flight: bytes in the network before the acknowledgment, or the timer, that asks.
        """
        board, recovering = self.board, self.recovering
        if self.sack:
            if not (board.sacked or board.lost or self.recovery is not None or self.rack.recheck_at is not None):
                return 0  # all that arrived was in order
            found = self.rack.detect_losses(board, self.rtt, self.mss, recovering, now)
        else:
            first = board.duplicates >= DUPLICATE_THRESHOLD and self._trusts_duplicates  # RFC 5681 3.2
            # RFC 6582 3.2 step 3: the next hole is lost too; after a timeout it has been sent again already
            partial = advanced and self.recovery is not None and recovering and not self.recovery.after_timeout
            one = board.lose_first(self.unacknowledged + self.mss) if first or partial else None
            found = [] if one is None else [one]
        lost = 0
        for one in found:
            length = one.end - one.start
            lost += length
            self.rate.lost += length
            lost_since = self.rate.lost - one.lost_before
            self.congestion.on_lost(one.start, length, one.in_flight, lost_since, one.app_limited, now)
        if board.lost and not recovering:
            self._begin_recovery(flight, now)
        return lost

    @property
    def _trusts_duplicates(self) -> bool:
        """RFC 6582 3.2 step 2: not those that a recovery caused, by sending again what had arrived."""
        return self.recovery is None or (not self.recovering and self.unacknowledged > self.recovery.point)

    def _begin_recovery(self, flight: int, now: float) -> None:
        reduced = self.on_congestion(now)
        self.tail.cancel()
        prr = None if self.congestion.model_based else Prr(self.congestion.threshold, flight)
        self.recovery = Recovery(self.next, now, after_timeout=False, prr=prr, reduced=reduced)

    def on_congestion(self, now: float) -> bool:
        """A loss or an ECN echo: reduce, once for each window of data (RFC 3168 6.1.2); returns whether it did."""
        if self.unacknowledged < self._reduced_until:
            return False
        self._reduced_until = self.next
        self.cwr_due = True
        self.congestion.on_congestion(self.next - self.unacknowledged, now)
        return True

    def on_ecn_echo(self, now: float) -> None:
        """RFC 3168 6.1.2: as for a loss, but nothing is sent again. Before `on_ack`: it must not make the window grow.

        The far side repeats its echo until it has our CWR, which what was sent before the last reduction cannot carry.
        """
        if self.unacknowledged > self._reduced_until:
            window = self.congestion.window
            self.on_congestion(now)
            self.congestion.window = min(window, self.congestion.window)
            self._marked_until = self.next
            if window <= self.mss and self.retransmit_at is not None:
                self.retransmit_at = now + self.rtt.timeout  # the window cannot shrink further, so sending slows down

    def on_timeout(self, now: float) -> None:
        """RFC 6298 5.4-5.6, RFC 6675 5.1: all that is in flight, and not known to be held, is lost."""
        board = self.board
        if board.transmissions:
            if self.retries == 0:
                self.congestion.on_timeout(self.next - self.unacknowledged, now)
                self._reduced_until = self.next
                self.cwr_due = True
            else:  # RFC 5681 3.1: ssthresh stays, but what SACKs let it grow to meanwhile is no loss window
                self.congestion.window = min(self.congestion.window, LOSS_WINDOW_SEGMENTS * self.mss)
            if self.retries or board.transmissions[0].sacked:
                board.forget_sacks()
            board.duplicates = 0
            self._lose_all(now)
            assert self.recovery is not None
            self.recovery.reduced = True
        self.retries += 1
        self._timed_out_at = now
        self.rtt.back_off()
        self.retransmit_at = now + self.rtt.timeout

    def _lose_all(self, now: float) -> None:
        """Begin, or go on with, a recovery in which nothing in flight is counted on."""
        lost = self.board.lost
        self.board.lose_all()
        self.rate.lost += self.board.lost - lost
        self.rack.recheck_at = None
        self.tail.cancel()
        recovery, recovering = self.recovery, self.recovering
        if recovery is not None and recovering and recovery.after_timeout and self.retries:
            # Deviates from RFC 5682 3.1 step 1, which asks at the first timeout only: as Linux
            recovery.point = self.next
            return
        self.recovery = Recovery(self.next, now, after_timeout=True, prr=None, reduced=False)
        if recovering:  # something had been lost before the timeout
            self.recovery.forward = Forward.OFF

    def set_mss(self, mss: int, now: float) -> None:
        """The path takes only smaller segments: what is in flight is lost, but not by congestion (RFC 1191 6.5)."""
        if mss >= self.mss:
            return
        self.mss = mss
        self.congestion.set_mss(mss)
        if self.recovery is not None and self.recovering and self.recovery.prr is not None:
            self.congestion.on_recovery_end(now)  # PRR's window is of no use after it
        if self.board.transmissions:
            self._lose_all(now)
            assert self.recovery is not None
            self.recovery.forward = Forward.OFF

    # -- the course of a recovery

    def _review(self, delivery: Delivery, advanced: bool, echo: int | None, now: float) -> bool:
        """Was it a mistake, is it over, can it be forgotten? Returns whether this ends a fast recovery."""
        recovery = self.recovery
        assert recovery is not None
        if recovery.forget_at is not None:
            if recovery.proven_needless():
                self._undo(now)
            elif self.unacknowledged > recovery.forget_at:
                self.recovery = None
        elif recovery.is_spurious(delivery, self.unacknowledged, echo) or recovery.proven_needless():
            if self.sack and self.rtt.backed_off and delivery.oldest_original is not None:
                # RFC 4015 3.2: the path has become slower; without timestamps nothing else would tell the timer
                self.rtt.on_sample(min(now - delivery.oldest_original, self.rtt.timeout))
            self._undo(now)
        elif self.unacknowledged >= recovery.point:
            self._end_recovery(recovery, now)
            return not recovery.after_timeout
        else:
            recovery.advance_forward(advanced, self.sack, self.next)
        return False

    def _end_recovery(self, recovery: Recovery, now: float) -> None:
        self.board.duplicates = 0
        self.rack.on_recovery_end()
        if not recovery.retransmitted:
            self._undo(now)  # it all arrived before any of it was sent again
            return
        recovery.forget_at = self.next
        if self.congestion.model_based or not recovery.after_timeout:
            self.congestion.on_recovery_end(now)

    def _undo(self, now: float) -> None:
        """RFC 4015 3.2: as if nothing had been lost. A reduction for something else, an ECN echo say, stays."""
        recovery = self.recovery
        assert recovery is not None
        if not recovery.after_timeout:
            self.rack.on_reordering()
        self.board.unmark()
        self.board.duplicates = 0
        if recovery.reduced:
            self.congestion.on_spurious(now)
            self._reduced_until = 0
        elif recovery.prr is not None and recovery.forget_at is None:
            self.congestion.on_recovery_end(now)
        self.recovery = None

    def _on_reported(self, reported: tuple[int, int]) -> None:
        """A D-SACK: something was sent again without need, or the network made a copy."""
        if not self.tail.explains(reported):
            self.rack.on_duplicate_reported(self.unacknowledged, self.next)
        if self.recovery is not None:
            self.recovery.on_duplicate_reported(*reported)

    # -- timers

    def _arm_tail_probe(self, now: float) -> None:
        if not self.sack or self.recovering or self.board.sacked or self.retransmit_at is None:
            self.tail.probe_at = None  # RFC 8985 7.2: recovery has its own clock
        else:
            self.tail.arm(self.rtt, self.next - self.unacknowledged <= self.mss, self.retransmit_at, now)

    def next_timeout(self) -> float | None:
        """The earliest of the timers beside `retransmit_at`."""
        recheck, probe = self.rack.recheck_at, self.tail.probe_at
        return probe if recheck is None else recheck if probe is None else min(recheck, probe)

    def handle_timeout(self, now: float) -> None:
        """Run those that are due."""
        if self.rack.recheck_at is not None and now >= self.rack.recheck_at:
            lost = self.find_losses(False, self.size, now)
            recovery = self.recovery
            if lost:
                self.retransmit_at = now + self.rtt.timeout  # what is sent again is given its time
            if lost and recovery is not None and recovery.prr is not None:
                self.congestion.window = recovery.prr.on_ack(0, self.size, lost, False, self.mss)
        if self.tail.probe_at is not None and now >= self.tail.probe_at:
            self.tail.probe_at = None
            self.tail.due = True
            self.retransmit_at = now + self.rtt.timeout  # RFC 8985 7.3

    def stop_timers(self) -> None:
        self.retransmit_at = self.rack.recheck_at = self.tail.probe_at = None
