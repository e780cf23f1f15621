"""The sending half of a TCP connection: what to send and when to send it again (RFC 9293 3.8, RFC 6675)."""

from __future__ import annotations

from typing import NamedTuple

from httpx_wireguard._netstack.congestion import CongestionControl, NewReno
from httpx_wireguard._netstack.recovery import DUPLICATE_THRESHOLD, Scoreboard
from httpx_wireguard._netstack.rtt import RttEstimator
from httpx_wireguard._netstack.send_queue import SendQueue

SEND_BUFFER = 4 << 20  # bytes; the usual limit of Linux' tcp_wmem
MAXIMUM_BURST = 1 << 18  # bytes per call; ours: bounds what waits in memory between building and sending


class Run(NamedTuple):
    """Consecutive segments to send: payloads from `sequence` on; the last one closes the stream if `fin`."""

    sequence: int
    payloads: list[bytes]
    fin: bool


class Sender:
    """SND.UNA, SND.NXT, SND.WND and everything between the writer and the network.

    Sequence numbers are unwrapped: ordinary integers that never go back to 0.
    """

    __slots__ = (
        "_last_sent_at",
        "_reduced_at",
        "_timed",
        "_wl1",
        "_wl2",
        "board",
        "congestion",
        "cwr_due",
        "fin_at",
        "largest_window",
        "more_due",
        "mss",
        "nagle",
        "next",
        "override_due",
        "probe_due",
        "queue",
        "retransmit_at",
        "retries",
        "rtt",
        "sack",
        "scale",
        "segments_retransmitted",
        "unacknowledged",
        "window",
    )

    def __init__(self, initial_sequence: int, mss: int) -> None:
        self.unacknowledged = initial_sequence  # SND.UNA
        self.next = initial_sequence  # SND.NXT
        self.window = 0  # SND.WND, bytes
        self.largest_window = 0  # Max(SND.WND)
        self.scale = 0  # Snd.Wind.Shift
        self._wl1 = self._wl2 = 0  # SND.WL1, SND.WL2
        self.mss = mss  # payload bytes of a full segment
        self.queue = SendQueue(initial_sequence + 1)
        self.fin_at: int | None = None  # sequence number of our FIN once the writer closed
        self.nagle = False  # HTTP clients set TCP_NODELAY
        self.sack = False
        self.board = Scoreboard()
        self.rtt = RttEstimator()
        self.congestion: CongestionControl = NewReno(mss)
        self.retransmit_at: float | None = None
        self.retries = 0  # timeouts in a row without progress
        self.segments_retransmitted = 0
        self._timed: tuple[int, float] | None = None  # the segment being timed: its end and when it left
        self._last_sent_at = 0.0
        self.more_due = False  # the last call left out what it could have sent
        self.probe_due = False  # a zero-window or keep-alive probe
        self._reduced_at = initial_sequence  # SND.NXT when the congestion window was last reduced
        self.cwr_due = False  # the next new data carries CWR
        self.override_due = False  # a window too small for a good segment has lasted long enough: use it

    # -- opening and ending

    def start_timer(self, now: float) -> None:
        """The SYN leaves: time it, and be ready to send it again."""
        self._timed = (self.next, now)
        self._last_sent_at = now
        self.retransmit_at = now + self.rtt.timeout

    def start(self, mss: int, *, sack: bool) -> None:
        """The far side's SYN came: what it takes is known."""
        self.mss = mss
        self.sack = sack
        self.congestion = NewReno(mss)

    def on_established(self, sequence: int, acknowledgment: int, window: int, now: float) -> None:
        """Our SYN is acknowledged: the first SND.WND, SND.WL1 and SND.WL2 (RFC 9293 3.10.7.3, 3.10.7.4)."""
        retries = self.retries
        self.on_ack(acknowledgment, None, now)
        self.congestion = NewReno(self.mss)  # a lost SYN says nothing about ssthresh
        if retries > 1:  # RFC 5681 3.1, RFC 6928 2; as Linux, which allows for one SYN sent again too early
            self.congestion.window = self.mss
        if retries:
            self.rtt.fall_back()
        self._wl1, self._wl2 = sequence, acknowledgment
        self.window = window
        self.largest_window = max(self.largest_window, window)

    def discard(self) -> None:
        """The connection is over: drop what nobody will take."""
        self.queue = SendQueue(self.next)
        self.board = Scoreboard()

    # -- the writer

    @property
    def space(self) -> int:
        """Bytes that the writer may add."""
        return max(SEND_BUFFER - len(self.queue), 0)

    def close(self) -> None:
        self.fin_at = self.queue.end

    @property
    def end(self) -> int:
        """The sequence number after everything written, the FIN included."""
        return self.queue.end + (self.fin_at is not None)

    @property
    def in_flight(self) -> int:
        return self.board.in_flight(self.unacknowledged, self.next, self.mss)

    @property
    def window_closed(self) -> bool:
        """There is something to send, nothing in flight, and the far side's window holds it back."""
        return self.next == self.unacknowledged and self.next < self.end and self._usable_length() == 0

    # -- output

    def runs_to_send(self, now: float) -> list[Run]:
        """What the windows allow now: lost data first, then new data."""
        runs: list[Run] = []
        if self.next == self.unacknowledged and now - self._last_sent_at > self.rtt.timeout:
            self.congestion.on_idle(now)
        budget = self.congestion.window - self.in_flight
        if self.board.lost_below > self.unacknowledged:
            budget = self._retransmissions(budget, runs)
        if self.next < self.end:
            self._new_data(budget, runs, now)
        if runs:
            self._last_sent_at = now
            if self.retransmit_at is None:
                self.retransmit_at = now + self.rtt.timeout  # RFC 6298 5.1
        return runs

    def _retransmissions(self, budget: int, runs: list[Run]) -> int:
        board = self.board
        while (hole := board.next_hole(self.unacknowledged)) is not None:
            if budget < self.mss and board.retransmitted_below > self.unacknowledged:
                break  # the first retransmission of a recovery leaves whatever the window says: RFC 6675 5 (4.3)
            start, stop = hole
            length = min(stop - start, self.mss)
            runs.append(self._run(start, min(length, max(self.queue.end - start, 0)), self.next))
            board.retransmitted_below = start + length
            budget -= length
            self._timed = None  # Karn's algorithm
            self.segments_retransmitted += 1
        return budget

    def _usable_length(self) -> int:
        """Bytes of new data that the far side's window and silly-window avoidance let go (RFC 9293 3.8.6.2.1)."""
        waiting = self.queue.end - self.next
        usable = self.unacknowledged + self.window - self.next
        if waiting <= 0:
            return 1 if self.fin_at is not None and usable > 0 else 0
        if usable >= waiting:
            if self.nagle and waiting < self.mss and self.next > self.unacknowledged:
                return 0  # RFC 9293 3.7.4
            return waiting
        if usable >= self.mss:
            return usable // self.mss * self.mss
        return usable if usable >= max(self.largest_window // 2, 1) or (self.override_due and usable > 0) else 0

    def _new_data(self, budget: int, runs: list[Run], now: float) -> None:
        length = self._usable_length()
        self.more_due = length > MAXIMUM_BURST and budget > MAXIMUM_BURST
        budget = min(budget, MAXIMUM_BURST)
        if length > budget:
            length = budget // self.mss * self.mss
        if length <= 0:
            return
        run = self._run(self.next, min(length, self.queue.end - self.next), self.end)
        if self._timed is None and self.board.recovery_point is None:  # else it would wait behind a hole
            self._timed = (self.next + 1, now)
        self.next += sum(map(len, run.payloads)) + run.fin
        self.override_due = False
        runs.append(run)

    def _run(self, start: int, length: int, limit: int) -> Run:
        """`length` bytes from `start`, and the FIN if it comes next and lies before `limit`."""
        payloads = self.queue.slices(start, length, self.mss) if length > 0 else []
        fin = self.fin_at is not None and start + length == self.fin_at < limit
        return Run(start, payloads or [b""], fin)

    # -- input

    def update_window(self, sequence: int, acknowledgment: int, field: int) -> bool:
        """RFC 9293 3.10.7.4 fifth check: newer segments only; returns whether SND.WND changed."""
        if not (self._wl1 < sequence or (self._wl1 == sequence and self._wl2 <= acknowledgment)):
            return False
        window = field << self.scale
        changed = window != self.window
        self.window = window
        self.largest_window = max(self.largest_window, window)
        self._wl1, self._wl2 = sequence, acknowledgment
        return changed

    def confirm_window(self, sequence: int) -> None:
        """Fast path: the segment at `sequence` repeats SND.UNA and SND.WND."""
        self._wl1, self._wl2 = sequence, self.unacknowledged

    def on_ack(self, acknowledgment: int, echo: float | None, now: float) -> None:
        """SND.UNA < acknowledgment <= SND.NXT.

        Args:
            echo: the round trip by the timestamp that came back (RFC 7323 4.1). It also measures segments that were
                sent twice, and so ends a backoff.
        """
        board = self.board
        in_flight = self.in_flight
        acknowledged = acknowledgment - self.unacknowledged
        self.unacknowledged = acknowledgment
        self.queue.release(acknowledgment)
        board.release(acknowledgment)
        if self._timed is not None and acknowledgment >= self._timed[0]:
            self.rtt.on_sample(now - self._timed[1])
            self._timed = None
        elif echo is not None and self.rtt.backed_off:
            self.rtt.on_sample(echo)
        self.retries = 0
        self.retransmit_at = now + self.rtt.timeout if acknowledgment < self.next else None  # RFC 6298 5.2, 5.3
        point = board.recovery_point
        if point is None:
            board.duplicates = 0
            if acknowledgment > self._reduced_at:  # RFC 3168 6.1.2: no growth while marks may still be reported
                self.congestion.on_ack(acknowledged, in_flight, now)
        elif acknowledgment >= point:
            board.recovery_point = None
            board.after_timeout = False
            board.duplicates = 0
        else:
            self._on_partial_ack(acknowledged, in_flight, now)

    def _on_partial_ack(self, acknowledged: int, in_flight: int, now: float) -> None:
        """RFC 6582 3.2 (3): in recovery, and the next hole is known to be lost."""
        board = self.board
        if not self.sack:
            board.duplicates = max(0, board.duplicates - acknowledged // self.mss)
            self._first_is_lost()
        else:
            board.mark_lost(self.mss)
        if board.after_timeout:  # RFC 5681 3.1: the loss window grows by slow start
            self.congestion.on_ack(acknowledged, max(in_flight, self.congestion.window), now)

    def on_ecn_echo(self, now: float) -> None:
        """RFC 3168 6.1.2: an acknowledgment with ECE counts as a loss, once per window of data.

        The far side goes on reporting until it has our CWR, so that its report is news only when it has more than was
        sent before the last reduction. Call it before `on_ack`.
        """
        if self.unacknowledged > self._reduced_at:
            window = self.congestion.window
            self.congestion.on_loss(self.in_flight, now)
            self.congestion.window = min(window, self.congestion.window)
            self._on_reduced()

    def _on_reduced(self) -> None:
        self._reduced_at = self.next
        self.cwr_due = True

    def on_sack(self, blocks: list[tuple[int, int]], duplicate: bool, now: float) -> None:
        """Selective acknowledgments, or one duplicate acknowledgment without any (RFC 6675 5)."""
        board = self.board
        news = sum(board.add(start, end) for start, end in blocks)
        if duplicate and not self.sack:
            board.duplicates = min(board.duplicates + 1, (self.next - self.unacknowledged) // self.mss)
        if board.recovery_point is not None:
            if news:
                board.mark_lost(self.mss)
            return
        if news:
            board.mark_lost(self.mss)
        elif not self.sack and board.duplicates >= DUPLICATE_THRESHOLD:
            self._first_is_lost()
        if board.lost_below > self.unacknowledged:
            board.recovery_point = self.next
            board.retransmitted_below = self.unacknowledged
            self.congestion.on_loss(self.next - self.unacknowledged, now)
            self._on_reduced()

    def _first_is_lost(self) -> None:
        board = self.board
        board.lost_below = max(board.lost_below, min(self.unacknowledged + self.mss, self.next))

    # -- timers

    def on_retransmission_timeout(self, now: float) -> None:
        """RFC 6298 5.4-5.6 and RFC 6675 5.1: everything in flight that was not selectively acknowledged is lost."""
        board = self.board
        if self.retries == 0:
            self.congestion.on_timeout(self.in_flight, now)
            self._on_reduced()
        else:
            board.clear()  # RFC 2018 8: a second timeout; the far side may have thrown away what it reported
        board.duplicates = 0
        board.lose_all(self.unacknowledged, self.next)
        board.after_timeout = True
        self.retries += 1
        self.rtt.back_off()
        self.retransmit_at = now + self.rtt.timeout
        self._timed = None

    def set_mss(self, mss: int) -> None:
        """The path takes only smaller segments: what is in flight is lost (RFC 1191 6.5)."""
        if mss >= self.mss:
            return
        self.mss = mss
        self.congestion.set_mss(mss)
        if self.next > self.unacknowledged:
            self.board.lose_all(self.unacknowledged, self.next)
