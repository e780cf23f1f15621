"""An ordinary requests session over a tunnel to a peer in this process."""

from __future__ import annotations

import copy
import gc
import hashlib
import io
import json
import pickle
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import urllib3
from urllib3.util import Retry

from httpx_wireguard import (
    Config,
    ConnectionRefused,
    HandshakeTimeout,
    NameResolutionError,
    NoRoute,
    OperationTimeout,
    PeerConfig,
    Tunnel,
    TunnelClosed,
)
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._urllib3 import TlsSocketOverStream
from httpx_wireguard.requests import WireGuardAdapter
from httpx_wireguard.testing import HOST, IPV4, IPV6, SiteHandler, WireGuardPeer, body
from tests.http1_server import OneAnswerServer, read_head
from tests.tls_server import TlsServer, certificate, server_context
from tests.wg_quick import wg_quick

PATIENCE = 20.0  # seconds
SECURE = "server.test"  # the name in the certificate
PROXY = "http://proxy.test:3128"


class Site(SiteHandler):
    """The peer's site, with redirects, a page that is busy at first, and one that breaks off."""

    tries: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        self.tries[self.path] += 1
        if kind == "redirect":  # /redirect/<host>/<path>
            self.send_response(302)
            self.send_header("Location", f"http://{rest}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "busy" and self.tries[self.path] < 3:
            self.send_error(503)
        elif kind == "broken" and self.tries[self.path] < 2:
            self.close_connection = True
        elif kind in ("busy", "broken"):
            self._send(b"at last", "text/plain")
        else:
            super().do_GET()


def answer(stream: Any, text: str) -> None:
    stream.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())


def serve_https(stream: Any, context: ssl.SSLContext | None = None) -> None:
    tls = TlsServer(stream, context)
    while head := read_head(tls):
        answer(tls, head.split()[1].decode())


def serve_https_to_known_clients(stream: SyncStream) -> None:
    """TLS 1.2, so that the handshake itself tells a client without a certificate."""
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate()[0].decode())
    serve_https(stream, context)


def serve_proxy(stream: SyncStream) -> None:
    """An HTTP proxy that answers by itself: it tells what it was asked, and plays the origin behind a CONNECT."""
    while head := read_head(stream):
        line, *fields = head.decode().split("\r\n")
        if line.startswith("CONNECT"):
            stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            serve_https(stream)
            return
        answer(stream, "\n".join([line, *(field for field in fields if field.startswith("Proxy-Authorization"))]))


def serve_silence(stream: SyncStream) -> None:
    """Takes requests and never answers."""
    while stream.read(65_536):
        pass


def serve_half(stream: SyncStream) -> None:
    """Sends two of the four bytes that it promises."""
    read_head(stream)
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    serve_silence(stream)


@pytest.fixture(scope="module")
def one_answer() -> OneAnswerServer:
    return OneAnswerServer()


@pytest.fixture(scope="module")
def peer(one_answer: OneAnswerServer) -> Iterator[WireGuardPeer]:
    servers: dict[int, Callable[[SyncStream], None]] = {
        443: serve_https,
        444: serve_https_to_known_clients,
        3128: serve_proxy,
        8000: one_answer,
        8001: serve_silence,
        8002: serve_half,
    }
    names = {SECURE: [IPV4], "other.test": [IPV4], "proxy.test": [IPV4]}
    with WireGuardPeer(handler=Site, servers=servers, names=names, clients=2) as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


def session_over(conf: Config | Tunnel, **arguments: Any) -> requests.Session:
    session = requests.Session()
    adapter = WireGuardAdapter(conf, **arguments)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


@pytest.fixture
def session(tunnel: Tunnel) -> Iterator[requests.Session]:
    with session_over(tunnel) as session:
        yield session


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file that makes the peer's certificate trusted."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    path.write_bytes(certificate()[0])
    return str(path)


