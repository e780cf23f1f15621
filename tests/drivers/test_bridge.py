"""Sockets with a descriptor over connections inside the tunnel: next to real TCP, under load, and at every end."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import random
import select
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard import Tunnel, TunnelClosed
from httpx_wireguard._bridge import CHECK, CHUNK, LINGER, Bridge, Bridges, ThreadBridges, thread_bridges
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.tcp import WRITE_LOW_WATER, State, TcpConnection
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard._waiting import run
from httpx_wireguard.testing import IPV4, IPV6, WireGuardPeer
from tests.measures import bytecodes
from tests.simnet import Network
from tests.tcp_net import StackHost

PATIENCE = 20.0  # seconds after which something that should have happened has not
LINUX = sys.platform.startswith("linux")

pytestmark = pytest.mark.skipif(not LINUX, reason="what a socket pair does at its ends is Linux' here")


# -- one bridge, in virtual time, next to a real TCP connection


def is_over(bridge: Bridge) -> bool:
    return bridge.finished


class BridgeHost(StackHost):
    """It serves a bridge as a driver does."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.bridge: Bridge | None = None
        self.again = False
        self._buffer = memoryview(bytearray(CHUNK))

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        if self.bridge is not None and not is_over(self.bridge):
            self.bridge.on_ready(3)
            self.again = self.bridge.step(self._buffer, now)
            if is_over(self.bridge):
                self.bridge.far.close()
        return super().to_send(now)

    def next_timeout(self) -> float | None:
        times = [super().next_timeout(), None if self.bridge is None else self.bridge.check_at]
        return min((t for t in times if t is not None), default=None)


class Bridged:
    """A user's socket, a bridge, TCP over a simulated network, and the far side's connection."""

    def __init__(self) -> None:
        hosts = [BridgeHost(0), BridgeHost(1)]
        self.network = Network(hosts)
        listener = hosts[1].stack.listen_tcp(80)
        self.connection = hosts[0].connect(4, 80, self.network.now)
        self.network.run(lambda: self.connection.connected and listener.readable)
        accepted = listener.accept(self.network.now)
        assert accepted is not None
        self.peer: TcpConnection = accepted
        self.user, far = socket.socketpair()
        self.user.setblocking(False)
        far.setblocking(False)
        self.bridge = hosts[0].bridge = Bridge(self.connection, self.user, far, lambda bridge: None)
        self.host = hosts[0]

    def settle(self) -> None:
        for _ in range(3):
            self.network.run(lambda: False, 0.1)  # the bridge acts on what users did

    def user_send(self, data: bytes) -> object:
        return sent(lambda: self.user.send(data))

    def user_receive(self, size: int, expected: object = None) -> object:
        return received(lambda: self.user.recv(size))

    def user_shut(self) -> None:
        shut(self.user)

    def user_close(self) -> None:
        self.user.close()

    def peer_send(self, data: bytes) -> object:
        return sent(lambda: self.peer.send(data, self.network.now))

    def peer_receive(self, size: int, expected: object = None) -> object:
        def receive() -> bytes:
            data = self.peer.receive(size, self.network.now)
            if not data and not self.peer.at_eof:
                raise BlockingIOError
            return data

        return received(receive)

    def peer_shut(self) -> None:
        self.peer.shutdown_write(self.network.now)

    def peer_close(self) -> None:
        self.peer.close(self.network.now)

    def peer_reset(self) -> None:
        self.peer.abort(self.network.now)

    def end(self) -> None:
        self.user.close()
        self.bridge.far.close()


class Real:
    """The same over the loopback interface: the model."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.user = socket.create_connection(server.getsockname())
            self.peer, _ = server.accept()
        for sock in self.user, self.peer:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def user_send(self, data: bytes) -> object:
        return sent(lambda: self.user.send(data))

    def user_receive(self, size: int, expected: object = None) -> object:
        return self._receive(self.user, size, expected)

    def user_shut(self) -> None:
        shut(self.user)

    def user_close(self) -> None:
        self.user.close()

    def peer_send(self, data: bytes) -> object:
        return sent(lambda: self.peer.send(data))

    def peer_receive(self, size: int, expected: object = None) -> object:
        return self._receive(self.peer, size, expected)

    def peer_shut(self) -> None:
        shut(self.peer)

    def peer_close(self) -> None:
        self.peer.close()

    def peer_reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    def _receive(self, sock: socket.socket, size: int, expected: object) -> object:
        if expected != "nothing":  # the kernel may need a moment
            select.select([sock], [], [], PATIENCE)
        return received(lambda: sock.recv(size))

    def end(self) -> None:
        self.user.close()
        self.peer.close()


def sent(send: Callable[[], int]) -> object:
    try:
        return send()
    except OSError:
        return "error"


def received(receive: Callable[[], bytes]) -> object:
    try:
        return receive() or "end"
    except BlockingIOError:
        return "nothing"
    except (OSError, WireGuardError):
        return "reset"


def shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        assert error.errno == errno.ENOTCONN


sizes = st.sampled_from([1, 100, 3000, 20_000])
steps = st.one_of(
    st.tuples(st.sampled_from(["user_send", "user_receive", "peer_send", "peer_receive"]), sizes),
    st.tuples(st.sampled_from(["user_shut", "user_close", "peer_shut", "peer_close", "peer_reset"]), st.just(0)),
)


class Comparison:
    """Does the same at a bridged and at a real connection, and compares what either end sees."""

    def __init__(self) -> None:
        self.ours, self.real = Bridged(), Real()
        self.user_ended = self.peer_ended = False  # nothing can be done there any more
        self.user_shut = self.user_failed = self.peer_failed = False
        self._random = random.Random(1)

    def act(self, name: str, size: int) -> None:
        side, action = name.split("_")
        if self.user_ended if side == "user" else self.peer_ended:
            return
        if action == "send":
            self._send(side, size)
        elif action == "receive":
            self.receive(side, size)
        else:
            for one in (self.ours, self.real):
                getattr(one, name)()
            self.user_shut |= name == "user_shut"
            self.user_ended |= name == "user_close"
            self.peer_ended |= name in ("peer_close", "peer_reset")
        self.ours.settle()

    def _send(self, side: str, size: int) -> None:
        data = self._random.randbytes(size)
        outcomes = [getattr(one, f"{side}_send")(data) for one in (self.ours, self.real)]
        failed = "error" in outcomes
        if side == "user":
            assert outcomes[0] == outcomes[1]
            self.user_failed |= failed
        else:
            # A user that shut its half first and closes then is noticed later: see `CHECK`.
            assert outcomes[0] == outcomes[1] or self.user_ended
            self.peer_failed |= failed

    def receive(self, side: str, size: int) -> bool:
        """Whether there was data."""
        ours = getattr(self.ours, f"{side}_receive")(size)
        real = getattr(self.real, f"{side}_receive")(size, ours)
        failed = self.user_failed if side == "user" else self.peer_failed
        # A failed write takes the error from the real socket, not from a pair; a pair whose user has ended its half
        # cannot be reset; and where both tell an error, either may do so once and then tell of the end.
        blurred = (
            failed or (side == "user" and self.user_shut) or (side == "peer" and self.user_ended and self.user_shut)
        )
        if ours != real and blurred:
            assert {ours, real} <= {"end", "reset"}
        else:
            assert ours == real
        if ours == "reset":
            self.user_failed |= side == "user"
            self.peer_failed |= side == "peer"
        return isinstance(ours, bytes)

    def end(self) -> None:
        while not self.user_ended and self.receive("user", 1 << 20):
            self.ours.settle()
        while not self.peer_ended and self.receive("peer", 1 << 20):
            self.ours.settle()
        self.ours.end()
        self.real.end()


@settings(max_examples=300)
@given(st.lists(steps, max_size=14))
def test_a_bridged_socket_does_what_a_tcp_socket_does(schedule: list[tuple[str, int]]) -> None:
    comparison = Comparison()
    try:
        for name, size in schedule:
            comparison.act(name, size)
    finally:
        comparison.end()


def test_what_the_comparison_must_not_blur() -> None:
    """The ends that matter most, spelled out."""
    for schedule, user, peer in (
        (["peer_send", "peer_close"], [b"data", "end"], None),
        (["peer_send", "peer_reset"], [b"data", "reset"], None),
        (["user_send", "user_close"], None, [b"data", "end"]),
        (["peer_send", "user_send", "user_close"], None, [b"data", "reset"]),
        (["user_send", "user_shut", "peer_send", "peer_shut"], [b"data", "end"], [b"data", "end"]),
        (["user_send", "peer_close"], ["reset"], None),
    ):
        world = Bridged()
        for name in schedule:
            getattr(world, name)(*([b"data"] if name.endswith("send") else []))
            world.settle()
        if user is not None:
            assert [world.user_receive(100) for _ in user] == user, schedule
        if name == "user_close":
            assert is_over(world.bridge), "without waiting for the next look"
        if peer is not None:
            assert [world.peer_receive(100) for _ in peer] == peer, schedule
        world.end()


def test_a_user_that_shut_its_reading_down_may_go_on_writing() -> None:
    """What comes is thrown away, and nothing stays ready. (Linux' TCP would still deliver it.)"""
    world = Bridged()
    world.user.shutdown(socket.SHUT_RD)
    for _ in range(30):
        assert world.peer_send(bytes(CHUNK)) == CHUNK
        world.settle()
    assert world.bridge.interest & selectors.EVENT_WRITE == 0
    assert world.user_send(b"still here") == 10
    world.settle()
    assert world.peer_receive(100) == b"still here"
    assert not is_over(world.bridge)
    world.end()


def test_a_closed_socket_s_data_waits_for_a_far_side_that_takes_none_but_not_for_ever() -> None:
    world = Bridged()
    while world.user_send(bytes(CHUNK)) != "error":  # until everything in between is full
        world.settle()
    world.user_close()
    world.network.advance(CHECK + LINGER / 2)
    assert not is_over(world.bridge)
    world.network.advance(LINGER)
    assert is_over(world.bridge)
    assert world.connection.state is State.CLOSED
    world.end()


def test_data_of_a_closed_socket_is_delivered_when_the_far_side_takes_it_in_time() -> None:
    world = Bridged()
    total = 0
    while (count := world.user_send(bytes(CHUNK))) != "error":
        assert isinstance(count, int)
        total += count
        world.settle()
    assert total > 2 * CHUNK
    world.user_close()
    world.network.advance(LINGER / 2)
    while (data := world.peer_receive(1 << 20)) not in ("end", "nothing"):
        assert isinstance(data, bytes)
        total -= len(data)
        world.settle()
    assert (data, total) == ("end", 0)
    assert is_over(world.bridge)
    world.end()


def test_a_far_side_that_ended_its_half_may_take_its_time_to_read() -> None:
    """The user is still there, although nothing can be written to it any more."""
    world = Bridged()
    world.peer_shut()
    while world.user_send(bytes(CHUNK)) != "error":
        world.settle()
    world.network.advance(2 * CHECK + LINGER)
    assert not is_over(world.bridge)
    assert isinstance(world.peer_receive(1 << 20), bytes)
    world.end()


def test_a_far_side_that_takes_data_of_a_closed_socket_slowly_is_given_the_time() -> None:
    world = Bridged()
    while world.user_send(bytes(CHUNK)) != "error":
        world.settle()
    world.user_close()
    rest = 0
    for _ in range(3):
        world.network.advance(LINGER - CHECK - 1)
        assert not is_over(world.bridge)
        taken = 0
        while taken < 1_300_000 and isinstance(data := world.peer_receive(65_536), bytes):
            taken += len(data)
            world.settle()
        rest += taken
        if is_over(world.bridge):
            break
    while isinstance(data := world.peer_receive(1 << 20), bytes):
        rest += len(data)
        world.settle()
    assert data == "end"
    assert rest > WRITE_LOW_WATER
    world.end()


def test_a_writable_connection_takes_all_that_is_read_at_once() -> None:
    assert CHUNK <= WRITE_LOW_WATER


def test_a_half_closed_socket_that_is_closed_later_is_noticed() -> None:
    """Nothing watches it at its end of file, and the far side says nothing."""
    world = Bridged()
    world.user_shut()
    world.settle()
    world.network.advance(3 * CHECK)
    assert not is_over(world.bridge)
    world.user_close()
    world.network.advance(CHECK + 1)
    assert is_over(world.bridge)
    world.end()


def test_a_lost_connection_stops_a_writer_although_the_reader_has_not_come_to_the_error() -> None:
    world = Bridged()
    while world.peer_send(bytes(CHUNK)) and len(world.bridge._undelivered) == 0:
        world.settle()
    world.peer_reset()
    world.settle()
    assert not is_over(world.bridge)
    assert world.user_send(b"x") == "error"
    while isinstance(world.user_receive(CHUNK), bytes):
        world.settle()
    assert is_over(world.bridge)
    world.end()


def test_another_file_with_the_user_s_old_descriptor_number_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even copied: closing a copy would give up that file's locks."""
    world = Bridged()
    number = world.user.fileno()
    moved = world.user.dup()
    reader, writer = os.pipe()
    world.user.close()
    os.dup2(writer, number)  # somebody else's file now
    copied: list[int] = []
    monkeypatch.setattr(os, "dup", copied.append)
    world.peer_reset()
    world.settle()
    assert is_over(world.bridge)
    assert not copied
    assert moved.recv(1) == b""
    for descriptor in (reader, writer, number):
        os.close(descriptor)
    moved.close()
    world.end()


# -- over real tunnels


def echo(stream: SyncStream) -> None:
    while data := stream.read(CHUNK):
        stream.write(data)


def say_and_end(stream: SyncStream) -> None:
    """Sends a thing, ends its half, and then sends nothing more while it reads."""
    stream.write(b"farewell")
    stream.close()


def hold(stream: SyncStream) -> None:
    """Neither reads nor writes until "go", sent as the first bytes, has been read; then counts and hashes."""
    assert RELEASED.wait(PATIENCE)
    digest = hashlib.sha256()
    while data := stream.read(CHUNK):
        digest.update(data)
    stream.write(digest.digest())


def flood(stream: SyncStream) -> None:
    """Writes until it may not; tells how far it came."""
    count = 0
    block = bytes(65_536)
    try:
        while count < 64 << 20:
            stream.write(block, 0.5)
            count += len(block)
    except OSError:
        pass
    FLOODED.append(count)


def reset(stream: SyncStream) -> None:
    """Sends and resets: what was sent to it is unread when it closes."""
    stream.write(b"before the reset")
    while not stream.get_extra_info("is_readable"):
        time.sleep(0.001)
    stream.close()


def silent(stream: SyncStream) -> None:
    stream.read(1)


def tell_the_end(stream: SyncStream) -> None:
    """Answers the first bytes, and tells how the connection ended."""
    ENDED.clear()
    stream.write(stream.read(100))
    try:
        ENDED.append(stream.read(100) or "end")
    except ConnectionResetError:
        ENDED.append("reset")


RELEASED = threading.Event()
FLOODED: list[int] = []
ENDED: list[object] = []


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers = {7: echo, 9: silent, 13: say_and_end, 14: hold, 19: flood, 20: reset, 21: tell_the_end}
    with WireGuardPeer(servers=servers, clients=6) as peer:
        yield peer


@pytest.fixture
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        tunnel.wait_ready(PATIENCE)
        yield tunnel


def open_descriptors() -> int:
    gc.collect()  # those of earlier tests
    return len(list(Path("/proc/self/fd").iterdir()))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def bridges_of(tunnel: Tunnel) -> ThreadBridges:
    driver = tunnel._running()[1]
    assert isinstance(driver.bridges, ThreadBridges)
    return driver.bridges


def receive_all(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65_536):
        received += data
    return received


def test_the_socket_tells_of_the_connection_inside_the_tunnel(tunnel: Tunnel) -> None:
    for host in (IPV4, IPV6):
        with tunnel.create_connection((host, 7), 5, (tunnel.resolve(host)[0] and "", 0)) as sock:
            assert sock.getpeername()[:2] == (host, 7)
            assert sock.getsockname()[0] in [str(a.ip) for a in tunnel.config.address]
            assert len(sock.getpeername()) == (4 if ":" in host else 2)
            assert sock.gettimeout() == 5
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as many libraries do, unasked
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with sock.dup() as copy:
                copy.sendall(b"through the copy")
                assert copy.getpeername() == sock.getpeername()
            assert sock.recv(100) == b"through the copy"
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.getpeername()


def test_the_arguments_are_those_of_socket_create_connection(tunnel: Tunnel) -> None:
    with pytest.raises(ConnectionRefusedError, match="nothing listens there"):
        tunnel.create_connection((IPV4, 1), 5)
    with pytest.raises(socket.gaierror, match=r"NXDOMAIN|no such name|does not exist"):
        tunnel.create_connection(("nowhere.test", 7), 5)
    with pytest.raises(ValueError, match="picks the local port itself"):
        tunnel.create_connection((IPV4, 7), 5, ("10.66.0.2", 4000))
    with pytest.raises(OSError, match=r"local address 10\.9\.9\.9 is not an address of the interface"):
        tunnel.create_connection((IPV4, 7), 5, ("10.9.9.9", 0))
    with tunnel.create_connection((IPV4, 7)) as sock:
        assert sock.gettimeout() is None
    with tunnel.create_connection((IPV4, 9), timeout=0.05) as sock, pytest.raises(TimeoutError):
        sock.recv(1)
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7)
    try:  # what http.client and smtplib pass when their user gave no timeout
        with tunnel.create_connection((IPV4, 7), socket._GLOBAL_DEFAULT_TIMEOUT) as sock:  # type: ignore[attr-defined]
            assert sock.gettimeout() == 7
    finally:
        socket.setdefaulttimeout(default)


