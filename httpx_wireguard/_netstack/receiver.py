"""The receiving half of a TCP connection: window, reassembly, acknowledgment policy (RFC 9293 3.8.6)."""

from __future__ import annotations

from collections import deque

from httpx_wireguard._netstack.reassembly import ReassemblyQueue

DELAYED_ACK = 0.04  # seconds; RFC 9293 MUST-40 allows 0.5, Linux waits 0.04
QUICK_ACKS = 8  # segments acknowledged at once on a new connection, so that the far side's slow start is not held up
INITIAL_BUFFER = 1 << 17  # bytes; ours: two full reads of a coalesced UDP batch
MAXIMUM_BUFFER = 6 << 20  # bytes; the usual limit of Linux' tcp_rmem
WINDOW_SCALE = 8  # RFC 7323 2.2: windows of up to 16 MiB in steps of 256 bytes
DEFAULT_SEGMENT = 536  # bytes; RFC 9293 3.7.1: what the far side's segments hold until larger ones come
PIECES = 1024  # small segments held for the reader before they are joined; ours, against their overhead
BURST_TIME = 0.002  # seconds; ours: how long a driver may be late in emptying the UDP socket


class Receiver:
    """RCV.NXT, RCV.WND and everything between the network and the reader.

    Sequence numbers are unwrapped: ordinary integers that never go back to 0.
    """

    __slots__ = (
        "_advertised",
        "_autotune_start",
        "_buffer_size",
        "_chunks",
        "_consumed",
        "_edge",
        "_full_segment",
        "_socket_capacity",
        "ack_deadline",
        "ack_now",
        "buffered",
        "duplicate",
        "fin_at",
        "fin_received",
        "last_acknowledgment",
        "mss",
        "next",
        "queue",
        "quick_acks",
        "scale",
        "unacknowledged",
    )

    def __init__(self, next_sequence: int, mss: int, socket_capacity: int) -> None:
        self.next = next_sequence  # RCV.NXT
        self.mss = mss  # what we told the far side
        self.scale = 0  # Rcv.Wind.Shift; 0 until both sides offered it
        self.queue = ReassemblyQueue(MAXIMUM_BUFFER)
        self.buffered = 0  # bytes in order that nobody has read yet
        self.fin_at: int | None = None  # sequence number of the far side's FIN
        self.fin_received = False  # everything before it, and it, is in order
        self.unacknowledged = 0  # bytes received in order since our last acknowledgment
        self.last_acknowledgment = next_sequence  # Last.ACK.sent of RFC 7323 4.3
        self.quick_acks = QUICK_ACKS
        self.ack_now = False
        self.ack_deadline: float | None = None
        self.duplicate: tuple[int, int] | None = None  # RFC 2883: what came twice, for the next SACK option
        self._chunks: deque[bytes] = deque()
        self._socket_capacity = socket_capacity
        self._buffer_size = min(INITIAL_BUFFER, socket_capacity)
        self._edge = next_sequence  # right edge of the window that there is room for
        self._advertised = next_sequence  # the same as the far side knows it: rounded up to its unit
        self._full_segment = min(DEFAULT_SEGMENT, mss)  # the largest payload seen
        self._consumed = 0  # bytes read since _autotune_start
        self._autotune_start: float | None = None

    # -- window

    @property
    def right_edge(self) -> int:
        """First sequence number that the far side may not send."""
        return self._advertised

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
        self._edge = self._advertised = self.next + min(self._buffer_size, 0xFFFF)

    def syn_window_field(self) -> int:
        """The window of a SYN is never scaled (RFC 7323 2.2)."""
        return min(self._buffer_size, 0xFFFF)

    def window_field(self) -> int:
        """The window to advertise now, scaled for the header; the right edge never moves back."""
        edge = self.next + max(self._buffer_size - self.buffered, 0)
        if edge - self._edge < min(self._buffer_size // 2, self.mss):
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
        edge = self.next + min(self._buffer_size - self.buffered, 0xFFFF << self.scale)  # as far as the field reaches
        grown = edge - self._edge
        remaining = self._edge - self.next
        if self.fin_received:
            return False
        return grown >= min(self._buffer_size // 2, 2 * self.mss) and remaining < self._buffer_size // 2

    # -- input

    def on_in_order(self, payloads: list[bytes], length: int, now: float) -> None:
        """Fast path: payloads that begin at RCV.NXT, lie in the window and leave no hole."""
        self._chunks.extend(payloads)
        self.next += length
        self.buffered += length
        self._schedule_ack(length, len(payloads[0]), now)

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
        queue = self.queue
        known = queue.first_held(sequence, sequence + len(payload)) if queue.bytes_held else None
        if known is not None and self.duplicate is None:  # RFC 2883 4: the first part that came twice
            self.duplicate = known
        if sequence > self.next:
            queue.insert(sequence, payload)
            self.ack_now = True  # RFC 5681 4.2: at once, so that the sender sees the hole
            return False
        self._chunks.append(payload)
        length = len(payload)
        if queue.bytes_held:
            more = queue.take_from(self.next + length)
            self._chunks.extend(more)
            length += sum(map(len, more))
            self.ack_now = True  # RFC 5681 4.2: it filled (part of) a hole
        self.next += length
        self.buffered += length
        self._schedule_ack(length, len(payload), now)
        return True

    def _schedule_ack(self, length: int, segment: int, now: float) -> None:
        self.unacknowledged += length
        if segment > self._full_segment:
            self._full_segment = segment
        if len(self._chunks) > PIECES + self.buffered // DEFAULT_SEGMENT:
            self._join_chunks()
        if self.unacknowledged > self._full_segment:  # RFC 9293 MUST-58: every second full segment
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

    def take(self, max_bytes: int, now: float, rtt: float | None) -> bytes:
        """Up to `max_bytes` in order; b"" when there are none."""
        chunks = self._chunks
        if self.buffered <= max_bytes:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
        else:
            pieces: list[bytes] = []
            missing = max_bytes
            while missing > 0:
                piece = chunks.popleft()
                if len(piece) > missing:
                    chunks.appendleft(piece[missing:])
                    piece = piece[:missing]
                pieces.append(piece)
                missing -= len(piece)
            data = b"".join(pieces)
        self.buffered -= len(data)
        self._autotune(len(data), now, rtt)
        return data

    def _autotune(self, length: int, now: float, rtt: float | None) -> None:
        """Grow the buffer while the reader takes more than half of it per round trip.

        The UDP socket must hold what arrives while its driver is busy: a window beyond the socket's capacity is
        given only to paths so long that the window cannot arrive within BURST_TIME.
        """
        self._consumed += length
        if rtt is None:
            return
        if self._autotune_start is None:
            self._autotune_start = now
        elif now - self._autotune_start >= rtt:
            if self._consumed > self._buffer_size // 2:
                longest = int(self._socket_capacity * max(1.0, rtt / BURST_TIME))
                self._buffer_size = max(self._buffer_size, min(2 * self._consumed, longest, MAXIMUM_BUFFER))
            self._consumed = 0
            self._autotune_start = now
