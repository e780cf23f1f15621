"""A simulated network in virtual time: loss, bursts, delay, jitter, reordering, duplicates, corruption, queues, MTUs.

Hosts send to addresses. A `Link` says what happens to packets one way between two hosts; every pair of hosts that
speak has a `Path` each way, which is a link in use: its queue, and what it counted. Everything is drawn from one seed,
and one thread of events carries it all, so a run repeats itself exactly.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from httpx_wireguard._deadlines import Deadlines
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP
from httpx_wireguard._wire.checksum import checksum, pseudo_header_sum
from httpx_wireguard._wire.icmp import packet_too_big
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header

STANDSTILL = 10_000  # times that something happens while the clock stays, before that is called an endless loop


class SeededEntropy:
    """Deterministic randomness and wall clock for a core under test."""

    def __init__(self, seed: int, wall_clock: float = 1_700_000_000.0) -> None:
        self._random = random.Random(seed)
        self.wall_clock = wall_clock

    def random(self, n: int) -> bytes:
        return self._random.randbytes(n)

    def tai64n(self) -> bytes:
        self.wall_clock += 0.1
        seconds = int(self.wall_clock)
        return (2**62 + 10 + seconds).to_bytes(8, "big") + int((self.wall_clock - seconds) * 1e9).to_bytes(4, "big")


# -- what links are like: parameters, which may change while packets fly


@dataclass(frozen=True, slots=True)
class Bursts:
    """Loss by the model of Gilbert and Elliott: none in a good state, and a bad one. Probabilities per packet."""

    enter: float  # p: from good to bad
    leave: float  # r: from bad to good
    loss: float = 1.0  # while it is bad


@dataclass(slots=True)
class Bottleneck:
    """A transmitter and the drop-tail queue before it, for links to share: those that hold the same object."""

    rate: float  # bytes a second; 0: no limit
    queue: int = 1 << 20  # bytes that wait, without the packet that is being sent; more are dropped
    mark_above: int | None = None  # bytes that wait, beyond which ECN-capable packets are marked (RFC 3168)


@dataclass(slots=True)
class Link:
    """One direction of a path. Times in seconds, probabilities 0..1. May serve many pairs: each gets its own queue."""

    delay: float = 0.01
    jitter: float = 0.0  # up to so much more, evenly
    fifo: bool = True  # who is late holds up those behind; else jitter reorders
    reorder: float = 0.0  # that a packet is late by up to `reorder_delay`, and others overtake it
    reorder_delay: float = 0.01
    loss: float = 0.0
    bursts: Bursts | None = None  # beside `loss`
    affects: Callable[[bytes], bool] | None = None  # which packets may be lost by these two; None: all
    duplicate: float = 0.0
    corrupt: float = 0.0  # that one bit is turned over
    rate: float = 0.0  # bytes a second; 0: no limit
    queue: int = 1 << 20  # bytes that wait, without the packet that is being sent; more are dropped
    mark_above: int | None = None  # bytes that wait, beyond which ECN-capable packets are marked (RFC 3168)
    bottleneck: Bottleneck | None = None  # instead of these three
    mtu: int = 65535  # bytes; larger packets vanish
    answers: bool = False  # then a router half-way says "packet too big", and they are not counted as lost
    up: bool = True  # else everything vanishes
    tick: float = 0.0  # arrivals wait for a multiple of it, as with a driver that reads batches, or Wi-Fi frames


class Host(Protocol):
    """What the network drives."""

    @property
    def addresses(self) -> Sequence[Hashable]:
        """Where packets for it go; the first one is seen as the source of its own."""

    def receive(self, packets: list[bytes], source: Hashable, now: float) -> None: ...

    def to_send(self, now: float) -> list[tuple[Hashable, list[bytes]]]:
        """Packets due, by the address that they go to."""

    def next_timeout(self) -> float | None: ...

    def handle_timeout(self, now: float) -> None: ...


# -- links in use


class Queue:
    """A transmitter that sends one packet after the other, and those that wait for it."""

    __slots__ = ("_network", "_parameters", "_waiting", "busy", "dropped", "length", "peak")

    def __init__(self, network: Network, parameters: Link | Bottleneck) -> None:
        self._network = network
        self._parameters = parameters
        self._waiting: deque[tuple[Path, bytes, Hashable]] = deque()
        self.busy = False
        self.length = 0  # bytes that wait
        self.peak = 0  # the most that there were
        self.dropped = 0  # packets

    @property
    def in_use(self) -> bool:
        return self.busy or self._parameters.rate > 0

    def push(self, path: Path, packet: bytes, source: Hashable) -> bool:
        """Take a packet; returns whether there was room for it."""
        if not self.busy:
            self._transmit(path, packet, source)
            return True
        parameters = self._parameters
        if self.length + len(packet) > parameters.queue:
            self.dropped += 1
            return False
        if parameters.mark_above is not None and self.length > parameters.mark_above:
            packet = congestion_experienced(packet)
        self._waiting.append((path, packet, source))
        self.length += len(packet)
        if self.length > self.peak:
            self.peak = self.length
        return True

    def _transmit(self, path: Path, packet: bytes, source: Hashable) -> None:
        self.busy = True
        rate = self._parameters.rate
        end = self._network.now + (len(packet) / rate if rate else 0.0)
        self._network.schedule(end, self._on_transmitted, path, packet, source)

    def _on_transmitted(self, path: Path, packet: bytes, source: Hashable) -> None:
        self.busy = False
        path.fly(packet, source)
        if self._waiting:
            following = self._waiting.popleft()
            self.length -= len(following[1])
            self._transmit(*following)


class Path:
    """A link in use, from one host to another."""

    __slots__ = ("_bad", "_batch", "_last_arrival", "_network", "_target", "link", "lost", "queue", "sender", "sent")

    def __init__(self, network: Network, link: Link, queue: Queue | None, sender: int, target: int) -> None:
        self._network = network
        self.link = link
        self.queue = queue or Queue(network, link)
        self.sender = sender
        self._target = target
        self._bad = False  # the state of `Link.bursts`
        self._last_arrival = 0.0
        self._batch: tuple[float, Hashable, list[bytes]] | None = None  # the last one under way
        self.sent = self.lost = 0  # packets

    def send(self, packets: list[bytes], source: Hashable) -> None:
        link, rng = self.link, self._network.random
        queue = self.queue
        self.sent += len(packets)
        for packet in packets:
            if not link.up or self._loses(packet):
                self._lose()
                continue
            if len(packet) > link.mtu:
                if link.answers:
                    self._network.answer(self.sender, too_big(link.mtu, packet), link.delay)
                else:
                    self._lose()
                continue
            if link.corrupt and rng.random() < link.corrupt:
                packet = with_a_bit_turned(packet, rng)
                self._network.lost_at.append(self._network.now)
            copies = 2 if link.duplicate and rng.random() < link.duplicate else 1
            for _ in range(copies):
                if not queue.in_use:
                    self.fly(packet, source)
                elif not queue.push(self, packet, source):
                    self._lose()

    def _loses(self, packet: bytes) -> bool:
        link, rng = self.link, self._network.random
        if (not link.loss and link.bursts is None) or (link.affects is not None and not link.affects(packet)):
            return False
        lost = rng.random() < link.loss
        bursts = link.bursts
        if bursts is not None:
            self._bad = rng.random() >= bursts.leave if self._bad else rng.random() < bursts.enter
            lost = lost or (self._bad and rng.random() < bursts.loss)
        return lost

    def _lose(self) -> None:
        self.lost += 1
        self._network.lost_at.append(self._network.now)

    def fly(self, packet: bytes, source: Hashable) -> None:
        """It left the transmitter: the rest of the way. Those that arrive together arrive in one batch."""
        link, network = self.link, self._network
        arrival = network.now + link.delay
        if link.jitter:
            arrival += network.random.random() * link.jitter
        if link.reorder and network.random.random() < link.reorder:
            arrival += network.random.random() * link.reorder_delay
        elif link.fifo:
            arrival = self._last_arrival = max(arrival, self._last_arrival)
        if link.tick:
            arrival = -(-arrival // link.tick) * link.tick
        batch = self._batch
        if batch is not None and batch[0] == arrival and batch[1] == source:
            batch[2].append(packet)
        else:
            self._batch = batch = arrival, source, [packet]
            network.schedule(arrival, self._arrive, batch)

    def _arrive(self, batch: tuple[float, Hashable, list[bytes]]) -> None:
        if self._batch is batch:
            self._batch = None
        self._network.deliver(self._target, batch[2], batch[1])


class Network:
    """Hosts joined by links, in virtual time."""

    def __init__(self, hosts: Sequence[Host], *links: Link, seed: int = 0) -> None:
        """`links[i]` carries what host i sends; the last one serves the rest. See `join` for exceptions."""
        self.hosts: list[Host] = []
        self.links = list(links) or [Link()]
        self.now = 1000.0
        self.random = random.Random(seed)
        self.lost_at: list[float] = []  # when packets were lost or spoilt, of all paths
        self._by_address: dict[Hashable, int] = {}
        self._sources: list[Hashable] = []
        self._paths: dict[tuple[int, int], Path] = {}
        self._shared: dict[int, Queue] = {}  # by the identity of their `Bottleneck`
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self._deadlines: Deadlines[int] = Deadlines()
        self._touched: dict[int, None] = {}  # hosts that something happened to
        self._standstill = 0  # instants since the clock moved
        for host in hosts:
            self.attach(host)

    # -- what it is made of

    def attach(self, host: Host) -> None:
        self.hosts.append(host)
        self._sources.append(host.addresses[0])
        self._by_address.update(dict.fromkeys(host.addresses, len(self.hosts) - 1))

    def join(self, sender: int, target: int, link: Link) -> None:
        """Another link than the sender's general one, to one target."""
        self._paths[sender, target] = self._path(sender, target, link)

    def path(self, sender: int, target: int) -> Path:
        """The link in use from one host to another."""
        if (sender, target) not in self._paths:
            self.join(sender, target, self.links[min(sender, len(self.links) - 1)])
        return self._paths[sender, target]

    def _path(self, sender: int, target: int, link: Link) -> Path:
        shared = None
        if link.bottleneck is not None:
            shared = self._shared.setdefault(id(link.bottleneck), Queue(self, link.bottleneck))
        return Path(self, link, shared, sender, target)

    def rebind(self, host: int, address: Hashable) -> None:
        """A NAT gives a host another source address; nobody is reached by the old one any more.

        What flies already keeps the old source.
        """
        del self._by_address[self._sources[host]]
        self._sources[host] = address
        self._by_address[address] = host

    @property
    def lost(self) -> int:
        """Packets lost or spoilt, of all paths."""
        return len(self.lost_at)

    # -- what is to happen

    def at(self, after: float, action: Callable[[], object]) -> None:
        """Do something in so many seconds."""
        self.schedule(self.now + after, self._act, action)

    def change(self, after: float, link: Link | Bottleneck, **values: object) -> None:
        """Let a link be another in so many seconds: its fields by name."""

        def change() -> None:
            for name, value in values.items():
                setattr(link, name, value)

        self.at(after, change)

    def interrupt(self, after: float, seconds: float, *links: Link) -> None:
        """Let these links, or all, be down for a while."""
        for link in links or [*self.links, *(path.link for path in self._paths.values())]:
            self.change(after, link, up=False)
            self.change(after + seconds, link, up=True)

    def schedule(self, when: float, event: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), event, arguments))

    def answer(self, host: int, packet: bytes, after: float) -> None:
        """A packet from nowhere, as from a router."""
        self.schedule(self.now + after, self.deliver, host, [packet], None)

    def deliver(self, target: int, packets: list[bytes], source: Hashable) -> None:
        self.hosts[target].receive(packets, source, self.now)
        self._touched[target] = None

    def _act(self, action: Callable[[], object]) -> None:
        action()
        self._touch_all()

    # -- the course of time

    def run(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Let things happen until the condition holds or virtual time runs out; returns the condition.

        `until` may use the hosts' sockets: all hosts are asked after it what they have to send. See `watch`.
        """
        end = self.now + seconds
        while not until():
            self.collect()
            if not self._go_on(end):
                self.now = end
                return until()
        self.collect()
        return True

    def watch(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """The same where `until` only looks: hosts that nothing happened to are not asked, so many cost no more."""
        end = self.now + seconds
        self.collect()
        while not until():
            if not self._go_on(end):
                self.now = end
                return until()
            self._collect()
        return True

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, whatever happens."""
        self.watch(lambda: False, seconds)

    def collect(self) -> None:
        """Send what any host has to send, although no time passes."""
        self._touch_all()
        self._collect()

    def _go_on(self, end: float) -> bool:
        """To the next instant at which something happens to a host; False when there is none before `end`."""
        events, touched = self._events, self._touched
        while not touched:
            timeout = self._deadlines.next()
            due = events[0][0] if events else None
            if timeout is not None and (due is None or timeout < due):
                due = timeout
            if due is None or due > end:
                return False
            if due > self.now:
                self.now = due
                self._standstill = 0
            self._standstill += 1
            assert self._standstill < STANDSTILL, "time stands still: a timer that is due stays due"
            while events and events[0][0] <= self.now:
                _, _, event, arguments = heapq.heappop(events)
                event(*arguments)
            for host in self._deadlines.take_due(self.now):
                self.hosts[host].handle_timeout(self.now)
                touched[host] = None
        return True

    def _touch_all(self) -> None:
        self._touched.update(dict.fromkeys(range(len(self.hosts))))

    def _collect(self) -> None:
        touched, self._touched = self._touched, {}
        for index in touched:
            host = self.hosts[index]
            for address, packets in host.to_send(self.now):
                target = self._by_address.get(address)
                if target is None:
                    self.lost_at += [self.now] * len(packets)
                else:
                    self.path(index, target).send(packets, self._sources[index])
            self._deadlines.set(index, host.next_timeout())


# -- what happens to packets


def congestion_experienced(packet: bytes) -> bytes:
    """An IP packet whose sender can do ECN, marked as a router marks it (RFC 3168 5); anything else unchanged."""
    if packet[0] >> 4 == 4 and packet[1] & 3:
        header = bytearray(packet[: (packet[0] & 15) * 4])
        header[1] |= 3
        header[10:12] = bytes(2)
        header[10:12] = checksum(header).to_bytes(2, "big")
        return bytes(header) + packet[len(header) :]
    if packet[0] >> 4 == 6 and packet[1] & 0x30:
        return packet[:1] + bytes([packet[1] | 0x30]) + packet[2:]
    return packet


def with_a_bit_turned(packet: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(packet))
    return packet[:at] + bytes([packet[at] ^ (1 << rng.randrange(8))]) + packet[at + 1 :]


def too_big(mtu: int, packet: bytes) -> bytes:
    """What the router in front of a narrow link says."""
    if packet[0] >> 4 == 4:
        body = packet_too_big(4, mtu, packet).serialize()
        return Ipv4Header(bytes([10, 9, 9, 9]), packet[12:16], PROTOCOL_ICMP, 20 + len(body)).serialize() + body
    message = packet_too_big(6, mtu, packet)
    router = b"\xfd\x09" + bytes(14)
    body = message.serialize(pseudo_header_sum(router, packet[8:24], PROTOCOL_ICMPV6, message.length))
    return Ipv6Header(router, packet[8:24], PROTOCOL_ICMPV6, len(body)).serialize() + body


def is_acknowledgment(packet: bytes) -> bool:
    """A bare TCP segment that carries nothing but an acknowledgment: for `Link.affects`."""
    start = 20 if packet[0] >> 4 == 4 else 40
    if packet[9 if start == 20 else 6] != PROTOCOL_TCP:
        return False
    return packet[start + 13] & 0x17 == 0x10 and len(packet) == start + (packet[start + 12] >> 4) * 4
