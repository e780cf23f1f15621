"""The engine: WireGuard and the IP host put together, as a driver sees it."""

from __future__ import annotations

from typing import Any

import pytest

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import (
    AddressInUse,
    ConnectionRefused,
    EndpointError,
    EndpointUnreachable,
    HandshakeFailed,
    HandshakeTimeout,
    NoRoute,
    TunnelClosed,
)
from httpx_wireguard._netstack.tcp import State
from httpx_wireguard._wireguard.crypto import PrivateKey
from tests.simnet import SeededEntropy

CLIENT, SERVER = b"client".ljust(32, b"."), b"server".ljust(32, b".")
CLIENT_AT, SERVER_AT = ("192.0.2.1", 40000), ("192.0.2.2", 51820)


def client(*, allowed: str = "10.0.0.0/24, fd00::/64", psk: bytes | None = None, locate: bool = True) -> Engine:
    peer = PeerConfig(PrivateKey(SERVER).public, allowed, "192.0.2.2:51820", psk)
    engine = Engine(Config(CLIENT, ("10.0.0.2/24", "fd00::2/64"), (peer,)), SeededEntropy(1))
    if locate:
        engine.device.peers[0].endpoint = SERVER_AT
    return engine


def server(*, psk: bytes | None = None) -> Engine:
    peer = PeerConfig(PrivateKey(CLIENT).public, "10.0.0.2, fd00::2", None, psk)
    return Engine(Config(SERVER, ("10.0.0.1/24", "fd00::1/64"), (peer,)), SeededEntropy(2))


def carry(sender: Engine, receiver: Engine, source: tuple[Any, ...], now: float) -> int:
    """Deliver everything that `sender` has to send; returns how many runs that were."""
    carried = 0
    while runs := sender.datagrams_to_send(now):
        for run in runs:
            receiver.receive_datagrams(memoryview(b"".join(run.buffers)), run.segment_size, source, now)
            carried += 1
    return carried


def settle(one: Engine, other: Engine, now: float) -> None:
    while carry(one, other, CLIENT_AT, now) + carry(other, one, SERVER_AT, now):
        pass


def give_up(engine: Engine, now: float = 0.0) -> float:
    """Run the timers until nothing more happens; nobody answers."""
    while (due := engine.next_timeout()) is not None and due < 300.0:
        now = max(now, due)
        engine.handle_timeout(now)
        engine.datagrams_to_send(now)
    return now


# -- verbs


def test_an_open_carries_the_handshake_and_then_the_syn() -> None:
    a, b = client(), server()
    listener = b.listen_tcp(80)
    connection = a.open_tcp(("10.0.0.1", 80), 0.0)
    settle(a, b, 0.0)
    assert connection.state is State.ESTABLISHED
    assert connection in a.take_woken()
    assert listener in b.take_woken()
    served = listener.accept(0.0)
    assert served is not None
    connection.send(b"hello", 0.0)
    settle(a, b, 0.0)
    assert served.receive(99, 0.0) == b"hello"


def test_an_open_may_choose_its_local_address() -> None:
    assert client().open_tcp(("10.0.0.1", 80), 0.0, "10.0.0.2").local[0] == "10.0.0.2"
    with pytest.raises(NoRoute):
        client().open_tcp(("10.0.0.1", 80), 0.0, "10.0.0.3")


def test_a_mapped_address_is_the_ipv4_address() -> None:
    """RFC 4291 2.5.5.2: it must not go around the IPv4 AllowedIPs."""
    assert client().open_tcp(("::ffff:10.0.0.1", 80), 0.0).remote == ("10.0.0.1", 80)
    with pytest.raises(NoRoute):
        client().open_tcp(("::ffff:10.9.9.9", 80), 0.0)


def test_datagrams_go_both_ways() -> None:
    a, b = client(), server()
    question, answer = a.open_udp(remote=("fd00::1", 53)), b.open_udp(53)
    a.send_udp(question, b"question", 0.0)
    settle(a, b, 0.0)
    received = answer.receive(0.0)
    assert received is not None
    b.send_udp(answer, b"answer", 0.0, received[1])
    settle(a, b, 0.0)
    assert question.receive(0.0) == (b"answer", ("fd00::1", 53))


