"""httpx and httpx2 beside each other: what is imported for whom, and what a mixed-up client is told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import httpx_wireguard
from httpx_wireguard import Tunnel
from httpx_wireguard.testing import HOST, WireGuardPeer
from tests.http_clients import FAMILIES, Family

EVENT_LOOPS = {"asyncio", "trio", "uvloop", "anyio"}
LIBRARIES = {"httpx", "httpcore", "httpx2", "httpcore2"}


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    with WireGuardPeer() as peer:
        yield peer


@pytest.fixture(scope="module")
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as tunnel:
        yield tunnel


def run_python(script: str) -> str:
    """What a fresh interpreter prints; the end of its traceback if it fails."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import httpx_wireguard", LIBRARIES | EVENT_LOOPS),
        ("import httpx_wireguard; httpx_wireguard.Tunnel, dir(httpx_wireguard)", LIBRARIES | EVENT_LOOPS),
        ("from httpx_wireguard import WireGuardTransport", {"httpx2", "httpcore2"}),
        ("from httpx_wireguard.httpx2 import WireGuardTransport", {"httpx", "httpcore"}),
    ],
)
def test_no_library_is_imported_for_the_sake_of_another(statement: str, forbidden: set[str]) -> None:
    loaded = run_python(f"import sys; {statement}; print(*(set(sys.modules) & {forbidden}))")
    assert loaded == ""


def test_all_public_names_exist() -> None:
    for module in (httpx_wireguard, *(family.ours for family in FAMILIES)):
        for name in module.__all__:
            assert name == "__version__" or getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Wireguard'"):
        _ = httpx_wireguard.Wireguard  # type: ignore[attr-defined]  # that is the point


def test_names_are_listed_before_they_are_imported() -> None:
    assert run_python("import httpx_wireguard as ours; print(*set(ours.__all__) - set(dir(ours)))") == ""


def test_each_family_has_classes_of_its_own_on_its_own_library() -> None:
    for family in FAMILIES:
        assert issubclass(family.ours.WireGuardTransport, family.http.HTTPTransport)
        assert issubclass(family.ours.AsyncWireGuardTransport, family.http.AsyncHTTPTransport)
        assert issubclass(family.ours.WireGuardBackend, family.core.NetworkBackend)
        assert issubclass(family.ours.AsyncWireGuardBackend, family.core.AsyncNetworkBackend)


def test_without_httpx2_its_module_names_the_extra() -> None:
    script = """
        import sys
        sys.modules["httpx2"] = sys.modules["httpcore2"] = None
        import httpx_wireguard
        httpx_wireguard.WireGuardTransport
        try:
            import httpx_wireguard.httpx2
        except ModuleNotFoundError as error:
            print(error)
    """
    assert "pip install 'httpx-wireguard[httpx2]'" in run_python(script)


@pytest.mark.parametrize(
    "imports",
    [
        "import httpx2; httpx2.alias_httpx(); import httpx_wireguard",
        "import httpx_wireguard, httpx2; httpx2.alias_httpx()",
        "import httpx_wireguard.httpx2, httpx2; httpx2.alias_httpx()",
    ],
)
def test_httpx_may_be_an_alias_of_httpx2(imports: str) -> None:
    script = f"""
        import os
        {imports}
        import httpx
        from httpx_wireguard import WireGuardTransport
        from httpx_wireguard.testing import WireGuardPeer

        assert httpx is httpx2
        assert WireGuardTransport is __import__("httpx_wireguard.httpx2").httpx2.WireGuardTransport
        with WireGuardPeer() as peer, httpx.Client(transport=WireGuardTransport(peer.client_config())) as client:
            print(client.get("http://peer.test/").status_code)
    """
    assert run_python(script) == "200"


def other(family: Family) -> Family:
    (other,) = (one for one in FAMILIES if one is not family)
    return other


def import_line(family: Family, name: str) -> str:
    return f"from {family.ours.__name__} import {name}$"


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_transport_of_the_other_family_names_the_right_import(tunnel: Tunnel, family: Family) -> None:
    wrong = other(family).ours
    text = f"clients of {other(family)}, and the request comes from {family}: "
    with (
        family.http.Client(transport=wrong.WireGuardTransport(tunnel)) as client,
        pytest.raises(TypeError, match=text + import_line(family, "WireGuardTransport")),
    ):
        client.get(f"http://{HOST}/")

    async def use_async_client() -> None:
        async with family.http.AsyncClient(transport=wrong.AsyncWireGuardTransport(tunnel)) as client:
            await client.get(f"http://{HOST}/")

    with pytest.raises(TypeError, match=text + import_line(family, "AsyncWireGuardTransport")):
        asyncio.run(use_async_client())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_client_of_the_other_kind_names_the_right_import(tunnel: Tunnel, family: Family) -> None:
    """At its `with`, and without one at its first request."""
    client = family.http.Client(transport=family.ours.AsyncWireGuardTransport(tunnel))
    for use in (client.__enter__, lambda: client.get(f"http://{HOST}/")):
        with pytest.raises(TypeError, match=import_line(family, "WireGuardTransport")):
            use()

    async def use_async_client(enter: bool) -> None:
        client = family.http.AsyncClient(transport=family.ours.WireGuardTransport(tunnel))
        await (client.__aenter__() if enter else client.get(f"http://{HOST}/"))

    for enter in (True, False):
        with pytest.raises(TypeError, match=import_line(family, "AsyncWireGuardTransport")):
            asyncio.run(use_async_client(enter))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_transport_has_the_methods_of_one_kind_only(tunnel: Tunnel, family: Family) -> None:
    """OpenTelemetry tells sync and async transports apart with `hasattr`."""
    methods = ("handle_request", "close", "handle_async_request", "aclose", "neither")
    for transport, expected in [
        (family.ours.WireGuardTransport(tunnel), (True, True, False, False, False)),
        (family.ours.AsyncWireGuardTransport(tunnel), (False, False, True, True, False)),
    ]:
        assert tuple(hasattr(transport, name) for name in methods) == expected


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("conf", [None, 51820, b"wg0.conf"])
def test_what_is_no_configuration_is_refused(family: Family, conf: Any) -> None:
    for name in ("WireGuardTransport", "AsyncWireGuardTransport"):
        with pytest.raises(TypeError, match="expected the path of a wg-quick file, a Config or a tunnel"):
            getattr(family.ours, name)(conf)