def sock_of(response: requests.Response) -> TlsSocketOverStream:
    """What the connection of a response that is not read yet stands on; a plain one lacks the methods of TLS."""
    sock: TlsSocketOverStream = response.raw.connection.sock  # type: ignore[union-attr,assignment]  # not None; no socket
    return sock


def chain(error: BaseException) -> list[BaseException]:
    """The error and all that led to it."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__]
    return found


# -- requests and responses


@pytest.mark.parametrize("host", [IPV4, f"[{IPV6}]", HOST, HOST.upper(), f"{HOST}."])
def test_a_page_comes_by_address_and_by_name(session: requests.Session, host: str) -> None:
    response = session.get(f"http://{host}/bytes/100000", timeout=PATIENCE)
    assert response.status_code == 200
    assert response.content == body(100_000)


@pytest.mark.parametrize("form", ["bytes", "file", "generator"])
def test_an_upload_arrives_whole(session: requests.Session, form: str) -> None:
    content = body(3_000_000)
    pieces = (content[at : at + 70_000] for at in range(0, len(content), 70_000))
    data = {"bytes": content, "file": io.BytesIO(content), "generator": pieces}[form]
    response = session.put(f"http://{IPV4}/", data=data, timeout=PATIENCE)  # type: ignore[arg-type]  # any of the three
    assert response.json() == {"length": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_file_is_sent_in_blocks_worth_the_price_of_a_write(session: requests.Session) -> None:
    class File(io.BytesIO):
        asked: ClassVar[set[int | None]] = set()

        def read(self, size: int | None = -1) -> bytes:
            self.asked.add(size)
            return super().read(size)

    session.put(f"http://{IPV4}/", data=File(bytes(200_000)), timeout=PATIENCE)
    assert File.asked == {65_536}


@pytest.mark.parametrize("chunk", [1_000, 65_536, 1_000_000])
def test_a_response_can_be_streamed(session: requests.Session, chunk: int) -> None:
    with session.get(f"http://{HOST}/bytes/3000000", stream=True, timeout=PATIENCE) as response:
        assert b"".join(response.iter_content(chunk)) == body(3_000_000)
    with session.get(f"http://{HOST}/bytes/3000000", stream=True, timeout=PATIENCE) as response:
        assert response.raw.read(chunk) == body(chunk)


@pytest.mark.parametrize("url", [f"http://{IPV4}/bytes/1000", f"https://{SECURE}/"])
def test_requests_one_after_the_other_share_a_connection(session: requests.Session, authority: str, url: str) -> None:
    """TLS session tickets lie unread on the idle connection: they are nothing to read."""
    names = set()
    for _ in range(5):
        with session.get(url, verify=authority, stream=True, timeout=PATIENCE) as response:
            names.add(sock_of(response).getsockname())
            assert response.content
    assert len(names) == 1


def test_an_idle_connection_that_the_server_closed_is_not_used_again(
    session: requests.Session, one_answer: OneAnswerServer
) -> None:
    url = f"http://{IPV4}:8000/"
    assert session.get(url, timeout=PATIENCE).text == "ok"
    before = one_answer.connections
    one_answer.close.set()
    assert one_answer.closed.wait(PATIENCE)
    session.get(f"http://{HOST}/", timeout=PATIENCE)  # the server's FIN left before this answer
    assert session.get(url, timeout=PATIENCE).text == "ok"
    assert one_answer.connections == before + 1


def test_a_redirect_to_another_host_stays_in_the_tunnel(session: requests.Session) -> None:
    response = session.get(f"http://{HOST}/redirect/other.test/bytes/5", timeout=PATIENCE)
    assert (response.url, response.content) == ("http://other.test/bytes/5", body(5))


def test_fifty_threads_share_one_session(session: requests.Session, tunnel: Tunnel) -> None:
    def fetch(number: int) -> bool:
        return session.get(f"http://{IPV4}/bytes/{number}", timeout=PATIENCE).content == body(number)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(fetch, range(1_000)))


def test_retry_is_urllib3_s(tunnel: Tunnel) -> None:
    retry = Retry(total=3, status_forcelist=[503])
    with session_over(tunnel, max_retries=retry) as session:
        assert session.get(f"http://{HOST}/busy/1", timeout=PATIENCE).text == "at last"
        assert session.get(f"http://{HOST}/broken/1", timeout=PATIENCE).text == "at last"
    assert Site.tries["/busy/1"] == 3
    assert Site.tries["/broken/1"] == 2


@pytest.mark.filterwarnings("ignore:.*HTTPResponse")  # CPython 3.14 flushes one that is closed, and its parts too
def test_a_response_dropped_unread_gives_its_connection_back(tunnel: Tunnel) -> None:
    """The garbage collector may find it in a thread that holds the tunnel's lock: closing takes no lock."""
    with session_over(tunnel) as session:
        response = session.get(f"http://{IPV4}/bytes/10000000", stream=True, timeout=PATIENCE)
        stream = sock_of(response).stream
        response.itself = response  # type: ignore[attr-defined]  # a cycle
        del response
        assert tunnel._interface is not None
        collecting = threading.Thread(target=collect_garbage, args=(tunnel._interface.driver.lock,), daemon=True)
        collecting.start()
        collecting.join(PATIENCE)
        assert not collecting.is_alive(), "closing a connection waits for a lock that its own thread holds"
        with pytest.raises(ConnectionResetError, match="closed on this side"):
            while stream.read(65_536, PATIENCE):
                pass


