from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import itertools
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from httpx_wireguard import _families
from httpx_wireguard._errors import ConnectionRefused, ConnectionReset, EndpointError, HandshakeTimeout
from httpx_wireguard._streams import AsyncTcpStream, SyncStream
from httpx_wireguard._waiting import run
from tests.http_clients import FAMILIES, Family
from tests.memory_tunnel import MemoryDriver, MemorySocket, MemoryTunnel
from tests.tls_server import TlsServer, certificate, client_context, server_context

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=str)


@pytest.fixture
def tunnel() -> Iterator[MemoryTunnel]:
    tunnel = MemoryTunnel(MemoryDriver())
    yield tunnel
    tunnel.close()


@pytest.fixture
def opened(tunnel: MemoryTunnel, monkeypatch: pytest.MonkeyPatch) -> MemoryTunnel:
    """The tunnel that a path opens."""
    monkeypatch.setattr(_families, "Tunnel", lambda conf, dns: tunnel)
    return tunnel


def answer(tunnel: MemoryTunnel, body: bytes = b"ok") -> Callable[[MemorySocket], None]:
    """An HTTP server that answers each read."""

    def serve(sock: MemorySocket) -> None:
        respond(SyncStream(AsyncTcpStream(tunnel.driver, sock)), body)

    return serve


def respond(stream: SyncStream | TlsServer, body: bytes = b"ok") -> None:
    while stream.read(65_536):
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    stream.close()


def test_a_client_gets_a_response_through_a_borrowed_tunnel(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("http://10.0.0.1/").text == "ok"
    assert (tunnel.started, tunnel.closed) == (0, 0)


def test_an_https_response_through_the_tunnel(family: Family, tunnel: MemoryTunnel) -> None:
    def serve(sock: MemorySocket) -> None:
        respond(TlsServer(SyncStream(AsyncTcpStream(tunnel.driver, sock))))

    tunnel.tcp["10.0.0.1", 443] = serve
    context = client_context()
    context.check_hostname = False
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel, verify=context)) as client:
        response = client.get("https://10.0.0.1/")
        assert response.text == "ok"
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert stream.get_extra_info("wireguard").host == "10.0.0.1"


def https_server(tunnel: MemoryTunnel, contexts: Iterator[ssl.SSLContext]) -> Callable[[MemorySocket], None]:
    """Answers one request on each connection, by the next context, and closes."""

    def serve(sock: MemorySocket) -> None:
        stream = TlsServer(SyncStream(AsyncTcpStream(tunnel.driver, sock)), next(contexts))
        stream.read(65_536)
        stream.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        stream.close()

    return serve


def resumed(client: Any, url: str) -> bool:
    """Whether a request's connection resumed a session."""
    response = client.get(url)
    assert response.text == "ok"
    answer: bool = response.extensions["network_stream"].get_extra_info("ssl_object").session_reused
    return answer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_session_is_resumed_by_the_next_connection_to_the_same_host(
    family: Family, tunnel: MemoryTunnel, version: ssl.TLSVersion
) -> None:
    context = server_context()
    context.maximum_version = version
    for host in ("10.0.0.1", "10.0.0.2"):
        tunnel.tcp[host, 443] = https_server(tunnel, itertools.repeat(context))
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel, verify=False)) as client:
        hosts = ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.2")
        assert [resumed(client, f"https://{host}/") for host in hosts] == [False, False, True, True, True]


def test_a_server_that_has_forgotten_a_session_does_a_full_handshake(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 443] = https_server(tunnel, iter([server_context() for _ in range(3)]))
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel, verify=False)) as client:
        assert [resumed(client, "https://10.0.0.1/") for _ in range(3)] == [False] * 3


