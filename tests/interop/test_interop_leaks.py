"""The proof that nothing leaves beside the tunnel. Every other test here is held to it too: see conftest.py."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace

import httpx
import pytest

from httpx_wireguard import WireGuardTransport
from tests.interop.lab import SILENT_PORT, Lab
from tests.interop.web_site import HOST
from tests.interop.wireguard_server import INNER_IPV4, OUTER_IPV4, Profile

pytestmark = pytest.mark.interop


def test_clients_whole_life_sends_only_udp_to_the_endpoint(lab: Lab, profile: Profile, tls: ssl.SSLContext) -> None:
    transport = WireGuardTransport(profile.config(), verify=tls, http2=True)
    with httpx.Client(transport=transport) as client:
        assert client.get(f"https://{HOST}/1m").status_code == 200
        assert client.put(f"http://{HOST}/uploads/leaks", content=bytes(1 << 20)).is_success
        with pytest.raises(httpx.ConnectError):
            client.get("http://missing.wg.test/")
    packets = lab.leaks.take_packets()
    assert lab.leaks.endpoint_datagrams > 0
    assert packets["tunnel"] > 0
    assert packets["other"] == 0
    assert lab.leaks.take_leaks() == []


def test_client_whose_tunnel_is_dead_does_not_try_the_clear_network(lab: Lab, profile: Profile) -> None:
    """The site answers on the endpoint's own address, so that a way around would be found."""
    dead = replace(profile, endpoint=f"{OUTER_IPV4}:{SILENT_PORT}")
    with httpx.Client(transport=WireGuardTransport(dead.config()), timeout=0.5) as client:
        for host in (HOST, INNER_IPV4, OUTER_IPV4, "localhost"):
            with pytest.raises(httpx.TransportError):
                client.get(f"http://{host}/1k")
    assert lab.leaks.take_leaks() == []
    assert lab.leaks.take_packets()["other"] == 0


def test_proxy_variables_of_the_environment_are_not_followed(
    lab: Lab, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{OUTER_IPV4}:80")
    with httpx.Client(transport=WireGuardTransport(profile.config())) as client:
        assert client.get(f"http://{INNER_IPV4}/address").text == profile.ipv4
    assert lab.leaks.take_leaks() == []
    assert lab.leaks.take_packets()["other"] == 0


def test_both_witnesses_notice_a_request_beside_the_tunnel(lab: Lab) -> None:
    """Without this, the tests above could pass because nobody looks."""
    assert httpx.get(f"http://{OUTER_IPV4}/1k").status_code == 200
    assert any(leak.startswith("socket.connect") for leak in lab.leaks.take_leaks())
    assert lab.leaks.take_packets()["other"] > 0


def test_both_witnesses_notice_a_name_lookup_beside_the_tunnel(lab: Lab) -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo(HOST, 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"question", (OUTER_IPV4, 53))
    leaks = lab.leaks.take_leaks()
    assert [leak.split()[0] for leak in leaks] == ["socket.getaddrinfo", "socket.sendto"]
    assert lab.leaks.take_packets()["other"] > 0


def test_address_inside_the_tunnel_is_unreachable_from_the_clear_network(lab: Lab) -> None:
    with pytest.raises(httpx.ConnectError, match=r"[Nn]o route to host|[Uu]nreachable"):
        httpx.get(f"http://{INNER_IPV4}/1k")
    assert lab.leaks.take_leaks()
