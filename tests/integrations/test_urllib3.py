"""urllib3 itself over a tunnel to a peer in this process, and what must not pass for urllib3."""

from __future__ import annotations

import copy
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxySchemeUnsupported,
    ReadTimeoutError,
)
from urllib3.util import Timeout

from httpx_wireguard import Tunnel, TunnelClosed
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._urllib3 import Closer, SocketOverStream, WireGuardHTTPConnection, check_urllib3, wait_for_closing
from httpx_wireguard.requests import WireGuardPoolManager, WireGuardProxyManager
from httpx_wireguard.testing import HOST, IPV4, IPV6, WireGuardPeer, body
from tests.http1_server import read_head
from tests.tls_server import TlsServer, certificate, server_context
from tests.wg_quick import wg_quick

PATIENCE = 20.0  # seconds
DEAF = threading.Event()  # set: the server that reads nothing may go
SECURE = "server.test"  # the name in the certificate
FINGERPRINT = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate()[0].decode())).hexdigest()


def serve_https(stream: SyncStream, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
    context = server_context()
    context.maximum_version = newest
    tls = TlsServer(stream, context)
    while read_head(tls):
        tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")


def serve_proxy(stream: SyncStream) -> None:
    """Tells what it was asked."""
    while head := read_head(stream):
        stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))


def serve_refusal(stream: SyncStream) -> None:
    """Answers at the head of an upload and hangs up."""
    read_head(stream)
    stream.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
    stream.close()


def serve_silence(stream: SyncStream) -> None:
    while stream.read(65_536):
        pass


def serve_deafness(stream: SyncStream) -> None:
    """Takes nothing until it is reset."""
    DEAF.wait(PATIENCE)
    stream.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    servers: dict[int, Callable[[SyncStream], None]] = {
        443: serve_https,
        444: lambda stream: serve_https(stream, ssl.TLSVersion.TLSv1_2),
        413: serve_refusal,
        3128: serve_proxy,
        8001: serve_silence,
        8002: serve_deafness,
    }
    with WireGuardPeer(servers=servers, names={SECURE: [IPV4], "proxy.test": [IPV4]}, clients=3) as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


@pytest.fixture
def pool(tunnel: Tunnel) -> Iterator[WireGuardPoolManager]:
    with WireGuardPoolManager(tunnel, timeout=PATIENCE, retries=False) as pool:
        yield pool


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that makes the peer's certificate trusted."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    path.write_bytes(certificate()[0])
    return path


def sock_of(response: urllib3.BaseHTTPResponse) -> SocketOverStream:
    sock: SocketOverStream = response.connection.sock  # type: ignore[union-attr]  # not None until it is read
    return sock


def idle_connection(pool: WireGuardPoolManager, url: str) -> Any:
    """The one that waits for the next request to the URL's host."""
    connections = pool.connection_from_url(url).pool
    assert connections is not None
    (connection,) = [one for one in connections.queue if one is not None]
    return connection


def test_a_page_comes_and_its_connection_is_used_again(pool: WireGuardPoolManager) -> None:
    for size in (10, 1_000_000, 0):
        assert pool.request("GET", f"http://{HOST}/bytes/{size}").data == body(size)
    connections = pool.connection_from_url(f"http://{HOST}/")
    assert (connections.num_requests, connections.num_connections) == (3, 1)
    assert idle_connection(pool, f"http://{HOST}/").sock.is_idle


def test_a_local_address_confines_the_family(tunnel: Tunnel) -> None:
    for local, remote in (("0.0.0.0", IPV4), ("::", IPV6)):
        with WireGuardPoolManager(tunnel, source_address=(local, 0), timeout=PATIENCE) as pool:
            response = pool.request("GET", f"http://{HOST}/", preload_content=False)
            assert sock_of(response).getpeername()[0] == remote
            response.release_conn()


def test_socket_options_reach_the_tunnel(tunnel: Tunnel, caplog: pytest.LogCaptureFixture) -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    with caplog.at_level("DEBUG", "httpx_wireguard"), WireGuardPoolManager(tunnel, socket_options=options) as pool:
        assert pool.request("GET", f"http://{IPV4}/", timeout=PATIENCE).status == 200
    (ignored,) = [record.getMessage() for record in caplog.records if "socket option" in record.getMessage()]
    assert str(int(socket.SO_RCVBUF)) in ignored


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it, and Python only there")
def test_a_user_timeout_ends_an_upload_that_nobody_takes(tunnel: Tunnel) -> None:
    """RFC 5482; the window of a server that reads nothing stays closed."""
    options = [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 250)]
    with (
        WireGuardPoolManager(tunnel, socket_options=options, timeout=PATIENCE, retries=False) as pool,
        pytest.raises(ProtocolError, match=r"nothing acknowledged for 0\.25 s, the user timeout"),
    ):
        pool.request("POST", f"http://{IPV4}:8002/", body=bytes(8_000_000))
    DEAF.set()


