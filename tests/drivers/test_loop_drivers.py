"""`AsyncTunnel` in its event loops: lazy start, close, restart, borders between loops, names, timers, and a stress."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import socket
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio

from httpx_wireguard import Config, EndpointError, OperationTimeout, PeerConfig, Tunnel, TunnelClosed
from httpx_wireguard._drivers.asyncio import AsyncioDriver
from httpx_wireguard._drivers.base import READS_PER_STEP, BaseDriver
from httpx_wireguard._drivers.loops import sleep
from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._drivers.trio import TrioDriver
from httpx_wireguard._streams import AsyncTcpStream, SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard.testing import IPV4, WireGuardPeer
from tests.drivers.runtimes import PATIENCE, assert_nobody_waits, count_waiting, run_asyncio, run_uvloop

Main = Callable[[], Coroutine[Any, Any, Any]]

LOOPS: dict[str, Callable[[Main], Any]] = {
    "asyncio": lambda main: run_asyncio(main()),
    "uvloop": lambda main: run_uvloop(main()),
    "trio": trio.run,
}


def echo(stream: SyncStream) -> None:
    while data := stream.read(65536):
        stream.write(data)


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers: Any = {7: echo, 9: lambda stream: threading.Event().wait()}
    with WireGuardPeer(servers=servers, clients=16) as peer:
        yield peer


_client = itertools.count()


@pytest.fixture
def config(peer: WireGuardPeer) -> Config:
    """Not the key of the last test, which may have to wait before it is heard again."""
    return peer.client_config(next(_client) % 16)


@pytest.fixture(params=LOOPS)
def run_loop(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    return LOOPS[request.param]


def driver_of(tunnel: AsyncTunnel | Tunnel) -> BaseDriver:
    assert tunnel._interface is not None
    return tunnel._interface.driver


def is_released(driver: BaseDriver) -> bool:
    return all(one.fileno() == -1 for one in driver.sockets)


async def exchange(stream: AsyncTcpStream, data: bytes) -> bytes:
    await stream.write(data, PATIENCE)
    received = b""
    while len(received) < len(data):
        received += await stream.read(65536, PATIENCE)
    return received


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await sleep(0.001)


async def beside(*operations: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Their results, or exceptions, on whichever library is running."""

    async def caught(operation: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await operation()
        except Exception as error:
            return error

    results: list[Any] = [None] * len(operations)

    async def store(index: int, operation: Callable[[], Awaitable[Any]]) -> None:
        results[index] = await caught(operation)

    if trio.lowlevel.in_trio_task():
        async with trio.open_nursery() as nursery:
            for index, operation in enumerate(operations):
                nursery.start_soon(store, index, operation)
    else:
        await asyncio.gather(*(store(index, operation) for index, operation in enumerate(operations)))
    return results


async def in_thread(call: Callable[[], Any]) -> Any:
    if trio.lowlevel.in_trio_task():
        return await trio.to_thread.run_sync(call)
    return await asyncio.to_thread(call)


# -- life


def test_the_first_connection_starts_it_and_the_end_of_the_with_block_closes_it(
    config: Config, run_loop: Callable[[Main], Any]
) -> None:
    tunnel = AsyncTunnel(config)

    async def main() -> None:
        assert "not started" in repr(tunnel)
        assert tunnel.stats().connections == 0
        stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
        assert "running" in repr(tunnel)
        assert await exchange(stream, b"hello") == b"hello"
        driver = driver_of(tunnel)
        assert isinstance(driver, AsyncioDriver | TrioDriver)
        async with tunnel as same:
            assert same is tunnel
            assert driver_of(tunnel) is driver
        assert "closed" in repr(tunnel)
        assert is_released(driver)
        await tunnel.aclose()
        with pytest.raises(TunnelClosed, match="open a new one"):
            await tunnel.connect_tcp(IPV4, 7)
        with pytest.raises(TunnelClosed, match="open a new one"):
            await stream.read(1)

    run_loop(main)


def test_another_task_than_the_one_that_started_it_may_close_it(
    config: Config, run_loop: Callable[[Main], Any]
) -> None:
    tunnel = AsyncTunnel(config)

    async def read() -> None:
        stream = await tunnel.connect_tcp(IPV4, 9, PATIENCE)
        await stream.read(1)

    async def close() -> None:
        await until(lambda: tunnel._interface is not None and tunnel.stats().connections == 1)
        await until(lambda: count_waiting(driver_of(tunnel)) == 1)
        await tunnel.aclose()

    async def main() -> None:
        outcome, _ = await beside(read, close)
        assert isinstance(outcome, TunnelClosed)
        assert is_released(driver_of(tunnel))

    run_loop(main)


def test_it_closes_in_a_task_that_is_cancelled(config: Config) -> None:
    async def with_trio() -> BaseDriver:
        tunnel = AsyncTunnel(config)
        await tunnel.start()
        with trio.CancelScope() as scope:
            scope.cancel()
            await tunnel.aclose()
        return driver_of(tunnel)

    async def with_asyncio() -> BaseDriver:
        tunnel = AsyncTunnel(config)
        started = asyncio.Event()

        async def work() -> None:
            async with tunnel:
                started.set()
                await asyncio.sleep(PATIENCE)

        task = asyncio.create_task(work())
        await started.wait()
        task.cancel()
        await asyncio.wait({task})
        return driver_of(tunnel)

    for driver in (trio.run(with_trio), asyncio.run(with_asyncio())):
        assert is_released(driver)
        assert driver.engine.closed_by is not None


@pytest.mark.parametrize("second", LOOPS)
def test_the_next_loop_starts_it_anew_and_ends_the_streams_of_the_last(
    config: Config, run_loop: Callable[[Main], Any], second: str
) -> None:
    """Also when nobody closed it, as with SDK clients in scripts that call `asyncio.run` again and again."""
    tunnel = AsyncTunnel(config)

    async def first_main() -> tuple[Any, ...]:
        streams = [await tunnel.connect_tcp(IPV4, 7, PATIENCE) for _ in range(4)]
        for stream in streams:
            assert await exchange(stream, b"1") == b"1"
        return *streams, await tunnel.listen_tcp(0), await tunnel.open_udp()

    async def second_main() -> None:
        before = driver_of(tunnel)
        stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
        assert driver_of(tunnel) is not before
        assert is_released(before)
        assert await exchange(stream, b"2") == b"2"
        for operation in (
            old[0].read(1),
            old[1].write(b"x"),
            listener.accept(),
            datagrams.receive(),
            datagrams.send(b"x", (IPV4, 7)),
        ):
            with pytest.raises(TunnelClosed, match=r"the event loop that this connection belonged to has ended"):
                await operation
        assert old[2].get_extra_info("is_readable") is True
        await old[3].aclose()
        assert await exchange(stream, b"3") == b"3"
        await tunnel.aclose()

    *old, listener, datagrams = run_loop(first_main)
    LOOPS[second](second_main)


@pytest.mark.parametrize("touch", ["read", "write", "close", "is_readable", "send"])
def test_what_is_left_of_an_ended_loop_is_used_first(
    config: Config, run_loop: Callable[[Main], Any], touch: str
) -> None:
    """As a connection pool does when it sees which of its idle connections have ended, before it asks for another."""
    tunnel = AsyncTunnel(config)

    async def first_main() -> tuple[Any, Any]:
        return await tunnel.connect_tcp(IPV4, 7, PATIENCE), await tunnel.open_udp()

    async def second_main() -> None:
        if touch in ("read", "write"):
            with pytest.raises(TunnelClosed, match="has ended"):
                await (stream.read(1) if touch == "read" else stream.write(b"x"))
        elif touch == "close":
            await stream.aclose()
        elif touch == "is_readable":
            assert stream.get_extra_info("is_readable") is True
        else:  # a datagram may get lost
            with contextlib.suppress(TunnelClosed):
                await datagrams.send(b"x", (IPV4, 7))
        old = driver_of(tunnel)
        assert old.engine.closed_by is not None
        assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"new") == b"new"
        assert is_released(old)
        await tunnel.aclose()

    stream, datagrams = run_loop(first_main)
    run_loop(second_main)


