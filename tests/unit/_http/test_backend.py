from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from httpx_wireguard._errors import (
    ConnectionRefused,
    ConnectionReset,
    HandshakeTimeout,
    NameResolutionError,
    TunnelClosed,
    WireGuardError,
)
from httpx_wireguard._streams import AsyncTcpStream, SyncStream, TcpOptions
from httpx_wireguard._waiting import run
from tests.http_clients import FAMILIES, Family
from tests.memory_tunnel import MemoryDriver, MemorySocket, MemoryTunnel, VirtualDriver
from tests.tls_server import TlsServer, client_context, server_context

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=str)


def accept(sock: MemorySocket) -> None:
    """A far host that accepts the connection."""


def connected(family: Family) -> tuple[Any, MemorySocket]:
    """A network stream and the server's end of it."""
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.tcp["10.0.0.1", 80] = accept
    stream = family.ours.WireGuardBackend(tunnel).connect_tcp("10.0.0.1", 80)
    server = tunnel.sockets[0].peer
    assert server is not None
    return stream, server


def serve_http(driver: MemoryDriver, respond: Callable[[bytes], bytes]) -> Callable[[MemorySocket], None]:
    """A server that answers each read with one write, until the client ends."""

    def serve(sock: MemorySocket) -> None:
        stream = SyncStream(AsyncTcpStream(driver, sock))
        while data := stream.read(65_536):
            stream.write(respond(data))
        stream.close()

    return serve


def test_a_stream_reads_and_writes(family: Family) -> None:
    stream, server = connected(family)
    stream.write(b"request")
    stream.write(b"")
    assert server.receive(100, 0.0) == b"request"
    server.send(b"response", 0.0)
    server.close(0.0)
    assert [stream.read(100), stream.read(100)] == [b"response", b""]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ConnectionRefused("10.0.0.1:80 refused the connection"), "ConnectError"),
        (HandshakeTimeout("198.51.100.1:51820", 2, 5.0), "ConnectTimeout"),
        (TunnelClosed("the tunnel was closed"), "ConnectError"),
    ],
)
def test_a_failed_connect_is_httpcores_error_with_our_text_and_cause(
    family: Family, failure: WireGuardError, expected: str
) -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.tcp["10.0.0.1", 80] = failure
    with pytest.raises(getattr(family.core, expected)) as caught:
        family.ours.WireGuardBackend(tunnel).connect_tcp("10.0.0.1", 80, timeout=5)
    assert str(caught.value) == str(failure)
    assert caught.value.__cause__ is failure


def test_a_connect_without_an_answer_is_a_connect_timeout(family: Family) -> None:
    with pytest.raises(family.core.ConnectTimeout, match=r"timed out after 5\.0 s"):
        family.ours.WireGuardBackend(MemoryTunnel(VirtualDriver())).connect_tcp("10.0.0.1", 80, timeout=5)


def test_a_name_that_does_not_resolve_is_a_connect_error(family: Family) -> None:
    with pytest.raises(family.core.ConnectError, match="DNS =") as caught:
        family.ours.WireGuardBackend(MemoryTunnel(VirtualDriver())).connect_tcp("host.test", 80)
    assert isinstance(caught.value.__cause__, NameResolutionError)


def test_a_read_in_vain_is_a_read_timeout(family: Family) -> None:
    with pytest.raises(family.core.ReadTimeout, match="read timed out"):
        connected(family)[0].read(10, timeout=1)


def test_a_failed_read_is_a_read_error(family: Family) -> None:
    stream, server = connected(family)
    server.abort(0.0)
    with pytest.raises(family.core.ReadError, match="reset by peer") as caught:
        stream.read(10)
    assert isinstance(caught.value.__cause__, ConnectionReset)


def test_a_write_without_progress_is_a_write_timeout(family: Family) -> None:
    with pytest.raises(family.core.WriteTimeout, match="write timed out"):
        connected(family)[0].write(b"x" * 100_000, timeout=1)


def test_a_failed_write_is_a_write_error(family: Family) -> None:
    stream, server = connected(family)
    server.abort(0.0)
    with pytest.raises(family.core.WriteError, match="reset by peer"):
        stream.write(b"x")