def test_an_answer_that_comes_in_the_middle_of_an_upload_is_read(pool: WireGuardPoolManager) -> None:
    response = pool.request("POST", f"http://{IPV4}:413/", body=bytes(10_000_000))
    assert (response.status, response.data) == (413, b"large")


def test_errors_are_urllib3_s_own(pool: WireGuardPoolManager) -> None:
    with pytest.raises(NewConnectionError, match="port 81 refused by the far side"):
        pool.request("GET", f"http://{IPV4}:81/")
    with pytest.raises(NameResolutionError, match="NXDOMAIN"):
        pool.request("GET", "http://nowhere.test/")
    with pytest.raises(ReadTimeoutError, match=r"read timeout=0\.1"):
        pool.request("GET", f"http://{IPV4}:8001/", timeout=Timeout(read=0.1))
    with pytest.raises(ConnectTimeoutError, match=r"timed out.*through the tunnel: .*10\.99\.0\.1"):
        pool.request("GET", "http://10.99.0.1/", timeout=Timeout(connect=0.1))
    with pytest.raises(MaxRetryError, match="refused by the far side"):
        pool.request("GET", f"http://{IPV4}:81/", retries=1)


# -- TLS


@pytest.mark.parametrize(
    ("arguments", "url", "error"),
    [
        ({"assert_fingerprint": FINGERPRINT}, f"https://{SECURE}/", None),
        ({"assert_fingerprint": "00" * 32}, f"https://{SECURE}/", "Fingerprints did not match"),
        ({"assert_hostname": SECURE}, f"https://{IPV4}/", None),
        ({"assert_hostname": "other.test"}, f"https://{SECURE}/", r"doesn't match 'server\.test'"),
        ({"assert_hostname": False}, f"https://{IPV4}/", None),
        ({"server_hostname": SECURE}, f"https://{IPV4}/", None),
        ({}, f"https://{IPV4}/", "IP address mismatch"),
        ({"ssl_minimum_version": ssl.TLSVersion.TLSv1_3}, f"https://{SECURE}/", None),
        (
            {"ssl_minimum_version": ssl.TLSVersion.TLSv1_3},
            f"https://{SECURE}:444/",
            "ended the connection during the TLS handshake",
        ),
    ],
)
def test_urllib3_s_settings_of_tls_hold(
    tunnel: Tunnel, authority: Path, arguments: dict[str, Any], url: str, error: str | None
) -> None:
    with WireGuardPoolManager(tunnel, ca_certs=str(authority), retries=False, timeout=PATIENCE, **arguments) as pool:
        if error is None:
            assert pool.request("GET", url).data == b"secret"
        else:
            with pytest.raises(urllib3.exceptions.HTTPError, match=error):
                pool.request("GET", url)