def test_many_connections_at_once_carry_every_byte_both_ways(tunnel: Tunnel) -> None:
    """Writers and readers in threads of their own, chunks of any size, half-closed at the end; next to them, threads
    that use streams and take the driving over all the time."""

    def bridged(seed: int) -> None:
        chance = random.Random(seed)
        data = chance.randbytes(chance.choice((1, 10_000, 2_000_000)))
        with tunnel.create_connection((IPV4, 7), PATIENCE) as sock:
            writer = threading.Thread(target=write, args=(sock, data, random.Random(seed)))
            writer.start()
            received = bytearray()
            while piece := sock.recv(chance.choice((1000, 65_536, 300_000))):
                received += piece
            writer.join()
            assert received == data

    def write(sock: socket.socket, data: bytes, chance: random.Random) -> None:
        at = 0
        while at < len(data):
            size = chance.choice((1, 1000, 100_000, 1_000_000)) if len(data) < 20_000 else 100_000
            sock.sendall(data[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)

    def streamed(seed: int) -> None:
        stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
        for _ in range(30):
            stream.write(b"ping", PATIENCE)
            assert stream.read(100, PATIENCE) == b"ping"
        stream.close()

    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(bridged, seed) for seed in range(24)] + [pool.submit(streamed, seed) for seed in range(6)]
        for job in jobs:
            job.result(4 * PATIENCE)
    until(lambda: not bridges_of(tunnel)._bridges)


