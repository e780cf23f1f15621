"""Processes: what a forked child may do, and how the interpreter ends over a tunnel that somebody still uses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from httpx_wireguard import Config, OperationTimeout, PeerConfig, Tunnel, TunnelClosed
from httpx_wireguard._streams import AsyncTcpStream, SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard._waiting import run
from httpx_wireguard.testing import IPV4, WireGuardPeer
from tests.drivers.runtimes import PATIENCE, RUNTIMES, AsyncioKit, Job, Kit, TrioKit, job_of
from tests.tls_server import TlsServer, client_context, server_context

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
QUICK = 5.0  # seconds for an exit, or for a child that is refused everything; generous, for machines are busy

_TRANSPORT = struct.Struct("<IIQ")  # type, receiver index, counter: the header of a transport message, WireGuard 5.4.6


def echo(stream: SyncStream | TlsServer) -> None:
    while data := stream.read(65536):
        stream.write(data)


class Relay:
    """Between a client and its server: notes what the client sends."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stop = socket.socketpair()
        for one in (self._near, self._far):
            one.bind(("127.0.0.1", 0))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.port = self._near.getsockname()[1]
        self.nonces: Counter[tuple[int, int]] = Counter()
        self.sources: set[Any] = set()
        self._client: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._near, self._far, self._stop[0]], [], [])
            if self._stop[0] in ready:
                return
            if self._near in ready:
                data, self._client = self._near.recvfrom(65536)
                self.sources.add(self._client)
                if len(data) >= _TRANSPORT.size and data[0] == 4:
                    _, index, counter = _TRANSPORT.unpack_from(data)
                    self.nonces[index, counter] += 1
                self._far.sendto(data, self._server)
            if self._far in ready and self._client is not None:
                self._near.sendto(self._far.recv(65536), self._client)

    def close(self) -> None:
        self._stop[1].send(b"x")
        self._thread.join(PATIENCE)
        for one in (self._near, self._far, *self._stop):
            one.close()


@pytest.fixture
def peer() -> Iterator[WireGuardPeer]:
    tls = server_context()
    servers: Any = {
        7: echo,
        9: lambda stream: threading.Event().wait(),
        443: lambda stream: echo(TlsServer(stream, tls)),
    }
    with WireGuardPeer(servers=servers) as peer:
        yield peer


@pytest.fixture
def relay(peer: WireGuardPeer) -> Iterator[Relay]:
    relay = Relay(("127.0.0.1", peer.tunnel.listen_port))
    yield relay
    relay.close()


def through(relay: Relay, config: Config) -> Config:
    (only,) = config.peers
    moved = PeerConfig(only.public_key, only.allowed_ips, f"127.0.0.1:{relay.port}")
    return Config(config.private_key, config.address, [moved], dns=config.dns)


# -- fork


class Everything:
    """All that a process can try with a tunnel and what was opened on it."""

    def __init__(self, tunnel: Any, plain: Any, busy: Any, tls: Any, listener: Any, datagrams: Any) -> None:
        self.tunnel = tunnel
        self.streams = {"plain": plain, "busy": busy, "tls": tls}
        self.listener = listener
        self.datagrams = datagrams

    def operations(self) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
        tunnel = self.tunnel
        yield "connect", lambda: tunnel.connect_tcp(IPV4, 7, PATIENCE)
        yield "connect by name", lambda: tunnel.connect_tcp("peer.test", 7, PATIENCE)
        yield "listen", lambda: tunnel.listen_tcp(0)
        yield "open_udp", lambda: tunnel.open_udp()
        yield "resolve", lambda: tunnel.resolve("peer.test", PATIENCE)
        yield "ping", lambda: tunnel.ping(IPV4, PATIENCE)
        yield "wait_ready", lambda: tunnel.wait_ready(PATIENCE)
        yield "start", lambda: tunnel.start()
        for name, stream in self.streams.items():
            yield f"{name} read", lambda stream=stream: stream.read(65536, PATIENCE)  # type: ignore[misc]  # mypy cannot infer a lambda's default
            yield f"{name} write", lambda stream=stream: stream.write(b"child", PATIENCE)  # type: ignore[misc]  # likewise
        yield "accept", lambda: self.listener.accept(PATIENCE)
        yield "receive", lambda: self.datagrams.receive(PATIENCE)
        yield "send", lambda: self.datagrams.send(b"child", (IPV4, 7))
        yield "start_tls", lambda: self.streams["plain"].start_tls(client_context(), "server.test", PATIENCE)

    async def refused(self) -> list[str]:
        """What was not refused as it should be."""
        wrong = []
        start = time.monotonic()
        for name in ("plain", "tls"):
            if self.streams[name].get_extra_info("is_readable") is not True:
                wrong.append(f"{name} is not readable")
        for name, operation in self.operations():
            try:
                result = await operation()
                if name.endswith("read") and result:  # what had come before the fork
                    while await operation():
                        pass
                wrong.append(f"{name}: {result!r}")
            except TunnelClosed as error:
                if "open a tunnel of its own after the fork" not in str(error):
                    wrong.append(f"{name}: {error}")
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
        for stream in self.streams.values():
            await stream.aclose()
        await self.listener.aclose()
        await self.datagrams.aclose()
        await self.tunnel.aclose()
        if time.monotonic() - start > QUICK:
            wrong.append(f"it took {time.monotonic() - start:.1f} s")
        return wrong


