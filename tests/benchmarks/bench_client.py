"""One measurement of one client, in a process of its own: JSON in, as the one argument, and JSON out.

A new client is a function like those below and a line in `CLIENTS`. Given a wg-quick file, or None for no tunnel, it
yields what does one request and returns the length of the answer. Blocking clients are `async` by name only, so that
one loop measures them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

PIECE = 65_536  # bytes that a client is handed, or asked for, at once: httpx's own choice
WARM_UP = 0.2  # of a loop's requests, not counted

Request = Callable[[str, str, bytes], Awaitable[int]]  # method, URL, content -> bytes received


def find(module: str, name: str) -> Any:
    """`module.name`; imported only now, for a process must load no other client's modules."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise SystemExit(f"not there yet: {module}.{name}") from None


def httpx_client(library: str, prefix: str, conf: str | None) -> Any:
    ours = "httpx_wireguard" if library == "httpx" else f"httpx_wireguard.{library}"
    plain = find(library, f"{prefix}HTTPTransport")
    transport = plain() if conf is None else find(ours, f"{prefix}WireGuardTransport")(conf)
    return find(library, f"{prefix}Client")(transport=transport)


@contextlib.asynccontextmanager
async def httpx_blocking(conf: str | None, library: str = "httpx") -> AsyncIterator[Request]:
    with httpx_client(library, "", conf) as client:

        async def request(method: str, url: str, content: bytes) -> int:
            with client.stream(method, url, content=io.BytesIO(content) if content else None) as response:
                response.raise_for_status()
                return sum(map(len, response.iter_raw()))

        yield request


@contextlib.asynccontextmanager
async def httpx_async(conf: str | None, library: str = "httpx") -> AsyncIterator[Request]:
    async with httpx_client(library, "Async", conf) as client:

        async def request(method: str, url: str, content: bytes) -> int:
            async with client.stream(method, url, **async_body(content, "content")) as response:
                response.raise_for_status()
                return sum([len(piece) async for piece in response.aiter_raw()])

        yield request


@contextlib.asynccontextmanager
async def requests(conf: str | None) -> AsyncIterator[Request]:
    with find("requests", "Session")() as session:
        if conf is not None:
            session.mount("http://", find("httpx_wireguard.requests", "WireGuardAdapter")(conf))

        async def request(method: str, url: str, content: bytes) -> int:
            with session.request(method, url, data=io.BytesIO(content) if content else None, stream=True) as response:
                response.raise_for_status()
                return sum(map(len, response.iter_content(PIECE)))

        yield request


@contextlib.asynccontextmanager
async def aiohttp(conf: str | None) -> AsyncIterator[Request]:
    connector = None if conf is None else find("httpx_wireguard.aiohttp", "WireGuardConnector")(conf)
    async with find("aiohttp", "ClientSession")(connector=connector, raise_for_status=True) as session:

        async def request(method: str, url: str, content: bytes) -> int:
            async with session.request(method, url, **async_body(content, "data")) as response:
                return sum([len(piece) async for piece in response.content.iter_any()])

        yield request


@contextlib.asynccontextmanager
async def http_client(conf: str | None) -> AsyncIterator[Request]:
    """About the least that a client can cost."""
    tunnel = None if conf is None else find("httpx_wireguard", "Tunnel")(conf)
    connection = http.client.HTTPConnection("")
    with tunnel or contextlib.nullcontext(), contextlib.closing(connection):

        async def request(method: str, url: str, content: bytes) -> int:
            parts = urlsplit(url)
            if connection.sock is None:
                connection.host, connection.port = parts.hostname or "", parts.port or 80
                if tunnel is not None:
                    connection.sock = StreamSocket(tunnel.connect_tcp(connection.host, connection.port))
            headers = {"Content-Length": str(len(content))} if content else {}
            connection.request(method, parts.path, io.BytesIO(content) if content else None, headers)
            response = connection.getresponse()
            return sum(iter(lambda: len(response.read(PIECE)), 0))

        yield request


class StreamSocket(io.RawIOBase):
    """What `http.client` wants of a socket."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sendall = stream.write

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(StreamSocket(self._stream), PIECE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def async_body(content: bytes, argument: str) -> dict[str, Any]:
    """Keyword arguments that send `content` as an asynchronous client sends a file."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), PIECE):
            yield content[start : start + PIECE]

    return {argument: pieces(), "headers": {"Content-Length": str(len(content))}} if content else {}


def run_blocking(measure: Awaitable[Any]) -> Any:
    """Run a coroutine that never waits."""
    with contextlib.closing(measure.__await__()) as steps:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value


def run_trio(measure: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await measure

    return find("trio", "run")(wait)


CLIENTS: dict[str, tuple[Callable[..., Any], Callable[[str | None], contextlib.AbstractAsyncContextManager[Request]]]]
CLIENTS = {
    "http.client": (run_blocking, http_client),
    "httpx": (run_blocking, httpx_blocking),
    "httpx-asyncio": (asyncio.run, httpx_async),
    "httpx-trio": (run_trio, httpx_async),
    "httpx2": (run_blocking, partial(httpx_blocking, library="httpx2")),
    "httpx2-asyncio": (asyncio.run, partial(httpx_async, library="httpx2")),
    "requests": (run_blocking, requests),
    "aiohttp": (asyncio.run, aiohttp),
}


async def measure(job: dict[str, Any]) -> dict[str, float]:
    async with CLIENTS[job["client"]][1](job["conf"]) as request:
        assert await request("GET", job["small"], b"") == 1024
        match job["mode"]:
            case "start":
                return {"ms": (time.monotonic() - job["started"]) * 1e3}
            case "get":
                return await repeated(request, job["small"], job["seconds"])
            case "download":
                return await transfer(request("GET", job["large"], b""), job["size"])
            case _:
                return await transfer(request("PUT", job["upload"], bytes(job["size"])), job["size"])


async def repeated(request: Request, url: str, seconds: float) -> dict[str, float]:
    """The median of the times of single requests."""
    times: list[float] = []
    end = (before := time.perf_counter()) + seconds
    cpu = time.process_time()
    while before < end:
        await request("GET", url, b"")
        after = time.perf_counter()
        times.append(after - before)
        before = after
    cpu = (time.process_time() - cpu) / len(times)
    return {"us": statistics.median(times[int(WARM_UP * len(times)) :]) * 1e6, "CPU us": cpu * 1e6}


async def transfer(request: Awaitable[int], size: int) -> dict[str, float]:
    """One large body in the one direction or the other, the answer included."""
    before, cpu = time.perf_counter(), time.process_time()
    await request
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - before
    return {"MB/s": size / seconds / 1e6, "CPU s/GB": cpu / size * 1e9}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(CLIENTS[job["client"]][0](measure(job))))
