from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import httpx
import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from httpx_wireguard import ConfigError, NoRoute, Tunnel, TunnelClosed
from httpx_wireguard._http import mounts as mounts_of_httpx
from httpx_wireguard._http.mounts import MountedTransport, async_mounts_for, mounts_for
from httpx_wireguard._http.transport import AsyncWireGuardTransport, WireGuardTransport
from httpx_wireguard._httpx2 import mounts as mounts_of_httpx2
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard.testing import HOST, WireGuardPeer
from tests.memory_tunnel import MemoryDriver, MemoryTunnel
from tests.recording_tunnel import AsyncRecordingTunnel

CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # shared: making one of certifi's file takes 20 ms
PROXY = "http://proxy.example:3128"
BOTH = pytest.mark.parametrize(
    ("library", "own"), [(httpx, mounts_of_httpx), (httpx2, mounts_of_httpx2)], ids=["httpx", "httpx2"]
)


@pytest.fixture
def inside() -> Iterator[WireGuardTransport]:
    with WireGuardTransport(MemoryTunnel(MemoryDriver()), verify=CONTEXT) as transport:
        yield transport


# -- the transport is the tunnel's exactly for the set, whatever the environment says

# Few labels, one of them a single letter: names below each other, and patterns of equal length, must be frequent.
labels = st.sampled_from(["a", "bb", "corp"])
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd66::1", "fd66::2"])
some_ports = st.sampled_from([None, None, 8080, 8443])


