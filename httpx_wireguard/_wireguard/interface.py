"""What the peers of one device share: keys, randomness, receiver indices, the send queue, the counters of drops."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from httpx_wireguard._wireguard.constants import REKEY_TIMEOUT_JITTER
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.entropy import Entropy
from httpx_wireguard._wireguard.runs import RunQueue

if TYPE_CHECKING:
    from httpx_wireguard._wireguard.peer import Peer
    from httpx_wireguard._wireguard.session import Session


class Interface:
    """Shared state, passed to each peer."""

    __slots__ = ("drops", "entropy", "given_up", "handshakes", "mtu", "private_key", "queue", "sessions", "unanswered")

    def __init__(self, private_key: PrivateKey, entropy: Entropy, mtu: int) -> None:
        self.private_key = private_key
        self.entropy = entropy
        self.mtu = mtu
        self.queue = RunQueue()
        self.sessions: dict[int, tuple[Peer, Session]] = {}  # by our own index
        self.handshakes: dict[int, Peer] = {}  # initiations that wait for their response, by our own index
        self.given_up: list[Peer] = []
        self.unanswered: list[Peer] = []
        self.drops: Counter[str] = Counter()

    def new_index(self) -> int:
        """Return a random receiver index that nothing alive uses."""
        while True:
            index = int.from_bytes(self.entropy.random(4), "little")
            if index not in self.sessions and index not in self.handshakes:
                return index

    def ephemeral(self) -> PrivateKey:
        return PrivateKey(self.entropy.random(32))

    def jitter(self) -> float:
        """Return 0 to 1/3 second."""
        return int.from_bytes(self.entropy.random(2), "little") / 65536 * REKEY_TIMEOUT_JITTER