def collect_garbage(lock: threading.Lock) -> None:
    with lock:
        gc.collect()


# -- TLS


def test_a_custom_authority_holds_for_its_own_requests_only(session: requests.Session, authority: str) -> None:
    url = f"https://{SECURE}/"
    for _ in range(2):
        assert session.get(url, verify=authority, timeout=PATIENCE).text == "/"
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            session.get(url, timeout=PATIENCE)


def test_a_certificate_for_another_name_is_refused(session: requests.Session, authority: str) -> None:
    with pytest.raises(requests.exceptions.SSLError, match=r"not valid for 'other\.test'"):
        session.get("https://other.test/", verify=authority, timeout=PATIENCE)


def test_verification_can_be_turned_off(session: requests.Session) -> None:
    with pytest.warns(urllib3.exceptions.InsecureRequestWarning):
        assert session.get("https://other.test/", verify=False, timeout=PATIENCE).text == "/"


def test_a_client_certificate_is_shown(session: requests.Session, authority: str, tmp_path: Path) -> None:
    mine = tmp_path / "client.pem"
    mine.write_bytes(b"".join(certificate()))
    url = f"https://{SECURE}:444/"
    assert session.get(url, verify=authority, cert=str(mine), timeout=PATIENCE).text == "/"
    with pytest.raises(requests.exceptions.RequestException) as caught:
        session.get(url, verify=authority, timeout=PATIENCE)
    assert any(isinstance(error, ssl.SSLError) for error in chain(caught.value))


def test_the_certificate_can_be_looked_at(session: requests.Session, authority: str) -> None:
    with session.get(f"https://{SECURE}/", verify=authority, stream=True, timeout=PATIENCE) as response:
        sock = sock_of(response)
        assert sock.getpeercert()["subjectAltName"] == (("DNS", SECURE),)
        assert sock.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(certificate()[0].decode())
        assert sock.version() == "TLSv1.3"
        assert "TLSv1.3" in (sock.cipher() or ())
        assert sock.selected_alpn_protocol() is None
        assert sock.getpeername() == (IPV4, 443)


# -- errors