def in_forked_child(body: Callable[[], list[str]]) -> str:
    """What the child has to say; "" when all is well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # trio's, of the signal handling that it inherits
                complaints = body()
                gc.collect()
            os.write(writer, "\n".join(complaints).encode() or b"fine")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], PATIENCE)
        said = os.read(reader, 65536).decode() if ready else "the child hangs"
    finally:
        os.close(reader)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return "" if said == "fine" else said or "the child died"


def refused_by(kit: Kit, everything: Everything) -> list[str]:
    """Run `refused` as the parent's own library would."""
    if isinstance(kit, TrioKit):
        return trio.run(everything.refused)
    if isinstance(kit, AsyncioKit):
        return asyncio.run(everything.refused())
    return run(everything.refused())


@needs_fork
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_forked_child_is_refused_everything_and_the_parent_goes_on(
    peer: WireGuardPeer, relay: Relay, name: str
) -> None:
    """Two processes with one session's keys would use a nonce twice."""

    async def body(kit: Kit) -> None:
        tunnel = kit.tunnel
        plain, busy = [await tunnel.connect_tcp(IPV4, 7, PATIENCE) for _ in range(2)]
        tls = await (await tunnel.connect_tcp(IPV4, 443, PATIENCE)).start_tls(client_context(), "server.test", PATIENCE)
        assert not any(stream.get_extra_info("is_readable") for stream in (plain, tls))
        everything = Everything(tunnel, plain, busy, tls, await tunnel.listen_tcp(0), await tunnel.open_udp())
        data = random.Random(6).randbytes(1_000_000)
        received = bytearray()

        async def read() -> None:
            while len(received) < len(data):
                received.extend(await busy.read(65536, PATIENCE))

        transfer: list[Job] = [kit.begin(read), job_of(kit, busy.write, data, PATIENCE)]
        await kit.until(lambda: len(received) > 50_000)
        said = await kit.begin_blocking(lambda: in_forked_child(lambda: refused_by(kit, everything))).result()
        assert said == ""
        for job in transfer:
            await job.result()
        assert received == data
        for stream in (plain, tls):
            await stream.write(b"still here")
            assert await stream.read(20, PATIENCE) == b"still here"
            await stream.aclose()
        await busy.aclose()

    RUNTIMES[name](through(relay, peer.client_config()), body)
    repeated = [nonce for nonce, times in dict(relay.nonces).items() if times > 1]
    assert not repeated
    assert sum(relay.nonces.values()) > 500
    assert len(relay.sources) == 1


