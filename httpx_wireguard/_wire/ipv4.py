"""IPv4 header (RFC 791)."""

from __future__ import annotations

import struct
from dataclasses import field
from typing import Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wire import Buffer
from httpx_wireguard._wire.checksum import checksum

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
IPV4_HEADER_LENGTH = _IPV4.size  # bytes, without options
MAX_OPTIONS_LENGTH = 40  # bytes; RFC 791 3.1: IHL is at most 15 words

_DONT_FRAGMENT = 0x4000
_MORE_FRAGMENTS = 0x2000
_OFFSET_MASK = 0x1FFF  # in units of 8 bytes


@record
class Ipv4Header:
    """IPv4 header (RFC 791 3.1)."""

    source: bytes  # 4 bytes
    destination: bytes  # 4 bytes
    protocol: int
    total_length: int  # bytes, this header included
    identification: int = 0
    dont_fragment: bool = True
    more_fragments: bool = False
    fragment_offset: int = 0  # bytes, a multiple of 8
    time_to_live: int = 64  # hops; RFC 1700 default
    traffic_class: int = 0  # DSCP and ECN (RFC 2474, RFC 3168); "type of service" in RFC 791
    options: bytes = b""  # a multiple of 4 bytes
    checksum: int = field(default=0, compare=False)  # as received; `serialize` computes its own

    @property
    def header_length(self) -> int:
        """Bytes, options included."""
        return IPV4_HEADER_LENGTH + len(self.options)

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.fragment_offset != 0

    @classmethod
    def parse(cls, packet: Buffer, offset: int = 0) -> Self:
        """Read and verify the header at `offset`. Bytes after the total length are left to the caller to trim.

        Raises:
            MalformedPacket: too short, not version 4, lengths that contradict each other, or a wrong header
                checksum, which RFC 1122 3.2.1.2 requires to discard.
        """
        available = len(packet) - offset
        if available < IPV4_HEADER_LENGTH:
            raise MalformedPacket(f"IPv4 header needs {IPV4_HEADER_LENGTH} bytes, got {available}")
        (version_ihl, traffic_class, total_length, identification, fragment, time_to_live, protocol, received) = (
            fields := _IPV4.unpack_from(packet, offset)
        )[:8]
        header_length = (version_ihl & 0x0F) << 2
        if version_ihl >> 4 != 4:
            raise MalformedPacket(f"IP version {version_ihl >> 4} in an IPv4 header")
        if not IPV4_HEADER_LENGTH <= header_length <= total_length <= available:
            raise MalformedPacket(f"IPv4 lengths: header {header_length}, total {total_length}, received {available}")
        header = packet[offset : offset + header_length]
        if checksum(header) != 0:
            raise MalformedPacket(f"IPv4 header checksum {received:#06x} is wrong")
        return cls(
            source=fields[8],
            destination=fields[9],
            protocol=protocol,
            total_length=total_length,
            identification=identification,
            dont_fragment=bool(fragment & _DONT_FRAGMENT),
            more_fragments=bool(fragment & _MORE_FRAGMENTS),
            fragment_offset=(fragment & _OFFSET_MASK) << 3,
            time_to_live=time_to_live,
            traffic_class=traffic_class,
            options=bytes(header[IPV4_HEADER_LENGTH:]),
            checksum=received,
        )

    def serialize(self) -> bytes:
        """The header alone, with its checksum computed.

        Raises:
            ValueError: options that are no multiple of 4 bytes or longer than 40.
        """
        if len(self.options) % 4 or len(self.options) > MAX_OPTIONS_LENGTH:
            raise ValueError(f"IPv4 options of {len(self.options)} bytes")
        fragment = self.fragment_offset >> 3
        fragment |= _DONT_FRAGMENT if self.dont_fragment else 0
        fragment |= _MORE_FRAGMENTS if self.more_fragments else 0
        header = bytearray(self.header_length)
        _IPV4.pack_into(
            header,
            0,
            0x40 | self.header_length >> 2,
            self.traffic_class,
            self.total_length,
            self.identification,
            fragment,
            self.time_to_live,
            self.protocol,
            0,
            self.source,
            self.destination,
        )
        header[IPV4_HEADER_LENGTH:] = self.options
        header[10:12] = checksum(header).to_bytes(2, "big")
        return bytes(header)