@pytest.mark.parametrize("own", [True, False])
def test_a_server_that_ends_the_connection_during_the_handshake(
    family: Family, tunnel: MemoryTunnel, own: bool
) -> None:
    def serve(sock: MemorySocket) -> None:
        stream = SyncStream(AsyncTcpStream(tunnel.driver, sock))
        stream.read(65_536)
        stream.close()

    tunnel.tcp["10.0.0.1", 443] = serve
    verify = False if own else client_context()
    with (
        family.http.Client(transport=family.ours.WireGuardTransport(tunnel, verify=verify)) as client,
        pytest.raises(family.http.ConnectError, match="ended the connection during the TLS handshake"),
    ):
        client.get("https://10.0.0.1/")


def test_a_tls_session_is_used_once_and_few_are_kept(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_families, "MAX_SESSIONS", 2)
    context: Any = _families.PoolContext(lambda: RecordedContext(ssl.PROTOCOL_TLS_CLIENT))
    given = [context.wrap_bio(None, None, False, "a")[1]]
    for host in "abc":
        context.keep_session(closing(host))
    given += [context.wrap_bio(None, None, False, host)[1] for host in "abcc"]
    assert given == [None, None, "of b", "of c", None]


def test_only_a_context_of_the_standard_library_resumes(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others verify in ways of their own, and perhaps not what was resumed."""
    monkeypatch.setattr(RecordedContext, "__module__", "truststore")
    context: Any = _families.PoolContext(lambda: RecordedContext(ssl.PROTOCOL_TLS_CLIENT))
    for _ in range(2):
        assert context.wrap_bio(None, None, False, "a")[1] is None
        context.keep_session(closing("a"))
    assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF


def closing(host: str) -> Any:
    """A connection's `ssl.SSLObject`, at its end."""
    return SimpleNamespace(server_hostname=host, session=f"of {host}")


class RecordedContext(ssl.SSLContext):
    __module__ = "ssl"

    def wrap_bio(self, *arguments: Any) -> Any:
        return arguments[-2:]


def test_the_default_context_is_made_when_the_first_connection_needs_it(family: Family) -> None:
    made: list[dict[str, Any]] = []

    def create_ssl_context(**arguments: Any) -> ssl.SSLContext:
        made.append(arguments)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    context = _families.ssl_context(create_ssl_context, True, None, False)
    assert made == []
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: context.check_hostname, range(8))) == {True}
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), False, "server.test")
    assert made == [{"trust_env": False}]