def test_a_loop_that_rests_between_two_runs_goes_on_with_the_same_tunnel(config: Config) -> None:
    loop = asyncio.new_event_loop()
    tunnel = AsyncTunnel(config)
    stream = loop.run_until_complete(tunnel.connect_tcp(IPV4, 7, PATIENCE))
    assert stream.get_extra_info("is_readable") is False
    assert loop.run_until_complete(exchange(stream, b"hello")) == b"hello"
    loop.run_until_complete(tunnel.aclose())
    loop.close()


def test_two_loops_that_run_at_once_may_not_share_it(config: Config, run_loop: Callable[[Main], Any]) -> None:
    tunnel = AsyncTunnel(config)

    async def main() -> None:
        stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)

        async def other() -> None:
            for operation in (lambda: tunnel.connect_tcp(IPV4, 7), lambda: stream.read(1), tunnel.wait_ready):
                with pytest.raises(TunnelClosed, match="belongs to another event loop, which still runs"):
                    await operation()

        for run in LOOPS.values():
            await in_thread(lambda run=run: run(other))  # type: ignore[misc]  # mypy cannot infer a lambda's default
        assert await exchange(stream, b"hello") == b"hello"
        await in_thread(tunnel.close)
        await until(lambda: is_released(driver_of(tunnel)))

    run_loop(main)


