"""`Tunnel` and `AsyncTunnel`: one WireGuard interface inside this process, for threads and for event loops."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from httpx_wireguard._config import Config
from httpx_wireguard._drivers.sync import SyncDriver
from httpx_wireguard._engine import DEFAULT_CONTROL
from httpx_wireguard._errors import TunnelClosed, WireGuardError, renewed
from httpx_wireguard._interface import DriverFactory, Interface, TunnelOptions
from httpx_wireguard._streams import AsyncTcpStream, SyncStream, check_congestion_control
from httpx_wireguard._waiting import Driver, run

if TYPE_CHECKING:
    from httpx_wireguard._bridge import Bridges, LoopBridges
    from httpx_wireguard._drivers.loops import LoopWaits
    from httpx_wireguard._sockets import AsyncListener, AsyncUdpEndpoint, Listener, UdpEndpoint
    from httpx_wireguard._stats import TunnelStats

# Event loops, bridges, listeners and counters are imported where they are used: a client's first request needs none.

_log = logging.getLogger("httpx_wireguard.tunnel")
_running: weakref.WeakSet[_Lifecycle] = weakref.WeakSet()


class _Lifecycle:
    """Configuration, start and end: what both kinds of tunnel share."""

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config,
        dns: Sequence[str] | Literal["system"] | None,
        udp_host: str | None,
        udp_offload: bool,
        congestion_control: str,
    ) -> None:
        self._interface: Interface | None = None
        self._closed: WireGuardError | None = None
        self.config = conf if isinstance(conf, Config) else Config.from_file(conf)
        if dns is not None and dns != "system":
            self.config = replace(self.config, dns=dns)  # type: ignore[arg-type]  # Config takes text too
        check_congestion_control(congestion_control)
        self._options = TunnelOptions(udp_host, udp_offload, dns == "system", congestion_control)
        self._start_lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._interface else "not started"
        addresses = ", ".join(str(address) for address in self.config.address)
        return f"<{type(self).__name__} {addresses} {state}>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        if self._interface is not None and self._closed is None:
            warn(f"unclosed {self!r}; use it in a with block, or close it", ResourceWarning, source=self)
            self._interface.driver.close_soon()

    def _start(self, make_driver: DriverFactory) -> Interface:
        """The interface, started if need be."""
        with self._start_lock:
            if self._closed is not None:
                raise renewed(self._closed)
            if self._interface is None:
                self._interface = Interface(self.config, make_driver, self._options)
                _running.add(self)
            return self._interface

    def _end(self) -> None:
        with self._start_lock:
            self._closed = self._closed or TunnelClosed("the tunnel is closed; open a new one")
            interface = self._interface
        _running.discard(self)
        if interface is not None:
            interface.driver.close(self._closed)

    def _abandon(self) -> None:
        """In a forked child: the tunnel stays the parent's."""
        self._start_lock = threading.Lock()
        self._closed = TunnelClosed(
            "this process was forked from the one that started the tunnel, and two processes must not use the keys of "
            "one session; open a tunnel of its own after the fork"
        )
        if self._interface is not None:
            self._interface.driver.abandon(self._closed)

    def stats(self) -> TunnelStats:
        """Counters as they stand now; zeros before the start."""
        from httpx_wireguard._stats import TunnelStats

        interface = self._interface
        return TunnelStats((), 0, {}) if interface is None else interface.stats()


