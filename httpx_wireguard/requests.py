"""requests and urllib3 through a WireGuard tunnel.

`WireGuardAdapter` is mounted on a `requests.Session`; `WireGuardPoolManager` takes the place of `urllib3.PoolManager`,
and `WireGuardProxyManager` that of `urllib3.ProxyManager`. Nothing here connects outside the tunnel.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import requests.adapters
import urllib3
from requests.exceptions import InvalidSchema
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ProxySchemeUnsupported
from urllib3.util import Retry, parse_url

from httpx_wireguard._config import Config
from httpx_wireguard._tunnel import Tunnel
from httpx_wireguard._urllib3 import WireGuardHTTPConnectionPool, WireGuardHTTPSConnectionPool, wait_for_closing

__all__ = ["WireGuardAdapter", "WireGuardPoolManager", "WireGuardProxyManager"]

Conf = str | os.PathLike[str] | Config | Tunnel
Dns = Sequence[str] | Literal["system"] | None

_BLOCKSIZE = 65_536  # bytes of a file in each write; in blocks of 16,384, urllib3's, it takes twice as long


class WireGuardPoolManager(urllib3.PoolManager):
    """A `urllib3.PoolManager` whose connections all go through a WireGuard tunnel.

    Args:
        conf: path of a wg-quick file, or a `Config`: the manager owns the tunnel, which starts with the first request
            and ends with `close` or the `with` block. Or a `Tunnel`, which it borrows.
        num_pools, headers, connection_pool_kw: as `urllib3.PoolManager` has them.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(
        self,
        conf: Conf,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        dns: Dns = None,
        **connection_pool_kw: Any,
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        self._use_tunnel(conf, dns)

    @property
    def tunnel(self) -> Tunnel:
        """The tunnel that the requests go through."""
        return self._tunnel

    def close(self) -> None:
        """Close the idle connections, and the tunnel if it is the manager's own."""
        self.clear()
        wait_for_closing()
        if self._owns_tunnel:
            self._tunnel.close()

    def __exit__(self, *exc_info: object) -> Literal[False]:
        self.close()
        return False

    def __getstate__(self) -> NoReturn:
        _refuse_pickling(self)

    def _use_tunnel(self, conf: Conf, dns: Dns) -> None:
        self._tunnel, self._owns_tunnel = _open_tunnel(conf, dns)
        self.connection_pool_kw.setdefault("blocksize", _BLOCKSIZE)
        self.pool_classes_by_scheme = {"http": WireGuardHTTPConnectionPool, "https": WireGuardHTTPSConnectionPool}

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        pool = super()._new_pool(scheme, host, port, request_context)
        pool.conn_kw["tunnel"] = self._tunnel
        return pool


class WireGuardProxyManager(WireGuardPoolManager, urllib3.ProxyManager):
    """A `urllib3.ProxyManager` for an HTTP proxy that is inside a WireGuard tunnel.

    Args:
        conf, dns: as for `WireGuardPoolManager`.
        proxy_url: the proxy as `http://host:port`; the tunnel's own DNS servers resolve its name.
        proxy_manager_kw: as `urllib3.ProxyManager` has them.

    Raises:
        ConfigError: the configuration cannot work.
        ProxySchemeUnsupported: urllib3's; it is no HTTP proxy.
    """

    def __init__(self, conf: Conf, proxy_url: str, *, dns: Dns = None, **proxy_manager_kw: Any) -> None:
        scheme = parse_url(proxy_url).scheme
        if scheme != "http":
            why = "PySocks dials by itself" if str(scheme).startswith("socks") else "TLS to the proxy is not supported"
            raise ProxySchemeUnsupported(
                f"a {scheme}:// proxy cannot be used through the tunnel: {why}. Use an http:// proxy inside the "
                "tunnel, or none: with requests, session.trust_env = False ignores HTTP_PROXY and its like"
            )
        urllib3.ProxyManager.__init__(self, proxy_url, **proxy_manager_kw)
        self._use_tunnel(conf, dns)


class WireGuardAdapter(requests.adapters.HTTPAdapter):
    """A transport adapter for `requests.Session.mount` whose requests all go through a WireGuard tunnel.

    Mount it for "http://" too, or a redirect there leaves the tunnel. A proxy, given or from the environment, has to
    be an HTTP proxy inside the tunnel.

    Args:
        conf: path of a wg-quick file, or a `Config`: the adapter owns the tunnel, which starts with the first request
            and ends with the session. Or a `Tunnel`, which it borrows.
        dns: DNS servers in place of the configuration's; "system" resolves names outside the tunnel.
        pool_connections, pool_maxsize, max_retries, pool_block: as `requests.adapters.HTTPAdapter` has them.

    Raises:
        ConfigError: the configuration cannot work.
    """

    def __init__(
        self,
        conf: Conf,
        *,
        dns: Dns = None,
        pool_connections: int = requests.adapters.DEFAULT_POOLSIZE,
        pool_maxsize: int = requests.adapters.DEFAULT_POOLSIZE,
        max_retries: Retry | int = requests.adapters.DEFAULT_RETRIES,
        pool_block: bool = requests.adapters.DEFAULT_POOLBLOCK,
    ) -> None:
        self._tunnel, self._owns_tunnel = _open_tunnel(conf, dns)
        super().__init__(pool_connections, pool_maxsize, max_retries, pool_block)

    @property
    def tunnel(self) -> Tunnel:
        """The tunnel that the requests go through."""
        return self._tunnel

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        self._pool_connections = connections
        self._pool_maxsize = maxsize
        self._pool_block = block
        self.poolmanager = WireGuardPoolManager(
            self._tunnel, num_pools=connections, maxsize=maxsize, block=block, **pool_kwargs
        )

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> WireGuardProxyManager:
        """A manager that dials the proxy through the tunnel.

        Raises:
            InvalidSchema: requests' own; it is no HTTP proxy.
        """
        if proxy not in self.proxy_manager:
            try:
                self.proxy_manager[proxy] = WireGuardProxyManager(
                    self._tunnel,
                    proxy,
                    proxy_headers=self.proxy_headers(proxy),
                    num_pools=self._pool_connections,
                    maxsize=self._pool_maxsize,
                    block=self._pool_block,
                    **proxy_kwargs,
                )
            except ProxySchemeUnsupported as error:
                raise InvalidSchema(str(error)) from error
        manager: WireGuardProxyManager = self.proxy_manager[proxy]
        return manager

    def close(self) -> None:
        """Close the idle connections, and the tunnel if it is the adapter's own."""
        super().close()
        wait_for_closing()
        if self._owns_tunnel:
            self._tunnel.close()

    def __getstate__(self) -> NoReturn:
        _refuse_pickling(self)

    def __setstate__(self, state: dict[str, Any]) -> NoReturn:
        _refuse_pickling(self)


def _open_tunnel(conf: Conf, dns: Dns) -> tuple[Tunnel, bool]:
    """The tunnel, and whether it is the caller's to close."""
    if isinstance(conf, (str, os.PathLike, Config)):
        return Tunnel(conf, dns=dns), True
    if not isinstance(conf, Tunnel):
        raise TypeError(f"conf must be the path of a wg-quick file, a Config or a Tunnel, not {type(conf).__name__}")
    if dns is not None:
        raise TypeError("dns= belongs to the tunnel: pass it to Tunnel(), or pass a path or a Config here")
    return conf, False


def _refuse_pickling(holder: object) -> NoReturn:
    raise TypeError(
        f"cannot pickle or copy a {type(holder).__name__}: a tunnel and its keys belong to one process; make a new one "
        "there, from the configuration"
    )
