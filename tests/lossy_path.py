"""A path with a script of accidents, and a receiver by the book, for a `Sender` without the rest of TCP."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from httpx_wireguard._netstack.congestion.control import CongestionControl
from httpx_wireguard._netstack.sender import Sender

ISS = 99
PERSIST = 0.5  # seconds; the zero-window timer, which lies outside of the sender


@dataclass(frozen=True, slots=True)
class Packet:
    start: int
    end: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Ack:
    acknowledgment: int
    blocks: list[tuple[int, int]]
    reported: tuple[int, int] | None
    window: int
    echo: int | None
    newest: float  # when the newest packet left that had arrived


@dataclass
class Receiver:
    """Acknowledges every segment; RFC 2018, RFC 2883, RFC 7323 4.3."""

    sack: bool
    reports: bool
    timestamps: bool
    window: int
    next: int = ISS + 1
    held: list[tuple[int, int]] = field(default_factory=list)  # the one updated last first
    echo: int = 0
    newest: float = -inf

    def receive(self, packet: Packet) -> Ack:
        reported = None
        if packet.end <= self.next or any(left <= packet.start and packet.end <= right for left, right in self.held):
            reported = packet.start, packet.end
        if packet.start <= self.next:
            self.echo = int(packet.sent_at * 1000)
        self.newest = max(self.newest, packet.sent_at)
        self._insert(packet.start, packet.end)
        return self.ack(reported)

    def _insert(self, start: int, end: int) -> None:
        touching = [each for each in self.held if each[0] <= end and start <= each[1]]
        self.held = [each for each in self.held if each not in touching]
        start, end = min([start, *(left for left, _ in touching)]), max([end, *(right for _, right in touching)])
        if start <= self.next:
            self.next = max(self.next, end)
        else:
            self.held.insert(0, (start, end))

    def ack(self, reported: tuple[int, int] | None = None) -> Ack:
        blocks = sorted(self.held[:3]) if self.sack else []
        echo = self.echo if self.timestamps else None
        told = reported if self.sack and self.reports else None
        return Ack(self.next, blocks, told, self.window, echo, self.newest)


class Path:
    """`sender` on a path of 50 ms each way; what goes wrong is scripted, afterwards nothing does.

    Args:
        there, back: of each packet in turn, the seconds that it is late, one for each copy; none: it is lost.
    """

    def __init__(
        self,
        sender: Sender,
        receiver: Receiver,
        there: Sequence[Sequence[float]] = (),
        back: Sequence[Sequence[float]] = (),
        after: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self.sender, self.receiver = sender, receiver
        self.now = 0.0
        self._there, self._back = iter(there), iter(back)
        self._after = after
        self._events: list[tuple[float, int, Packet | Ack]] = []
        self._order = count()
        self.sent: list[tuple[float, int]] = []
        self.timeouts = 0
        self.newest = -inf  # when the newest packet left of which an acknowledgment came
        self.edge = sender.unacknowledged + sender.window  # of what the far side ever offered
        self.in_flight_before = 0  # bytes, before the sender was asked last
        self._number = count(1)

    def _put(self, item: Packet | Ack, fates: Sequence[float]) -> None:
        for late in fates:
            heapq.heappush(self._events, (self.now + 0.05 + late, next(self._order), item))

    def pump(self) -> None:
        sender = self.sender
        self.in_flight_before = sender.size
        while sender.next < sender.end or sender.board.lost or sender.tail.due:
            runs = sender.runs_to_send(self.now)
            assert runs or not sender.more_due
            for run in runs:
                sequence = run.sequence
                for index, payload in enumerate(run.payloads):
                    fin = run.fin and index == len(run.payloads) - 1
                    packet = Packet(sequence, sequence + len(payload) + fin, self.now)
                    assert packet.end > packet.start
                    assert len(payload) <= max(sender.mss, sender._segment_size._full)  # a probe of the path
                    self.sent.append((self.now, len(payload)))
                    self._put(packet, next(self._there, (0.0,)))
                    sequence = packet.end
            if not sender.more_due:
                break
        self._after(self)

    @property
    def done(self) -> bool:
        return self.sender.unacknowledged == self.sender.end

    def wait(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now + seconds
        while (event := self._next_event()) is not None and event <= until:
            self.step()
        self.now = until

    def _next_event(self) -> float | None:
        timers = [self.sender.next_timeout(), self._events[0][0] if self._events else None]
        return min((timer for timer in timers if timer is not None), default=None)

    def step(self) -> bool:
        """The next event; False: there is none."""
        sender = self.sender
        timer = sender.next_timeout()
        if sender.window_closed:
            persist = self.now + PERSIST
            timer = persist if timer is None else min(timer, persist)
        if self._events and (timer is None or self._events[0][0] <= timer):
            self.now, _, item = heapq.heappop(self._events)
            if isinstance(item, Packet):
                self._put(self.receiver.receive(item), next(self._back, (0.0,)))
                return True
            self._on_ack(item)
        elif timer is not None:
            assert timer < inf
            self.now = max(self.now, timer)
            self._on_timer()
            self.pump()
            timer = sender.next_timeout()
            assert timer is None or timer > self.now, "a timer that ran out is due again"
            return True
        else:
            return False
        self.pump()
        return True

    def _on_ack(self, ack: Ack) -> None:
        sender = self.sender
        if ack.acknowledgment < sender.unacknowledged and not ack.blocks and ack.reported is None:
            return
        self.newest = max(self.newest, ack.newest)
        changed = False
        if ack.acknowledgment >= sender.unacknowledged:
            self.edge = max(self.edge, ack.acknowledgment + ack.window)
            changed = sender.update_window(next(self._number) + 500, ack.acknowledgment, ack.window)
        duplicate = ack.acknowledgment == sender.unacknowledged and not changed
        acknowledgment = max(ack.acknowledgment, sender.unacknowledged)
        blocks = [block for block in ack.blocks if block[0] > acknowledgment]
        sender.on_ack(acknowledgment, blocks, ack.reported, duplicate, ack.echo, self.now)

    def _on_timer(self) -> None:
        sender = self.sender
        if sender.window_closed:
            self._put(self.receiver.ack(), (0.0,))
            sender.override_due = True
        sender.handle_timeout(self.now)
        if sender.retransmit_at is not None and self.now >= sender.retransmit_at:
            self.timeouts += 1
            sender.on_timeout(self.now)

    def run(self, limit: int = 20000) -> None:
        """Until everything arrived, and no timer runs any more."""
        self.pump()
        for _ in range(limit):
            if not self.step():
                assert self.done, "nothing is on its way and no timer runs"
                return
        raise AssertionError("it does not end")


def sender_on(make_control: Callable[[int], CongestionControl], mss: int, window: int, sack: bool) -> Sender:
    sender = Sender(ISS, mss, make_control)
    sender.next = ISS + 1
    sender.start_timer(-0.1)
    sender.start(mss, sack=sack)
    sender.on_established(500, ISS + 1, window, 0.0)
    return sender