class Tunnel(_Lifecycle):
    """One WireGuard interface inside this process. Thread-safe; share it between clients, asynchronous ones too.

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
        congestion_control: str = DEFAULT_CONTROL,
    ) -> None:
        """
        Args:
            conf: path of a wg-quick file, or a `Config`.
            dns: addresses of DNS servers inside the tunnel, in place of the configuration's; "system" resolves names
                by this host's own resolver, outside the tunnel.
            udp_host: this host's address to send from and listen on; None leaves the choice to the system.
            udp_offload: coalesce and split datagrams in the kernel where it can (Linux).
            congestion_control: of what we send by TCP: "cubic", "bbr" or "reno". TCP_CONGESTION among a connection's
                `socket_options` goes before it.

        Raises:
            ConfigError: the configuration cannot work.
        """
        super().__init__(conf, dns, udp_host, udp_offload, congestion_control)

    # -- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Resolve the endpoints, open the socket, begin the handshake; does not wait for its end. Idempotent.

        Raises:
            EndpointError: an endpoint's name does not resolve, or no UDP socket can be had.
            TunnelClosed: it was closed.
        """
        interface, driver = self._running()
        run(interface.endpoints_found(driver, None))

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait for a session with every peer that has an endpoint.

        Raises:
            HandshakeTimeout, HandshakeFailed, EndpointUnreachable: there is none after `timeout` seconds, and why.
        """
        interface, driver = self._running()
        run(interface.wait_ready(driver, timeout))

    def close(self) -> None:
        """Reset the connections, wake every waiter with `TunnelClosed`, forget the keys. Idempotent, never blocks
        for longer than a second."""
        self._end()

    def _running(self) -> tuple[Interface, SyncDriver]:
        interface = self._interface
        if interface is None or self._closed is not None:
            interface = self._start(SyncDriver)
        driver = interface.driver
        assert isinstance(driver, SyncDriver)
        return interface, driver

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
            socket_options: TCP_NODELAY, SO_KEEPALIVE, TCP_KEEP*, TCP_USER_TIMEOUT and TCP_CONGESTION count.

        Raises:
            OSError: every error of `httpx_wireguard` that can occur here is one; the text tells the cause.
        """
        interface, driver = self._running()
        return SyncStream(run(interface.connect_tcp(driver, host, port, timeout, local_address, socket_options)))

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> socket.socket:
        """As `socket.create_connection`: connect inside the tunnel, for libraries that want a real socket.

        Args:
            address: host and port; the tunnel's own DNS servers resolve the host.
            timeout: seconds for everything until the connection stands; the socket gets it as its timeout too.
            source_address: one of the interface's addresses, and the port 0.
            socket_options: as for `connect_tcp`.

        Returns:
            A connected, blocking `socket.socket`: one end of a pair whose other end the tunnel looks after.

        Raises:
            OSError: as `connect_tcp`, or no descriptor is left.
        """
        from httpx_wireguard._bridge import local_address_of, seconds_of, thread_bridges

        interface, driver = self._running()
        seconds, local = seconds_of(timeout), local_address_of(source_address)
        stream = run(interface.connect_tcp(driver, *address[:2], seconds, local, socket_options))
        sock = thread_bridges(driver).open(stream)
        sock.settimeout(seconds)
        return sock

    def listen_tcp(self, port: int, backlog: int = 128) -> Listener:
        """Accept connections inside the tunnel on `port` of all the interface's addresses; 0 picks a free one."""
        from httpx_wireguard._sockets import Listener

        interface, driver = self._running()
        return Listener(run(interface.listen_tcp(driver, port, backlog)))

    def open_udp(self, local_port: int = 0, remote: tuple[str, int] | None = None) -> UdpEndpoint:
        """A UDP socket inside the tunnel; with a `remote` (IP address, port) it sends there and hears nobody else."""
        from httpx_wireguard._sockets import UdpEndpoint

        interface, driver = self._running()
        return UdpEndpoint(run(interface.open_udp(driver, local_port, remote)))

    def resolve(self, host: str, timeout: float | None = None) -> tuple[str, ...]:
        """All addresses of a host name by the tunnel's own DNS servers, in the order in which they are tried."""
        interface, driver = self._running()
        return run(interface.resolve(driver, host, timeout))

    def ping(self, address: str, timeout: float | None = 5.0, size: int = 56) -> float:
        """Send one echo request to an IP address and wait for the reply; returns the round trip in seconds."""
        interface, driver = self._running()
        return run(interface.ping(driver, address, timeout, size))

    @property
    def listen_port(self) -> int:
        """The UDP port on which peers reach this tunnel; starts it."""
        return self._running()[0].listen_port


