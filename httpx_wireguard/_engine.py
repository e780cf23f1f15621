"""WireGuard and the IP host glued together: the only thing that a driver sees.

No clock, no randomness, no I/O: `now` is monotonic seconds on the driver's clock. After any call a driver pumps:
it sends `datagrams_to_send`, arms its timer with `next_timeout` and wakes the sockets of `take_woken`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from httpx_wireguard._config import Config
from httpx_wireguard._errors import (
    EndpointError,
    EndpointUnreachable,
    HandshakeFailed,
    HandshakeTimeout,
    NoRoute,
    TunnelClosed,
    WireGuardError,
    renewed,
)
from httpx_wireguard._netstack.addresses import IpAddress, pack
from httpx_wireguard._netstack.congestion import CONTROLS, DEFAULT_CONTROL
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire.ecn import NOT_ECT
from httpx_wireguard._wireguard.device import DatagramRun, Device
from httpx_wireguard._wireguard.entropy import Entropy
from httpx_wireguard._wireguard.peer import Peer

if TYPE_CHECKING:  # imported by the stack when first opened
    from httpx_wireguard._netstack.listener import TcpListener
    from httpx_wireguard._netstack.ping import PingSocket
    from httpx_wireguard._netstack.stack import Socket
    from httpx_wireguard._netstack.udp import UdpSocket

__all__ = ["CONTROLS", "DEFAULT_CONTROL", "Engine", "readable_endpoint"]

SOCKET_CAPACITY = 1 << 17  # bytes; what a UDP socket with Linux' default buffer holds of full-size datagrams

_log = logging.getLogger("httpx_wireguard.engine")


class Engine:
    """One WireGuard interface and the host behind it."""

    def __init__(
        self,
        config: Config,
        entropy: Entropy,
        *,
        socket_capacity: int = SOCKET_CAPACITY,
        congestion_control: str = DEFAULT_CONTROL,
    ) -> None:
        """
        Args:
            config: a valid configuration; endpoints are set on `device.peers` once they are resolved.
            entropy: randomness and the wall clock.
            socket_capacity: bytes that the UDP socket holds while its driver is busy; bounds the TCP windows.
            congestion_control: a name in `CONTROLS`, for new TCP connections.
        """
        self.config = config
        self.device = Device(config, entropy)
        addresses = [interface.ip.packed for interface in config.address]
        self.stack = Stack(addresses, config.mtu, entropy, socket_capacity, congestion_control)
        self.closed_by: WireGuardError | None = None  # why every call fails now

    # -- datagrams and time

    def receive_datagrams(
        self, data: memoryview, segment_size: int, source: tuple[Any, ...], now: float, *, ecn: int = NOT_ECT
    ) -> None:
        """One read of the UDP socket: datagrams of `segment_size` bytes each, the last may be shorter.

        All of them came with the codepoint `ecn` (RFC 3168 section 5). Never raises on what the network sent; drops
        are counted by reason.
        """
        packets = self.device.receive_datagrams(data, segment_size, source, now, ecn=ecn)
        if packets:
            self.stack.receive_packets(packets, now)

    @property
    def output_due(self) -> bool:
        """Whether `datagrams_to_send` has anything to do."""
        stack = self.stack
        return bool(stack.touched or stack.outbox or self.device.queue.runs)

    def datagrams_to_send(self, now: float) -> list[DatagramRun]:
        """Everything due, in runs ready for one segmented send each."""
        device = self.device
        for destination, packets in self.stack.packets_to_send(now):
            peer = device.route(destination)
            if peer is None:
                self.stack.drop("no route")
            else:
                device.send_packets(peer, packets, now)
        return device.datagrams_to_send()

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next: monotonic seconds, perhaps in the past; None when no timer runs."""
        device, stack = self.device.next_timeout(), self.stack.next_timeout()
        if device is None or stack is None:
            return stack if device is None else device
        return min(device, stack)

    def handle_timeout(self, now: float) -> None:
        """Run the timers that are due; spurious calls are no-ops."""
        self.device.handle_timeout(now)
        self.stack.handle_timeout(now)
        given_up = self.device.take_given_up()
        if given_up:
            for peer in given_up:
                _log.warning("%s", self.explain(peer, now))
            self.stack.fail_opening(lambda address: self._opening_error(address, given_up, now))

    def _opening_error(self, address: IpAddress, given_up: list[Peer], now: float) -> WireGuardError | None:
        peer = self.device.route(address)
        return self.explain(peer, now) if peer in given_up else None

    # -- sockets

    def open_tcp(self, remote: tuple[str, int], now: float, local: str | None = None) -> TcpConnection:
        """Start a connection to (IP address, port), perhaps from one of the interface's own addresses.

        Raises:
            NoRoute: no peer's AllowedIPs cover the address, or no address of ours is of its family.
            EndpointError: the peer has no endpoint and has not been heard of.
        """
        address = self._routed(remote[0])
        return self.stack.open_tcp((address, remote[1]), now, None if local is None else pack(local))

    def listen_tcp(self, port: int, backlog: int = 128) -> TcpListener:
        """Accept connections on `port` of all our addresses; 0 picks a free one."""
        self._check_open()
        return self.stack.listen_tcp(port, backlog)

    def open_udp(self, local_port: int = 0, remote: tuple[str, int] | None = None) -> UdpSocket:
        """A UDP socket; with a `remote` it sends there and hears nobody else. Raises as `open_tcp`."""
        self._check_open()
        return self.stack.open_udp(local_port, None if remote is None else (self._routed(remote[0]), remote[1]))

    def send_udp(self, socket: UdpSocket, data: bytes, now: float, to: tuple[str, int] | None = None) -> None:
        """Send one datagram to the socket's remote, or to (IP address, port). Raises as `open_tcp`; MessageTooLong."""
        self._check_open()
        socket.send(data, now, None if to is None else (self._routed(to[0]), to[1]))

    def open_ping(self, remote: str) -> PingSocket:
        """An echo socket towards an IP address. Raises as `open_tcp`."""
        return self.stack.open_ping(self._routed(remote))

    def take_woken(self) -> list[Socket]:
        """Sockets whose readiness may have changed since the last call."""
        return self.stack.take_woken()

    def _check_open(self) -> None:
        if self.closed_by is not None:
            raise renewed(self.closed_by)

    def _routed(self, host: str) -> IpAddress:
        self._check_open()
        address = pack(host)
        peer = self.device.route(address)
        if peer is None:
            raise NoRoute(f"no peer's AllowedIPs cover {host}; add it to AllowedIPs = of the peer behind it", host)
        if peer.endpoint is None:
            raise EndpointError(f"the peer for {host} has no Endpoint = and has not been heard of yet")
        return address

    def on_send_error(self, endpoint: tuple[Any, ...], error: OSError) -> None:
        """The system refused to send, or the network sent a datagram back: remembered for `explain`, never fatal."""
        self.device.on_send_error(endpoint, error)

    # -- diagnosis

    def explain_silence(self, host: str, now: float) -> WireGuardError | None:
        """Why nothing comes back from an IP address: the tunnel's fault if there is no session, else None."""
        peer = self.device.route(pack(host))
        return None if peer is None or peer.has_session(now) else self.explain(peer, now)

    def explain(self, peer: Peer, now: float) -> WireGuardError:
        """What is known of a peer without a session, as an error."""
        endpoint = readable_endpoint(peer.endpoint)
        seconds = now - peer.first_attempt if peer.first_attempt is not None else 0.0
        if peer.responses_rejected:
            return HandshakeFailed(
                f"{endpoint} answers the handshake, but its answer does not decrypt; "
                "compare PresharedKey =, and both sides' PrivateKey = and PublicKey ="
            )
        if peer.last_error is not None:
            return EndpointUnreachable(
                f"datagrams to {endpoint} come back: {peer.last_error}; "
                "compare Endpoint = with the server's ListenPort ="
            )
        return HandshakeTimeout(
            endpoint,
            peer.attempts,
            seconds,
            "the server is down or unreachable, or does not know this key: compare Endpoint = and both PublicKey =",
        )

    def close(self, now: float, error: WireGuardError | None = None) -> None:
        """Reset the connections, fail every waiter with `error`; `datagrams_to_send` gives the farewell.

        Call `destroy_keys` when that is sent.
        """
        if self.closed_by is None:
            self.closed_by = error or TunnelClosed("the tunnel is closed; open a new one")
            self.stack.close(now, self.closed_by)

    def destroy_keys(self) -> None:
        """Forget all key material; nothing can be sent or received any more."""
        self.device.close()


def readable_endpoint(endpoint: tuple[Any, ...] | None) -> str:
    """A UDP socket address as "host:port" or "[host]:port"."""
    if endpoint is None:
        return "a peer without endpoint"
    host, port = endpoint[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
