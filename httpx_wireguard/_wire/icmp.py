"""ICMP (RFC 792) and ICMPv6 (RFC 4443): one message class, since the two differ in numbers and checksum only."""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wire import (
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Buffer,
    ip_version,
)
from httpx_wireguard._wire.checksum import checksum
from httpx_wireguard._wire.ipv4 import IPV4_HEADER_LENGTH
from httpx_wireguard._wire.ipv6 import IPV6_HEADER_LENGTH, MINIMUM_MTU, find_upper_layer

_ICMP = struct.Struct("!BBHI")
_PORTS = struct.Struct("!HH")
_PORTS_AND_SEQUENCE = struct.Struct("!HHI")
ICMP_HEADER_LENGTH = _ICMP.size  # bytes

# RFC 792
ICMP4_ECHO_REPLY = 0
ICMP4_UNREACHABLE = 3
ICMP4_SOURCE_QUENCH = 4  # deprecated by RFC 6633
ICMP4_REDIRECT = 5
ICMP4_ECHO_REQUEST = 8
ICMP4_TIME_EXCEEDED = 11
ICMP4_PARAMETER_PROBLEM = 12
# Codes of ICMP4_UNREACHABLE; the MTU of code 4: RFC 1191 section 4
ICMP4_NETWORK_UNREACHABLE = 0
ICMP4_HOST_UNREACHABLE = 1
ICMP4_PROTOCOL_UNREACHABLE = 2
ICMP4_PORT_UNREACHABLE = 3
ICMP4_FRAGMENTATION_NEEDED = 4

# RFC 4443
ICMP6_UNREACHABLE = 1
ICMP6_PACKET_TOO_BIG = 2
ICMP6_TIME_EXCEEDED = 3
ICMP6_PARAMETER_PROBLEM = 4
ICMP6_ECHO_REQUEST = 128
ICMP6_ECHO_REPLY = 129
# Codes of ICMP6_UNREACHABLE
ICMP6_NO_ROUTE = 0
ICMP6_PROHIBITED = 1
ICMP6_BEYOND_SCOPE = 2
ICMP6_ADDRESS_UNREACHABLE = 3
ICMP6_PORT_UNREACHABLE = 4
# Code of ICMP6_PARAMETER_PROBLEM
ICMP6_UNKNOWN_NEXT_HEADER = 1

_ICMP4_ERRORS = frozenset(
    {ICMP4_UNREACHABLE, ICMP4_SOURCE_QUENCH, ICMP4_REDIRECT, ICMP4_TIME_EXCEEDED, ICMP4_PARAMETER_PROBLEM}
)
_FIRST_ICMP6_INFORMATIONAL = 128  # RFC 4443 2.1

_HARD = {
    (4, ICMP4_PROTOCOL_UNREACHABLE): "protocol unreachable",
    (4, ICMP4_PORT_UNREACHABLE): "port unreachable",
    (6, ICMP6_PROHIBITED): "administratively prohibited",
    (6, ICMP6_PORT_UNREACHABLE): "port unreachable",
}
_SOFT = {  # RFC 9293 MUST-56
    (4, ICMP4_NETWORK_UNREACHABLE): "network unreachable",
    (4, ICMP4_HOST_UNREACHABLE): "host unreachable",
    (6, ICMP6_NO_ROUTE): "no route to destination",
    (6, ICMP6_ADDRESS_UNREACHABLE): "address unreachable",
}

# The offending packet is quoted as far as the whole error stays within what every host can receive.
_ICMP4_QUOTE = 576 - IPV4_HEADER_LENGTH - ICMP_HEADER_LENGTH  # bytes; RFC 1812 4.3.2.3
_ICMP6_QUOTE = MINIMUM_MTU - IPV6_HEADER_LENGTH - ICMP_HEADER_LENGTH  # bytes; RFC 4443 2.4 (c)


