"""The receiving half of a TCP connection: window, reassembly, acknowledgment policy (RFC 9293 3.8.6)."""

from __future__ import annotations

from collections import deque
from math import sqrt

from httpx_wireguard._netstack.limits import RECEIVE_FLOOR, ReceiveMemory
from httpx_wireguard._netstack.reassembly import ReassemblyQueue

DELAYED_ACK = 0.04  # seconds; RFC 9293 MUST-40 allows 0.5, Linux waits 0.04
QUICK_ACKS = 8  # segments acknowledged at once on a new connection, so that the far side's slow start is not held up
INITIAL_BUFFER = 1 << 17  # bytes; ours: two full reads of a coalesced UDP batch
WINDOW_SCALE = 8  # RFC 7323 2.2: windows of up to 16 MiB in steps of 256 bytes
MAXIMUM_BUFFER = 0xFFFF << WINDOW_SCALE  # bytes; all that the scale can say: 1 Gbit/s over 134 ms
ROUNDING = 1 << WINDOW_SCALE  # bytes by which a window that is told may exceed the buffer
DEFAULT_SEGMENT = 536  # bytes; RFC 9293 3.7.1: what the far side's segments hold until larger ones come
PIECES = 256  # small segments held for the reader before they are joined; ours, against their overhead
UNCUT = 1 << 15  # bytes; ours: a read that is nearly full ends before a larger piece, which can so be had uncopied
SUSPECT = 1208  # bytes of payload, ours: a path MTU of 1280 takes this, so a hole of less is no sign of a narrow one
BURST_TIME = 0.002  # seconds; ours: how long a driver may be late in emptying the UDP socket
TICK = 0.001  # seconds; of our timestamps: shorter round trips cannot be told apart by their echo


