"""What a tunnel does, the same on threads, asyncio, uvloop and trio, over a tunnel of its own and over a shared one."""

from __future__ import annotations

import hashlib
import itertools
import random
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from httpx_wireguard import (
    ConnectionRefused,
    ConnectionReset,
    NameResolutionError,
    OperationTimeout,
    TunnelClosed,
)
from httpx_wireguard._streams import AsyncTcpStream, SyncStream
from httpx_wireguard.testing import IPV4, IPV6, WireGuardPeer
from tests.drivers.runtimes import CANCELLED, LOOPS, PATIENCE, RUNTIMES, Body, Job, Kit, job_of
from tests.tls_server import TlsServer, client_context, server_context

AT_ONCE = 2.0  # seconds; on a busy machine, and far below every timer of the protocols
BLACK_HOLE = "10.66.9.9"  # an address of nobody
ECHO, TLS_ECHO, SILENT, GREETER, RESETTER, HALF_CLOSER = 7, 443, 9, 10, 11, 12
_received: dict[int, str] = {}  # by the client's port: what the half-closer heard, as a digest
_heard = threading.Condition()
_tls = server_context()
_client = itertools.cycle(range(16))  # a key that was used a moment ago may have to wait before it is heard again


def echo(stream: SyncStream | TlsServer) -> None:
    while data := stream.read(65536):
        stream.write(data)


def reset(stream: SyncStream) -> None:
    """As soon as a byte came."""
    stream.read(1)
    inner = stream._stream
    assert isinstance(inner, AsyncTcpStream)
    with inner._driver.lock:
        inner._socket.abort(inner._driver.now())
        inner._driver.pump()


def half_close(stream: SyncStream) -> None:
    """End our direction at once, and hear the other to its end."""
    inner = stream._stream
    assert isinstance(inner, AsyncTcpStream)
    with inner._driver.lock:
        inner._socket.shutdown_write(inner._driver.now())  # type: ignore[attr-defined]  # the engine's own socket
        inner._driver.pump()
    digest = hashlib.sha256()
    while data := stream.read(65536):
        digest.update(data)
    with _heard:
        _received[stream.get_extra_info("server_addr")[1]] = digest.hexdigest()
        _heard.notify_all()


def greet(stream: SyncStream) -> None:
    stream.write(b"goodbye")


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers = {
        ECHO: echo,
        TLS_ECHO: lambda stream: echo(TlsServer(stream, _tls)),
        SILENT: lambda stream: threading.Event().wait(),  # neither reads nor ends
        GREETER: greet,
        RESETTER: reset,
        HALF_CLOSER: half_close,
    }
    with WireGuardPeer(servers=servers, names={"dead.test": (BLACK_HOLE,)}, clients=16) as peer:  # type: ignore[arg-type]  # of a lambda's result
        yield peer


class Everywhere:
    """Runs bodies on one runtime."""

    def __init__(self, peer: WireGuardPeer, name: str) -> None:
        self.peer = peer
        self._run = RUNTIMES[name]

    def __call__(self, body: Body) -> None:
        self._run(self.peer.client_config(next(_client)), body)


@pytest.fixture(params=RUNTIMES)
def everywhere(peer: WireGuardPeer, request: pytest.FixtureRequest) -> Everywhere:
    return Everywhere(peer, request.param)


@pytest.fixture(params=LOOPS)
def on_loops(peer: WireGuardPeer, request: pytest.FixtureRequest) -> Everywhere:
    return Everywhere(peer, request.param)


async def connect(kit: Kit, port: int, host: str = IPV4) -> Any:
    return await kit.tunnel.connect_tcp(host, port, PATIENCE)


async def connect_tls(kit: Kit) -> Any:
    return await (await connect(kit, TLS_ECHO)).start_tls(client_context(), "server.test", PATIENCE)


