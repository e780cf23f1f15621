"""UDP sockets inside the tunnel (RFC 768, RFC 1122 4.1)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import ConnectionRefused, ConnectionReset, MessageTooLong, NoRoute, TunnelClosed
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.udp import RECEIVE_LIMIT, UdpSocket
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_UDP
from httpx_wireguard._wire.icmp import port_unreachable
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.udp import UdpHeader, datagram_is_intact, serialize_datagram
from tests.simnet import SeededEntropy

US, THEM, OTHER = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), bytes([10, 0, 0, 9])
THEM6 = b"\xfd" + bytes(14) + b"\x01"


def socket(port: int = 9000, remote: tuple[bytes, int] | None = None) -> tuple[Stack, UdpSocket]:
    stack = Stack((US,), 1420, SeededEntropy(1), 1 << 17)
    return stack, stack.open_udp(port, remote)


def give(stack: Stack, payload: bytes, source: bytes = THEM, ports: tuple[int, int] = (53, 9000)) -> None:
    datagram = serialize_datagram(source, US, *ports, payload)
    stack.receive_packets([Ipv4Header(source, US, PROTOCOL_UDP, 20 + len(datagram)).serialize() + datagram], 0.0)


def sent(stack: Stack) -> list[bytes]:
    return [packet for _, packets in stack.packets_to_send(0.0) for packet in packets]


def test_a_datagram_leaves_with_ports_length_and_checksum() -> None:
    stack, sender = socket(remote=(THEM, 53))
    sender.send(b"question", 0.0)
    (packet,) = sent(stack)
    ip, header = Ipv4Header.parse(packet), UdpHeader.parse(packet, 20)
    assert (ip.source, ip.destination, ip.protocol, ip.total_length) == (US, THEM, PROTOCOL_UDP, 36)
    assert (header.source_port, header.destination_port, packet[28:]) == (9000, 53, b"question")
    assert header.checksum != 0
    assert datagram_is_intact(US, THEM, packet[20:])


def test_an_unconnected_socket_sends_where_it_is_told() -> None:
    stack, sender = socket()
    sender.send(b"x", 0.0, (OTHER, 7))
    assert Ipv4Header.parse(sent(stack)[0]).destination == OTHER
    with pytest.raises(ConnectionReset, match="neither connected nor told"):
        sender.send(b"x", 0.0)


def test_datagrams_come_with_their_source_and_one_by_one() -> None:
    stack, receiver = socket()
    give(stack, b"first")
    give(stack, b"", source=OTHER, ports=(7, 9000))
    assert receiver in stack.take_woken()
    assert receiver.readable
    assert receiver.receive(0.0) == (b"first", ("10.0.0.1", 53))
    assert receiver.receive(0.0) == (b"", ("10.0.0.9", 7))
    assert receiver.receive(0.0) is None
    assert not receiver.readable


def test_a_connected_socket_hears_nobody_else() -> None:
    """RFC 1122 4.1.3.5; a forged answer needs the right address and port."""
    stack, receiver = socket(remote=(THEM, 53))
    give(stack, b"forged", source=OTHER)
    give(stack, b"forged", ports=(54, 9000))
    assert not receiver.readable
    give(stack, b"true")
    assert receiver.receive(0.0) == (b"true", ("10.0.0.1", 53))


def test_the_largest_datagram_fills_the_mtu() -> None:
    stack, sender = socket(remote=(THEM, 53))
    sender.send(bytes(1392), 0.0)
    assert len(sent(stack)[0]) == 1420
    with pytest.raises(MessageTooLong, match="leaves room for 1392"):
        sender.send(bytes(1393), 0.0)


def test_a_family_without_address_has_no_route() -> None:
    _, sender = socket()
    with pytest.raises(NoRoute):
        sender.send(b"x", 0.0, (THEM6, 53))


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1000)])
def test_unread_datagrams_are_limited_however_small_they_are(payload: bytes) -> None:
    stack, receiver = socket()
    for _ in range(RECEIVE_LIMIT // 200):
        give(stack, payload)
    held = 0
    while receiver.receive(0.0) is not None:
        held += 1
    assert held < 1100
    assert stack.drops["UDP socket's queue full"] == RECEIVE_LIMIT // 200 - held
    give(stack, b"room again")
    assert receiver.receive(0.0) is not None


def test_port_unreachable_reaches_a_connected_socket_once() -> None:
    """RFC 1122 4.1.3.3."""
    stack, sender = socket(remote=(THEM, 53))
    sender.send(b"question", 0.0)
    error = port_unreachable(4, sent(stack)[0]).serialize()
    stack.receive_packets([Ipv4Header(THEM, US, PROTOCOL_ICMP, 20 + len(error)).serialize() + error], 0.0)
    assert sender.readable
    with pytest.raises(ConnectionRefused, match="port unreachable"):
        sender.receive(0.0)
    assert sender.receive(0.0) is None


def test_port_unreachable_from_a_stranger_is_ignored() -> None:
    stack, sender = socket(remote=(THEM, 53))
    forged = serialize_datagram(US, THEM, 9000, 54, b"question")
    quoted = Ipv4Header(US, THEM, PROTOCOL_UDP, 20 + len(forged)).serialize() + forged
    error = port_unreachable(4, quoted).serialize()
    stack.receive_packets([Ipv4Header(THEM, US, PROTOCOL_ICMP, 20 + len(error)).serialize() + error], 0.0)
    assert not sender.readable


def test_a_closed_socket_neither_sends_nor_receives() -> None:
    stack, closed = socket()
    give(stack, b"unread")
    closed.close(0.0)
    closed.close(0.0)
    assert closed in stack.take_woken()
    assert closed.receive(0.0) is None
    with pytest.raises(ConnectionReset, match="closed"):
        closed.send(b"x", 0.0, (THEM, 53))


def test_the_tunnels_end_is_told_to_every_reader() -> None:
    stack, receiver = socket()
    stack.close(0.0, TunnelClosed("the tunnel is closed"))
    for _ in range(2):
        assert receiver.readable
        with pytest.raises(TunnelClosed):
            receiver.receive(0.0)