@needs_fork
@pytest.mark.parametrize("name", ["threads", "asyncio", "trio", "asyncio-shared", "trio-shared"])
def test_children_forked_at_any_moment_send_nothing(peer: WireGuardPeer, relay: Relay, name: str) -> None:
    """While packets fly and other threads hold the lock, the child writes to every stream at once, and exits."""

    async def body(kit: Kit) -> None:
        stream = await kit.tunnel.connect_tcp(IPV4, 7, PATIENCE)
        other = await kit.tunnel.connect_tcp(IPV4, 7, PATIENCE)
        received = bytearray()

        async def read() -> None:
            while not received.endswith(b"END"):
                received.extend(await stream.read(65536, PATIENCE))

        def child() -> list[str]:
            async def write() -> list[str]:
                with contextlib.suppress(TunnelClosed):
                    await other.write(b"from the child")
                    return ["it was not refused"]
                await other.aclose()
                await kit.tunnel.aclose()
                return []

            if isinstance(kit, TrioKit):
                return trio.run(write)
            return asyncio.run(write()) if isinstance(kit, AsyncioKit) else run(write())

        reader = kit.begin(read)
        for number in range(12):
            writer = job_of(kit, stream.write, bytes([number]) * 100_000, PATIENCE)
            assert await kit.begin_blocking(lambda: in_forked_child(child)).result() == ""
            await writer.result()
        await stream.write(b"END")
        await reader.result()
        assert len(received) == 1_200_003
        await other.write(b"from the parent")
        assert await other.read(100, PATIENCE) == b"from the parent"

    RUNTIMES[name](through(relay, peer.client_config()), body)
    assert not [nonce for nonce, times in dict(relay.nonces).items() if times > 1]


@needs_fork
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_child_forked_by_a_task_may_close_all_and_harms_no_parent(peer: WireGuardPeer, name: str) -> None:
    """What the loop watches, it watches for the parent too: the selector is one and the same."""

    async def body(kit: Kit) -> None:
        stream = await kit.tunnel.connect_tcp(IPV4, 7, PATIENCE)
        inner = getattr(stream, "_target", stream)
        tunnel = kit.shared or getattr(kit.tunnel, "_target", kit.tunnel)

        def child() -> list[str]:
            assert kit.driver.engine.device._closed, "it keeps the keys"
            assert inner.get_extra_info("is_readable")
            inner.close()
            tunnel.close()
            return []

        assert in_forked_child(child) == ""
        await stream.write(b"still here")
        assert await stream.read(20, PATIENCE) == b"still here"
        await stream.aclose()

    RUNTIMES[name](peer.client_config(), body)


@needs_fork
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_task_that_slept_through_a_fork_ends_in_the_child_and_leaves_no_lock_held(
    peer: WireGuardPeer, shared: bool
) -> None:
    """In trio, whose run goes on in a forked child; asyncio's does not."""

    async def main(conf: Config | Tunnel) -> int:
        outcomes: list[type[Exception]] = []

        async def read(stream: AsyncTcpStream) -> None:
            try:
                await stream.read(1, 0.2)
            except (OperationTimeout, TunnelClosed) as error:
                outcomes.append(type(error))

        async with AsyncTunnel(conf) as tunnel:
            stream = await tunnel.connect_tcp(IPV4, 9, PATIENCE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, stream)
                await trio.testing.wait_all_tasks_blocked()
                pid = os.fork()
            if pid == 0:
                with contextlib.suppress(TunnelClosed):
                    await tunnel.connect_tcp(IPV4, 7, PATIENCE)
                    outcomes.append(AssertionError)
                os._exit(0 if outcomes in ([OperationTimeout], [TunnelClosed]) else 1)
            _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
            assert outcomes == [OperationTimeout]
            return os.waitstatus_to_exitcode(status)

    def guarded(conf: Config | Tunnel) -> int:
        own = os.getpid()
        try:
            return trio.run(main, conf)
        finally:
            if os.getpid() != own:
                os._exit(2)

    if not shared:
        assert guarded(peer.client_config()) == 0
        return
    with Tunnel(peer.client_config()) as tunnel:
        assert guarded(tunnel) == 0


