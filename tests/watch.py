"""What must hold of a stack and its connections whatever the far side sends, seen from outside as far as possible."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from math import isfinite

from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.fragments import MAX_BYTES, MAX_DATAGRAMS
from httpx_wireguard._netstack.listener import HALF_OPEN_LIMIT
from httpx_wireguard._netstack.ping import QUEUE_LIMIT
from httpx_wireguard._netstack.receiver import MAXIMUM_BUFFER
from httpx_wireguard._netstack.sender import MAXIMUM_SEND_BUFFER
from httpx_wireguard._netstack.sequence import unwrap
from httpx_wireguard._netstack.stack import MAX_PATHS, Packets, Random, Stack
from httpx_wireguard._netstack.tcp import State, TcpConnection
from httpx_wireguard._netstack.udp import RECEIVE_LIMIT
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, segment_is_intact

MAX_CALLS = 64  # of packets_to_send until nothing more is due: 4 MiB of send buffer in bursts of 256 KiB, four times
OPENING = (State.SYN_SENT, State.SYN_RECEIVED)

_PERIOD = 1 << 18
_OURS, _THEIRS = (random.Random(seed).randbytes(_PERIOD) * 2 for seed in (1, 2))


def our_bytes(start: int, length: int) -> bytes:
    """Of the stream that the application of the side under test writes on every connection."""
    return _OURS[start % _PERIOD : start % _PERIOD + length]


def their_bytes(start: int, length: int) -> bytes:
    """Of the stream that an honest far side writes on every connection."""
    return _THEIRS[start % _PERIOD : start % _PERIOD + length]


class Watch:
    """One connection, its application, and what both sides have told each other.

    At a `far` end the application writes `their_bytes` and reads `our_bytes`.

    Attributes:
        first: sequence number of the first byte of the far side's stream; None before its SYN.
        honest: it only ever sent bytes of `their_bytes`.
        told: the highest right edge of the window that we announced.
        allowed: the highest that it announced.
    """

    def __init__(self, connection: TcpConnection, honest: bool, far: bool = False) -> None:
        opening = connection.state in OPENING
        self.connection = connection
        self.honest = honest
        self._writes, self._reads = (their_bytes, our_bytes) if far else (our_bytes, their_bytes)
        self.our_first = connection.sender.unacknowledged + opening
        self.written = self.read = 0
        self.shut = self.closed = False
        self.first: int | None = None
        self.told = self.allowed = 0
        self.sent_to = 0  # where the last segment made for it ended
        self.timestamp, self.echo = 1000, 0  # TSval that it sent, TSval that it saw
        self.window = 65535  # that it sent
        self.look()

    def look(self) -> None:
        """After every packet and call: note what became known."""
        sender, receiver = self.connection.sender, self.connection.receiver
        if self.first is None and self.connection.state is not State.SYN_SENT and receiver.next:
            self.first = self.sent_to = receiver.next - receiver.fin_received - receiver.buffered - self.read
            self.told = receiver.right_edge
        self.allowed = max(self.allowed, sender.unacknowledged + sender.window)

    # -- the application

    def write(self, size: int, now: float) -> None:
        try:
            self.written += self.connection.send(self._writes(self.written, min(size, _PERIOD)), now)
        except WireGuardError:
            assert self.connection.error is not None or self.shut or self.connection.state is State.CLOSED

    def read_some(self, size: int, now: float) -> None:
        try:
            data = self.connection.receive(size, now)
        except WireGuardError:
            assert self.connection.error is not None
            return
        assert len(data) <= size
        if self.honest:
            for at in range(0, len(data), _PERIOD):
                part = data[at : at + _PERIOD]
                assert part == self._reads(self.read + at, len(part)), "the reader got other bytes than were sent"
        self.read += len(data)

    def shutdown(self, now: float) -> None:
        self.shut = True
        self.connection.shutdown_write(now)

    def close(self, now: float) -> None:
        self.shut = self.closed = True
        self.connection.close(now)

    def abort(self, now: float) -> None:
        self.shut = self.closed = True
        self.connection.abort(now)

    # -- what it sends

    def check_segment(self, header: TcpHeader, payload: bytes) -> None:
        connection = self.connection
        if header.flags & Flags.RST or self.first is None:
            return
        if header.options.timestamp_value is not None:
            self.echo = header.options.timestamp_value
        receiver, sender = connection.receiver, connection.sender
        assert header.flags & Flags.ACK
        assert header.acknowledgment == receiver.next % 2**32
        scale = 0 if header.flags & Flags.SYN else receiver.scale
        edge = receiver.next + (header.window << scale)
        assert edge > self.told - (1 << scale), "the window's right edge moved back (RFC 9293 3.8.6)"
        self.told = max(self.told, edge)
        sequence = unwrap(header.sequence, sender.unacknowledged)
        end = sequence + len(payload)
        if payload:
            offset = sequence - self.our_first
            assert 0 <= offset <= self.written - len(payload)
            assert payload == self._writes(offset, len(payload)), "another byte than was written"
            assert len(payload) <= receiver.mss  # what the MTU allows: a probe of the path may exceed SMSS
            assert end <= self.allowed, "data beyond the far side's window"
            assert sequence >= sender.unacknowledged, "data that was acknowledged already"
        if header.flags & Flags.FIN:
            assert self.shut
            assert end == self.our_first + self.written

    # -- what holds between calls

    def check(self, stack: Stack) -> None:
        connection = self.connection
        assert isinstance(connection.readable, bool)
        assert isinstance(connection.writable, bool)
        due = connection.next_timeout()
        if connection.state is State.CLOSED:
            assert due is None
            assert connection not in stack._connections.values()
            return
        assert connection.error is None
        assert due is None or isfinite(due)
        self._check_sender()
        if self.first is not None:
            self._check_receiver(self.first)

    def _check_sender(self) -> None:
        connection, sender = self.connection, self.connection.sender
        assert self.our_first - 1 <= sender.unacknowledged <= sender.next <= sender.end
        assert sender.queue.end == self.our_first + self.written
        assert 0 <= len(sender.queue) <= MAXIMUM_SEND_BUFFER
        assert sender.mss > 0
        assert sender.retries >= 0
        if sender.unacknowledged < sender.end:
            assert connection.next_timeout() is not None, "something to send, and nothing that will send it"
        if connection.state is State.TIME_WAIT or (connection.state is State.FIN_WAIT_2 and self.closed):
            assert connection.next_timeout() is not None, "a connection that nobody holds and that never ends"

    def _check_receiver(self, first: int) -> None:
        connection, receiver = self.connection, self.connection.receiver
        in_order = receiver.next - receiver.fin_received
        assert in_order == first + self.read + receiver.buffered
        assert receiver.right_edge <= self.told
        assert in_order <= self.told, "data beyond our own window was taken"
        held = receiver.queue.ranges(1 << 16)
        assert all(receiver.next < start < end <= self.told for start, end in held)
        assert receiver.queue.bytes_held == sum(end - start for start, end in held)
        assert receiver.queue.bytes_held + receiver.buffered <= MAXIMUM_BUFFER
        assert self.told - first - self.read < MAXIMUM_BUFFER + (1 << receiver.scale)
        assert receiver.fin_at is None or in_order <= receiver.fin_at, "data behind the end of the stream"
        assert not receiver.fin_received or in_order == receiver.fin_at
        if connection.state not in OPENING:
            assert not receiver.ack_now, "an acknowledgment that is due, and not sent"
            acknowledged = receiver.last_acknowledgment == receiver.next or connection.state is State.TIME_WAIT
            assert acknowledged or receiver.ack_deadline is not None, "data that will never be acknowledged"


class Watches:
    """All connections of one stack, found as they come, and the stack itself.

    Attributes:
        sent: the last packets that it sent.
    """

    def __init__(self, stack: Stack, far: bool = False) -> None:
        self.stack = stack
        self._far = far
        self._honest = True
        self.all: list[Watch] = []
        self.sent: deque[bytes] = deque(maxlen=8)
        self._known: dict[TcpConnection, Watch] = {}
        self._by_ends: dict[tuple[bytes, bytes, int, int], Watch] = {}

    def distrust(self) -> None:
        """From now on anybody may be sent bytes of no stream."""
        self._honest = False
        for watch in self.all:
            watch.honest = False

    def look(self) -> None:
        """To be called between input and output."""
        for connection in self.stack._connections.values():
            if connection not in self._known:
                self.add(connection)
        for watch in self.all:
            watch.look()

    def add(self, connection: TcpConnection) -> Watch:
        """A second connection between the same ends may hear segments that were made for the first."""
        watch = self._known.get(connection)
        if watch is None:
            ends = _swapped(connection)
            watch = Watch(connection, self._honest and ends not in self._by_ends, self._far)
            self._known[connection] = self._by_ends[ends] = watch
            self.all.append(watch)
        return watch

    def check_packet(self, packet: bytes) -> None:
        """A packet that we send is well formed, from us, and true to what its connection is."""
        assert len(packet) <= self.stack.mtu
        if packet[0] >> 4 == 4:
            ip = Ipv4Header.parse(packet)
            source, destination, protocol, start = ip.source, ip.destination, ip.protocol, ip.header_length
            assert ip.total_length == len(packet)
        else:
            ip6 = Ipv6Header.parse(packet)
            source, destination, protocol, start = ip6.source, ip6.destination, ip6.next_header, 40
            assert ip6.payload_length == len(packet) - 40
        assert source in self.stack.addresses
        if protocol != 6:
            return
        assert segment_is_intact(source, destination, packet[start:])
        header = TcpHeader.parse(packet, start)
        watch = self._by_ends.get((destination, source, header.destination_port, header.source_port))
        if watch is not None:
            watch.check_segment(header, packet[start + header.header_length :])

    def check(self) -> None:
        stack = self.stack
        for watch in self.all:
            watch.check(stack)
        stacks_due = stack.next_timeout()
        for connection in stack._connections.values():
            due = connection.next_timeout()
            assert due is None or (stacks_due is not None and stacks_due <= due), "a timer that the stack forgot"
        for listener in stack._listeners.values():
            waiting = sum(each is listener for each in stack._half_open.values())
            assert listener.half_open == waiting <= HALF_OPEN_LIMIT
            assert len(listener._queue) <= listener.backlog + HALF_OPEN_LIMIT
        for socket in stack._udp.values():
            assert 0 <= socket._bytes <= RECEIVE_LIMIT
        for ping in stack._pings.values():
            assert len(ping._queue) <= QUEUE_LIMIT
        assert len(stack._path_mtu) <= MAX_PATHS
        assert all(mtu >= (552 if len(host) == 4 else 1280) for host, (mtu, _) in stack._path_mtu.items())
        assert 0 <= stack._fragments.bytes_held <= MAX_BYTES
        assert len(stack._fragments) <= MAX_DATAGRAMS
        assert all(count >= 0 for count in stack.drops.values())


class WatchedStack(Stack):
    """A stack whose every packet is looked at as it leaves."""

    def __init__(
        self, addresses: Sequence[bytes], mtu: int, entropy: Random, socket_capacity: int, far: bool = False
    ) -> None:
        super().__init__(addresses, mtu, entropy, socket_capacity)
        self.watches = Watches(self, far)

    def packets_to_send(self, now: float) -> list[Packets]:
        self.watches.look()
        runs = super().packets_to_send(now)
        for destination, packets in runs:
            for packet in packets:
                assert destination in packet[:40]
                self.watches.check_packet(packet)
            self.watches.sent.extend(packets[-2:])
        return runs


def _swapped(connection: TcpConnection) -> tuple[bytes, bytes, int, int]:
    """Far address, our address, far port, our port."""
    (ours, our_port), (theirs, their_port) = connection.local_address, connection.remote_address
    return theirs, ours, their_port, our_port