@pytest.mark.parametrize(
    ("url", "cause", "text"),
    [
        (f"http://{IPV4}:81/", ConnectionRefused, "port 81 refused by the far side"),
        ("http://nowhere.test/", NameResolutionError, "NXDOMAIN"),
        ("http://localhost/", NameResolutionError, "not inside the tunnel"),
        (f"https://{IPV4}:81/", ConnectionRefused, "port 81 refused by the far side"),
    ],
)
def test_a_failure_is_requests_own_error_with_our_text_and_cause(
    session: requests.Session, url: str, cause: type[Exception], text: str
) -> None:
    with pytest.raises(requests.exceptions.ConnectionError, match=text) as caught:
        session.get(url, timeout=PATIENCE)
    assert any(isinstance(error, cause) for error in chain(caught.value))


def test_an_address_outside_allowed_ips_says_so(peer: WireGuardPeer) -> None:
    config = peer.client_config(1)
    (only,) = config.peers
    narrow = Config(config.private_key, config.address, [PeerConfig(only.public_key, "10.66.0.1/32", only.endpoint)])
    with (
        session_over(narrow) as session,
        pytest.raises(requests.exceptions.ConnectionError, match="AllowedIPs") as caught,
    ):
        session.get("http://10.67.0.1/", timeout=PATIENCE)
    assert any(isinstance(error, NoRoute) for error in chain(caught.value))