def test_the_system_s_authorities_are_the_default(
    tunnel: Tunnel, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WireGuardPoolManager(tunnel, retries=False) as pool:
        with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            pool.request("GET", f"https://{SECURE}/")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert pool.request("GET", f"https://{SECURE}/").data == b"secret"
        assert idle_connection(pool, f"https://{SECURE}/").ssl_context is None, "the next handshake gets a new one"
    with (
        WireGuardPoolManager(tunnel, ca_certs=certifi.where(), retries=False) as pool,
        pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        pool.request("GET", f"https://{SECURE}/")  # given authorities are instead of the system's


def test_a_newest_version_of_tls_can_be_given(tunnel: Tunnel, authority: Path) -> None:
    with WireGuardPoolManager(
        tunnel, ca_certs=str(authority), ssl_maximum_version=ssl.TLSVersion.TLSv1_2, timeout=PATIENCE
    ) as pool:
        assert pool.request("GET", f"https://{SECURE}/").data == b"secret"
        assert idle_connection(pool, f"https://{SECURE}/").sock.version() == "TLSv1.2"


def test_a_given_context_is_used_as_it_is(tunnel: Tunnel) -> None:
    context = ssl.create_default_context(cadata=certificate()[0].decode())
    with WireGuardPoolManager(tunnel, ssl_context=context) as pool:
        assert pool.request("GET", f"https://{SECURE}/").data == b"secret"
        assert idle_connection(pool, f"https://{SECURE}/").ssl_context is context
    assert context.session_stats()["connect_good"] == 1


def test_a_context_that_needs_a_descriptor_is_refused(tunnel: Tunnel) -> None:
    class NoBio:
        """As urllib3.contrib.pyopenssl's."""

        verify_mode = ssl.CERT_REQUIRED

        def set_alpn_protocols(self, protocols: list[str]) -> None: ...

    with (
        WireGuardPoolManager(tunnel, ssl_context=NoBio(), retries=False) as pool,
        pytest.raises(urllib3.exceptions.SSLError, match="extract_from_urllib3"),
    ):
        pool.request("GET", f"https://{SECURE}/")


# -- the socket


def test_a_shutdown_ends_a_read_of_another_thread(tunnel: Tunnel) -> None:
    sock = SocketOverStream(tunnel.connect_tcp(IPV4, 8001, PATIENCE), PATIENCE)
    read: list[bytes] = []
    with sock.makefile("rb") as file:
        reader = threading.Thread(target=lambda: read.append(file.read(1)))
        reader.start()
        sock.shutdown(socket.SHUT_RD)
        reader.join(PATIENCE)
    assert read == [b""]
    sock.close()


def test_a_socket_closes_after_its_files(tunnel: Tunnel) -> None:
    sock = SocketOverStream(tunnel.connect_tcp(IPV4, 80, PATIENCE), PATIENCE)
    sock.sendall(b"GET /bytes/100 HTTP/1.0\r\n\r\n")
    file = sock.makefile("rb")
    sock.close()
    assert not sock.is_idle
    assert file.read().endswith(body(100))
    file.close()
    wait_for_closing()
    with pytest.raises(ConnectionResetError, match="closed on this side"):
        sock.stream.read(1, timeout=0)


def test_tls_takes_the_socket_s_timeout_over(tunnel: Tunnel) -> None:
    context = ssl.create_default_context(cadata=certificate()[0].decode())
    plain = SocketOverStream(tunnel.connect_tcp(IPV4, 443, PATIENCE), PATIENCE)
    sock = plain.start_tls(context, SECURE)
    assert sock.gettimeout() == PATIENCE
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError, match=r"sent nothing for 0\.1 s"):
        sock.recv(1)
    sock.close()


def test_a_socket_has_no_descriptor(tunnel: Tunnel) -> None:
    sock = SocketOverStream(tunnel.connect_tcp(IPV4, 80, PATIENCE), PATIENCE)
    with pytest.raises(OSError, match="no file descriptor"):
        sock.fileno()
    with pytest.raises(ValueError, match="for reading bytes only"):
        sock.makefile("rw")
    assert sock.getpeername() == (IPV4, 80)
    sock.close()


def test_a_connection_made_in_another_way_is_refused_before_a_byte_is_written(tunnel: Tunnel) -> None:
    """Whatever a version or a patch of urllib3 comes up with."""
    ours, theirs = socket.socketpair()

    class Elsewhere(WireGuardHTTPConnection):
        def _new_conn(self) -> Any:
            return ours

    with theirs, pytest.raises(OSError, match="not made through the tunnel"):
        Elsewhere("example.test", tunnel=tunnel).request("GET", "/")
    assert ours.fileno() == -1, "it is closed"
    with pytest.raises(TypeError, match="tunnel"):
        WireGuardHTTPConnection("example.test")  # type: ignore[call-arg]  # what is tested


# -- proxies


def test_an_http_proxy_is_dialled_through_the_tunnel(tunnel: Tunnel) -> None:
    with WireGuardProxyManager(tunnel, "http://proxy.test:3128", proxy_headers={"X-Proxy": "1"}) as pool:
        head = pool.request("GET", "http://far.test/").data
    assert head.startswith(b"GET http://far.test/ HTTP/1.1")
    assert b"X-Proxy: 1" in head


@pytest.mark.parametrize("scheme", ["https", "socks5", "socks4a", "ftp"])
def test_other_proxies_are_refused(tunnel: Tunnel, scheme: str) -> None:
    with pytest.raises(ProxySchemeUnsupported, match=rf"a {scheme}:// proxy cannot be used through the tunnel"):
        WireGuardProxyManager(tunnel, f"{scheme}://proxy.test:3128")


# -- life


def test_a_manager_closes_its_own_tunnel_after_its_connections(peer: WireGuardPeer) -> None:
    with WireGuardPoolManager(peer.client_config(1), dns=["10.66.0.99"]) as pool:
        assert [str(server) for server in pool.tunnel.config.dns] == ["10.66.0.99"]
        assert pool.request("GET", f"http://{IPV4}/").status == 200
    with pytest.raises(TunnelClosed):
        pool.tunnel.start()


def test_there_is_nothing_to_wait_for_before_the_first_connection() -> None:
    started = time.monotonic()
    Closer().wait()
    assert time.monotonic() - started < 0.5


def test_a_stream_that_fails_to_close_does_not_keep_others_open(
    tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def close(self) -> None:
            raise RuntimeError("broken")

    closer = Closer()
    closer.start()
    closer.close(Broken())  # type: ignore[arg-type]  # no stream does it
    stream = tunnel.connect_tcp(IPV4, 80, PATIENCE)
    closer.close(stream)
    closer.wait()
    with pytest.raises(ConnectionResetError, match="closed on this side"):
        stream.read(1, timeout=0)
    assert "did not close" in caplog.text


def test_a_manager_leaves_a_borrowed_tunnel_open(tunnel: Tunnel) -> None:
    for _ in range(2):
        with WireGuardPoolManager(tunnel) as pool:
            assert pool.request("GET", f"http://{IPV4}/").status == 200
            stream = idle_connection(pool, f"http://{IPV4}/").sock.stream
        with pytest.raises(ConnectionResetError, match="closed on this side"):
            stream.read(1, timeout=0)
    with pytest.raises(TypeError, match="pass it to Tunnel"):
        WireGuardPoolManager(tunnel, dns=["10.66.0.1"])


def test_a_manager_cannot_be_copied(pool: WireGuardPoolManager) -> None:
    with pytest.raises(TypeError, match="a tunnel and its keys belong to one process"):
        copy.copy(pool)


FORKED = """
import os, sys
from httpx_wireguard._urllib3 import wait_for_closing
from httpx_wireguard.requests import WireGuardPoolManager

first, second = sys.argv[1:]
inherited = WireGuardPoolManager(first, retries=False)
inherited.request("GET", "http://10.66.0.1/")
if child := os.fork():
    inherited.close()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    inherited.request("GET", "http://10.66.0.1/")
    sys.exit("the parent's tunnel was used")
except OSError as error:
    assert "forked" in str(error), error
except Exception as error:
    assert "forked" in str(error), error
with WireGuardPoolManager(second) as own:
    response = own.request("GET", "http://10.66.0.1/bytes/10000000", preload_content=False)
    stream = response.connection.sock.stream
    response.close()
    wait_for_closing()
    try:
        stream.read(1, 5)
        sys.exit("the connection is not closed")
    except ConnectionResetError:
        pass
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_a_tunnel_of_its_own(peer: WireGuardPeer, tmp_path: Path) -> None:
    paths = [tmp_path / "first.conf", tmp_path / "second.conf"]
    for number, path in enumerate(paths, 1):
        path.write_text(wg_quick(peer.client_config(number)), encoding="utf-8")
        path.chmod(0o600)
    ended = run_python(FORKED, *map(str, paths))
    assert ended.returncode == 0, ended.stderr


# -- what is not urllib3


@pytest.mark.parametrize(
    ("version", "refusal"),
    [
        ("2.0.7", None),
        ("2.8.0", None),
        ("2.5.0.dev3", None),
        ("2.13.899", None),
        ("2.13.900", "urllib3-future 2.13.900"),
        ("2.25.904", "without niquests"),
        ("1.26.20", r"found 1\.26\.20: `pip install"),
        ("3.0.0", r"needs urllib3 2\.x"),
    ],
)
def test_only_urllib3_2_is_taken(version: str, refusal: str | None) -> None:
    if refusal is None:
        check_urllib3(version)
    else:
        with pytest.raises(ImportError, match=refusal):
            check_urllib3(version)


def test_the_import_itself_refuses_urllib3_future() -> None:
    ended = run_python("import urllib3; urllib3.__version__ = '2.25.904'; import httpx_wireguard.requests")
    assert "ImportError" in ended.stderr
    assert "gives urllib3-future 2.25.904" in ended.stderr


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )
