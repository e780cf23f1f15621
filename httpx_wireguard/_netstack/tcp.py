"""One TCP connection: the state machine of RFC 9293, as hardened by RFC 5961 and extended by RFC 7323 and 2018."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from httpx_wireguard._errors import (
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    DestinationUnreachable,
    MalformedPacket,
    WireGuardError,
    renewed,
)
from httpx_wireguard._netstack.addresses import IpAddress, fixed_headers, readable
from httpx_wireguard._netstack.congestion.control import CongestionControl
from httpx_wireguard._netstack.limits import SharedLimits
from httpx_wireguard._netstack.prediction import TIMESTAMP_LAYOUT, PredictedInput
from httpx_wireguard._netstack.receiver import WINDOW_SCALE, Receiver
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._netstack.sender import Run, Sender
from httpx_wireguard._netstack.sequence import unwrap
from httpx_wireguard._wire.ecn import CE, ECT_0, ecn_of
from httpx_wireguard._wire.ipv6 import MINIMUM_MTU
from httpx_wireguard._wire.tcp import Flags, TcpHeader

MSL = 30.0  # seconds; Deviates from RFC 9293 3.4.1 (2 minutes): Linux waits 60 s in TIME-WAIT
SYN_RETRIES = 7  # R2 of a SYN: 1+2+4+…+64 s and the wait after, more than the 3 minutes of RFC 9293 MUST-23
ORPHAN_RETRIES = 8  # of data that nobody waits for: Linux' tcp_orphan_retries
DATA_RETRIES = 15  # R2 of data: Linux' tcp_retries2, more than the 100 s of RFC 9293 SHLD-11
ORPHAN_TIMEOUT = 60.0  # seconds in FIN-WAIT-2 with nobody to read; ours, as Linux' tcp_fin_timeout
WRITE_LOW_WATER = 1 << 18  # bytes; ours: a waiting writer is woken once for many acknowledgments
SEND_FLOOR = WRITE_LOW_WATER  # bytes that every writer may have waiting, whatever the others do
PAWS_IDLE = 24 * 86400.0  # seconds; RFC 7323 5.5: after this a timestamp of 1 ms ticks may have wrapped
CHALLENGE_INTERVAL = 0.5  # seconds; RFC 5961 7 wants a limit, Linux' is this per connection

MINIMUM_MSS = 88  # bytes; ours, after CVE-2019-11479: a tiny MSS only costs packets (Linux: 48 without options)

_FIN, _SYN, _RST, _PSH, _ACK = (int(flag) for flag in (Flags.FIN, Flags.SYN, Flags.RST, Flags.PSH, Flags.ACK))
_SYN_ACK = _SYN | _ACK
_ECE, _CWR = int(Flags.ECE), int(Flags.CWR)
_TIMESTAMP = struct.Struct("!III")
_SACK_EDGES = struct.Struct("!II")
_TIMESTAMP_BYTES = 12


class State(Enum):
    """RFC 9293 3.3.2; LISTEN is `TcpListener`."""

    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"

    __hash__ = object.__hash__  # Enum's is a Python function, and the sets below are asked nine times a segment


_RECEIVING = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
_SENDING = frozenset({State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
_WRITABLE = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
_ENDED = frozenset({State.TIME_WAIT, State.CLOSED})
_OPENING = frozenset({State.SYN_SENT, State.SYN_RECEIVED})


class Owner(Protocol):
    """What a connection tells its stack."""

    def touch(self, connection: TcpConnection) -> None:
        """It may have something to send, or its timers moved."""

    def wake(self, connection: TcpConnection) -> None:
        """Its readiness may have changed."""

    def on_established(self, connection: TcpConnection) -> None:
        """A passive open finished."""

    def on_closed(self, connection: TcpConnection) -> None:
        """It is in CLOSED: forget it."""

    def on_path_mtu(self, remote: IpAddress, mtu: int, now: float) -> None:
        """The path to `remote` takes packets of `mtu` bytes: fewer, or more, than was thought."""

    def drop(self, reason: str) -> None:
        """Count a packet that was thrown away."""


class TcpConnection(PredictedInput):
    """A TCP connection and the socket of its user.

    Sequence numbers are unwrapped integers inside and 32 bits on the wire. Times are monotonic seconds.
    """

    __slots__ = (
        "_challenge_at",
        "_close_at",
        "_ecn",
        "_keepalive",
        "_keepalive_at",
        "_keepalive_probes",
        "_orphan",
        "_owner",
        "_persist_at",
        "_persist_retries",
        "_progress_at",
        "_refused_at",
        "_reset_due",
        "_send_charged",
        "_shared",
        "_syn_due",
        "_timestamps",
        "_user_timeout",
        "_writer",
        "error",
        "hard_error_hint",
        "local",
        "local_address",
        "passive",
        "remote",
        "remote_address",
        "state",
    )

    def __init__(
        self,
        owner: Owner,
        local: tuple[IpAddress, int],
        remote: tuple[IpAddress, int],
        *,
        initial_sequence: int,
        mss: int,
        socket_capacity: int,
        make_control: Callable[[int], CongestionControl],
        timestamp_offset: int = 0,
        shared: SharedLimits | None = None,
    ) -> None:
        self._owner = owner
        self._shared = shared or SharedLimits()
        self.local_address, self.remote_address = local, remote
        self.local, self.remote = readable(*local), readable(*remote)
        self.state = State.SYN_SENT
        self.passive = False
        self.error: WireGuardError | None = None
        self.hard_error_hint: str | None = None  # the last ICMP error, for the text of a later timeout
        self.sender = Sender(initial_sequence, mss, make_control)
        self.receiver = Receiver(0, mss, socket_capacity, self._shared.receive)
        self._send_charged = 0  # bytes of the shared memory that our send queue takes
        self._writer = SegmentWriter(local[0], remote[0], local[1], remote[1])
        self._ecn = False  # our data may be marked: RFC 3168
        self._timestamps = False
        self._timestamp_offset = timestamp_offset  # RFC 7323 5.4: no clock of ours on the wire
        self._timestamp_echo = 0  # TS.Recent
        self._syn_due = self._reset_due = False
        self._refused_at: int | None = None  # an impossible acknowledgment, to be answered by a reset
        self._orphan = False  # nobody holds the socket any more
        self._close_at: float | None = None  # end of TIME-WAIT, or of an orphan's FIN-WAIT-2
        self._persist_at: float | None = None
        self._persist_retries = 0
        self._challenge_at = float("-inf")
        self._user_timeout: float | None = None
        self._progress_at = 0.0  # when SND.UNA moved last, or there was something to acknowledge again
        self._keepalive: tuple[float, float, int] | None = None  # idle, interval, count
        self._keepalive_at: float | None = None
        self._keepalive_probes = 0
        self._last_received = 0.0

    def __repr__(self) -> str:
        return f"<TcpConnection {self.local} -> {self.remote} {self.state.value}>"

    @property
    def name(self) -> str:
        """For error texts."""
        return f"connection to {self.remote[0]} port {self.remote[1]}"

    # -- opening (RFC 9293 3.10.1)

    def open(self, now: float) -> None:
        """Active open: send a SYN."""
        self.receiver.open(now)
        self._start_syn(now)

    def open_passive(self, syn: TcpHeader, now: float) -> None:
        """RFC 9293 3.10.7.2 third step: a SYN came to a listener; answer SYN,ACK."""
        self.passive = True
        self.state = State.SYN_RECEIVED
        self._accept_syn(syn, now)
        self._start_syn(now)

    def open_answered(self, syn: TcpHeader, now: float) -> None:
        """As `open_passive`, but a cookie was the answer, and its acknowledgment is here (RFC 4987 3.6)."""
        self.passive = True
        self.state = State.SYN_RECEIVED
        self._accept_syn(syn, now)
        self.sender.next = self.sender.unacknowledged + 1

    def _start_syn(self, now: float) -> None:
        sender = self.sender
        sender.next = sender.unacknowledged + 1
        self._progress_at = now
        sender.start_timer(now)
        self._syn_due = True
        self._owner.touch(self)

    def _accept_syn(self, header: TcpHeader, now: float) -> None:
        """Take the far side's initial sequence number and options from its SYN."""
        options, sender, receiver = header.options, self.sender, self.receiver
        receiver.next = header.sequence + 1
        receiver.reset_edge()
        self._negotiate_ecn(header.flags)
        default = 536 if len(self.local_address[0]) == 4 else 1220  # RFC 9293 MUST-15
        mss = min(max(default if options.mss is None else options.mss, MINIMUM_MSS), sender.mss)
        self._timestamps = options.timestamp_value is not None
        if options.timestamp_value is not None:
            self._timestamp_echo = options.timestamp_value
            mss -= _TIMESTAMP_BYTES  # RFC 6691
        sender.start(mss, sack=options.sack_permitted)
        if options.window_scale is not None:  # RFC 7323 2.2: both or none
            sender.scale = options.window_scale
            receiver.scale = WINDOW_SCALE
        sender.window = sender.largest_window = header.window  # never scaled in a SYN
        self._last_received = now

    def _negotiate_ecn(self, flags: int) -> None:
        """RFC 3168 6.1.1: an ECN-setup SYN has both bits, an ECN-setup SYN-ACK has ECE alone."""
        self.receiver.ecn = flags & (_ECE | _CWR) == (_ECE if flags & _ACK else _ECE | _CWR)
        self._ecn = self.receiver.ecn and not self.sender.retries  # never after a SYN of ours without the bits

    # -- the user's calls (RFC 9293 3.9.1)

    @property
    def connected(self) -> bool:
        """The three-way handshake is done (and may be over again)."""
        return self.state not in _OPENING

    @property
    def at_eof(self) -> bool:
        """The far side closed its half and everything before that was read."""
        return self.receiver.fin_received and not self.receiver.buffered

    @property
    def readable(self) -> bool:
        """`receive` would not come back empty-handed: data, the end of the stream or an error."""
        return self.receiver.buffered > 0 or self.receiver.fin_received or self.error is not None

    @property
    def writable(self) -> bool:
        """`send` would take something, or raise."""
        sender = self.sender
        return (
            self.error is not None
            or sender.fin_at is not None
            or (self.state in _WRITABLE and self._space >= WRITE_LOW_WATER)
        )

    @property
    def in_flight(self) -> bool:
        """Something was sent, and is not acknowledged."""
        return self.sender.next > self.sender.unacknowledged

    @property
    def _space(self) -> int:
        """Bytes that the writer may add: by its own limit, and by the memory that all writers share."""
        sender = self.sender
        shared = SEND_FLOOR + self._send_charged + max(self._shared.send_free, 0) - len(sender.queue)
        return min(sender.space, max(shared, 0))

    def send(self, data: bytes | bytearray | memoryview, now: float) -> int:
        """Queue bytes; returns how many were taken (0: wait until `writable`).

        Raises:
            ConnectionReset: the connection is closed for sending; or the connection's own error.
        """
        if self.error is not None:
            raise renewed(self.error)
        if self.sender.fin_at is not None or self.state is State.CLOSED:
            raise ConnectionReset(f"{self.name}: already closed for sending")
        taken = min(len(data), self._space)
        if taken:
            self._on_written(now)
            self.sender.queue.append(data if taken == len(data) else memoryview(data)[:taken])
            self._charge_send_queue()
            self._owner.touch(self)
        return taken

    def _on_written(self, now: float) -> None:
        if self.sender.unacknowledged == self.sender.end:
            self._progress_at = now

    def _charge_send_queue(self) -> None:
        """Take what the send queue holds beyond the floor from the shared memory, or give it back."""
        charge = max(len(self.sender.queue) - SEND_FLOOR, 0)
        self._shared.send_free -= charge - self._send_charged
        self._send_charged = charge

    def receive(self, max_bytes: int, now: float) -> bytes:
        """Everything that is there, up to `max_bytes`; b"" when nothing is (see `at_eof`).

        Data that arrived before an error is delivered before the error.
        """
        receiver = self.receiver
        if receiver.buffered:
            data = receiver.take(max_bytes, now)
            if receiver.ack_now or receiver.window_update_due():
                receiver.ack_now = True
                self._owner.touch(self)
            return data
        if self.error is not None and not receiver.fin_received:
            raise renewed(self.error)
        return b""

    def shutdown_write(self, now: float) -> None:
        """Send FIN after what is queued; reading goes on (RFC 9293 3.10.4)."""
        if self.sender.fin_at is not None or self.state is State.CLOSED:
            return
        if self.state is State.SYN_SENT:
            self.fail(ConnectionReset(f"{self.name}: closed here before it was open"))
            return
        self._on_written(now)
        self.sender.close()
        if self.state is State.ESTABLISHED:  # in SYN-RECEIVED the FIN waits for the handshake
            self._enter(State.FIN_WAIT_1)
        elif self.state is State.CLOSE_WAIT:
            self._enter(State.LAST_ACK)

    def close(self, now: float) -> None:
        """Give the socket up: an orderly end, or a reset where unread data would be lost (RFC 2525 2.17)."""
        if self._orphan:
            return
        self._look_for_black_hole(now)
        self._orphan = True
        self._owner.wake(self)
        if self.receiver.buffered and self.state not in (State.CLOSED, State.TIME_WAIT):
            self.abort(now)
            return
        self.shutdown_write(now)
        if self.state is State.FIN_WAIT_2:
            self._close_at = now + ORPHAN_TIMEOUT
            self._owner.touch(self)

    def abort(self, now: float, error: WireGuardError | None = None) -> None:
        """RFC 9293 3.10.5: reset the connection and drop everything; waiters get `error`."""
        self._look_for_black_hole(now)
        self._orphan = True
        if self.state in (State.CLOSED, State.TIME_WAIT):
            self._enter_closed(None)
            return
        done = self.state in (State.CLOSING, State.LAST_ACK) and self.sender.next == self.sender.end
        self._reset_due = self.state is not State.SYN_SENT and not done
        self.fail(error or ConnectionReset(f"{self.name}: aborted here"))

    def set_keepalive(self, idle: float, interval: float, count: int, now: float) -> None:
        """Probe an idle connection (RFC 9293 3.8.4); off unless asked for (MUST-25)."""
        if self.state in (State.CLOSED, State.TIME_WAIT):
            return
        self._keepalive = (idle, interval, count)
        self._keepalive_at = now + idle
        self._owner.touch(self)

    @property
    def user_timeout(self) -> float | None:
        """Seconds that data may wait for its acknowledgment, a closed window included (RFC 5482, RFC 9293 3.10.8).

        None leaves it to retransmissions (R2), which this replaces, as it does the count of keep-alive probes.
        """
        return self._user_timeout

    @user_timeout.setter
    def user_timeout(self, seconds: float | None) -> None:
        self._user_timeout = seconds
        self._owner.touch(self)

    # -- input: the fast path

    def receive_packets(self, packets: Sequence[bytes], offset: int, now: float) -> int:
        """Segments of this connection, in order of arrival, as IP packets cut to their own length.

        Args:
            offset: where the TCP header begins in each of them.

        Those that are as predicted are taken without an object made; all others go through `receive_segment`.

        Returns:
            How many of them it took: what comes behind the end of the connection may be for another one.
        """
        index, count = 0, len(packets)
        while index < count and not (index and self.state in _ENDED):
            taken = self._take_predicted(packets, index, offset, now) if self._predictable else 0
            if taken:
                index += taken
                continue
            packet = packets[index]
            index += 1
            try:
                header = TcpHeader.parse(packet, offset)
            except MalformedPacket:
                self._owner.drop("malformed TCP header")
                continue
            ce = self.receiver.ecn and ecn_of(packet) == CE
            self.receive_segment(header, packet[offset + header.header_length :], now, ce=ce)
        self._owner.touch(self)
        self._owner.wake(self)
        return index

    @property
    def _predictable(self) -> bool:
        """Data that continues the stream needs no more than to be put behind it, and what acknowledges is no more."""
        receiver = self.receiver
        return (
            self.state in _RECEIVING
            and self._timestamps
            and not self._orphan
            and not self.sender.retries
            and not receiver.queue.bytes_held
            and receiver.fin_at is None
        )

    # -- input: RFC 9293 3.10.7, one method per numbered step

    def receive_segment(self, header: TcpHeader, payload: bytes, now: float, *, ce: bool = False) -> None:
        """Any segment for this connection, marked CE or not; the reference that the fast path must equal."""
        if self.state is State.SYN_SENT:
            self._receive_in_syn_sent(header, payload, now)
        elif self.state is not State.CLOSED:
            self._receive_synchronized(header, payload, ce, now)
        self._owner.touch(self)
        self._owner.wake(self)

    def _receive_in_syn_sent(self, header: TcpHeader, payload: bytes, now: float) -> None:
        """RFC 9293 3.10.7.3."""
        sender = self.sender
        acknowledgment = unwrap(header.acknowledgment, sender.unacknowledged)
        has_ack = bool(header.flags & _ACK)
        if has_ack and not sender.unacknowledged < acknowledgment <= sender.next:
            if not header.flags & _RST:
                self._refused_at = header.acknowledgment  # first: the far side has a half-open relic (3.5.1)
            return
        if header.flags & _RST:  # second
            if has_ack:
                self.fail(ConnectionRefused(f"{self.name} refused by the far side: nothing listens there"))
            return
        if not header.flags & _SYN:
            return  # fifth
        self._accept_syn(header, now)  # fourth
        if has_ack:
            self._syn_due = False
            sender.on_established(header.sequence, acknowledgment, header.window, now)  # a SYN's window is not scaled
            self._on_established(now)
            self.receiver.ack_now = True
            self._enter(State.ESTABLISHED)
            self._last_received = now
            self._receive_text(self.receiver.next, payload, bool(header.flags & _FIN), now)
        else:  # MUST-10: simultaneous open
            self.state = State.SYN_RECEIVED
            self._syn_due = True

    def _on_established(self, now: float) -> None:
        self._progress_at = now
        self.receiver.start(now, self.sender.rtt.smoothed, timestamps=self._timestamps)

    def _receive_synchronized(self, header: TcpHeader, payload: bytes, ce: bool, now: float) -> None:
        """RFC 9293 3.10.7.4."""
        receiver, flags = self.receiver, header.flags
        sequence = unwrap(header.sequence, receiver.next)
        if self.state is State.SYN_RECEIVED and flags & _SYN_ACK == _SYN_ACK and sequence == receiver.next - 1:
            flags, sequence = flags & ~_SYN, receiver.next  # MUST-10: simultaneous open; this SYN is known
        length = 0 if flags & _RST else len(payload) + bool(flags & _FIN) + bool(flags & _SYN)
        if not self._passes_paws(header, now) or not receiver.acceptable(sequence, length):
            self._on_unacceptable(header, sequence, length, now)
            return
        self._last_received = now
        if flags & _RST:
            self._on_reset(sequence, now)
            return
        if flags & _SYN:
            self._on_syn(now)
            return
        if not flags & _ACK:
            return  # fifth: drop
        if self._timestamps and header.options.timestamp_value is not None and sequence <= receiver.last_acknowledgment:
            self._timestamp_echo = header.options.timestamp_value  # RFC 7323 4.3
        if self._on_acknowledgment(header, sequence, len(payload), now):
            if payload and receiver.ecn:
                receiver.on_ecn(ce, bool(flags & _CWR))
            self._receive_text(sequence, payload, bool(flags & _FIN), now)

    def precedes(self, syn: TcpHeader) -> bool:
        """RFC 6191 2: whether a SYN is newer than all that came on this connection.

        By its timestamp where both have one, for a fast connection outruns the clock of sequence numbers; then, or
        where it is the same, by its number.
        """
        value = syn.options.timestamp_value
        by_number = (syn.sequence - self.receiver.next) & 0xFFFFFFFF < 1 << 31
        if not self._timestamps or value is None or value == self._timestamp_echo:
            return by_number
        return (value - self._timestamp_echo) & 0xFFFFFFFF < 1 << 31

    def _passes_paws(self, header: TcpHeader, now: float) -> bool:
        """RFC 7323 5.3 R1: an old duplicate shows by its timestamp; a reset is exempt."""
        value = header.options.timestamp_value
        if not self._timestamps or value is None or header.flags & _RST:
            return True
        return not (value - self._timestamp_echo) & 0x80000000 or now - self._last_received > PAWS_IDLE

    def _on_unacceptable(self, header: TcpHeader, sequence: int, length: int, now: float) -> None:
        """First check failed: acknowledge, unless it was a reset. Without text the answer is limited in rate, or
        two ends that disagree would answer each other for ever."""
        if header.flags & _RST:
            return
        if self.state is State.TIME_WAIT and header.flags & _FIN:
            self._close_at = now + 2 * MSL  # RFC 9293 3.10.7.4 eighth: the FIN came again
        if self.state is State.SYN_RECEIVED and header.flags & (_SYN | _ECE | _CWR) == _SYN:
            self._ecn = False  # RFC 3168 6.1.1: the SYN came again, without the bits
        if (
            length
            and sequence < self.receiver.next
            and not header.flags & _SYN
            and self.state is not State.SYN_RECEIVED
        ):
            self.receiver.duplicate = (sequence, min(sequence + length, self.receiver.next))
            self.receiver.ack_now = True
        else:
            self._challenge(now)

    def _challenge(self, now: float) -> None:
        """RFC 5961 7: an acknowledgment that shows where we are, limited in rate, here and for the whole tunnel."""
        if now - self._challenge_at >= CHALLENGE_INTERVAL and self._shared.challenges.take(now):
            self._challenge_at = now
            if self.state is State.SYN_RECEIVED:
                self._syn_due = True  # our SYN,ACK says the same, and may have been lost
            else:
                self.receiver.ack_now = True

    def _on_reset(self, sequence: int, now: float) -> None:
        """Second check, as hardened by RFC 5961 3.2: only the exact next sequence number resets."""
        receiver = self.receiver
        if sequence != receiver.next:
            if sequence < receiver.right_edge:  # at the edge is outside; elsewhere we are more generous (RFC 9293 A.2)
                self._challenge(now)
        elif self.state is State.SYN_RECEIVED and self.passive:
            self._enter_closed(None)  # back to LISTEN, which never noticed
        elif self.state is State.TIME_WAIT:
            return  # RFC 1337: a reset must not cut TIME-WAIT short
        else:
            what = "refused by" if self.state is State.SYN_RECEIVED else "reset by"
            kind = ConnectionRefused if self.state is State.SYN_RECEIVED else ConnectionReset
            self.fail(kind(f"{self.name}: {what} the far side"))

    def _on_syn(self, now: float) -> None:
        """Fourth check, RFC 5961 4.2: whatever the sequence number, a challenge."""
        if self.state is State.SYN_RECEIVED and self.passive:
            self._enter_closed(None)  # another SYN than ours: back to LISTEN, which never noticed
        else:
            self._challenge(now)

    def _on_acknowledgment(self, header: TcpHeader, sequence: int, length: int, now: float) -> bool:
        """Fifth check; returns whether to go on to the text."""
        sender = self.sender
        acknowledgment = unwrap(header.acknowledgment, sender.unacknowledged)
        if self.state is State.SYN_RECEIVED:
            if not sender.unacknowledged < acknowledgment <= sender.next:
                self._refused_at = header.acknowledgment
                return False
            self._syn_due = False
            sender.on_established(sequence, acknowledgment, header.window << sender.scale, now)
            self._on_established(now)
            self._enter(State.FIN_WAIT_1 if sender.fin_at is not None else State.ESTABLISHED)
            if self.passive:
                self._owner.on_established(self)
            return True
        if acknowledgment > sender.next or acknowledgment < sender.unacknowledged - max(sender.largest_window, 1):
            self._challenge(now)  # RFC 5961 5.2
            return False
        current = acknowledgment >= sender.unacknowledged
        window_changed = current and sender.update_window(sequence, acknowledgment, header.window)
        if sender.next == sender.unacknowledged or (sender.window == 0 and not self._orphan):
            sender.retries = 0  # MUST-36: a far side that answers may keep its window shut for ever
        if self._ecn and current and header.flags & _ECE:
            sender.on_ecn_echo(now)  # first: it must not make the window grow
        duplicate = (  # RFC 5681 2; also with nothing in flight, which a tail probe that came twice causes
            acknowledgment == sender.unacknowledged and not length and not window_changed and not header.flags & _FIN
        )
        if acknowledgment > sender.unacknowledged or duplicate or header.options.sack_blocks:
            blocks, reported = self._sort_blocks(header, acknowledgment)
            acknowledgment = max(acknowledgment, sender.unacknowledged)
            has_echo = self._timestamps and header.options.timestamp_value is not None
            echo = self._echoed(header.options.timestamp_echo, now) if has_echo else None
            self._on_news(acknowledgment, echo, now, blocks, reported, duplicate)
        return self._on_our_fin_acknowledged(now) if sender.fin_at is not None else True

    def _on_news(
        self,
        acknowledgment: int,
        echo: int | None,
        now: float,
        blocks: Sequence[tuple[int, int]] = (),
        reported: tuple[int, int] | None = None,
        duplicate: bool = False,
    ) -> None:
        """What the sender learns of its data; the arguments are those of `Sender.on_ack`."""
        sender = self.sender
        if acknowledgment > sender.unacknowledged:
            self._persist_retries = 0
            self._progress_at = now
        before = sender.mss
        sender.on_ack(acknowledgment, blocks, reported, duplicate, echo, now)
        if sender.mss != before:
            self._tell_path_mtu(True, now)
        if self._send_charged:
            self._charge_send_queue()

    def _sort_blocks(
        self, header: TcpHeader, acknowledgment: int
    ) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
        """The SACK blocks inside what is in flight, ascending, and the D-SACK (RFC 2883 4); the rest are lies."""
        sender, found = self.sender, header.options.sack_blocks
        if not (found and sender.sack):
            return [], None
        low, high = max(acknowledgment, sender.unacknowledged), sender.next
        blocks = [(unwrap(left, low), unwrap(right, low)) for left, right in found]
        first = blocks[0]
        below = first[0] < first[1] <= acknowledgment
        inside = len(blocks) > 1 and blocks[1][0] <= first[0] < first[1] <= blocks[1][1]
        reported = first if (below or inside) and first[1] <= high else None
        return sorted(block for block in blocks if low < block[0] < block[1] <= high), reported

    def _on_our_fin_acknowledged(self, now: float) -> bool:
        """The states in which our FIN waits for its acknowledgment."""
        sender = self.sender
        assert sender.fin_at is not None
        if sender.unacknowledged <= sender.fin_at:
            return True
        if self.state is State.FIN_WAIT_1:
            self._enter(State.FIN_WAIT_2)
            if self._orphan:
                self._close_at = now + ORPHAN_TIMEOUT
        elif self.state is State.CLOSING:
            self._enter_time_wait(now)
        elif self.state is State.LAST_ACK:
            self._enter_closed(None)
            return False
        return True

    def _receive_text(self, sequence: int, payload: bytes, fin: bool, now: float) -> None:
        """Seventh and eighth: the segment text, then FIN. Urgent data is delivered in line (RFC 6093)."""
        receiver = self.receiver
        if self.state not in _RECEIVING:
            return
        if payload and self._orphan:
            self.abort(now)  # RFC 9293 3.10.4: nobody will read it; say so
            return
        if fin:
            end = sequence + len(payload)
            if receiver.queue.end <= end <= receiver.right_edge and receiver.fin_at in (None, end):
                receiver.fin_at = end
        if receiver.fin_at is not None:
            payload = payload[: max(receiver.fin_at - sequence, 0)]  # nothing comes after the end
        if payload:
            receiver.on_data(sequence, payload, now)
        if receiver.fin_at is not None and receiver.next >= receiver.fin_at and not receiver.fin_received:
            self._on_fin(now)
        elif fin:
            receiver.ack_now = True

    def _on_fin(self, now: float) -> None:
        """Eighth: the far side's half is complete."""
        self.receiver.on_fin()
        if self.state is State.ESTABLISHED:
            self._enter(State.CLOSE_WAIT)
        elif self.state is State.FIN_WAIT_1:
            self._enter(State.CLOSING)
        elif self.state is State.FIN_WAIT_2:
            self._enter_time_wait(now)

    # -- ICMP errors (RFC 9293 3.9.2.2, RFC 5927)

    def on_unreachable(self, text: str, hard: bool, sequence: int) -> None:
        """An ICMP error quoted `sequence`: believed only if that is in flight (RFC 5927 4.1)."""
        if not self._in_flight(sequence):
            return
        self.hard_error_hint = text
        if hard and self.state in _OPENING:  # MUST-56: soft errors, and errors of open connections, only inform
            self.fail(DestinationUnreachable(f"{self.name}: {text} (ICMP from inside the tunnel)"))

    def on_packet_too_big(self, mss: int, sequence: int, now: float) -> bool:
        """The path takes TCP payloads of at most `mss` bytes, options included (RFC 1191, RFC 8201)."""
        if not self._in_flight(sequence):
            return False
        self.sender.set_mss(max(mss, MINIMUM_MSS) - (_TIMESTAMP_BYTES if self._timestamps else 0), now)
        self._owner.touch(self)
        return True

    def _tell_path_mtu(self, wider: bool, now: float) -> None:
        """RFC 8899 4.6: what the path turned out to take is of use to other connections."""
        remote = self.remote_address[0]
        options = _TIMESTAMP_BYTES if self._timestamps else 0
        mtu = 65535 if wider else self.sender.mss + options + fixed_headers(remote)
        self._owner.on_path_mtu(remote, mtu, now)

    def _look_for_black_hole(self, now: float) -> None:
        """Given up while full segments of the far side are missing, and none ever came: the next connection asks for
        smaller ones. So a path that swallows them costs one request, not all ("HTTP works, HTTPS hangs")."""
        if self.receiver.misses_full_segments:
            self._owner.on_path_mtu(self.remote_address[0], MINIMUM_MTU, now)

    def _in_flight(self, sequence: int) -> bool:
        unwrapped = unwrap(sequence, self.sender.unacknowledged)
        return self.sender.unacknowledged <= unwrapped < self.sender.next

    # -- timers

    def next_timeout(self) -> float | None:
        """The earliest of the connection's timers, or None."""
        earliest = self.sender.next_timeout()
        others = self.receiver.ack_deadline, self._persist_at, self._close_at, self._keepalive_at, self._user_timeout_at
        for timer in others:
            if timer is not None and (earliest is None or timer < earliest):
                earliest = timer
        return earliest

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due; spurious calls are no-ops."""
        sender, receiver = self.sender, self.receiver
        if self._close_at is not None and now >= self._close_at:
            self._enter_closed(None)
            return
        if (due := self._user_timeout_at) is not None and now >= due:
            self._reset_due = self.state not in _OPENING  # a far side that keeps its window shut is still there
            self._give_up(f"nothing acknowledged for {self._user_timeout:g} s, the user timeout")
            return
        if receiver.ack_deadline is not None and now >= receiver.ack_deadline:
            receiver.on_ack_timeout()
        sender.handle_timeout(now)  # first: a probe of the tail takes the retransmission timer's place (RFC 8985 7.2)
        if sender.retransmit_at is not None and now >= sender.retransmit_at:
            self._on_retransmission_timeout(now)
        if self._persist_at is not None and now >= self._persist_at:
            self._probe_zero_window(now)
        if self._keepalive_at is not None and now >= self._keepalive_at:
            self._probe_idle(now)
        self._owner.touch(self)

    @property
    def _user_timeout_at(self) -> float | None:
        if self._user_timeout is None or self.sender.unacknowledged == self.sender.end or self.state is State.CLOSED:
            return None
        return self._progress_at + self._user_timeout

    def _on_retransmission_timeout(self, now: float) -> None:
        sender = self.sender
        opening = self.state in _OPENING
        if sender.retries >= (SYN_RETRIES if opening else self._data_retries):  # R2: RFC 9293 3.8.3
            what = "no answer to SYN" if opening else "no acknowledgment"
            self._give_up(f"{what} after {sender.retries} retransmissions")
            return
        before = sender.mss
        sender.on_timeout(now)
        if sender.mss != before:
            self._tell_path_mtu(False, now)
        self._syn_due = opening

    def _probe_zero_window(self, now: float) -> None:
        """RFC 9293 3.8.6.1: an old sequence number draws an acknowledgment with the window of the day."""
        self._persist_at = None
        sender = self.sender
        if not sender.window_closed:
            return
        if sender.retries >= self._data_retries or (self._orphan and self._persist_retries >= ORPHAN_RETRIES):
            self._reset_due = True
            self._give_up(f"window closed, and {self._persist_retries} probes led to nothing")
            return
        sender.retries += 1  # unanswered ones: the next acknowledgment sets it back
        self._persist_retries += 1
        if sender.window > 0:
            sender.override_due = True  # RFC 9293 3.8.6.2.1 (4): the window stays small, so fill it
        else:
            sender.probe_due = True

    @property
    def _data_retries(self) -> float:
        """R2."""
        if self._orphan:
            return ORPHAN_RETRIES
        return DATA_RETRIES if self._user_timeout is None else float("inf")

    def _give_up(self, what: str) -> None:
        hint = f"; {self.hard_error_hint}" if self.hard_error_hint else ""
        self.fail(ConnectionTimedOut(f"{self.name}: {what}{hint}"))

    def _probe_idle(self, now: float) -> None:
        """RFC 9293 3.8.4."""
        assert self._keepalive is not None
        idle, interval, count = self._keepalive
        if now < self._last_received + idle:
            self._keepalive_probes = 0
            self._keepalive_at = self._last_received + idle
        elif self.state in _OPENING or self.sender.next > self.sender.unacknowledged:
            self._keepalive_at = now + idle  # retransmissions already watch the far side
        elif self._probes_failed(count, now):
            self._reset_due = True
            probes = self._keepalive_probes
            self.fail(ConnectionTimedOut(f"{self.name}: {probes} keep-alive probes went unanswered"))
        else:
            self._keepalive_probes += 1
            self._keepalive_at = now + interval
            self.sender.probe_due = True

    def _probes_failed(self, count: int, now: float) -> bool:
        """By their number; or, as in Linux, by the user timeout if there is one."""
        if self._user_timeout is None:
            return self._keepalive_probes >= count
        return self._keepalive_probes > 0 and now >= self._last_received + self._user_timeout

    # -- output

    def packets_to_send(self, now: float) -> list[bytes]:
        """Everything due, as IP packets; an acknowledgment of its own only when no data carries it."""
        if self._reset_due:
            return self._reset_packets()
        if self.state in _OPENING:
            return self._opening_packets(now)
        if self.state is State.CLOSED:
            return []
        receiver, sender = self.receiver, self.sender
        packets: list[bytes] = []
        if self.state in _SENDING and (sender.next < sender.end or sender.board.lost or sender.tail.due):
            runs = sender.runs_to_send(now)
            if runs:
                window, options = receiver.window_field(), self._options(now)
                if sender.more_due:
                    self._owner.touch(self)
                for run in runs:
                    packets += self._data_packets(run, window, options)
        if not packets and sender.probe_due:
            packets.append(self._empty(sender.unacknowledged - 1, now))
        elif receiver.ack_now and (not packets or self._sack_due):
            packets.append(self._empty(sender.next, now))  # full segments leave no room for SACK blocks: RFC 6691 4
        if packets:
            receiver.on_ack_sent()
            sender.probe_due = False
        self._arm_persist(now)
        return packets

    def _data_packets(self, run: Run, window: int, options: bytes) -> list[bytes]:
        """RFC 3168 6.1.2, 6.1.5: new data is ECN-capable, and its first segment after a reduction carries CWR."""
        write, acknowledgment, flags = self._writer.run, self.receiver.next, self._ack_flags
        sequence, payloads, last = run.sequence, run.payloads, _PSH | (_FIN if run.fin else 0)
        if not self._ecn or run.again or not payloads[0]:
            return write(sequence, payloads, acknowledgment, flags, last, window, options)
        if not self.sender.cwr_due:
            return write(sequence, payloads, acknowledgment, flags, last, window, options, ECT_0)
        self.sender.cwr_due = False
        first, rest = payloads[:1], payloads[1:]
        packets = write(sequence, first, acknowledgment, flags | _CWR, 0 if rest else last, window, options, ECT_0)
        if rest:
            packets += write(sequence + len(first[0]), rest, acknowledgment, flags, last, window, options, ECT_0)
        return packets

    @property
    def _ack_flags(self) -> int:
        return _ACK | _ECE if self.receiver.ecn_echo else _ACK  # RFC 3168 6.1.3: on every one

    def _arm_persist(self, now: float) -> None:
        sender = self.sender
        if self.state not in _SENDING or not sender.window_closed:
            self._persist_at = None
        elif self._persist_at is None:
            self._persist_at = now + min(sender.rtt.timeout * 2.0 ** min(self._persist_retries, 10), 60.0)

    def _empty(self, sequence: int, now: float) -> bytes:
        receiver = self.receiver
        options = self._options(now)
        if self._sack_due:
            options += self._sack_option(3 if options else 4)  # RFC 2018 3: what fits 40 bytes of options
        window = receiver.window_field()
        return self._writer.run(sequence, [b""], receiver.next, self._ack_flags, 0, window, options)[0]

    def _syn_packet(self, now: float) -> bytes:
        sender, receiver = self.sender, self.receiver
        answering = self.state is State.SYN_RECEIVED
        options = struct.pack("!BBH", 2, 4, receiver.mss)
        if not answering or sender.sack:
            options += b"\x01\x01\x04\x02"  # NOP, NOP, SACK permitted: RFC 2018 2
        if not answering or self._timestamps:
            options += self._timestamp_option(now)
        if not answering or receiver.scale:
            options += struct.pack("!BBBB", 1, 3, 3, WINDOW_SCALE)
        if answering:
            flags = _SYN_ACK | _ECE if self._ecn else _SYN_ACK
        else:
            flags = _SYN if sender.retries else _SYN | _ECE | _CWR  # RFC 3168 6.1.1.1: the bits may be why it was lost
        acknowledgment = receiver.next if answering else 0
        window = receiver.syn_window_field()
        receiver.on_ack_sent()
        return self._writer.run(sender.unacknowledged, [b""], acknowledgment, flags, 0, window, options)[0]

    def _opening_packets(self, now: float) -> list[bytes]:
        packets: list[bytes] = []
        if self._refused_at is not None:  # RFC 9293 3.10.7.3, 3.10.7.4: <SEQ=SEG.ACK><CTL=RST>
            packets += self._writer.run(self._refused_at, [b""], 0, _RST, 0, 0, b"")
            self._refused_at = None
        if self._syn_due:
            self._syn_due = False
            packets.append(self._syn_packet(now))
        return packets

    def _reset_packets(self) -> list[bytes]:
        """RFC 9293 3.10.5: <SEQ=SND.NXT><CTL=RST>; ACK too, as every stack does."""
        self._reset_due = False
        writer, sender = self._writer, self.sender
        return writer.run(sender.next, [b""], self.receiver.next, _RST | _ACK, 0, 0, b"")

    def _timestamp_option(self, now: float) -> bytes:
        return _TIMESTAMP.pack(TIMESTAMP_LAYOUT, self._timestamp_value(now), self._timestamp_echo)

    def _options(self, now: float) -> bytes:
        return self._timestamp_option(now) if self._timestamps else b""

    def _sack_option(self, limit: int) -> bytes:
        blocks = self.receiver.sack_blocks(limit)
        edges = b"".join(_SACK_EDGES.pack(left & 0xFFFFFFFF, right & 0xFFFFFFFF) for left, right in blocks)
        return struct.pack("!BBBB", 1, 1, 5, 2 + len(edges)) + edges

    @property
    def _sack_due(self) -> bool:
        """RFC 2018 3, RFC 2883 4: there is data behind a hole, or data that came twice."""
        return self.sender.sack and (self.receiver.duplicate is not None or self.receiver.queue.bytes_held > 0)

    # -- state changes

    def _enter(self, state: State) -> None:
        self.state = state
        self._owner.touch(self)
        self._owner.wake(self)

    def _enter_time_wait(self, now: float) -> None:
        self._close_at = now + 2 * MSL
        self._stop_timers()
        self._enter(State.TIME_WAIT)
        self._shared.enter_time_wait(self)

    def end_time_wait(self) -> None:
        """Its time is over, or too many wait."""
        self._enter_closed(None)

    def _stop_timers(self) -> None:
        self.sender.stop_timers()
        self._persist_at = self._keepalive_at = None
        self.receiver.ack_deadline = None

    def fail(self, error: WireGuardError) -> None:
        """The connection is over; every waiter gets `error`, after the data that came before it."""
        self.error = self.error or error
        self._enter_closed(error)

    def _enter_closed(self, error: WireGuardError | None) -> None:
        self._close_at = None
        self._stop_timers()
        self._syn_due = False
        if error is not None or self._orphan:
            self.sender.discard()
        self._release_shared()
        self._enter(State.CLOSED)
        self._owner.on_closed(self)

    def _release_shared(self) -> None:
        """What the others may have now."""
        self.receiver.leave()
        self._shared.send_free += self._send_charged
        self._send_charged = 0
        self._shared.leave_time_wait(self)
