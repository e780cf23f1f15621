from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.http_clients import FAMILIES, Kind
from tests.recording_tunnel import recording_tunnel

KINDS = [Kind(family, waiting) for family in FAMILIES for waiting in ("threads", "asyncio")]
KIND = pytest.mark.parametrize("kind", KINDS, ids=str)


def module(kind: Kind) -> Any:
    return import_module(
        "httpx_wireguard._http.clients" if str(kind.family) == "httpx" else "httpx_wireguard._httpx2.clients"
    )


def client_class(kind: Kind) -> Any:
    return module(kind).AsyncClient if kind.is_async else module(kind).Client


def failure(kind: Kind, client: Any, url: str = "http://intranet.example/") -> BaseException:
    """The error of one request; the client is closed afterwards."""

    async def request() -> BaseException:
        with pytest.raises(kind.http.TransportError) as caught:
            if kind.is_async:
                async with client:
                    await client.get(url)
            else:
                with client:
                    client.get(url)
        error: BaseException = caught.value
        return error

    return kind.run(request)


@KIND
def test_environment_proxies_are_not_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    for url in ("http://intranet.example/", "https://extranet.example/"):
        tunnel = recording_tunnel(kind)
        failure(kind, client_class(kind)(tunnel), url)
        assert [host for host, _ in tunnel.asked] == [url.split("/")[2]]


@KIND
def test_a_client_is_httpx_s_own(kind: Kind) -> None:
    base = kind.http.AsyncClient if kind.is_async else kind.http.Client
    client = client_class(kind)(recording_tunnel(kind), base_url="http://intranet.example/api", headers={"a": "b"})
    assert isinstance(client, base)
    assert (client.base_url.path, client.headers["a"]) == ("/api/", "b")
    with pytest.raises(TypeError):  # as httpx's own: its connection pool holds a lock
        pickle.dumps(client)


# -- the transport's arguments reach the transport


@KIND
def test_a_proxy_is_reached_inside_the_tunnel(kind: Kind) -> None:
    tunnel = recording_tunnel(kind)
    failure(kind, client_class(kind)(tunnel, proxy="http://10.66.0.5:3128"))
    assert tunnel.asked == [("10.66.0.5", 3128)]


@KIND
def test_retries_local_address_and_socket_options_count(kind: Kind) -> None:
    tunnel = recording_tunnel(kind)
    failure(kind, client_class(kind)(tunnel, retries=1, local_address="::", socket_options=[(6, 1, 0)]))
    assert len(tunnel.asked) == 2
    assert tunnel.connects[0]["local_address"] == "::"
    assert (6, 1, 0) in list(tunnel.connects[0]["socket_options"])


@KIND
def test_http2_counts(kind: Kind) -> None:
    for arguments, begins in (({"http1": False, "http2": True}, b"PRI * HTTP/2.0"), ({}, b"GET / HTTP/1.1")):
        tunnel = recording_tunnel(kind, refuses=False)
        failure(kind, client_class(kind)(tunnel, **arguments))
        assert tunnel.stream.written.startswith(begins)


@KIND
def test_http2_of_a_client_that_has_a_transport_has_no_effect(kind: Kind) -> None:
    """httpx's own rule, which nothing but these classes can tell of."""
    tunnel = recording_tunnel(kind, refuses=False)
    base = kind.http.AsyncClient if kind.is_async else kind.http.Client
    failure(kind, base(transport=kind.transport(tunnel), http1=False, http2=True))
    assert tunnel.stream.written.startswith(b"GET / HTTP/1.1")


@KIND
def test_limits_count(kind: Kind) -> None:
    limits, timeout = kind.http.Limits(max_connections=0), kind.http.Timeout(None, pool=0.01)
    error = failure(kind, client_class(kind)(recording_tunnel(kind), limits=limits, timeout=timeout))
    assert isinstance(error, kind.http.PoolTimeout)


@KIND
def test_trust_env_counts(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    client = client_class(kind)(recording_tunnel(kind), trust_env=False)
    assert client.trust_env is False
    failure(kind, client)
    with pytest.raises(FileNotFoundError):
        client_class(kind)(recording_tunnel(kind))


@KIND
@pytest.mark.parametrize(
    "argument", [{"verify": "missing.pem"}, {"cert": "missing.pem"}, {"dns": ["10.66.0.1"]}], ids=str
)
def test_verify_cert_and_dns_reach_the_transport(kind: Kind, argument: dict[str, Any]) -> None:
    """Seen from its complaints."""
    with pytest.raises((TypeError, DeprecationWarning)) as of_transport:
        kind.transport(recording_tunnel(kind), **argument)
    with pytest.raises(of_transport.type) as of_client:
        client_class(kind)(recording_tunnel(kind), **argument)
    assert str(of_client.value) == str(of_transport.value)


@KIND
def test_every_argument_is_known_by_name(kind: Kind) -> None:
    """Those of the transport, and those of httpx's client that are not the transport's."""
    transport = type(kind.transport(recording_tunnel(kind)))
    of_transport = module(kind).TransportArguments.__optional_keys__
    assert of_transport == keyword_names(transport) - {"conf"}
    of_client = module(kind).ClientArguments.__optional_keys__
    base = kind.http.AsyncClient if kind.is_async else kind.http.Client
    assert of_client == of_transport | keyword_names(base) - {"mounts", "transport"}


def keyword_names(of: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(of).parameters)


# -- what would lead around the tunnel, or have no effect


@KIND
def test_mounts_and_transport_are_refused(kind: Kind) -> None:
    with pytest.raises(TypeError, match=rf"{kind.family}.Client\(mounts=mounts_for\("):
        client_class(kind)(recording_tunnel(kind), mounts={})
    with pytest.raises(TypeError, match="in place of conf"):
        client_class(kind)(recording_tunnel(kind), transport=None)
    with pytest.raises(TypeError, match="verfy"):
        client_class(kind)(recording_tunnel(kind), verfy=False)


@KIND
def test_a_transport_in_place_of_conf(kind: Kind) -> None:
    tunnel = recording_tunnel(kind)
    failure(kind, client_class(kind)(kind.transport(tunnel), timeout=5))
    assert tunnel.asked == [("intranet.example", 80)]


@KIND
def test_an_argument_that_comes_too_late_is_refused(kind: Kind) -> None:
    transport = kind.transport(recording_tunnel(kind))
    with pytest.raises(TypeError, match=r"verify=, http2= .* pass it to \w*WireGuardTransport\(\)"):
        client_class(kind)(transport, verify=False, http2=False, timeout=5)


@KIND
def test_another_transport_is_refused(kind: Kind) -> None:
    opposite = Kind(kind.family, "threads" if kind.is_async else "asyncio")
    for other in (kind.http.HTTPTransport(), opposite.transport(recording_tunnel(opposite))):
        with pytest.raises(TypeError, match=f"{type(other).__name__} given, where only .*WireGuardTransport is known"):
            client_class(kind)(other)
