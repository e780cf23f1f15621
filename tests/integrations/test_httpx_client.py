"""Ordinary clients of httpx and httpx2, in threads and on event loops, over a tunnel to a peer in this process."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from httpx_wireguard import Config, ConnectionRefused, NameResolutionError, NoRoute, PeerConfig, Tunnel
from httpx_wireguard._streams import SyncStream
from httpx_wireguard.testing import HOST, IPV4, IPV6, WireGuardPeer, body
from tests.http1_server import OneAnswerServer
from tests.http2_server import Http2Server, fingerprint, http1_context
from tests.http_clients import KINDS, Kind
from tests.measures import FREE_THREADED
from tests.tls_server import TlsServer, certificate, client_context

PATIENCE = 20.0  # seconds
MANY = tuple(f"10.66.1.{number}" for number in range(1, 121))  # too many addresses for a UDP answer
TLS_HOST = "server.test"  # in the certificate

CLIENTS = 30
clients = itertools.cycle(range(1, CLIENTS))  # a key used again at once may have to wait for the server's flood limit

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(scope="module")
def one_answer() -> OneAnswerServer:
    return OneAnswerServer()


@pytest.fixture(scope="module")
def http2_server() -> Http2Server:
    return Http2Server()


@pytest.fixture(scope="module")
def peer(one_answer: OneAnswerServer, http2_server: Http2Server) -> Iterator[WireGuardPeer]:
    names = {
        "many.peer.test": (*MANY, IPV4),
        "dual.peer.test": ("fd66::dead", IPV4),
        "short.search.test": (IPV4,),
        TLS_HOST: (IPV4,),
    }
    remembering = http1_context()
    servers: dict[int, Callable[[SyncStream], None]] = {
        8000: one_answer,
        25: lambda stream: None,
        443: http2_server,
        8443: lambda stream: one_answer(TlsServer(stream, http1_context())),
        8444: lambda stream: one_answer(TlsServer(stream, remembering)),
    }
    with WireGuardPeer(servers=servers, names=names, clients=CLIENTS) as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


@pytest.fixture
def config(peer: WireGuardPeer) -> Config:
    return peer.client_config(next(clients))


@pytest.fixture
def conf(kind: Kind, config: Config, tunnel: Tunnel) -> Tunnel | Config:
    """Threads share a tunnel; an event loop has one of its own, which runs inside it."""
    return config if kind.is_async else tunnel


@every_kind
@pytest.mark.parametrize("host", [IPV4, f"[{IPV6}]", HOST, HOST.upper()])
def test_a_page_comes_by_address_and_by_name(kind: Kind, conf: Any, host: str) -> None:
    async def main() -> None:
        async with kind.client(conf) as client:
            response = await client.get(f"http://{host}/bytes/100000")
            assert (response.status_code, response.http_version) == (200, "HTTP/1.1")
            assert response.content == body(100_000)

    kind.run(main)


@every_kind
def test_an_upload_arrives_whole_with_and_without_a_known_length(kind: Kind, conf: Any) -> None:
    content = body(3_000_000)
    expected = fingerprint(content)

    async def main() -> None:
        async with kind.client(conf) as client:
            assert (await client.put(f"http://{IPV4}/", content=content)).json() == expected
            pieces = kind.content(content[at : at + 70_000] for at in range(0, len(content), 70_000))
            assert (await client.post(f"http://{IPV4}/", content=pieces)).json() == expected

    kind.run(main)


@every_kind
def test_requests_one_after_the_other_share_a_connection(kind: Kind, conf: Any) -> None:
    async def main() -> None:
        async with kind.client(conf) as client:
            streams = set()
            for _ in range(5):
                response = await client.get(f"http://{HOST}/")
                streams.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            assert len(streams) == 1

    kind.run(main)


@every_kind
@pytest.mark.parametrize("base", [f"http://{IPV4}:8000", f"https://{TLS_HOST}:8443"])
def test_an_idle_connection_that_the_server_closed_is_not_used_again(
    kind: Kind, conf: Any, one_answer: OneAnswerServer, base: str
) -> None:
    """httpcore asks `is_readable` before it sends a request on an idle connection."""
    one_answer.reset()

    async def main() -> None:
        async with kind.client(conf, verify=client_context()) as client:
            assert (await client.get(base)).text == "ok"
            before = one_answer.connections
            one_answer.close.set()
            assert one_answer.closed.wait(PATIENCE)
            await client.get(f"http://{HOST}/")  # the server's FIN left before this answer
            assert (await client.get(base)).text == "ok"
            assert one_answer.connections == before + 1

    kind.run(main)


@every_kind
@pytest.mark.parametrize("own", [True, False], ids=["own context", "the user's"])
def test_a_tls_session_is_resumed_in_a_context_that_nobody_else_can_change(
    kind: Kind, conf: Any, one_answer: OneAnswerServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: bool
) -> None:
    (tmp_path / "ca.pem").write_bytes(certificate()[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    one_answer.reset()

    async def main() -> list[bool]:
        resumed = []
        async with kind.client(conf, verify=True if own else client_context()) as client:
            for _ in range(3):
                response = await client.get(f"https://{TLS_HOST}:8444")
                tls = response.extensions["network_stream"].get_extra_info("ssl_object")
                assert tls.getpeercert()["subjectAltName"] == (("DNS", TLS_HOST),)
                resumed.append(tls.session_reused)
                one_answer.close.set()  # now: the end may take the certificate with it, on CPython 3.13 and later
                assert one_answer.closed.wait(PATIENCE)
                one_answer.reset()
        return resumed

    assert kind.run(main) == [False, own, own]


@every_kind
def test_a_client_that_is_closed_closes_its_connections_and_not_a_borrowed_tunnel(kind: Kind, tunnel: Tunnel) -> None:
    async def main() -> None:
        async with kind.client(tunnel) as client:
            stream = (await client.get(f"http://{HOST}/")).extensions["network_stream"]
        with pytest.raises(kind.core.ReadError, match="closed on this side"):
            await awaited(kind, stream.read(1, timeout=5))
        async with kind.client(tunnel) as client:
            assert (await client.get(f"http://{HOST}/")).status_code == 200

    kind.run(main)


async def awaited(kind: Kind, result: Any) -> Any:
    """The result of a method of a stream, or of a coroutine for it; a sync one has failed before."""
    return await result if kind.is_async else result


@every_kind
def test_many_requests_at_once(kind: Kind, conf: Any) -> None:
    async def main() -> None:
        async with kind.client(conf) as client:

            async def fetch(numbers: range) -> bool:
                return all([(await client.get(f"http://{HOST}/bytes/{n}")).content == body(n) for n in numbers])

            assert all(await kind.gather(*(lambda n=n: fetch(range(n, 200, 20)) for n in range(20))))

    kind.run(main)


@every_kind
def test_http2_answers_many_requests_on_one_connection(kind: Kind, conf: Any, http2_server: Http2Server) -> None:
    """The server answers the first only when it has the last; afterwards large bodies go both ways at once."""
    if FREE_THREADED and not kind.is_async:
        pytest.skip("httpcore lets threads write frames into one h2 connection without a lock")
    before = http2_server.connections
    upload = body(400_000)
    turns = Turns(kind)

    async def main() -> None:
        async with kind.client(conf, verify=client_context(), http2=True) as client:

            async def get(path: str) -> Any:
                response = await client.get(f"https://{TLS_HOST}{path}", extensions=turns.take())
                assert response.http_version == "HTTP/2"
                return response.content

            async def put() -> Any:
                return (await client.put(f"https://{TLS_HOST}/", content=upload, extensions=turns.take())).json()

            await get("/bytes/0")  # from now on it is known that the connection is shared
            assert await kind.gather(*[lambda: get("/meet/8")] * 8) == [b"met"] * 8
            downloads: list[Callable[[], Coroutine[Any, Any, Any]]] = [lambda: get("/bytes/400000")] * 5
            results = await kind.gather(*downloads, *[put] * 5)
            assert results == [body(400_000)] * 5 + [fingerprint(upload)] * 5

    kind.run(main)
    assert http2_server.connections == before + 1


class Turns:
    """Lets threads send their HTTP/2 headers one after the other; httpcore numbers them without a lock."""

    def __init__(self, kind: Kind) -> None:
        self._lock = None if kind.is_async else threading.Lock()

    def take(self) -> dict[str, Any]:
        """Wait for a turn. Returns the extensions of the request that ends it."""
        if self._lock is None:
            return {}
        assert self._lock.acquire(timeout=PATIENCE)
        return {"trace": self._on_event}

    def _on_event(self, name: str, info: Any) -> None:
        if name == "http2.send_request_headers.complete":
            assert self._lock is not None
            self._lock.release()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.is_async], ids=str)
def test_a_write_interrupted_on_http2_ends_the_connection(
    kind: Kind, conf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal. Nothing after half a frame would be understood; the next request gets a new connection."""

    class Interrupted:
        def write(self, *arguments: Any) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    async def main() -> None:
        async with kind.client(conf, verify=client_context(), http2=True) as client:
            first = (await client.get(f"https://{TLS_HOST}/bytes/0")).extensions["network_stream"]
            with monkeypatch.context() as patched:
                patched.setattr(first, "_stream", Interrupted())
                with pytest.raises(KeyboardInterrupt):
                    await client.get(f"https://{TLS_HOST}/bytes/0")
            first.close()
            response = await client.get(f"https://{TLS_HOST}/bytes/9")
            assert response.content == body(9)
            assert response.extensions["network_stream"] is not first

    kind.run(main)


