"""aiohttp through a WireGuard tunnel.

`WireGuardConnector` is the `connector=` of an `aiohttp.ClientSession`. Nothing here connects, or looks a name up,
outside the tunnel.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any, Literal

import aiohttp
import aiohttp.abc

from httpx_wireguard._bridge import local_address_of
from httpx_wireguard._config import Config
from httpx_wireguard._errors import NameResolutionError, OperationTimeout
from httpx_wireguard._tunnel import AsyncTunnel, Tunnel

__all__ = ["WireGuardConnector"]

_ANY_ADDRESS = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


class WireGuardConnector(aiohttp.TCPConnector):
    """An `aiohttp.TCPConnector` whose connections all go through a WireGuard tunnel: HTTP, HTTPS and WebSockets.

    A proxy, given or from the environment with `trust_env`, is dialled through the tunnel too.

    Args:
        conf: path of a wg-quick file, or a `Config`: the connector owns the tunnel, which starts with the first
            request and ends with `close`, as a session does it. Or a `Tunnel` or an `AsyncTunnel`, which it borrows.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.
        arguments: as `aiohttp.TCPConnector` has them. The tunnel resolves names and races their addresses itself, so
            that those about its DNS cache and Happy Eyeballs change nothing.

    Raises:
        ConfigError: the configuration cannot work.
        TypeError: `resolver` or `socket_factory` was given.
        ValueError: `local_addr` has a port.
    """

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config | Tunnel | AsyncTunnel,
        *,
        dns: Sequence[str] | Literal["system"] | None = None,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        **arguments: Any,
    ) -> None:
        for name in ("resolver", "socket_factory"):
            if arguments.get(name) is not None:
                raise TypeError(f"{name}= cannot be used with a tunnel, which resolves names and makes sockets itself")
        source = local_address_of(arguments.pop("local_addr", None))
        self._source = (source or _ANY_ADDRESS.get(family, ""), 0)
        self._tunnel_family = family
        self._tunnel, self._owns_tunnel = _open_tunnel(conf, dns)
        arguments["use_dns_cache"] = False
        super().__init__(resolver=_InTheTunnel(), **arguments)

    @property
    def tunnel(self) -> AsyncTunnel:
        """The tunnel that the requests go through."""
        return self._tunnel

    @property
    def family(self) -> int:
        """The address family that connections are confined to."""
        return self._tunnel_family

    async def close(self, **arguments: Any) -> None:
        """Close all connections, and the tunnel if it is the connector's own."""
        await super().close(**arguments)
        if self._owns_tunnel:
            await self._tunnel.aclose()

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: list[Any],
        req: Any,
        timeout: aiohttp.ClientTimeout,
        client_error: type[Exception] = aiohttp.ClientConnectorError,
        **kwargs: Any,
    ) -> tuple[asyncio.Transport, Any]:
        """The one place where aiohttp connects to anything; what follows, TLS included, is its own.

        Raises:
            ClientConnectorError: aiohttp's, with our text, and our error as its `os_error`.
            OperationTimeout: aiohttp turns it into its `ConnectionTimeoutError`; our text is that one's cause.
        """
        address = addr_infos[0][4][:2]
        try:
            sock = await self._tunnel.create_connection(address, timeout.sock_connect, self._source)
        except NameResolutionError as error:
            raise aiohttp.ClientConnectorDNSError(req.connection_key, _with_text(error)) from error
        except OperationTimeout:
            raise
        except OSError as error:
            raise client_error(req.connection_key, _with_text(error)) from error
        if kwargs.get("ssl") and getattr(self, "_ssl_shutdown_timeout", None):
            kwargs["ssl_shutdown_timeout"] = self._ssl_shutdown_timeout
        transport, protocol = await self._wrap_existing_connection(
            *args, req=req, timeout=timeout, client_error=client_error, sock=sock, **kwargs
        )
        fingerprint = self._get_fingerprint(req) if kwargs.get("ssl") else None
        if fingerprint is not None:
            try:
                fingerprint.check(_WithPeerName(transport, address))  # type: ignore[arg-type]  # all it asks for
            except BaseException:
                transport.close()
                raise
        return transport, protocol


class _WithPeerName:
    """A transport whose peer has a name also on uvloop, which would tell that of the socket pair: none."""

    def __init__(self, transport: asyncio.Transport, address: tuple[str, int]) -> None:
        self._transport = transport
        self._address = address

    def get_extra_info(self, name: str) -> Any:
        return self._address if name == "peername" else self._transport.get_extra_info(name)


class _InTheTunnel(aiohttp.abc.AbstractResolver):
    """Leaves names as they are: the tunnel resolves them when it connects."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": host, "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """There is nothing to close."""


def _with_text(error: OSError) -> OSError:
    """The error, with its text where aiohttp's errors look for it."""
    if error.strerror is None:
        error.strerror = str(error)
    return error


def _open_tunnel(
    conf: str | os.PathLike[str] | Config | Tunnel | AsyncTunnel, dns: Sequence[str] | Literal["system"] | None
) -> tuple[AsyncTunnel, bool]:
    """The tunnel, and whether it is the caller's to close."""
    if isinstance(conf, (str, os.PathLike, Config)):
        return AsyncTunnel(conf, dns=dns), True
    if not isinstance(conf, (Tunnel, AsyncTunnel)):
        raise TypeError(
            f"conf must be the path of a wg-quick file, a Config, a Tunnel or an AsyncTunnel, not {type(conf).__name__}"
        )
    if dns is not None:
        raise TypeError("dns= belongs to the tunnel: pass it to the tunnel, or pass a path or a Config here")
    return (conf if isinstance(conf, AsyncTunnel) else AsyncTunnel(conf)), False
