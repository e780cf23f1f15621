"""Two thousand requests by a hundred tasks, a tenth of them cancelled at random moments."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from httpx_wireguard import Tunnel
from httpx_wireguard.testing import WireGuardPeer, body
from tests.http_clients import KINDS, Kind

TASKS, REQUESTS_EACH = 100, 20
SIZES = [0, 100, 1000, 30_000]
URL = "http://10.66.0.1/bytes/"  # by address: this is not about names
LONGEST = 0.1  # seconds until a cancellation at the latest; with everybody at work, a request takes about as long
PATIENCE = 20.0  # seconds after which something that should have ended has not

STRESSED = [kind for kind in KINDS if kind.waiting in ("asyncio", "trio")]


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    with WireGuardPeer() as peer:
        yield peer


def until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


async def given_up_after(kind: Kind, seconds: float, request: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Whether the request was cancelled before its end."""
    if kind.waiting == "trio":
        with trio.move_on_after(seconds) as scope:
            await request()
        return scope.cancelled_caught
    try:
        async with asyncio.timeout(seconds):
            await request()
    except TimeoutError:
        return True
    return False


def descriptors() -> int:
    directory = Path("/proc/self/fd")
    return len(list(directory.iterdir())) if directory.is_dir() else 0


async def stress(kind: Kind, client: Any) -> int:
    """Returns how many requests were cancelled; any other failure is raised."""
    chance = random.Random(20)
    chosen = {number for number in range(TASKS * REQUESTS_EACH) if chance.random() < 0.1}
    moments = {number: chance.uniform(0, LONGEST) for number in chosen}
    cancelled = []

    async def one(number: int) -> None:
        size = SIZES[number % len(SIZES)]

        async def request() -> None:
            response = await client.get(f"{URL}{size}")
            assert response.content == body(size)

        if number not in chosen:
            await request()
        elif await given_up_after(kind, moments[number], request):
            cancelled.append(number)

    async def task(first: int) -> None:
        for number in range(first, first + REQUESTS_EACH):
            await one(number)

    await kind.gather(*((lambda n=n: task(n * REQUESTS_EACH)) for n in range(TASKS)))
    return len(cancelled)


@pytest.mark.parametrize("kind", STRESSED, ids=str)
def test_cancelled_requests_harm_no_other_and_leave_nothing_behind(kind: Kind, peer: WireGuardPeer) -> None:
    """httpx over a tunnel inside the loop, httpx2 over one that threads could share."""
    shared = str(kind.family) == "httpx2"
    server_before = peer.tunnel.stats().connections
    threads_before, descriptors_before = threading.active_count(), descriptors()
    limits = kind.http.Limits(max_connections=40, max_keepalive_connections=10)
    tunnel = Tunnel(peer.client_config()) if shared else None

    async def all_of_it() -> None:
        async with kind.client(tunnel or peer.client_config(), limits=limits, timeout=60) as client:
            cancelled = await stress(kind, client)
            assert cancelled > TASKS * REQUESTS_EACH * 0.02, f"only {cancelled} were cancelled: the test tests nothing"
            pool = client._transport._pool
            assert not pool._requests
            assert all(connection.is_idle() for connection in pool.connections)
            assert len(pool.connections) <= 10
            statistics = client._transport.tunnel.stats()
            assert statistics.connections >= len(pool.connections)
        assert not pool.connections

    kind.run(all_of_it)
    if tunnel is not None:
        driver = tunnel._running()[1]
        with driver.lock:
            assert not driver._by_key
            assert driver._loops_waiting == 0
        tunnel.close()
    until(lambda: threading.active_count() <= threads_before, lambda: [t.name for t in threading.enumerate()])
    assert descriptors() == descriptors_before
    until(lambda: peer.tunnel.stats().connections <= server_before, lambda: peer.tunnel.stats())