@pytest.mark.parametrize("kind", ["own", "shared", "shared and answered"])
def test_a_loop_closed_over_a_pending_read_harms_nobody_else(
    config: Config, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL, "asyncio"):  # it complains of the destroyed task, rightly
        _close_a_loop_over_a_pending_read(config, kind)
        gc.collect()


def _close_a_loop_over_a_pending_read(config: Config, kind: str) -> None:
    sync = Tunnel(config)
    tunnel = AsyncTunnel(config if kind == "own" else sync)
    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(tunnel.connect_tcp(IPV4, 7, PATIENCE))
    task = loop.create_task(stream.read(1))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()

    async def in_the_next_loop() -> None:
        assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"hello") == b"hello"
        await tunnel.aclose()

    if kind != "own":
        if kind == "shared and answered":  # which this thread learns, and it was the loop's
            with driver_of(sync).lock:
                stream._socket.send(b"x", time.monotonic())
        other = sync.connect_tcp(IPV4, 7, PATIENCE)
        other.write(b"hello")
        assert other.read(5, PATIENCE) == b"hello"
    asyncio.run(in_the_next_loop())
    sync.close()


def test_asyncios_debug_mode_finds_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = PATIENCE
        async with AsyncTunnel(config) as tunnel:
            stream = await tunnel.connect_tcp("peer.test", 7, PATIENCE)
            assert await exchange(stream, bytes(100_000)) == bytes(100_000)
            with pytest.raises(OperationTimeout):
                await stream.read(1, 0.01)
            waiter = asyncio.create_task(stream.read(1))
            await asyncio.sleep(0.01)
            waiter.cancel()
            await asyncio.wait({waiter})
            await stream.aclose()

    asyncio.run(main(), debug=True)
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_one_that_is_dropped_unclosed_warns_and_releases_its_sockets(
    config: Config, run_loop: Callable[[Main], Any]
) -> None:
    async def start() -> AsyncTunnel:
        tunnel = AsyncTunnel(config)
        await tunnel.wait_ready(PATIENCE)
        return tunnel

    async def main() -> None:
        tunnel = await start()
        driver = driver_of(tunnel)
        with pytest.warns(ResourceWarning, match="unclosed <AsyncTunnel .* running>"):
            del tunnel
            gc.collect()
        await until(lambda: is_released(driver))
        assert driver.engine.closed_by is not None

    run_loop(main)
    tunnel = run_loop(start)
    driver = driver_of(tunnel)
    with pytest.warns(ResourceWarning, match="unclosed <AsyncTunnel"):
        del tunnel
        gc.collect()
    assert is_released(driver)


