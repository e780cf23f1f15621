"""The IP host: what reaches which socket, and what is answered without one (RFC 1122, RFC 9293, RFC 5927)."""

from __future__ import annotations

import ipaddress

import pytest

from httpx_wireguard._errors import AddressInUse, ConnectionRefused, DestinationUnreachable, NoRoute, TunnelClosed
from httpx_wireguard._netstack.stack import EPHEMERAL_PORTS, MAX_PATHS, REPLIES_PER_SECOND, Stack
from httpx_wireguard._netstack.tcp import MSL, State, TcpConnection
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage, echo_request, packet_too_big, port_unreachable
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions, segment_is_intact
from httpx_wireguard._wire.udp import serialize_datagram
from tests.simnet import SeededEntropy

SYN, ACK, FIN, RST = Flags.SYN, Flags.ACK, Flags.FIN, Flags.RST


def address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


US, THEM, OTHER = address("10.0.0.2"), address("10.0.0.1"), address("10.0.0.9")
US6, THEM6 = address("fd00::2"), address("fd00::1")


def stack(*, mtu: int = 1420, seed: int = 1, addresses: tuple[bytes, ...] = (US, US6)) -> Stack:
    return Stack(addresses, mtu, SeededEntropy(seed), 1 << 17)


def ip(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    if len(source) == 4:
        return Ipv4Header(source, destination, protocol, 20 + len(body)).serialize() + body
    return Ipv6Header(source, destination, protocol, len(body)).serialize() + body


def fragments(protocol: int, body: bytes, split: int) -> list[bytes]:
    """`body` from THEM to US in two pieces."""
    packets = []
    for offset, piece in ((0, body[:split]), (split, body[split:])):
        header = Ipv4Header(THEM, US, protocol, 20 + len(piece), identification=5, dont_fragment=False)
        header.more_fragments, header.fragment_offset = offset == 0, offset
        packets.append(header.serialize() + piece)
    return packets


def tcp(
    flags: Flags,
    sequence: int,
    acknowledgment: int = 0,
    payload: bytes = b"",
    *,
    source: bytes = THEM,
    destination: bytes = US,
    ports: tuple[int, int] = (50000, 80),
    options: TcpOptions | None = None,
) -> bytes:
    header = TcpHeader(*ports, sequence % 2**32, acknowledgment % 2**32, int(flags), 65535)
    header.options = options or TcpOptions()
    return ip(source, destination, PROTOCOL_TCP, header.serialize_segment(source, destination, payload))


def icmp(message: IcmpMessage, source: bytes = THEM, destination: bytes = US) -> bytes:
    if len(source) == 4:
        return ip(source, destination, PROTOCOL_ICMP, message.serialize())
    total = pseudo_header_sum(source, destination, PROTOCOL_ICMPV6, message.length)
    return ip(source, destination, PROTOCOL_ICMPV6, message.serialize(total))


def udp(payload: bytes, *, source: bytes = THEM, destination: bytes = US, ports: tuple[int, int] = (53, 9000)) -> bytes:
    return ip(source, destination, PROTOCOL_UDP, serialize_datagram(source, destination, *ports, payload))


def sent(host: Stack, now: float = 0.0) -> list[bytes]:
    return [packet for _, packets in host.packets_to_send(now) for packet in packets]


def segments(host: Stack, now: float = 0.0) -> list[TcpHeader]:
    return [TcpHeader.parse(packet, 20 if packet[0] >> 4 == 4 else 40) for packet in sent(host, now)]


def icmp_sent(host: Stack, now: float = 0.0) -> list[IcmpMessage]:
    return [IcmpMessage.parse(packet[20:]) for packet in sent(host, now)]


def established(host: Stack, *, remote: bytes = THEM, now: float = 0.0) -> tuple[TcpConnection, int]:
    """An active open to port 80, answered; and the next sequence number that we send."""
    connection = host.open_tcp((remote, 80), now)
    (syn,) = segments(host, now)
    local, port = connection.local_address
    options = TcpOptions(mss=1400)
    answer = tcp(SYN | ACK, 7000, syn.sequence + 1, source=remote, destination=local, ports=(80, port), options=options)
    host.receive_packets([answer], now)
    segments(host, now)
    assert connection.state is State.ESTABLISHED
    return connection, syn.sequence + 1


def accepted(
    host: Stack, *, sequence: int = 100, port: int = 50000, now: float = 0.0, options: TcpOptions | None = None
) -> TcpConnection:
    """A passive open on port 80, accepted; `options` are the SYN's."""
    listener = host.listen_tcp(80)
    host.receive_packets([tcp(SYN, sequence, ports=(port, 80), options=options)], now)
    (answer,) = segments(host, now)
    host.receive_packets([tcp(ACK, sequence + 1, answer.sequence + 1, ports=(port, 80))], now)
    connection = listener.accept(now)
    assert connection is not None
    listener.close(now)
    return connection


# -- opening


def test_an_open_starts_from_our_address_of_the_same_family() -> None:
    host = stack()
    assert host.open_tcp((THEM, 80), 0.0).local[0] == "10.0.0.2"
    assert host.open_tcp((THEM6, 80), 0.0).local[0] == "fd00::2"


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_local_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(OverflowError, match="port must be 0-65535"):
        stack().listen_tcp(port)
    with pytest.raises(OverflowError, match="port must be 0-65535"):
        stack().open_udp(port)


def test_an_open_towards_a_family_without_address_has_no_route() -> None:
    host = stack(addresses=(US,))
    with pytest.raises(NoRoute, match="no IPv6 address to reach fd00::1 from"):
        host.open_tcp((THEM6, 80), 0.0)


def test_an_open_from_a_foreign_address_is_refused() -> None:
    """RFC 9293 MUST-44."""
    with pytest.raises(NoRoute, match=r"10\.0\.0\.9 is not an address of the interface"):
        stack().open_tcp((THEM, 80), 0.0, OTHER)


@pytest.mark.parametrize("remote", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "ff02::1", "::", "::1"])
def test_an_open_towards_no_single_host_is_refused(remote: str) -> None:
    """RFC 9293 MUST-46."""
    with pytest.raises(NoRoute, match="not the address of a single host"):
        stack().open_tcp((address(remote), 80), 0.0)