def joined(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


wildcards = st.sampled_from(["", "", "*.", "*"])
hosts = st.one_of(
    st.builds(lambda wildcard, name, port: joined(wildcard + name, port), wildcards, names, some_ports),
    st.builds(joined, addresses, some_ports),
)
exceptions = st.one_of(  # entries of NO_PROXY
    st.builds(
        lambda scheme, prefix, name, port: scheme + joined(prefix + name, port),
        st.sampled_from(["", "", "http://", "https://", "all://"]),
        st.sampled_from(["", ".", "*.", "*"]),
        names | names.map(str.upper),
        some_ports,
    ),
    addresses,
    st.sampled_from(["localhost", "*", "10.0.0.0/8", "corp/8", "://", "a b", "http://:8080", "http://", "."]),
)
proxy_variables = st.fixed_dictionaries(
    {},
    optional={
        "http_proxy": st.just(PROXY),
        "https_proxy": st.just(PROXY.upper().replace("HTTP:", "http:")),
        "all_proxy": st.just("http://all.example:3128"),
        "no_proxy": st.lists(exceptions, max_size=4).map(",".join),
    },
)
urls = st.builds(
    lambda scheme, host, port: f"{scheme}://{joined(host, port)}/",
    st.sampled_from(["http", "https", "ws"]),
    names | addresses | names.map("{}.".format) | names.map(str.title),
    some_ports,
)


def is_meant(url: str, hosts: list[str]) -> bool:
    """Whether the host of `url` is one of `hosts`, by the rules that users are told."""
    rest = url.partition("://")[2].rstrip("/").lower()
    return any(_is_one(rest, host) for host in hosts)


def _is_one(rest: str, host: str) -> bool:
    name, port = _parted(rest)
    wanted, wanted_port = _parted(host)
    if wanted_port and wanted_port != port:
        return False
    below = name.endswith("." + wanted.removeprefix("*").removeprefix("."))
    if wanted.startswith("*."):
        return below
    if wanted.startswith("*"):
        return below or name == wanted[1:]
    return name == wanted


def _parted(text: str) -> tuple[str, str]:
    host, _, port = text.rpartition(":") if text[-1].isdigit() and text[-5:-4] == ":" else (text, "", "")
    return host.removesuffix("."), port


@settings(max_examples=400)
@given(st.lists(hosts, min_size=1, max_size=3), proxy_variables, st.lists(urls, min_size=1, max_size=8), st.booleans())
# One example for each rule in the way of the environment's patterns; chance finds the rarest too seldom.
@example(["corp"], {"no_proxy": "corp"}, ["http://corp/", "http://a.corp/"], False)
@example(["corp"], {"no_proxy": "CORP"}, ["http://corp/"], False)
@example(["*.corp"], {"no_proxy": "a.corp:8080,b.corp"}, ["http://a.corp:8080/", "http://b.corp/"], True)
@example(["a.corp"], {"no_proxy": "http://*.corp", "https_proxy": PROXY}, ["http://a.corp", "https://b.a.corp"], False)
@example(["corp", "a.corp"], {"no_proxy": "http://*corp"}, ["http://a.corp/", "http://b.corp"], False)
@example(["acorp"], {"no_proxy": "corp", "http_proxy": PROXY}, ["http://acorp/", "http://b.acorp/"], False)
@BOTH
def test_the_tunnel_is_chosen_for_its_hosts_and_for_no_others(
    library: ModuleType, own: ModuleType, chosen: list[str], environment: dict[str, str], asked: list[str], strict: bool
) -> None:
    with mock.patch.dict(os.environ, environment, clear=True):
        try:
            plain = library.Client(verify=CONTEXT)
        except library.InvalidURL:
            return  # an entry of NO_PROXY that httpx cannot parse: there is no client
        tunnel = MemoryTunnel(MemoryDriver())
        mounts = own.mounts_for(tunnel, chosen, strict=strict, verify=CONTEXT)
        client = library.Client(verify=CONTEXT, mounts=mounts)
    with plain, client:
        for url in asked:
            transport = client._transport_for_url(library.URL(url))
            if is_meant(url, chosen):
                assert isinstance(transport, own.MountedTransport), url
            elif strict:
                assert isinstance(transport, own.RefusingTransport), url
            else:
                assert way_out(transport) == way_out(plain._transport_for_url(library.URL(url))), url


def way_out(transport: Any) -> object:
    """The proxy that a transport of httpx uses, or None; a refusal and a tunnel are themselves."""
    return getattr(transport._pool, "_proxy_url", None) if type(transport).__name__ == "HTTPTransport" else transport


def test_nothing_is_mounted_that_need_not_be(inside: WireGuardTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "example,corp.example,10.0.0.0/8")  # httpx tries the longer host first
    mounts = mounts_for(inside, ["intranet.corp.example", "10.66.0.1"])
    assert list(mounts) == ["all://intranet.corp.example", "all://intranet.corp.example.", "all://10.66.0.1"]
    monkeypatch.setenv("NO_PROXY", "corp.example:8080")  # it tries those with a port before
    mounts = mounts_for(inside, ["*.a.corp.example"])
    assert set(mounts) == {f"all://*.a.corp.example{rest}" for rest in ("", ".", ":8080", ".:8080")}


def test_an_exception_that_httpx_cannot_parse_is_its_own_to_report(
    inside: WireGuardTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "fd66::/64,corp.example")
    with httpx.Client(mounts=mounts_for(inside, ["corp.example"]), verify=CONTEXT, trust_env=False) as client:
        assert isinstance(client._transport_for_url(httpx.URL("http://corp.example/")), MountedTransport)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("Intranet.Example.", "https://INTRANET.example/"),
        (" intranet.example", "http://intranet.example:81/"),
        ("bücher.example", "http://xn--bcher-kva.example/"),
        ("www.bücher.example", "http://www.bücher.example./"),
        ("FD66:0::1", "http://[fd66::1]/"),
        ("[fd66::a]:8080", "http://[FD66::A]:8080/"),
        ("fd66:0:0::1", "http://[fd66:0:0::1]/"),
        ("my_host", "ws://my_host/"),
    ],
)
def test_spellings_of_one_host(inside: WireGuardTransport, host: str, url: str) -> None:
    with httpx.Client(mounts=mounts_for(inside, [host]), verify=CONTEXT) as client:
        assert isinstance(client._transport_for_url(httpx.URL(url)), MountedTransport)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("*", "for all hosts use transport="),
        ("", "a host is a name"),
        ("10.66.0.0/16", "a network cannot be mounted.*list the addresses"),
        ("http://intranet.example", "without scheme and path"),
        ("intranet.example:443", "default port alone; leave the port out"),
        ("intranet.example:80", "default port alone; leave the port out"),
        ("intranet.example:65536", "at most 65535"),
        ("*.bücher.example", "no wildcards for international names; list the hosts"),
        ("*.xn--bcher-kva.example", "no wildcards for international names; list the hosts"),
        ("intranet.*.example", "a host is a name"),
        ("two words", "a host is a name"),
        ("user@intranet.example", "a host is a name"),
        ("intranet.example?", "a host is a name"),
        ("fe80::1%eth0", "'fe80::1%eth0': "),
        ("[fd66::1", r"'\[fd66::1': "),
    ],
)
def test_what_httpx_cannot_match_is_refused(inside: WireGuardTransport, host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"hosts: .*{reason}"):
        mounts_for(inside, ["fine.example", host])