@record
class IcmpMessage:
    """An ICMP or ICMPv6 message. Which of the two, and so what `type` means, the IP header says."""

    type: int
    code: int
    rest_of_header: int  # 32 bits: identifier and sequence, MTU, pointer, or unused
    body: bytes  # echo data, or the start of the packet that an error is about

    @property
    def length(self) -> int:
        """Bytes of the whole message, as `pseudo_header_sum` wants it."""
        return ICMP_HEADER_LENGTH + len(self.body)

    @property
    def identifier(self) -> int:
        """Of an echo message."""
        return self.rest_of_header >> 16

    @property
    def sequence(self) -> int:
        """Of an echo message."""
        return self.rest_of_header & 0xFFFF

    @classmethod
    def parse(cls, data: Buffer, pseudo_header_sum: int | None = None) -> Self:
        """Read and verify a message.

        Args:
            data: the whole message, as long as the IP header says.
            pseudo_header_sum: for ICMPv6 (RFC 4443 2.3); None for ICMP, which covers no pseudo header.

        Raises:
            MalformedPacket: fewer than 8 bytes or a wrong checksum.
        """
        if len(data) < ICMP_HEADER_LENGTH:
            raise MalformedPacket(f"ICMP message needs {ICMP_HEADER_LENGTH} bytes, got {len(data)}")
        kind, code, received, rest_of_header = _ICMP.unpack_from(data)
        if checksum(data, pseudo_header_sum or 0) != 0:
            raise MalformedPacket(f"ICMP checksum {received:#06x} is wrong")
        return cls(kind, code, rest_of_header, bytes(data[ICMP_HEADER_LENGTH:]))

    def serialize(self, pseudo_header_sum: int | None = None) -> bytes:
        """The message with its checksum; `pseudo_header_sum` as in `parse`."""
        draft = _ICMP.pack(self.type, self.code, 0, self.rest_of_header) + self.body
        field = checksum(draft, pseudo_header_sum or 0)
        return b"".join((draft[:2], field.to_bytes(2, "big"), draft[4:]))

    def is_error(self, version: int) -> bool:
        """Whether the message reports on another packet, which no ICMP error may answer (RFC 1122 3.2.2)."""
        return self.type in _ICMP4_ERRORS if version == 4 else self.type < _FIRST_ICMP6_INFORMATIONAL

    def is_echo_request(self, version: int) -> bool:
        return self.type == (ICMP4_ECHO_REQUEST if version == 4 else ICMP6_ECHO_REQUEST)

    def is_echo_reply(self, version: int) -> bool:
        return self.type == (ICMP4_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY)

    def unreachable(self, version: int) -> tuple[str, bool] | None:
        """When this is Destination Unreachable: why, and whether for good (RFC 1122 4.2.3.9); else None."""
        if self.type != (ICMP4_UNREACHABLE if version == 4 else ICMP6_UNREACHABLE):
            return None
        number = (version, self.code)
        return _HARD.get(number) or _SOFT.get(number) or f"unreachable, code {self.code}", number in _HARD

    def next_hop_mtu(self, version: int) -> int | None:
        """Bytes, when this is Fragmentation Needed or Packet Too Big; else None. 0 from routers before RFC 1191."""
        if version == 6:
            return self.rest_of_header if self.type == ICMP6_PACKET_TOO_BIG else None
        if (self.type, self.code) == (ICMP4_UNREACHABLE, ICMP4_FRAGMENTATION_NEEDED):
            return self.rest_of_header & 0xFFFF
        return None


def echo_request(version: int, identifier: int, sequence: int, body: bytes = b"") -> IcmpMessage:
    kind = ICMP4_ECHO_REQUEST if version == 4 else ICMP6_ECHO_REQUEST
    return IcmpMessage(kind, 0, identifier << 16 | sequence, body)


def echo_reply(version: int, request: IcmpMessage) -> IcmpMessage:
    """The answer: same identifier, sequence and data (RFC 792, RFC 4443 4.2)."""
    kind = ICMP4_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY
    return IcmpMessage(kind, 0, request.rest_of_header, request.body)


