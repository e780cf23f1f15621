"""What a tunnel does besides requests, and what it survives, against a real WireGuard server."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dns.flags
import dns.message
import httpx
import pytest

from httpx_wireguard import Tunnel, WireGuardTransport
from tests.interop.lab import Lab
from tests.interop.namespaces import eventually
from tests.interop.web_site import HOST, MANY_ADDRESSES, MANY_HOST
from tests.interop.wireguard_server import INNER_IPV4, INNER_IPV6, Profile

pytestmark = pytest.mark.interop

KEEPALIVE_SIZE = 32  # bytes; WireGuard paper 5.4.6: a header and a tag
PING = Path(__file__).with_name("ping.py")
SAY_HELLO = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    connection.sendall(b"hello from the server's side")
    connection.shutdown(socket.SHUT_WR)
    print(connection.makefile().read())
"""


def test_wg_quick_file_is_all_that_a_client_needs(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(profile.text())
    path.chmod(0o600)
    with httpx.Client(transport=WireGuardTransport(path)) as client:
        assert client.get(f"http://{HOST}/address").text in (profile.ipv4, profile.ipv6)


def test_client_goes_on_after_the_server_was_killed_and_restarted(lab: Lab, profile: Profile) -> None:
    """The paper's 15 s without an answer bring a new handshake: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, section 6.5."""
    with httpx.Client(transport=WireGuardTransport(profile.config())) as client:
        with (
            pytest.raises(httpx.ReadTimeout, match=f"{INNER_IPV4}:80 sent nothing for 2 s"),
            client.stream("GET", f"http://{INNER_IPV4}/1g", timeout=2) as response,
        ):
            chunks = response.iter_raw()
            next(chunks)
            lab.server.restart()
            for _ in chunks:
                pass
        assert client.get(f"http://{INNER_IPV4}/1k", timeout=30).status_code == 200


def test_two_tunnels_in_one_process_keep_their_addresses_apart(lab: Lab) -> None:
    profiles = [lab.server.new_client() for _ in range(2)]
    transports = [WireGuardTransport(profile.config()) for profile in profiles]
    url = f"http://{INNER_IPV4}/address"
    with (
        httpx.Client(transport=transports[0]) as first,
        httpx.Client(transport=transports[1]) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        answers = [threads.submit(client.get, url) for _ in range(50) for client in (first, second)]
        texts = [answer.result().text for answer in answers]
    assert texts == [profiles[0].ipv4, profiles[1].ipv4] * 50


def test_truncated_dns_answer_is_asked_for_again_over_tcp(profile: Profile) -> None:
    """RFC 7766 5: the one over UDP would have been cut short, as the first half shows."""
    with Tunnel(profile.config()) as tunnel:
        question = dns.message.make_query(MANY_HOST, "A", use_edns=0, payload=1232)
        udp = tunnel.open_udp(remote=(INNER_IPV4, 53))
        udp.send(question.to_wire())
        assert dns.message.from_wire(udp.receive(timeout=5)[0]).flags & dns.flags.TC
        udp.close()
        found = tunnel.resolve(MANY_HOST, timeout=5)
        assert found
        assert set(found) <= set(MANY_ADDRESSES)
        with httpx.Client(transport=WireGuardTransport(tunnel)) as client:
            assert client.get(f"http://{MANY_HOST}/address").text == profile.ipv4


@pytest.mark.parametrize("version", [4, 6])
def test_listener_inside_the_tunnel_is_reached_from_the_server(lab: Lab, profile: Profile, version: int) -> None:
    address = profile.ipv4 if version == 4 else str(profile.ipv6)
    with Tunnel(profile.config()) as tunnel, ThreadPoolExecutor(1) as threads:
        tunnel.wait_ready(timeout=5)
        listener = tunnel.listen_tcp(8080)
        said = threads.submit(lab.inside.run, sys.executable, "-c", SAY_HELLO, address, "8080")
        stream = listener.accept(timeout=10)
        heard = b"".join(iter(lambda: stream.read(65536, timeout=10), b""))
        stream.write(heard.upper(), timeout=10)
        stream.close()
        assert said.result() == "HELLO FROM THE SERVER'S SIDE\n"


@pytest.mark.parametrize("address", [INNER_IPV4, INNER_IPV6])
def test_server_answers_a_ping(profile: Profile, address: str) -> None:
    with Tunnel(profile.config()) as tunnel:
        assert 0 < tunnel.ping(address, timeout=5) < 5


@pytest.mark.parametrize("version", [4, 6])
def test_ping_from_the_server_is_answered(lab: Lab, profile: Profile, version: int) -> None:
    address = profile.ipv4 if version == 4 else str(profile.ipv6)
    with Tunnel(profile.config()) as tunnel:
        tunnel.wait_ready(timeout=5)
        sizes = lab.inside.run(sys.executable, str(PING), address, "10").split()
    assert sizes == [str(1000 + sequence) for sequence in range(1, 11)]


def test_persistent_keepalive_reaches_the_server_while_nothing_is_said(lab: Lab, profile: Profile) -> None:
    with Tunnel(replace(profile, keepalive=1).config()) as tunnel:
        tunnel.wait_ready(timeout=5)
        received, _ = lab.server.transferred(profile)
        eventually(lambda: lab.server.transferred(profile)[0] >= received + 2 * KEEPALIVE_SIZE, "two keepalives")


def test_counters_equal_those_of_the_server(lab: Lab, profile: Profile) -> None:
    with Tunnel(profile.config()) as tunnel:
        tunnel.wait_ready(timeout=5)
        for _ in range(10):
            tunnel.ping(INNER_IPV4)
        (peer,) = tunnel.stats().peers
        assert lab.server.transferred(profile) == (peer.sent_bytes, peer.received_bytes)
