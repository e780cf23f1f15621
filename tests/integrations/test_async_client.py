"""What only clients on event loops do: being cancelled at any point, closing without waiting, sharing a tunnel."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from httpx_wireguard import AsyncTunnel, Config, OperationTimeout, PeerConfig, Tunnel, TunnelClosed
from httpx_wireguard.testing import HOST, IPV4, IPV6, WireGuardPeer, body
from tests.http2_server import Http2Server
from tests.http_clients import ASYNC_KINDS, KINDS, Kind
from tests.tls_server import TlsServer, client_context

PATIENCE = 20.0  # seconds
TLS_HOST = "server.test"  # in the certificate
SILENT = f"http://{IPV4}:7"  # a server that reads a request's headers, then nothing, and says nothing
HALF = f"http://{IPV4}:8"  # one that answers half a body
BLACK_HOLE = "http://10.99.0.1"  # nobody there

# httpx and httpcore leave the generator of a cancelled request's body behind, and trio says so
generators_left = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
CLIENTS = 30
clients = itertools.cycle(range(1, CLIENTS))  # a key used again at once may have to wait for the server's flood limit

async_kinds = pytest.mark.parametrize("kind", ASYNC_KINDS, ids=str)


def read_headers(stream: Any) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = stream.read(65_536)
        if not piece:
            raise ConnectionError("the client has gone")
        data += piece
    return data


@pytest.fixture(scope="module")
def end() -> threading.Event:
    """Ends the servers that hold a connection open."""
    return threading.Event()


@pytest.fixture(scope="module")
def peer(end: threading.Event) -> Iterator[WireGuardPeer]:
    http2_server = Http2Server()

    def stay_silent(stream: Any) -> None:
        read_headers(stream)
        end.wait()

    def answer_half(stream: Any) -> None:
        read_headers(stream)
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.")
        end.wait()

    def stay_silent_over_tls(stream: Any) -> None:
        stay_silent(TlsServer(stream))

    servers: dict[int, Callable[[Any], None]] = {
        7: stay_silent,
        8: answer_half,
        9: stay_silent_over_tls,
        443: http2_server,
    }
    with WireGuardPeer(servers=servers, names={TLS_HOST: (IPV4,)}, clients=CLIENTS) as peer:
        yield peer
        end.set()
        http2_server.end.set()


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


@pytest.fixture
def config(peer: WireGuardPeer) -> Config:
    return peer.client_config(next(clients))


class CancelAt:
    """Cancels a request when httpcore tells that it has come to `stage`: its next wait does not end otherwise."""

    def __init__(self, stage: str, cancel: Callable[[], object]) -> None:
        self.info: Any = None
        self._stage = stage
        self._cancel = cancel

    async def __call__(self, name: str, info: Any) -> None:
        if name == self._stage:
            self.info = info
            self._cancel()


Request = Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]


async def cancelled_by_scope(stage: str, request: Request) -> Any:
    """Level-triggered, as on trio: every wait in the scope is cancelled, also one while cleaning up.

    Returns:
        What httpcore told of the stage.
    """
    with anyio.CancelScope() as scope:
        trace = CancelAt(stage, scope.cancel)
        await request({"trace": trace})
    assert scope.cancelled_caught
    return trace.info


async def cancelled_as_task(stage: str, request: Request) -> Any:
    """Edge-triggered, as asyncio's own: one wait is cancelled."""
    trace = CancelAt(stage, lambda: task.cancel())
    task = asyncio.ensure_future(request({"trace": trace}))
    with pytest.raises(asyncio.CancelledError):
        await task
    return trace.info


WAYS = [(kind, cancelled_by_scope) for kind in ASYNC_KINDS]
WAYS += [(kind, cancelled_as_task) for kind in ASYNC_KINDS if kind.waiting != "trio"]
cancellations = pytest.mark.parametrize(("kind", "cancelled"), WAYS, ids=lambda one: getattr(one, "__name__", str(one)))