def test_a_peer_that_does_not_read_blocks_the_writer_and_loses_nothing(tunnel: Tunnel) -> None:
    RELEASED.clear()
    with tunnel.create_connection((IPV4, 14), 0.5) as sock:
        digest, count, block = hashlib.sha256(), 0, random.Random(3).randbytes(100_000)
        with pytest.raises(TimeoutError):
            while count < 100 << 20:
                taken = sock.send(block)
                digest.update(block[:taken])
                count += taken
        assert count < 16 << 20
        RELEASED.set()
        sock.settimeout(PATIENCE)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == digest.digest()


def test_a_user_that_does_not_read_closes_the_window(tunnel: Tunnel) -> None:
    FLOODED.clear()
    with tunnel.create_connection((IPV4, 19), PATIENCE) as sock:
        until(lambda: bool(FLOODED))
        assert FLOODED[0] < 20 << 20
        assert len(receive_all(sock)) >= FLOODED[0]


def test_a_reset_comes_after_the_data_and_is_no_end_of_file(tunnel: Tunnel) -> None:
    with tunnel.create_connection((IPV4, 20), PATIENCE) as sock:
        sock.sendall(b"never read")
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


def test_closing_with_something_unread_resets_the_connection(tunnel: Tunnel) -> None:
    with tunnel.create_connection((IPV4, 21), PATIENCE) as sock:
        sock.sendall(b"go")
        until(lambda: bool(select.select([sock], [], [], 0)[0]))
    until(lambda: bool(ENDED))
    assert ENDED == ["reset"]
    until(lambda: not bridges_of(tunnel)._bridges)


