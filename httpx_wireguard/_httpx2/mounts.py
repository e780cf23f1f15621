# Made from _http/mounts.py: edit that, then run `python -m tests.httpx2_twin`.
"""Mounts for split tunnels: `httpx2.Client(mounts=mounts_for("wg0.conf", ["*.corp.example"]))`."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NoReturn, Self, Unpack

import httpx2
from httpx2._utils import URLPattern, get_environment_proxies

from httpx_wireguard._errors import ConfigError, NoRoute
from httpx_wireguard._httpx2.clients import AsyncClientConf, ClientConf, TransportArguments, transport_for
from httpx_wireguard._httpx2.transport import AsyncWireGuardTransport, WireGuardTransport

_EVERYTHING = ("all://", "http://", "https://")
_DEFAULT_PORTS = (80, 443)


def mounts_for(
    conf: ClientConf, hosts: Iterable[str], *, strict: bool = False, **arguments: Unpack[TransportArguments]
) -> dict[str, httpx2.BaseTransport | None]:
    """Mounts for `httpx2.Client(mounts=...)` that send `hosts`, and only them, through a tunnel.

    They win against the proxy variables of the environment, `NO_PROXY` included, which are read in this call: make the
    client right after it. httpx2 compares hosts as text, so an address in another spelling is another host; for each
    name the form with a dot at its end is mounted too.

    Args:
        conf: as for `WireGuardTransport`, or such a transport.
        hosts: "name", "*.name" (all below it), "*name" (both) or an address, each with ":port" if only that port of it
            is meant.
        strict: refuse requests and redirects to all other hosts, with `httpx2.ConnectError`. Without it they go as if
            there were no mounts: outside the tunnel.
        arguments: those of `WireGuardTransport`.

    Raises:
        ConfigError: httpx2's patterns cannot express one of the hosts.
    """
    plan = _plan(_own_patterns(hosts), strict)
    inside = transport_for(WireGuardTransport, conf, arguments)
    return {
        key: MountedTransport(inside) if is_inside else RefusingTransport() if strict else None
        for key, is_inside in plan.items()
    }


def async_mounts_for(
    conf: AsyncClientConf, hosts: Iterable[str], *, strict: bool = False, **arguments: Unpack[TransportArguments]
) -> dict[str, httpx2.AsyncBaseTransport | None]:
    """`mounts_for`, for `httpx2.AsyncClient(mounts=...)`."""
    plan = _plan(_own_patterns(hosts), strict)
    inside = transport_for(AsyncWireGuardTransport, conf, arguments)
    return {
        key: AsyncMountedTransport(inside) if is_inside else RefusingTransport() if strict else None
        for key, is_inside in plan.items()
    }


class MountedTransport(httpx2.BaseTransport):
    """A transport under one of its mounts.

    Tools that instrument a client wrap what is under each mount: one object under two would be wrapped twice.
    """

    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


class AsyncMountedTransport(httpx2.AsyncBaseTransport):
    """`MountedTransport`, for event loops."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


class RefusingTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Where requests to hosts beside the tunnel's end: in an error."""

    def handle_request(self, request: httpx2.Request) -> NoReturn:
        host = request.url.host
        text = f"{host!r} is not among the hosts of these strict mounts, so the request is refused; add it to them"
        raise httpx2.ConnectError(text, request=request) from NoRoute(text, host)

    async def handle_async_request(self, request: httpx2.Request) -> NoReturn:
        self.handle_request(request)


def _plan(own: list[URLPattern], strict: bool) -> dict[str, bool]:
    """Which patterns to mount, and whether the tunnel is under them, so that exactly `own` has it.

    httpx2 tries patterns with a port first, then those with the longest host, then those with the longest scheme; of
    equals the environment's. `NO_PROXY=intranet.example` makes "all://*intranet.example", which is tried before
    "all://intranet.example". So each pattern of the environment is compared with each of our own.
    """
    environment = _environment_patterns()
    ports = {pattern.port for pattern in environment} - {None}
    own = own + [URLPattern(f"{pattern.pattern}:{port}") for pattern in own if pattern.port is None for port in ports]
    plan = {pattern.pattern: True for pattern in own}
    rivals = list(environment)
    for rival in rivals:  # grows
        losers = [pattern for pattern in own if pattern.port == rival.port and not pattern < rival]
        hosts = _Hosts.of(rival)
        if any(_Hosts.of(pattern).include(hosts) for pattern in losers):
            plan[rival.pattern] = True
            continue
        for loser in losers:  # a name alone, as only they lose against a pattern that includes more
            if hosts.include(_Hosts.of(loser)):
                name, below = _split_off(loser, rival)
                plan |= {name: True, below: False}
                rivals.append(URLPattern(below))  # which may be ours by another of the hosts
    if strict:
        for key in (*_EVERYTHING, *(pattern.pattern for pattern in environment)):
            plan.setdefault(key, False)
    return plan