@every_kind
def test_http2_falls_back_to_http1_when_the_server_does_not_know_it(
    kind: Kind, conf: Any, one_answer: OneAnswerServer
) -> None:
    one_answer.close.set()

    async def main() -> None:
        async with kind.client(conf, verify=client_context(), http2=True) as client:
            response = await client.get(f"https://{TLS_HOST}:8443/")
            assert (response.text, response.http_version) == ("ok", "HTTP/1.1")

    kind.run(main)


def test_a_truncated_dns_answer_is_asked_for_again_over_tcp(tunnel: Tunnel) -> None:
    addresses = tunnel.resolve("many.peer.test", PATIENCE)
    assert len(addresses) == 16, "as many as one answer may give us"
    assert set(addresses) <= {*MANY, IPV4}


@every_kind
def test_a_dead_ipv6_address_costs_a_quarter_of_a_second(kind: Kind, conf: Any) -> None:
    """RFC 8305 5: the next address is tried while the first is still silent."""

    async def main() -> None:
        async with kind.client(conf) as client:
            assert (await client.get("http://dual.peer.test/")).status_code == 200

    kind.run(main)


@every_kind
def test_dns_servers_may_be_given_to_the_transport(kind: Kind, config: Config) -> None:
    async def main() -> None:
        async with kind.client(without_dns(config), dns=[IPV4]) as client:
            assert (await client.get(f"http://{HOST}/")).status_code == 200

    kind.run(main)