@needs_fork
def test_a_child_of_multiprocessing_is_told_to_open_its_own_and_can(peer: WireGuardPeer) -> None:
    """A tunnel that had not been started is the child's as well as the parent's."""
    with Tunnel(peer.client_config()) as tunnel, WireGuardPeer(servers={7: echo}) as other:
        stream = tunnel.connect_tcp(IPV4, 7, PATIENCE)
        fresh = Tunnel(other.client_config())

        def child() -> None:
            with pytest.raises(TunnelClosed, match="after the fork"):
                stream.write(b"x")
            with pytest.raises(TunnelClosed, match="after the fork"):
                run(AsyncTunnel(tunnel).connect_tcp(IPV4, 7))
            with fresh:
                mine = fresh.connect_tcp(IPV4, 7, PATIENCE)
                mine.write(b"mine")
                assert mine.read(10, PATIENCE) == b"mine"

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        stream.write(b"hello")
        assert stream.read(10, PATIENCE) == b"hello"


# -- exit

PROLOGUE = """
import asyncio, signal, sys, threading, time
import trio
from httpx_wireguard import Tunnel
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard.testing import IPV4, WireGuardPeer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def echo(stream):
    while data := stream.read(65536):
        stream.write(data)

peer = WireGuardPeer(servers={7: echo, 9: lambda stream: stream.read(1)}, clients=2)
peer.start()
config = peer.client_config()

def ready():
    print("ready", flush=True)

def daemon(target):
    threading.Thread(target=target, daemon=True).start()

def talk(stream):
    while True:
        stream.write(b"x" * 1000)
        stream.read(65536)

async def atalk(stream):
    while True:
        await stream.write(b"x" * 1000)
        await stream.read(65536)
"""

ENDINGS = {
    "threads read and talk": """
        tunnel = Tunnel(config)
        silent, *others = [tunnel.connect_tcp(IPV4, port, 20) for port in (9, 7, 7)]
        daemon(lambda: silent.read(1))
        for other in others:
            daemon(lambda other=other: talk(other))
        time.sleep(0.1)
        ready()
    """,
    "tasks of a daemon's asyncio loop read and talk": """
        tunnel = AsyncTunnel(config)
        async def main():
            silent, other = [await tunnel.connect_tcp(IPV4, port, 20) for port in (9, 7)]
            asyncio.get_running_loop().call_later(0.1, done.set)
            await asyncio.gather(silent.read(1), atalk(other))
        done = threading.Event()
        daemon(lambda: asyncio.run(main()))
        done.wait()
        ready()
    """,
    "tasks of a daemon's trio run read and talk": """
        tunnel = AsyncTunnel(config)
        async def main():
            silent, other = [await tunnel.connect_tcp(IPV4, port, 20) for port in (9, 7)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(silent.read, 1)
                nursery.start_soon(atalk, other)
                await trio.sleep(0.1)
                done.set()
        done = threading.Event()
        daemon(lambda: trio.run(main))
        done.wait()
        ready()
    """,
    "a daemon's loop over a shared tunnel": """
        tunnel = Tunnel(config)
        async def main():
            shared = AsyncTunnel(tunnel)
            silent, other = [await shared.connect_tcp(IPV4, port, 20) for port in (9, 7)]
            asyncio.get_running_loop().call_later(0.1, done.set)
            await asyncio.gather(silent.read(1), atalk(other))
        done = threading.Event()
        daemon(lambda: asyncio.run(main()))
        done.wait()
        ready()
    """,
    "a loop that ended, its tunnel never closed": """
        tunnel = AsyncTunnel(config)
        async def main():
            global stream
            stream = await tunnel.connect_tcp(IPV4, 7, 20)
            await stream.write(b"x" * 100_000)
        asyncio.run(main())
        ready()
    """,
    "a trio run that ended, its tunnel never closed": """
        tunnel = AsyncTunnel(config)
        async def main():
            global stream
            stream = await tunnel.connect_tcp(IPV4, 7, 20)
            await stream.write(b"x" * 100_000)
        trio.run(main)
        ready()
    """,
    "an open loop that rests": """
        tunnel = AsyncTunnel(config)
        loop = asyncio.new_event_loop()
        stream = loop.run_until_complete(tunnel.connect_tcp(IPV4, 7, 20))
        loop.run_until_complete(stream.write(b"x" * 100_000))
        ready()
    """,
    "a shared tunnel left to the interpreter": """
        tunnel = Tunnel(config)
        async def main():
            global stream
            stream = await AsyncTunnel(tunnel).connect_tcp(IPV4, 7, 20)
            await stream.write(b"x" * 100_000)
        asyncio.run(main())
        ready()
    """,
}

