"""A host by itself, and far sides that speak raw segments to it."""

from __future__ import annotations

from httpx_wireguard._netstack.fragments import MAX_BYTES
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from tests.measures import bytecodes, deep_size
from tests.simnet import SeededEntropy

SYN, ACK, PSH = Flags.SYN, Flags.ACK, Flags.PSH
US, FRIEND, FOE = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), bytes([10, 6, 6, 6])
US6, FOE6 = b"\xfd" + bytes(14) + b"\x02", b"\xfd\x06" + bytes(13) + b"\x06"
MSS = 1380
ROUND_TRIP = 0.05  # seconds, of a handshake

# docs/limits.md, "What it comes to"
STACK_SIZE = 128 << 10  # bytes of a host without connections
CONNECTION_SIZE = 8 << 10  # bytes of a connection without data
PER_BYTE_GRANTED = 2  # bytes of memory for each byte of receive memory, whatever the size of the segments
WORK = 120_000  # bytecodes for one packet


class Victim:
    """The host, at a moment of its time."""

    def __init__(self) -> None:
        self.stack = Stack([US, US6], 1420, SeededEntropy(1), 1 << 17)
        self.listener = self.stack.listen_tcp(80)
        self.now = 1000.0
        self.received = self.sent = 0  # packets
        self.inbox: list[tuple[bytes, int, TcpHeader, bytes]] = []  # segments sent: to address and port
        self.friend = Far(self, FRIEND, 5000)
        self.connection = self.friend.connect()

    def give(self, *packets: bytes) -> None:
        """Packets arrive, and the host answers."""
        self.received += len(packets)
        self.stack.receive_packets(packets, self.now)
        self.pump()

    def pump(self) -> None:
        """As a driver does after every call."""
        self.stack.take_woken()
        while runs := self.stack.packets_to_send(self.now):
            for address, packets in runs:
                self.sent += len(packets)
                for packet in packets:
                    if packet[0] == 0x45 and packet[9] == PROTOCOL_TCP:
                        header = TcpHeader.parse(packet, 20)
                        text = packet[20 + header.header_length :]
                        self.inbox.append((address, header.destination_port, header, text))

    def pass_time(self, seconds: float) -> None:
        """With every timer that is due."""
        end = self.now + seconds
        while (due := self.stack.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.stack.handle_timeout(self.now)
            self.pump()
        self.now = end

    def work(self, packet: bytes) -> int:
        """Bytecodes for one more packet."""
        return bytecodes(lambda: self.give(packet))

    @property
    def granted(self) -> int:
        memory = self.stack._shared.receive
        return memory.limit - memory.free

    def check_memory(self) -> None:
        self.inbox.clear()
        connections = [*self.stack._connections.values()]
        bound = STACK_SIZE + CONNECTION_SIZE * len(connections) + PER_BYTE_GRANTED * self.granted
        bound += 2 * sum(len(connection.sender.queue) for connection in connections)
        bound += 2 * MAX_BYTES if len(self.stack._fragments) else 0
        assert deep_size(self.stack) <= bound

    def check_friend(self) -> None:
        """The innocent connection works both ways."""
        self.friend.data(b"ping")
        assert self.connection.receive(99, self.now) == b"ping"
        self.connection.send(b"pong", self.now)
        self.pump()
        assert b"pong" in [text for _, text in self.friend.take()]
        self.friend.give(ACK)


class Far:
    """A far side, by hand; well-behaved in what it is not told otherwise."""

    def __init__(self, victim: Victim, address: bytes, port: int, options: TcpOptions | None = None) -> None:
        self.victim, self.address, self.port = victim, address, port
        self.options = options or TcpOptions(mss=MSS, window_scale=7, sack_permitted=True, timestamp_value=1)
        self.next = 7000  # our next sequence number
        self.acknowledged = 0  # what of the victim's data we have
        self.window = 0xFFFF
        self.clock = 1
        self.connection: TcpConnection | None = None

    def connect(self) -> TcpConnection:
        """Open a connection to the listener, which accepts it."""
        self.handshake()
        connection = self.victim.listener.accept(self.victim.now)
        assert connection is not None
        self.connection = connection
        return connection

    def handshake(self) -> None:
        self.send(SYN, self.next, 0, options=self.options)
        ((answer, _),) = self.take()
        assert answer.flags == SYN | ACK
        self.next += 1
        self.acknowledged = (answer.sequence + 1) % 2**32
        self.clock += 1
        self.victim.now += ROUND_TRIP
        self.give(ACK)

    def send(
        self,
        flags: Flags,
        sequence: int,
        acknowledgment: int,
        payload: bytes = b"",
        *,
        blocks: tuple[tuple[int, int], ...] = (),
        echo: int = 0,
        options: TcpOptions | None = None,
    ) -> None:
        """Any segment."""
        self.victim.give(self.segment(flags, sequence, acknowledgment, payload, blocks, echo, options))

    def segment(
        self,
        flags: Flags,
        sequence: int,
        acknowledgment: int,
        payload: bytes = b"",
        blocks: tuple[tuple[int, int], ...] = (),
        echo: int = 0,
        options: TcpOptions | None = None,
    ) -> bytes:
        if options is None:
            options = TcpOptions(sack_blocks=tuple((left % 2**32, right % 2**32) for left, right in blocks))
            if self.options.timestamp_value is not None:
                options.timestamp_value, options.timestamp_echo = self.clock % 2**32, echo % 2**32
        header = TcpHeader(self.port, 80, sequence % 2**32, acknowledgment % 2**32, int(flags), self.window)
        header.options = options
        body = header.serialize_segment(self.address, US, payload)
        return Ipv4Header(self.address, US, PROTOCOL_TCP, 20 + len(body)).serialize() + body

    def give(self, flags: Flags, payload: bytes = b"", *, offset: int = 0) -> None:
        """A segment `offset` bytes beyond the next one that is due."""
        self.send(flags, self.next + offset, self.acknowledged, payload)

    def data(self, payload: bytes) -> None:
        """The next bytes of the stream."""
        self.give(ACK | PSH, payload)
        self.next += len(payload)

    def take(self) -> list[tuple[TcpHeader, bytes]]:
        """What the victim sent us since the last call, taken as received."""
        mine = [each for each in self.victim.inbox if each[:2] == (self.address, self.port)]
        self.victim.inbox = [each for each in self.victim.inbox if each[:2] != (self.address, self.port)]
        for _, _, header, text in mine:
            end = (header.sequence + len(text)) % 2**32
            if text and (end - self.acknowledged) % 2**32 < 2**31:
                self.acknowledged = end
        return [(header, text) for _, _, header, text in mine]
