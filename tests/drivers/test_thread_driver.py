"""The thread driver over real loopback sockets: hand-over, wake-ups, closing, forking, exiting."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from httpx_wireguard import (
    Config,
    ConfigError,
    ConnectionReset,
    EndpointUnreachable,
    HandshakeFailed,
    NoRoute,
    OperationTimeout,
    PeerConfig,
    Tunnel,
    TunnelClosed,
)
from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._interface import _Network
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._wire.ecn import ECT_0
from httpx_wireguard.testing import IPV4, IPV6, WireGuardPeer

PATIENCE = 20.0  # seconds after which something that should have happened has not


def echo(stream: SyncStream) -> None:
    while data := stream.read(65536):
        stream.write(data)


def silent(stream: SyncStream) -> None:
    stream.read(1)


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    with WireGuardPeer(servers={7: echo, 9: silent}, clients=4) as peer:
        yield peer


@pytest.fixture
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        tunnel.wait_ready(PATIENCE)
        yield tunnel


def descriptor_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def exchange(stream: SyncStream, data: bytes) -> bytes:
    stream.write(data, PATIENCE)
    received = b""
    while len(received) < len(data):
        received += stream.read(65536, PATIENCE)
    return received


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `call` beside the test; the list gets its result or its exception."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)


def waiting(tunnel: Tunnel, count: int = 1) -> Callable[[], bool]:
    """Whether that many callers wait in the tunnel's driver."""

    def enough() -> bool:
        driver = tunnel._running()[1]
        with driver.lock:
            return len(driver._waiters) >= count

    return enough


@pytest.mark.skipif(not hasattr(socket, "IP_RECVTOS"), reason="the system does not tell the traffic class")
def test_both_ends_find_out_that_the_other_carries_congestion_marks(tunnel: Tunnel) -> None:
    """The codepoints of outer headers pass the sockets in both directions."""
    driver = tunnel._running()[1]
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    assert exchange(stream, b"shows it") == b"shows it"
    assert exchange(stream, b"and sees it") == b"and sees it"
    with driver.lock:
        session = driver.engine.device.peers[0].current
        assert session is not None
        packets = [bytes((0x45, ECT_0))] * 2
        assert session.ecn.encapsulate(packets) == [(ECT_0, packets)]
    stream.close()


def test_many_threads_with_random_timeouts_lose_no_wake_up(tunnel: Tunnel) -> None:
    """A reader that times out may have been the one who drove: another has to take over, each time."""
    rounds, threads = 40, 32

    def work(seed: int) -> int:
        chance = random.Random(seed)
        stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
        timeouts = 0
        for number in range(rounds):
            data = chance.randbytes(chance.choice((1, 100, 5000)))
            stream.write(data, PATIENCE)
            received = b""
            while len(received) < len(data):
                try:
                    received += stream.read(65536, chance.choice((0.0005, 0.002, PATIENCE)))
                except OperationTimeout:
                    timeouts += 1
            assert received == data, number
        stream.close()
        return timeouts

    with ThreadPoolExecutor(threads) as pool:
        timeouts = sum(pool.map(work, range(threads)))
    assert timeouts > 0, "no reader ever gave up: the test tests nothing"
    driver = tunnel._running()[1]
    with driver.lock:
        assert not driver._waiters
        assert not driver._by_key


