"""Codecs of the inner packets: bytes to header objects and back. No state, no clock."""

from __future__ import annotations

from typing import TypeAlias

from httpx_wireguard._errors import MalformedPacket

Buffer: TypeAlias = bytes | bytearray | memoryview

# IANA "Assigned Internet Protocol Numbers"; the names follow RFC 8200 section 4 for IPv6 extension headers.
PROTOCOL_HOP_BY_HOP = 0
PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ROUTING = 43
PROTOCOL_FRAGMENT = 44
PROTOCOL_ICMPV6 = 58
PROTOCOL_NO_NEXT_HEADER = 59
PROTOCOL_DESTINATION_OPTIONS = 60


def ip_version(packet: Buffer) -> int:
    """The version nibble, 0 to 15. Only 4 and 6 mean something; the caller drops the rest.

    Raises:
        MalformedPacket: the packet is empty.
    """
    if not packet:
        raise MalformedPacket("empty packet")
    return packet[0] >> 4