@pytest.mark.parametrize("by", ["task", "thread"])
def test_trio_has_no_task_of_it_left_when_it_is_closed(config: Config, by: str) -> None:
    """One that still waited for a closed socket would be in the way of the next with its number."""

    async def main() -> None:
        await in_thread(lambda: None)  # trio's own system tasks
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            tunnel = AsyncTunnel(config)
            assert await tunnel.ping(IPV4, PATIENCE) > 0
            assert trio.lowlevel.current_statistics().tasks_living > before
            if by == "task":
                await tunnel.aclose()
            else:
                await in_thread(tunnel.close)
            start = time.monotonic()
            await until(lambda: trio.lowlevel.current_statistics().tasks_living == before)
            assert time.monotonic() - start < 3, "not when their timers are due"
            await trio.sleep(0.05)  # the next tunnel has the same key

    trio.run(main)


def test_a_dropped_one_leaves_its_loop_in_order(config: Config) -> None:
    """The loop rests, and another runs: its selector must forget the sockets, whose numbers come again."""
    loop = asyncio.new_event_loop()
    tunnel = AsyncTunnel(config)
    loop.run_until_complete(tunnel.start())

    async def drop() -> None:
        nonlocal tunnel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del tunnel
            gc.collect()

    asyncio.run(drop())
    assert len(loop._selector.get_map()) == 1  # type: ignore[attr-defined]  # what wakes it up from other threads
    loop.close()


def test_a_loop_that_cannot_watch_sockets_gets_a_thread(config: Config) -> None:
    """As asyncio's default loop on Windows."""

    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, *_: Any) -> None:  # type: ignore[override]  # whatever it is given
            raise NotImplementedError

    async def main() -> None:
        async with AsyncTunnel(config) as tunnel:
            assert isinstance(driver_of(tunnel), SyncDriver)
            assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"hello") == b"hello"

    with asyncio.Runner(loop_factory=Proactor) as runner:
        runner.run(main())


def test_an_asyncio_task_next_to_a_guest_run_of_trio_is_asyncios(config: Config) -> None:
    async def trio_main() -> None:
        async with AsyncTunnel(config) as tunnel:
            assert isinstance(driver_of(tunnel), TrioDriver)
            assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"trio") == b"trio"
            await trio.sleep(0.05)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            trio_main, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        async with AsyncTunnel(other) as tunnel:
            assert isinstance(driver_of(tunnel), AsyncioDriver)
            assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"asyncio") == b"asyncio"
            (await done).unwrap()

    with WireGuardPeer(servers={7: echo}) as far:
        other = far.client_config()
        asyncio.run(main())


# -- shared


def test_closing_the_borrower_leaves_the_tunnel_and_its_streams_alone(
    config: Config, run_loop: Callable[[Main], Any]
) -> None:
    with Tunnel(config) as sync:

        async def main() -> None:
            tunnel = AsyncTunnel(sync)
            stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
            await tunnel.aclose()
            await tunnel.aclose()
            with pytest.raises(TunnelClosed, match="open a new one"):
                await tunnel.connect_tcp(IPV4, 7)
            assert await exchange(stream, b"hello") == b"hello"
            await stream.aclose()

        run_loop(main)
        assert sync.ping(IPV4, PATIENCE) > 0
        with pytest.raises(TypeError, match="belong to the Tunnel"):
            AsyncTunnel(sync, dns=["10.0.0.1"])


def test_a_borrower_starts_the_tunnel_and_needs_no_close(config: Config, run_loop: Callable[[Main], Any]) -> None:
    sync = Tunnel(config)

    async def main() -> None:
        assert await AsyncTunnel(sync).ping(IPV4, PATIENCE) > 0
        gc.collect()

    run_loop(main)
    sync.close()