def _split_off(loser: URLPattern, rival: URLPattern) -> tuple[str, str]:
    """Patterns that win against `rival`: together for the host of `loser` and all below it, then for all below it.

    What is below that host `rival` includes as well; so the second leaves it as `rival` had it.
    """
    scheme, port = rival.scheme or "all", "" if rival.port is None else f":{rival.port}"
    host = httpx2.URL(loser.pattern).raw_host.decode("ascii")
    same = _Hosts.of(rival) == _Hosts("*", loser.host)
    return rival.pattern if same else f"{scheme}://*{host}{port}", f"{scheme}://*.{host}{port}"


@dataclass(frozen=True, slots=True)
class _Hosts:
    """The hosts that a pattern of httpx2 matches: "" the name alone, "*." all below it, "*" both."""

    kind: Literal["", "*.", "*"]
    name: str

    @classmethod
    def of(cls, pattern: URLPattern) -> Self:
        host = pattern.host
        kind: Literal["", "*.", "*"] = "*." if host.startswith("*.") else "*" if host.startswith("*") else ""
        return cls(kind, host.removeprefix(kind))

    def include(self, other: _Hosts) -> bool:
        if other.name == self.name:
            return self.kind in ("*", other.kind)
        return self.kind != "" and other.name.endswith(f".{self.name}")


def _environment_patterns() -> list[URLPattern]:
    """The patterns that httpx2 makes of the proxy variables. Those that it cannot parse are its own to report."""
    patterns = []
    for key in get_environment_proxies():
        with contextlib.suppress(ValueError, httpx2.InvalidURL):
            patterns.append(URLPattern(key))
    return patterns


def _own_patterns(hosts: Iterable[str]) -> list[URLPattern]:
    if isinstance(hosts, str):
        raise TypeError(f"hosts is a list of hosts: write [{hosts!r}]")
    patterns = [pattern for text in hosts for pattern in _patterns_of(text)]
    if not patterns:
        raise ConfigError("none given, so that nothing would go through the tunnel", key="hosts")
    return patterns


def _patterns_of(text: str) -> list[URLPattern]:
    """All spellings of a host that httpx2 takes for different ones, as far as they can be listed."""
    host, port = _split_port(text.strip())
    address = _ipv6_address(host)
    if address is None:
        name = _checked_name(text, host)
        is_number = name.rpartition(".")[2].isdecimal()  # an IPv4 address
        spellings = [name] if is_number else [name, f"{name}."]
    else:
        spellings = [f"[{address}]", f"[{str(address).upper()}]", f"[{host.strip('[]')}]"]
    if port is None:
        return [URLPattern(f"all://{spelling}") for spelling in spellings]
    if port in _DEFAULT_PORTS:
        raise _refused(text, "httpx2 cannot match the default port alone; leave the port out")
    if not 0 < port < 65536:
        raise _refused(text, "a port is at most 65535")
    return [URLPattern(f"all://{spelling}:{port}") for spelling in spellings]


def _split_port(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*):([0-9]{1,9})", text)
    return (match[1], int(match[2])) if match else (text, None)


def _ipv6_address(host: str) -> ipaddress.IPv6Address | None:
    match = re.fullmatch(r"\[([^]%]*)\]|([^]%]*)", host)
    try:
        return ipaddress.IPv6Address(match[1] or match[2]) if match else None
    except ValueError:
        return None


def _checked_name(text: str, host: str) -> str:
    """A name or IPv4 address, perhaps with a wildcard before it, in the spelling that httpx2 compares."""
    if "://" in host:
        raise _refused(text, "give the host alone, without scheme and path")
    if "/" in host:
        raise _refused(
            text,
            "a network cannot be mounted, for names resolve later; list the addresses, or give the whole client to the "
            'tunnel, transport=WireGuardTransport("wg0.conf"), where AllowedIPs decide',
        )
    wildcard, name = re.fullmatch(r"(\*\.?|)(.*)", host.removesuffix("."), re.DOTALL).groups()  # type: ignore[union-attr]  # matches anything
    if wildcard and not name:
        raise _refused(text, 'for all hosts use transport=WireGuardTransport("wg0.conf") instead of mounts')
    try:
        url = httpx2.URL(f"all://{name}")
    except httpx2.InvalidURL as error:
        raise _refused(text, str(error)) from None
    ascii_name = url.raw_host.decode("ascii")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", ascii_name) or url != httpx2.URL(f"all://{ascii_name}"):
        raise _refused(text, 'a host is a name, an address, or "*." and a name')
    if wildcard and "xn--" in ascii_name:
        raise _refused(text, "httpx2 has no wildcards for international names; list the hosts")
    return wildcard + ascii_name


def _refused(text: str, reason: str) -> ConfigError:
    return ConfigError(f"{text!r}: {reason}", key="hosts")
