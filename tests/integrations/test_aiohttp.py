"""`aiohttp.ClientSession` through the tunnel, on asyncio and uvloop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from asyncio import selector_events
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from httpx_wireguard import (
    Config,
    ConnectionRefused,
    HandshakeTimeout,
    NameResolutionError,
    NoRoute,
    OperationTimeout,
    Tunnel,
    TunnelClosed,
)
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard.aiohttp import WireGuardConnector
from httpx_wireguard.testing import HOST, IPV4, IPV6, WireGuardPeer, body
from tests.tls_server import TlsServer, certificate, client_context
from tests.websocket_server import echo
from tests.wg_quick import wg_quick

PATIENCE = 20.0  # seconds
LOOPS = ["asyncio", "uvloop"]


def https(stream: SyncStream) -> None:
    server = TlsServer(stream)
    while server.read(65_536):
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")


def silent(stream: SyncStream) -> None:
    while stream.read(65_536):
        pass


PROXIED: list[bytes] = []


def proxy(stream: SyncStream) -> None:
    """An HTTP proxy that says what was asked of it, and is every server itself."""
    request = stream.read(65_536)
    PROXIED.append(request.partition(b"\r\n")[0])
    if request.startswith(b"CONNECT"):
        stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        https(stream)
    else:
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nproxied")


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers = {443: https, 81: echo, 83: silent, 3128: proxy}
    names = {"server.test": [IPV4], "half.test": ["fd66::99", IPV4], "v6.test": [IPV6]}
    with WireGuardPeer(servers=servers, names=names, clients=2) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name lookup and no connection by the host's own network."""

    def refuse(*arguments: object) -> Any:
        raise AssertionError(f"in the clear: {arguments}")

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        assert host == "127.0.0.1", f"looked up in the clear: {host}"  # the tunnel's own endpoint
        return getaddrinfo(host, *arguments, **options)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_connect", refuse)
    PROXIED.clear()


