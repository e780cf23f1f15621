"""An ordinary httpx client over a tunnel to a peer in this process."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx
import pytest

from httpx_wireguard import (
    Config,
    ConnectionRefused,
    NameResolutionError,
    NoRoute,
    PeerConfig,
    Tunnel,
    WireGuardBackend,
    WireGuardTransport,
)
from httpx_wireguard._streams import Stream
from httpx_wireguard.testing import HOST, IPV4, IPV6, WireGuardPeer, body

PATIENCE = 20.0  # seconds
MANY = tuple(f"10.66.1.{number}" for number in range(1, 121))  # too many addresses for a UDP answer


class OneAnswerServer:
    """Answers one request on each connection, promises to keep it, and closes it when told to."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    def __init__(self) -> None:
        self.connections = 0
        self.close = threading.Event()
        self.closed = threading.Event()

    def __call__(self, stream: Stream) -> None:
        self.connections += 1
        data = b""
        while b"\r\n\r\n" not in data:
            data += stream.read(65536)
        stream.write(self.ANSWER)
        self.close.wait(PATIENCE)
        stream.close()
        self.closed.set()


@pytest.fixture(scope="module")
def one_answer() -> OneAnswerServer:
    return OneAnswerServer()


@pytest.fixture(scope="module")
def peer(one_answer: OneAnswerServer) -> Iterator[WireGuardPeer]:
    names = {"many.peer.test": (*MANY, IPV4), "dual.peer.test": ("fd66::dead", IPV4), "short.search.test": (IPV4,)}
    with WireGuardPeer(servers={8000: one_answer, 25: lambda stream: None}, names=names, clients=2) as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


