"""What only httpx2's clients do: WebSockets, which read and write one stream at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from httpx2.websockets import WebSocketDisconnect, WebSocketNetworkError

from httpx_wireguard import Tunnel
from httpx_wireguard.testing import IPV4, WireGuardPeer
from tests.http_clients import KINDS, Kind
from tests.tls_server import client_context
from tests.websocket_server import echo, echo_over_tls, vanish

TLS_HOST = "server.test"  # in the certificate
URLS = [f"ws://{IPV4}:8000/", f"wss://{TLS_HOST}/"]

CLIENTS = 30
clients = itertools.cycle(range(1, CLIENTS))  # a key used again at once may have to wait for the server's flood limit

every_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if str(kind.family) == "httpx2"], ids=str)


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers = {8000: echo, 443: echo_over_tls, 8001: vanish}
    with WireGuardPeer(servers=servers, names={TLS_HOST: (IPV4,)}, clients=CLIENTS) as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


@pytest.fixture
def conf(kind: Kind, peer: WireGuardPeer, tunnel: Tunnel) -> Any:
    return peer.client_config(next(clients)) if kind.is_async else tunnel


@every_kind
@pytest.mark.parametrize("url", URLS)
def test_a_websocket_sends_and_receives_at_the_same_time(kind: Kind, conf: Any, url: str) -> None:
    """More than the buffers of both sides hold: the echo stands still unless the client reads while it writes."""
    messages = [bytes([number % 256]) * 40_000 for number in range(300)]

    async def main() -> None:
        async with kind.client(conf, verify=client_context()) as client, client.websocket(url) as websocket:

            async def send() -> None:
                for message in messages:
                    await websocket.send_bytes(message)

            async def receive() -> None:
                for message in messages:
                    assert await websocket.receive_bytes(timeout=20) == message

            await kind.gather(send, receive)

    kind.run(main)


@every_kind
@pytest.mark.parametrize("url", URLS)
def test_a_websocket_that_waits_for_a_message_is_closed_all_the_same(kind: Kind, conf: Any, url: str) -> None:
    """The end of the block wakes httpx2's background reader, which waits for ever; the client goes on."""

    async def main() -> None:
        async with kind.client(conf, verify=client_context()) as client:
            for _ in range(3):
                async with client.websocket(url) as websocket:
                    await websocket.send_text("hello")
                    assert await websocket.receive_text(timeout=20) == "hello"
            assert client_pool(client).connections == []

    kind.run(main)


@every_kind
@pytest.mark.parametrize("url", URLS)
def test_a_websocket_learns_that_the_server_closes_it(kind: Kind, conf: Any, url: str) -> None:
    async def main() -> None:
        async with kind.client(conf, verify=client_context()) as client, client.websocket(url) as websocket:
            await websocket.send_text("close me")
            with pytest.raises(WebSocketDisconnect) as caught:
                await websocket.receive_text(timeout=20)
            assert (caught.value.code, caught.value.reason) == (1001, "going away")

    kind.run(main)


@every_kind
def test_a_websocket_whose_server_vanishes_fails(kind: Kind, conf: Any) -> None:
    async def main() -> None:
        async with kind.client(conf) as client, client.websocket(f"ws://{IPV4}:8001/") as websocket:
            with pytest.raises(WebSocketNetworkError):
                await websocket.receive_text(timeout=20)

    kind.run(main)


@every_kind
def test_pings_go_out_while_the_reader_waits(kind: Kind, conf: Any) -> None:
    async def main() -> None:
        async with (
            kind.client(conf) as client,
            client.websocket(URLS[0], keepalive_ping_interval_seconds=0.01) as websocket,
        ):
            for _ in range(5):
                pong = await websocket.ping()
                await pong.wait() if kind.is_async else pong.wait(20)
                assert pong.is_set()

    kind.run(main)


def client_pool(client: Any) -> Any:
    return client._transport._pool