def test_many_threads_whose_streams_are_closed_under_them_lose_no_wake_up(tunnel: Tunnel) -> None:
    """As above, and whoever drives may also be the one whose stream another thread takes away."""
    threads, rounds = 64, 15
    streams: list[SyncStream | None] = [None] * threads
    done = threading.Event()

    def close_some() -> None:
        chance = random.Random(64)
        while not done.wait(chance.uniform(0, 0.002)):
            stream = streams[chance.randrange(threads)]
            if stream is not None:
                stream.close()

    def one_round(index: int, data: bytes, chance: random.Random) -> bool:
        """Whether it went to its end."""
        stream = streams[index] = streams[index] or tunnel.connect_tcp(IPV4, 7, PATIENCE)
        try:
            stream.write(data, PATIENCE)
            received = b""
            while len(received) < len(data):
                with contextlib.suppress(OperationTimeout):
                    received += stream.read(65536, chance.choice((0.0005, 0.002, PATIENCE)))
            assert received == data
            return True
        except ConnectionReset:
            streams[index] = None
            return False

    def work(index: int) -> int:
        chance = random.Random(index)
        interrupted = 0
        for _ in range(rounds):
            while not one_round(index, chance.randbytes(chance.choice((1, 100, 5000))), chance):
                interrupted += 1
        last = tunnel.connect_tcp(IPV4, 7, PATIENCE)
        all_there.wait(PATIENCE)  # then nobody comes any more, and each who leaves has to hand over to one who waits
        assert exchange(last, b"the last one") == b"the last one"
        last.close()
        return interrupted

    def stop_closing() -> None:
        done.set()
        closer.join()

    closer = threading.Thread(target=close_some)
    all_there = threading.Barrier(threads, stop_closing)
    closer.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            closed = sum(pool.map(work, range(threads)))
    finally:
        done.set()
    assert closed > 0, "no stream was closed under its thread: the test tests nothing"
    for stream in streams:
        if stream is not None:
            stream.close()
    driver = tunnel._running()[1]
    with driver.lock:
        assert not driver._waiters
        assert not driver._by_key


def test_the_thread_acknowledges_while_nobody_waits(peer: WireGuardPeer, tunnel: Tunnel) -> None:
    """Data that nobody reads is acknowledged: the far side's queue empties up to our window."""
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    stream.write(b"x" * 50_000, PATIENCE)
    driver = tunnel._running()[1]
    connection = stream._stream._socket  # type: ignore[attr-defined]  # a plain stream's

    def all_here() -> bool:
        with driver.lock:
            return isinstance(connection, TcpConnection) and connection.receiver.buffered == 50_000

    until(all_here)
    stream.close()


def test_the_thread_rests_while_a_caller_waits_long_and_is_back_when_it_leaves(
    tunnel: Tunnel,
) -> None:
    """A reader of rare events would else cost thirty wake-ups a second; after it, somebody has to acknowledge."""
    driver = tunnel._running()[1]
    assert isinstance(driver, SyncDriver)
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    reader, outcome = in_thread(lambda: stream.read(65_536, PATIENCE))
    until(lambda: driver._resting)
    time.sleep(0.2)
    assert driver._resting
    stream.write(b"x", PATIENCE)
    reader.join(PATIENCE)
    assert outcome == [b"x"]
    connection = stream._stream._socket  # type: ignore[attr-defined]  # a plain stream's
    stream.write(b"y" * 50_000, PATIENCE)
    until(lambda: connection.receiver.buffered == 50_000)
    stream.close()


@pytest.mark.parametrize("port", [-1, 0, 65536, 123_456])
def test_a_port_that_does_not_exist_is_no_route(tunnel: Tunnel, port: int) -> None:
    """An OSError, so that HTTP libraries report it as a failed connect."""
    with pytest.raises(NoRoute, match=rf"port {port} is outside 1\.\.65535"):
        tunnel.connect_tcp(IPV4, port, PATIENCE)


def test_reader_and_writer_of_one_stream_go_on_at_once(tunnel: Tunnel) -> None:
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    data = random.Random(1).randbytes(3_000_000)
    writer, _ = in_thread(lambda: stream.write(data, PATIENCE))
    received = bytearray()
    while len(received) < len(data):
        received += stream.read(65536, PATIENCE)
    writer.join(PATIENCE)
    assert received == data
    stream.close()


def test_closing_a_stream_wakes_its_reader(tunnel: Tunnel) -> None:
    stream = tunnel.connect_tcp(IPV4, 9, PATIENCE)
    reader, outcome = in_thread(lambda: stream.read(1))
    until(waiting(tunnel))
    stream.close()
    reader.join(PATIENCE)
    assert isinstance(outcome[0], ConnectionReset)