def test_local_ports_are_of_the_wide_range_and_random_for_udp() -> None:
    """RFC 6056 3.3.1, and RFC 5452 9.2 for DNS."""
    host = stack()
    ports = [host.open_udp().local_port for _ in range(20)]
    assert len(set(ports)) == 20
    assert all(port in EPHEMERAL_PORTS for port in (*ports, host.open_tcp((THEM, 80), 0.0).local[1]))
    assert max(ports) - min(ports) > 5000


def test_ports_count_up_from_a_secret_start_for_each_destination() -> None:
    """RFC 6056 3.3.3: so that one comes again as late as can be."""
    first, other = stack(seed=1), stack(seed=2)
    ports = [first.open_tcp((THEM, 80), 0.0).local[1] for _ in range(3)]
    assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
    assert first.open_tcp((OTHER, 80), 0.0).local[1] != ports[0] + 3
    assert other.open_tcp((THEM, 80), 0.0).local[1] != ports[0]


def test_a_local_port_may_serve_many_remotes() -> None:
    """RFC 9293 3.4: a connection is named by both its ends."""
    host = stack()
    ports = [host.open_tcp((THEM, port), 0.0).local[1] for port in range(1, 1000)]
    assert len(set(ports)) < len(ports), "of so many, two have the same by chance"


def test_initial_sequence_numbers_follow_a_clock_and_a_secret() -> None:
    """RFC 6528 3: a clock, here of 64 ns a tick, and an offset per pair of ends that nobody else can compute."""
    first, later, other = stack(seed=1), stack(seed=1), stack(seed=2)
    numbers = []
    for host, now in ((first, 0.0), (later, 1.0), (other, 0.0)):
        host.open_tcp((THEM, 80), now)
        numbers.append(segments(host, now)[0].sequence)
    assert (numbers[1] - numbers[0]) % 2**32 == 15_625_000
    assert numbers[0] != numbers[2]


@pytest.mark.parametrize("remote, mss", [(THEM, 1380), (THEM6, 1360)])
def test_the_mss_offered_is_the_mtu_without_headers(remote: bytes, mss: int) -> None:
    """RFC 9293 3.7.1, MUST-67."""
    host = stack()
    host.open_tcp((remote, 80), 0.0)
    assert segments(host)[0].options.mss == mss


# -- demultiplexing