def test_an_echo_comes_back() -> None:
    a, b = client(), server()
    ping = a.open_ping("10.0.0.1")
    ping.send(1, b"data", 0.0)
    settle(a, b, 0.0)
    assert ping.receive(0.0) == (1, b"data")


def test_a_listening_port_is_claimed_once() -> None:
    engine = server()
    engine.listen_tcp(80)
    with pytest.raises(AddressInUse):
        engine.listen_tcp(80)


def test_a_refused_connection_says_who_refused() -> None:
    a, b = client(), server()
    connection = a.open_tcp(("10.0.0.1", 81), 0.0)
    settle(a, b, 0.0)
    assert isinstance(connection.error, ConnectionRefused)
    assert "10.0.0.1 port 81" in str(connection.error)


def test_an_idle_tunnel_falls_silent() -> None:
    """Paper 6.5 and RFC 9293 MUST-25: after the last keepalive nothing is due but the erasure of keys."""
    a, b = client(), server()
    b.listen_tcp(80)
    a.open_tcp(("10.0.0.1", 80), 0.0)
    settle(a, b, 0.0)
    now, last = 0.0, 0.0
    while (due := min(filter(None, (a.next_timeout(), b.next_timeout())), default=None)) is not None and now < 1e6:
        now = max(now, due)
        for engine in (a, b):
            engine.handle_timeout(now)
        if carry(a, b, CLIENT_AT, now) + carry(b, a, SERVER_AT, now):
            last = now
    assert last <= 15.0
    assert a.next_timeout() is None


# -- routes and endpoints


def test_an_address_that_no_peer_covers_has_no_route() -> None:
    with pytest.raises(NoRoute, match=r"no peer's AllowedIPs cover 10\.9\.9\.9; add it to AllowedIPs =") as caught:
        client().open_tcp(("10.9.9.9", 80), 0.0)
    assert caught.value.destination == "10.9.9.9"


@pytest.mark.parametrize("verb", ["tcp", "udp", "ping", "send"])
def test_every_verb_checks_the_route(verb: str) -> None:
    engine = client()
    with pytest.raises(NoRoute):
        if verb == "tcp":
            engine.open_tcp(("10.9.9.9", 80), 0.0)
        elif verb == "udp":
            engine.open_udp(0, ("10.9.9.9", 80))
        elif verb == "ping":
            engine.open_ping("10.9.9.9")
        else:
            engine.send_udp(engine.open_udp(), b"x", 0.0, ("10.9.9.9", 80))


def test_a_peer_that_was_never_heard_of_has_no_endpoint() -> None:
    with pytest.raises(EndpointError, match=r"the peer for 10\.0\.0\.2 has no Endpoint = and has not been heard of"):
        server().open_tcp(("10.0.0.2", 80), 0.0)


def test_packets_that_no_peer_covers_are_counted() -> None:
    a, b = client(), server()
    listener = b.listen_tcp(80)
    a.open_tcp(("10.0.0.1", 80), 0.0)
    settle(a, b, 0.0)
    assert listener.accept(0.0) is not None
    udp = b.open_udp()
    udp.send(b"x", 0.0, (bytes([10, 0, 0, 77]), 9))  # past the engine's check
    b.datagrams_to_send(0.0)
    assert b.stack.drops["no route"] == 1


# -- diagnosis


def test_silence_is_explained_with_the_number_of_tries() -> None:
    engine = client()
    connection = engine.open_tcp(("10.0.0.1", 80), 0.0)
    engine.datagrams_to_send(0.0)
    give_up(engine)
    assert isinstance(connection.error, HandshakeTimeout)
    assert connection.error.endpoint == "192.0.2.2:51820"
    assert connection.error.attempts > 10
    assert "is down or unreachable, or does not know this key" in str(connection.error)