@generators_left
@cancellations
@pytest.mark.parametrize(
    ("stage", "url", "upload"),
    [
        ("connection.connect_tcp.started", f"{BLACK_HOLE}/", b""),
        ("connection.connect_tcp.started", f"http://{HOST}/", b""),
        ("connection.connect_tcp.complete", f"http://{HOST}/", b""),
        ("connection.start_tls.started", f"https://{IPV4}:7/", b""),
        ("connection.start_tls.complete", f"https://{TLS_HOST}:9/", b""),
        ("http11.send_request_headers.started", f"{SILENT}/", b""),
        ("http11.send_request_body.started", f"{SILENT}/", bytes(20_000_000)),
        ("http11.receive_response_headers.started", f"{SILENT}/", b""),
        ("http11.receive_response_body.started", f"{HALF}/", b""),
    ],
)
def test_a_cancelled_request_leaves_no_slot_of_the_pool_behind(
    kind: Kind, cancelled: Any, config: Config, stage: str, url: str, upload: bytes
) -> None:
    async def main() -> None:
        limits = kind.http.Limits(max_connections=2)
        async with kind.client(config, limits=limits, verify=client_context()) as client:
            for _ in range(3):

                async def request(extensions: dict[str, Any]) -> None:
                    await client.post(url, content=upload, extensions=extensions)

                info = await cancelled(stage, request)
                if "return_value" in info and "connect" in stage:
                    with pytest.raises(kind.core.ReadError, match="closed on this side"):
                        await info["return_value"].read(1, timeout=5)
            assert client._transport._pool.connections == []
            assert (await client.get(f"http://{HOST}/bytes/9")).content == body(9)

    kind.run(main)


@async_kinds
def test_requests_cancelled_while_they_queue_leave_no_slot_behind(kind: Kind, config: Config) -> None:
    """A slot that a cancelled request gave back goes to one that is cancelled too, and never connects."""

    async def main() -> None:
        async with kind.client(config, limits=kind.http.Limits(max_connections=2)) as client:
            pool = client._transport._pool
            with anyio.CancelScope() as scope:

                async def request() -> None:
                    await client.get(f"{BLACK_HOLE}/")

                async def cancel_when_all_queue() -> None:
                    while len(pool._requests) < 6:
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                await kind.gather(*[request] * 6, cancel_when_all_queue)
            assert pool.connections == []
            assert (await client.get(f"http://{HOST}/bytes/9")).content == body(9)

    kind.run(main)


@async_kinds
def test_a_cancelled_connect_leaves_the_others_handshake_running(kind: Kind, config: Config) -> None:
    async def main() -> None:
        async with kind.client(config) as client:

            async def request(extensions: dict[str, Any]) -> None:
                await client.get(f"http://{IPV4}/", extensions=extensions)

            await cancelled_by_scope("connection.connect_tcp.started", request)
            assert (await client.get(f"http://{IPV4}/bytes/9")).content == body(9)
            (stats,) = client._transport.tunnel.stats().peers
            assert stats.initiations_sent == 1

    kind.run(main)


@async_kinds
def test_a_read_cancelled_on_http2_leaves_the_connection_to_the_others(kind: Kind, config: Config) -> None:
    async def main() -> None:
        async with kind.client(config, verify=client_context(), http2=True) as client:
            first = (await client.get(f"https://{TLS_HOST}/bytes/0")).extensions["network_stream"]

            async def request(extensions: dict[str, Any]) -> None:
                await client.get(f"https://{TLS_HOST}/meet/9", extensions=extensions)

            await cancelled_by_scope("http2.receive_response_headers.started", request)
            response = await client.get(f"https://{TLS_HOST}/bytes/100000")
            assert response.content == body(100_000)
            assert response.extensions["network_stream"] is first

    kind.run(main)