async def read_exactly(stream: Any, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await stream.read(65536, PATIENCE)
        assert data, f"ended after {len(received)} of {size} bytes"
        received += data
    return bytes(received)


async def exchange(stream: Any, data: bytes) -> bytes:
    await stream.write(data, PATIENCE)
    return await read_exactly(stream, len(data))


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_stream_is_read_and_written_at_the_same_time(everywhere: Everywhere, encrypted: bool) -> None:
    async def body(kit: Kit) -> None:
        stream = await (connect_tls(kit) if encrypted else connect(kit, ECHO, IPV6))
        data = random.Random(1).randbytes(1_500_000)
        writer = job_of(kit, stream.write, data, PATIENCE)
        assert await read_exactly(stream, len(data)) == data
        await writer.result()
        assert stream.get_extra_info("is_readable") is False
        assert (stream.get_extra_info("ssl_object") is not None) == encrypted
        await stream.aclose()
        assert stream.get_extra_info("is_readable") is True

    everywhere(body)


def test_the_other_sides_end_is_an_empty_read_and_makes_an_idle_stream_readable(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect(kit, GREETER)
        assert await read_exactly(stream, 7) == b"goodbye"
        assert [await stream.read(10, PATIENCE), await stream.read(10)] == [b"", b""]
        assert stream.get_extra_info("is_readable") is True
        await stream.aclose()

    everywhere(body)


def test_a_half_closed_stream_is_written_on(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect(kit, HALF_CLOSER)
        assert await stream.read(10, PATIENCE) == b""
        data = random.Random(2).randbytes(400_000)
        await stream.write(data, PATIENCE)
        port = stream.get_extra_info("client_addr")[1]
        await stream.aclose()
        await kit.until(lambda: port in _received)
        assert _received[port] == hashlib.sha256(data).hexdigest()

    everywhere(body)


def test_a_reset_is_the_reads_and_the_writes_error(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect(kit, RESETTER)
        reader = job_of(kit, stream.read, 1)
        await kit.until_waiting()
        await stream.write(b"x")
        with pytest.raises(ConnectionReset):
            await reader.result()
        with pytest.raises(ConnectionReset):
            await stream.write(b"more")
        assert stream.get_extra_info("is_readable") is True
        await stream.aclose()

    everywhere(body)


def test_a_read_times_out_when_its_time_is_over_and_the_stream_lives_on(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        for stream in (await connect(kit, ECHO), await connect_tls(kit)):
            for timeout in (0.05, 0):
                start = time.monotonic()
                with pytest.raises(OperationTimeout, match=f"sent nothing for {timeout} s"):
                    await stream.read(1, timeout)
                assert timeout <= time.monotonic() - start < timeout + 2
            assert await exchange(stream, b"hello") == b"hello"
            await stream.aclose()

    everywhere(body)


def test_a_write_times_out_when_nobody_reads(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect(kit, SILENT)
        start = time.monotonic()
        with pytest.raises(OperationTimeout, match=r"took \d+ of 50000000 bytes, then none for 0\.2 s"):
            await stream.write(bytes(50_000_000), 0.2)
        assert 0.2 <= time.monotonic() - start < PATIENCE
        await stream.aclose()

    everywhere(body)


@pytest.mark.parametrize("host", [BLACK_HOLE, "dead.test"])
def test_a_connect_times_out_and_leaves_nothing_open(everywhere: Everywhere, host: str) -> None:
    async def body(kit: Kit) -> None:
        start = time.monotonic()
        with pytest.raises(OperationTimeout, match="no answer"):
            await kit.tunnel.connect_tcp(host, 80, 0.2)
        assert 0.2 <= time.monotonic() - start < 2
        assert kit.tunnel.stats().connections == 0

    everywhere(body)


def test_a_closed_port_refuses(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        with pytest.raises(ConnectionRefused):
            await kit.tunnel.connect_tcp(IPV4, 1, PATIENCE)

    everywhere(body)


def test_a_tls_handshake_that_fails_closes_the_connection(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect(kit, TLS_ECHO)
        with pytest.raises(ssl.SSLCertVerificationError):
            await stream.start_tls(client_context(trusted=False), "server.test", PATIENCE)
        with pytest.raises(ConnectionReset, match="closed on this side"):
            await stream.read(1)
        stream = await connect(kit, SILENT)
        with pytest.raises(OperationTimeout, match="TLS handshake"):
            await stream.start_tls(client_context(), "server.test", 0.05)
        with pytest.raises(ConnectionReset, match="closed on this side"):
            await stream.write(b"x")

    everywhere(body)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("by", ["task", "thread"])
def test_close_wakes_the_reader_and_the_writer(everywhere: Everywhere, encrypted: bool, by: str) -> None:
    async def body(kit: Kit) -> None:
        stream = await (connect_tls(kit) if encrypted else connect(kit, SILENT))
        reader = job_of(kit, stream.read, 1)
        await kit.until_waiting(1)
        jobs = [reader]
        if not encrypted:  # the echo would feed the reader
            jobs.append(job_of(kit, stream.write, bytes(50_000_000)))
            await kit.until_waiting(2)
        start = time.monotonic()
        if by == "task":
            await stream.aclose()
        else:
            await kit.begin_blocking(stream.close).result()
        for job in jobs:
            outcome = await job.outcome()
            assert isinstance(outcome, ConnectionReset), outcome
            assert "closed on this side" in str(outcome)
        assert time.monotonic() - start < AT_ONCE
        await stream.aclose()

    everywhere(body)


@pytest.mark.parametrize("by", ["task", "thread"])
def test_closing_the_tunnel_wakes_everybody(everywhere: Everywhere, by: str) -> None:
    async def body(kit: Kit) -> None:
        tunnel = kit.tunnel
        quiet, full, tls = await connect(kit, SILENT), await connect(kit, SILENT), await connect_tls(kit)
        listener, datagrams = await tunnel.listen_tcp(0), await tunnel.open_udp()
        jobs = [
            job_of(kit, quiet.read, 1),
            job_of(kit, tls.read, 1),
            job_of(kit, full.write, bytes(50_000_000)),
            job_of(kit, listener.accept),
            job_of(kit, datagrams.receive),
            job_of(kit, tunnel.connect_tcp, BLACK_HOLE, 80),
            job_of(kit, tunnel.ping, BLACK_HOLE, None),
        ]
        await kit.until_waiting(len(jobs))
        start = time.monotonic()
        close = (kit.shared or tunnel).close
        if by == "task":
            close()
        else:
            await kit.begin_blocking(close).result()
        for job in jobs:
            outcome = await job.outcome()
            assert isinstance(outcome, TunnelClosed), outcome
        assert time.monotonic() - start < AT_ONCE
        with pytest.raises(TunnelClosed, match="open a new one"):
            await tunnel.connect_tcp(IPV4, ECHO)
        with pytest.raises(TunnelClosed):
            await quiet.write(b"x")
        assert quiet.get_extra_info("is_readable") is True
        for stream in (quiet, full, tls):
            await stream.aclose()

    everywhere(body)


def test_a_listener_accepts_times_out_and_ends(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        await kit.tunnel.ping(IPV4, PATIENCE)  # from here on the peer knows where we are
        listener = await kit.tunnel.listen_tcp(8080)
        with pytest.raises(OperationTimeout, match=r"port 8080 within 0\.02 s"):
            await listener.accept(0.02)
        acceptor = job_of(kit, listener.accept)
        ours = kit.tunnel.config.address[0].ip
        far = await kit.begin_blocking(lambda: everywhere.peer.tunnel.connect_tcp(str(ours), 8080, PATIENCE)).result()
        near = await acceptor.result()
        await kit.begin_blocking(lambda: far.write(b"ping")).result()
        assert await near.read(10, PATIENCE) == b"ping"
        await near.aclose()
        assert await kit.begin_blocking(lambda: far.read(10, PATIENCE)).result() == b""
        far.close()
        waiting = [job_of(kit, listener.accept) for _ in range(2)]
        await kit.until_waiting(2)
        start = time.monotonic()
        await listener.aclose()
        for job in waiting:
            assert isinstance(await job.outcome(), TunnelClosed)
        assert time.monotonic() - start < AT_ONCE

    everywhere(body)


def test_of_two_who_accept_one_gets_the_connection_and_one_waits_on(everywhere: Everywhere) -> None:
    """The connection is there before either asks: whoever comes second must not take the other's readiness for its."""

    async def body(kit: Kit) -> None:
        await kit.tunnel.ping(IPV4, PATIENCE)
        listener = await kit.tunnel.listen_tcp(8080)
        ours = kit.tunnel.config.address[0].ip
        far = await kit.begin_blocking(lambda: everywhere.peer.tunnel.connect_tcp(str(ours), 8080, PATIENCE)).result()
        await kit.until(lambda: bool(listener_queue(listener)))
        jobs = [job_of(kit, listener.accept) for _ in range(2)]
        await kit.until(lambda: sum(job.done for job in jobs) == 1)
        await kit.until_waiting(1)
        (winner,) = (job for job in jobs if job.done)
        await (await winner.result()).aclose()
        await listener.aclose()
        (loser,) = (job for job in jobs if job is not winner)
        assert isinstance(await loser.outcome(), TunnelClosed)
        far.close()

    everywhere(body)


def listener_queue(listener: Any) -> Any:
    """The connections that wait, of a listener in either dress."""
    inner = getattr(listener, "_target", listener)
    return getattr(inner._listener, "_listener", inner._listener)._queue


def test_udp_goes_both_ways_times_out_and_ends(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        near, far = await kit.tunnel.open_udp(), everywhere.peer.tunnel.open_udp()
        await near.send(b"datagram", (IPV4, far.port))
        data, source = await kit.begin_blocking(lambda: far.receive(PATIENCE)).result()
        assert (data, source[1]) == (b"datagram", near.port)
        far.send(b"answer", source)
        assert await near.receive(PATIENCE) == (b"answer", (IPV4, far.port))
        with pytest.raises(OperationTimeout, match=r"no datagram .* within 0\.02 s"):
            await near.receive(0.02)
        receiver = job_of(kit, near.receive)
        await kit.until_waiting()
        start = time.monotonic()
        await near.aclose()
        assert isinstance(await receiver.outcome(), TunnelClosed)
        assert time.monotonic() - start < AT_ONCE, "no packet comes that would wake it by the way"
        far.close()

    everywhere(body)


def test_names_are_resolved_and_hosts_pinged(everywhere: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        assert set(await kit.tunnel.resolve("peer.test", PATIENCE)) == {IPV4, IPV6}
        with pytest.raises(NameResolutionError, match="nobody"):
            await kit.tunnel.resolve("nobody.test", PATIENCE)
        assert 0 < await kit.tunnel.ping(IPV6, PATIENCE) < PATIENCE
        with pytest.raises(OperationTimeout, match="no reply"):
            await kit.tunnel.ping(BLACK_HOLE, 0.05)
        stream = await connect(kit, ECHO, "peer.test")
        assert stream.get_extra_info("wireguard").host == "peer.test"
        await stream.aclose()
        await kit.tunnel.wait_ready(PATIENCE)

    everywhere(body)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_two_readers_of_one_stream_get_every_byte_once(everywhere: Everywhere, encrypted: bool) -> None:
    async def body(kit: Kit) -> None:
        stream = await (connect_tls(kit) if encrypted else connect(kit, ECHO))
        seen: list[bytes] = []

        async def reader() -> None:
            while sum(map(len, seen)) < 60_000:
                try:
                    seen.append(await stream.read(3000, 0.2))
                except OperationTimeout:  # the other one took the last
                    continue

        jobs = [kit.begin(reader) for _ in range(3)]
        for number in range(60):
            await stream.write(bytes([number]) * 1000, PATIENCE)
        for job in jobs:
            await job.result()
        counts = [0] * 60
        for data in seen:
            for number in data:
                counts[number] += 1
        assert counts == [1000] * 60
        await stream.aclose()

    everywhere(body)


def test_a_reader_behind_another_gets_what_that_one_left(everywhere: Everywhere) -> None:
    """It lies decrypted in the session: no packet comes that would wake the second by the way."""

    async def body(kit: Kit) -> None:
        stream = await connect_tls(kit)
        jobs = [job_of(kit, stream.read, 10) for _ in range(2)]
        await kit.until_waiting(2)
        start = time.monotonic()
        await stream.write(b"x" * 20)
        for job in jobs:
            assert await job.result() == b"x" * 10
        assert time.monotonic() - start < AT_ONCE
        await stream.aclose()

    everywhere(body)


# -- cancelling


async def cancelled_at(kit: Kit, job: Job, moment: int) -> Any:
    """Its outcome when it is cancelled at the so-and-so-many-th moment: first turn by turn, later by time."""
    for _ in range(min(moment, 20)):
        await kit.pause(0)
    if moment > 20 and not job.done:
        await kit.pause((moment - 20) * 0.0004)
    job.cancel()
    return await job.outcome()


def moments(outcomes: list[Any]) -> Iterator[int]:
    """Later and later, until what is cancelled there has ended a few times before."""
    moment = 0.0
    while sum(outcome != CANCELLED for outcome in outcomes) < 15:
        yield int(moment)
        moment = moment + 1 if moment < 30 else moment * 1.1


def test_a_cancelled_connect_leaves_nothing_open(on_loops: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        outcomes: list[Any] = []
        for moment in moments(outcomes):
            job = job_of(kit, kit.tunnel.connect_tcp, "peer.test", ECHO, PATIENCE)
            outcomes.append(await cancelled_at(kit, job, moment))
            if outcomes[-1] != CANCELLED:
                with kit.driver.lock:  # a reset leaves nothing behind, as FIN would
                    outcomes[-1]._socket.abort(kit.driver.now())
                    kit.driver.pump()
            assert kit.waiting() == 0, moment
            assert kit.tunnel.stats().connections == 0, moment
            assert not kit.driver.engine.stack._udp, moment
        assert outcomes.count(CANCELLED) >= 3, "it was never cancelled in the middle"

    on_loops(body)


def test_a_cancelled_handshake_closes_the_connection(on_loops: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        outcomes: list[Any] = []
        for moment in moments(outcomes):
            stream = await connect(kit, TLS_ECHO)
            job = job_of(kit, stream.start_tls, client_context(), "server.test", PATIENCE)
            outcomes.append(await cancelled_at(kit, job, moment))
            assert kit.waiting() == 0, moment
            if outcomes[-1] != CANCELLED:
                assert await exchange(outcomes[-1], b"hello") == b"hello"
                await outcomes[-1].aclose()
            elif moment > 0:  # else it had not begun
                assert str(stream) == "closed", moment
            await stream.aclose()
        assert outcomes.count(CANCELLED) >= 3

    on_loops(body)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_cancelled_read_loses_nothing(on_loops: Everywhere, encrypted: bool) -> None:
    async def body(kit: Kit) -> None:
        stream = await (connect_tls(kit) if encrypted else connect(kit, ECHO))
        chance = random.Random(3)
        cancelled = rounds = 0
        while rounds < 150 or cancelled <= 20:  # how often depends on how fast the far side is
            rounds += 1
            piece, received = chance.randbytes(chance.randrange(1, 5000)), b""
            await stream.write(piece, PATIENCE)
            while len(received) < len(piece):
                job = job_of(kit, stream.read, 3000, PATIENCE)
                data = await cancelled_at(kit, job, chance.choice((1, 2, 3, 5, 25)))
                if data == CANCELLED:
                    cancelled += 1
                else:
                    assert isinstance(data, bytes), data
                    received += data
            assert received == piece
        await stream.aclose()

    on_loops(body)


def test_a_cancelled_write_breaks_no_tls_record(on_loops: Everywhere) -> None:
    """Nobody knows how much of it went out, but what did is whole, and the next write comes after it."""

    async def body(kit: Kit) -> None:
        stream = await connect_tls(kit)
        for moment in (2, 21, 30, 70):
            flood = job_of(kit, stream.write, b"1" * 150_000_000)  # nobody reads its echo yet
            assert await cancelled_at(kit, flood, moment) == CANCELLED
            received = bytearray()
            writer = job_of(kit, stream.write, b"2" * 1000 + b"END", PATIENCE)
            while not received.endswith(b"END"):
                received += await stream.read(65536, PATIENCE)
            await writer.result()
            assert bytes(received) == b"1" * (len(received) - 1003) + b"2" * 1000 + b"END"
        await stream.aclose()

    on_loops(body)


def test_whatever_else_is_cancelled_leaves_nothing_behind(on_loops: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        tunnel, stack = kit.tunnel, kit.driver.engine.stack
        listener, datagrams = await tunnel.listen_tcp(0), await tunnel.open_udp()
        open_sockets = len(stack._udp)
        for operation in (
            listener.accept,
            datagrams.receive,
            lambda: tunnel.ping(BLACK_HOLE, None),
            lambda: tunnel.connect_tcp(BLACK_HOLE, 80),
        ):
            job = kit.begin(operation)
            await kit.until_waiting()
            job.cancel()
            assert await job.outcome() == CANCELLED
            assert kit.waiting() == 0
            assert (len(stack._udp), len(stack._pings), stack.connection_count) == (open_sockets, 0, 0)
        await listener.aclose()
        await datagrams.aclose()

    on_loops(body)


def test_whoever_waited_behind_a_cancelled_reader_goes_on(on_loops: Everywhere) -> None:
    async def body(kit: Kit) -> None:
        stream = await connect_tls(kit)
        first, second = job_of(kit, stream.read, 10), job_of(kit, stream.read, 10)
        await kit.until_waiting(2)
        first.cancel()
        await stream.write(b"hello")
        assert await first.outcome() == CANCELLED
        assert await second.result() == b"hello"
        await stream.aclose()

    on_loops(body)


def test_what_needs_no_wait_lets_other_tasks_run(on_loops: Everywhere) -> None:
    """Also a read whose time is over before it begins: its answer comes by other tasks' work."""

    async def body(kit: Kit) -> None:
        stream = await connect(kit, ECHO)
        await stream.write(b"x")
        data, tries = b"", 0
        while not data:
            try:
                data = await stream.read(1, 0)
            except OperationTimeout:
                tries += 1
                assert tries < 100_000, "the loop never came to read the answer"
                time.sleep(0.0001)  # blocks the loop: the peer's threads, in this process, must get the interpreter
        assert data == b"x"
        await stream.aclose()

    on_loops(body)