def test_a_peer_that_does_not_answer_is_a_connect_timeout(peer: WireGuardPeer) -> None:
    config = peer.client_config(1)
    (only,) = config.peers
    with socket.socket(type=socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        lost = PeerConfig(only.public_key, only.allowed_ips, f"127.0.0.1:{dead.getsockname()[1]}")
        with (
            session_over(Config(config.private_key, config.address, [lost])) as session,
            pytest.raises(requests.exceptions.ConnectTimeout, match="no handshake answer from") as caught,
        ):
            session.get(f"http://{IPV4}/", timeout=(0.2, PATIENCE))
    assert any(isinstance(error, HandshakeTimeout) for error in chain(caught.value))


@pytest.mark.parametrize(("scheme", "timeout"), [("http", (PATIENCE, 0.2)), ("https", (0.2, PATIENCE))])
def test_a_server_that_does_not_answer_is_a_read_timeout(
    session: requests.Session, scheme: str, timeout: tuple[float, float]
) -> None:
    """urllib3 calls it so in a TLS handshake too, where the connect timeout holds."""
    with pytest.raises(requests.exceptions.ReadTimeout, match=r"read timeout=0\.2") as caught:
        session.get(f"{scheme}://{IPV4}:8001/", timeout=timeout)
    assert any(isinstance(error, OperationTimeout) for error in chain(caught.value))


def test_a_body_that_stops_coming_is_an_error_too(session: requests.Session) -> None:
    """requests' own class for it is `ConnectionError`; see its `Response.iter_content`."""
    with session.get(f"http://{IPV4}:8002/", stream=True, timeout=0.2) as response:
        pieces = response.iter_content(2)
        assert next(pieces) == b"ok"
        with pytest.raises(requests.exceptions.ConnectionError, match="Read timed out"):
            next(pieces)


# -- proxies


def test_an_http_proxy_is_dialled_through_the_tunnel(session: requests.Session) -> None:
    proxies = {"http": PROXY.replace("//", "//user:word@")}
    connections = set()
    for _ in range(2):
        with session.get("http://far.test/page", proxies=proxies, stream=True, timeout=PATIENCE) as response:
            connections.add(sock_of(response).getsockname())
            expected = ["GET http://far.test/page HTTP/1.1", "Proxy-Authorization: Basic dXNlcjp3b3Jk"]
            assert response.text.splitlines() == expected
    assert len(connections) == 1, "it is kept alive"


@pytest.mark.parametrize("proxy", [PROXY, f"http://[{IPV6}]:3128"])
def test_https_goes_through_connect(session: requests.Session, authority: str, proxy: str) -> None:
    proxies = {"https": proxy}
    for path in ("/a", "/b"):
        response = session.get(f"https://{SECURE}{path}", proxies=proxies, verify=authority, timeout=PATIENCE)
        assert response.text == path
    with pytest.raises(requests.exceptions.SSLError, match=r"not valid for 'other\.test'"):
        session.get("https://other.test/", proxies=proxies, verify=authority, timeout=PATIENCE)


def test_a_proxy_of_the_environment_is_dialled_through_the_tunnel(
    session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("http_proxy", PROXY)
    assert session.get("http://far.test/", timeout=PATIENCE).text == "GET http://far.test/ HTTP/1.1"


def test_a_proxy_outside_the_tunnel_is_an_error_that_says_so(session: requests.Session) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as outside,
        pytest.raises(requests.exceptions.ProxyError, match="has to be inside the tunnel"),
    ):
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        session.get(f"http://{HOST}/", proxies={"http": proxy}, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        ("socks5://user:secret@proxy.test:1080", "PySocks dials by itself"),
        ("socks5h://proxy.test:1080", "PySocks dials by itself"),
        ("https://proxy.test:3128", "TLS to the proxy"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_other_proxies_are_refused(session: requests.Session, scheme: str, proxy: str, text: str) -> None:
    with pytest.raises(requests.exceptions.InvalidSchema, match=text) as caught:
        session.get(f"{scheme}://{HOST}/", proxies={scheme: proxy}, timeout=PATIENCE)
    assert "secret" not in str(caught.value)


# -- life


def test_an_adapter_closes_its_own_tunnel(peer: WireGuardPeer) -> None:
    with session_over(peer.client_config(1)) as session:
        assert session.get(f"http://{IPV4}/", timeout=PATIENCE).ok
        adapter = session.get_adapter("http://")
        assert isinstance(adapter, WireGuardAdapter)
    with pytest.raises(TunnelClosed):
        adapter.tunnel.start()
    with pytest.raises(requests.exceptions.ConnectionError, match="the tunnel is closed; open a new one"):
        session.get(f"http://{IPV4}/", timeout=PATIENCE)


def test_a_tunnel_closed_under_an_idle_connection_is_noticed(peer: WireGuardPeer) -> None:
    with Tunnel(peer.client_config(1)) as tunnel, session_over(tunnel) as session:
        assert session.get(f"http://{IPV4}/", timeout=PATIENCE).ok
        tunnel.close()
        with pytest.raises(requests.exceptions.ConnectionError, match="the tunnel is closed; open a new one"):
            session.get(f"http://{IPV4}/", timeout=PATIENCE)


def test_an_adapter_s_pools_are_as_large_as_told(tunnel: Tunnel) -> None:
    class Larger(WireGuardAdapter):
        """As requests' documentation has it; proxies' pools follow."""

        def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **arguments: Any) -> None:
            super().init_poolmanager(connections, maxsize + 1, block, **arguments)

    adapter = Larger(tunnel, pool_connections=1, pool_maxsize=2, pool_block=True)
    for manager in (adapter.poolmanager, adapter.proxy_manager_for(PROXY)):
        pool = manager.connection_from_url(f"http://{HOST}/")
        assert pool.pool is not None
        assert (pool.pool.maxsize, pool.block) == (3, True)
        assert manager.connection_from_url(f"https://{HOST}/") is not pool
        assert len(manager.pools) == 1
    adapter.close()


def test_an_adapter_leaves_a_borrowed_tunnel_open(tunnel: Tunnel) -> None:
    for _ in range(2):
        with session_over(tunnel) as session:
            response = session.get(f"http://{IPV4}/", stream=True, timeout=PATIENCE)
            stream = sock_of(response).stream
            assert response.content
            del response  # a response keeps its pool
        with pytest.raises(ConnectionResetError, match="closed on this side"):
            stream.read(1, timeout=0)


def test_dns_belongs_to_the_tunnel(peer: WireGuardPeer, tunnel: Tunnel) -> None:
    with session_over(peer.client_config(1), dns=["10.66.0.99"]) as session:
        adapter = session.get_adapter("http://")
        assert isinstance(adapter, WireGuardAdapter)
        assert [str(server) for server in adapter.tunnel.config.dns] == ["10.66.0.99"]
    with pytest.raises(TypeError, match="pass it to Tunnel"):
        WireGuardAdapter(tunnel, dns=["10.66.0.1"])
    with pytest.raises(TypeError, match="not NoneType"):
        WireGuardAdapter(None)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_adapter_cannot_be_copied_or_pickled(session: requests.Session, duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="a tunnel and its keys belong to one process"):
        duplicate(session.get_adapter("http://"))
    with pytest.raises(TypeError, match="a tunnel and its keys belong to one process"):
        WireGuardAdapter.__new__(WireGuardAdapter).__setstate__({})


# -- leaks

WATCHED = """
import json, sys, warnings
import requests, urllib3
from urllib3.util import Retry
from httpx_wireguard import Config
from httpx_wireguard._urllib3 import TlsSocketOverStream
from httpx_wireguard.requests import WireGuardAdapter, WireGuardPoolManager

conf, outside = sys.argv[1:]
endpoint = Config.from_file(conf).peers[0].endpoint
events = []
hosts = set()

def watch(event, arguments):
    if event == "http.client.connect":
        hosts.add(arguments[1])
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[1] is None or tuple(arguments[1][:2]) != (endpoint.host, endpoint.port):
            events.append(f"{event} {arguments[1]}")
    elif event.startswith("socket.get") and event != "socket.gethostname" and arguments[0] != endpoint.host:
        events.append(f"{event} {arguments}")

sys.addaudithook(watch)
session = requests.Session()
adapter = WireGuardAdapter(conf, max_retries=Retry(total=3, status_forcelist=[503]))
session.mount("http://", adapter)
session.mount("https://", adapter)
texts = []

def get(url, **arguments):
    try:
        texts.append(session.get(url, timeout=5, **arguments).text)
    except requests.RequestException as error:
        texts.append(type(error).__name__)

get("http://far.test/")  # HTTP_PROXY, a host of the tunnel
session.trust_env = False
get("http://other.test/redirect/peer.test/busy/watched")
get("http://nowhere.test/")
get("https://nowhere.test/")
get("http://peer.test:81/")
for scheme in ("http", "socks5", "socks5h", "socks4"):
    get("http://peer.test/", proxies={"http": scheme + "://" + outside})
    get("https://server.test/", proxies={"https": scheme + "://" + outside})
with WireGuardPoolManager(adapter.tunnel) as pool:
    texts.append(pool.request("GET", "http://other.test/redirect/peer.test/bytes/3").headers["Content-Length"])
session.close()
json.dump([texts, events, sorted(hosts)], sys.stdout)
"""


def test_nothing_leaves_but_the_tunnel_s_datagrams(peer: WireGuardPeer, tmp_path: Path) -> None:
    conf = tmp_path / "wg0.conf"
    conf.write_text(wg_quick(peer.client_config(1)), encoding="utf-8")
    conf.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as outside:
        ended = subprocess.run(
            [sys.executable, "-c", WATCHED, conf, f"127.0.0.1:{outside.getsockname()[1]}"],
            env={"HTTP_PROXY": PROXY, "http_proxy": PROXY, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
        )
    assert ended.returncode == 0, ended.stderr
    texts, events, hosts = json.loads(ended.stdout)
    assert events == []
    assert hosts == ["other.test", HOST, "proxy.test"], "http.client's own event tells of connections as usual"
    refused = ["ProxyError", "ProxyError"] + ["InvalidSchema"] * 6
    expected = ["GET http://far.test/ HTTP/1.1", "at last", *["ConnectionError"] * 3, *refused, "3"]
    assert texts == expected