def port_unreachable(version: int, packet: Buffer) -> IcmpMessage:
    """The error for a datagram that no socket wants. `packet` starts with its IP header."""
    if version == 4:
        return IcmpMessage(ICMP4_UNREACHABLE, ICMP4_PORT_UNREACHABLE, 0, bytes(packet[:_ICMP4_QUOTE]))
    return IcmpMessage(ICMP6_UNREACHABLE, ICMP6_PORT_UNREACHABLE, 0, bytes(packet[:_ICMP6_QUOTE]))


def packet_too_big(version: int, mtu: int, packet: Buffer) -> IcmpMessage:
    """The error of path MTU discovery (RFC 1191 section 4, RFC 4443 3.2). `packet` starts with its IP header."""
    if version == 4:
        return IcmpMessage(ICMP4_UNREACHABLE, ICMP4_FRAGMENTATION_NEEDED, mtu, bytes(packet[:_ICMP4_QUOTE]))
    return IcmpMessage(ICMP6_PACKET_TOO_BIG, 0, mtu, bytes(packet[:_ICMP6_QUOTE]))


class QuotedPacket(NamedTuple):
    """What an ICMP error tells of the packet that it is about. Nothing in it is verified: any host can make it up."""

    protocol: int
    source: bytes
    destination: bytes
    source_port: int  # the identifier, if the packet is an echo request; 0 for protocols without ports
    destination_port: int  # 0 for protocols without ports
    tcp_sequence: int | None  # of TCP only; RFC 5927 4.1 checks it against what is in flight

    @classmethod
    def parse(cls, body: Buffer, version: int) -> Self:
        """Read the start of a packet, which may be cut anywhere behind the first 8 bytes of its transport header.

        Args:
            version: of the IP header that carried the error; an error about the other family is a forgery.

        Raises:
            MalformedPacket: cut earlier, another version, or a later fragment, which names no ports.
        """
        if ip_version(body) != version:
            raise MalformedPacket(f"ICMP error over IPv{version} quotes IP version {ip_version(body)}")
        protocol, source, destination, offset = _quoted_ipv4(body) if version == 4 else _quoted_ipv6(body)
        source_port = destination_port = 0
        tcp_sequence = None
        if len(body) < offset + 8:
            raise MalformedPacket("quoted packet cut inside the transport header")
        if protocol == PROTOCOL_TCP:
            source_port, destination_port, tcp_sequence = _PORTS_AND_SEQUENCE.unpack_from(body, offset)
        elif protocol == PROTOCOL_UDP:
            source_port, destination_port = _PORTS.unpack_from(body, offset)
        elif (protocol, body[offset]) in ((PROTOCOL_ICMP, ICMP4_ECHO_REQUEST), (PROTOCOL_ICMPV6, ICMP6_ECHO_REQUEST)):
            source_port, _ = _PORTS.unpack_from(body, offset + 4)
        return cls(protocol, source, destination, source_port, destination_port, tcp_sequence)


def _quoted_ipv4(body: Buffer) -> tuple[int, bytes, bytes, int]:
    """Protocol, addresses and offset of the transport header. Routers may have changed TTL, checksum and lengths."""
    header_length = (body[0] & 0x0F) << 2
    if not IPV4_HEADER_LENGTH <= header_length <= len(body):
        raise MalformedPacket(f"quoted IPv4 header of {header_length} bytes, got {len(body)}")
    if (body[6] & 0x1F) | body[7]:
        raise MalformedPacket("quoted packet is a later fragment")
    return body[9], bytes(body[12:16]), bytes(body[16:20]), header_length


def _quoted_ipv6(body: Buffer) -> tuple[int, bytes, bytes, int]:
    upper = find_upper_layer(body)
    if upper.fragment is not None and upper.fragment.offset:
        raise MalformedPacket("quoted packet is a later fragment")
    return upper.protocol, bytes(body[8:24]), bytes(body[24:40]), upper.offset
