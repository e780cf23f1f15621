"""One running WireGuard interface: engine, driver, endpoints and resolver, and all that can be done with them.

`Tunnel` and `AsyncTunnel` are two faces of it. Operations are coroutines over a `Driver`, so that threads and event
loops can use one interface at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from httpx_wireguard._config import Config, Endpoint
from httpx_wireguard._connect import connect, resolve
from httpx_wireguard._drivers import endpoints
from httpx_wireguard._drivers.base import BaseDriver
from httpx_wireguard._drivers.entropy import SystemEntropy
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import CONTROLS, DEFAULT_CONTROL, Engine, readable_endpoint
from httpx_wireguard._errors import EndpointError, NoRoute, OperationTimeout, WireGuardError
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._resolver import Resolver, local_family
from httpx_wireguard._streams import AsyncTcpStream, TcpOptions
from httpx_wireguard._waiting import Driver
from httpx_wireguard._wireguard.peer import Peer

if TYPE_CHECKING:
    from httpx_wireguard._netstack.udp import UdpSocket
    from httpx_wireguard._sockets import AsyncListener, AsyncUdpEndpoint
    from httpx_wireguard._stats import TunnelStats

_log = logging.getLogger("httpx_wireguard.tunnel")

DriverFactory = Callable[[Engine, UdpSockets, Callable[[Peer], None]], BaseDriver]


class TunnelOptions(NamedTuple):
    """What a tunnel is told beside its configuration."""

    udp_host: str | None = None
    udp_offload: bool = True
    system_dns: bool = False
    congestion_control: str = DEFAULT_CONTROL


class Interface:
    """Running from its construction on; ends with `driver.close`."""

    def __init__(self, config: Config, make_driver: DriverFactory, options: TunnelOptions) -> None:
        """
        Raises:
            EndpointError: no UDP socket can be had, or none that reaches a peer.
        """
        self._config = config
        self._endpoints = [peer.endpoint for peer in config.peers if peer.endpoint is not None]
        sockets = UdpSockets(options.udp_host, config.listen_port, offload=options.udp_offload)
        try:
            capacity = endpoints.open_sockets(sockets, self._endpoints)
            self.engine = Engine(
                config,
                SystemEntropy(),
                socket_capacity=capacity,
                congestion_control=options.congestion_control,
            )
            self.driver = make_driver(self.engine, sockets, self._look_again)
            self.driver.start()
        except BaseException:
            sockets.close()
            raise
        self._looking_up = False
        self._lookup_error: EndpointError | None = None
        self._resolver = Resolver(
            _Network(self.driver),
            [str(server) for server in config.dns],
            config.dns_search,
            sorted({address.version for address in config.address}),
            system=options.system_dns,
        )
        self.find_endpoints()

    # -- endpoints

    def find_endpoints(self) -> None:
        """Find the endpoints that are not known yet, and begin the handshakes; names are looked up in a thread."""
        with self.driver.lock:
            if self._looking_up or not any(p.config.endpoint and p.endpoint is None for p in self.engine.device.peers):
                return
            self._lookup_error = None
            delay = endpoints.space_out(self._config)
            if delay or not all(endpoints.is_address(endpoint.host) for endpoint in self._endpoints):
                self._looking_up = True
                _in_thread(self._look_up, delay)
                return
            for peer in self.engine.device.peers:
                if peer.config.endpoint is not None and peer.endpoint is None:
                    self._set_endpoint(peer, endpoints.resolve(peer.config.endpoint))
            self.driver.pump()

    def _look_up(self, delay: float) -> None:
        """The body of a thread: the one thing that is asked of the host's own network."""
        time.sleep(delay)
        for peer in self.engine.device.peers:
            if peer.config.endpoint is None or peer.endpoint is not None:
                continue
            try:
                found = endpoints.resolve(peer.config.endpoint)
            except EndpointError as error:
                self._lookup_error = error
                continue
            with self.driver.lock:
                self._set_endpoint(peer, found)
                self.driver.pump()
        with self.driver.lock:
            self._looking_up = False
            self.driver.wake(self)

    def _set_endpoint(self, peer: Peer, found: list[tuple[Any, ...]]) -> None:
        """Send to the first of these addresses from now on, and race the others. *Lock held.*"""
        if self.engine.closed_by is not None or peer.endpoint in found:
            return
        usable = self.driver.sockets.usable(found)
        if not usable:
            self._lookup_error = EndpointError(
                f"Endpoint = {peer.config.endpoint} is {readable_endpoint(found[0])}, and this host, or the local "
                "address that it was told to use, cannot send to addresses of that IP version"
            )
            return
        peer.endpoint = usable[0]
        self.driver.race(peer, usable[1:])
        self.engine.device.initiate(peer, self.driver.now())

    def _look_again(self, peer: Peer) -> None:
        """A silent peer: its endpoint's name may have moved (dynamic DNS, a fail-over). The driver's lock is held."""
        if peer.config.endpoint is not None and not endpoints.is_address(peer.config.endpoint.host):
            _in_thread(self._move_endpoint, peer, peer.config.endpoint)

    def _move_endpoint(self, peer: Peer, endpoint: Endpoint) -> None:
        try:
            found = endpoints.resolve(endpoint)
        except EndpointError as error:
            _log.warning("%s", error)
            return
        with self.driver.lock:
            before = peer.endpoint
            self._set_endpoint(peer, found)
            if peer.endpoint != before:
                _log.warning("Endpoint = %s is at %s now", endpoint, readable_endpoint(peer.endpoint))
            self.driver.pump()

    async def endpoints_found(self, driver: Driver, deadline: float | None) -> None:
        """Wait until the endpoints' names are looked up.

        Raises:
            EndpointError: that failed, or was not done by the deadline.
        """
        self.find_endpoints()
        with driver.lock:
            if self._looking_up and not await driver.wait(lambda: not self._looking_up, (self,), deadline):
                raise EndpointError("this host's resolver has not answered in time for the Endpoint = of a peer")
            if self._lookup_error is not None:
                raise self._lookup_error

    # -- operations

    async def wait_ready(self, driver: Driver, timeout: float | None) -> None:
        """Wait for a session with every peer that has an endpoint."""
        deadline = None if timeout is None else driver.now() + timeout
        await self.endpoints_found(driver, deadline)
        with driver.lock:
            device = self.engine.device
            peers = [peer for peer in device.peers if peer.endpoint is not None]
            for peer in peers:
                device.initiate(peer, driver.now())
            driver.pump()
            await driver.wait(lambda: all(peer.has_session(driver.now()) for peer in peers), (), deadline)
            for peer in peers:
                if not peer.has_session(driver.now()):
                    raise self.engine.explain(peer, driver.now())

    async def connect_tcp(
        self,
        driver: Driver,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> AsyncTcpStream:
        """Connect to a host inside the tunnel, by whichever of its addresses answers first (RFC 8305)."""
        if not 0 < port <= 65535:
            raise NoRoute(f"port {port} is outside 1..65535", host)
        deadline = None if timeout is None else driver.now() + timeout
        version = local_family(local_address)
        source = None if local_address in ("0.0.0.0", "::") else local_address
        options = TcpOptions.from_socket_options(socket_options)

        def open_tcp(remote: tuple[str, int], now: float) -> TcpConnection:
            connection = self.engine.open_tcp(remote, now, source)
            _apply(options, connection, now)
            return connection

        await self.endpoints_found(driver, deadline)
        return await connect(driver, self._resolver, host, port, deadline, open_tcp, version)

    async def listen_tcp(self, driver: Driver, port: int, backlog: int) -> AsyncListener:
        from httpx_wireguard._sockets import AsyncListener  # here: HTTP needs no such sockets

        with driver.lock:
            return AsyncListener(driver, self.engine.listen_tcp(port, backlog))

    async def open_udp(self, driver: Driver, local_port: int, remote: tuple[str, int] | None) -> AsyncUdpEndpoint:
        from httpx_wireguard._sockets import AsyncUdpEndpoint

        await self.endpoints_found(driver, None)
        with driver.lock:
            return AsyncUdpEndpoint(driver, self.engine, self.engine.open_udp(local_port, remote))

    async def resolve(self, driver: Driver, host: str, timeout: float | None) -> tuple[str, ...]:
        deadline = None if timeout is None else driver.now() + timeout
        await self.endpoints_found(driver, deadline)
        return await resolve(driver, self._resolver, host, deadline)

    async def ping(self, driver: Driver, address: str, timeout: float | None, size: int) -> float:
        await self.endpoints_found(driver, None if timeout is None else driver.now() + timeout)
        with driver.lock:
            sent = driver.now()
            deadline = None if timeout is None else sent + timeout
            ping = self.engine.open_ping(address)
            try:
                ping.send(1, bytes(size), sent)
                driver.pump()
                if not await driver.wait(lambda: ping.readable, (ping,), deadline):
                    silence = self.engine.explain_silence(address, driver.now())
                    raise silence or OperationTimeout(f"ping {address}: no reply within {timeout:g} s")
                ping.receive(driver.now())
                return driver.now() - sent
            finally:
                ping.close(driver.now())
                driver.pump()

    # -- watching

    @property
    def listen_port(self) -> int:
        return next(iter(self.driver.sockets)).port

    def stats(self) -> TunnelStats:
        from httpx_wireguard._stats import stats_of  # here: a first request shall not wait for its dataclasses

        with self.driver.lock:
            engine, now = self.engine, self.driver.now()
            return stats_of(engine, now)


class _Network:
    """The engine as the resolver wants it."""

    def __init__(self, driver: BaseDriver) -> None:
        self._driver = driver

    def open_udp(self, remote: tuple[str, int], now: float) -> UdpSocket:
        return self._driver.engine.open_udp(0, remote)

    def open_tcp(self, remote: tuple[str, int], now: float) -> TcpConnection:
        return self._driver.engine.open_tcp(remote, now)

    def diagnose(self, address: str, now: float) -> WireGuardError | None:
        self._driver.catch_up()  # an ICMP error may wait in the socket, behind whatever kept us from looking
        return self._driver.engine.explain_silence(address, now)

    def wake_later(self, key: Any) -> None:
        with self._driver.lock:
            self._driver.wake(key)


def _in_thread(body: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=body, args=arguments, name="httpx-wireguard-dns", daemon=True).start()


def _apply(options: TcpOptions, connection: TcpConnection, now: float) -> None:
    connection.sender.nagle = not options.no_delay
    if options.congestion_control is not None:
        connection.sender.make_control = CONTROLS[options.congestion_control]
    if options.user_timeout:
        connection.user_timeout = options.user_timeout / 1000
    if options.keepalive:
        # RFC 9293 MUST-28 and Linux' defaults: two hours, 75 s, nine probes
        idle, interval = options.keepalive_idle or 7200, options.keepalive_interval or 75
        connection.set_keepalive(idle, interval, options.keepalive_count or 9, now)