@pytest.fixture
def client(tunnel: Tunnel) -> Iterator[httpx.Client]:
    with httpx.Client(transport=WireGuardTransport(tunnel), timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize("host", [IPV4, f"[{IPV6}]", HOST, HOST.upper()])
def test_a_page_comes_by_address_and_by_name(client: httpx.Client, host: str) -> None:
    response = client.get(f"http://{host}/bytes/100000")
    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")
    assert response.content == body(100_000)


def test_an_upload_arrives_whole_with_and_without_a_known_length(client: httpx.Client) -> None:
    content = body(3_000_000)
    expected = {"length": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert client.put(f"http://{IPV4}/", content=content).json() == expected
    pieces = (content[at : at + 70_000] for at in range(0, len(content), 70_000))
    assert client.post(f"http://{IPV4}/", content=pieces).json() == expected


def test_requests_one_after_the_other_share_a_connection(client: httpx.Client) -> None:
    streams = {id(client.get(f"http://{HOST}/").extensions["network_stream"]._stream) for _ in range(5)}
    assert len(streams) == 1


def test_an_idle_connection_that_the_server_closed_is_not_used_again(
    client: httpx.Client, one_answer: OneAnswerServer
) -> None:
    """httpcore asks `is_readable` before it sends a request on an idle connection."""
    url = f"http://{IPV4}:8000/"
    assert client.get(url).text == "ok"
    before = one_answer.connections
    one_answer.close.set()
    assert one_answer.closed.wait(PATIENCE)
    client.get(f"http://{HOST}/")  # the server's FIN left before this answer
    assert client.get(url).text == "ok"
    assert one_answer.connections == before + 1


def test_many_threads_share_one_client(client: httpx.Client) -> None:
    def fetch(number: int) -> bool:
        return client.get(f"http://{HOST}/bytes/{number}").content == body(number)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(fetch, range(400)))


def test_a_truncated_dns_answer_is_asked_for_again_over_tcp(tunnel: Tunnel) -> None:
    addresses = tunnel.resolve("many.peer.test", PATIENCE)
    assert len(addresses) == 16, "as many as one answer may give us"
    assert set(addresses) <= {*MANY, IPV4}


def test_a_dead_ipv6_address_costs_a_quarter_of_a_second(client: httpx.Client) -> None:
    """RFC 8305 5: the next address is tried while the first is still silent."""
    assert client.get("http://dual.peer.test/").status_code == 200


def test_a_relative_name_is_looked_up_in_the_search_domains(peer: WireGuardPeer) -> None:
    config = peer.client_config(1)
    searching = Config(config.private_key, config.address, config.peers, [IPV4, "search.test"])
    with httpx.Client(transport=WireGuardTransport(searching), timeout=PATIENCE) as client:
        assert client.get("http://short/").status_code == 200


@pytest.mark.parametrize(
    ("url", "cause", "text"),
    [
        (f"http://{IPV4}:81/", ConnectionRefused, "port 81 refused by the far side"),
        ("http://nowhere.test/", NameResolutionError, "NXDOMAIN"),
        ("http://localhost/", NameResolutionError, "not inside the tunnel"),
    ],
)
def test_a_failure_is_httpx_own_error_with_the_cause(
    client: httpx.Client, url: str, cause: type[Exception], text: str
) -> None:
    with pytest.raises(httpx.ConnectError, match=text) as caught:
        client.get(url)
    assert isinstance(caught.value.__cause__, httpcore.ConnectError)
    assert isinstance(caught.value.__cause__.__cause__, cause)


def narrow(config: Config) -> Config:
    (only,) = config.peers
    return Config(config.private_key, config.address, [PeerConfig(only.public_key, "10.66.0.1/32", only.endpoint)])


def without_dns(config: Config) -> Config:
    return Config(config.private_key, config.address, config.peers)


def only_ipv4(config: Config) -> Config:
    return Config(config.private_key, config.address[:1], config.peers)


@pytest.mark.parametrize(
    ("change", "url", "cause", "text"),
    [
        (narrow, "http://10.67.0.1/", NoRoute, "AllowedIPs"),
        (without_dns, f"http://{HOST}/", NameResolutionError, "DNS ="),
        (only_ipv4, f"http://[{IPV6}]/", NoRoute, "no IPv6 address"),
    ],
)
def test_a_configuration_that_cannot_reach_the_host_says_what_to_add(
    peer: WireGuardPeer, change: Callable[[Config], Config], url: str, cause: type[Exception], text: str
) -> None:
    transport = WireGuardTransport(change(peer.client_config(1)))
    with httpx.Client(transport=transport) as client, pytest.raises(httpx.ConnectError, match=text) as caught:
        client.get(url)
    assert isinstance(caught.value.__cause__, httpcore.ConnectError)
    assert isinstance(caught.value.__cause__.__cause__, cause)


def test_a_server_that_closes_at_once_is_a_read_or_protocol_error_not_a_hang(client: httpx.Client) -> None:
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
        client.get(f"http://{IPV4}:25/")


def test_a_read_timeout_is_kept_and_named(client: httpx.Client, one_answer: OneAnswerServer) -> None:
    one_answer.close.clear()
    with client.stream("GET", f"http://{IPV4}:8000/", timeout=0.2) as response:
        assert response.read() == b"ok"
    stream = response.extensions["network_stream"]
    with pytest.raises(httpcore.ReadTimeout, match=r"sent nothing for 0\.2 s"):
        stream.read(1, timeout=0.2)
    one_answer.close.set()


def test_a_plain_httpcore_pool_takes_the_backend(peer: WireGuardPeer) -> None:
    backend = WireGuardBackend(peer.client_config(1))
    with httpcore.ConnectionPool(network_backend=backend) as pool:
        assert pool.request("GET", f"http://{HOST}/bytes/10").content == body(10)
    backend.close()


def test_no_secret_is_logged(peer: WireGuardPeer, caplog: pytest.LogCaptureFixture) -> None:
    """Every level, every layer, and the errors of a failing request."""
    config = peer.client_config(1)
    secret = config.private_key.reveal()
    with caplog.at_level(logging.DEBUG), httpx.Client(transport=WireGuardTransport(config)) as client:
        client.get(f"http://{HOST}/")
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://nowhere.test/")
    shown = caplog.text + repr(caught.value) + repr(config) + repr(client._transport)
    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown
