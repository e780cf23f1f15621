"""Every other client through a real WireGuard server: names, files, TLS; and nothing leaks by their ways either."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import trio

import httpx_wireguard
import httpx_wireguard.httpx2
from httpx_wireguard import AsyncTunnel, AsyncWireGuardTransport, Config, Tunnel
from httpx_wireguard.aiohttp import WireGuardConnector
from httpx_wireguard.requests import WireGuardAdapter, WireGuardPoolManager
from tests.http_clients import LOOPS
from tests.http_clients import run as run_on
from tests.interop.lab import Lab
from tests.interop.web_site import HOST
from tests.interop.wireguard_server import Profile

pytestmark = pytest.mark.interop

Fetch = Callable[[Config | Tunnel, str, ssl.SSLContext], Awaitable[bytes]]  # conf, URL, context


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def with_httpx(conf: Config | Tunnel, url: str, tls: ssl.SSLContext) -> bytes:
    async with httpx.AsyncClient(transport=AsyncWireGuardTransport(conf, verify=tls), timeout=60) as client:
        return (await client.get(url)).raise_for_status().content


async def with_httpx_over_http2(conf: Config | Tunnel, url: str, tls: ssl.SSLContext) -> bytes:
    transport = AsyncWireGuardTransport(conf, verify=tls, http2=True)
    async with httpx.AsyncClient(transport=transport, timeout=60) as client:
        return (await client.get(url)).raise_for_status().content


async def with_httpx2(conf: Config | Tunnel, url: str, tls: ssl.SSLContext) -> bytes:
    transport = httpx_wireguard.httpx2.AsyncWireGuardTransport(conf, verify=tls)
    async with httpx2.AsyncClient(transport=transport, timeout=60) as client:
        return (await client.get(url)).raise_for_status().content


async def with_aiohttp(conf: Config | Tunnel, url: str, tls: ssl.SSLContext) -> bytes:
    async with (
        aiohttp.ClientSession(connector=WireGuardConnector(conf)) as session,
        session.get(url, ssl=tls) as response,
    ):
        return await response.read()


ASYNC = [
    *((loop, fetch) for loop in LOOPS for fetch in (with_httpx, with_httpx_over_http2, with_httpx2)),
    *((loop, with_aiohttp) for loop in LOOPS if loop != "trio"),
]


@pytest.mark.parametrize(("loop", "fetch"), ASYNC)
@pytest.mark.parametrize("url", [f"http://{HOST}/1k", f"http://{HOST}/100m", f"https://{HOST}/1m"])
def test_file_arrives_whole_in_an_event_loop(
    lab: Lab, profile: Profile, tls: ssl.SSLContext, loop: str, fetch: Fetch, url: str
) -> None:
    async def body() -> bytes:
        return await fetch(profile.config(), url, tls)

    assert digest(run_on(loop, body)) == lab.site.sha256[url.rpartition("/")[2]]


def with_requests(tunnel: Tunnel, url: str, authority: str) -> bytes:
    with requests.Session() as session:
        session.mount("http://", WireGuardAdapter(tunnel))
        session.mount("https://", WireGuardAdapter(tunnel))
        return bytes(session.get(url, verify=authority, timeout=60).content)


def with_urllib3(tunnel: Tunnel, url: str, authority: str) -> bytes:
    with WireGuardPoolManager(tunnel, ca_certs=authority) as pool:
        return bytes(pool.request("GET", url).data)


def with_a_socket(tunnel: Tunnel, url: str, authority: str) -> bytes:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    connection = http.client.HTTPConnection(host)
    connection.sock = tunnel.create_connection((host, 443 if scheme == "https" else 80), timeout=60)
    if scheme == "https":
        context = ssl.create_default_context(cafile=authority)
        connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
    connection.request("GET", f"/{path}")
    content = connection.getresponse().read()
    connection.close()
    return content


@pytest.mark.parametrize("fetch", [with_requests, with_urllib3, with_a_socket])
@pytest.mark.parametrize("url", [f"http://{HOST}/1k", f"http://{HOST}/100m", f"https://{HOST}/1m"])
def test_file_arrives_whole_in_a_thread(
    lab: Lab, profile: Profile, fetch: Callable[[Tunnel, str, str], bytes], url: str
) -> None:
    with Tunnel(profile.config()) as tunnel:
        content = fetch(tunnel, url, str(lab.site.certificate_authority))
    assert digest(content) == lab.site.sha256[url.rpartition("/")[2]]


def test_threads_and_event_loops_share_one_tunnel(lab: Lab, profile: Profile, tls: ssl.SSLContext) -> None:
    url, expected = f"http://{HOST}/1m", lab.site.sha256["1m"]

    async def twenty(tunnel: Tunnel) -> set[str]:
        async with httpx.AsyncClient(transport=AsyncWireGuardTransport(tunnel), timeout=60) as client:
            return {digest((await client.get(url)).content) for _ in range(20)}

    with Tunnel(profile.config()) as tunnel, ThreadPoolExecutor(4) as threads:
        jobs: list[Any] = [threads.submit(asyncio.run, twenty(tunnel)), threads.submit(trio.run, twenty, tunnel)]
        authority = str(lab.site.certificate_authority)
        jobs += [threads.submit(lambda: {digest(with_requests(tunnel, url, authority)) for _ in range(20)})]
        assert [job.result(120) for job in jobs] == [{expected}] * 3


def test_a_tunnel_in_a_loop_pings_and_resolves(lab: Lab, profile: Profile) -> None:
    async def body() -> tuple[float, tuple[str, ...]]:
        async with AsyncTunnel(profile.config()) as tunnel:
            await tunnel.wait_ready(10)
            addresses = await tunnel.resolve(HOST, 10)
            return await tunnel.ping(addresses[-1], 10), addresses

    for loop in LOOPS:
        seconds, addresses = run_on(loop, body)
        assert 0 < seconds < 10
        assert {":" in address for address in addresses} == {True, False}
