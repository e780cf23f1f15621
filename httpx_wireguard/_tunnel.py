"""`Tunnel`: one WireGuard interface inside this process, for threads."""

from __future__ import annotations

import atexit
import base64
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from httpx_wireguard._config import Config
from httpx_wireguard._connect import connect
from httpx_wireguard._drivers import endpoints
from httpx_wireguard._drivers.entropy import SystemEntropy
from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._drivers.udp import UdpSockets
from httpx_wireguard._engine import Engine, readable_endpoint
from httpx_wireguard._errors import EndpointError, OperationTimeout, TunnelClosed, WireGuardError
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._netstack.udp import UdpSocket
from httpx_wireguard._resolver import Resolver, local_family
from httpx_wireguard._sockets import Listener, UdpEndpoint
from httpx_wireguard._streams import SyncStream, TcpOptions
from httpx_wireguard._wireguard.peer import Peer

_log = logging.getLogger("httpx_wireguard.tunnel")
_running: weakref.WeakSet[Tunnel] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One peer, as `wg show` would tell it.

    Attributes:
        public_key: base64.
        endpoint: "host:port" where datagrams go now, or None.
        handshake_age: seconds since the last completed handshake, or None.
        received_bytes, sent_bytes: UDP payload of authentic messages.
        initiations_sent, responses_received: handshake messages.
        drops: what was dropped, by reason.
    """

    public_key: str
    endpoint: str | None
    handshake_age: float | None
    received_bytes: int
    sent_bytes: int
    initiations_sent: int
    responses_received: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """Counters of a tunnel.

    Attributes:
        peers: in the order of the configuration.
        connections: TCP connections in any state but CLOSED.
        drops: packets and datagrams thrown away, by reason.
    """

    peers: tuple[PeerStats, ...]
    connections: int
    drops: dict[str, int]


class Tunnel:
    """One WireGuard interface inside this process. Thread-safe; share it between clients.

    It starts with `with`, `start()` or the first connection: the endpoints' names are resolved (the only thing ever
    asked of the host's own network), the UDP socket is opened and the handshake begins.
    """

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config,
        *,
        dns: Sequence[str] | Literal["system"] | None = None,
        udp_host: str | None = None,
        udp_offload: bool = True,
    ) -> None:
        """
        Args:
            conf: path of a wg-quick file, or a `Config`.
            dns: addresses of DNS servers inside the tunnel, in place of the configuration's; "system" resolves names
                by this host's own resolver, outside the tunnel.
            udp_host: this host's address to send from and listen on; None leaves the choice to the system.
            udp_offload: coalesce and split datagrams in the kernel where it can (Linux).

        Raises:
            ConfigError: the configuration cannot work.
        """
        self._driver: SyncDriver | None = None
        self._closed: WireGuardError | None = None
        self.config = conf if isinstance(conf, Config) else Config.from_file(conf)
        self._system_dns = dns == "system"
        if dns is not None and not self._system_dns:
            self.config = replace(self.config, dns=dns)  # type: ignore[arg-type]  # Config takes text too
        self._udp_host = udp_host
        self._udp_offload = udp_offload
        self._start_lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._driver else "not started"
        addresses = ", ".join(str(address) for address in self.config.address)
        return f"<Tunnel {addresses} {state}>"

    # -- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self, warn: Any = warnings.warn) -> None:
        if self._driver is not None and self._closed is None:
            warn(f"unclosed {self!r}; use it in a with block, or close it", ResourceWarning, source=self)
            self._driver.close_soon()

    def start(self) -> None:
        """Resolve the endpoints, open the socket, begin the handshake; does not wait for its end. Idempotent.

        Raises:
            EndpointError: an endpoint's name does not resolve, or no UDP socket can be had.
            TunnelClosed: it was closed.
        """
        self._running_driver()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait for a session with every peer that has an endpoint.

        Raises:
            HandshakeTimeout, HandshakeFailed, EndpointUnreachable: there is none after `timeout` seconds, and why.
        """
        driver = self._running_driver()
        deadline = None if timeout is None else driver.now() + timeout
        with driver.lock:
            device = driver.engine.device
            peers = [peer for peer in device.peers if peer.endpoint is not None]
            for peer in peers:
                device.initiate(peer, driver.now())
            driver.pump()
            driver.wait(lambda: all(peer.has_session(driver.now()) for peer in peers), (), deadline)
            for peer in peers:
                if not peer.has_session(driver.now()):
                    raise driver.engine.explain(peer, driver.now())

    def close(self) -> None:
        """Reset the connections, wake every waiter with `TunnelClosed`, forget the keys. Idempotent, never blocks
        for longer than a second."""
        with self._start_lock:
            self._closed = self._closed or TunnelClosed("the tunnel is closed; open a new one")
            driver = self._driver
        _running.discard(self)
        if driver is not None:
            driver.close(self._closed)

    def _running_driver(self) -> SyncDriver:
        """The driver, started if need be."""
        driver = self._driver
        if driver is not None and self._closed is None:
            return driver
        with self._start_lock:
            if self._closed is not None:
                raise self._closed
            if self._driver is None:
                self._driver = self._start_driver()
                _running.add(self)
            return self._driver

    def _start_driver(self) -> SyncDriver:
        endpoints.space_out(self.config)
        sockets = UdpSockets(self._udp_host, self.config.listen_port, offload=self._udp_offload)
        try:
            candidates = {
                peer.public_key: endpoints.resolve(peer.endpoint) for peer in self.config.peers if peer.endpoint
            }
            capacity = endpoints.open_sockets(sockets, candidates.values())
            engine = Engine(self.config, SystemEntropy(), socket_capacity=capacity)
        except BaseException:
            sockets.close()
            raise
        look_again = weakref.WeakMethod(self._look_again)
        driver = SyncDriver(engine, sockets, lambda peer: (look_again() or _ignore)(peer))
        with driver.lock:
            for peer in engine.device.peers:
                found = candidates.get(peer.public_key)
                if found:
                    peer.endpoint = found[0]
                    driver.race(peer, found[1:])
                    engine.device.initiate(peer, driver.now())
            driver.pump()
        driver.start()
        self._resolver = Resolver(
            driver,
            _Network(driver),
            [str(server) for server in self.config.dns],
            self.config.dns_search,
            sorted({address.version for address in self.config.address}),
            system=self._system_dns,
        )
        return driver

    def _look_again(self, peer: Peer) -> None:
        """A silent peer: its endpoint's name may have moved (dynamic DNS, a fail-over). The driver's lock is held."""
        if peer.config.endpoint is not None and not endpoints.is_address(peer.config.endpoint.host):
            threading.Thread(target=self._move_endpoint, args=(peer,), name="httpx-wireguard-dns", daemon=True).start()

    def _move_endpoint(self, peer: Peer) -> None:
        driver = self._driver
        if driver is None or peer.config.endpoint is None:
            return
        try:
            found = endpoints.resolve(peer.config.endpoint)
        except EndpointError as error:
            _log.warning("%s", error)
            return
        with driver.lock:
            if peer.endpoint not in found and self._closed is None:
                _log.warning("Endpoint = %s is at %s now", peer.config.endpoint, readable_endpoint(found[0]))
                peer.endpoint = found[0]
                driver.race(peer, found[1:])
                driver.pump()

    def _abandon(self) -> None:
        """In a forked child: the tunnel stays the parent's."""
        self._start_lock = threading.Lock()
        self._closed = TunnelClosed(
            "this process was forked from the one that started the tunnel, and two processes must not use the keys of "
            "one session; open a tunnel of its own after the fork"
        )
        if self._driver is not None:
            self._driver.abandon(self._closed)

    # -- connections

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> SyncStream:
        """Connect to a host inside the tunnel, by whichever of its addresses answers first (RFC 8305).

        Args:
            timeout: seconds for everything: handshake, name resolution and connection.
            local_address: one of the interface's addresses; "0.0.0.0" and "::" only confine the family.
            socket_options: TCP_NODELAY, SO_KEEPALIVE and the TCP_KEEP* options count.

        Raises:
            OSError: every error of `httpx_wireguard` that can occur here is one; the text tells the cause.
        """
        driver = self._running_driver()
        deadline = None if timeout is None else driver.now() + timeout
        version = None
        source = None
        if local_address is not None:
            version = local_family(local_address)
            source = local_address if local_address not in ("0.0.0.0", "::") else None
        options = TcpOptions.from_socket_options(socket_options)

        def open_tcp(remote: tuple[str, int], now: float) -> TcpConnection:
            connection = driver.engine.open_tcp(remote, now, source)
            _apply(options, connection, now)
            return connection

        return connect(driver, self._resolver, host, port, deadline, open_tcp, version)

    def listen_tcp(self, port: int, backlog: int = 128) -> Listener:
        """Accept connections inside the tunnel on `port` of all the interface's addresses; 0 picks a free one."""
        driver = self._running_driver()
        with driver.lock:
            return Listener(driver, driver.engine.listen_tcp(port, backlog))

    def open_udp(self, local_port: int = 0, remote: tuple[str, int] | None = None) -> UdpEndpoint:
        """A UDP socket inside the tunnel; with a `remote` (IP address, port) it sends there and hears nobody else."""
        driver = self._running_driver()
        with driver.lock:
            return UdpEndpoint(driver, driver.engine.open_udp(local_port, remote))

    def resolve(self, host: str, timeout: float | None = None) -> tuple[str, ...]:
        """All addresses of a host name by the tunnel's own DNS servers, in the order in which they are tried."""
        driver = self._running_driver()
        return self._resolver.resolve(host, None if timeout is None else driver.now() + timeout)

    def ping(self, address: str, timeout: float | None = 5.0, size: int = 56) -> float:
        """Send one echo request to an IP address and wait for the reply; returns the round trip in seconds."""
        driver = self._running_driver()
        with driver.lock:
            sent = driver.now()
            deadline = None if timeout is None else sent + timeout
            ping = driver.engine.open_ping(address)
            try:
                ping.send(1, bytes(size), sent)
                driver.pump()
                if not driver.wait(lambda: ping.readable, (ping,), deadline):
                    silence = driver.engine.explain_silence(address, driver.now())
                    raise silence or OperationTimeout(f"ping {address}: no reply within {timeout:g} s")
                ping.receive(driver.now())
                return driver.now() - sent
            finally:
                ping.close(driver.now())
                driver.pump()

    # -- watching

    @property
    def listen_port(self) -> int:
        """The UDP port on which peers reach this tunnel; starts it."""
        return next(iter(self._running_driver().sockets)).port

    def stats(self) -> TunnelStats:
        """Counters as they stand now; zeros before the start."""
        driver = self._driver
        if driver is None:
            return TunnelStats((), 0, {})
        with driver.lock:
            engine, now = driver.engine, driver.now()
            return TunnelStats(
                tuple(_peer_stats(peer, now) for peer in engine.device.peers),
                engine.stack.connection_count,
                dict(engine.stack.drops + engine.device.drops),
            )


