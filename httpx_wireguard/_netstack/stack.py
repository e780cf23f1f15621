"""An IP host without I/O: packets in, packets out, sockets between (RFC 1122, RFC 8200, RFC 4443)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from httpx_wireguard._deadlines import Deadlines
from httpx_wireguard._errors import (
    AddressInUse,
    DestinationUnreachable,
    MalformedPacket,
    NoRoute,
    WireGuardError,
)
from httpx_wireguard._netstack.addresses import IpAddress, fixed_headers, is_unicast, readable
from httpx_wireguard._netstack.congestion import CONTROLS, DEFAULT_CONTROL
from httpx_wireguard._netstack.limits import RECEIVE_FLOOR, SharedLimits
from httpx_wireguard._netstack.receiver import ROUNDING, WINDOW_SCALE
from httpx_wireguard._netstack.tcp import MINIMUM_MSS, State, TcpConnection
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import IPV6_HEADER_LENGTH, MINIMUM_MTU, Ipv6Header, find_upper_layer
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.trains import Train

if TYPE_CHECKING:  # what HTTP does not need is imported when it is first opened, or first comes in
    from httpx_wireguard._netstack.fragments import FragmentReassembler
    from httpx_wireguard._netstack.listener import TcpListener
    from httpx_wireguard._netstack.ping import PingSocket
    from httpx_wireguard._netstack.syn_cookies import SynCookies
    from httpx_wireguard._netstack.udp import UdpSocket
    from httpx_wireguard._wire.icmp import IcmpMessage, QuotedPacket

    Socket: TypeAlias = TcpConnection | TcpListener | UdpSocket | PingSocket


Packets: TypeAlias = tuple[IpAddress, list[bytes]]  # where to, and the IP packets

# Deviates from RFC 9293 3.4.1, whose clock ticks every 4 us, as Linux does (64 ns): a connection of less than 15 MB/s
# does not outrun it, so the far side sees by the sequence number that a SYN is new.
ISN_CLOCK = 15_625_000  # ticks per second
EPHEMERAL_PORTS = range(32768, 65536)  # RFC 6056 3.2 asks for a wide range; Linux' starts there too
MINIMUM_IPV4_MTU = 552  # bytes; below this a "packet too big" is believed no further (Linux' min_pmtu)
MAX_PATHS = 1024  # destinations whose smaller MTU is remembered, the newest; ours: a listener may serve any number
PATH_MTU_LIFETIME = 600.0  # seconds; RFC 1191 6.3, RFC 8201 4 and 5.3: then the path may have become wider
REPLIES_PER_SECOND = 100  # resets, echo replies, ICMP errors; RFC 1812 4.3.2.8, RFC 4443 2.4 (f) ask for a limit
TIME_WAIT_GAP = 65_537  # how far a connection that takes over one in TIME-WAIT begins above it; as Linux
_TCP4_ADDRESSES = slice(12, 24)  # source, destination, ports: an IPv4 header without options
_TCP6_ADDRESSES = slice(8, 44)


class Random(Protocol):
    """Where unpredictable bytes come from."""

    def random(self, n: int) -> bytes: ...


class Stack:
    """Demultiplexes packets to sockets and collects what they have to send.

    Sockets that may have something to send are *touched*; only those are asked. Sockets whose readiness may have
    changed are *woken*; the driver takes them and looks at their flags.
    """

    def __init__(
        self,
        addresses: Sequence[IpAddress],
        mtu: int,
        entropy: Random,
        socket_capacity: int,
        congestion_control: str = DEFAULT_CONTROL,
    ) -> None:
        """
        Args:
            socket_capacity: bytes that the UDP socket below holds while nobody reads it.
            congestion_control: a name in `CONTROLS`, for new connections.
        """
        self.addresses = tuple(addresses)
        self.mtu = mtu
        self.drops: Counter[str] = Counter()
        self.socket_capacity = socket_capacity
        self.make_control = CONTROLS[congestion_control]
        self._entropy = entropy
        self._shared = SharedLimits(entropy)
        self._isn_key = entropy.random(32)
        self._cookie_secret = entropy.random(32)
        self._cookies: SynCookies | None = None  # while nobody floods a listener
        self._connections_opened = 0
        self._connections: dict[bytes, TcpConnection] = {}  # by source, destination and ports as they arrive
        self._opening: dict[TcpConnection, None] = {}  # opened since `fail_opening`, or still in SYN-SENT then
        self._half_open: dict[TcpConnection, TcpListener] = {}
        self._listeners: dict[int, TcpListener] = {}
        self._udp: dict[int, UdpSocket] = {}
        self._pings: dict[int, PingSocket] = {}
        self.touched: dict[TcpConnection, None] = {}  # with `outbox`: whether `packets_to_send` has anything to do
        self._woken: dict[Socket, None] = {}
        self.outbox: list[Packets] = []
        self._deadlines: Deadlines[TcpConnection] = Deadlines()
        self._reassembler: FragmentReassembler | None = None  # while no fragment came
        self._path_mtu: dict[IpAddress, tuple[int, float]] = {}  # bytes, and until when it is believed
        self._reply_window = 0.0
        self._replies = 0

    # -- sockets

    def open_tcp(self, remote: tuple[IpAddress, int], now: float, local: IpAddress | None = None) -> TcpConnection:
        """Start a connection.

        Raises:
            NoRoute: the interface has no address of that family, or not this one, or `remote` is no unicast address.
            AddressInUse: every ephemeral port towards that remote is taken.
        """
        if not is_unicast(remote[0]):  # RFC 9293 MUST-46
            host, _ = readable(remote[0], 0)
            raise NoRoute(f"{host} is not the address of a single host", host)
        source = self.source_for(remote[0]) if local is None else self._own(local)
        port = self._ephemeral_port(
            lambda port: _key(remote, (source, port)) not in self._connections, self._next_port_offset(remote)
        )
        connection = self._new_connection((source, port), remote, now)
        self._opening[connection] = None
        connection.open(now)
        return connection

    def listen_tcp(self, port: int, backlog: int = 128) -> TcpListener:
        """Accept connections on `port` of all our addresses (0: a free one)."""
        from httpx_wireguard._netstack.listener import TcpListener

        port = self._claim(port, self._listeners, "TCP")
        listener = TcpListener(self, port, backlog)
        self._listeners[port] = listener
        return listener

    def open_udp(self, local_port: int = 0, remote: tuple[IpAddress, int] | None = None) -> UdpSocket:
        """A UDP socket on `local_port` (0: a free one); with a `remote`, connected to it."""
        from httpx_wireguard._netstack.udp import UdpSocket

        if remote is not None:
            self.source_for(remote[0])
        port = self._claim(local_port, self._udp, "UDP")
        socket = UdpSocket(self, port, remote)
        self._udp[port] = socket
        return socket

    def open_ping(self, remote: IpAddress) -> PingSocket:
        """An echo socket towards `remote`."""
        from httpx_wireguard._netstack.ping import PingSocket

        self.source_for(remote)
        identifier = self._ephemeral_port(lambda port: port not in self._pings)
        socket = PingSocket(self, identifier, remote)
        self._pings[identifier] = socket
        return socket

    def _new_connection(
        self,
        local: tuple[IpAddress, int],
        remote: tuple[IpAddress, int],
        now: float,
        sequence: int | None = None,
    ) -> TcpConnection:
        """With an initial `sequence` number, or that of RFC 6528 3: a clock plus a keyed hash of both ends."""
        self._forget_old_paths(now)
        key = _key(remote, local)
        number, timestamp_offset = self._secrets(key)
        if sequence is None:
            sequence = int(now * ISN_CLOCK) + number
        connection = TcpConnection(
            self,
            local,
            remote,
            initial_sequence=sequence & 0xFFFFFFFF,
            mss=self._mss(remote[0]),
            socket_capacity=self.socket_capacity,
            make_control=self.make_control,
            timestamp_offset=timestamp_offset,
            shared=self._shared,
        )
        self._connections[key] = connection
        return connection

    def _secrets(self, key: bytes) -> tuple[int, int]:
        """What a connection's sequence numbers (RFC 6528 3) and its timestamps (RFC 7323 5.4) begin with."""
        digest = hashlib.blake2s(key, key=self._isn_key).digest()
        return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")

    def _mss(self, remote: IpAddress) -> int:
        """RFC 9293 3.7.1: the MTU without the fixed headers."""
        return max(self.path_mtu(remote) - fixed_headers(remote), MINIMUM_MSS)

    def _next_port_offset(self, remote: tuple[IpAddress, int]) -> int:
        """RFC 6056 3.3.3: counting from a secret start for each destination, a port comes again as late as can be.

        The far side may hold a connection that it closed in TIME-WAIT, and not every one lets a new SYN take it over.
        """
        digest = hashlib.blake2s(remote[0] + remote[1].to_bytes(2, "big"), key=self._isn_key).digest()
        self._connections_opened += 1
        return int.from_bytes(digest[:4], "big") + self._connections_opened

    def _ephemeral_port(self, free: Callable[[int], bool], offset: int | None = None) -> int:
        """From `offset` on, or from a random port (RFC 6056 3.3.1), the first that is free."""
        offset = int.from_bytes(self._entropy.random(2), "big") if offset is None else offset
        count = len(EPHEMERAL_PORTS)
        for step in range(count):
            port = EPHEMERAL_PORTS[(offset + step) % count]
            if free(port):
                return port
        raise AddressInUse(f"all {count} local ports are in use; close connections that are no longer needed")

    def _claim(self, port: int, table: dict[int, UdpSocket] | dict[int, TcpListener], protocol: str) -> int:
        if not 0 <= port <= 65535:
            raise OverflowError(f"{protocol} port must be 0-65535, not {port}")  # as socket.bind has it
        if port == 0:
            return self._ephemeral_port(lambda candidate: candidate not in table)
        if port in table:
            raise AddressInUse(f"{protocol} port {port} is in use inside the tunnel")
        return port

    def source_for(self, remote: IpAddress) -> IpAddress:
        for address in self.addresses:
            if len(address) == len(remote):
                return address
        host, _ = readable(remote, 0)
        family = "IPv4" if len(remote) == 4 else "IPv6"
        raise NoRoute(f"the interface has no {family} address to reach {host} from; add one to Address =", host)

    def _own(self, local: IpAddress) -> IpAddress:
        if local not in self.addresses:
            host, _ = readable(local, 0)
            raise NoRoute(f"local address {host} is not an address of the interface", host)
        return local

    def path_mtu(self, remote: IpAddress) -> int:
        return self._path_mtu[remote][0] if remote in self._path_mtu else self.mtu

    def on_path_mtu(self, remote: IpAddress, mtu: int, now: float) -> None:
        """A connection found out what the path takes: others need not, and tell their far sides at once."""
        self._path_mtu.pop(remote, None)
        mtu = max(mtu, MINIMUM_IPV4_MTU if len(remote) == 4 else MINIMUM_MTU)
        if mtu < self.mtu:
            self._path_mtu[remote] = (mtu, now + PATH_MTU_LIFETIME)
            if len(self._path_mtu) > MAX_PATHS:
                del self._path_mtu[next(iter(self._path_mtu))]  # the oldest; that path will tell again

    def _forget_old_paths(self, now: float) -> None:
        while self._path_mtu:
            remote, (_, until) = next(iter(self._path_mtu.items()))
            if now < until:
                return
            del self._path_mtu[remote]

    # -- what sockets tell us

    def touch(self, connection: TcpConnection) -> None:
        self.touched[connection] = None

    def wake(self, socket: Socket) -> None:
        self._woken[socket] = None

    def drop(self, reason: str) -> None:
        self.drops[reason] += 1

    def on_established(self, connection: TcpConnection) -> None:
        listener = self._half_open.pop(connection)
        listener.half_open -= 1
        if listener.closed:
            connection.abort(0.0)
        else:
            listener.on_established(connection)

    def on_closed(self, connection: TcpConnection) -> None:
        key = _key(connection.remote_address, connection.local_address)
        if self._connections.get(key) is connection:
            del self._connections[key]
        self._opening.pop(connection, None)
        listener = self._half_open.pop(connection, None)
        if listener is not None:
            listener.half_open -= 1

    def on_listener_closed(self, listener: TcpListener) -> None:
        del self._listeners[listener.local_port]

    def on_udp_closed(self, socket: UdpSocket) -> None:
        del self._udp[socket.local_port]

    def on_ping_closed(self, socket: PingSocket) -> None:
        del self._pings[socket.identifier]

    def take_woken(self) -> list[Socket]:
        """Sockets whose readiness may have changed since the last call."""
        if not self._woken:
            return []
        woken = list(self._woken)
        self._woken.clear()
        return woken

    # -- input

    def receive_packets(self, packets: Sequence[bytes], now: float) -> None:
        """A batch of packets in order of arrival, each cut to its own length.

        Fast path: neighbours of one TCP connection go to it in one call. A train is known to be that.
        """
        if isinstance(packets, Train):
            head = packets[0]
            is_ipv4 = head[0] == 0x45
            key, offset = (head[_TCP4_ADDRESSES], 20) if is_ipv4 else (head[_TCP6_ADDRESSES], IPV6_HEADER_LENGTH)
            self._receive_tcp(key, packets, offset, now)
            return
        run: list[bytes] = []
        run_key = b""
        offset = 0
        for packet in packets:
            first = packet[0]
            if first == 0x45 and packet[9] == PROTOCOL_TCP and not (packet[6] & 0x3F or packet[7]):
                key, start = packet[_TCP4_ADDRESSES], 20
            elif first >> 4 == 6 and packet[6] == PROTOCOL_TCP:
                key, start = packet[_TCP6_ADDRESSES], IPV6_HEADER_LENGTH
            else:
                key, start = b"", 0
            if key != run_key or not key:
                if run:
                    self._receive_tcp(run_key, run, offset, now)
                run, run_key, offset = [], key, start
                if not key:
                    self._receive_other(packet, now)
                    continue
            run.append(packet)
        if run:
            self._receive_tcp(run_key, run, offset, now)

    def _receive_tcp(self, key: bytes, run: list[bytes], offset: int, now: float) -> None:
        while run:
            connection = self._connections.get(key)
            if connection is not None and not self._reuses(connection, run[0], offset):
                run = run[connection.receive_packets(run, offset, now) :]
                continue
            try:
                self._receive_unmatched(run[0], offset, now, connection)
            except MalformedPacket:
                self.drop("malformed TCP segment")
            run = run[1:]

    def _reuses(self, connection: TcpConnection, packet: bytes, offset: int) -> bool:
        """RFC 9293 3.10.7.4 fourth (MAY-2): a new SYN may take over a connection in TIME-WAIT."""
        if connection.state is not State.TIME_WAIT:
            return False
        try:
            header = TcpHeader.parse(packet, offset)
        except MalformedPacket:
            return False
        listener = self._listeners.get(header.destination_port)
        if header.flags & (Flags.SYN | Flags.ACK | Flags.RST) != Flags.SYN or not connection.precedes(header):
            return False
        if listener is None or listener.full or listener.flooded:
            return False
        connection.abort(0.0)
        return True

    def _receive_unmatched(self, packet: bytes, offset: int, now: float, previous: TcpConnection | None) -> None:
        """RFC 9293 3.10.7.1 and 3.10.7.2: a SYN for a listener, or nobody's segment."""
        header = TcpHeader.parse(packet, offset)
        source, destination = _addresses(packet)
        if not self._is_for_us(source, destination):
            return
        listener = self._listeners.get(header.destination_port)
        if header.flags & Flags.RST:
            return
        local, remote = (destination, header.destination_port), (source, header.source_port)
        kind = header.flags & (Flags.SYN | Flags.ACK)
        syn = None
        if listener and kind == Flags.ACK and self._cookies is not None:
            syn = self._cookies.recall(_key(remote, local), header, now)
        if listener is None or (kind & Flags.ACK and syn is None):
            self._refuse(header, source, destination, len(packet) - offset - header.header_length, now)
        elif not kind:
            self.drop("neither SYN nor ACK for a listener")  # 3.10.7.2 fourth
        elif listener.full:
            self.drop("listener's backlog full")
        elif syn is not None:
            connection = self._new_connection(local, remote, now, (header.acknowledgment - 1) & 0xFFFFFFFF)
            self._remember_half_open(connection, listener)
            connection.open_answered(syn, now)
            connection.receive_packets([packet], offset, now)
        elif listener.flooded:
            self._answer_with_cookie(header, local, remote, now)
        else:
            sequence = None if previous is None else previous.sender.next + TIME_WAIT_GAP
            connection = self._new_connection(local, remote, now, sequence)
            self._remember_half_open(connection, listener)
            connection.open_passive(header, now)

    def _remember_half_open(self, connection: TcpConnection, listener: TcpListener) -> None:
        self._half_open[connection] = listener
        listener.half_open += 1

    def _answer_with_cookie(
        self, syn: TcpHeader, local: tuple[IpAddress, int], remote: tuple[IpAddress, int], now: float
    ) -> None:
        if self._cookies is None:
            from httpx_wireguard._netstack.syn_cookies import SynCookies

            self._cookies = SynCookies(self._cookie_secret)
        key = _key(remote, local)
        clock = (int(now * 1000) + self._secrets(key)[1]) & 0xFFFFFFFF  # as the connection will have it
        window = min(RECEIVE_FLOOR - ROUNDING, self.socket_capacity)  # as the receiver begins with
        own = TcpOptions(mss=self._mss(remote[0]), window_scale=WINDOW_SCALE, timestamp_value=clock)
        answer = self._cookies.answer(key, syn, own, window, now)
        self._send(local[0], remote[0], PROTOCOL_TCP, answer.serialize_segment(local[0], remote[0]))

    def _refuse(self, header: TcpHeader, source: IpAddress, destination: IpAddress, length: int, now: float) -> None:
        """RFC 9293 3.10.7.1: the reset that a closed port sends."""
        if not self._may_reply(now):
            return
        has_ack = bool(header.flags & Flags.ACK)
        length += bool(header.flags & Flags.SYN) + bool(header.flags & Flags.FIN)
        reset = TcpHeader(
            source_port=header.destination_port,
            destination_port=header.source_port,
            sequence=header.acknowledgment if has_ack else 0,
            acknowledgment=0 if has_ack else (header.sequence + length) & 0xFFFFFFFF,
            flags=int(Flags.RST if has_ack else Flags.RST | Flags.ACK),
            window=0,
        )
        self._send(destination, source, PROTOCOL_TCP, reset.serialize_segment(destination, source))

    def _receive_other(self, packet: bytes, now: float) -> None:
        """Everything but plain TCP: options, extension headers, fragments, UDP, ICMP."""
        try:
            self._receive_ip(packet, now)
        except MalformedPacket:
            self.drop("malformed packet")

    def _receive_ip(self, packet: bytes, now: float) -> None:
        if packet[0] >> 4 == 4:
            ip = Ipv4Header.parse(packet)
            protocol, offset, is_fragment = ip.protocol, ip.header_length, ip.is_fragment
        else:
            upper = find_upper_layer(packet)
            protocol, offset, is_fragment = upper.protocol, upper.offset, upper.fragment is not None
        source, destination = _addresses(packet)
        if is_fragment:
            if self._is_for_us(source, destination):
                add = self._fragments.add_ipv4 if len(source) == 4 else self._fragments.add_ipv6
                whole = add(packet, now)
                if whole is not None:
                    self._receive_ip(whole, now)
            return
        if protocol == PROTOCOL_TCP:
            key = source + destination + packet[offset : offset + 4]
            self._receive_tcp(key, [packet], offset, now)
        elif not self._is_for_us(source, destination):
            return
        elif protocol == PROTOCOL_UDP:
            self._receive_udp(packet, source, destination, offset, now)
        elif protocol == (PROTOCOL_ICMP if len(source) == 4 else PROTOCOL_ICMPV6):
            self._receive_icmp(packet, source, destination, offset, now)
        else:
            self.drop("unknown protocol")

    @property
    def _fragments(self) -> FragmentReassembler:
        if self._reassembler is None:
            from httpx_wireguard._netstack.fragments import FragmentReassembler

            self._reassembler = FragmentReassembler(self.drops)
        return self._reassembler

    def _is_for_us(self, source: IpAddress, destination: IpAddress) -> bool:
        """The strong host model (RFC 1122 3.3.4.2): to one of our addresses, from somebody else's."""
        if destination not in self.addresses:
            self.drop("not addressed to us")
            return False
        if source in self.addresses or not is_unicast(source):
            self.drop("impossible source address")
            return False
        return True

    def _receive_udp(self, packet: bytes, source: IpAddress, destination: IpAddress, offset: int, now: float) -> None:
        from httpx_wireguard._wire.udp import UdpHeader, datagram_is_intact

        header = UdpHeader.parse(packet, offset)
        datagram = packet[offset : offset + header.length]
        if not datagram_is_intact(source, destination, datagram):
            self.drop("UDP checksum")
            return
        socket = self._udp.get(header.destination_port)
        if socket is not None:
            socket.receive_datagram(source, header.source_port, datagram[8:])
        elif self._may_reply(now):
            from httpx_wireguard._wire.icmp import port_unreachable

            self.send_icmp(source, port_unreachable(_version(source), packet), destination)

    # -- ICMP

    def _receive_icmp(self, packet: bytes, source: IpAddress, destination: IpAddress, offset: int, now: float) -> None:
        from httpx_wireguard._wire.icmp import IcmpMessage, echo_reply

        version = _version(source)
        message = IcmpMessage.parse(packet[offset:], _icmp_sum(source, destination, len(packet) - offset))
        if message.is_echo_request(version):
            if self._may_reply(now):
                self.send_icmp(source, echo_reply(version, message), destination)
        elif message.is_echo_reply(version):
            ping = self._pings.get(message.identifier)
            if ping is not None:
                ping.receive_reply(source, message)
        elif message.is_error(version):
            self._receive_icmp_error(message, source, version, now)

    def _receive_icmp_error(self, message: IcmpMessage, source: IpAddress, version: int, now: float) -> None:
        from httpx_wireguard._wire.icmp import QuotedPacket

        quoted = QuotedPacket.parse(message.body, version)
        mtu = message.next_hop_mtu(version)
        unreachable = message.unreachable(version)
        if mtu is not None:
            self._on_packet_too_big(quoted, mtu, now)
        elif unreachable is not None:
            text, hard = unreachable
            self._on_unreachable(quoted, f"{text}, says {readable(source, 0)[0]}", hard)

    def _on_unreachable(self, quoted: QuotedPacket, text: str, hard: bool) -> None:
        local, remote = (quoted.source, quoted.source_port), (quoted.destination, quoted.destination_port)
        if quoted.protocol == PROTOCOL_TCP and quoted.tcp_sequence is not None:
            connection = self._connections.get(_key(remote, local))
            if connection is not None:
                connection.on_unreachable(text, hard, quoted.tcp_sequence)
        elif quoted.protocol == PROTOCOL_UDP:
            socket = self._udp.get(quoted.source_port)
            if socket is not None and socket.remote_address == remote:
                socket.on_unreachable(text)
        else:
            ping = self._pings.get(quoted.source_port)
            if ping is not None and ping.remote_address == quoted.destination:
                host, _ = readable(quoted.destination, 0)
                ping.on_unreachable(DestinationUnreachable(f"ping {host}: {text}"))

    def _on_packet_too_big(self, quoted: QuotedPacket, mtu: int, now: float) -> None:
        """RFC 1191, RFC 8201: believed only about something in flight, never to make the path larger."""
        floor = MINIMUM_IPV4_MTU if len(quoted.destination) == 4 else MINIMUM_MTU
        mtu = max(mtu, floor)
        if mtu >= self.mtu or quoted.protocol != PROTOCOL_TCP or quoted.tcp_sequence is None:
            return
        key = _key((quoted.destination, quoted.destination_port), (quoted.source, quoted.source_port))
        connection = self._connections.get(key)
        if connection is not None and connection.on_packet_too_big(
            mtu - fixed_headers(quoted.destination), quoted.tcp_sequence, now
        ):
            self.on_path_mtu(quoted.destination, min(mtu, self.path_mtu(quoted.destination)), now)

    # -- output

    def packets_to_send(self, now: float) -> list[Packets]:
        """Everything due, in runs towards one address each."""
        out, self.outbox = self.outbox, []
        if self.touched:
            touched, self.touched = self.touched, {}
            for connection in touched:
                packets = connection.packets_to_send(now)
                if packets:
                    out.append((connection.remote_address[0], packets))
                self._deadlines.set(connection, connection.next_timeout())
        return out

    def send_udp(self, local: IpAddress, remote: IpAddress, datagram: bytes) -> None:
        self._send(local, remote, PROTOCOL_UDP, datagram)

    def send_icmp(self, remote: IpAddress, message: IcmpMessage, local: IpAddress | None = None) -> None:
        local = local or self.source_for(remote)
        body = message.serialize(_icmp_sum(local, remote, message.length))
        self._send(local, remote, PROTOCOL_ICMP if len(remote) == 4 else PROTOCOL_ICMPV6, body)

    def _send(self, local: IpAddress, remote: IpAddress, protocol: int, payload: bytes) -> None:
        if len(remote) == 4:
            header = Ipv4Header(
                source=local, destination=remote, protocol=protocol, total_length=20 + len(payload)
            ).serialize()
        else:
            header = Ipv6Header(
                source=local, destination=remote, next_header=protocol, payload_length=len(payload)
            ).serialize()
        if len(header) + len(payload) > self.mtu:
            self.drop("reply larger than the MTU")  # to what came in fragments: we send none
            return
        self.outbox.append((remote, [header + payload]))

    def _may_reply(self, now: float) -> bool:
        """Replies to what nobody asked for are limited in rate."""
        if now - self._reply_window >= 1.0:
            self._reply_window, self._replies = now, 0
        self._replies += 1
        if self._replies <= REPLIES_PER_SECOND:
            return True
        self.drop("reply rate limit")
        return False

    # -- timers and the end

    def next_timeout(self) -> float | None:
        connections = self._deadlines.next()
        fragments = None if self._reassembler is None else self._reassembler.next_timeout()
        if connections is None or fragments is None:
            return fragments if connections is None else connections
        return min(connections, fragments)

    def handle_timeout(self, now: float) -> None:
        for connection in self._deadlines.take_due(now):
            connection.handle_timeout(now)
            self._deadlines.set(connection, connection.next_timeout())
        if self._reassembler is not None:
            self._reassembler.handle_timeout(now)

    def fail_opening(self, error_for: Callable[[IpAddress], WireGuardError | None]) -> None:
        """End the connections that wait for a SYN's answer and have an error by their remote address."""
        for connection in list(self._opening):
            error = error_for(connection.remote_address[0]) if connection.state is State.SYN_SENT else None
            if error is not None:
                connection.fail(error)
            elif connection.state is not State.SYN_SENT:
                del self._opening[connection]

    def close(self, now: float, error: WireGuardError) -> None:
        """Reset every connection and close every socket."""
        for connection in list(self._connections.values()):
            connection.abort(now, error)
        sockets: list[TcpListener | UdpSocket | PingSocket] = []
        sockets += [*self._listeners.values(), *self._udp.values(), *self._pings.values()]
        for socket in sockets:
            socket.error = error
            socket.close(now)

    @property
    def connection_count(self) -> int:
        """TCP connections in any state but CLOSED."""
        return len(self._connections)


def _key(remote: tuple[IpAddress, int], local: tuple[IpAddress, int]) -> bytes:
    """Addresses and ports in the order in which they stand in a packet that arrives."""
    return remote[0] + local[0] + remote[1].to_bytes(2, "big") + local[1].to_bytes(2, "big")


def _version(address: IpAddress) -> int:
    return 4 if len(address) == 4 else 6


def _addresses(packet: bytes) -> tuple[IpAddress, IpAddress]:
    """Source and destination."""
    if packet[0] >> 4 == 4:
        return packet[12:16], packet[16:20]
    return packet[8:24], packet[24:40]


def _icmp_sum(source: IpAddress, destination: IpAddress, length: int) -> int | None:
    """ICMPv6 covers a pseudo header, ICMP does not."""
    return pseudo_header_sum(source, destination, PROTOCOL_ICMPV6, length) if len(source) == 16 else None
