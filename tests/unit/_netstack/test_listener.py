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


def give(
    stack: Stack,
    flags: Flags,
    port: int,
    sequence: int,
    acknowledgment: int = 0,
    now: float = 0.0,
    payload: bytes = b"",
) -> None:
    header = TcpHeader(port, 80, sequence, acknowledgment % 2**32, int(flags), 65535)
    segment = header.serialize_segment(THEM, US, payload)
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
    """RFC 4987: a flood of SYNs must not fill memory; those beyond the limit are answered with a cookie."""
    stack, listener = listening()
    for port in range(10_000, 10_000 + HALF_OPEN_LIMIT + 50):
        give(stack, Flags.SYN, port, 100)
    assert len(answers(stack)) == HALF_OPEN_LIMIT + 50
    assert stack.connection_count == listener.half_open == HALF_OPEN_LIMIT


def flooded() -> tuple[Stack, TcpListener]:
    """A listener with as many half-open connections as it keeps."""
    stack, listener = listening()
    for port in range(10_000, 10_000 + HALF_OPEN_LIMIT):
        give(stack, Flags.SYN, port, 100)
    answers(stack)
    return stack, listener


def test_a_client_connects_and_sends_at_once_while_a_flood_lasts() -> None:
    """RFC 4987 3.6: the acknowledgment of a cookie makes the connection."""
    stack, listener = flooded()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    assert stack.connection_count == HALF_OPEN_LIMIT
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    connection = listener.accept(0.0)
    assert connection is not None
    assert connection.remote == ("10.0.0.1", 5001)
    assert listener.half_open == HALF_OPEN_LIMIT
    connection.send(b"hello", 0.0)
    (data,) = answers(stack)
    assert (data.sequence, data.acknowledgment) == ((answer.sequence + 1) % 2**32, 101)


def test_a_connection_by_cookie_has_not_measured_its_path() -> None:
    """RFC 6298 2.1: nobody knows when the SYN,ACK left, and a round trip of 0 s would be wrong."""
    stack, listener = flooded()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    connection = listener.accept(0.0)
    assert connection is not None
    assert connection.sender.rtt.smoothed is None
    assert connection.receiver.rtt is None
    assert connection.next_timeout() is None


def test_a_lost_acknowledgment_of_a_cookie_is_made_up_for_by_the_first_data() -> None:
    stack, listener = flooded()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1, payload=b"GET /")
    connection = listener.accept(0.0)
    assert connection is not None
    assert connection.receive(99, 0.0) == b"GET /"


@pytest.mark.parametrize("difference", [1, -1, 1 << 29])
def test_a_made_up_acknowledgment_of_a_cookie_is_reset(difference: int) -> None:
    """RFC 9293 3.10.7.2 second."""
    stack, listener = flooded()
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1 + difference)
    assert [segment.flags for segment in answers(stack)] == [Flags.RST]
    assert listener.accept(0.0) is None


def test_an_acknowledgment_of_a_cookie_waits_while_the_backlog_is_full() -> None:
    stack, listener = listening(backlog=1)
    for port in range(10_000, 10_000 + HALF_OPEN_LIMIT):
        give(stack, Flags.SYN, port, 100)
    first = answers(stack)[0]
    give(stack, Flags.SYN, 5001, 100)
    (answer,) = answers(stack)
    give(stack, Flags.ACK, 10_000, 101, first.sequence + 1)
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1)
    assert stack.drops["listener's backlog full"] == 1
    assert listener.accept(0.0) is not None
    give(stack, Flags.ACK, 5001, 101, answer.sequence + 1, payload=b"again")
    assert listener.accept(0.0) is not None


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
