"""LISTEN: half-open connections, the backlog, accept (RFC 9293 3.10.7.2)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import TunnelClosed
from httpx_wireguard._netstack.listener import HALF_OPEN_LIMIT, TcpListener
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader
from tests.simnet import SeededEntropy

US, THEM = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])


def listening(backlog: int = 128) -> tuple[Stack, TcpListener]:
    stack = Stack((US,), 1420, SeededEntropy(1), 1 << 17)
    return stack, stack.listen_tcp(80, backlog)


def give(stack: Stack, flags: Flags, port: int, sequence: int, acknowledgment: int = 0, now: float = 0.0) -> None:
    header = TcpHeader(port, 80, sequence, acknowledgment % 2**32, int(flags), 65535)
    segment = header.serialize_segment(THEM, US)
    stack.receive_packets([Ipv4Header(THEM, US, PROTOCOL_TCP, 20 + len(segment)).serialize() + segment], now)


def answers(stack: Stack, now: float = 0.0) -> list[TcpHeader]:
    return [TcpHeader.parse(packet, 20) for _, packets in stack.packets_to_send(now) for packet in packets]


def connect(stack: Stack, port: int) -> None:
    give(stack, Flags.SYN, port, 100)
    (answer,) = answers(stack)
    give(stack, Flags.ACK, port, 101, answer.sequence + 1)


def test_accept_gives_connections_in_order_and_none_while_there_is_none() -> None:
    stack, listener = listening()
    assert listener.accept(0.0) is None
    connect(stack, 5001)
    connect(stack, 5002)
    assert listener.readable
    ports = [connection.remote[1] for _ in range(2) if (connection := listener.accept(0.0)) is not None]
    assert ports == [5001, 5002]
    assert listener.accept(0.0) is None


def test_a_finished_handshake_wakes_the_listener() -> None:
    stack, listener = listening()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    assert listener not in stack.take_woken()
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    assert listener in stack.take_woken()


def test_a_full_backlog_drops_syns() -> None:
    """The far side sends it again; accept has made room by then."""
    stack, listener = listening(backlog=2)
    for port in (5001, 5002):
        connect(stack, port)
    give(stack, Flags.SYN, 5003, 100)
    assert answers(stack) == []
    assert stack.drops["listener's backlog full"] == 1
    listener.accept(0.0)
    connect(stack, 5003)


def test_half_open_connections_are_limited() -> None:
    """RFC 4987: a flood of SYNs must not fill memory."""
    stack, listener = listening()
    for port in range(10_000, 10_000 + HALF_OPEN_LIMIT + 50):
        give(stack, Flags.SYN, port, 100)
    assert len(answers(stack)) == HALF_OPEN_LIMIT
    assert stack.connection_count == listener.half_open == HALF_OPEN_LIMIT


@pytest.mark.parametrize("end", ["established", "reset", "timeout"])
def test_a_half_open_connection_that_ends_makes_room(end: str) -> None:
    stack, listener = listening()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    if end == "established":
        give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    elif end == "reset":
        give(stack, Flags.RST, 5001, 101)
    else:
        while (due := stack.next_timeout()) is not None:
            stack.handle_timeout(due)
            answers(stack, due)
    assert listener.half_open == 0
    assert stack.connection_count == (end == "established")


def test_a_closed_listener_resets_what_nobody_accepted() -> None:
    stack, listener = listening()
    connect(stack, 5001)
    listener.close(0.0)
    assert [answer.flags for answer in answers(stack)] == [Flags.RST | Flags.ACK]
    assert stack.connection_count == 0
    with pytest.raises(TunnelClosed):
        listener.accept(0.0)


def test_a_closed_listener_resets_handshakes_that_finish_later() -> None:
    stack, listener = listening()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    listener.close(0.0)
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    assert [answer.flags for answer in answers(stack)] == [Flags.RST | Flags.ACK]
    assert stack.connection_count == 0


def test_a_closed_listener_refuses_syns() -> None:
    stack, listener = listening()
    listener.close(0.0)
    listener.close(0.0)
    give(stack, Flags.SYN, 5001, 100)
    assert [answer.flags for answer in answers(stack)] == [Flags.RST | Flags.ACK]


def test_accept_tells_why_the_tunnel_was_closed() -> None:
    stack, listener = listening()
    stack.close(0.0, TunnelClosed("the process forked"))
    assert listener.readable
    with pytest.raises(TunnelClosed, match="the process forked"):
        listener.accept(0.0)