def test_packets_find_their_connection_by_both_ends() -> None:
    host = stack()
    first, _ = established(host)
    second, _ = established(host)
    ports = (80, second.local[1])
    host.receive_packets([tcp(ACK, 7001, second.sender.next, b"for the second", ports=ports)], 0.1)
    assert (first.readable, second.readable) == (False, True)
    assert second in host.take_woken()
    assert host.take_woken() == []


def test_interleaved_packets_of_two_connections_stay_in_order() -> None:
    host = stack()
    pair = [established(host)[0] for _ in range(2)]
    batch = [
        tcp(ACK, 7001 + 3 * step, each.sender.next, b"%d%d " % (number, step), ports=(80, each.local[1]))
        for step in range(3)
        for number, each in enumerate(pair)
    ]
    host.receive_packets(batch, 0.1)
    assert [each.receive(99, 0.1) for each in pair] == [b"00 01 02 ", b"10 11 12 "]


def test_tcp_works_over_ipv6() -> None:
    host = stack()
    connection, next_sequence = established(host, remote=THEM6)
    ports = (80, connection.local[1])
    host.receive_packets([tcp(ACK, 7001, next_sequence, b"six", source=THEM6, destination=US6, ports=ports)], 0.1)
    assert connection.receive(9, 0.1) == b"six"


def test_ip_options_and_fragments_lead_to_the_same_connection() -> None:
    """RFC 791 3.1, 3.2: off the fast path."""
    host = stack()
    connection, next_sequence = established(host)
    whole = tcp(ACK, 7001, next_sequence, b"0123456789abcdef", ports=(80, connection.local[1]))
    body = whole[20:]
    header = Ipv4Header(THEM, US, PROTOCOL_TCP, 24 + 20 + 4, options=b"\x01" * 4)
    optional = header.serialize() + body[:24]  # its first four bytes of text
    host.receive_packets([optional, *fragments(PROTOCOL_TCP, body, 24)], 0.1)
    assert connection.receive(99, 0.1) == b"0123456789abcdef"


def test_fragments_for_another_host_are_not_kept() -> None:
    """RFC 1122 3.2.1.3."""
    host = stack()
    header = Ipv4Header(THEM, bytes([10, 0, 0, 77]), 99, 52, dont_fragment=False, more_fragments=True)
    host.receive_packets([header.serialize() + bytes(32)], 0.0)
    assert host.drops == {"not addressed to us": 1}
    assert host.next_timeout() is None


def test_an_ipv6_extension_header_leads_to_the_same_connection() -> None:
    """RFC 8200 4."""
    host = stack()
    connection, next_sequence = established(host, remote=THEM6)
    ports = (80, connection.local[1])
    body = tcp(ACK, 7001, next_sequence, b"six", source=THEM6, destination=US6, ports=ports)[40:]
    destination_options = bytes([PROTOCOL_TCP, 0, 1, 4, 0, 0, 0, 0])
    host.receive_packets([ip(THEM6, US6, 60, destination_options + body)], 0.1)
    assert connection.receive(9, 0.1) == b"six"


@pytest.mark.parametrize("source", ["127.0.0.1", "224.0.0.1", "0.0.0.0", "10.0.0.2", "255.255.255.255"])
def test_a_syn_from_an_impossible_source_is_dropped(source: str) -> None:
    """RFC 9293 MUST-63, RFC 1122 3.2.1.3."""
    host = stack()
    host.listen_tcp(80)
    host.receive_packets([tcp(SYN, 1, source=address(source))], 0.0)
    assert sent(host) == []
    assert host.drops["impossible source address"] == 1


@pytest.mark.parametrize("destination", ["10.0.0.9", "224.0.0.1", "10.0.0.255", "127.0.0.1"])
def test_a_syn_to_another_address_is_dropped(destination: str) -> None:
    """RFC 9293 MUST-57, RFC 1122 3.3.4.2: strong host model."""
    host = stack()
    host.listen_tcp(80)
    host.receive_packets([tcp(SYN, 1, destination=address(destination))], 0.0)
    assert sent(host) == []
    assert host.drops["not addressed to us"] == 1


# -- CLOSED, RFC 9293 3.10.7.1


def test_a_syn_for_a_closed_port_is_reset() -> None:
    """<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>."""
    host = stack()
    host.receive_packets([tcp(SYN, 41, ports=(50000, 81))], 0.0)
    (packet,) = sent(host)
    reset = TcpHeader.parse(packet, 20)
    assert (reset.flags, reset.sequence, reset.acknowledgment) == (RST | ACK, 0, 42)
    assert (reset.source_port, reset.destination_port) == (81, 50000)
    assert segment_is_intact(US, THEM, packet[20:])