@every_kind
def test_a_relative_name_is_looked_up_in_the_search_domains(kind: Kind, config: Config) -> None:
    searching = Config(config.private_key, config.address, config.peers, [IPV4, "search.test"])

    async def main() -> None:
        async with kind.client(searching) as client:
            assert (await client.get("http://short/")).status_code == 200

    kind.run(main)


def check_failure(kind: Kind, conf: Any, url: str, cause: type[Exception], text: str) -> None:
    """The request fails as httpx's own error, with the cause at the bottom."""

    async def main() -> None:
        async with kind.client(conf) as client:
            with pytest.raises(kind.http.ConnectError, match=text) as caught:
                await client.get(url)
            assert isinstance(caught.value.__cause__, kind.core.ConnectError)
            assert isinstance(caught.value.__cause__.__cause__, cause)

    kind.run(main)


@every_kind
@pytest.mark.parametrize(
    ("url", "cause", "text"),
    [
        (f"http://{IPV4}:81/", ConnectionRefused, "port 81 refused by the far side"),
        ("http://nowhere.test/", NameResolutionError, "NXDOMAIN"),
        ("http://localhost/", NameResolutionError, "not inside the tunnel"),
    ],
)
def test_a_failure_is_httpx_own_error_with_the_cause(
    kind: Kind, conf: Any, url: str, cause: type[Exception], text: str
) -> None:
    check_failure(kind, conf, url, cause, text)