class _Network:
    """The engine as the resolver wants it; the driver's lock is held."""

    def __init__(self, driver: SyncDriver) -> None:
        self._driver = driver

    def open_udp(self, remote: tuple[str, int], now: float) -> UdpSocket:
        return self._driver.engine.open_udp(0, remote)

    def open_tcp(self, remote: tuple[str, int], now: float) -> TcpConnection:
        return self._driver.engine.open_tcp(remote, now)

    def diagnose(self, address: str) -> WireGuardError | None:
        return self._driver.engine.explain_silence(address, self._driver.now())


def _ignore(peer: Peer) -> None:
    """The tunnel is being collected."""


def _apply(options: TcpOptions, connection: TcpConnection, now: float) -> None:
    connection.sender.nagle = not options.no_delay
    if options.keepalive:
        # RFC 9293 MUST-28 and Linux' defaults: two hours, 75 s, nine probes
        idle, interval = options.keepalive_idle or 7200, options.keepalive_interval or 75
        connection.set_keepalive(idle, interval, options.keepalive_count or 9, now)


def _peer_stats(peer: Peer, now: float) -> PeerStats:
    return PeerStats(
        public_key=base64.b64encode(peer.public_key).decode(),
        endpoint=readable_endpoint(peer.endpoint) if peer.endpoint else None,
        handshake_age=None if peer.last_handshake is None else now - peer.last_handshake,
        received_bytes=peer.received_bytes,
        sent_bytes=peer.sent_bytes,
        initiations_sent=peer.initiations_sent,
        responses_received=peer.responses_received,
        drops={str(reason): count for reason, count in peer.drops.items()},
    )


def _close_all() -> None:
    drivers = [tunnel._driver for tunnel in list(_running) if tunnel._driver is not None]
    for driver in drivers:
        driver.prepare_exit()
    for driver in drivers:
        driver.close()


def _abandon_all() -> None:
    for tunnel in list(_running):
        tunnel._abandon()
    _running.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
