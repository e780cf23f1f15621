"""Hosts with a TCP, bare or behind WireGuard, and applications on them, for the simulated network."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._engine import Engine
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.congestion import DEFAULT_CONTROL
from httpx_wireguard._netstack.listener import TcpListener
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wire.tcp import OPTION_NO_OPERATION, Flags
from httpx_wireguard._wireguard.crypto import PrivateKey
from tests.simnet import Bottleneck, Link, Network, SeededEntropy
from tests.wireguard_net import split

CLIENT, SERVER = ("10.0.0.2", "fd00::2"), ("10.0.0.1", "fd00::1")
PACKED = {  # by IP version: host 0, the client, and host 1, the server
    4: (bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])),
    6: (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01"),
}
KEYS = (b"client".ljust(32, b"."), b"server".ljust(32, b"."))
ENDPOINTS = (("192.0.2.1", 40000), ("192.0.2.2", 51820))
SOCKET_CAPACITY = 1 << 17  # bytes; as Engine has it
_CHUNK = bytes(1 << 16)


def packed(index: int, version: int) -> bytes:
    """The address of a host: the first two are client and server, more clients follow."""
    return PACKED[version][index] if index < 2 else PACKED[version][0][:-2] + (index + 1).to_bytes(2, "big")


class BaseHost:
    """What the kinds of hosts have in common: applications that act when a socket of theirs is woken."""

    stack: Stack

    def __init__(self, index: int) -> None:
        self.index = index
        self.sent = 0  # packets
        self.steps: dict[object, Callable[[float], None]] = {}  # by socket

    def next_timeout(self) -> float | None:
        return self.stack.next_timeout()

    def wake(self, now: float) -> None:
        """Let the applications act whose sockets may be ready."""
        for socket in self.stack.take_woken():
            step = self.steps.get(socket)
            if step is not None:
                step(now)


class StackHost(BaseHost):
    """A host whose packets travel bare."""

    def __init__(self, index: int, mtu: int = 1420, control: str = DEFAULT_CONTROL) -> None:
        super().__init__(index)
        self.mtu = mtu
        self.addresses = [packed(index, 4), packed(index, 6)]
        self.stack = new_stack(self.addresses, mtu, SeededEntropy(index), control)
        self.stripped: tuple[int, ...] = ()  # TCP options that a middlebox takes out of our SYNs

    def connect(self, version: int, port: int, now: float, to: int = 1) -> TcpConnection:
        return self.stack.open_tcp((packed(to, version), port), now)

    def listen(self, port: int, backlog: int = 128) -> TcpListener:
        return self.stack.listen_tcp(port, backlog)

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None:
        self.stack.receive_packets(packets, now)
        self.wake(now)

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        out: list[tuple[Hashable, list[bytes]]] = []
        while runs := self.stack.packets_to_send(now):
            out += runs
        for _, packets in out:
            self.sent += len(packets)
            assert max(map(len, packets)) <= self.mtu
            if self.stripped:
                packets[:] = [without_options(packet, self.stripped) for packet in packets]
        return out

    def handle_timeout(self, now: float) -> None:
        self.stack.handle_timeout(now)
        self.wake(now)


def new_stack(addresses: Sequence[bytes], mtu: int, entropy: SeededEntropy, control: str) -> Stack:
    """A stack with a congestion control by name: the one place that knows how to ask for it."""
    return Stack(addresses, mtu, entropy, SOCKET_CAPACITY, control)


class EngineHost(BaseHost):
    """A host behind WireGuard: host 0 or 1 of two."""

    def __init__(self, index: int, mtu: int = 1420) -> None:
        super().__init__(index)
        other = 1 - index
        peer = PeerConfig(PrivateKey(KEYS[other]).public, ",".join((SERVER, CLIENT)[index]), "192.0.2.9:9")
        inner = tuple(f"{address}/64" if ":" in address else f"{address}/24" for address in (CLIENT, SERVER)[index])
        self.addresses = [ENDPOINTS[index]]
        self.engine = Engine(Config(KEYS[index], inner, (peer,), mtu=mtu), SeededEntropy(index + 1))
        self.engine.device.peers[0].endpoint = ENDPOINTS[other]
        self.stack = self.engine.stack

    def connect(self, version: int, port: int, now: float) -> TcpConnection:
        return self.engine.open_tcp((SERVER[version == 6], port), now)

    def listen(self, port: int, backlog: int = 128) -> TcpListener:
        return self.engine.listen_tcp(port, backlog)

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None:
        assert isinstance(source, tuple)
        for packet in packets:
            self.engine.receive_datagrams(memoryview(packet), len(packet), source, now)
        self.wake(now)

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        out: list[tuple[Hashable, list[bytes]]] = []
        while runs := self.engine.datagrams_to_send(now):
            out += [(run.endpoint, split(run.buffers, run.segment_size)) for run in runs]
        self.sent += sum(len(datagrams) for _, datagrams in out)
        return out

    def next_timeout(self) -> float | None:
        return self.engine.next_timeout()

    def handle_timeout(self, now: float) -> None:
        self.engine.handle_timeout(now)
        self.wake(now)


def without_options(packet: bytes, kinds: tuple[int, ...]) -> bytes:
    """An IPv4 packet whose TCP options of these kinds are overwritten, if it is a SYN."""
    if not packet[33] & Flags.SYN:
        return packet
    edited, position = bytearray(packet), 40
    while position < 20 + (packet[32] >> 4) * 4:
        length = 1 if packet[position] == OPTION_NO_OPERATION else packet[position + 1]
        if packet[position] in kinds:
            edited[position : position + length] = bytes([OPTION_NO_OPERATION]) * length
        position += length
    return bytes(edited)


TcpHost = StackHost | EngineHost


class End:
    """An application: writes its data, closes, reads to the end."""

    def __init__(self, host: BaseHost, connection: TcpConnection, data: bytes, after: int = 0) -> None:
        """`after`: bytes that it has to read before it writes, as a server does."""
        self.connection = connection
        self.expected = data
        self.received = bytearray()
        self.ended = False
        self.error: WireGuardError | None = None
        self._unsent = memoryview(data)
        self._after = after
        host.steps[connection] = self.step

    def step(self, now: float) -> None:
        connection = self.connection
        try:
            while data := connection.receive(1 << 16, now):
                self.received += data
            if len(self.received) >= self._after and connection.connected:
                self._write(now)
        except WireGuardError as error:
            self.error = error
            return
        if connection.at_eof and not self._unsent and not self.ended:
            self.ended = True
            connection.close(now)

    def _write(self, now: float) -> None:
        while self._unsent and (taken := self.connection.send(self._unsent, now)):
            self._unsent = self._unsent[taken:]
        if not self._unsent:
            self.connection.shutdown_write(now)


class Exchange:
    """Connections from host 0 to host 1, with different data each way."""

    def __init__(
        self,
        hosts: Sequence[TcpHost],
        network: Network,
        sizes: Sequence[tuple[int, int]],
        version: int = 4,
        *,
        dialogue: bool = False,
    ) -> None:
        """`sizes`: bytes up and down, for each connection; `dialogue`: a server writes once it has read all."""
        self.hosts, self.network, self.sizes, self.dialogue = hosts, network, sizes, dialogue
        self.listener = hosts[1].listen(80)
        hosts[1].steps[self.listener] = self._accept
        rng = random.Random(7)
        self.clients = [
            End(hosts[0], hosts[0].connect(version, 80, network.now), rng.randbytes(upload)) for upload, _ in sizes
        ]
        self._numbers = {end.connection.local: number for number, end in enumerate(self.clients)}
        self.servers: dict[tuple[str, int], End] = {}

    def _accept(self, now: float) -> None:
        while (accepted := self.listener.accept(now)) is not None:
            number = self._numbers[accepted.remote]
            upload, download = self.sizes[number]
            data = random.Random(number).randbytes(download)
            end = End(self.hosts[1], accepted, data, upload if self.dialogue else 0)
            self.servers[accepted.remote] = end
            end.step(now)

    @property
    def ends(self) -> list[End]:
        return [*self.clients, *self.servers.values()]

    def pair(self, client: End) -> list[End]:
        """A client's end and, once it is accepted, the server's."""
        server = self.servers.get(client.connection.local)
        return [client] if server is None else [client, server]

    def done(self) -> bool:
        return len(self.servers) == len(self.clients) and all(end.ended for end in self.ends)

    def run(self, seconds: float = 600.0) -> float:
        """Until every byte is there; returns how long it took."""
        start = self.network.now
        assert self.network.watch(self.done, seconds), [(end.connection, end.error) for end in self.ends]
        self.check_bytes()
        return self.network.now - start

    def check_bytes(self) -> None:
        """What was written is what was read."""
        for client in self.clients:
            server = self.servers[client.connection.local]
            assert bytes(server.received) == client.expected
            assert bytes(client.received) == server.expected

    def check_nothing_left(self, seconds: float = 130.0) -> None:
        """After TIME-WAIT no host knows of any connection, no timer runs for one, and no byte is held for one."""
        self.network.advance(seconds)
        for host in self.hosts:
            assert host.stack.connection_count == 0
            assert host.stack.next_timeout() is None
        for end in self.ends:
            sender, receiver = end.connection.sender, end.connection.receiver
            assert (len(sender.queue), receiver.buffered, receiver.queue.bytes_held) == (0, 0, 0)


class Flow:
    """A connection of host `client` to host `server` on which one side writes for ever, and the other counts."""

    def __init__(self, network: Network, client: StackHost, server: StackHost, port: int, *, download: bool) -> None:
        self.received = 0
        self._reader, self._writer = (client, server) if download else (server, client)
        self._listener = server.listen(port)
        server.steps[self._listener] = self._accept
        self._server = server
        self._start(client, client.connect(4, port, network.now, server.index))

    def _accept(self, now: float) -> None:
        connection = self._listener.accept(now)
        if connection is not None:
            self._start(self._server, connection)
            self._server.steps[connection](now)

    def _start(self, host: StackHost, connection: TcpConnection) -> None:
        if host is self._writer:
            host.steps[connection] = lambda now: self._write(connection, now)
        else:
            host.steps[connection] = lambda now: self._read(connection, now)

    def _write(self, connection: TcpConnection, now: float) -> None:
        while connection.writable:
            connection.send(_CHUNK, now)

    def _read(self, connection: TcpConnection, now: float) -> None:
        while data := connection.receive(1 << 20, now):
            self.received += len(data)


def bare(*links: Link, seed: int = 1, control: str = DEFAULT_CONTROL) -> tuple[list[StackHost], Network]:
    """A client and a server."""
    hosts = [StackHost(0, control=control), StackHost(1, control=control)]
    return hosts, Network(hosts, *links, seed=seed)


def tunnelled(*links: Link, seed: int = 1, mtu: int = 1420) -> tuple[list[EngineHost], Network]:
    """A client and a server that speak through WireGuard."""
    hosts = [EngineHost(0, mtu), EngineHost(1, mtu)]
    return hosts, Network(hosts, *links, seed=seed)


def dumbbell(
    senders: Sequence[tuple[str, float]], bottleneck: Bottleneck, *, apart: float = 0.1, seed: int = 1
) -> tuple[list[Flow], Network]:
    """Clients of their own that upload to one server through one bottleneck.

    Args:
        senders: the congestion control and the round trip in seconds of each; acknowledgments come with a little
            jitter, or equal flows would meet the full queue by turns that never change.
        apart: seconds from one's beginning to the next one's.
    """
    hosts = [StackHost(1), *(StackHost(2 + number, control=control) for number, (control, _) in enumerate(senders))]
    links = [Link(delay=rtt / 2, bottleneck=bottleneck, tick=0.001) for _, rtt in senders]
    network = Network(hosts, Link(), *links, seed=seed)
    flows: list[Flow] = []

    def start(number: int) -> None:
        flows.append(Flow(network, hosts[number + 1], hosts[0], 1000 + number, download=False))

    for number, (_, rtt) in enumerate(senders):
        network.join(0, number + 1, Link(delay=rtt / 2, jitter=rtt / 20, tick=0.001))
        network.at(number * apart, partial(start, number))
    return flows, network