def test_text_and_fin_count_in_the_reset() -> None:
    host = stack()
    host.receive_packets([tcp(FIN, 41, payload=b"abc")], 0.0)
    assert segments(host)[0].acknowledgment == 45


def test_a_segment_with_acknowledgment_for_nobody_is_reset_there() -> None:
    """<SEQ=SEG.ACK><CTL=RST>."""
    host = stack()
    host.receive_packets([tcp(ACK, 41, 77)], 0.0)
    (reset,) = segments(host)
    assert (reset.flags, reset.sequence) == (RST, 77)


def test_a_reset_for_nobody_is_dropped() -> None:
    host = stack()
    host.receive_packets([tcp(RST, 41), tcp(RST | ACK, 41, 77)], 0.0)
    assert sent(host) == []


def test_resets_are_limited_in_rate() -> None:
    """RFC 5961 7, RFC 1812 4.3.2.8."""
    host = stack()
    flood = [tcp(SYN, number, ports=(50000, 81)) for number in range(REPLIES_PER_SECOND + 50)]
    host.receive_packets(flood, 5.0)
    assert len(sent(host, 5.0)) == REPLIES_PER_SECOND
    assert host.drops["reply rate limit"] == 50
    host.receive_packets(flood[:1], 6.0)
    assert len(sent(host, 6.0)) == 1


# -- LISTEN, RFC 9293 3.10.7.2


def test_an_acknowledgment_to_a_listener_is_reset() -> None:
    """RFC 9293 3.10.7.2 second."""
    host = stack()
    host.listen_tcp(80)
    host.receive_packets([tcp(SYN | ACK, 41, 77)], 0.0)
    assert segments(host)[0].flags == RST
    assert host.connection_count == 0


def test_a_finished_handshake_reaches_accept() -> None:
    host = stack()
    connection = accepted(host)
    assert connection.remote == ("10.0.0.1", 50000)
    assert connection.local == ("10.0.0.2", 80)


# -- TIME-WAIT


def in_time_wait(host: Stack, options: TcpOptions | None = None) -> TcpConnection:
    """We closed first, after more data than the clock of numbers ticks by; the far side's data ended at 101."""
    connection = accepted(host, options=options)
    connection.send(bytes(200_000), 0.0)
    while sent(host):
        host.receive_packets([tcp(ACK, 101, connection.sender.next)], 0.0)
    connection.close(0.0)
    (fin,) = segments(host)
    host.receive_packets([tcp(FIN | ACK, 101, fin.sequence + 1)], 0.1)
    sent(host, 0.1)
    assert connection.state is State.TIME_WAIT
    return connection


def test_a_new_syn_may_take_over_a_connection_in_time_wait() -> None:
    """RFC 9293 3.10.7.4 fourth, MAY-2: with an initial sequence number above the old ones on both sides."""
    host = stack()
    old = in_time_wait(host)
    listener = host.listen_tcp(80)
    host.receive_packets([tcp(SYN, 5000)], 0.2)
    (answer,) = segments(host, 0.2)
    assert answer.flags == SYN | ACK
    assert 0 < (answer.sequence - old.sender.next) % 2**32 < 2**31
    host.receive_packets([tcp(ACK, 5001, answer.sequence + 1)], 0.3)
    assert listener.accept(0.3) is not None
    assert old.state is State.CLOSED
    assert host.connection_count == 1


@pytest.mark.parametrize("newer_by, taken_over", [(1, True), (0, False), (-1, False), (2**31, False)])
def test_a_newer_timestamp_takes_over_time_wait_whatever_the_sequence_number(newer_by: int, taken_over: bool) -> None:
    """RFC 6191 2: a connection faster than the clock of sequence numbers leaves an older number behind."""
    host = stack()
    old = in_time_wait(host, TcpOptions(timestamp_value=1000, timestamp_echo=0))
    host.listen_tcp(80)
    options = TcpOptions(timestamp_value=(1000 + newer_by) % 2**32, timestamp_echo=0)
    host.receive_packets([tcp(SYN, 90, options=options)], 0.2)
    assert [segment.flags for segment in segments(host, 0.2)] == [SYN | ACK if taken_over else ACK]
    assert (old.state is State.CLOSED) == taken_over