class AsyncTunnel(_Lifecycle):
    """As `Tunnel`, for asyncio and trio: it runs inside the event loop, without a thread.

    It starts with `async with`, `start()` or the first connection, and belongs to that event loop. When the loop has
    ended, the next use starts it anew; while the loop runs, another one gets an error. Made from a running `Tunnel` it
    is that tunnel's asynchronous face: for any number of loops, next to any number of threads; `aclose` leaves the
    tunnel alone, and the streams that were opened through it.
    """

    def __init__(
        self,
        conf: str | os.PathLike[str] | Config | Tunnel,
        *,
        dns: Sequence[str] | Literal["system"] | None = None,
        udp_host: str | None = None,
        udp_offload: bool = True,
        congestion_control: str = DEFAULT_CONTROL,
    ) -> None:
        """
        Args:
            conf: path of a wg-quick file, a `Config`, or a `Tunnel` to share.
            dns, udp_host, udp_offload, congestion_control: as for `Tunnel`.

        Raises:
            ConfigError: the configuration cannot work.
            TypeError: an option was given that belongs to the `Tunnel` shared.
        """
        self._interface = None
        self._shared = conf if isinstance(conf, Tunnel) else None
        options = (dns, udp_host, udp_offload, congestion_control)
        if self._shared is not None and options != (None, None, True, DEFAULT_CONTROL):
            raise TypeError(
                "dns=, udp_host=, udp_offload= and congestion_control= belong to the Tunnel that is shared: "
                "pass them to Tunnel()"
            )
        super().__init__(conf.config if isinstance(conf, Tunnel) else conf, *options)
        self._waits: LoopWaits | None = None
        self._bridges: LoopBridges | None = None

    # -- life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """As `Tunnel.start`."""
        interface, driver = self._running()
        await interface.endpoints_found(driver, None)

    async def wait_ready(self, timeout: float | None = None) -> None:
        """As `Tunnel.wait_ready`."""
        interface, driver = self._running()
        await interface.wait_ready(driver, timeout)

    async def aclose(self) -> None:
        """Reset the connections, wake every waiter with `TunnelClosed`, forget the keys. Idempotent; waits for
        nothing, and may be called from any task."""
        self.close()

    def close(self) -> None:
        """`aclose` without `await`."""
        self._end()

    def stats(self) -> TunnelStats:
        """Counters as they stand now; zeros before the start."""
        return super().stats() if self._shared is None else self._shared.stats()

    @property
    def listen_port(self) -> int:
        """The UDP port on which peers reach this tunnel; starts it."""
        return self._running()[0].listen_port

    def _running(self) -> tuple[Interface, Driver]:
        """The interface, started if need be, and the driver to wait with."""
        from httpx_wireguard._drivers.loops import LoopWaits

        if self._shared is not None:
            if self._closed is not None:
                raise renewed(self._closed)
            interface, _ = self._shared._running()
        else:
            interface = self._own_interface()
        if self._waits is None or self._waits.driver is not interface.driver:
            self._waits = LoopWaits(interface.driver)
        return interface, self._waits

    def _own_interface(self) -> Interface:
        from httpx_wireguard._drivers.loops import LoopDriver

        interface = self._interface
        if interface is not None and self._closed is None:
            driver = interface.driver
            if not isinstance(driver, LoopDriver) or driver.serves():
                return interface
            self._interface = None  # its loop has ended
        try:
            return self._start(_loop_driver())
        except NotImplementedError:
            return self._start(SyncDriver)

    # -- connections

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncTcpStream:
        """As `Tunnel.connect_tcp`. Cancelled, it leaves nothing behind but the handshake, which others may wait for."""
        interface, driver = self._running()
        return await interface.connect_tcp(driver, host, port, timeout, local_address, socket_options)

    async def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> socket.socket:
        """As `Tunnel.create_connection`, but the socket does not block, as `asyncio.open_connection(sock=…)`,
        `loop.create_connection(sock=…)` and `trio.socket.from_stdlib_socket` want it."""
        from httpx_wireguard._bridge import TunnelSocket, local_address_of, seconds_of
        from httpx_wireguard._drivers.loops import running_library

        interface, driver = self._running()
        seconds, local = seconds_of(timeout), local_address_of(source_address)
        stream = await interface.connect_tcp(driver, *address[:2], seconds, local, socket_options)
        kind = socket.socket if running_library() == "trio" else TunnelSocket  # trio takes no subclass
        sock = self._own_bridges(interface).open(stream, kind)
        sock.setblocking(False)
        return sock

    def _own_bridges(self, interface: Interface) -> Bridges:
        from httpx_wireguard._bridge import loop_bridges, thread_bridges
        from httpx_wireguard._drivers.loops import LoopDriver

        driver = interface.driver
        if isinstance(driver, SyncDriver):
            return thread_bridges(driver)
        assert isinstance(driver, LoopDriver)
        if self._bridges is None or self._bridges.driver is not driver:
            self._bridges = loop_bridges(driver)
        return self._bridges

    def _abandon(self) -> None:
        super()._abandon()
        if self._bridges is not None:
            self._bridges.abandon()

    async def listen_tcp(self, port: int, backlog: int = 128) -> AsyncListener:
        """As `Tunnel.listen_tcp`."""
        interface, driver = self._running()
        return await interface.listen_tcp(driver, port, backlog)

    async def open_udp(self, local_port: int = 0, remote: tuple[str, int] | None = None) -> AsyncUdpEndpoint:
        """As `Tunnel.open_udp`."""
        interface, driver = self._running()
        return await interface.open_udp(driver, local_port, remote)

    async def resolve(self, host: str, timeout: float | None = None) -> tuple[str, ...]:
        """As `Tunnel.resolve`."""
        interface, driver = self._running()
        return await interface.resolve(driver, host, timeout)

    async def ping(self, address: str, timeout: float | None = 5.0, size: int = 56) -> float:
        """As `Tunnel.ping`."""
        interface, driver = self._running()
        return await interface.ping(driver, address, timeout, size)


def _loop_driver() -> DriverFactory:
    """The driver for the event loop that is running."""
    from httpx_wireguard._drivers.loops import running_library

    if running_library() == "trio":
        from httpx_wireguard._drivers.trio import TrioDriver

        return TrioDriver
    from httpx_wireguard._drivers.asyncio import AsyncioDriver

    return AsyncioDriver


def _close_all() -> None:
    drivers = [tunnel._interface.driver for tunnel in list(_running) if tunnel._interface is not None]
    for driver in drivers:
        driver.prepare_exit()
    for driver in drivers:
        driver.close(TunnelClosed("the interpreter ends"))


def _abandon_all() -> None:
    for tunnel in list(_running):
        try:
            tunnel._abandon()
        except Exception:  # the next one's keys have to go all the same
            _log.exception("%r was not given up in the forked process", tunnel)
    _running.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
