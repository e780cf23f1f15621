"""The packets of a far side that knows the state of our connections, as a script tells it to make them."""

from __future__ import annotations

from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage, echo_request, packet_too_big, port_unreachable
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.udp import serialize_datagram
from tests.fuzz.harness import Script
from tests.fuzz.packets import FAR4, FAR6, OURS4, OURS6, ip_packet
from tests.watch import Watch, Watches, their_bytes

ACK, PSH, FIN, SYN, RST = (int(flag) for flag in (Flags.ACK, Flags.PSH, Flags.FIN, Flags.SYN, Flags.RST))
FLAGS = (ACK, ACK, ACK, ACK, ACK | PSH, ACK | PSH, ACK | FIN, SYN | ACK, SYN, RST, RST | ACK, 0, FIN)
SIZES = (0, 0, 0, 1, 1368, 1368, 1000, 536, 9000, 255)
WINDOWS = (65535, 0, 1, 10, 1000, 8000)
COUNTS = (1, 1, 1, 1, 1, 2, 3, 8)
PORTS = (80, 81)  # with and without a listener


class FarSide:
    """Makes packets towards the connections that are watched."""

    def __init__(self, watches: Watches) -> None:
        self.watches = watches
        self.sent = watches.sent

    def packets(self, script: Script) -> list[bytes]:
        """A few, as one read of the socket may bring them."""
        make = script.choose(
            (
                self.segments,
                self.segments,
                self.segments,
                self.segments,
                self.segments,
                self.segments,
                self.syn,
                self.datagram,
                self.icmp_error,
                self.echo,
                self.raw,
                self.reflected,
            )
        )
        made = make(script)
        match script.byte() % 16:
            case 14:
                self.watches.distrust()
                made = [damaged(script, packet) for packet in made]
            case 15:
                made = [piece for packet in made for piece in fragments(script, packet)]
        return made

    # -- TCP

    def segments(self, script: Script) -> list[bytes]:
        """Of a connection, relative to where it is."""
        if not self.watches.all:
            return []
        watch = script.choose(self.watches.all[::-1])
        flags = script.choose(FLAGS) if script.byte() % 16 else script.byte()
        size, count = script.choose(SIZES), script.choose(COUNTS)
        sequence = self._sequence(script, watch)
        acknowledgment = self._acknowledgment(script, watch)
        watch.window = script.choose((watch.window, watch.window, watch.window, *WINDOWS, script.number(2)))
        options = self._options(script, watch)
        lie = script.byte() % 16 == 15
        if lie or (watch.first is None and size):
            watch.honest = False
        made = []
        for _ in range(count):
            payload = b"\0" * size if lie else their_bytes(sequence - (watch.first or 0), size)
            header = TcpHeader(0, 0, sequence % 2**32, acknowledgment % 2**32, flags, watch.window)
            made.append(_tcp(watch, header, options, payload))
            sequence += size
        watch.sent_to = sequence
        return made

    def _sequence(self, script: Script, watch: Watch) -> int:
        receiver = watch.connection.receiver
        held = receiver.queue.ranges(1) or [(receiver.next, receiver.next)]
        hole = receiver.next + 1368
        places = (receiver.next, receiver.next, watch.sent_to, watch.sent_to, hole, receiver.right_edge, *held[0])
        return _near(script, script.choose(places))

    def _acknowledgment(self, script: Script, watch: Watch) -> int:
        sender = watch.connection.sender
        flight = sender.next - sender.unacknowledged
        places = (sender.next, sender.unacknowledged, sender.unacknowledged + flight // 2)
        return _near(script, script.choose((sender.next, sender.unacknowledged, *places)))

    def _options(self, script: Script, watch: Watch) -> bytes:
        """A multiple of four bytes."""
        kind = script.byte() % 16
        if kind == 15:
            return script.take(script.byte() % 41).ljust(40, b"\1")
        options = TcpOptions()
        if kind < 13:
            watch.timestamp += script.choose((0, 1, 1, 50, -1, -2000, 2**31))
            options.timestamp_value = watch.timestamp % 2**32
            options.timestamp_echo = (watch.echo + script.choose((0, 0, -20, 1, -3000))) % 2**32
        if kind >= 9:
            options.sack_blocks = tuple(self._block(script, watch) for _ in range(1 + kind % 4))
        if kind == 8:
            options.mss, options.window_scale, options.sack_permitted = script.number(2), script.byte() % 15, True
        return options.serialize()

    def _block(self, script: Script, watch: Watch) -> tuple[int, int]:
        """Mostly whole segments of what is in flight."""
        sender = watch.connection.sender
        start = _near(script, sender.unacknowledged + sender.mss * (script.byte() % 32))
        end = _near(script, start + sender.mss * (1 + script.byte() % 4))
        return start % 2**32, end % 2**32

    def syn(self, script: Script) -> list[bytes]:
        """From a few ports, so that some come twice."""
        version, port, target = script.choose((4, 6)), 1000 + script.byte() % 4, script.choose(PORTS)
        options = TcpOptions(
            mss=script.choose((1360, None, 0, 88, 65535)),
            window_scale=script.choose((7, None, 0, 14)),
            sack_permitted=script.flag(),
            timestamp_value=script.choose((None, 1000, 2**31)),
        )
        header = TcpHeader(port, target, script.number(4), 0, SYN, script.choose(WINDOWS), options=options)
        if script.byte() % 16 == 15:
            header.flags = script.byte()
        ends = (FAR4, OURS4) if version == 4 else (FAR6, OURS6)
        return [ip_packet(version, 6, header.serialize_segment(*ends, bytes(script.byte() % 2)))]

    # -- everything else

    def datagram(self, script: Script) -> list[bytes]:
        version = script.choose((4, 6))
        ends = (FAR4, OURS4) if version == 4 else (FAR6, OURS6)
        ports = [53, *self.watches.stack._udp, 9]
        body = script.take(script.byte()) * script.choose((1, 1, 200))
        udp = serialize_datagram(*ends, script.choose((53, 54)), script.choose(ports), body)
        return [ip_packet(version, 17, udp)] * script.choose((1, 1, 40))

    def icmp_error(self, script: Script) -> list[bytes]:
        """About something that we sent, or sent long ago."""
        if not self.sent:
            return []
        quoted = bytearray(script.choose(list(self.sent)[::-1]))
        if script.byte() % 8 == 7 and len(quoted) > 60:
            quoted[script.byte() % 60] ^= script.byte()
        version = 4 if script.byte() % 8 == 7 else quoted[0] >> 4
        if script.flag():
            message = packet_too_big(version, script.choose((1400, 1280, 600, 552, 68, 0, 9000)), quoted)
        else:
            message = port_unreachable(version, quoted)
            message.type, message.code = script.choose((message.type, 3, 1, 4, 11)), script.byte() % 16
        if script.byte() % 8 == 7:
            message.body = message.body[: script.byte()]
        return [_icmp(version, message)]

    def echo(self, script: Script) -> list[bytes]:
        version = script.choose((4, 6))
        body = script.take(script.byte()) * script.choose((1, 1, 40))
        message = echo_request(version, script.number(2), script.byte(), body)
        pings = self.watches.stack._pings
        if pings and script.flag():
            message.type = 0 if version == 4 else 129
            message.rest_of_header = next(iter(pings)) << 16 | script.byte()
        return [_icmp(version, message)] * script.choose((1, 1, 1, 120))

    def raw(self, script: Script) -> list[bytes]:
        """Any payload behind a good header, or no good header either."""
        version = script.choose((4, 6))
        body = script.take(script.byte())
        if script.flag():
            return [ip_packet(version, script.choose((6, 17, 1, 58, 0, 43, 44, 60, script.byte())), body)]
        return [bytes([version << 4 | 5]) + body]

    def reflected(self, script: Script) -> list[bytes]:
        """A packet of ours, back to us: from us, or with source and destination exchanged."""
        if not self.sent:
            return []
        packet = script.choose(list(self.sent)[::-1])
        first, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
        if script.flag():
            source, destination = packet[first : first + size], packet[first + size : first + 2 * size]
            packet = packet[:first] + destination + source + packet[first + 2 * size :]
        return [packet]


def damaged(script: Script, packet: bytes) -> bytes:
    """With another byte somewhere in its headers."""
    at = script.byte() % max(len(packet), 1)
    return packet[:at] + bytes([script.byte()]) + packet[at + 1 :]


def _near(script: Script, place: int) -> int:
    """`place`, or somewhere in its neighbourhood, or anywhere."""
    match script.byte() % 8:
        case 5:
            return place + script.signed()
        case 6:
            return place + 1000 * script.signed()
        case 7:
            return place + script.number(4)
    return place


def _tcp(watch: Watch, header: TcpHeader, options: bytes, payload: bytes) -> bytes:
    (_, header.destination_port), (far, header.source_port) = (
        watch.connection.local_address,
        watch.connection.remote_address,
    )
    fixed = bytearray(header.serialize())
    fixed[12] = (20 + len(options)) << 2
    segment = bytes(fixed) + options + payload  # no checksum: what comes out of a session is not checked
    return ip_packet(4 if len(far) == 4 else 6, 6, segment)


def _icmp(version: int, message: IcmpMessage) -> bytes:
    covered = None if version == 4 else pseudo_header_sum(FAR6, OURS6, 58, message.length)
    return ip_packet(version, 1 if version == 4 else 58, message.serialize(covered))


def fragments(script: Script, packet: bytes) -> list[bytes]:
    """The packet in pieces, as a rule such that it can be put together again."""
    version = packet[0] >> 4
    start = 20 if version == 4 else 40
    payload = packet[start:]
    size = 8 * (1 + script.byte() % 64)
    identification = script.byte() % 4
    pieces = []
    for at in range(0, min(len(payload), 16 * size), size):
        offset = at if script.byte() % 16 else 8 * script.number(2)
        piece, more = payload[at : at + size], at + size < len(payload)
        if version == 4:
            header = Ipv4Header(FAR4, OURS4, packet[9], 20 + len(piece), identification, False, more)
            header.fragment_offset = offset & 0xFFF8
            pieces.append(header.serialize() + piece)
        else:
            piece = Ipv6FragmentHeader(packet[6], offset & 0xFFF8, more, identification).serialize() + piece
            pieces.append(Ipv6Header(FAR6, OURS6, 44, len(piece)).serialize() + piece)
    return pieces[::-1] if script.flag() else pieces