def run_on(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(main(), 60)

    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(limited())
    else:
        asyncio.run(limited())


@pytest.mark.parametrize("loop", LOOPS)
def test_requests_of_all_kinds(peer: WireGuardPeer, loop: str, tmp_path: Path) -> None:
    conf = tmp_path / "wg0.conf"
    conf.write_text(wg_quick(peer.client_config()))
    conf.chmod(0o600)

    async def main() -> None:
        connector = WireGuardConnector(conf)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"http://{HOST}/bytes/3000000") as response:
                assert await response.read() == body(3_000_000)
            async with session.put(f"http://{IPV4}/", data=body(1_000_000)) as response:
                assert json.loads(await response.text())["length"] == 1_000_000
            async with session.get(f"http://[{IPV6}]/headers") as response:
                assert json.loads(await response.text())["Host"] == f"[{IPV6}]"
            async with session.get("https://server.test/", ssl=client_context()) as response:
                assert await response.text() == "secret"
            async with session.ws_connect(f"ws://{HOST}:81/") as websocket:
                await websocket.send_str("hello")
                assert (await websocket.receive()).data == "hello"
            assert isinstance(connector.tunnel, AsyncTunnel)
        with pytest.raises(TunnelClosed):
            await connector.tunnel.connect_tcp(IPV4, 80)

    run_on(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_lent_tunnel_stays_open(peer: WireGuardPeer, loop: str) -> None:
    async def get(tunnel: Tunnel | AsyncTunnel) -> None:
        async with aiohttp.ClientSession(connector=WireGuardConnector(tunnel)) as session:
            bodies = [session.get(f"http://{HOST}/bytes/{size}") for size in range(1, 400_000, 50_000)]
            for response in await asyncio.gather(*bodies):
                assert len(await response.read()) == response.content_length

    async def main() -> None:
        async with AsyncTunnel(peer.client_config(1)) as own:
            await get(own)
            await own.ping(IPV4)
        with Tunnel(peer.client_config()) as shared:
            await get(shared)
            shared.ping(IPV4)

    run_on(loop, main)


def test_many_requests_reuse_connections_and_leave_none(peer: WireGuardPeer) -> None:
    async def main() -> None:
        async with AsyncTunnel(peer.client_config()) as tunnel:
            async with aiohttp.ClientSession(connector=WireGuardConnector(tunnel, limit=5)) as session:

                async def get(number: int) -> None:
                    async with session.get(f"http://{HOST}/bytes/{number}") as response:
                        assert len(await response.read()) == number

                await asyncio.gather(*(get(number) for number in range(100)))
                assert tunnel._bridges is not None
                assert len(tunnel._bridges._bridges) <= 5
            while tunnel._bridges._bridges:
                await asyncio.sleep(0.001)

    run_on("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_proxies_are_dialled_through_the_tunnel(
    peer: WireGuardPeer, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def main() -> None:
        async with aiohttp.ClientSession(connector=WireGuardConnector(peer.client_config()), trust_env=True) as session:
            async with session.get("http://elsewhere.test/") as response:
                assert await response.text() == "proxied"
            async with session.get("https://server.test/", ssl=client_context()) as response:
                assert await response.text() == "secret"
            assert PROXIED == [b"GET http://elsewhere.test/ HTTP/1.1", b"CONNECT server.test:443 HTTP/1.1"]
            with pytest.raises(aiohttp.ClientConnectorError, match="nowhere") as caught:
                await session.get("http://elsewhere.test/", proxy="http://nowhere.test:3128")
            assert isinstance(caught.value.os_error, NameResolutionError)

    run_on(loop, main)


def test_errors_are_aiohttp_s_with_our_text(peer: WireGuardPeer) -> None:
    async def fails(session: aiohttp.ClientSession, url: str, kind: type[Exception], text: str) -> Any:
        with pytest.raises(kind, match=text) as caught:
            await session.get(url)
        return caught.value

    async def main() -> None:
        timeout = aiohttp.ClientTimeout(sock_connect=0.2, sock_read=0.2)
        async with aiohttp.ClientSession(
            connector=WireGuardConnector(peer.client_config()), timeout=timeout
        ) as session:
            refused = await fails(session, f"http://{HOST}:1/", aiohttp.ClientConnectorError, "nothing listens there")
            assert isinstance(refused.os_error, ConnectionRefused)
            assert isinstance(refused.os_error, ConnectionRefusedError)
            unknown = await fails(session, "http://nowhere.test/", aiohttp.ClientConnectorDNSError, "nowhere.test")
            assert isinstance(unknown.os_error, NameResolutionError)
            silence = await fails(session, "http://10.66.77.77/", aiohttp.ServerTimeoutError, "timeout")
            assert isinstance(silence.__cause__, OperationTimeout)
            assert "10.66.77.77" in str(silence.__cause__)
            await fails(session, f"http://{HOST}:83/", aiohttp.ServerTimeoutError, "imeout")
            await fails(session, "https://server.test/", aiohttp.ClientConnectorCertificateError, "self-signed")
        await fails(session, f"http://{HOST}/", RuntimeError, "Session is closed")

    run_on("asyncio", main)


def test_a_tunnel_that_leads_nowhere_says_so(peer: WireGuardPeer) -> None:
    good = peer.client_config()

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            text = wg_quick(good).replace(peer.endpoint, f"127.0.0.1:{port}")
            text = text.replace("0.0.0.0/0, ::/0", "10.66.0.0/16")
            timeout = aiohttp.ClientTimeout(sock_connect=0.2)
            connector = WireGuardConnector(Config.from_string(text))
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                with pytest.raises(aiohttp.ClientConnectorError, match="no handshake answer") as caught:
                    await session.get(f"http://{IPV4}/")
                assert isinstance(caught.value.os_error, HandshakeTimeout)
                with pytest.raises(aiohttp.ClientConnectorError, match="AllowedIPs") as routed:
                    await session.get("http://192.0.2.1/")
                assert isinstance(routed.value.os_error, NoRoute)

    run_on("asyncio", main)


def test_a_closed_tunnel_ends_a_response(peer: WireGuardPeer) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(connector=WireGuardConnector(peer.client_config())) as session:
            connector = session.connector
            assert isinstance(connector, WireGuardConnector)
            asyncio.get_running_loop().call_later(0.1, connector.tunnel.close)
            with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
                await session.get(f"http://{HOST}:83/")
            with pytest.raises(aiohttp.ClientConnectorError, match="tunnel is closed"):
                await session.get(f"http://{HOST}:83/")

    run_on("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_wrong_fingerprint_is_told(peer: WireGuardPeer, loop: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(connector=WireGuardConnector(peer.client_config())) as session:
            with pytest.raises(aiohttp.ServerFingerprintMismatch) as caught:
                await session.get("https://server.test/", ssl=aiohttp.Fingerprint(bytes(32)))
            assert caught.value.host == "server.test"
            connector = session.connector
            assert isinstance(connector, WireGuardConnector)
            assert connector.tunnel._bridges is not None
            async with asyncio.timeout(3):
                while connector.tunnel._bridges._bridges:  # the connection is given up at once
                    await asyncio.sleep(0.001)
            right = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate()[0].decode())).digest()
            async with session.get("https://server.test/", ssl=aiohttp.Fingerprint(right)) as response:
                assert response.status == 200

    run_on(loop, main)


def test_a_family_or_a_local_address_confines(peer: WireGuardPeer) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.client_address[0].encode())

        def log_message(self, format: str, *args: object) -> None: ...

    async def client_address(url: str = f"http://{HOST}/", **arguments: Any) -> str:
        connector = WireGuardConnector(server.client_config(), **arguments)
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
            return await response.text()

    async def main() -> None:
        assert await client_address(family=socket.AF_INET) == "10.66.0.2"
        assert await client_address(family=socket.AF_INET6) == "fd66::2"
        assert await client_address(local_addr=("10.66.0.2", 0)) == "10.66.0.2"
        assert WireGuardConnector(server.client_config(), family=socket.AF_INET6).family == socket.AF_INET6
        with pytest.raises(ValueError, match="local port"):
            WireGuardConnector(server.client_config(), local_addr=("10.66.0.2", 99))

    with WireGuardPeer(handler=Handler) as server:
        run_on("asyncio", main)


def test_arguments_that_would_go_around_the_tunnel_are_refused(peer: WireGuardPeer) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="resolver= cannot be used with a tunnel"):
            WireGuardConnector(peer.client_config(), resolver=aiohttp.ThreadedResolver())
        with pytest.raises(TypeError, match="socket_factory= cannot be used with a tunnel"):
            WireGuardConnector(peer.client_config(), socket_factory=lambda info: socket.socket())
        with pytest.raises(TypeError, match="not int"):
            WireGuardConnector(3)  # type: ignore[arg-type]
        async with AsyncTunnel(peer.client_config()) as tunnel:
            with pytest.raises(TypeError, match="dns= belongs to the tunnel"):
                WireGuardConnector(tunnel, dns=["10.66.0.1"])

    run_on("asyncio", main)
