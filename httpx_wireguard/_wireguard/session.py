"""One pair of transport keys: seals, opens, and knows its limits (paper 5.4.6, 6.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import count, pairwise, repeat
from struct import Struct

from httpx_wireguard._wireguard.constants import (
    PADDING,
    RECEIVE_REKEY_AFTER_TIME,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
)
from httpx_wireguard._wireguard.crypto import Aead, AuthenticationFailure
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.ecn import EcnMode
from httpx_wireguard._wireguard.messages import KEEPALIVE_SIZE, TRANSPORT, TRANSPORT_HEADER, TRANSPORT_HEADER_SIZE
from httpx_wireguard._wireguard.replay import ReplayWindow

_PREFIX = Struct("<II")  # type and receiver index, together
_NONCE = Struct("<4xQ")  # paper 5.4.6: 32 zero bits and the counter, little-endian
_ZEROS = bytes(PADDING)

OnDrop = Callable[[Drop], None]


@lru_cache(maxsize=64)  # sizes come from the network: bounded
def _messages(segment_size: int, count: int) -> Struct:
    """Layout of transport messages of `segment_size` bytes, of each: prefix, counter, sealed."""
    return Struct("<" + f"8sQ{segment_size - TRANSPORT_HEADER_SIZE}s" * count)


class Session:
    """Keys, counters and age of one completed handshake."""

    __slots__ = (
        "_decrypt",
        "_encrypt",
        "_prefix",
        "_rekey_asked",
        "_remote_index",
        "_window",
        "created",
        "ecn",
        "is_initiator",
        "local_index",
        "sent",
    )

    def __init__(
        self,
        keys: tuple[bytes, bytes],
        local_index: int,
        remote_index: int,
        is_initiator: bool,
        now: float,
    ) -> None:
        """`keys` are (to send with, to receive with)."""
        send, receive = keys
        self._encrypt = Aead(send).encrypt
        self._decrypt = Aead(receive).decrypt
        self._prefix = _PREFIX.pack(TRANSPORT, local_index)
        self._remote_index = remote_index
        self._window = ReplayWindow()
        self._rekey_asked = False
        self.ecn = EcnMode()
        self.local_index = local_index
        self.is_initiator = is_initiator
        self.created = now
        self.sent = 0  # messages; also the next counter, so that none is used twice

    def __repr__(self) -> str:
        role = "initiator" if self.is_initiator else "responder"
        return f"<Session {self.local_index:#010x} as {role}, {self.sent} sent>"

    # --- limits ---

    def is_expired(self, now: float) -> bool:
        """Paper 6.2: too old to send or receive with."""
        return now - self.created >= REJECT_AFTER_TIME

    def can_send(self, count: int, now: float) -> bool:
        return now - self.created < REJECT_AFTER_TIME and self.sent + count <= REJECT_AFTER_MESSAGES

    def wants_rekey_after_sending(self, now: float) -> bool:
        """Paper 6.2: either role by count, only the initiator by age, so that not both start."""
        by_age = self.is_initiator and now - self.created >= REKEY_AFTER_TIME
        return by_age or self.sent > REKEY_AFTER_MESSAGES

    def wants_rekey_after_receiving(self, now: float) -> bool:
        """Paper 6.2: the initiator, shortly before the session ends, once."""
        wanted = self.is_initiator and not self._rekey_asked and now - self.created >= RECEIVE_REKEY_AFTER_TIME
        self._rekey_asked |= wanted
        return wanted

    # --- sending ---

    def seal_run(self, packets: Sequence[bytes], mtu: int) -> tuple[list[bytes], list[int]]:
        """Seal packets under consecutive counters; the caller has asked `can_send`. The fast path.

        Returns:
            Header and sealed packet of each message in turn, and the size of each message.
        """
        counters = range(self.sent, self.sent + len(packets))
        self.sent = counters.stop
        padded = [p if len(p) % PADDING == 0 or len(p) == mtu else _pad(p, mtu) for p in packets]
        sealed = list(map(self._encrypt, map(_NONCE.pack, counters), padded, repeat(None)))
        buffers = [b""] * (2 * len(sealed))
        buffers[::2] = map(TRANSPORT_HEADER.pack, repeat(TRANSPORT), repeat(self._remote_index), counters)
        buffers[1::2] = sealed
        return buffers, [TRANSPORT_HEADER_SIZE + len(s) for s in sealed]

    # --- receiving ---

    def open_run(self, data: memoryview, segment_size: int, on_drop: OnDrop) -> tuple[list[bytes], int]:
        """Open the transport messages at the start of `data` that are for this session. The fast path.

        The counter is checked, then the message authenticated, then the counter marked. A run of consecutive counters
        beyond all that came before needs no lookup, is opened in one go, and marked as far as it is authentic.

        Args:
            data: begins with a transport message for this session; every message but the last is `segment_size`.

        Returns:
            The authentic plaintexts in order, padding included; and how many bytes of `data` were consumed.
        """
        total = len(data) // segment_size
        if total < 2:
            return self.open(data[:segment_size], on_drop), min(len(data), segment_size)
        fields = _messages(segment_size, total).unpack_from(data)
        prefixes, counters, sealed = fields[::3], fields[1::3], fields[2::3]
        prefix = self._prefix
        mine = total
        if prefixes.count(prefix) != total:
            mine = next(index for index in range(total) if prefixes[index] != prefix)
        opened: list[bytes] = []
        for start, end in _runs(counters[:mine]):
            while start < end:
                start += self._open_ahead(counters[start], sealed[start:end], opened)
                if start < end:  # late, forged, or near the end of the session
                    opened += self._open_one(counters[start], sealed[start], on_drop)
                    start += 1
        consumed = mine * segment_size
        tail = data[consumed:]
        if mine == total and len(tail) >= KEEPALIVE_SIZE and tail[: _PREFIX.size] == prefix:
            opened += self.open(tail, on_drop)
            consumed = len(data)
        return opened, consumed

    def _open_ahead(self, first: int, sealed: Sequence[bytes], opened: list[bytes]) -> int:
        """Open messages with the counters from `first` on, if they are ahead of the window and as long as they are
        authentic; return how many."""
        if not self._window.is_ahead(first):
            return 0
        before = len(opened)
        with suppress(AuthenticationFailure):  # what was opened before it stays
            opened.extend(map(self._decrypt, map(_NONCE.pack, count(first)), sealed, repeat(None)))
        authentic = len(opened) - before
        self._window.mark_run(first, first + authentic)
        return authentic

    def open(self, message: memoryview, on_drop: OnDrop) -> list[bytes]:
        """Open one transport message for this session: the readable reference of `open_run`.

        Returns:
            The plaintext, or nothing if it was replayed or is not authentic.
        """
        _, _, counter = TRANSPORT_HEADER.unpack_from(message)
        return self._open_one(counter, message[TRANSPORT_HEADER_SIZE:], on_drop)

    def _open_one(self, counter: int, sealed: bytes | memoryview, on_drop: OnDrop) -> list[bytes]:
        """Check the counter, authenticate, and only then mark: a forged message may not move the window."""
        if not self._window.is_fresh(counter):
            on_drop(Drop.REPLAYED)
            return []
        try:
            plaintext = self._decrypt(_NONCE.pack(counter), sealed, None)
        except AuthenticationFailure:
            on_drop(Drop.NOT_AUTHENTIC)
            return []
        self._window.mark(counter)
        return [plaintext]


def _runs(counters: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Where consecutive counters begin and end."""
    total = len(counters)
    if counters == tuple(range(counters[0], counters[0] + total)):
        return [(0, total)]
    breaks = [index for index in range(1, total) if counters[index] != counters[index - 1] + 1]
    return pairwise([0, *breaks, total])


def _pad(packet: bytes, mtu: int) -> bytes:
    """Paper 5.4.6: zeros up to a multiple of 16, but never past the MTU, or the outer packet would not fit."""
    room = max(0, mtu - len(packet))
    return packet + _ZEROS[: min(-len(packet) % PADDING, room)]