def test_closing_the_tunnel_wakes_every_waiter(peer: WireGuardPeer) -> None:
    tunnel = Tunnel(peer.client_config(1))
    streams = [tunnel.connect_tcp(IPV4, 9, PATIENCE) for _ in range(5)]
    listener, datagrams = tunnel.listen_tcp(0), tunnel.open_udp()
    calls: list[Callable[[], object]] = [lambda stream=stream: stream.read(1) for stream in streams]  # type: ignore[misc]  # mypy cannot infer a lambda's default
    threads = [in_thread(call) for call in (*calls, listener.accept, datagrams.receive)]
    until(waiting(tunnel, 7))
    start = time.monotonic()
    tunnel.close()
    tunnel.close()
    for thread, outcome in threads:
        thread.join(PATIENCE)
        assert isinstance(outcome[0], TunnelClosed), outcome
    assert time.monotonic() - start < 5
    with pytest.raises(TunnelClosed, match="open a new one"):
        tunnel.connect_tcp(IPV4, 9)


def test_a_read_times_out_when_its_time_is_over_and_the_stream_lives_on(tunnel: Tunnel) -> None:
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    start = time.monotonic()
    with pytest.raises(OperationTimeout, match=r"sent nothing for 0\.05 s"):
        stream.read(1, 0.05)
    assert 0.05 <= time.monotonic() - start < 2
    assert exchange(stream, b"hello") == b"hello"
    stream.close()


def test_plain_sockets_serve_without_offload(peer: WireGuardPeer) -> None:
    with Tunnel(peer.client_config(2), udp_offload=False) as tunnel:
        stream = tunnel.connect_tcp(IPV6, 7, PATIENCE)
        data = random.Random(2).randbytes(1_000_000)
        writer, _ = in_thread(lambda: stream.write(data, PATIENCE))
        received = bytearray()
        while len(received) < len(data):
            received += stream.read(65536, PATIENCE)
        writer.join(PATIENCE)
        assert received == data
        assert not any(one.coalesces or one.segments for one in tunnel._running()[1].sockets)


def test_a_listener_and_udp_work_in_both_directions(peer: WireGuardPeer, tunnel: Tunnel) -> None:
    assert tunnel.ping(IPV4) < PATIENCE  # from here on the peer knows where we are
    ours = str(tunnel.config.address[0].ip)
    listener = tunnel.listen_tcp(8080)
    far = peer.tunnel.connect_tcp(ours, 8080, PATIENCE)
    near = listener.accept(PATIENCE)
    far.write(b"ping")
    assert near.read(10, PATIENCE) == b"ping"
    near.close()
    assert far.read(10, PATIENCE) == b""
    socket, other = tunnel.open_udp(), peer.tunnel.open_udp()
    socket.send(b"datagram", (IPV4, other.port))
    data, source = other.receive(PATIENCE)
    assert (data, source) == (b"datagram", (ours, socket.port))
    assert 0 < tunnel.ping(IPV6) < PATIENCE
    listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="where the system tells of ICMP errors")
def test_what_came_back_is_looked_at_before_a_silence_is_explained() -> None:
    """Something else, a long import say, may have kept the driver from looking until the deadline."""
    with WireGuardPeer() as gone:
        config = gone.client_config()
    with Tunnel(config) as tunnel:
        interface, driver = tunnel._running()
        until(lambda: interface.engine.device.peers[0].last_error is not None)
        with driver.lock:
            peer = interface.engine.device.peers[0]
            assert peer.endpoint is not None
            peer.last_error, driver._last_empty_read = None, -math.inf
            driver.sockets.for_endpoint(peer.endpoint).send([b"x"], 1, peer.endpoint)
            assert isinstance(_Network(driver).diagnose(IPV4, driver.now()), EndpointUnreachable)


