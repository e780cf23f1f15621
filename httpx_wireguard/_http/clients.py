"""httpx clients that have no way around their tunnel."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.cookiejar import CookieJar
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, cast

import httpcore
import httpx

from httpx_wireguard._families import AsyncTunnelLike, Conf, DnsServers, TunnelLike
from httpx_wireguard._http.transport import AsyncWireGuardTransport, CertTypes, ProxyTypes, WireGuardTransport
from httpx_wireguard._tunnel import Tunnel

ClientConf: TypeAlias = Conf | TunnelLike | WireGuardTransport
AsyncClientConf: TypeAlias = Conf | Tunnel | AsyncTunnelLike | AsyncWireGuardTransport

_Transport = TypeVar("_Transport", WireGuardTransport, AsyncWireGuardTransport)


class TransportArguments(TypedDict, total=False):
    """What `WireGuardTransport` takes beside `conf`."""

    dns: DnsServers
    verify: ssl.SSLContext | str | bool
    cert: CertTypes | None
    trust_env: bool
    http1: bool
    http2: bool
    limits: httpx.Limits | None
    proxy: ProxyTypes | None
    local_address: str | None
    retries: int
    socket_options: Iterable[httpcore.SOCKET_OPTION] | None


class ClientArguments(TransportArguments, total=False):
    """What `Client` takes beside `conf`: the transport's arguments, and of `httpx.Client`'s those that are left."""

    auth: httpx.Auth | tuple[str | bytes, str | bytes] | Callable[[httpx.Request], httpx.Request] | None
    params: httpx.QueryParams | Mapping[str, Any] | Sequence[tuple[str, Any]] | str | bytes | None
    headers: (
        httpx.Headers | Mapping[str, str] | Mapping[bytes, bytes] | Sequence[tuple[str | bytes, str | bytes]] | None
    )
    cookies: httpx.Cookies | CookieJar | dict[str, str] | list[tuple[str, str]] | None
    timeout: httpx.Timeout | float | tuple[float | None, ...] | None
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[Callable[..., Any]]] | None
    base_url: httpx.URL | str
    default_encoding: str | Callable[[bytes], str]


class Client(httpx.Client):
    """An `httpx.Client` whose requests all go through a WireGuard tunnel, whatever else it is given.

    `verify`, `cert`, `trust_env`, `http1`, `http2`, `limits`, and the transport's own `dns`, `retries`, … take effect,
    unlike those of an `httpx.Client` with a transport. `proxy` is reached inside the tunnel. The environment's proxies
    are not used.

    Args:
        conf: as for `WireGuardTransport`; or such a transport, and then its arguments belong there.

    Raises:
        TypeError: `mounts`, `transport`, or an argument for a transport that is there already.
        ConfigError: the configuration cannot work.
    """

    def __init__(self, conf: ClientConf, **arguments: Unpack[ClientArguments]) -> None:
        for_transport, for_client = _split(arguments)
        super().__init__(transport=transport_for(WireGuardTransport, conf, for_transport), **for_client)


class AsyncClient(httpx.AsyncClient):
    """`Client`, for asyncio and trio."""

    def __init__(self, conf: AsyncClientConf, **arguments: Unpack[ClientArguments]) -> None:
        for_transport, for_client = _split(arguments)
        super().__init__(transport=transport_for(AsyncWireGuardTransport, conf, for_transport), **for_client)


def transport_for(kind: type[_Transport], conf: Any, arguments: Mapping[str, Any]) -> _Transport:
    """The transport `conf` itself, or a new one of it.

    Raises:
        TypeError: `conf` is a transport, and of another kind, or there are arguments that come too late for it.
    """
    name = kind.__name__
    if isinstance(conf, kind):
        if arguments:
            given = ", ".join(f"{argument}=" for argument in arguments)
            raise TypeError(f"{given} would have no effect on a transport that exists: pass it to {name}()")
        return conf
    if isinstance(conf, (httpx.BaseTransport, httpx.AsyncBaseTransport)):
        raise TypeError(f"{type(conf).__name__} given, where only {name} is known to stay in the tunnel")
    return kind(conf, **arguments)


def _split(arguments: ClientArguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what the transport is given from what the client is given."""
    given = cast("dict[str, Any]", arguments)
    if "mounts" in given:
        raise TypeError(
            "mounts= would lead around the tunnel; for only some hosts inside it: httpx.Client(mounts=mounts_for(...))"
        )
    if "transport" in given:
        raise TypeError("transport= would lead around the tunnel; a WireGuardTransport goes in place of conf")
    names = TransportArguments.__optional_keys__
    return (
        {name: value for name, value in given.items() if name in names},
        {name: value for name, value in given.items() if name not in names or name == "trust_env"},
    )