def test_a_blocking_caller_in_the_loops_own_thread_wakes_its_tasks(
    config: Config, run_loop: Callable[[Main], Any]
) -> None:
    """It drives the tunnel, and takes in what a task of this very thread waits for."""
    with Tunnel(config) as sync:

        async def main() -> None:
            tunnel = AsyncTunnel(sync)
            stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)

            async def block() -> None:
                await until(lambda: count_waiting(driver_of(sync)) == 1)
                await stream.write(b"for the task")
                other = sync.connect_tcp(IPV4, 7, PATIENCE)
                other.write(b"x" * 100_000)
                received = 0
                while received < 100_000:
                    received += len(other.read(65536, PATIENCE))
                other.close()

            outcome, _ = await beside(lambda: stream.read(20, PATIENCE), block)
            assert outcome == b"for the task"

        run_loop(main)
        assert_nobody_waits(driver_of(sync))


# -- names of endpoints


class Names:
    """The host's resolver: nobody is found until `found` is called, and while `gate` is closed it does not answer."""

    def __init__(self, port: int) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.fails = False
        self._port = port

    def getaddrinfo(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "vpn.example"
        self.asked += 1
        assert self.gate.wait(PATIENCE)
        if self.fails:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(2, 2, 17, "", ("127.0.0.1", self._port))]


@pytest.fixture
def names(peer: WireGuardPeer, monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names(peer.tunnel.listen_port)
    monkeypatch.setattr("socket.getaddrinfo", names.getaddrinfo)
    return names


def named(config: Config) -> Config:
    """The same, with an endpoint that is a name."""
    (only,) = config.peers
    return Config(
        config.private_key, config.address, [PeerConfig(only.public_key, only.allowed_ips, "vpn.example:51820")]
    )


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_slow_lookup_blocks_no_task_and_obeys_the_timeout(
    config: Config, run_loop: Callable[[Main], Any], names: Names, shared: bool
) -> None:
    names.gate.clear()
    sync = Tunnel(named(config))
    tunnel = AsyncTunnel(sync if shared else named(config))

    async def main() -> None:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            for _ in range(10):
                await sleep(0.005)
                turns += 1

        start = time.monotonic()
        outcome, _ = await beside(lambda: tunnel.connect_tcp(IPV4, 7, 0.2), tick)
        assert isinstance(outcome, EndpointError)
        assert "not answered in time" in str(outcome)
        assert 0.2 <= time.monotonic() - start < 2
        assert turns == 10
        names.gate.set()
        assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"hello") == b"hello"
        assert names.asked == 1
        await tunnel.aclose()

    run_loop(main)
    sync.close()


def test_a_failed_lookup_is_the_connects_error_and_the_next_one_asks_again(
    config: Config, run_loop: Callable[[Main], Any], names: Names
) -> None:
    names.fails = True
    tunnel = AsyncTunnel(named(config))

    async def main() -> None:
        for _ in range(2):
            before = names.asked
            with pytest.raises(EndpointError, match=r"vpn\.example:51820 does not resolve: .*not known"):
                await tunnel.connect_tcp(IPV4, 7, PATIENCE)
            assert names.asked > before
        names.fails = False
        assert await exchange(await tunnel.connect_tcp(IPV4, 7, PATIENCE), b"hello") == b"hello"
        await tunnel.aclose()

    run_loop(main)


def test_closing_while_the_name_is_looked_up_ends_who_waits_for_it(
    config: Config, run_loop: Callable[[Main], Any], names: Names
) -> None:
    names.gate.clear()
    tunnel = AsyncTunnel(named(config))

    async def close() -> None:
        await until(lambda: names.asked == 1)
        await tunnel.aclose()
        names.gate.set()

    async def main() -> None:
        outcome, _ = await beside(lambda: tunnel.connect_tcp(IPV4, 7, PATIENCE), close)
        assert isinstance(outcome, TunnelClosed)

    run_loop(main)


# -- the sockets and the timers