def test_closing_waits_for_whoever_polls(peer: WireGuardPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system keeps a socket open, and its port taken, until the poll that another thread is in has returned."""
    tunnel = Tunnel(peer.client_config())
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    driver = tunnel._running()[1]
    sleep, close = driver._caller_sleeper.sleep, driver.sockets.close
    polling, polled_at_close, sockets_closed = threading.Event(), [], threading.Event()

    def slow_sleep(*arguments: Any) -> None:
        polling.set()
        sleep(*arguments)
        sockets_closed.wait(0.1)  # as long as it takes, were it not for us
        polling.clear()

    def noted_close() -> None:
        polled_at_close.append(polling.is_set())
        sockets_closed.set()
        close()

    monkeypatch.setattr(driver._caller_sleeper, "sleep", slow_sleep)
    monkeypatch.setattr(driver.sockets, "close", noted_close)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(stream.read, 1)
        assert polling.wait(PATIENCE)
        tunnel.close()
        assert polled_at_close == [False]
        with pytest.raises(TunnelClosed):
            reading.result(PATIENCE)


def test_a_closed_endpoint_is_named_as_what_refuses(peer: WireGuardPeer) -> None:
    with WireGuardPeer() as gone:
        config = gone.client_config()
    with Tunnel(config) as tunnel, pytest.raises(EndpointUnreachable, match="Connection refused"):
        tunnel.wait_ready(0.3)


def test_a_wrong_preshared_key_is_told_from_silence(peer: WireGuardPeer) -> None:
    config = peer.client_config(3)
    (only,) = config.peers
    wrong = PeerConfig(only.public_key, only.allowed_ips, only.endpoint, preshared_key=bytes(range(32)))
    with (
        Tunnel(Config(config.private_key, config.address, [wrong])) as tunnel,
        pytest.raises(HandshakeFailed, match="PresharedKey"),
    ):
        tunnel.wait_ready(0.3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_not_use_the_tunnel_and_the_parent_goes_on(tunnel: Tunnel) -> None:
    """Two processes with one session's keys would use a nonce twice."""
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            tunnel.connect_tcp(IPV4, 7, 1.0)
        except TunnelClosed as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answer:
        assert b"after the fork" in answer.read()
    assert exchange(stream, b"still here") == b"still here"
    stream.close()


def test_interpreter_exit_with_a_request_in_flight_is_quick_and_silent() -> None:
    program = textwrap.dedent("""
        import threading, time
        from httpx_wireguard import Tunnel
        from httpx_wireguard.testing import IPV4, WireGuardPeer
        peer = WireGuardPeer(servers={9: lambda stream: stream.read(1)})
        peer.start()
        tunnel = Tunnel(peer.client_config())
        stream = tunnel.connect_tcp(IPV4, 9, 20)
        threading.Thread(target=lambda: stream.read(1), daemon=True).start()
        print("ready", flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    start = time.monotonic()
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, b"", b"")
    assert time.monotonic() - start < 3


def test_a_tunnel_that_is_dropped_unclosed_warns_and_ends_its_thread(peer: WireGuardPeer) -> None:
    tunnel = Tunnel(peer.client_config(1))
    tunnel.start()
    thread = tunnel._running()[1]._thread
    with pytest.warns(ResourceWarning, match="unclosed <Tunnel"):
        del tunnel
        gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_endpoint_name_is_looked_up_again_when_the_peer_stays_silent(
    peer: WireGuardPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one answer in this test that is made up is the host's resolver's: its answers are what moves."""
    config = peer.client_config(1)
    (only,) = config.peers
    port = peer.tunnel.listen_port
    moved = PeerConfig(only.public_key, only.allowed_ips, f"vpn.example:{port}")
    addresses = iter(["127.0.0.2", "127.0.0.1"])

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "vpn.example"
        return [(2, 2, 17, "", (next(addresses), port))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with Tunnel(Config(config.private_key, config.address, [moved])) as tunnel:
        driver = tunnel._running()[1]
        with driver.lock:
            silent = driver.engine.device.peers[0]
            assert silent.endpoint == ("127.0.0.2", port)
        tunnel._running()[0]._look_again(silent)
        until(lambda: silent.endpoint == ("127.0.0.1", port))


@pytest.mark.skipif(sys.platform != "linux", reason="wakes by eventfd, and /proc")
def test_an_idle_tunnel_takes_a_thread_and_three_descriptors(peer: WireGuardPeer) -> None:
    """1,024 open files, a usual limit, are enough for 300 of them."""
    gc.collect()
    before, threads = descriptor_count(), threading.active_count()
    with Tunnel(peer.client_config(3)) as tunnel:
        tunnel.wait_ready(PATIENCE)
        assert descriptor_count() == before + 3
        assert threading.active_count() == threads + 1
    assert descriptor_count() == before


def test_a_closed_tunnel_wakes_nobody_through_a_descriptor_that_is_another_s_now(peer: WireGuardPeer) -> None:
    tunnel = Tunnel(peer.client_config(3))
    tunnel.start()
    driver = tunnel._running()[1]
    tunnel.close()
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in range(10) for end in socket.socketpair()]
        driver.close_soon()
        for end in ends:
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_a_system_without_poll_sendmsg_and_recvmsg_is_served() -> None:
    """As Windows is; what a system lacks is taken away before the tunnel starts."""
    program = textwrap.dedent("""
        import mmap, os, select, socket
        import httpx, httpx_wireguard._drivers.udp
        from httpx_wireguard import Tunnel, WireGuardTransport
        from httpx_wireguard.testing import WireGuardPeer, body

        httpx_wireguard._drivers.udp._LINUX = False
        del select.poll, mmap.MAP_PRIVATE
        if hasattr(os, "eventfd"):
            del os.eventfd
        for name in ("sendmsg", "recvmsg", "recvmsg_into"):
            setattr(socket.socket, name, None)
        with WireGuardPeer() as peer, httpx.Client(transport=WireGuardTransport(peer.client_config())) as client:
            assert client.get("http://peer.test/bytes/1000000").content == body(1000000)
            print("served")
    """)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (finished.stdout, finished.stderr) == (b"served\n", b"")


@pytest.mark.parametrize("dns", ["10.0.0.300", ["fe80::1%eth0"]])
def test_a_dns_server_that_is_no_address_of_the_tunnel_is_refused_at_once(
    peer: WireGuardPeer, dns: str | list[str]
) -> None:
    """As the same words in a file are: before anything is sent."""
    with pytest.raises(ConfigError, match="dns"):
        Tunnel(peer.client_config(), dns=dns)


def test_one_dns_server_may_be_given_as_text(peer: WireGuardPeer) -> None:
    with Tunnel(peer.client_config(1), dns=IPV4) as tunnel:
        assert IPV4 in tunnel.resolve("peer.test", PATIENCE)


def test_a_moved_name_is_raced_until_the_next_handshake(peer: WireGuardPeer) -> None:
    with Tunnel(peer.client_config(1)) as tunnel:
        tunnel.wait_ready(PATIENCE)
        driver = tunnel._running()[1]
        with driver.lock:
            far = driver.engine.device.peers[0]
            right, far.endpoint = far.endpoint, ("127.0.0.2", peer.tunnel.listen_port)
            assert right is not None
            driver.race(far, [right])
        assert tunnel.ping(IPV4) < PATIENCE, "only the other address answers, so the endpoint moved there"
        assert far.endpoint == right


def test_a_writer_takes_in_what_arrived(tunnel: Tunnel) -> None:
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    driver, sock = tunnel._running()[1], stream._stream._socket  # type: ignore[attr-defined]
    with driver.lock:  # so that the thread cannot
        sock.send(bytes(1000), driver.now())
        driver.pump()
        deadline = time.monotonic() + PATIENCE
        while sock.in_flight and time.monotonic() < deadline:
            select.select(list(driver.sockets), [], [], PATIENCE)
            driver.take_part()
        assert not sock.in_flight
    stream.close()


def test_the_thread_stands_back_while_writers_come_and_takes_over_when_they_are_gone(tunnel: Tunnel) -> None:
    stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
    driver, sock = tunnel._running()[1], stream._stream._socket  # type: ignore[attr-defined]
    until(lambda: driver._driver is driver)
    with driver.lock:
        driver.take_part()
        driver._left_at = math.inf  # as if writers came all the time
    stream.write(b"hello", PATIENCE)
    until(lambda: driver._driver is None)
    with driver.lock:
        driver._left_at = driver.now()
    until(lambda: sock.readable)
    stream.close()
