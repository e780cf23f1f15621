"""Devices joined by an in-memory UDP network in virtual time, for tests of the WireGuard protocol."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.device import Device, Peer, SocketAddress
from tests.simnet import Link, Network, SeededEntropy

DELAY = 0.01  # seconds from host to host


def private_key(name: str) -> bytes:
    """A key that is the same in every run."""
    return name.encode().ljust(32, b".")


def public_key(name: str) -> bytes:
    return PrivateKey(private_key(name)).public


def ipv4_packet(source: str, destination: str, length: int = 60, fill: int = 0xAB) -> bytes:
    """A packet with all that the device looks at: version, total length, addresses."""
    addresses = bytes(map(int, source.split("."))) + bytes(map(int, destination.split(".")))
    return b"\x45\x00" + length.to_bytes(2, "big") + bytes(8) + addresses + bytes([fill]) * (length - 20)


def split(buffers: Iterable[bytes], segment_size: int) -> list[bytes]:
    """The datagrams of a run."""
    data = b"".join(buffers)
    return [data[at : at + segment_size] for at in range(0, len(data), segment_size)]


def take_datagrams(device: Device) -> list[bytes]:
    return [datagram for run in device.datagrams_to_send() for datagram in split(run.buffers, run.segment_size)]


def receive(device: Device, datagram: bytes, source: SocketAddress, now: float) -> list[bytes]:
    return device.receive_datagrams(memoryview(datagram), len(datagram), source, now)


@dataclass(eq=False)
class Host:
    """A device and the address where the network delivers to it."""

    name: str
    device: Device
    address: SocketAddress
    inner: str  # its address inside the tunnel
    entropy: SeededEntropy
    net: Net
    received: list[bytes] = field(default_factory=list)

    def peer(self, other: Host) -> Peer:
        key = public_key(other.name)
        return next(peer for peer in self.device.peers if peer.public_key == key)

    @property
    def addresses(self) -> list[SocketAddress]:
        return [self.address]

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None:
        assert isinstance(source, tuple)
        for data in packets:
            self.received += receive(self.device, data, source, now)

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        out: list[tuple[Hashable, list[bytes]]] = []
        for run in self.device.datagrams_to_send():
            sent = [Sent(now, self.name, data) for data in split(run.buffers, run.segment_size)]
            self.net.log += sent
            out.append((run.endpoint, [each.data for each in sent if self.net.passes(each)]))
        return out

    def next_timeout(self) -> float | None:
        return self.device.next_timeout()

    def handle_timeout(self, now: float) -> None:
        self.device.handle_timeout(now)


@dataclass
class Sent:
    """One datagram that a host handed to the network."""

    time: float
    sender: str
    data: bytes

    @property
    def kind(self) -> int:
        return self.data[0]


class Net(Network):
    """Delivers datagrams after `DELAY`, each that `passes`, and keeps a log of all."""

    def __init__(self) -> None:
        super().__init__([], Link(delay=DELAY))
        self.log: list[Sent] = []
        self.passes: Callable[[Sent], bool] = lambda sent: True

    def add(self, name: str, inner: str, *peers: PeerConfig, seed: int, load: int = 100) -> Host:
        """Add a host; it is found at 192.0.2.<number>."""
        entropy = SeededEntropy(seed)
        config = Config(private_key=private_key(name), address=(f"{inner}/32",), peers=peers)
        address = (f"192.0.2.{len(self.hosts) + 1}", 51820)
        host = Host(name, Device(config, entropy, load), address, inner, entropy, self)
        self.attach(host)
        return host

    def send(self, sender: Host, target: Host, *, length: int = 60, fill: int = 0xAB) -> bytes:
        """Send one packet inside the tunnel and return it."""
        packet = ipv4_packet(sender.inner, target.inner, length, fill)
        sender.device.send_packets(sender.peer(target), [packet], self.now)
        self.collect()
        return packet

    def initiate(self, sender: Host, target: Host) -> None:
        sender.device.initiate(sender.peer(target), self.now)
        self.collect()

    def inject(self, datagram: bytes, source: SocketAddress, target: Host) -> list[bytes]:
        """Deliver a datagram at once, whoever sent it."""
        packets = receive(target.device, datagram, source, self.now)
        target.received += packets
        self.collect()
        return packets

    def move(self, host: Host, address: SocketAddress) -> None:
        """Give a host a new outer address, as a NAT or another network does."""
        host.address = address
        self.rebind(self.hosts.index(host), address)

    def sent(self, kind: int, sender: Host | None = None) -> list[Sent]:
        return [s for s in self.log if s.kind == kind and (sender is None or s.sender == sender.name)]

    def times(self, kind: int, sender: Host) -> list[float]:
        """When `sender` sent messages of `kind`, in seconds since the network began."""
        return [s.time - 1000.0 for s in self.sent(kind, sender)]


def two_hosts(
    *,
    keepalive: int = 0,
    psk: tuple[bytes | None, bytes | None] = (None, None),
    load: int = 100,
    both_know_endpoints: bool = False,
) -> tuple[Net, Host, Host]:
    """A client that knows the server's endpoint, and a server that has to learn the client's."""
    net = Net()
    server_config = PeerConfig(
        public_key=public_key("server"),
        allowed_ips=("10.0.0.2/32",),
        endpoint="192.0.2.2:51820",
        preshared_key=psk[0],
        persistent_keepalive=keepalive,
    )
    client_config = PeerConfig(public_key=public_key("client"), allowed_ips=("10.0.0.1/32",), preshared_key=psk[1])
    client = net.add("client", "10.0.0.1", server_config, seed=1, load=load)
    server = net.add("server", "10.0.0.2", client_config, seed=2, load=load)
    client.peer(server).endpoint = server.address
    if both_know_endpoints:
        server.peer(client).endpoint = client.address
    return net, client, server


def connected(**options: int) -> tuple[Net, Host, Host]:
    """Two hosts with a session that both may use; the client is the initiator. 0.1 s have passed."""
    net, client, server = two_hosts(keepalive=options.get("keepalive", 0), load=options.get("load", 100))
    net.initiate(client, server)
    net.advance(0.1)
    assert client.peer(server).has_session(net.now)
    assert server.peer(client).has_session(net.now)
    return net, client, server