def test_what_asks_for_an_answer_gets_it_while_nobody_waits(
    peer: WireGuardPeer, config: Config, run_loop: Callable[[Main], Any]
) -> None:
    """No timer would send it: only what follows each look at the sockets does."""

    async def main() -> None:
        async with AsyncTunnel(config) as tunnel:
            await tunnel.ping(IPV4, PATIENCE)
            for _ in range(3):
                assert await in_thread(lambda: peer.tunnel.ping(str(config.address[0].ip), 4.0)) < 4

    run_loop(main)


def test_asyncio_has_one_timer_at_most(config: Config) -> None:
    async def main() -> None:
        async with AsyncTunnel(config) as tunnel:
            stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
            for _ in range(20):
                assert await exchange(stream, b"hello") == b"hello"
            driver = driver_of(tunnel)
            assert isinstance(driver, AsyncioDriver)
            timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # no other view of them
            ours = [timer for timer in timers if timer._callback == driver._on_timer and not timer.cancelled()]
            assert len(ours) <= 1

    asyncio.run(main())


@pytest.mark.parametrize("by", ["task", "thread"])
def test_timers_run_while_nobody_waits(peer: WireGuardPeer, run_loop: Callable[[Main], Any], by: str) -> None:
    """A keep-alive probe 30 ms from now: set by a task, or by another thread, whose loop has to learn of it."""
    index = next(_client) % 16

    async def main() -> None:
        async with AsyncTunnel(peer.client_config(index)) as tunnel:
            stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
            driver, connection = driver_of(tunnel), stream._socket
            before = peer.tunnel.stats().peers[index].received_bytes
            await sleep(0.01)

            def probe() -> None:
                with driver.lock:
                    connection.set_keepalive(0.03, 0.03, 100, driver.now())  # type: ignore[attr-defined]  # the engine's
                    driver.pump()

            start = time.monotonic()
            if by == "task":
                probe()
            else:
                await in_thread(probe)
            await until(lambda: peer.tunnel.stats().peers[index].received_bytes > before + 3 * 64)
            assert time.monotonic() - start < 3, "not by another timer's grace: the next is WireGuard's, in 10 s"
            with driver.lock:
                connection.abort(driver.now())
                driver.pump()

    run_loop(main)


def test_what_arrives_while_nobody_waits_is_acknowledged(config: Config, run_loop: Callable[[Main], Any]) -> None:
    async def main() -> None:
        async with AsyncTunnel(config) as tunnel:
            stream = await tunnel.connect_tcp(IPV4, 7, PATIENCE)
            await stream.write(bytes(50_000))
            await until(lambda: stream._socket.receiver.buffered == 50_000)  # type: ignore[attr-defined]  # the engine's
            await stream.aclose()

    run_loop(main)


def test_a_burst_is_taken_in_to_its_last_datagram(
    peer: WireGuardPeer, config: Config, run_loop: Callable[[Main], Any]
) -> None:
    """Where a larger one follows, a read leaves it in our own buffer, of which the loop knows nothing. That the first
    two are one read, for a smaller one ends a run, puts such a read at the end of a step."""
    burst = [bytes(size) for size in (200, 100, *range(100, 1000, 100))]
    assert READS_PER_STEP == 8

    async def main() -> None:
        async with AsyncTunnel(config) as tunnel:
            await tunnel.ping(IPV4, PATIENCE)
            near, far = await tunnel.open_udp(), peer.tunnel.open_udp()
            ours = (str(config.address[0].ip), near.port)
            for length in 3 * (10, 11):
                for datagram in burst[:length]:  # blocks the loop: they are all there when it looks
                    far.send(datagram, ours)
                for datagram in burst[:length]:
                    assert (await near.receive(5))[0] == datagram
            far.close()
            await near.aclose()

    run_loop(main)


# -- everything at once


def abort(stream: Any) -> None:
    """A reset leaves nothing in TIME-WAIT."""
    inner: Any = stream._stream if isinstance(stream, SyncStream) else stream
    with inner._driver.lock:
        inner._socket.abort(inner._driver.now())
        inner._driver.pump()


