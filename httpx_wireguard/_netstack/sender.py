"""The sending half of a TCP connection: what the writer left, the far side's window, and what goes out when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from httpx_wireguard._netstack.congestion.control import CongestionControl
from httpx_wireguard._netstack.flight import Flight
from httpx_wireguard._netstack.pacing import AVOIDANCE_GAIN, SLOW_START_GAIN, Pacer
from httpx_wireguard._netstack.recovery import Forward
from httpx_wireguard._netstack.scoreboard import Transmission
from httpx_wireguard._netstack.segment_size import SegmentSize
from httpx_wireguard._netstack.send_queue import SendQueue

# bytes, ours: Linux' usual limit. HTTP/2 clients write several requests before they read any response.
INITIAL_SEND_BUFFER = 4 << 20
MAXIMUM_SEND_BUFFER = 16 << 20  # bytes; twice the congestion window of 0.5 Gbit/s over 134 ms
FORWARD_SEGMENTS = 2  # RFC 5682 3.1 step 2b
MAXIMUM_BURST = 1 << 18  # bytes per call; ours: bounds what waits in memory between building and sending


class Run(NamedTuple):
    """Consecutive segments to send: payloads from `sequence` on; the last one closes the stream if `fin`."""

    sequence: int
    payloads: list[bytes]
    fin: bool
    again: bool  # not for the first time

    @property
    def length(self) -> int:
        """In sequence numbers."""
        return sum(map(len, self.payloads)) + self.fin


class Sender(Flight):
    """A flight, with the writer's queue behind it and the far side's window before it (RFC 9293 3.8)."""

    __slots__ = (
        "_last_sent_at",
        "_pacer",
        "_segment_size",
        "_syn_sent_at",
        "_wl1",
        "_wl2",
        "buffer_limit",
        "fin_at",
        "largest_window",
        "make_control",
        "more_due",
        "nagle",
        "override_due",
        "pace_at",
        "probe_due",
        "queue",
        "scale",
        "small_end",
        "window",
    )

    def __init__(self, initial_sequence: int, mss: int, make_control: Callable[[int], CongestionControl]) -> None:
        """
        Args:
            make_control: from a segment's payload in bytes to a new congestion control.
        """
        super().__init__(initial_sequence, mss, make_control)
        self.window = 0  # SND.WND, bytes
        self.largest_window = 0  # Max(SND.WND)
        self.scale = 0  # Snd.Wind.Shift
        self._wl1 = self._wl2 = 0  # SND.WL1, SND.WL2
        self.queue = SendQueue(initial_sequence + 1)
        self.fin_at: int | None = None  # sequence number of our FIN once the writer closed
        self.nagle = False  # HTTP clients set TCP_NODELAY
        self.small_end = initial_sequence  # Snd.Sml: end of the last segment that was not full
        self.buffer_limit = INITIAL_SEND_BUFFER  # bytes that the queue may hold
        self.make_control = make_control
        self._pacer = Pacer(mss)
        self._segment_size = SegmentSize(mss)
        self.pace_at: float | None = None  # when pacing lets more go
        self._syn_sent_at: float | None = None  # None once it was sent again
        self._last_sent_at = 0.0
        self.more_due = False  # the last call left out what it could have sent
        self.probe_due = False  # a zero-window or keep-alive probe
        self.override_due = False  # a window too small for a good segment has lasted long enough: use it

    # -- opening and ending

    def start_timer(self, now: float) -> None:
        """The SYN leaves: time it, and be ready to send it again."""
        self._syn_sent_at = self._last_sent_at = now
        self.retransmit_at = now + self.rtt.timeout

    def start(self, mss: int, *, sack: bool) -> None:
        """The far side's SYN came: what it takes is known."""
        self.mss = mss
        self.sack = sack
        self._segment_size = SegmentSize(mss)

    def on_established(self, sequence: int, acknowledgment: int, window: int, now: float) -> None:
        """Our SYN is acknowledged: the first SND.WND, SND.WL1 and SND.WL2 (RFC 9293 3.10.7.3, 3.10.7.4)."""
        self.unacknowledged = acknowledgment
        self.congestion = self.make_control(self.mss)
        self._pacer = Pacer(self.mss)
        if self.retries == 0 and self._syn_sent_at is not None:
            self.rtt.on_sample(now - self._syn_sent_at)
        if self.retries > 1:  # RFC 5681 3.1, RFC 6928 2; as Linux, which allows for one SYN sent again too early
            self.congestion.window = self.mss
        if self.retries:
            self.rtt.fall_back()
        self.retries = 0
        self.retransmit_at = None
        self._wl1, self._wl2 = sequence, acknowledgment
        self.window = window
        self.largest_window = max(self.largest_window, window)
        self.board.highest = acknowledgment

    def discard(self) -> None:
        """The connection is over: drop what nobody will take."""
        self.queue = SendQueue(self.next)
        self.board.clear()

    def stop_timers(self) -> None:
        super().stop_timers()
        self.pace_at = None

    # -- the writer

    @property
    def space(self) -> int:
        """Bytes that the writer may add."""
        return max(self.buffer_limit - len(self.queue), 0)

    def close(self) -> None:
        self.fin_at = self.queue.end

    @property
    def end(self) -> int:
        """The sequence number after everything written, the FIN included."""
        return self.queue.end + (self.fin_at is not None)

    @property
    def window_closed(self) -> bool:
        """There is something to send, nothing in flight, and the far side's window holds it back."""
        return self.next == self.unacknowledged and self.next < self.end and self._usable_length() == 0

    # -- output

    def runs_to_send(self, now: float) -> list[Run]:
        """What the windows and the pace allow now: lost data first, then new data."""
        runs: list[Run] = []
        if self.next == self.unacknowledged and self.next < self.end:
            self.congestion.on_restart(now - self._last_sent_at, self.rtt.timeout, now)
            self._pacer.restart(self.mss)
            waiting = self.queue.end - self.next
            special = self.fin_at is not None or self.recovery is not None or self.tail.due
            if waiting <= self.mss and waiting <= self.window and not special:
                return [self._send_small(waiting, now)]
        if self.tail.due:
            self._send_tail_probe(runs, now)
        again = self.board.lost > 0 and not self._prefers_new_data()
        budget = self._budget(again, now)
        if again:
            budget = self._send_lost(budget, runs, now)
        if not (again and self.board.lost):
            self._send_new(budget, runs, now)
        if runs:
            self._last_sent_at = now
            self._pacer.on_sent(sum(run.length for run in runs))
        self._note_limits(now)
        return runs

    def _send_small(self, length: int, now: float) -> Run:
        """Fast path: all that was written fits into one segment, and nothing is in flight: no limit applies."""
        run = Run(self.next, [self.queue.slice(self.next, length)], fin=False, again=False)
        self._on_new_sent(run, now)
        self._pacer.on_sent(length)
        self._last_sent_at = now
        self.more_due = False
        self.pace_at = None
        self._note_starvation()
        return run

    @property
    def _room(self) -> int:
        """In the congestion window. With nothing in flight no acknowledgment would open it: there one segment fits."""
        size = self.size
        return self.congestion.window - size if size else max(self.congestion.window, self.mss)

    def _budget(self, again: bool, now: float) -> int:
        """How much the congestion window has room for, and the pace lets go at once."""
        room = self._room
        if self.recovery is not None and self.tries_new_data:
            asked = -(-(self.next - self.recovery.asked_from) // self.mss)
            room = min(room, (FORWARD_SEGMENTS - asked) * self.mss)
        wanted = min(room, (self.board.lost if again else 0) + self.end - self.next)
        if wanted <= 0:
            return room
        allowance, self.pace_at = self._pacer.allowance(self._pacing_rate(), wanted, self.mss, now)
        return min(room, allowance, MAXIMUM_BURST)

    def _pacing_rate(self) -> float:
        """Bytes a second."""
        control, rtt = self.congestion, self.rtt
        if control.pacing_rate is not None:
            return control.pacing_rate
        if not (rtt.smoothed and rtt.latest):
            return inf
        gain = SLOW_START_GAIN if control.window < control.threshold else AVOIDANCE_GAIN
        # The latest too, because one acknowledgment after an outage would else slow the next thousand segments down.
        return gain * max(control.window, self.mss) / min(rtt.smoothed, rtt.latest)

    def _note_limits(self, now: float) -> None:
        """What held us back: the pace, the congestion window, or the writer (for the far side's window no note)."""
        self.more_due = False
        self.pace_at = None
        again = self.board.lost > 0 and not self.tries_new_data
        waiting = self.board.lost if again else 0 if self.board.full else self._usable_length()
        if not waiting:
            self._note_starvation()
        elif self._room < min(self.mss, waiting):
            self.cwnd_limited_until = self.next
        else:
            self.more_due = self._budget(again, now) > 0

    def _note_starvation(self) -> None:
        """draft-ietf-ccwg-bbr 4.1.2.4: all is sent, what was lost too, and the window has room."""
        if self.next == self.end and not self.board.lost and self.size < self.congestion.window:
            self.rate.app_limited_until = self.rate.delivered + self.size or 1

    def _prefers_new_data(self) -> bool:
        """Whether F-RTO's question to the network can be put, or waits for its answer (RFC 5682 3.1 step 2b)."""
        recovery = self.recovery
        if recovery is None or not self.tries_new_data:
            return False
        if self.next > recovery.asked_from or (self._usable_length() > 0 and not self.board.full):
            return True
        recovery.forward = Forward.OFF
        return False

    def _send_tail_probe(self, runs: list[Run], now: float) -> None:
        """RFC 8985 7.3: new data if there is any and the far side takes it, else the last segment again."""
        self.tail.due = False
        self._send_new(self.mss, runs, now)
        if runs:
            self.tail.on_sent(self.next, again=False)
        elif (last := self.board.last_segment(self.mss, self.next > self.queue.end)) is not None:
            self._send_again(last, last.end - last.start, runs, now)
            self.tail.on_sent(self.next, again=True)

    def _send_lost(self, budget: int, runs: list[Run], now: float) -> int:
        """RFC 6675 4 NextSeg rule 1; returns what is left of the budget."""
        while (lost := self.board.first_lost()) is not None:
            length = lost.end - lost.start
            if budget < min(length, self.mss):
                break
            if length > budget:
                length = budget // self.mss * self.mss
            budget -= self._send_again(lost, length, runs, now)
        return budget

    def _send_again(self, one: Transmission, length: int, runs: list[Run], now: float) -> int:
        run = self._run(one.start, min(length, max(self.queue.end - one.start, 0)), self.next)
        self._segment_size.on_sent_again(one.start, one.start + run.length)
        self.on_sent_again(one, one.start + run.length, now)
        runs.append(run)
        return run.length

    def _usable_length(self) -> int:
        """Bytes of new data that the far side's window and silly-window avoidance let go (RFC 9293 3.8.6.2.1)."""
        waiting = self.queue.end - self.next
        usable = self.unacknowledged + self.window - self.next
        if waiting <= 0:
            return 1 if self.next < self.end and usable > 0 else 0
        if usable >= waiting:
            if self.nagle and self.fin_at is None and self.small_end > self.unacknowledged:
                # RFC 9293 3.7.4 in Minshall's variant: only a small segment in flight holds a small one back, so the
                # end of a large write does not wait for a delayed acknowledgment
                return waiting - waiting % self.mss
            return waiting
        if usable >= self.mss:
            return usable // self.mss * self.mss
        return usable if usable >= max(self.largest_window // 2, 1) or (self.override_due and usable > 0) else 0

    def _send_new(self, budget: int, runs: list[Run], now: float) -> None:
        """RFC 6675 4 NextSeg rule 2."""
        length = 0 if self.board.full else self._usable_length()
        if length > budget:
            length = budget // self.mss * self.mss
        if length <= 0:
            return
        limit = self.unacknowledged + self.window  # for the FIN too
        probe = 0 if self.recovering else self._segment_size.probe(min(length, self.queue.end - self.next), now)
        if probe:
            run = Run(self.next, [self.queue.slice(self.next, probe)], fin=False, again=False)
            self._segment_size.on_probe_sent(self.next + probe, now)
        else:
            run = self._run(self.next, min(length, self.queue.end - self.next), limit)
        self._on_new_sent(run, now)
        runs.append(run)

    def _on_new_sent(self, run: Run, now: float) -> None:
        self.on_sent(run.length, now)
        if len(run.payloads[-1]) < self.mss:
            self.small_end = self.next
        self.override_due = False

    def _run(self, start: int, length: int, limit: int) -> Run:
        """`length` bytes from `start`, and the FIN if it comes next and lies before `limit`."""
        payloads = self.queue.slices(start, length, self.mss) if length > 0 else []
        fin = self.fin_at is not None and start + length == self.fin_at < limit
        return Run(start, payloads or [b""], fin, again=start < self.next)

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

    def on_ack(
        self,
        acknowledgment: int,
        blocks: Sequence[tuple[int, int]],
        reported: tuple[int, int] | None,
        duplicate: bool,
        echo: int | None,
        now: float,
    ) -> None:
        self.queue.release(acknowledgment)
        super().on_ack(acknowledgment, blocks, reported, duplicate, echo, now)
        full = self._segment_size.on_ack(acknowledgment)
        if full is not None:
            self.mss = full
            self.congestion.set_mss(full)
        # twice the congestion window: one in flight, and one for the writer to fill meanwhile
        self.buffer_limit = max(self.buffer_limit, min(2 * self.congestion.window, MAXIMUM_SEND_BUFFER))
        if self.next == self.end:  # nothing to send, nobody asks for it: what is written next comes late
            self._note_starvation()

    def on_timeout(self, now: float) -> None:
        first = self.board.transmissions[0] if self.board.transmissions else None
        passed = self.board.sacked >= self.mss  # what was sent with it arrived: no black hole
        super().on_timeout(now)
        if first is not None and not passed:
            smaller = self._segment_size.on_timeout(self.retries, min(first.end - first.start, self.mss))
            if smaller is not None:
                super().set_mss(smaller, now)

    def set_mss(self, mss: int, now: float) -> None:
        """A router says how much the path takes."""
        self._segment_size.limit(mss)
        super().set_mss(mss, now)

    # -- timers

    def next_timeout(self) -> float | None:
        """The earliest of all timers: monotonic seconds, or None."""
        earliest = super().next_timeout()
        for timer in (self.retransmit_at, self.pace_at):
            if timer is not None and (earliest is None or timer < earliest):
                earliest = timer
        return earliest

    def handle_timeout(self, now: float) -> None:
        if self.pace_at is not None and now >= self.pace_at:
            self.pace_at = None  # what waited may have been acknowledged meanwhile: then nobody asks for the next
        super().handle_timeout(now)
