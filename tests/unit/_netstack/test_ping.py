"""Echo sockets (RFC 792, RFC 4443 4.1)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import ConnectionReset, DestinationUnreachable, MessageTooLong, NoRoute, TunnelClosed
from httpx_wireguard._netstack.ping import QUEUE_LIMIT, PingSocket
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage, echo_reply, port_unreachable
from httpx_wireguard._wire.ipv4 import Ipv4Header
from tests.simnet import SeededEntropy

US, THEM, OTHER = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]), bytes([10, 0, 0, 9])
US6, THEM6 = b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01"


def pinging(remote: bytes = THEM) -> tuple[Stack, PingSocket]:
    stack = Stack((US, US6), 1420, SeededEntropy(1), 1 << 17)
    return stack, stack.open_ping(remote)


def sent(stack: Stack) -> list[bytes]:
    return [packet for _, packets in stack.packets_to_send(0.0) for packet in packets]


def give(stack: Stack, message: IcmpMessage, source: bytes = THEM) -> None:
    body = message.serialize()
    stack.receive_packets([Ipv4Header(source, US, PROTOCOL_ICMP, 20 + len(body)).serialize() + body], 0.0)


def test_a_request_carries_the_sockets_identifier() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    (packet,) = sent(stack)
    message = IcmpMessage.parse(packet[20:])
    assert (message.type, message.identifier, message.sequence, message.body) == (8, ping.identifier, 3, b"data")


def test_an_ipv6_request_has_its_checksum_over_the_pseudo_header() -> None:
    """RFC 4443 2.3."""
    stack, ping = pinging(THEM6)
    ping.send(3, b"data", 0.0)
    (packet,) = sent(stack)
    total = pseudo_header_sum(US6, THEM6, PROTOCOL_ICMPV6, len(packet) - 40)
    assert IcmpMessage.parse(packet[40:], total).type == 128


def test_a_reply_reaches_its_socket() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    give(stack, echo_reply(4, IcmpMessage.parse(sent(stack)[0][20:])))
    assert ping in stack.take_woken()
    assert ping.readable
    assert ping.receive(0.0) == (3, b"data")
    assert ping.receive(0.0) is None


def test_a_reply_from_another_host_or_for_another_socket_is_ignored() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    reply = echo_reply(4, IcmpMessage.parse(sent(stack)[0][20:]))
    give(stack, reply, source=OTHER)
    reply.rest_of_header ^= 1 << 16
    give(stack, reply)
    assert not ping.readable


def test_unread_replies_are_limited() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    reply = echo_reply(4, IcmpMessage.parse(sent(stack)[0][20:]))
    for _ in range(QUEUE_LIMIT + 10):
        give(stack, reply)
    assert sum(ping.receive(0.0) is not None for _ in range(2 * QUEUE_LIMIT)) == QUEUE_LIMIT


def test_unreachable_is_raised_once() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    error = port_unreachable(4, sent(stack)[0])
    error.code = 1
    give(stack, error, source=OTHER)
    assert ping.readable
    with pytest.raises(DestinationUnreachable, match=r"ping 10\.0\.0\.1: host unreachable, says 10\.0\.0\.9"):
        ping.receive(0.0)
    assert ping.receive(0.0) is None


def test_the_largest_request_fills_the_mtu() -> None:
    stack, ping = pinging()
    ping.send(1, bytes(1392), 0.0)
    assert len(sent(stack)[0]) == 1420
    with pytest.raises(MessageTooLong, match="leaves room for 1392"):
        ping.send(1, bytes(1393), 0.0)


def test_a_family_without_address_has_no_route() -> None:
    with pytest.raises(NoRoute):
        Stack((US,), 1420, SeededEntropy(1), 1 << 17).open_ping(THEM6)


def test_a_closed_socket_sends_nothing_and_hears_nothing() -> None:
    stack, ping = pinging()
    ping.send(3, b"data", 0.0)
    reply = echo_reply(4, IcmpMessage.parse(sent(stack)[0][20:]))
    ping.close(0.0)
    ping.close(0.0)
    give(stack, reply)
    assert not ping.readable
    with pytest.raises(ConnectionReset):
        ping.send(4, b"", 0.0)


def test_the_tunnels_end_is_told_to_every_reader() -> None:
    stack, ping = pinging()
    stack.close(0.0, TunnelClosed("the tunnel is closed"))
    for _ in range(2):
        with pytest.raises(TunnelClosed):
            ping.receive(0.0)