def test_a_half_closed_socket_that_is_closed_is_noticed_without_traffic(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By looking now and then: the driver's poll ends in time for it."""
    monkeypatch.setattr("httpx_wireguard._bridge.CHECK", 0.05)
    RELEASED.clear()
    with tunnel.create_connection((IPV4, 14), PATIENCE) as sock:
        sock.shutdown(socket.SHUT_WR)
        until(lambda: all(bridge._forwarded_all for bridge in bridges_of(tunnel)._bridges))
        assert bridges_of(tunnel)._bridges
    start = time.monotonic()
    until(lambda: not bridges_of(tunnel)._bridges)
    assert time.monotonic() - start < 3
    RELEASED.set()


def test_a_tunnel_that_closed_between_connecting_and_bridging(peer: WireGuardPeer) -> None:
    with Tunnel(peer.client_config(1)) as tunnel:
        tunnel.create_connection((IPV4, 7), PATIENCE).close()
        interface, driver = tunnel._running()
        connected = run(interface.connect_tcp(driver, IPV4, 7, PATIENCE, None, None))
        bridges = thread_bridges(driver)
        tunnel.close()
        before = open_descriptors()
        with pytest.raises(TunnelClosed):
            bridges.open(connected)
        assert open_descriptors() == before
        assert connected._closed


def test_closing_the_tunnel_wakes_readers_and_writers_at_once(peer: WireGuardPeer) -> None:
    tunnel = Tunnel(peer.client_config(1))
    RELEASED.clear()
    outcomes: list[object] = []

    def run(call: Callable[[], object]) -> None:
        try:
            outcomes.append(call())
        except OSError as error:
            outcomes.append(type(error))

    with tunnel.create_connection((IPV4, 9)) as reader, tunnel.create_connection((IPV4, 14)) as writer:
        threads = [
            threading.Thread(target=run, args=(lambda: reader.recv(1),)),
            threading.Thread(target=run, args=(lambda: writer.sendall(bytes(64 << 20)),)),
        ]
        for thread in threads:
            thread.start()
        until(lambda: any(bridge._unread for bridge in bridges_of(tunnel)._bridges))
        tunnel.close()
        for thread in threads:
            thread.join(PATIENCE)
        assert ConnectionResetError in outcomes
        assert len(outcomes) == 2
        assert BrokenPipeError in outcomes or outcomes.count(ConnectionResetError) == 2
        assert tunnel.stats().connections == 0
    RELEASED.set()
    with pytest.raises(TunnelClosed):
        tunnel.create_connection((IPV4, 7))


def test_what_was_written_before_the_tunnel_closed_has_gone_out(monkeypatch: pytest.MonkeyPatch) -> None:
    collect_ready = ThreadBridges.collect

    def collect_by_others(self: ThreadBridges) -> None:
        if threading.current_thread().name != "httpx-wireguard":  # whose poll may come first, or not
            collect_ready(self)

    came = bytearray()
    over = threading.Event()

    def collect(stream: SyncStream) -> None:
        try:
            while data := stream.read(65_536):
                came.extend(data)
        finally:
            over.set()

    with WireGuardPeer(servers={25: collect}) as server:
        with Tunnel(server.client_config()) as tunnel, tunnel.create_connection((IPV4, 25), PATIENCE) as sock:
            monkeypatch.setattr(ThreadBridges, "collect", collect_by_others)
            sock.sendall(b"QUIT\r\n")
            tunnel.close()
            assert over.wait(PATIENCE)
        assert came == b"QUIT\r\n"


def test_descriptors_and_threads_are_given_back(tunnel: Tunnel) -> None:
    with tunnel.create_connection((IPV4, 7), PATIENCE):
        pass
    until(lambda: not bridges_of(tunnel)._bridges)
    descriptors, threads = open_descriptors(), threading.active_count()
    socks = [tunnel.create_connection((IPV4, 7), PATIENCE) for _ in range(200)]
    assert open_descriptors() == descriptors + 400
    assert sum(not t.name.startswith("httpx-wireguard-peer") for t in threading.enumerate()) <= threads
    for number, sock in enumerate(socks):
        sock.sendall(b"%d" % number)
    for number, sock in enumerate(socks):
        assert sock.recv(10) == b"%d" % number
        sock.close()
    until(lambda: open_descriptors() == descriptors)
    assert not bridges_of(tunnel)._bridges
    assert bridges_of(tunnel).next_time() is None
    until(lambda: tunnel._running()[1]._loops_waiting == 0)
    assert not bridges_of(tunnel)._selector.get_map()


def test_what_a_pump_does_for_bridges_does_not_grow_with_their_number(tunnel: Tunnel) -> None:
    """Half-closed sockets are looked at now and then; not by every pump, and not all of them by a poll."""
    socks: list[socket.socket] = []
    work: list[int] = []
    for count in (3, 60):
        while len(socks) < count:
            socks.append(tunnel.create_connection((IPV4, 14), PATIENCE))
            socks[-1].shutdown(socket.SHUT_WR)
        bridges = bridges_of(tunnel)
        until(partial(all_half_closed, bridges))
        with tunnel._running()[1].lock:
            # the least, for now and then their time to be looked at comes
            work.append(min(bytecodes(bridges.serve) + bytecodes(bridges.next_time) for _ in range(5)))
    for sock in socks:
        sock.close()
    RELEASED.set()
    assert work[1] <= work[0] + 100


def all_half_closed(bridges: ThreadBridges) -> bool:
    return not bridges._due and all(bridge.check_at is not None for bridge in bridges._bridges)


def test_nothing_that_is_watched_stays_ready(tunnel: Tunnel) -> None:
    """A descriptor that is ready without anything to do would make the driver's poll spin. So in all states of an end,
    the one descriptor that stands for all of them falls silent."""
    RELEASED.clear()
    socks = [tunnel.create_connection((IPV4, port), PATIENCE) for port in (7, 14, 13, 9, 14, 19, 9, 20)]
    idle, shut_here, ended_there, closed, full, flooded, unread, lost = socks
    shut_here.shutdown(socket.SHUT_WR)
    closed.close()
    full.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            full.send(bytes(CHUNK))
            time.sleep(0)
    assert ended_there.recv(100) == b"farewell"
    lost.sendall(b"unread")
    driver = tunnel._running()[1]
    bridges = bridges_of(tunnel)

    def is_quiet() -> bool:
        with driver.lock:
            (selector,), _ = bridges.descriptors()
            return not select.select([selector], [], [], 0)[0] and not bridges.pending

    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    for _ in range(20):
        until(is_quiet)
        stream.write(b"x")
        assert stream.read(1, PATIENCE) == b"x"
    stream.close()
    until(lambda: len(bridges._bridges) == 6)
    full.close()
    until(is_quiet)
    RELEASED.set()
    for sock in socks:
        sock.close()
    assert idle is not unread and flooded is not idle


def test_a_socket_that_is_dropped_ends_its_connection(tunnel: Tunnel) -> None:
    sock: Any = tunnel.create_connection((IPV4, 9), PATIENCE)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del sock
        gc.collect()
    until(lambda: not bridges_of(tunnel)._bridges)


def test_no_descriptor_left_closes_the_connection(tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        tunnel.create_connection((IPV4, 9), PATIENCE)
    states = [c.state for c in tunnel._running()[0].engine.stack._connections.values()]
    assert State.ESTABLISHED not in states


def run_program(peer: WireGuardPeer, program: str) -> str:
    """Run a program that has a tunnel's configuration as `config`; returns what it printed."""
    config = peer.client_config(2)
    head = f"""
        from httpx_wireguard import Config, PeerConfig, Tunnel
        config = Config(
            private_key={config.private_key.reveal()!r}, address={[str(a) for a in config.address]!r},
            peers=[PeerConfig(public_key={config.peers[0].public_key!r}, allowed_ips="0.0.0.0/0",
                              endpoint={peer.endpoint!r})])
    """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_a_forked_child_shares_the_socket_and_keeps_no_far_end(peer: WireGuardPeer) -> None:
    """As any socket: the connection is the parent's, the child may write to it, and copies keep it open."""
    printed = run_program(
        peer,
        f"""
        import os, warnings
        warnings.simplefilter("ignore")
        with Tunnel(config) as tunnel:
            sock = tunnel.create_connection(({IPV4!r}, 7), 10)
            before = len(os.listdir("/proc/self/fd"))
            child = os.fork()
            if not child:
                sock.sendall(b"from the child")
                print(before - len(os.listdir("/proc/self/fd")), flush=True)
                sock.close()
                os._exit(0)
            os.waitpid(child, 0)
            print(sock.recv(100), flush=True)
            sock.shutdown(1)
            print(sock.recv(100))
            sock.close()
        """,
    )
    lines = printed.split("\n")
    assert int(lines[0]) >= 5  # the UDP socket, two wake-ups, the far end, the selector
    assert lines[1:3] == ["b'from the child'", "b''"]


def test_a_forked_child_keeps_no_far_end_of_a_loop_either(peer: WireGuardPeer) -> None:
    printed = run_program(
        peer,
        f"""
        import asyncio, os, warnings
        from httpx_wireguard._tunnel import AsyncTunnel
        warnings.simplefilter("ignore")
        async def main():
            async with AsyncTunnel(config) as tunnel:
                sock = await tunnel.create_connection(({IPV4!r}, 7), 10)
                (bridge,) = tunnel._bridges._bridges
                child = os.fork()
                if not child:
                    print(bridge.far.fileno(), flush=True)
                    os._exit(0)
                os.waitpid(child, 0)
                reader, writer = await asyncio.open_connection(sock=sock)
                writer.write(b"the parent's still")
                print(await reader.read(100))
                writer.close()
        asyncio.run(main())
        """,
    )
    assert printed == """-1\nb"the parent's still"\n"""


def test_the_interpreter_ends_while_a_daemon_thread_reads(peer: WireGuardPeer) -> None:
    printed = run_program(
        peer,
        f"""
        import threading
        tunnel = Tunnel(config)
        sock = tunnel.create_connection(({IPV4!r}, 9), 10)
        sock.settimeout(None)
        threading.Thread(target=sock.recv, args=(1,), daemon=True).start()
        print("done")
        """,
    )
    assert printed == "done\n"


def test_systems_whose_selector_has_no_descriptor_are_served(
    peer: WireGuardPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows: the poll gets every far end, and is ended when what to watch changes."""
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    with Tunnel(peer.client_config(3)) as tunnel:
        data = random.Random(4).randbytes(3_000_000)
        with tunnel.create_connection((IPV4, 7), PATIENCE) as sock:
            writer = threading.Thread(target=sock.sendall, args=(data,))
            writer.start()
            received = b""
            while len(received) < len(data):
                received += sock.recv(CHUNK)
            writer.join()
            assert received == data
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


# -- event loops


def loop_counts(bridges: Bridges | None) -> tuple[int, int]:
    assert bridges is not None
    return len(bridges._bridges), len(bridges._due)


async def talk_on_asyncio(tunnel: AsyncTunnel) -> None:
    data = random.Random(5).randbytes(3_000_000)
    sock = await tunnel.create_connection((IPV4, 7), PATIENCE)
    assert sock.gettimeout() == 0
    reader, writer = await asyncio.open_connection(sock=sock)
    assert writer.get_extra_info("peername") == (IPV4, 7) or "uvloop" in type(asyncio.get_running_loop()).__module__

    async def write() -> None:
        for at in range(0, len(data), 100_000):
            writer.write(data[at : at + 100_000])
            await writer.drain()
        writer.write_eof()

    writing = asyncio.create_task(write())
    assert await asyncio.wait_for(reader.read(), PATIENCE) == data
    await writing
    writer.close()
    await writer.wait_closed()


async def lose_on_asyncio(tunnel: AsyncTunnel, close: Callable[[], None]) -> None:
    sock = await tunnel.create_connection((IPV4, 9), PATIENCE)
    reader, writer = await asyncio.open_connection(sock=sock)
    reading = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    close()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reading, PATIENCE)
    writer.close()


def run_on(loop: str, main: Callable[[], Any]) -> None:
    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    else:
        asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_an_asyncio_loop_of_its_own(peer: WireGuardPeer, loop: str) -> None:
    async def main() -> None:
        async with AsyncTunnel(peer.client_config(4)) as tunnel:
            await talk_on_asyncio(tunnel)  # uvloop opens a descriptor of its own with the first transport
            while loop_counts(tunnel._bridges) != (0, 0):
                await asyncio.sleep(0.001)
            before = open_descriptors()
            await asyncio.gather(*(talk_on_asyncio(tunnel) for _ in range(3)))
            while loop_counts(tunnel._bridges) != (0, 0):
                await asyncio.sleep(0.001)
            assert open_descriptors() == before
            await lose_on_asyncio(tunnel, tunnel.close)
            assert loop_counts(tunnel._bridges) == (0, 0)

    run_on(loop, main)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_on_an_asyncio_loop_over_a_shared_tunnel(tunnel: Tunnel, loop: str) -> None:
    async def main() -> None:
        await asyncio.gather(*(talk_on_asyncio(AsyncTunnel(tunnel)) for _ in range(3)))
        await lose_on_asyncio(AsyncTunnel(tunnel), tunnel.close)

    run_on(loop, main)


def test_on_trio(peer: WireGuardPeer) -> None:
    data = random.Random(6).randbytes(3_000_000)

    async def talk(tunnel: AsyncTunnel) -> None:
        sock = await tunnel.create_connection((IPV4, 7), PATIENCE)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, stream)
            async for piece in stream:
                received += piece
        assert received == data
        await stream.aclose()

    async def write(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def main() -> None:
        async with AsyncTunnel(peer.client_config(5)) as tunnel:
            before = open_descriptors()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(talk, tunnel)
            with trio.fail_after(PATIENCE):
                while loop_counts(tunnel._bridges) != (0, 0):
                    await trio.sleep(0.001)
            assert open_descriptors() == before
            for _ in range(3):  # the numbers of descriptors are used again
                with await tunnel.create_connection((IPV4, 20), PATIENCE) as sock:
                    sock.send(b"never read")
                    with trio.fail_after(PATIENCE):
                        while loop_counts(tunnel._bridges) != (0, 0):
                            await trio.sleep(0.001)
            await talk(tunnel)
            sock = await tunnel.create_connection((IPV4, 9), PATIENCE)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tunnel.aclose)
                with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
                    await stream.receive_some()
            await stream.aclose()

    trio.run(main)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_loop_that_ended_ends_its_sockets(peer: WireGuardPeer, library: str) -> None:
    tunnel = AsyncTunnel(peer.client_config(4))

    async def open_one() -> socket.socket:
        return await tunnel.create_connection((IPV4, 9), PATIENCE)

    sock = asyncio.run(open_one()) if library == "asyncio" else trio.run(open_one)
    with sock:
        sock.settimeout(PATIENCE)
        tunnel.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_loop_s_writer_waits_for_its_peer_and_a_closed_one_is_noticed(
    peer: WireGuardPeer, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpx_wireguard._bridge.CHECK", 0.05)
    pause: Callable[[float], Any] = asyncio.sleep if library == "asyncio" else trio.sleep
    block = random.Random(7).randbytes(CHUNK)

    async def send(sock: socket.socket, until_stuck: int) -> int:
        """Until it has blocked that many turns in a row, or 12 MB are sent."""
        total = blocked = 0
        while blocked < until_stuck and total < 12 << 20:
            try:
                total += sock.send(block[total % CHUNK :])
                blocked = 0
            except BlockingIOError:
                blocked += 1
                await pause(0.001)
        return total

    async def main() -> None:
        async with AsyncTunnel(peer.client_config(5)) as tunnel:
            RELEASED.clear()
            sock = await tunnel.create_connection((IPV4, 14), PATIENCE)
            first = await send(sock, 50)
            assert first < 12 << 20
            RELEASED.set()
            digest = hashlib.sha256((block * (1 + first // CHUNK))[:first])
            rest = await send(sock, 5000)
            assert rest >= 12 << 20
            digest.update((block * (1 + rest // CHUNK))[:rest])
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            deadline = time.monotonic() + PATIENCE
            while not answer:
                assert time.monotonic() < deadline
                try:
                    answer = sock.recv(100)
                except BlockingIOError:
                    await pause(0.001)
            assert answer == digest.digest()
            RELEASED.clear()
            sock.close()
            with await tunnel.create_connection((IPV4, 14), PATIENCE) as sock:
                sock.shutdown(socket.SHUT_WR)
                await pause(0.01)
            start = time.monotonic()
            while loop_counts(tunnel._bridges)[0]:
                assert time.monotonic() < start + 3
                await pause(0.001)
            RELEASED.set()

    if library == "asyncio":
        asyncio.run(main())
    else:
        trio.run(main)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_nothing_spins_in_a_loop(peer: WireGuardPeer, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-closed, closed and full sockets: turns of the loop go by, and nothing is ready again and again."""
    monkeypatch.setattr("httpx_wireguard._bridge.CHECK", 0.01)
    calls: list[int] = []
    on_ready = Bridge.on_ready

    def counted(self: Bridge, events: int) -> None:
        calls.append(events)
        on_ready(self, events)

    monkeypatch.setattr(Bridge, "on_ready", counted)
    pause: Callable[[float], Any] = asyncio.sleep if library == "asyncio" else trio.sleep
    RELEASED.clear()

    async def main() -> None:
        async with AsyncTunnel(peer.client_config(5)) as tunnel:
            socks = [await tunnel.create_connection((IPV4, port), PATIENCE) for port in (7, 14, 13, 14, 19, 9)]
            socks[1].shutdown(socket.SHUT_WR)
            for _ in range(3000):
                try:
                    socks[3].send(bytes(CHUNK))
                except BlockingIOError:
                    await pause(0)
            while loop_counts(tunnel._bridges)[1]:
                await pause(0.001)
            before = len(calls)
            for _ in range(1000):
                await pause(0)
            assert len(calls) - before < 100
            socks[1].close()  # half-closed before: found by looking now and then
            socks[5].close()
            deadline = time.monotonic() + PATIENCE
            while loop_counts(tunnel._bridges)[0] > 4:
                assert time.monotonic() < deadline
                await pause(0.001)
            RELEASED.set()
            for sock in socks:
                sock.close()

    if library == "asyncio":
        asyncio.run(main())
    else:
        trio.run(main)


def test_tls_over_a_bridged_socket_tells_a_truncated_stream(tunnel: Tunnel) -> None:
    context = ssl.create_default_context()
    sock = tunnel.create_connection((IPV4, 13), PATIENCE)
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname="peer.test")
    sock.close()


@pytest.mark.parametrize("selector", ["DefaultSelector", "SelectSelector"])
def test_a_new_socket_is_served_although_the_driver_sleeps(
    peer: WireGuardPeer, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's poll began when there was nothing but the UDP socket to watch, or one bridge less."""
    monkeypatch.setattr(selectors, "DefaultSelector", getattr(selectors, selector))
    with Tunnel(peer.client_config(3)) as tunnel:
        interface, driver = tunnel._running()
        for _ in range(2):
            connected = run(interface.connect_tcp(driver, IPV4, 7, PATIENCE, None, None))
            until(lambda: is_asleep(tunnel))
            with thread_bridges(driver).open(connected) as sock:
                until(lambda: is_asleep(tunnel))
                sock.sendall(b"hello")
                sock.settimeout(1)
                assert sock.recv(10) == b"hello"


def is_asleep(tunnel: Tunnel) -> bool:
    driver = tunnel._running()[1]
    with driver.lock:
        return driver._driver is driver and driver._sleeping_until > time.monotonic() + 2
