"""A simulated network in virtual time: seeded delay, jitter, loss, duplication, reordering, corruption, rate."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol


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


@dataclass(slots=True)
class Link:
    """One direction of a path. Times in seconds, probabilities 0..1, `rate` in bytes a second (0: no limit)."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    rate: float = 0.0
    queue: int = 1 << 20  # bytes that wait for the rate limit; more are dropped
    mtu: int = 65535  # bytes; larger packets vanish


class Host(Protocol):
    """What the network drives."""

    def receive(self, packets: list[bytes], sender: int, now: float) -> None: ...

    def to_send(self, now: float) -> list[tuple[int, bytes]]:
        """Packets due, each with the index of the host it goes to."""

    def next_timeout(self) -> float | None: ...

    def handle_timeout(self, now: float) -> None: ...


class Network:
    """Hosts joined by links, in virtual time."""

    def __init__(self, hosts: list[Host], *links: Link, seed: int = 0) -> None:
        """`links[i]` carries what host i sends; the last one serves the rest."""
        self.hosts = hosts
        self.links = [links[min(i, len(links) - 1)] if links else Link() for i in range(len(hosts))]
        self.now = 1000.0
        self.lost = 0
        self._busy_until = [0.0] * len(hosts)
        self._random = random.Random(seed)
        self._flying: list[tuple[float, int, int, int, bytes]] = []
        self._order = count()

    def run(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Let things happen until the condition holds or virtual time runs out; returns the condition."""
        end = self.now + seconds
        while not until():
            self._collect()
            due = self._next_event()
            if due is None or due > end:
                self.now = end
                return until()
            self.now = max(self.now, due)
            self._deliver()
            for host in self.hosts:
                timeout = host.next_timeout()
                if timeout is not None and timeout <= self.now:
                    host.handle_timeout(self.now)
        self._collect()
        return True

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, whatever happens."""
        self.run(lambda: False, seconds)

    def _next_event(self) -> float | None:
        times = [timeout for host in self.hosts if (timeout := host.next_timeout()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def _deliver(self) -> None:
        while self._flying and self._flying[0][0] <= self.now:
            _, _, sender, target, packet = heapq.heappop(self._flying)
            self.hosts[target].receive([packet], sender, self.now)

    def _collect(self) -> None:
        for index, host in enumerate(self.hosts):
            for target, packet in host.to_send(self.now):
                self._send(index, target, packet)

    def _send(self, sender: int, target: int, packet: bytes) -> None:
        link, rng = self.links[sender], self._random
        if rng.random() < link.loss or len(packet) > link.mtu:
            self.lost += 1
            return
        start = max(self.now, self._busy_until[sender])
        if link.rate:
            if (start - self.now) * link.rate > link.queue:
                self.lost += 1
                return
            start += len(packet) / link.rate
            self._busy_until[sender] = start
        if rng.random() < link.corrupt:
            at = rng.randrange(len(packet))
            packet = packet[:at] + bytes([packet[at] ^ (1 << rng.randrange(8))]) + packet[at + 1 :]
        for _ in range(2 if rng.random() < link.duplicate else 1):
            arrival = start + link.delay + rng.random() * link.jitter
            heapq.heappush(self._flying, (arrival, next(self._order), sender, target, packet))
