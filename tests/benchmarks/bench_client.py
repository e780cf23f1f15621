"""One measurement of one client, in a process of its own: JSON in, as the one argument, and JSON out.

A new client is a function like those below and a line in `CLIENTS`. Given a wg-quick file, or None for no tunnel, it
yields what does one request and returns the length of the answer. Blocking clients are `async` by name only, so that
one loop measures them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import http.client
import io
import json
import re
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PIECE = 65_536  # bytes that a client is handed, or asked for, at once: httpx's own choice
WARM_UP = 0.2  # of a loop's requests, not counted
CONNECTIONS = 100  # that a client may have, and that `memory` opens
IDLE_SECONDS = 5.0
IMPORT = """
import sys, time
before, modules = time.perf_counter(), len(sys.modules)
import {}
print((time.perf_counter() - before) * 1e3, len(sys.modules) - modules)
"""

Request = Callable[[str, str, bytes], Awaitable[int]]  # method, URL, content -> bytes received


def find(module: str, name: str) -> Any:
    """`module.name`; imported only now, for a process must load no other client's modules."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise SystemExit(f"not there yet: {module}.{name}") from None


def httpx_client(library: str, prefix: str, conf: Any, authority: str | None) -> Any:
    """`conf` as a transport takes it; None for no tunnel."""
    ours = "httpx_wireguard" if library == "httpx" else f"httpx_wireguard.{library}"
    plain = find(library, f"{prefix}HTTPTransport")
    limits = find(library, "Limits")(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    options = {"limits": limits, "verify": True if authority is None else trusting(authority)}
    transport = plain(**options) if conf is None else find(ours, f"{prefix}WireGuardTransport")(conf, **options)
    return find(library, f"{prefix}Client")(transport=transport)


def trusting(authority: str) -> ssl.SSLContext:
    """Its certificate names a host; the benchmark's URLs have addresses, for no variant is to look names up."""
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    return context


@contextlib.asynccontextmanager
async def httpx_blocking(conf: str | None, authority: str | None, library: str = "httpx") -> AsyncIterator[Request]:
    with httpx_client(library, "", conf, authority) as client:

        async def request(method: str, url: str, content: bytes) -> int:
            with client.stream(method, url, content=io.BytesIO(content) if content else None) as response:
                response.raise_for_status()
                return sum(map(len, response.iter_raw()))

        yield request


@contextlib.asynccontextmanager
async def httpx_async(conf: str | None, authority: str | None, library: str = "httpx") -> AsyncIterator[Request]:
    async with httpx_client(library, "Async", conf, authority) as client:

        async def request(method: str, url: str, content: bytes) -> int:
            async with client.stream(method, url, **async_body(content, "content")) as response:
                response.raise_for_status()
                return sum([len(piece) async for piece in response.aiter_raw()])

        yield request


@contextlib.asynccontextmanager
async def requests(conf: str | None, _: str | None) -> AsyncIterator[Request]:
    with find("requests", "Session")() as session:
        if conf is not None:
            session.mount("http://", find("httpx_wireguard.requests", "WireGuardAdapter")(conf))

        async def request(method: str, url: str, content: bytes) -> int:
            with session.request(method, url, data=io.BytesIO(content) if content else None, stream=True) as response:
                response.raise_for_status()
                return sum(map(len, response.iter_content(PIECE)))

        yield request


@contextlib.asynccontextmanager
async def aiohttp(conf: str | None, _: str | None) -> AsyncIterator[Request]:
    connector = None if conf is None else find("httpx_wireguard.aiohttp", "WireGuardConnector")(conf)
    async with find("aiohttp", "ClientSession")(connector=connector, raise_for_status=True) as session:

        async def request(method: str, url: str, content: bytes) -> int:
            async with session.request(method, url, **async_body(content, "data")) as response:
                return sum([len(piece) async for piece in response.content.iter_any()])

        yield request


@contextlib.asynccontextmanager
async def http_client(conf: str | None, _: str | None) -> AsyncIterator[Request]:
    """About the least that a client can cost."""
    tunnel = None if conf is None else find("httpx_wireguard", "Tunnel")(conf)
    connection = http.client.HTTPConnection("", blocksize=PIECE)
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


# how to run a coroutine, and what it opens, given a wg-quick file and a certificate authority's; httpx alone heeds that
CLIENTS: dict[
    str,
    tuple[Callable[..., Any], Callable[[str | None, str | None], contextlib.AbstractAsyncContextManager[Request]]],
]
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
    if job["measure"] in ALONE:
        return ALONE[job["measure"]](job)
    run, opened = CLIENTS[job["client"]]
    async with opened(job["conf"], job["authority"]) as request:
        assert await request("GET", job["small"], b"") == 1024
        match job["measure"]:
            case "start":
                return {"ms": (time.monotonic() - job["started"]) * 1e3}
            case "get":
                return await repeated(request, job["small"], job["seconds"])
            case "busy":
                await busy(run, request, job, WARM_UP)
                return await busy(run, request, job, 1.0)
            case "download":
                return await transfer(request("GET", job["large"], b""), job["size"])
            case _:
                return await transfer(request("PUT", job["upload"], bytes(job["size"])), job["size"])


async def busy(run: Callable[..., Any], request: Request, job: dict[str, Any], part: float) -> dict[str, float]:
    """Requests from so many threads or tasks at once, each on a kept-alive connection, for a part of the time."""
    done: list[int] = []
    before, cpu = time.perf_counter(), time.process_time()
    end = before + part * job["seconds"]

    async def work() -> None:
        count = 0
        while time.perf_counter() < end:
            await request("GET", job["small"], b"")
            count += 1
        done.append(count)

    if run is run_blocking:
        threads = [threading.Thread(target=run_blocking, args=(work(),)) for _ in range(job["connections"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        await asyncio.gather(*(work() for _ in range(job["connections"])))
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - before
    return {"requests/s": sum(done) / seconds, "CPU us": cpu / sum(done) * 1e6}


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
    figures = {"MB/s": size / seconds / 1e6, "CPU s/GB": cpu / size * 1e9}
    return figures | ({"peak MB": memory_kb("VmHWM") / 1e3} if sys.platform == "linux" else {})


def memory_kb(field: str) -> int:
    """Of this process, by Linux' name; not by getrusage, whose peak is at first that of the process that forked."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def memory(job: dict[str, Any]) -> dict[str, float]:
    """Of httpx: after a first request, and of every connection more that then stays open."""
    with httpx_client("httpx", "", job["conf"], None) as client:
        client.get(job["small"])
        gc.collect()
        idle = memory_kb("VmRSS")
        with contextlib.ExitStack() as stack:
            responses = [stack.enter_context(client.stream("GET", job["small"])) for _ in range(CONNECTIONS)]
            for response in responses:
                response.read()  # so that its connection stays open
        gc.collect()
        return {"MB": idle / 1e3, "KB a connection": (memory_kb("VmRSS") - idle) / (CONNECTIONS - 1)}


def idle(job: dict[str, Any]) -> dict[str, float]:
    """The processor's time for one second of a tunnel that nobody uses, and that sends a keep-alive in each."""
    conf = job["conf"]
    if conf is not None:
        config = find("httpx_wireguard", "Config").from_file(conf)
        conf = dataclasses.replace(
            config, peers=tuple(dataclasses.replace(peer, persistent_keepalive=1) for peer in config.peers)
        )
    with httpx_client("httpx", "", conf, None) as client:
        client.get(job["small"])
        time.sleep(0.5)
        before = time.process_time()
        time.sleep(IDLE_SECONDS)
        return {"CPU us/s": (time.process_time() - before) / IDLE_SECONDS * 1e6}


def importing(job: dict[str, Any]) -> dict[str, float]:
    """In a process that has imported nothing."""
    module = "httpx" if job["conf"] is None else "httpx, httpx_wireguard"
    command = (sys.executable, "-c", IMPORT.format(module))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ms, modules = done.stdout.split()
    return {"ms": float(ms), "modules": float(modules)}


ALONE = {"memory": memory, "idle": idle, "import": importing}  # these need httpx, and no loop


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(CLIENTS[job["client"]][0](measure(job))))