@generators_left
@async_kinds
def test_a_write_cancelled_on_http2_ends_the_connection(kind: Kind, config: Config) -> None:
    """Nothing after half a frame would be understood; the next request gets a new connection."""

    async def main() -> None:
        async with kind.client(config, verify=client_context(), http2=True) as client:
            first = (await client.get(f"https://{TLS_HOST}/bytes/0")).extensions["network_stream"]
            with anyio.CancelScope() as scope:

                async def content() -> AsyncIterator[bytes]:
                    while True:
                        scope.deadline = anyio.current_time() + 0.3  # a write that takes longer is stuck
                        yield bytes(10_000)

                await client.put(f"https://{TLS_HOST}/stall", content=content())
            assert first.cut_short
            response = await client.get(f"https://{TLS_HOST}/bytes/100000")
            assert response.content == body(100_000)
            assert response.extensions["network_stream"] is not first

    kind.run(main)


@async_kinds
def test_every_wait_of_a_backend_has_its_timeout_and_httpcores_error(kind: Kind, config: Config) -> None:
    async def main() -> None:
        backend = kind.family.ours.AsyncWireGuardBackend(config)
        with pytest.raises(kind.core.ConnectTimeout, match=r"10\.99\.0\.1"):
            await backend.connect_tcp("10.99.0.1", 80, timeout=0.2)
        stream = await backend.connect_tcp(IPV4, 7, timeout=PATIENCE)
        with pytest.raises(kind.core.WriteTimeout, match="write timed out"):
            await stream.write(b"\r\n\r\n" + bytes(20_000_000), timeout=0.2)
        assert not stream.cut_short
        with pytest.raises(kind.core.ReadTimeout, match="sent nothing for"):
            await stream.read(1, timeout=0.2)
        stream = await backend.connect_tcp(IPV4, 7, timeout=PATIENCE)
        with pytest.raises(kind.core.ConnectTimeout, match="TLS handshake"):
            await stream.start_tls(client_context(), TLS_HOST, timeout=0.2)
        with pytest.raises(kind.core.ConnectError, match="outside the tunnel"):
            await backend.connect_unix_socket("/run/docker.sock")
        await backend.aclose()

    kind.run(main)


@async_kinds
@pytest.mark.parametrize(("local_address", "address"), [("0.0.0.0", IPV4), ("::", IPV6)])
def test_the_local_address_chooses_the_family(kind: Kind, config: Config, local_address: str, address: str) -> None:
    async def main() -> None:
        async with kind.client(config, local_address=local_address) as client:
            response = await client.get(f"http://{HOST}/")
            assert response.extensions["network_stream"].get_extra_info("server_addr") == (address, 80)

    kind.run(main)


@async_kinds
def test_a_cancelled_write_ends_the_stream(kind: Kind, config: Config) -> None:
    async def main() -> None:
        backend = kind.family.ours.AsyncWireGuardBackend(config)
        stream = await backend.connect_tcp(IPV4, 7, timeout=PATIENCE)
        with anyio.move_on_after(0.1):
            await stream.write(b"\r\n\r\n" + bytes(20_000_000))
        with pytest.raises(kind.core.WriteError, match="closed on this side"):
            await stream.write(b"x", timeout=5)
        await backend.aclose()

    kind.run(main)


@async_kinds
def test_an_error_in_the_middle_of_a_body_keeps_its_cause(kind: Kind, config: Config) -> None:
    async def main() -> None:
        async with kind.client(config) as client:
            with pytest.raises(kind.http.ReadTimeout, match=r"sent nothing for 0\.2 s") as caught:
                await client.get(f"{HALF}/", timeout=kind.http.Timeout(PATIENCE, read=0.2))
            assert isinstance(caught.value.__cause__, kind.core.ReadTimeout)
            assert isinstance(caught.value.__cause__.__cause__, OperationTimeout)

    kind.run(main)


