"""IPv6 header, its Fragment header, and the walk over extension headers (RFC 8200)."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wire import (
    PROTOCOL_DESTINATION_OPTIONS,
    PROTOCOL_FRAGMENT,
    PROTOCOL_HOP_BY_HOP,
    PROTOCOL_ICMPV6,
    PROTOCOL_ROUTING,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Buffer,
)

_IPV6 = struct.Struct("!IHBB16s16s")
_FRAGMENT = struct.Struct("!BBHI")
IPV6_HEADER_LENGTH = _IPV6.size  # bytes
FRAGMENT_HEADER_LENGTH = _FRAGMENT.size  # bytes
MINIMUM_MTU = 1280  # bytes; RFC 8200 section 5

_NEXT_HEADER_POSITION = 6  # of the first Next Header field in the packet
_SKIPPED = frozenset({PROTOCOL_HOP_BY_HOP, PROTOCOL_ROUTING, PROTOCOL_DESTINATION_OPTIONS})
# RFC 7112 section 5: a first fragment holds the upper-layer header too.
_UPPER_LAYER_HEADER_LENGTH = {PROTOCOL_TCP: 20, PROTOCOL_UDP: 8, PROTOCOL_ICMPV6: 8}

# Our limits. RFC 8504 5.3 lets a host bound the work that a packet can ask for.
MAX_EXTENSION_HEADERS = 8  # RFC 8200 4.1 recommends an order of at most 7
MAX_OPTIONS = 16  # per header, padding included: the 8 of RFC 8504 5.3, each with one padding option


@record
class Ipv6Header:
    """IPv6 header (RFC 8200 section 3): 40 bytes."""

    source: bytes  # 16 bytes
    destination: bytes  # 16 bytes
    next_header: int
    payload_length: int  # bytes after this header, extension headers included
    hop_limit: int = 64
    traffic_class: int = 0  # DSCP and ECN (RFC 2474, RFC 3168)
    flow_label: int = 0  # 20 bits

    @classmethod
    def parse(cls, packet: Buffer, offset: int = 0) -> Self:
        """Read the header at `offset`. Bytes after the payload length are left to the caller to trim.

        Raises:
            MalformedPacket: too short, not version 6, or a payload longer than what arrived.
        """
        available = len(packet) - offset
        if available < IPV6_HEADER_LENGTH:
            raise MalformedPacket(f"IPv6 header needs {IPV6_HEADER_LENGTH} bytes, got {available}")
        word, payload_length, next_header, hop_limit, source, destination = _IPV6.unpack_from(packet, offset)
        if word >> 28 != 6:
            raise MalformedPacket(f"IP version {word >> 28} in an IPv6 header")
        if payload_length > available - IPV6_HEADER_LENGTH:
            raise MalformedPacket(f"IPv6 payload length {payload_length}, got {available - IPV6_HEADER_LENGTH}")
        return cls(
            source=source,
            destination=destination,
            next_header=next_header,
            payload_length=payload_length,
            hop_limit=hop_limit,
            traffic_class=word >> 20 & 0xFF,
            flow_label=word & 0xFFFFF,
        )

    def serialize(self) -> bytes:
        word = 6 << 28 | self.traffic_class << 20 | self.flow_label
        return _IPV6.pack(word, self.payload_length, self.next_header, self.hop_limit, self.source, self.destination)


@record
class Ipv6FragmentHeader:
    """Fragment header (RFC 8200 4.5): 8 bytes."""

    next_header: int
    offset: int  # bytes into the fragmentable part, a multiple of 8
    more: bool
    identification: int

    @property
    def is_atomic(self) -> bool:
        """The only fragment of its packet (RFC 6946)."""
        return self.offset == 0 and not self.more

    @classmethod
    def parse(cls, packet: Buffer, offset: int = 0) -> Self:
        """
        Raises:
            MalformedPacket: fewer than 8 bytes.
        """
        if len(packet) - offset < FRAGMENT_HEADER_LENGTH:
            raise MalformedPacket(f"IPv6 fragment header cut at {len(packet) - offset} bytes")
        next_header, _, field, identification = _FRAGMENT.unpack_from(packet, offset)
        return cls(next_header, field & 0xFFF8, bool(field & 1), identification)

    def serialize(self) -> bytes:
        return _FRAGMENT.pack(self.next_header, 0, self.offset | self.more, self.identification)


class UpperLayer(NamedTuple):
    """Where the walk over the extension headers ended.

    With a `fragment` that is not atomic, `protocol` and `offset` are those of the fragment's data: nothing behind
    the Fragment header means anything before reassembly.
    """

    protocol: int
    offset: int  # of the upper-layer header in the packet
    fragment: Ipv6FragmentHeader | None = None
    fragment_position: int = 0  # of the Fragment header in the packet, if there is one
    fragment_named_at: int = 0  # position of the Next Header byte that names the Fragment header


def find_upper_layer(packet: Buffer) -> UpperLayer:
    """Walk the extension headers of a packet that starts with an IPv6 header (RFC 8200 section 4).

    Authentication, ESP, mobility and unknown headers end the walk: they are upper-layer protocols that we lack.

    Raises:
        MalformedPacket: a header cut short, out of order or one too many; an option or a routing header that
            RFC 8200 4.2 and 4.4 tell us to discard; a first fragment without the whole chain (RFC 7112).
    """
    if len(packet) < IPV6_HEADER_LENGTH:
        raise MalformedPacket(f"IPv6 header needs {IPV6_HEADER_LENGTH} bytes, got {len(packet)}")
    protocol, position, named_at = _skip_headers(
        packet, packet[_NEXT_HEADER_POSITION], IPV6_HEADER_LENGTH, _NEXT_HEADER_POSITION
    )
    if protocol != PROTOCOL_FRAGMENT:
        return UpperLayer(protocol, position)
    fragment = Ipv6FragmentHeader.parse(packet, position)
    behind = position + FRAGMENT_HEADER_LENGTH
    data = UpperLayer(fragment.next_header, behind, fragment, position, named_at)
    if fragment.offset:
        return data
    upper, offset, _ = _skip_headers(packet, fragment.next_header, behind, position)
    if upper == PROTOCOL_FRAGMENT:
        raise MalformedPacket("two IPv6 fragment headers")
    if fragment.is_atomic:
        return UpperLayer(upper, offset, fragment, position, named_at)
    if offset + _UPPER_LAYER_HEADER_LENGTH.get(upper, 0) > len(packet):
        raise MalformedPacket("first IPv6 fragment without the whole header chain")
    return data


def _skip_headers(packet: Buffer, protocol: int, position: int, named_at: int) -> tuple[int, int, int]:
    """Pass Hop-by-Hop, Routing and Destination Options headers.

    Returns:
        The first other protocol, its position, and the position of the byte that names it.
    """
    for _ in range(MAX_EXTENSION_HEADERS + 1):
        if protocol not in _SKIPPED:
            return protocol, position, named_at
        if protocol == PROTOCOL_HOP_BY_HOP and named_at != _NEXT_HEADER_POSITION:
            raise MalformedPacket("hop-by-hop options not directly behind the IPv6 header")
        if position + 8 > len(packet):
            raise MalformedPacket("IPv6 extension header cut short")
        end = position + 8 + packet[position + 1] * 8
        if end > len(packet):
            raise MalformedPacket("IPv6 extension header longer than the packet")
        if protocol == PROTOCOL_ROUTING:
            _check_routing(packet, position)
        else:
            _check_options(packet, position + 2, end)
        protocol, position, named_at = packet[position], end, position
    raise MalformedPacket(f"more than {MAX_EXTENSION_HEADERS} IPv6 extension headers")


def _check_routing(packet: Buffer, position: int) -> None:
    """RFC 8200 4.4 and RFC 5095: we forward for nobody, so only a route that is used up passes."""
    segments_left = packet[position + 3]
    if segments_left:
        raise MalformedPacket(f"IPv6 routing header with {segments_left} segments left")


def _check_options(packet: Buffer, position: int, end: int) -> None:
    """RFC 8200 4.2: the two highest bits of an unknown option say whether to skip it (00) or to discard the packet."""
    for _ in range(MAX_OPTIONS):
        if position == end:
            return
        kind = packet[position]
        if kind == 0:  # Pad1 has no length
            position += 1
            continue
        if kind >= 0x40:
            raise MalformedPacket(f"IPv6 option {kind:#04x} is unknown and asks to discard the packet")
        position += 2 + packet[position + 1] if position + 1 < end else 2
        if position > end:
            raise MalformedPacket("IPv6 option longer than its header")
    if position != end:
        raise MalformedPacket(f"more than {MAX_OPTIONS} IPv6 options in one header")