def test_an_answer_that_does_not_decrypt_is_told_from_silence() -> None:
    a, b = client(psk=b"1" * 32), server(psk=b"2" * 32)
    a.open_tcp(("10.0.0.1", 80), 0.0)
    settle(a, b, 0.0)
    error = a.explain_silence("10.0.0.1", 0.0)
    assert isinstance(error, HandshakeFailed)
    assert "compare PresharedKey" in str(error)


def test_a_datagram_that_comes_back_is_told_from_silence() -> None:
    engine = client()
    engine.open_tcp(("10.0.0.1", 80), 0.0)
    engine.datagrams_to_send(0.0)
    engine.on_send_error(SERVER_AT, ConnectionRefusedError(111, "Connection refused"))
    error = engine.explain_silence("10.0.0.1", 1.0)
    assert isinstance(error, EndpointUnreachable)
    assert "192.0.2.2:51820 come back" in str(error)
    assert "Connection refused" in str(error)


def test_with_a_session_silence_is_not_the_tunnels_fault() -> None:
    a, b = client(), server()
    a.open_tcp(("10.0.0.1", 81), 0.0)
    settle(a, b, 0.0)
    assert a.explain_silence("10.0.0.1", 0.0) is None
    assert a.explain_silence("10.9.9.9", 0.0) is None


def test_giving_up_ends_only_what_waits_for_that_peer() -> None:
    other = b"other".ljust(32, b".")
    peers = (
        PeerConfig(PrivateKey(SERVER).public, "10.0.0.0/24", "192.0.2.2:51820"),
        PeerConfig(PrivateKey(other).public, "10.1.0.0/24", "192.0.2.3:51820"),
    )
    engine = Engine(Config(CLIENT, ("10.0.0.2/16",), peers), SeededEntropy(1))
    engine.device.peers[0].endpoint = SERVER_AT
    engine.device.peers[1].endpoint = ("192.0.2.3", 51820)
    early = engine.open_tcp(("10.0.0.1", 80), 0.0)
    engine.datagrams_to_send(0.0)
    while early.error is None:
        due = engine.next_timeout()
        assert due is not None
        if due > 50.0 and engine.stack.connection_count == 1:
            late = engine.open_tcp(("10.1.0.1", 80), 50.0)
        engine.handle_timeout(due)
        engine.datagrams_to_send(due)
    assert isinstance(early.error, HandshakeTimeout)
    assert late.state is State.SYN_SENT


# -- close


def test_close_resets_connections_and_wakes_everybody() -> None:
    a, b = client(), server()
    listener = b.listen_tcp(80)
    connection = a.open_tcp(("10.0.0.1", 80), 0.0)
    settle(a, b, 0.0)
    served = listener.accept(0.0)
    assert served is not None
    udp = a.open_udp()
    a.take_woken()
    a.close(1.0)
    assert {connection, udp} <= set(a.take_woken())
    carry(a, b, CLIENT_AT, 1.0)
    assert served.state is State.CLOSED
    with pytest.raises(TunnelClosed):
        connection.receive(9, 1.0)


def test_every_verb_fails_after_close_with_its_reason() -> None:
    engine = client()
    reason = TunnelClosed("the process forked")
    engine.close(0.0, reason)
    engine.close(0.0)  # the first reason stays
    for verb in (
        lambda: engine.open_tcp(("10.0.0.1", 80), 0.0),
        lambda: engine.listen_tcp(80),
        lambda: engine.open_udp(),
        lambda: engine.open_ping("10.0.0.1"),
    ):
        with pytest.raises(TunnelClosed, match="the process forked"):
            verb()


def test_nothing_is_sent_without_keys() -> None:
    a, b = client(), server()
    a.open_tcp(("10.0.0.1", 81), 0.0)
    settle(a, b, 0.0)
    a.close(1.0)
    a.datagrams_to_send(1.0)
    a.destroy_keys()
    assert a.datagrams_to_send(2.0) == []
    assert a.next_timeout() is None