class Receiver:
    """RCV.NXT, RCV.WND and everything between the network and the reader.

    Sequence numbers are unwrapped: ordinary integers that never go back to 0.
    """

    __slots__ = (
        "_advertised",
        "_chunks",
        "_consumed",
        "_consumed_before",
        "_disordered",
        "_edge",
        "_granted",
        "_memory",
        "_round_start",
        "_size",
        "_socket_capacity",
        "_window_mark",
        "ack_deadline",
        "ack_now",
        "buffered",
        "duplicate",
        "ecn",
        "ecn_echo",
        "fin_at",
        "fin_received",
        "full_segment",
        "last_acknowledgment",
        "last_echo",
        "mss",
        "next",
        "queue",
        "quick_acks",
        "rtt",
        "scale",
        "unacknowledged",
    )

    def __init__(self, next_sequence: int, mss: int, socket_capacity: int, memory: ReceiveMemory | None = None) -> None:
        self.next = next_sequence  # RCV.NXT
        self.mss = mss  # what we told the far side
        self.scale = 0  # Rcv.Wind.Shift; 0 until both sides offered it
        self.queue = ReassemblyQueue(RECEIVE_FLOOR)
        self.buffered = 0  # bytes in order that nobody has read yet
        self.fin_at: int | None = None  # sequence number of the far side's FIN
        self.fin_received = False  # everything before it, and it, is in order
        self.unacknowledged = 0  # bytes received in order since our last acknowledgment
        self.last_acknowledgment = next_sequence  # Last.ACK.sent of RFC 7323 4.3
        self.quick_acks = QUICK_ACKS
        self.ack_now = False
        self.ack_deadline: float | None = None
        self.duplicate: tuple[int, int] | None = None  # RFC 2883: what came twice, for the next SACK option
        self.full_segment = min(DEFAULT_SEGMENT, mss)  # the largest payload seen
        self.rtt: float | None = None  # as the receiving side sees it, which a sender that only acknowledges cannot
        self.last_echo = -1  # the timestamp of ours that came back last
        self.ecn = False  # the far side speaks ECN: its marks count
        self.ecn_echo = False  # every acknowledgment carries ECE
        self._chunks: deque[bytes | memoryview] = deque()
        self._socket_capacity = socket_capacity
        self._memory = memory or ReceiveMemory()
        self._granted = 0  # bytes that the memory keeps for us: the window, or at least what is held
        # of the buffer: window and unread data together; for a SYN,ACK the floor, which it is certain to get
        self._size = min(RECEIVE_FLOOR - ROUNDING, socket_capacity)
        self._edge = next_sequence  # right edge of the window that there is room for
        self._advertised = next_sequence  # the same as the far side knows it: rounded up to its unit
        self._consumed = self._consumed_before = 0  # bytes read in this round trip, and in the one before
        self._disordered = False  # something was missing in this round trip
        self._round_start = 0.0
        self._window_mark: tuple[int, float] | None = None  # without timestamps: an edge, and when it was promised

    def open(self, now: float) -> None:
        """Our SYN leaves. Its window counts for little: the next segment tells the one that the path allows."""
        self._granted = self._memory.admit()
        self._set_first_size(now)

    def start(self, now: float, rtt: float | None, *, timestamps: bool) -> None:
        """The handshake is over: data may come.

        Args:
            rtt: in seconds, as the handshake measured it.
            timestamps: `on_echo` will go on measuring.
        """
        self.rtt = rtt
        self._round_start = now
        self._granted = self._granted or self._memory.admit()
        self._set_first_size(now)
        if not timestamps:
            self._window_mark = (self._advertised, now)

    def _set_first_size(self, now: float) -> None:
        active = self._memory.on_round(self, now)
        self._resize(min(INITIAL_BUFFER, self._socket_capacity, self._ceiling(active)))

    def leave(self) -> None:
        """The connection is over. What is left to read is the reader's."""
        self.rtt = self._window_mark = None
        self._memory.forget(self, self._granted)
        self._granted = 0

    # -- window

    @property
    def misses_full_segments(self) -> bool:
        """There is a hole that full segments left, and none that large ever came."""
        held = self.queue.start
        return held is not None and held - self.next >= SUSPECT > self.full_segment

    @property
    def right_edge(self) -> int:
        """First sequence number that the far side may not send."""
        return self._advertised

    @property
    def room(self) -> int:
        """Bytes of data in order that need no further grant of memory; none of it is held out of order."""
        return min(self._advertised - self.next, self._granted - self.buffered)

    def acceptable(self, sequence: int, length: int) -> bool:
        """RFC 9293 3.10.7.4 first check: some of the segment lies in the window.

        One that begins at RCV.NXT always does: its acknowledgment counts although the window is closed.
        """
        if length == 0 or sequence == self.next:
            return self.next <= sequence <= max(self._advertised, self.next)
        return sequence < self._advertised and sequence + length > self.next

    def reset_edge(self) -> None:
        """The far side's SYN came: RCV.NXT is known now, and our SYN advertised a window from it."""
        self.last_acknowledgment = self.next
        self._edge = self._advertised = self.next + min(self._size, 0xFFFF)

    def syn_window_field(self) -> int:
        """The window of a SYN is never scaled (RFC 7323 2.2)."""
        return min(self._size, 0xFFFF)

    def window_field(self) -> int:
        """The window to advertise now, scaled for the header; the right edge never moves back."""
        edge = self.next + max(self._size - self.buffered, 0)
        if edge - self._edge < min(self._size // 2, self.mss):
            edge = self._edge  # RFC 9293 3.8.6.2.2: no silly windows
        # Rounded up, or the edge would seem to move back (RFC 7323 2.4); from the exact edge each time, or small
        # segments would push it on for ever.
        field = min(-(-max(edge - self.next, 0) >> self.scale), 0xFFFF)
        told = self.next + (field << self.scale)
        self._edge = min(edge, told)
        self._advertised = max(self._advertised, told)
        return field

    def window_update_due(self) -> bool:
        """RFC 9293 3.8.6.2.2: tell of a window only once it has opened by half the buffer or two segments' worth."""
        edge = self.next + min(self._size - self.buffered, 0xFFFF << self.scale)  # as far as the field reaches
        grown = edge - self._edge
        remaining = self._edge - self.next
        if self.fin_received:
            return False
        return grown >= min(self._size // 2, 2 * self.mss) and remaining < self._size // 2

    # -- input

    def on_in_order(self, payloads: list[bytes], length: int, segment: int, now: float) -> None:
        """Fast path: payloads that begin at RCV.NXT, lie in the window and leave no hole.

        Args:
            length: bytes of them all.
            segment: bytes of the first segment.
        """
        self._chunks.extend(payloads)
        self.next += length
        self.buffered += length
        self._schedule_ack(length, segment, now)

    def on_data(self, sequence: int, payload: bytes, now: float) -> bool:
        """Data anywhere in or around the window; returns whether the reader has something new."""
        end = sequence + len(payload)
        if end <= self.next:
            self.duplicate = (sequence, end)
            self.ack_now = True
            return False
        if sequence < self.next:
            self.duplicate = (sequence, self.next)
            payload = payload[self.next - sequence :]
            sequence = self.next
            self.ack_now = True
        if end > self._advertised:
            payload = payload[: self._advertised - sequence]
        if not payload:
            self.ack_now = True
            return False
        if not self._make_room(len(payload), sequence > self.next):
            self.ack_now = True
            return False
        queue = self.queue
        known = queue.first_held(sequence, sequence + len(payload)) if queue.bytes_held else None
        if known is not None and self.duplicate is None:  # RFC 2883 4: the first part that came twice
            self.duplicate = known
        if sequence > self.next:
            self._disordered = True
            self.full_segment = max(self.full_segment, len(payload))
            queue.insert(sequence, payload)
            self.ack_now = True  # RFC 5681 4.2: at once, so that the sender sees the hole
            return False
        pieces = [payload]
        if self.queue.bytes_held:
            self.ack_now = self._disordered = True  # RFC 5681 4.2: it filled (part of) a hole
            if self.queue.insert(sequence, payload):  # where both have a byte, the queue's stays
                pieces = self.queue.take_from(sequence)
        self._chunks.extend(pieces)
        length = sum(map(len, pieces))
        self.next += length
        self.buffered += length
        self._schedule_ack(length, len(payload), now)
        if self._window_mark is not None and self.next > self._window_mark[0]:
            self._on_window_passed(self._window_mark[1], now)
        return True

    def on_ecn(self, ce: bool, cwr: bool) -> None:
        """RFC 3168 6.1.3: data came marked, or its sender says that it has slowed down. Both want an answer at once:
        the one slows the sender down, and the other's window may be a single segment."""
        if cwr and self.ecn_echo:
            self.ecn_echo = False
            self.ack_now = True
        if ce and not self.ecn_echo:
            self.ecn_echo = True
            self.ack_now = True

    def _schedule_ack(self, length: int, segment: int, now: float) -> None:
        self.unacknowledged += length
        if segment > self.full_segment:
            self.full_segment = segment
        if len(self._chunks) > PIECES + self.buffered // DEFAULT_SEGMENT:
            self._join_chunks()
        if self.unacknowledged > self.full_segment:  # RFC 9293 MUST-58: every second full segment
            self.ack_now = True
        elif self.quick_acks > 0:
            self.quick_acks -= 1
            self.ack_now = True
        elif self.ack_deadline is None:
            self.ack_deadline = now + DELAYED_ACK

    def _join_chunks(self) -> None:
        """Many small segments cost more than their bytes (CVE-2018-5390): copy them into one."""
        joined = b"".join(self._chunks)
        self._chunks.clear()
        self._chunks.append(joined)

    def on_fin(self) -> None:
        """Everything is here, the far side's FIN included: the window is no longer needed, nor is its memory."""
        self.fin_received = True
        self.next += 1
        self.ack_now = True
        self._release_to(self.buffered)

    def on_ack_timeout(self) -> None:
        """The reader did not answer in time to carry the acknowledgment: no dialogue, be quick for a while."""
        self.ack_deadline = None
        self.ack_now = True
        self.quick_acks = 2

    def on_ack_sent(self) -> None:
        self.unacknowledged = 0
        self.last_acknowledgment = self.next
        self.ack_now = False
        self.ack_deadline = None
        self.duplicate = None

    def sack_blocks(self, limit: int) -> list[tuple[int, int]]:
        """RFC 2018 4, RFC 2883 4: a duplicate first, then what is held above RCV.NXT, newest first."""
        blocks = [self.duplicate] if self.duplicate is not None else []
        blocks += self.queue.ranges()[: limit - len(blocks)]
        return blocks

    # -- the reader

    def take(self, max_bytes: int, now: float) -> bytes:
        """Up to `max_bytes` in order; b"" when there are none. It may be a little less than there is: whole trains."""
        chunks = self._chunks
        if self.buffered <= max_bytes:
            data = b"".join(chunks)  # of one, if that is bytes, it is the same object
            chunks.clear()
        else:
            pieces: list[bytes | memoryview] = []
            missing = max_bytes
            while missing > 0:
                piece = chunks.popleft()
                if len(piece) > missing:
                    if len(piece) > UNCUT and missing <= max_bytes // 4:
                        chunks.appendleft(piece)
                        break
                    view = memoryview(piece)
                    chunks.appendleft(_without_waste(view[missing:]))
                    piece = view[:missing]
                pieces.append(piece)
                missing -= len(piece)
            data = b"".join(pieces)
        self.buffered -= len(data)
        self._consumed += len(data)
        if self.fin_received:
            self._release_to(self.buffered)
        elif self.rtt is not None and now - self._round_start >= self.rtt:
            self._on_round_trip(now)
        return data

    # -- how large a window

    def on_echo(self, ticks: int) -> None:
        """A full segment brought back a timestamp of ours, this many milliseconds old.

        A sender that waits for its application makes the path look longer, none makes it look shorter: the shortest
        is believed at once, longer ones by and by.
        """
        rtt = max(ticks, 1) * TICK
        if self.rtt is None:
            self.rtt = rtt
        elif ticks > 1 or self.rtt > TICK:
            self.rtt = min(rtt, self.rtt + (rtt - self.rtt) / 8)

    def _on_window_passed(self, since: float, now: float) -> None:
        """Something came that the window of `since` forbade: a round trip ago or longer, we sent a later one."""
        self.rtt = now - since if self.rtt is None else min(self.rtt, now - since)
        self._window_mark = (self._advertised, now)

    def _on_round_trip(self, now: float) -> None:
        """Dynamic right-sizing (Fisk and Feng, 2001), as Linux does it.

        The window is to be twice what the reader takes in a round trip, so that a loss can be mended meanwhile. Where
        it takes more than in the round trip before, the sender is in slow start and may double again before we see
        it: the window keeps ahead by so much more. Not so when a hole was filled: then the reader took what several
        round trips had brought.
        """
        active = self._memory.on_round(self, now)
        consumed, before = self._consumed, self._consumed_before
        wanted = 2 * consumed
        if consumed > before and not self._disordered:
            wanted += 2 * wanted * min(consumed - before, before or 1) // (before or 1)
        size = max(self._size, wanted)
        share = self._memory.fair_share()
        if share is not None:
            size = min(size, max(share, RECEIVE_FLOOR - ROUNDING))
        self._resize(min(size, self._ceiling(active)))
        self._consumed_before, self._consumed = consumed, 0
        self._disordered = False
        self._round_start = now

    def _ceiling(self, active: int) -> int:
        """The largest buffer on this path, with `active` connections that receive.

        The UDP socket must hold what arrives while its driver is busy. One connection may fill it, or exceed it where
        the path is so long that its window cannot arrive within BURST_TIME. Several share it: on short paths all
        their windows may be there at once (the incast problem), on longer ones bursts of some meet pauses of others,
        and what comes at once grows with the square root of their number (Appenzeller et al., 2004).
        """
        length = (self.rtt or 0.0) / BURST_TIME
        share = self._socket_capacity * max(1 / active, length / sqrt(active))
        least = min(2 * self.mss, self._socket_capacity)
        return min(max(int(share), least), MAXIMUM_BUFFER if self.scale else INITIAL_BUFFER)

    def _resize(self, size: int) -> None:
        """Change the buffer's size, as far as there is memory. The right edge stays until it is reached again."""
        self._grant(size + ROUNDING)
        self._size = min(size, self._granted - ROUNDING)
        self._release_to(max(self._size, self._edge - self.next + self.buffered) + ROUNDING)

    def give_back(self) -> None:
        """Others need the memory, and this connection is idle: its next data will have to ask for it."""
        self._size = min(self._size, RECEIVE_FLOOR - ROUNDING)
        self._release_to(self.buffered + self.queue.bytes_held)

    def _grant(self, total: int) -> None:
        if total > self._granted:
            self._granted += self._memory.claim(total - self._granted, self)
            self.queue.set_max_bytes(self._granted)

    def _release_to(self, total: int) -> None:
        spare = self._granted - max(total, 0 if self.fin_received else RECEIVE_FLOOR)
        if spare > 0:
            self._granted -= spare
            self._memory.release(spare)
            self.queue.set_max_bytes(self._granted)

    def _make_room(self, length: int, behind_a_hole: bool) -> bool:
        """Whether the memory for `length` more bytes is ours, or can be had.

        It is, unless we gave it back while the window was promised. Then data is refused, and comes again; but the
        reader gets on, with what is in order.
        """
        total = self.buffered + self.queue.bytes_held + length
        if total <= self._granted:
            return True
        self._grant(total + RECEIVE_FLOOR)
        if total <= self._granted:
            return True
        if behind_a_hole or not self.queue:
            return False
        self.queue.clear()  # RFC 2018 8: what was only selectively acknowledged may be dropped
        return self.buffered + length <= self._granted


def _without_waste(view: memoryview) -> bytes | memoryview:
    """What is left of a piece: itself, or a copy where most of what it keeps alive has been read."""
    return view if 2 * len(view) >= memoryview(view.obj).nbytes else bytes(view)