@pytest.mark.parametrize("last", [RST | ACK, FIN | ACK])
def test_a_syn_behind_the_end_of_the_old_connection_in_one_read_opens_the_new_one(last: Flags) -> None:
    """The end may be a reset, or the FIN that leads to TIME-WAIT: the SYN is not lost on the old connection."""
    host = stack()
    old = accepted(host)
    listener = host.listen_tcp(80)
    old.shutdown_write(0.1)
    (fin,) = segments(host, 0.1)
    host.receive_packets([tcp(last, 101, fin.sequence + 1), tcp(SYN, 5000)], 0.2)
    answers = segments(host, 0.2)
    assert [answer.flags for answer in answers] == [SYN | ACK]
    host.receive_packets([tcp(ACK, 5001, answers[0].sequence + 1)], 0.3)
    assert listener.accept(0.3) is not None
    assert old.state is State.CLOSED


def test_an_old_syn_does_not_disturb_time_wait() -> None:
    """RFC 9293 3.10.7.4: only a larger sequence number shows a new connection."""
    host = stack()
    old = in_time_wait(host)
    host.listen_tcp(80)
    host.receive_packets([tcp(SYN, 101)], 0.2)
    assert [segment.flags for segment in segments(host, 0.2)] == [ACK]
    assert old.state is State.TIME_WAIT


def test_without_a_listener_time_wait_stays() -> None:
    host = stack()
    old = in_time_wait(host)
    host.receive_packets([tcp(SYN, 5000)], 0.2)
    assert [segment.flags for segment in segments(host, 0.2)] == [ACK]
    assert old.state is State.TIME_WAIT


def test_nothing_is_left_after_time_wait() -> None:
    host = stack()
    in_time_wait(host)
    while (due := host.next_timeout()) is not None:
        assert host.connection_count == 1
        host.handle_timeout(due)
        sent(host, due)
        last = due
    assert last == pytest.approx(0.1 + 2 * MSL)
    assert host.connection_count == 0
    assert host.next_timeout() is None


# -- ICMP


def test_an_echo_request_is_answered_with_its_data() -> None:
    """RFC 1122 3.2.2.6."""
    host = stack()
    host.receive_packets([icmp(echo_request(4, 7, 9, b"payload"))], 0.0)
    (reply,) = icmp_sent(host)
    assert (reply.type, reply.identifier, reply.sequence, reply.body) == (0, 7, 9, b"payload")


def test_an_ipv6_echo_request_is_answered() -> None:
    """RFC 4443 4.2."""
    host = stack()
    host.receive_packets([icmp(echo_request(6, 7, 9, b"payload"), THEM6, US6)], 0.0)
    (packet,) = sent(host)
    total = pseudo_header_sum(US6, THEM6, PROTOCOL_ICMPV6, len(packet) - 40)
    assert IcmpMessage.parse(packet[40:], total).type == 129


def test_echo_replies_are_limited_in_rate() -> None:
    """RFC 4443 2.4 (f)."""
    host = stack()
    host.receive_packets([icmp(echo_request(4, 7, n)) for n in range(REPLIES_PER_SECOND + 5)], 0.0)
    assert len(sent(host)) == REPLIES_PER_SECOND


def test_an_echo_reply_that_does_not_fit_is_not_sent() -> None:
    """The request came in fragments; we send none."""
    host = stack()
    body = icmp(echo_request(4, 7, 9, bytes(2000)))[20:]
    host.receive_packets(fragments(PROTOCOL_ICMP, body, 1000), 0.0)
    assert sent(host) == []
    assert host.drops["reply larger than the MTU"] == 1


def test_an_icmp_error_about_nothing_of_ours_is_ignored() -> None:
    """RFC 1122 3.2.2: never an error about an error."""
    host = stack()
    quoted = tcp(SYN, 1, source=US, destination=THEM, ports=(40000, 80))
    host.receive_packets([icmp(port_unreachable(4, quoted))], 0.0)
    assert sent(host) == []


def test_port_unreachable_ends_the_open_that_it_quotes() -> None:
    """RFC 9293 3.9.2.2."""
    host = stack()
    connection = host.open_tcp((THEM, 80), 0.0)
    (syn,) = sent(host)
    host.receive_packets([icmp(port_unreachable(4, syn), OTHER)], 0.1)
    assert isinstance(connection.error, DestinationUnreachable)
    assert "port unreachable, says 10.0.0.9" in str(connection.error)


