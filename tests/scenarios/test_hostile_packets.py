"""One host against hostile packets below TCP: fragments, ICMP, echo requests, datagrams for nobody (docs/limits.md).

After every test a well-behaved connection still works, and the host's memory is within its bounds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from httpx_wireguard._netstack.fragments import MAX_BYTES, MAX_DATAGRAMS, MAX_FRAGMENTS, REASSEMBLY_TIMEOUT
from httpx_wireguard._netstack.ping import QUEUE_LIMIT
from httpx_wireguard._netstack.stack import MAX_PATHS, MINIMUM_IPV4_MTU, REPLIES_PER_SECOND
from httpx_wireguard._netstack.tcp import State
from httpx_wireguard._netstack.udp import RECEIVE_LIMIT
from httpx_wireguard._wire import PROTOCOL_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP
from httpx_wireguard._wire.icmp import IcmpMessage, echo_reply, echo_request, packet_too_big, port_unreachable
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header
from httpx_wireguard._wire.tcp import Flags
from httpx_wireguard._wire.udp import serialize_datagram
from tests.measures import deep_size
from tests.victim import FOE, FOE6, US, US6, WORK, Far, Victim


@pytest.fixture
def victim() -> Iterator[Victim]:
    host = Victim()
    yield host
    host.check_memory()
    host.check_friend()


def packet(protocol: int, body: bytes, source: bytes = FOE) -> bytes:
    return Ipv4Header(source, US, protocol, 20 + len(body)).serialize() + body


def fragment(offset: int, data: bytes, more: bool, identification: int, version: int, protocol: int = 99) -> bytes:
    if version == 4:
        header = Ipv4Header(FOE, US, protocol, 20 + len(data), identification=identification, dont_fragment=False)
        header.more_fragments, header.fragment_offset = more, offset
        return header.serialize() + data
    payload = Ipv6FragmentHeader(protocol, offset, more, identification).serialize() + data
    return Ipv6Header(FOE6, US6, PROTOCOL_FRAGMENT, len(payload)).serialize() + payload


both = pytest.mark.parametrize("version", [4, 6])


# -- fragments


@both
@pytest.mark.parametrize("kind", ["first of many", "tiny", "large", "overlapping", "shuffled", "last of many"])
def test_bombs_of_fragments_hold_a_bounded_number_of_bytes(victim: Victim, version: int, kind: str) -> None:
    """CVE-2018-5391 and its like; RFC 8504 5.3 lets a host bound this."""
    rng = random.Random(1)

    def next_one(number: int) -> bytes:
        match kind:
            case "first of many":
                return fragment(0, bytes(1200), True, number, version)
            case "tiny":
                return fragment(number % 4000 * 16, bytes(8), True, number // 4000, version)
            case "large":
                return fragment(8 + number % 40 * 1600, bytes(1600), True, number // 40, version)
            case "overlapping":
                return fragment(number % 100 * 8, bytes(16), True, number // 100, version)
            case "shuffled":
                offset = rng.randrange(8000) * 8
                return fragment(offset, bytes(rng.randrange(1, 20) * 8), rng.random() < 0.9, rng.randrange(80), version)
            case _:
                return fragment(65_000 - number % 1000 * 8, bytes(8), False, number // 1000, version)

    fragments = victim.stack._fragments
    for number in range(6000):
        victim.give(next_one(number))
        assert fragments.bytes_held <= MAX_BYTES
        assert len(fragments) <= MAX_DATAGRAMS
        victim.now += 0.0005
    assert deep_size(fragments, [victim.stack.drops]) < 2 * MAX_BYTES
    assert victim.work(next_one(6000)) < WORK
    victim.pass_time(REASSEMBLY_TIMEOUT)
    assert (len(fragments), fragments.bytes_held) == (0, 0)


@both
def test_a_datagram_comes_through_a_bomb_of_fragments(victim: Victim, version: int) -> None:
    """The oldest goes first, and the datagram that just grew is not among them."""
    socket = victim.stack.open_udp(9000)
    source, destination = (FOE, US) if version == 4 else (FOE6, US6)
    datagram = serialize_datagram(source, destination, 53, 9000, bytes(3000))
    for start in range(0, len(datagram), 1200):
        piece = datagram[start : start + 1200]
        victim.give(fragment(start, piece, start + 1200 < len(datagram), 70_000 % 2**16, version, PROTOCOL_UDP))
        victim.give(*(fragment(0, bytes(1200), True, start + number, version) for number in range(MAX_DATAGRAMS // 3)))
    received = socket.receive(victim.now)
    assert received is not None
    assert received[0] == bytes(3000)


def test_a_datagram_of_too_many_fragments_is_given_up(victim: Victim) -> None:
    for number in range(2 * MAX_FRAGMENTS):
        victim.give(fragment(8 + number * 16, bytes(8), True, 1, 4))
    assert victim.stack.drops["too many fragments in one datagram"] == 1
    assert victim.stack._fragments.bytes_held == 0


def test_a_tcp_header_cut_over_two_fragments_does_nothing_that_a_whole_one_would_not(victim: Victim) -> None:
    """RFC 1858: nobody here decides by the first fragment."""
    far = Far(victim, FOE, 6000)
    connection = far.connect()
    whole = far.segment(Flags.ACK, far.next, far.acknowledged, b"text")
    victim.give(fragment(0, whole[20:36], True, 9, 4, PROTOCOL_TCP))
    victim.give(fragment(16, whole[36:], False, 9, 4, PROTOCOL_TCP))
    assert connection.receive(99, victim.now) == b"text"


# -- ICMP


def test_packet_too_big_of_any_size_leaves_segments_of_a_useful_size(victim: Victim) -> None:
    """RFC 1191, RFC 5927 7: below the floor it is not believed, and what is not in flight is none of its business."""
    far = Far(victim, FOE, 6000)
    connection = far.connect()
    connection.send(bytes(10_000), victim.now)
    segments = [sent for sent in _drain(victim) if len(sent) > 1000]
    for mtu in (0, 1, 68, 296, MINIMUM_IPV4_MTU - 1, 60_000):
        for quoted in segments:
            victim.give(packet(PROTOCOL_ICMP, packet_too_big(4, mtu, quoted).serialize()))
    assert victim.stack.path_mtu(FOE) == MINIMUM_IPV4_MTU
    assert connection.sender.mss >= MINIMUM_IPV4_MTU - 40 - 12
    assert len(connection.sender.queue) == 10_000


def test_a_storm_of_packet_too_big_does_not_multiply_what_is_sent(victim: Victim) -> None:
    """Each quotes something in flight; only one that makes the path smaller changes anything."""
    far = Far(victim, FOE, 6000)
    connection = far.connect()
    connection.send(bytes(100_000), victim.now)
    segments = [sent for sent in _drain(victim) if len(sent) > 1000]
    before = victim.sent
    for number in range(1000):
        quoted = segments[number % len(segments)]
        victim.give(packet(PROTOCOL_ICMP, packet_too_big(4, 1000, quoted).serialize()))
    assert victim.sent - before <= 2 * 15_000 // 900
    assert connection.state is State.ESTABLISHED
    connection.abort(victim.now)
    victim.pump()


def test_forged_errors_do_not_end_connections_or_fill_memory(victim: Victim) -> None:
    """RFC 5927 4.1: the quoted sequence number has to be in flight; even then an open connection goes on."""
    rng = random.Random(1)
    far = Far(victim, FOE, 6000)
    connection = far.connect()
    connection.send(b"in flight", victim.now)
    (genuine,) = _drain(victim)
    for _ in range(3000):
        quoted = bytearray(genuine)
        if rng.random() < 0.9:
            quoted[24:28] = rng.randbytes(4)
        if rng.random() < 0.2:
            quoted[16:20] = rng.randbytes(4)
        body = bytes(quoted[: rng.choice([20, 28, 40])])
        kind, code = rng.choice([3, 4, 5, 11, 12]), rng.randrange(16)
        message = IcmpMessage(kind, code, rng.getrandbits(32), body)
        victim.give(packet(PROTOCOL_ICMP, message.serialize(), bytes([10, 8, *rng.randbytes(2)])))
    assert connection.state is State.ESTABLISHED
    assert len(victim.stack._path_mtu) <= MAX_PATHS
    assert connection.hard_error_hint is None or len(connection.hard_error_hint) < 200


@pytest.mark.parametrize("kind", ["echo", "datagram", "segment", "protocol", "error about an error"])
def test_replies_to_what_nobody_asked_for_are_limited_together(victim: Victim, kind: str) -> None:
    """RFC 1812 4.3.2.8: and an ICMP error is never answered (RFC 1122 3.2.2)."""
    error = port_unreachable(4, packet(PROTOCOL_UDP, bytes(8))).serialize()
    body, protocol = {
        "echo": (echo_request(4, 1, 2, bytes(1000)).serialize(), PROTOCOL_ICMP),
        "datagram": (serialize_datagram(FOE, US, 53, 9000, bytes(1000)), PROTOCOL_UDP),
        "segment": (Far(victim, FOE, 6000).segment(Flags.ACK, 1, 1)[20:], PROTOCOL_TCP),
        "protocol": (bytes(1000), 99),
        "error about an error": (error, PROTOCOL_ICMP),
    }[kind]
    before = victim.sent
    for _ in range(20):
        for _ in range(100):
            victim.give(packet(protocol, body))
        victim.now += 0.05
    expected = REPLIES_PER_SECOND if kind in ("echo", "datagram", "segment") else 0
    assert expected <= victim.sent - before <= 2 * expected
    victim.inbox.clear()


# -- sockets


def test_a_udp_socket_that_nobody_reads_holds_a_bounded_number_of_bytes(victim: Victim) -> None:
    """Empty datagrams cost too."""
    for size in (0, 1, 1000):
        socket = victim.stack.open_udp(9000)
        for _ in range(3000):
            victim.give(packet(PROTOCOL_UDP, serialize_datagram(FOE, US, 53, 9000, bytes(size))))
        assert deep_size(socket, [victim.stack]) < 2 * RECEIVE_LIMIT
        socket.close(victim.now)


def test_a_ping_that_nobody_reads_holds_a_bounded_number_of_replies(victim: Victim) -> None:
    socket = victim.stack.open_ping(FOE)
    for number in range(1000):
        reply = echo_reply(4, echo_request(4, socket.identifier, number, bytes(1300)))
        victim.give(packet(PROTOCOL_ICMP, reply.serialize()))
    assert deep_size(socket, [victim.stack]) < QUEUE_LIMIT * 2000
    socket.close(victim.now)


def _drain(victim: Victim) -> list[bytes]:
    """What the victim has to send, as packets."""
    return [sent for _, packets in victim.stack.packets_to_send(victim.now) for sent in packets]