EXITS = {
    "sys.exit in a task": """
        async def main():
            async with AsyncTunnel(config) as tunnel:
                silent, other = [await tunnel.connect_tcp(IPV4, port, 20) for port in (9, 7)]
                tasks = [asyncio.create_task(silent.read(1)), asyncio.create_task(atalk(other))]
                await asyncio.sleep(0.05)
                ready()
                sys.exit(3)
        asyncio.run(main())
    """,
    "sys.exit in a callback, the tunnel unclosed": """
        tunnel = AsyncTunnel(config)
        def leave():
            ready()
            sys.exit(3)
        async def main():
            stream = await tunnel.connect_tcp(IPV4, 9, 20)
            asyncio.get_running_loop().call_later(0.05, leave)
            await stream.read(1)
        asyncio.run(main())
    """,
    "sys.exit under trio": """
        tunnel = AsyncTunnel(config)
        async def main():
            stream = await tunnel.connect_tcp(IPV4, 9, 20)
            with trio.move_on_after(0.05):
                await stream.read(1)
            ready()
            sys.exit(3)
        trio.run(main)
    """,
    "sys.exit over reading threads": """
        tunnel = Tunnel(config)
        stream = tunnel.connect_tcp(IPV4, 9, 20)
        daemon(lambda: stream.read(1))
        time.sleep(0.05)
        ready()
        sys.exit(3)
    """,
}

INTERRUPTED = {
    "a blocking read": """
        tunnel = Tunnel(config)
        stream = tunnel.connect_tcp(IPV4, 9, 20)
        threading.Timer(0.05, ready).start()
        stream.read(1)
    """,
    "asyncio.run": """
        async def main():
            async with AsyncTunnel(config) as tunnel:
                stream = await tunnel.connect_tcp(IPV4, 9, 20)
                asyncio.get_running_loop().call_later(0.05, ready)
                await stream.read(1)
        asyncio.run(main())
    """,
    "asyncio.run over a shared tunnel": """
        async def main():
            stream = await AsyncTunnel(tunnel).connect_tcp(IPV4, 9, 20)
            asyncio.get_running_loop().call_later(0.05, ready)
            await stream.read(1)
        with Tunnel(config) as tunnel:
            asyncio.run(main())
    """,
    "trio.run": """
        async def main():
            async with AsyncTunnel(config) as tunnel:
                stream = await tunnel.connect_tcp(IPV4, 9, 20)
                with trio.move_on_after(0.05):
                    await stream.read(1)
                ready()
                await stream.read(1)
        trio.run(main)
    """,
}


def start(body: str) -> subprocess.Popen[bytes]:
    """A program that has got as far as `ready()`."""
    program = PROLOGUE + textwrap.dedent(body)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != b"ready\n":
        _, errors = process.communicate(timeout=PATIENCE)
        raise AssertionError(errors.decode())
    return process


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Its return code and what it wrote to stderr, soon."""
    begun = time.monotonic()
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert time.monotonic() - begun < QUICK
    return process.returncode, errors


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_quickly_and_silently(ending: str) -> None:
    assert end(start(ENDINGS[ending])) == (0, b"")


@pytest.mark.parametrize("ending", EXITS)
def test_sys_exit_gives_its_code(ending: str) -> None:
    assert end(start(EXITS[ending])) == (3, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
@pytest.mark.parametrize("ending", INTERRUPTED)
def test_an_interrupt_is_a_keyboard_interrupt_and_nothing_else(ending: str) -> None:
    process = start(INTERRUPTED[ending])
    process.send_signal(signal.SIGINT)
    code, errors = end(process)
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert errors.count(b"Traceback") <= 2, errors.decode()  # asyncio shows the cancellation that it came from
    for noise in (b"ResourceWarning", b"never retrieved", b"Exception ignored", b"destroyed"):
        assert noise not in errors, errors.decode()
