"""Builds the TCP segments of one connection as whole IP packets: the fast path out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from httpx_wireguard._wire import PROTOCOL_TCP
from httpx_wireguard._wire.checksum import checksum, ones_sum, pseudo_header_sum
from httpx_wireguard._wire.ecn import NOT_ECT

HOP_LIMIT = 64  # RFC 1700: the default time to live
_FIXED_SIZE = 20  # bytes of a header without options, RFC 9293 3.1
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000  # RFC 791 3.1


@lru_cache
def _headers(ip_size: int, options_size: int) -> struct.Struct:
    """An IP header, ready, and a TCP header (RFC 9293 3.1) with its options."""
    return struct.Struct(f"!{ip_size}sHHIIHHHH{options_size}s")


class SegmentWriter:
    """Headers of one connection; what does not change from segment to segment is computed once."""

    __slots__ = ("_constant_sum", "_ip_headers", "_local", "_local_port", "_remote", "_remote_port")

    def __init__(self, local: bytes, remote: bytes, local_port: int, remote_port: int) -> None:
        self._local = local
        self._remote = remote
        self._local_port = local_port
        self._remote_port = remote_port
        self._constant_sum = pseudo_header_sum(local, remote, PROTOCOL_TCP, 0) + local_port + remote_port
        self._ip_headers: dict[int, bytes] = {}  # by codepoint << 16 | TCP length; a bulk transfer needs three

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
        """Packets of consecutive segments from `sequence`; the last one also carries `last_flags`.

        Args:
            window: as it stands in the header, scaled.
            options: a multiple of four bytes.
            ecn: codepoint of the IP headers.
        """
        header_length = _FIXED_SIZE + len(options)
        pack = _headers(20 if len(self._local) == 4 else 40, len(options)).pack
        ports = (self._local_port, self._remote_port)
        word = header_length << 10 | flags
        acknowledgment &= 0xFFFFFFFF
        constant = self._constant_sum + acknowledgment + window + ones_sum(options) + header_length
        ip_key = ecn << 16 | header_length
        packets: list[bytes] = []
        length, last = -1, len(payloads) - 1
        for index, payload in enumerate(payloads):
            if len(payload) != length:
                length = len(payload)
                ip_header = self._ip_header(ip_key + length)
            if index == last:
                word |= last_flags
            sequence &= 0xFFFFFFFF
            field = 0xFFFF - (ones_sum(payload) + constant + length + sequence + word) % 0xFFFF
            packets.append(pack(ip_header, *ports, sequence, acknowledgment, word, window, field, 0, options) + payload)
            sequence += length
        return packets

    def _ip_header(self, key: int) -> bytes:
        header = self._ip_headers.get(key)
        if header is None:
            header = self._build_ip_header(key & 0xFFFF, key >> 16)
            if len(self._ip_headers) >= 8:
                self._ip_headers.clear()
            self._ip_headers[key] = header
        return header

    def _build_ip_header(self, tcp_length: int, ecn: int) -> bytes:
        if len(self._local) == 16:
            return _IPV6.pack(6 << 28 | ecn << 20, tcp_length, PROTOCOL_TCP, HOP_LIMIT, self._local, self._remote)
        # identification 0: an atomic datagram needs none (RFC 6864 4.1)
        fields = (0x45, ecn, 20 + tcp_length, 0, _DONT_FRAGMENT, HOP_LIMIT, PROTOCOL_TCP)
        header = _IPV4.pack(*fields, 0, self._local, self._remote)
        return _IPV4.pack(*fields, checksum(header), self._local, self._remote)