def test_plain_http_needs_no_certificate_authorities(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("http://10.0.0.1/").text == "ok"
        assert client._transport._pool._ssl_context._context is None


def test_authorities_that_the_environment_names_are_used_and_missed_at_once(
    family: Family, tunnel: MemoryTunnel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(FileNotFoundError):
        family.ours.WireGuardTransport(tunnel)
    path.write_bytes(certificate()[0])
    tunnel.tcp["10.0.0.1", 443] = https_server(tunnel, itertools.repeat(server_context()))
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("https://10.0.0.1/", extensions={"sni_hostname": "server.test"}).text == "ok"


@pytest.mark.parametrize("trust_env", [True, False])
def test_a_default_context_that_was_made_late_verifies(family: Family, tunnel: MemoryTunnel, trust_env: bool) -> None:
    def serve(sock: MemorySocket) -> None:
        with contextlib.suppress(ssl.SSLError):  # the client's alert
            TlsServer(SyncStream(AsyncTcpStream(tunnel.driver, sock)))

    tunnel.tcp["10.0.0.1", 443] = serve
    with (
        family.http.Client(transport=family.ours.WireGuardTransport(tunnel, trust_env=trust_env)) as client,
        pytest.raises(family.http.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("https://10.0.0.1/")


def test_what_the_user_gives_for_a_context_is_read_at_once(family: Family, tunnel: MemoryTunnel) -> None:
    context = ssl.create_default_context()
    assert _families.ssl_context(family.http.create_ssl_context, context, None, True) is context
    with pytest.warns(DeprecationWarning), pytest.raises(FileNotFoundError):
        family.ours.WireGuardTransport(tunnel, verify="/nowhere/ca.pem")
    with pytest.warns(DeprecationWarning), pytest.raises(FileNotFoundError):
        family.ours.WireGuardTransport(tunnel, cert="/nowhere/client.pem")


def test_an_https_proxy_inside_the_tunnel(family: Family, tunnel: MemoryTunnel) -> None:
    """TLS to the proxy, and TLS to the server inside it."""

    def proxy(sock: MemorySocket) -> None:
        outer = TlsServer(SyncStream(AsyncTcpStream(tunnel.driver, sock)))
        assert outer.read(65_536).startswith(b"CONNECT server.test:443")
        outer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        respond(TlsServer(outer))

    tunnel.tcp["10.0.0.1", 8443] = proxy
    proxy_context = client_context()
    proxy_context.check_hostname = False
    chosen = family.http.Proxy("https://10.0.0.1:8443", ssl_context=proxy_context)
    with family.http.Client(
        transport=family.ours.WireGuardTransport(tunnel, verify=client_context(), proxy=chosen)
    ) as client:
        assert client.get("https://server.test/").text == "ok"
    assert [connect["host"] for connect in tunnel.connects] == ["10.0.0.1"]


def test_large_bodies_arrive_whole(family: Family, tunnel: MemoryTunnel) -> None:
    body = bytes(range(256)) * 4000
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel, body)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("http://10.0.0.1/").content == body


def test_many_threads_share_a_client(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with (
        family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client,
        ThreadPoolExecutor(8) as executor,
    ):
        texts = list(executor.map(lambda _: client.get("http://10.0.0.1/").text, range(80)))
    assert texts == ["ok"] * 80


class PromptTunnel:
    """A tunnel whose server answers each read at once: nothing but the event loop decides what comes when."""

    async def connect_tcp(self, host: str, port: int, **_: Any) -> PromptTunnel:
        return self

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(0)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        await asyncio.sleep(0)

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


def test_a_request_cancelled_at_any_moment_is_gone_from_the_pool(family: Family) -> None:
    async def main() -> int:
        transport = family.ours.AsyncWireGuardTransport(PromptTunnel())
        async with family.http.AsyncClient(transport=transport) as client:
            for steps in itertools.count():
                request = asyncio.create_task(client.get("http://10.0.0.1/"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if request.done():
                    return steps
                request.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await request
                assert not transport._pool._requests, f"after {steps} steps"
                assert all(connection.is_idle() for connection in transport._pool.connections), f"after {steps} steps"
        raise AssertionError

    assert asyncio.run(main()) > 2


def test_an_own_tunnel_starts_with_the_client_and_ends_with_it(family: Family, opened: MemoryTunnel) -> None:
    transport = family.ours.WireGuardTransport("wg0.conf")
    assert opened.started == 0
    with family.http.Client(transport=transport):
        assert (opened.started, opened.closed) == (1, 0)
    assert opened.closed == 1
    assert transport.tunnel is opened


def test_an_own_tunnel_ends_with_close_without_a_with_block(family: Family, opened: MemoryTunnel) -> None:
    family.http.Client(transport=family.ours.WireGuardTransport("wg0.conf")).close()
    assert opened.closed == 1


def test_a_start_that_is_interrupted_leaves_no_tunnel_behind(
    family: Family, opened: MemoryTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "start", start)
    client = family.http.Client(transport=family.ours.WireGuardTransport("wg0.conf"))
    with pytest.raises(KeyboardInterrupt):
        client.__enter__()
    assert opened.closed == 1


def test_a_start_that_is_cancelled_leaves_no_tunnel_behind(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tunnel:
        closed = 0

        async def start(self) -> None:
            raise asyncio.CancelledError

        async def aclose(self) -> None:
            self.closed += 1

    tunnel = Tunnel()
    monkeypatch.setattr(_families, "AsyncTunnel", lambda conf, dns: tunnel)
    transport = family.ours.AsyncWireGuardTransport("wg0.conf")
    with pytest.raises(asyncio.CancelledError):
        run(family.http.AsyncClient(transport=transport).__aenter__())
    assert tunnel.closed == 1


def test_a_tunnel_that_does_not_start_fails_the_request_and_not_the_client(
    family: Family, opened: MemoryTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise EndpointError("vpn.test does not resolve")

    monkeypatch.setattr(opened, "start", start)
    opened.tcp["10.0.0.1", 80] = EndpointError("vpn.test does not resolve")
    with (
        family.http.Client(transport=family.ours.WireGuardTransport("wg0.conf")) as client,
        pytest.raises(family.http.ConnectError, match=r"vpn\.test does not resolve"),
    ):
        client.get("http://10.0.0.1/")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ConnectionRefused("10.0.0.1:80 refused the connection"), "ConnectError"),
        (HandshakeTimeout("198.51.100.1:51820", 2, 5.0), "ConnectTimeout"),
    ],
)
def test_an_error_is_httpxs_with_our_text(family: Family, tunnel: MemoryTunnel, failure: Any, expected: str) -> None:
    tunnel.tcp["10.0.0.1", 80] = failure
    with (
        family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client,
        pytest.raises(getattr(family.http, expected)) as caught,
    ):
        client.get("http://10.0.0.1/")
    assert str(caught.value) == str(failure)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__cause__ is failure


def test_an_error_in_the_middle_of_a_body_keeps_its_cause(family: Family, tunnel: MemoryTunnel) -> None:
    """httpcore's pool raises `from None`; the tunnel's own error must be found below httpx's all the same."""

    def break_off(sock: MemorySocket) -> None:
        stream = SyncStream(AsyncTcpStream(tunnel.driver, sock))
        stream.read(65_536)
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        with tunnel.driver.lock:
            sock.abort(tunnel.driver.now())
            tunnel.driver.pump()

    tunnel.tcp["10.0.0.1", 80] = break_off
    with (
        family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client,
        pytest.raises(family.http.ReadError) as caught,
    ):
        client.get("http://10.0.0.1/")
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, ConnectionReset)


def test_what_httpcore_knew_of_a_request_is_gone_with_it(family: Family, tunnel: MemoryTunnel) -> None:
    """httpx ties each response into a cycle, which only the garbage collector undoes."""
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(found, family.core.Request) for found in gc.get_objects())  # of other tests
            response = client.get("http://10.0.0.1/")
            assert response.content == b"ok"
            assert sum(isinstance(found, family.core.Request) for found in gc.get_objects()) == before
        finally:
            gc.enable()


def test_a_closed_response_is_not_taken_for_an_empty_one(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with family.ours.WireGuardTransport(tunnel) as transport:
        response = transport.handle_request(family.http.Request("GET", "http://10.0.0.1/"))
        for _ in range(2):
            response.stream.close()
        with pytest.raises(RuntimeError, match="closed"):
            list(response.stream)


def test_http2_without_its_package_is_httpxs_import_error(
    family: Family, tunnel: MemoryTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h2" else find_spec(name))
    for transport in (family.ours.WireGuardTransport, family.ours.AsyncWireGuardTransport):
        with pytest.raises(ImportError, match=rf"pip install {family}\[http2\]"):
            transport(tunnel, http2=True)


def test_tools_that_wrap_http_transport_see_the_requests(
    family: Family, tunnel: MemoryTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instrumentation (OpenTelemetry) and mocks (pytest_httpx) replace that method of that class."""
    seen: list[Any] = []

    def handle_request(transport: Any, request: Any) -> Any:
        seen.append((type(transport), str(request.url)))
        return family.http.Response(299)

    monkeypatch.setattr(family.http.HTTPTransport, "handle_request", handle_request)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("http://10.0.0.1/").status_code == 299
    assert seen == [(family.ours.WireGuardTransport, "http://10.0.0.1/")]
    assert tunnel.connects == []


def test_the_arguments_reach_the_pool(family: Family, tunnel: MemoryTunnel) -> None:
    limits = family.http.Limits(max_connections=7, max_keepalive_connections=3, keepalive_expiry=2.0)
    transport = family.ours.WireGuardTransport(
        tunnel, http1=False, http2=True, limits=limits, retries=2, local_address="::"
    )
    pool: Any = transport._pool
    assert (pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry) == (7, 3, 2.0)
    assert (pool._http1, pool._http2, pool._retries, pool._local_address) == (False, True, 2, "::")


def test_the_default_limits_are_httpxs(family: Family, tunnel: MemoryTunnel) -> None:
    ours: Any = family.ours.WireGuardTransport(tunnel)._pool
    theirs: Any = family.http.HTTPTransport()._pool
    for name in ("_max_connections", "_max_keepalive_connections", "_keepalive_expiry", "_http1", "_http2", "_retries"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_request_that_ends_between_assignment_and_connect_gives_its_slot_back(
    family: Family, tunnel: MemoryTunnel
) -> None:
    """httpcore 1.0.9 keeps such a connection for ever, and with it a slot of the pool."""
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    transport = family.ours.WireGuardTransport(tunnel, limits=family.http.Limits(max_connections=1))
    pool: Any = transport._pool
    create_connection = pool.create_connection

    def interrupted(origin: Any) -> Any:
        pool.create_connection = create_connection
        connection = create_connection(origin)

        def handle_request(request: Any) -> None:
            raise KeyboardInterrupt

        connection.handle_request = handle_request
        return connection

    pool.create_connection = interrupted
    with family.http.Client(transport=transport, timeout=1) as client:
        with pytest.raises(KeyboardInterrupt):
            client.get("http://10.0.0.1/")
        assert client.get("http://10.0.0.1/").text == "ok"


def test_a_slot_given_back_goes_to_the_request_that_waits_for_it(family: Family, tunnel: MemoryTunnel) -> None:
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    transport = family.ours.WireGuardTransport(tunnel, limits=family.http.Limits(max_connections=1))
    pool: Any = transport._pool
    create_connection, assign = pool.create_connection, pool._assign_requests_to_connections
    queued = threading.Event()

    def assign_and_tell() -> Any:
        closing = assign()
        if len(pool._requests) == 2:
            queued.set()
        return closing

    def interrupted(origin: Any) -> Any:
        pool.create_connection = create_connection
        connection = create_connection(origin)

        def handle_request(request: Any) -> None:
            waiting.append(executor.submit(client.get, "http://10.0.0.1/"))
            assert queued.wait(5)
            raise KeyboardInterrupt

        connection.handle_request = handle_request
        return connection

    waiting: list[Future[Any]] = []
    pool.create_connection, pool._assign_requests_to_connections = interrupted, assign_and_tell
    with family.http.Client(transport=transport, timeout=5) as client, ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            client.get("http://10.0.0.1/")
        assert waiting[0].result(10).text == "ok"


def test_a_connection_given_to_a_request_is_not_closed_as_surplus(family: Family, tunnel: MemoryTunnel) -> None:
    """httpcore 1.0.9 takes it for idle until the request has begun, and closes it when it has."""
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    transport = family.ours.WireGuardTransport(tunnel)
    pool: Any = transport._pool
    with family.http.Client(transport=transport) as client:
        client.get("http://10.0.0.1/")
        (connection,) = pool.connections
        handle_request = connection.handle_request

        def late(request: Any) -> Any:
            pool._max_keepalive_connections = 0
            assert pool._assign_requests_to_connections() == []  # by another thread
            return handle_request(request)

        connection.handle_request = late
        assert client.get("http://10.0.0.1/").text == "ok"
        assert pool.connections == []  # now it is surplus


def test_the_environments_proxy_is_not_used(
    family: Family, tunnel: MemoryTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for the tunnel must not leave in the clear."""
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:3128")
    tunnel.tcp["10.0.0.1", 80] = answer(tunnel)
    with family.http.Client(transport=family.ours.WireGuardTransport(tunnel)) as client:
        assert client.get("http://10.0.0.1/").text == "ok"