def test_no_hosts_are_a_mistake(inside: WireGuardTransport) -> None:
    with pytest.raises(ConfigError, match="nothing would go through the tunnel"):
        mounts_for(inside, [])
    with pytest.raises(TypeError, match=r"write \['intranet.example'\]"):
        mounts_for(inside, "intranet.example")


def test_arguments_go_to_the_transport_that_is_made(inside: WireGuardTransport) -> None:
    with pytest.raises(TypeError, match=r"dns= belongs to the tunnel"):
        mounts_for(MemoryTunnel(MemoryDriver()), ["intranet.example"], dns=["10.66.0.1"])
    with pytest.raises(TypeError, match=r"http2= would have no effect on a transport that exists"):
        mounts_for(inside, ["intranet.example"], http2=True)


def test_each_function_is_for_its_own_kind_of_client(inside: WireGuardTransport) -> None:
    with pytest.raises(TypeError, match="WireGuardTransport given, where only AsyncWireGuardTransport"):
        async_mounts_for(inside, ["intranet.example"])  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match="HTTPTransport given, where only WireGuardTransport"):
        mounts_for(httpx.HTTPTransport(verify=CONTEXT), ["intranet.example"])  # type: ignore[arg-type]  # that is the test


def test_a_refusal_names_the_host(inside: WireGuardTransport) -> None:
    mounts = mounts_for(inside, ["intranet.example"], strict=True)
    refused = pytest.raises(httpx.ConnectError, match=r"'elsewhere\.example' is not among the hosts")
    with httpx.Client(mounts=mounts, verify=CONTEXT) as client, refused as caught:
        client.get("http://elsewhere.example/")
    assert isinstance(caught.value.__cause__, NoRoute)
    assert caught.value.request.url.host == "elsewhere.example"


def test_a_refusal_on_an_event_loop() -> None:
    transport = AsyncWireGuardTransport(AsyncRecordingTunnel(), verify=CONTEXT)

    async def request() -> None:
        mounts = async_mounts_for(transport, ["intranet.example"], strict=True)
        async with httpx.AsyncClient(mounts=mounts, verify=CONTEXT) as client:
            with pytest.raises(httpx.ConnectError, match=r"refused$"):
                await client.get("http://intranet.example/")
            with pytest.raises(httpx.ConnectError, match="is not among the hosts"):
                await client.get("http://elsewhere.example/")

    asyncio.run(request())


def test_the_tunnel_starts_and_ends_with_the_client() -> None:
    with WireGuardPeer() as peer:
        inside = WireGuardTransport(peer.client_config(), verify=CONTEXT)
        assert isinstance(inside.tunnel, Tunnel)
        with httpx.Client(mounts=mounts_for(inside, [HOST]), verify=CONTEXT):
            assert inside.tunnel.stats().peers
        with pytest.raises(TunnelClosed):
            inside.tunnel.start()


def test_the_tunnel_starts_and_ends_with_the_client_on_an_event_loop() -> None:
    async def main() -> None:
        inside = AsyncWireGuardTransport(peer.client_config(), verify=CONTEXT)
        assert isinstance(inside.tunnel, AsyncTunnel)
        async with httpx.AsyncClient(mounts=async_mounts_for(inside, [HOST]), verify=CONTEXT):
            assert inside.tunnel.stats().peers
        with pytest.raises(TunnelClosed):
            await inside.tunnel.start()

    with WireGuardPeer() as peer:
        asyncio.run(main())
