"""Builds the TCP segments of one connection as whole IP packets: the fast path out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, groupby, repeat
from operator import add

from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.checksum import checksum, ones_sum, ones_sums, pseudo_header_sum
from httpx_wireguard._wire.ecn import NOT_ECT

HOP_LIMIT = 64  # RFC 1700: the default time to live
_FIXED_SIZE = 20  # bytes of a header without options, RFC 9293 3.1
_MIDDLE = struct.Struct("!IHH")  # acknowledgment number; data offset and flags; window
_NOT_URGENT = bytes(2)  # the urgent pointer
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000  # RFC 791 3.1


@lru_cache
def _headers(head_size: int, tail_size: int) -> struct.Struct:
    """An IP header and a TCP header (RFC 9293 3.1): all until the sequence number, that, the next three fields, the
    checksum, and the rest."""
    return struct.Struct(f"!{head_size}sI8sH{tail_size}s")


class SegmentWriter:
    """Headers of one connection; what does not change from segment to segment is computed once."""

    __slots__ = ("_constant_sum", "_heads", "_local", "_ports", "_remote")

    def __init__(self, local: bytes, remote: bytes, local_port: int, remote_port: int) -> None:
        self._local = local
        self._remote = remote
        self._ports = struct.pack("!HH", local_port, remote_port)
        self._constant_sum = pseudo_header_sum(local, remote, PROTOCOL_TCP, 0) + local_port + remote_port
        self._heads: dict[int, bytes] = {}  # by codepoint << 16 | TCP length; a bulk transfer needs three

    def run(
        self,
        sequence: int,
        payloads: Sequence[bytes],
        acknowledgment: int,
        flags: int,
        last_flags: int,
        window: int,
        options: bytes,
        ecn: int = NOT_ECT,
    ) -> list[bytes]:
        """Packets of consecutive segments, one at least, from `sequence`; the last also carries `last_flags`.

        Args:
            window: as it stands in the header, scaled.
            options: a multiple of four bytes.
            ecn: codepoint of the IP headers.
        """
        header_length = _FIXED_SIZE + len(options)
        acknowledgment &= 0xFFFFFFFF
        word = header_length << 10 | flags
        constant = self._constant_sum + acknowledgment + window + int.from_bytes(options, "big") + header_length
        key, tail = ecn << 16 | header_length, _NOT_URGENT + options
        pack = _headers(24 if len(self._local) == 4 else 44, len(tail)).pack
        packets: list[bytes] = []
        if len(payloads) > 1:
            middle = _MIDDLE.pack(acknowledgment, word, window)
            for length, group in groupby(payloads[:-1], len):
                texts = list(group)
                sequences = [n & 0xFFFFFFFF for n in accumulate(repeat(length, len(texts)), initial=sequence)]
                sequence = sequences.pop()
                total = constant + length + word
                fields = [0xFFFF - (total + a + b) % 0xFFFF for a, b in zip(sequences, ones_sums(texts), strict=True)]
                heads = map(pack, repeat(self._head(key + length)), sequences, repeat(middle), fields, repeat(tail))
                packets += map(add, heads, texts)
        # By itself, for it has flags of its own; and a small request, which is this one alone, pays for no loop.
        text, word, sequence = payloads[-1], word | last_flags, sequence & 0xFFFFFFFF
        field = 0xFFFF - (ones_sum(text) + constant + len(text) + sequence + word) % 0xFFFF
        middle = _MIDDLE.pack(acknowledgment, word, window)
        packets.append(pack(self._head(key + len(text)), sequence, middle, field, tail) + text)
        return packets

    def _head(self, key: int) -> bytes:
        """IP header and TCP ports."""
        head = self._heads.get(key)
        if head is None:
            head = self._build_ip_header(key & 0xFFFF, key >> 16) + self._ports
            if len(self._heads) >= 8:
                self._heads.clear()
            self._heads[key] = head
        return head

    def _build_ip_header(self, tcp_length: int, ecn: int) -> bytes:
        if len(self._local) == 16:
            return _IPV6.pack(6 << 28 | ecn << 20, tcp_length, PROTOCOL_TCP, HOP_LIMIT, self._local, self._remote)
        # identification 0: an atomic datagram needs none (RFC 6864 4.1)
        fields = (0x45, ecn, 20 + tcp_length, 0, _DONT_FRAGMENT, HOP_LIMIT, PROTOCOL_TCP)
        header = _IPV4.pack(*fields, 0, self._local, self._remote)
        return _IPV4.pack(*fields, checksum(header), self._local, self._remote)