def narrow(config: Config) -> Config:
    (only,) = config.peers
    return Config(config.private_key, config.address, [PeerConfig(only.public_key, "10.66.0.1/32", only.endpoint)])


def without_dns(config: Config) -> Config:
    return Config(config.private_key, config.address, config.peers)


def only_ipv4(config: Config) -> Config:
    return Config(config.private_key, config.address[:1], config.peers)


@every_kind
@pytest.mark.parametrize(
    ("change", "url", "cause", "text"),
    [
        (narrow, "http://10.67.0.1/", NoRoute, "AllowedIPs"),
        (without_dns, f"http://{HOST}/", NameResolutionError, "DNS ="),
        (only_ipv4, f"http://[{IPV6}]/", NoRoute, "no IPv6 address"),
    ],
)
def test_a_configuration_that_cannot_reach_the_host_says_what_to_add(
    kind: Kind,
    config: Config,
    change: Callable[[Config], Config],
    url: str,
    cause: type[Exception],
    text: str,
) -> None:
    check_failure(kind, change(config), url, cause, text)


@every_kind
def test_a_server_that_closes_at_once_is_a_read_or_protocol_error_not_a_hang(kind: Kind, conf: Any) -> None:
    errors = (kind.http.RemoteProtocolError, kind.http.ReadError, kind.http.WriteError)

    async def main() -> None:
        async with kind.client(conf) as client:
            with pytest.raises(errors):
                await client.get(f"http://{IPV4}:25/")

    kind.run(main)


@every_kind
def test_a_read_timeout_is_httpx_own_error_with_our_text(kind: Kind, conf: Any, one_answer: OneAnswerServer) -> None:
    one_answer.reset()

    async def main() -> None:
        async with kind.client(conf) as client, client.stream("GET", f"http://{IPV4}:8000/") as response:
            assert await response.aread() == b"ok"
            stream = response.extensions["network_stream"]
            with pytest.raises(kind.core.ReadTimeout, match=r"sent nothing for 0\.2 s"):
                await awaited(kind, stream.read(1, timeout=0.2))

    kind.run(main)
    one_answer.close.set()


@every_kind
def test_retries_try_the_connection_again(kind: Kind, conf: Any) -> None:
    """Between the attempts the backend sleeps, on whichever event loop runs."""
    attempts: list[str] = []

    def trace(name: str, info: Any) -> None:
        if name == "connection.connect_tcp.started":
            attempts.append(name)

    async def trace_on_a_loop(name: str, info: Any) -> None:
        trace(name, info)

    async def main() -> None:
        async with kind.client(conf, retries=2) as client:
            with pytest.raises(kind.http.ConnectError, match="refused"):
                await client.get(
                    f"http://{IPV4}:81/", extensions={"trace": trace_on_a_loop if kind.is_async else trace}
                )

    kind.run(main)
    assert len(attempts) == 3


@every_kind
def test_a_plain_pool_of_httpcore_takes_the_backend(kind: Kind, config: Config) -> None:

    async def main() -> None:
        backend = kind.family.ours.AsyncWireGuardBackend(config)
        async with kind.core.AsyncConnectionPool(network_backend=backend) as pool:
            assert (await pool.request("GET", f"http://{HOST}/bytes/10")).content == body(10)
        await backend.aclose()

    if kind.is_async:
        kind.run(main)
        return
    backend = kind.family.ours.WireGuardBackend(config)
    with kind.core.ConnectionPool(network_backend=backend) as pool:
        assert pool.request("GET", f"http://{HOST}/bytes/10").content == body(10)
    backend.close()


@every_kind
def test_no_secret_is_logged(kind: Kind, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """Every level, every layer, and the errors of a failing request."""
    secret = config.private_key.reveal()
    transport = kind.transport(config)

    async def main() -> Any:
        async with kind.client(config) as client:
            await client.get(f"http://{HOST}/")
            with pytest.raises(kind.http.ConnectError) as caught:
                await client.get("http://nowhere.test/")
            return caught.value

    with caplog.at_level(logging.DEBUG):
        error = kind.run(main)
    shown = caplog.text + repr(error) + repr(config) + repr(transport) + repr(transport.tunnel)
    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown
