"""UDP header (RFC 768)."""

from __future__ import annotations

import struct
from typing import Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wire import PROTOCOL_UDP, Buffer
from httpx_wireguard._wire.checksum import transport_checksum

_UDP = struct.Struct("!HHHH")
UDP_HEADER_LENGTH = _UDP.size  # bytes


@record
class UdpHeader:
    """UDP header (RFC 768): 8 bytes, all fields big-endian."""

    source_port: int  # 0 = no reply wanted
    destination_port: int
    length: int  # bytes, this header included
    checksum: int = 0  # 0 = sender computed none; legal over IPv4 only

    @classmethod
    def parse(cls, packet: Buffer, offset: int = 0) -> Self:
        """Read the header at `offset`; the payload ends at `offset + length`. The checksum is not verified.

        Raises:
            MalformedPacket: fewer than 8 bytes, or a length below 8 or beyond what arrived.
        """
        available = len(packet) - offset
        if available < UDP_HEADER_LENGTH:
            raise MalformedPacket(f"UDP header needs {UDP_HEADER_LENGTH} bytes, got {available}")
        header = cls(*_UDP.unpack_from(packet, offset))
        if not UDP_HEADER_LENGTH <= header.length <= available:
            raise MalformedPacket(f"UDP length {header.length} outside {UDP_HEADER_LENGTH}..{available}")
        return header

    def serialize(self) -> bytes:
        """The header with `checksum` as it stands; `serialize_datagram` computes it."""
        return _UDP.pack(self.source_port, self.destination_port, self.length, self.checksum)


def serialize_datagram(
    source: bytes, destination: bytes, source_port: int, destination_port: int, payload: Buffer
) -> bytes:
    """Header and payload, ready to follow an IP header.

    Args:
        source: packed address, 4 or 16 bytes; `destination` likewise.
    """
    length = UDP_HEADER_LENGTH + len(payload)
    draft = _UDP.pack(source_port, destination_port, length, 0) + payload
    # RFC 768: a computed zero is sent as all ones, its equal in one's complement; zero itself means "none".
    field = transport_checksum(source, destination, PROTOCOL_UDP, draft) or 0xFFFF
    return b"".join((draft[:6], field.to_bytes(2, "big"), draft[8:]))


def datagram_is_intact(source: bytes, destination: bytes, datagram: Buffer) -> bool:
    """Whether the checksum holds. None at all (zero) passes over IPv4 (RFC 768) and not over IPv6 (RFC 8200 8.1).

    Args:
        datagram: from the UDP header to the end of its length.
    """
    if datagram[6] == datagram[7] == 0:
        return len(source) == 4
    return transport_checksum(source, destination, PROTOCOL_UDP, datagram) == 0
