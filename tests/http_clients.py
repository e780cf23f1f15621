"""One test for every kind of HTTP client: httpx or httpx2, in threads, on asyncio, uvloop or trio.

A test's body is a coroutine function over a `Kind`. In the kind "threads" it awaits the very methods of the sync
client, which block; the coroutine then never suspends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import httpcore
import httpcore2
import httpx
import httpx2
import trio

import httpx_wireguard
import httpx_wireguard.httpx2
from httpx_wireguard import _waiting

try:
    import uvloop
except ImportError:  # there is none for Windows
    LOOPS = ["asyncio", "trio"]
else:
    LOOPS = ["asyncio", "trio", "uvloop"]

T = TypeVar("T")


@dataclass(frozen=True)
class Family:
    """A client library: httpx, what it stands on, and our module for it."""

    http: ModuleType
    core: ModuleType
    ours: ModuleType

    def __str__(self) -> str:
        return self.http.__name__


FAMILIES = [Family(httpx, httpcore, httpx_wireguard), Family(httpx2, httpcore2, httpx_wireguard.httpx2)]


@dataclass(frozen=True)
class Kind:
    """A client library in one way of waiting: "threads", or the name of an event loop."""

    family: Family
    waiting: str

    def __str__(self) -> str:
        return f"{self.family}-{self.waiting}"

    @property
    def is_async(self) -> bool:
        return self.waiting != "threads"

    @property
    def http(self) -> Any:
        return self.family.http

    @property
    def core(self) -> Any:
        return self.family.core

    def run(self, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a test's body to its end."""
        return run(self.waiting, body)

    def transport(self, conf: Any, **arguments: Any) -> Any:
        """The transport of this kind."""
        name = "AsyncWireGuardTransport" if self.is_async else "WireGuardTransport"
        return getattr(self.family.ours, name)(conf, **arguments)

    def open_client(self, conf: Any, *, timeout: float = 20, **arguments: Any) -> Any:
        """A client of this kind over a transport of ours; to be used, and closed, as an async one."""
        transport = self.transport(conf, **arguments)
        if self.is_async:
            return self.http.AsyncClient(transport=transport, timeout=timeout)
        return Awaited(self.http.Client(transport=transport, timeout=timeout))

    @contextlib.asynccontextmanager
    async def client(self, conf: Any, **arguments: Any) -> AsyncIterator[Any]:
        """`open_client`, closed at the end."""
        async with self.open_client(conf, **arguments) as client:
            yield client

    def content(self, pieces: Iterable[bytes]) -> Any:
        """A request's body that comes in pieces."""
        return aiterate(pieces) if self.is_async else iter(pieces)

    async def gather(self, *bodies: Callable[[], Coroutine[Any, Any, T]]) -> list[T]:
        """Run all at the same time, and return what they return."""
        if self.waiting == "threads":
            with ThreadPoolExecutor(len(bodies)) as executor:
                return list(executor.map(drive, bodies))
        if self.waiting != "trio":
            return list(await asyncio.gather(*(body() for body in bodies)))
        results: dict[int, T] = {}

        async def keep(index: int) -> None:
            results[index] = await bodies[index]()

        async with trio.open_nursery() as nursery:
            for index in range(len(bodies)):
                nursery.start_soon(keep, index)
        return [results[index] for index in range(len(bodies))]


KINDS = [Kind(family, waiting) for family in FAMILIES for waiting in ("threads", *LOOPS)]
ASYNC_KINDS = [kind for kind in KINDS if kind.is_async]


def run(waiting: str, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function on an event loop, or in this thread."""
    match waiting:
        case "asyncio":
            return asyncio.run(body())
        case "trio":
            return trio.run(body)
        case "uvloop":
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(body())
    return drive(body)


def drive(body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine that never suspends."""
    return _waiting.run(body())


async def aiterate(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class Awaited:
    """A sync object with an async one's methods: those that it calls by the same or by an a-less name block."""

    _RENAMED = ("aread", "aclose", "aiter_bytes", "aiter_raw", "aiter_text", "aiter_lines")

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name[1:] if name in self._RENAMED else name)
        return self._awaited(value) if inspect.isroutine(value) else value

    async def __aenter__(self) -> Any:
        entered = self._target.__enter__()
        return self if entered is self._target else Awaited(entered)

    async def __aexit__(self, *exc_info: Any) -> Any:
        return self._target.__exit__(*exc_info)

    def _awaited(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            if method.__name__.startswith("iter_"):
                return aiterate(method(*arguments, **named))
            if method.__name__ in ("stream", "websocket"):
                return Awaited(method(*arguments, **named))
            return self._call(method, arguments, named)

        return call

    @staticmethod
    async def _call(method: Callable[..., Any], arguments: Any, named: Any) -> Any:
        return method(*arguments, **named)
