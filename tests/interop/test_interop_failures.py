"""What goes wrong, told by httpx's own exceptions, in words that name the cause, within the timeout set."""

from __future__ import annotations

import time
from dataclasses import replace

import httpx
import pytest

from httpx_wireguard import (
    ConnectionRefused,
    EndpointUnreachable,
    HandshakeFailed,
    HandshakeTimeout,
    NameResolutionError,
    NoRoute,
    OperationTimeout,
    WireGuardError,
    WireGuardTransport,
)
from tests.interop.lab import CLOSED_PORT, SILENT_PORT, Lab
from tests.interop.web_site import HOST
from tests.interop.wireguard_server import (
    INNER_IPV4,
    INNER_IPV6,
    OUTER_IPV4,
    OUTER_IPV6,
    Profile,
    new_private_key,
    public_key,
)

pytestmark = pytest.mark.interop

TIMEOUT = 1.0  # seconds
PATIENCE = 0.5  # seconds over the timeout at which a test fails
AT_ONCE = 0.5  # seconds for what needs no waiting


def failure(profile: Profile, url: str, seconds: float = TIMEOUT) -> tuple[httpx.TransportError, WireGuardError]:
    """GET what cannot be had: what httpx raised, and the tunnel's own error that it came from."""
    started = time.monotonic()
    with (
        httpx.Client(transport=WireGuardTransport(profile.config()), timeout=TIMEOUT) as client,
        pytest.raises(httpx.TransportError) as caught,
    ):
        client.get(url)
    assert time.monotonic() - started < seconds + PATIENCE
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, WireGuardError):
        cause = cause.__cause__
    assert cause is not None
    assert str(cause) in str(caught.value)
    return caught.value, cause


@pytest.mark.parametrize("outer", [OUTER_IPV4, f"[{OUTER_IPV6}]"], ids=["ipv4", "ipv6"])
def test_endpoint_where_nothing_listens_is_unreachable(profile: Profile, outer: str) -> None:
    endpoint = f"{outer}:{CLOSED_PORT}"
    error, cause = failure(replace(profile, endpoint=endpoint), f"http://{INNER_IPV4}/1k")
    assert type(error) is httpx.ConnectError
    assert type(cause) is EndpointUnreachable
    assert endpoint in str(error)
    assert "Connection refused" in str(error)


@pytest.mark.parametrize("outer", [OUTER_IPV4, f"[{OUTER_IPV6}]"], ids=["ipv4", "ipv6"])
def test_endpoint_that_swallows_everything_is_a_handshake_timeout(profile: Profile, outer: str) -> None:
    endpoint = f"{outer}:{SILENT_PORT}"
    error, cause = failure(replace(profile, endpoint=endpoint), f"http://{INNER_IPV4}/1k")
    assert type(error) is httpx.ConnectTimeout
    assert type(cause) is HandshakeTimeout
    assert cause.endpoint == endpoint
    assert f"no handshake answer from {endpoint} after 1 initiation" in str(error)


def test_name_cannot_be_resolved_through_a_silent_endpoint(profile: Profile) -> None:
    endpoint = f"{OUTER_IPV4}:{SILENT_PORT}"
    error, cause = failure(replace(profile, endpoint=endpoint), f"http://{HOST}/1k")
    assert type(error) is httpx.ConnectTimeout
    assert isinstance(cause, NameResolutionError)
    assert f"no handshake answer from {endpoint}" in str(error)


def test_wrong_public_key_of_the_server_is_a_handshake_timeout_that_names_the_keys(profile: Profile) -> None:
    """WireGuard paper 5.3: a server is silent to whoever does not know its key."""
    stranger = public_key(new_private_key())
    error, cause = failure(replace(profile, server_key=stranger), f"http://{INNER_IPV4}/1k")
    assert type(error) is httpx.ConnectTimeout
    assert type(cause) is HandshakeTimeout
    assert "PublicKey =" in str(error)


def test_private_key_unknown_to_the_server_is_a_handshake_timeout_that_names_the_keys(profile: Profile) -> None:
    error, cause = failure(replace(profile, private_key=new_private_key()), f"http://{INNER_IPV4}/1k")
    assert type(error) is httpx.ConnectTimeout
    assert type(cause) is HandshakeTimeout
    assert "does not know this key" in str(error)


def test_wrong_preshared_key_is_a_failed_handshake(lab: Lab) -> None:
    profile = replace(lab.server.new_client(preshared=True), preshared_key=new_private_key())
    error, cause = failure(profile, f"http://{INNER_IPV4}/1k")
    assert type(error) is httpx.ConnectError
    assert type(cause) is HandshakeFailed
    assert "PresharedKey =" in str(error)


@pytest.mark.parametrize("host", [INNER_IPV4, f"[{INNER_IPV6}]", HOST])
def test_port_where_nothing_listens_refuses(profile: Profile, host: str) -> None:
    error, cause = failure(profile, f"http://{host}:81/", AT_ONCE)
    assert type(error) is httpx.ConnectError
    assert type(cause) is ConnectionRefused
    assert "81 refused" in str(error)


def test_address_where_nobody_is_times_out(profile: Profile) -> None:
    error, cause = failure(profile, "http://10.99.0.250/1k")
    assert type(error) is httpx.ConnectTimeout
    assert type(cause) is OperationTimeout
    assert "connect to 10.99.0.250:80 timed out" in str(error)


def test_address_outside_allowed_ips_has_no_route(profile: Profile) -> None:
    error, cause = failure(replace(profile, allowed_ips="10.99.0.0/24"), "http://198.51.100.1/", AT_ONCE)
    assert type(error) is httpx.ConnectError
    assert type(cause) is NoRoute
    assert "no peer's AllowedIPs cover 198.51.100.1" in str(error)


def test_ipv6_destination_without_an_ipv6_address_has_no_route(profile: Profile) -> None:
    error, cause = failure(replace(profile, ipv6=None), f"http://[{INNER_IPV6}]/1k", AT_ONCE)
    assert type(error) is httpx.ConnectError
    assert type(cause) is NoRoute
    assert "IPv6" in str(error)


def test_name_that_does_not_exist_is_nxdomain(profile: Profile) -> None:
    error, cause = failure(profile, "http://missing.wg.test/", AT_ONCE)
    assert type(error) is httpx.ConnectError
    assert type(cause) is NameResolutionError
    assert cause.rcode == "NXDOMAIN"
    assert "missing.wg.test" in str(error)


def test_name_without_a_dns_server_is_not_asked_for_elsewhere(profile: Profile) -> None:
    error, cause = failure(replace(profile, dns=None), f"http://{HOST}/1k", AT_ONCE)
    assert type(error) is httpx.ConnectError
    assert type(cause) is NameResolutionError
    assert "the tunnel has no DNS server" in str(error)