@pytest.mark.parametrize("kind, code", [(3, 0), (3, 1), (3, 5), (11, 0), (12, 0), (4, 0), (5, 1)])
def test_soft_errors_do_not_end_an_open(kind: int, code: int) -> None:
    """RFC 9293 MUST-54 to MUST-56: unreachable 0, 1, 5, time exceeded, parameter problem, source quench."""
    host = stack()
    connection = host.open_tcp((THEM, 80), 0.0)
    (syn,) = sent(host)
    host.receive_packets([icmp(IcmpMessage(kind, code, 0, syn[:28]))], 0.1)
    assert connection.state is State.SYN_SENT


def test_packet_too_big_applies_to_the_connection_and_to_later_ones() -> None:
    """RFC 1191 6.3, RFC 5927 7.2."""
    host = stack()
    connection, _ = established(host)
    connection.send(bytes(5000), 0.0)
    packets = sent(host)
    assert len(packets[0]) <= 40 + 1380
    host.receive_packets([icmp(packet_too_big(4, 1000, packets[0]))], 0.1)
    assert max(map(len, sent(host, 0.1))) <= 1000
    assert host.path_mtu(THEM) == 1000
    host.open_tcp((THEM, 80), 0.1)
    assert segments(host, 0.1)[0].options.mss == 960


def test_packet_too_big_reaches_every_connection_on_the_path() -> None:
    """Each sends large segments until it is told itself."""
    host = stack()
    pair = []
    for _ in range(2):
        connection, _ = established(host)
        connection.send(bytes(1380), 0.0)
        pair.append((connection, sent(host)[0]))
    for _, packet in pair:
        host.receive_packets([icmp(packet_too_big(4, 1000, packet))], 0.1)
    assert [connection.sender.mss <= 960 for connection, _ in pair] == [True, True]


def test_packet_too_big_never_makes_a_path_larger() -> None:
    """RFC 8201 4."""
    host = stack()
    connection, _ = established(host)
    connection.send(bytes(1380), 0.0)
    packet = sent(host)[0]
    host.receive_packets([icmp(packet_too_big(4, 1000, packet))], 0.1)
    sent(host, 0.1)
    host.receive_packets([icmp(packet_too_big(4, 1300, packet))], 0.2)
    assert host.path_mtu(THEM) == 1000


@pytest.mark.parametrize("remote, mtu, floor", [(THEM, 68, 552), (THEM, 0, 552), (THEM6, 100, 1280)])
def test_packet_too_big_is_believed_down_to_a_floor(remote: bytes, mtu: int, floor: int) -> None:
    """RFC 5927 7.3; Linux' min_pmtu; RFC 8201 4."""
    host = stack()
    connection, _ = established(host, remote=remote)
    connection.send(bytes(1300), 0.0)
    packet = sent(host)[0]
    version = 4 if len(remote) == 4 else 6
    host.receive_packets([icmp(packet_too_big(version, mtu, packet), remote, connection.local_address[0])], 0.1)
    assert host.path_mtu(remote) == floor


def test_the_newest_of_too_many_narrow_paths_are_remembered() -> None:
    """Whoever reaches a listener from many addresses could fill memory with their paths."""
    host = stack()
    for number in range(MAX_PATHS + 2):
        remote = bytes([10, 3, number >> 8, number & 255])
        connection, _ = established(host, remote=remote)
        connection.send(bytes(1000), 0.0)
        (data,) = sent(host)
        host.receive_packets([icmp(packet_too_big(4, 1000 + number % 7, data), remote)], 0.0)
        connection.abort(0.0)
        sent(host)
    narrow = [
        number for number in range(MAX_PATHS + 2) if host.path_mtu(bytes([10, 3, number >> 8, number & 255])) < 1420
    ]
    assert narrow == list(range(2, MAX_PATHS + 2))


def test_packet_too_big_about_data_not_in_flight_is_a_forgery() -> None:
    """RFC 5927 4.1."""
    host = stack()
    connection, next_sequence = established(host)
    local = connection.local[1]
    forged = tcp(ACK, next_sequence + 999, 0, bytes(1300), source=US, destination=THEM, ports=(local, 80))
    host.receive_packets([icmp(packet_too_big(4, 600, forged))], 0.1)
    assert host.path_mtu(THEM) == 1420


# -- UDP