class Stress:
    """Clients that echo through one tunnel, time out and give up at random."""

    ROUNDS = 60

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.given_up = 0
        self.timed_out = 0
        self.finished = 0

    def thread(self, seed: int) -> None:
        chance = random.Random(seed)
        stream = self.tunnel.connect_tcp(IPV4, 7, PATIENCE)
        for _ in range(self.ROUNDS):
            data, received = chance.randbytes(chance.choice((1, 100, 20_000))), b""
            stream.write(data, PATIENCE)
            while len(received) < len(data):
                try:
                    received += stream.read(65536, chance.choice((0.0005, 0.005, PATIENCE)))
                except OperationTimeout:
                    self.timed_out += 1
            assert received == data
        abort(stream)
        self.finished += 1

    async def task(
        self, tunnel: AsyncTunnel, seed: int, limited: Callable[[Callable[[], Awaitable[Any]], float], Awaitable[Any]]
    ) -> None:
        """`limited(operation, seconds)` gives its result, or None when it was cancelled."""
        chance = random.Random(seed)
        stream: AsyncTcpStream | None = None
        for _ in range(self.ROUNDS):
            while stream is None:
                stream = await limited(lambda: tunnel.connect_tcp(IPV4, 7, PATIENCE), chance.choice((0.001, PATIENCE)))
            await stream.write(data := chance.randbytes(chance.choice((1, 100, 20_000))), PATIENCE)
            received = b""
            while len(received) < len(data):
                more = await limited(self._read(stream, chance), chance.choice((0.0005, 0.005, PATIENCE)))
                received += more or b""
            assert received == data
            if chance.random() < 0.1 and not await limited(self._flood(stream), 0.002):
                abort(stream)
                stream = None
        if stream is not None:
            abort(stream)
        self.finished += 1

    def _read(self, stream: AsyncTcpStream, chance: random.Random) -> Callable[[], Awaitable[bytes]]:
        async def read() -> bytes:
            try:
                return await stream.read(65536, chance.choice((0.0005, PATIENCE)))
            except OperationTimeout:
                self.timed_out += 1
                return b""

        return read

    def _flood(self, stream: AsyncTcpStream) -> Callable[[], Awaitable[bool]]:
        async def flood() -> bool:
            await stream.write(bytes(3_000_000))
            return False  # done or not, the echo of it all is not read

        return flood

    async def limited_by_asyncio(self, operation: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await operation()
        except TimeoutError:
            self.given_up += 1
            return None

    async def limited_by_trio(self, operation: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        with trio.move_on_after(seconds):
            return await operation()
        self.given_up += 1
        return None

    def asyncio_loop(self, seed: int) -> None:
        async def main() -> None:
            tunnel = AsyncTunnel(self.tunnel)
            await asyncio.gather(*(self.task(tunnel, seed + n, self.limited_by_asyncio) for n in range(3)))

        asyncio.run(main())

    def trio_run(self, seed: int) -> None:
        async def main() -> None:
            tunnel = AsyncTunnel(self.tunnel)
            async with trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(self.task, tunnel, seed + n, self.limited_by_trio)

        trio.run(main)


def test_threads_and_loops_share_one_tunnel_and_lose_nothing(config: Config) -> None:
    with Tunnel(config) as tunnel:
        tunnel.wait_ready(PATIENCE)
        before = tunnel.stats().connections
        stress = Stress(tunnel)
        bodies = [stress.thread] * 4 + [stress.asyncio_loop] * 2 + [stress.trio_run]
        with ThreadPoolExecutor(len(bodies)) as pool:
            for work in [pool.submit(body, 10 * number) for number, body in enumerate(bodies)]:
                work.result(60)
        assert stress.finished == 4 + 3 * 3
        assert stress.given_up > 20
        assert stress.timed_out > 20
        assert_nobody_waits(driver_of(tunnel))
        assert tunnel.stats().connections == before