@async_kinds
def test_the_pause_before_a_second_retry_lets_other_tasks_run(kind: Kind, config: Config) -> None:
    """httpcore waits for 0.5 s then; a loop that is blocked so long has far fewer turns."""

    async def main() -> None:
        turns = 0
        done = anyio.Event()

        async def take_turns() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await anyio.sleep(0.005)

        async def request() -> None:
            with pytest.raises(kind.http.ConnectError, match="refused"):
                await client.get(f"http://{IPV4}:81/")
            done.set()

        async with kind.client(config, retries=2) as client:
            await kind.gather(request, take_turns)
        assert turns > 10

    kind.run(main)


@async_kinds
def test_closing_in_a_cancelled_scope_closes(kind: Kind, config: Config) -> None:
    async def main() -> None:
        client = kind.open_client(config)
        async with client.stream("GET", f"{HALF}/") as response:
            stream = response.extensions["network_stream"]
            with anyio.CancelScope() as scope:
                scope.cancel()
                await response.aclose()
            with pytest.raises(kind.core.ReadError, match="closed on this side"):
                await stream.read(1, timeout=5)
        assert (await client.get(f"http://{HOST}/")).status_code == 200
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.aclose()
        with pytest.raises(TunnelClosed):
            await client._transport.tunnel.connect_tcp(IPV4, 80)

    kind.run(main)


@async_kinds
def test_the_handshake_begins_with_the_block_and_without_one_with_the_first_request(kind: Kind, config: Config) -> None:
    def initiations(client: Any) -> int:
        return sum(stats.initiations_sent for stats in client._transport.tunnel.stats().peers)

    async def main() -> None:
        async with kind.client(config) as client:
            assert initiations(client) == 1
        client = kind.open_client(config)
        assert initiations(client) == 0
        assert (await client.get(f"http://{HOST}/")).status_code == 200
        await client.aclose()

    kind.run(main)


@async_kinds
def test_clients_of_one_loop_borrow_its_tunnel(kind: Kind, config: Config) -> None:
    async def main() -> None:
        async with AsyncTunnel(config) as tunnel, kind.client(tunnel) as client:
            async with kind.client(tunnel) as other:
                assert (await other.get(f"http://{HOST}/")).status_code == 200
            assert client._transport.tunnel is tunnel
            assert (await client.get(f"http://{HOST}/")).status_code == 200
            with pytest.raises(TypeError, match="AsyncTunnel serves the async classes alone"):
                kind.family.ours.WireGuardTransport(tunnel)
            with pytest.raises(TypeError, match="dns= belongs to the tunnel"):
                kind.transport(tunnel, dns=["10.66.0.1"])

    kind.run(main)


@async_kinds
def test_a_tunnel_that_does_not_start_fails_the_request_and_not_the_client(kind: Kind, config: Config) -> None:
    (only,) = config.peers
    lost = PeerConfig(only.public_key, only.allowed_ips, "vpn.invalid:51820")

    async def main() -> None:
        async with kind.client(Config(config.private_key, config.address, [lost])) as client:
            with pytest.raises(kind.http.ConnectError, match=r"vpn\.invalid"):
                await client.get(f"http://{IPV4}/")

    kind.run(main)


def test_one_tunnel_serves_threads_and_event_loops_at_the_same_time(tunnel: Tunnel) -> None:
    """Every kind of client in a thread of its own, some with tasks of their own, all at once over one interface."""
    everyone = threading.Barrier(len(KINDS))

    def use(kind: Kind) -> list[bool]:
        async def main() -> list[bool]:
            async with kind.client(tunnel) as client:

                async def fetch(number: int) -> bool:
                    return bool((await client.get(f"http://{HOST}/bytes/{number}")).content == body(number))

                everyone.wait(PATIENCE)
                sizes = [10, 1_000, 100_000, 1_000_000]
                return [done for _ in range(3) for done in await kind.gather(*(lambda n=n: fetch(n) for n in sizes))]

        return kind.run(main)

    with ThreadPoolExecutor(len(KINDS)) as executor:
        assert list(executor.map(use, KINDS)) == [[True] * 12] * len(KINDS)
    assert tunnel.ping(IPV4) < PATIENCE, "the clients have left it running"