def test_a_datagram_for_nobody_draws_port_unreachable() -> None:
    """RFC 1122 4.1.3.1."""
    host = stack()
    datagram = udp(b"hello")
    host.receive_packets([datagram], 0.0)
    (error,) = icmp_sent(host)
    assert (error.type, error.code, error.body) == (3, 3, datagram)


def test_a_datagram_with_a_wrong_checksum_is_dropped() -> None:
    """RFC 1122 4.1.3.4."""
    host = stack()
    socket = host.open_udp(9000)
    datagram = udp(b"hello")
    host.receive_packets([datagram[:-1] + b"!"], 0.0)
    assert not socket.readable
    assert host.drops["UDP checksum"] == 1


def test_ports_are_claimed_once_and_free_again_after_close() -> None:
    host = stack()
    listener, socket = host.listen_tcp(80), host.open_udp(80)
    with pytest.raises(AddressInUse, match="TCP port 80"):
        host.listen_tcp(80)
    with pytest.raises(AddressInUse, match="UDP port 80"):
        host.open_udp(80)
    listener.close(0.0)
    socket.close(0.0)
    assert host.listen_tcp(80).local_port == 80
    assert host.open_udp(80).local_port == 80


def test_port_zero_picks_a_free_port() -> None:
    host = stack()
    assert host.listen_tcp(0).local_port in EPHEMERAL_PORTS
    assert host.open_udp().local_port in EPHEMERAL_PORTS


# -- garbage


@pytest.mark.parametrize(
    "packet",
    [
        ip(THEM, US, PROTOCOL_TCP, b"short"),
        ip(THEM, US, PROTOCOL_TCP, b""),
        ip(THEM, US, PROTOCOL_UDP, b"short"),
        ip(THEM, US, PROTOCOL_ICMP, b"short"),
        ip(THEM6, US6, PROTOCOL_TCP, b""),
        ip(THEM6, US6, 60, b"\x06\xff" + bytes(6)),
        ip(THEM, US, PROTOCOL_ICMP, port_unreachable(4, b"\x45").serialize()),
    ],
)
def test_what_does_not_parse_is_counted(packet: bytes) -> None:
    host = stack()
    host.receive_packets([packet], 0.0)
    assert sent(host) == []
    assert sum(host.drops.values()) == 1


def test_a_malformed_segment_does_not_stop_the_rest_of_a_batch() -> None:
    host = stack()
    host.listen_tcp(80)
    bad = ip(THEM, US, PROTOCOL_TCP, tcp(SYN, 1)[20:32])
    host.receive_packets([bad, tcp(SYN, 1), bad], 0.0)
    assert [segment.flags for segment in segments(host)] == [SYN | ACK]


def test_unknown_protocols_are_counted() -> None:
    host = stack()
    host.receive_packets([ip(THEM, US, 47, b"GRE?")], 0.0)
    assert host.drops["unknown protocol"] == 1


# -- the end


def test_close_resets_connections_and_wakes_everybody() -> None:
    host = stack()
    connection, _ = established(host)
    listener, socket, ping = host.listen_tcp(80), host.open_udp(), host.open_ping(THEM)
    host.take_woken()
    host.close(1.0, TunnelClosed("the tunnel is closed"))
    assert [segment.flags for segment in segments(host, 1.0)] == [RST | ACK]
    assert set(host.take_woken()) == {connection, listener, socket, ping}
    assert host.connection_count == 0
    for socket_ in (listener, socket, ping):
        assert isinstance(socket_.error, TunnelClosed)


def test_opens_towards_a_silent_peer_can_be_failed_together() -> None:
    host = stack()
    waiting = host.open_tcp((THEM, 80), 0.0)
    other = host.open_tcp((OTHER, 80), 0.0)
    sent(host)
    done, _ = established(host)
    host.fail_opening(lambda remote: ConnectionRefused("no") if remote == THEM else None)
    assert isinstance(waiting.error, ConnectionRefused)
    assert other.state is State.SYN_SENT
    assert done.state is State.ESTABLISHED


def test_timers_of_connections_run_through_the_stack() -> None:
    host = stack()
    host.open_tcp((THEM, 80), 0.0)
    sent(host)
    assert host.next_timeout() == 1.0
    host.handle_timeout(1.0)
    assert [segment.flags for segment in segments(host, 1.0)] == [SYN]
    assert host.next_timeout() == 3.0


def test_an_idle_host_has_no_timer() -> None:
    host = stack()
    established(host)
    assert host.next_timeout() is None