def test_an_interrupted_write_ends_the_stream(family: Family) -> None:
    """Nothing after half a message would be understood."""
    driver = VirtualDriver()
    tunnel = MemoryTunnel(driver)
    tunnel.tcp["10.0.0.1", 80] = accept
    stream = family.ours.WireGuardBackend(tunnel).connect_tcp("10.0.0.1", 80)

    def interrupt() -> None:
        raise KeyboardInterrupt

    driver.at(1.0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.write(b"x" * 100_000)
    assert stream.cut_short
    with pytest.raises(family.core.WriteError, match="closed on this side"):
        stream.write(b"x")


def test_a_write_in_vain_does_not_end_the_stream(family: Family) -> None:
    stream, server = connected(family)
    with pytest.raises(family.core.WriteTimeout):
        stream.write(b"x" * 100_000, timeout=1)
    assert not stream.cut_short
    assert server.receive(10, 0.0) == b"x" * 10
    stream.write(b"y")


def test_a_tls_handshake_in_vain_is_a_connect_timeout(family: Family) -> None:
    with pytest.raises(family.core.ConnectTimeout, match="TLS handshake"):
        connected(family)[0].start_tls(client_context(), "server.test", timeout=1)


def test_a_certificate_that_is_not_trusted_is_a_connect_error(family: Family) -> None:
    driver = MemoryDriver()
    tunnel = MemoryTunnel(driver)

    def serve(sock: MemorySocket) -> None:
        with pytest.raises(ssl.SSLError):
            TlsServer(SyncStream(AsyncTcpStream(driver, sock)))

    tunnel.tcp["10.0.0.1", 443] = serve
    stream = family.ours.WireGuardBackend(tunnel).connect_tcp("10.0.0.1", 443, timeout=10)
    with pytest.raises(family.core.ConnectError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        stream.start_tls(client_context(trusted=False), "server.test", timeout=10)
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_a_unix_socket_is_refused(family: Family) -> None:
    """It would leave the tunnel."""
    with pytest.raises(family.core.ConnectError, match="outside the tunnel"):
        family.ours.WireGuardBackend(MemoryTunnel(VirtualDriver())).connect_unix_socket("/run/docker.sock")


def test_socket_options_reach_the_tunnel(family: Family) -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.tcp["10.0.0.1", 80] = accept
    options: list[Any] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, socket.SO_RCVBUF, 1)]
    family.ours.WireGuardBackend(tunnel).connect_tcp("10.0.0.1", 80, socket_options=options)
    assert tunnel.connects[0]["options"] == TcpOptions(keepalive=True)


def test_all_arguments_of_a_connect_reach_an_asynchronous_tunnel(family: Family) -> None:
    class Refusing:
        async def connect_tcp(self, *arguments: Any, **options: Any) -> None:
            asked.append((arguments, options))
            raise ConnectionRefused("refused")

    asked: list[Any] = []
    options = {"timeout": 3.0, "local_address": "::", "socket_options": [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]}
    with pytest.raises(family.core.ConnectError, match="refused"):
        run(family.ours.AsyncWireGuardBackend(Refusing()).connect_tcp("host.test", 80, **options))
    assert asked == [(("host.test", 80), options)]


def test_a_borrowed_tunnel_is_neither_started_nor_closed(family: Family) -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    backend = family.ours.WireGuardBackend(tunnel)
    backend.start()
    backend.close()
    assert (tunnel.started, tunnel.closed) == (0, 0)
    assert backend.tunnel is tunnel


def test_dns_servers_for_a_borrowed_tunnel_are_refused(family: Family) -> None:
    """They would be ignored, and names resolved elsewhere than the caller thinks."""
    with pytest.raises(TypeError, match="dns="):
        family.ours.WireGuardBackend(MemoryTunnel(VirtualDriver()), dns=["10.0.0.53"])


def test_a_pool_of_httpcore_speaks_http2_over_it(family: Family) -> None:
    """The handshake, ALPN, and HTTP/2's preface over our TLS; then a server that goes away."""
    driver = MemoryDriver()
    tunnel = MemoryTunnel(driver)
    received: list[bytes] = []

    def serve(sock: MemorySocket) -> None:
        context = server_context()
        context.set_alpn_protocols(["h2"])
        server = TlsServer(SyncStream(AsyncTcpStream(driver, sock)), context)
        received.append(server.read(65_536))
        server.close()

    tunnel.tcp["10.0.0.1", 443] = serve
    context = client_context()
    context.check_hostname = False
    with (
        family.core.ConnectionPool(
            ssl_context=context, http2=True, network_backend=family.ours.WireGuardBackend(tunnel)
        ) as pool,
        pytest.raises(family.core.RemoteProtocolError),
    ):
        pool.request("GET", "https://10.0.0.1/")
    assert received[0].startswith(b"PRI * HTTP/2.0")


def test_a_pool_reuses_a_connection_until_the_server_ends_it(family: Family) -> None:
    driver = MemoryDriver()
    tunnel = MemoryTunnel(driver)
    tunnel.tcp["10.0.0.1", 80] = serve_http(driver, lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with family.core.ConnectionPool(network_backend=family.ours.WireGuardBackend(tunnel)) as pool:
        assert pool.request("GET", "http://10.0.0.1/").content == b"ok"
        assert pool.request("GET", "http://10.0.0.1/").content == b"ok"
        assert len(tunnel.sockets) == 1
        server = tunnel.sockets[0].peer
        assert server is not None
        with driver.lock:
            server.close(0.0)
        assert pool.request("GET", "http://10.0.0.1/").content == b"ok"
        assert len(tunnel.sockets) == 2


def test_retries_of_a_pool_try_the_connection_again(family: Family) -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.tcp["10.0.0.1", 80] = ConnectionRefused("refused")
    with (
        family.core.ConnectionPool(retries=1, network_backend=family.ours.WireGuardBackend(tunnel)) as pool,
        pytest.raises(family.core.ConnectError),
    ):
        pool.request("GET", "http://10.0.0.1/")
    assert len(tunnel.connects) == 2
