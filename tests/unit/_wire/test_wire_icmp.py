"""ICMP (RFC 792) and ICMPv6 (RFC 4443)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire import icmp
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage, QuotedPacket
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader
from httpx_wireguard._wire.udp import serialize_datagram

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")
SEGMENT = TcpHeader(40000, 443, 0xCAFEBABE, 0, Flags.SYN, 1000).serialize_segment(*V4)


def ipv4(protocol: int, payload: bytes, options: bytes = b"", fragment_offset: int = 0) -> bytes:
    total = 20 + len(options) + len(payload)
    header = Ipv4Header(*V4, protocol, total, options=options, dont_fragment=False, fragment_offset=fragment_offset)
    return header.serialize() + payload


def ipv6(next_header: int, payload: bytes) -> bytes:
    return Ipv6Header(*V6, next_header, len(payload)).serialize() + payload


def test_an_echo_request_is_laid_out_as_in_the_rfc() -> None:
    """RFC 792: type 8, code 0, checksum, identifier, sequence, data."""
    assert icmp.echo_request(4, 0x1234, 2, b"ab").serialize() == bytes.fromhex("0800 8467 1234 0002 6162")


def test_an_echo_request_is_read_field_by_field() -> None:
    message = IcmpMessage.parse(bytes.fromhex("0800 8467 1234 0002 6162"))
    assert (message.identifier, message.sequence, message.body) == (0x1234, 2, b"ab")
    assert message.is_echo_request(4)
    assert not message.is_echo_request(6)


def test_a_wrong_checksum_is_malformed() -> None:
    """RFC 1122 3.2.2 leaves it to RFC 792: the checksum covers the whole message."""
    with pytest.raises(MalformedPacket, match="checksum"):
        IcmpMessage.parse(bytes.fromhex("0800 8467 1234 0002 6163"))


def test_icmpv6_covers_the_pseudo_header() -> None:
    """RFC 4443 2.3."""
    message = icmp.echo_request(6, 1, 2, b"odd")
    pseudo = pseudo_header_sum(*V6, 58, message.length)
    wire = message.serialize(pseudo)
    assert IcmpMessage.parse(wire, pseudo) == message
    with pytest.raises(MalformedPacket, match="checksum"):
        IcmpMessage.parse(wire, pseudo_header_sum(V6[0], V6[0], 58, message.length))
    with pytest.raises(MalformedPacket, match="checksum"):
        IcmpMessage.parse(wire)


@pytest.mark.parametrize("length", [0, 7])
def test_a_message_cut_short_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket, match="8 bytes"):
        IcmpMessage.parse(bytes(length))


@pytest.mark.parametrize("version", [4, 6])
def test_a_reply_carries_the_request_back(version: int) -> None:
    """RFC 792 and RFC 4443 4.2: identifier, sequence and data are returned."""
    reply = icmp.echo_reply(version, icmp.echo_request(version, 7, 8, b"data"))
    assert reply.is_echo_reply(version)
    assert not reply.is_error(version)
    assert (reply.identifier, reply.sequence, reply.body) == (7, 8, b"data")


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_errors_of_icmp(kind: int) -> None:
    """RFC 1122 3.2.2: unreachable, quench, redirect, time exceeded, parameter problem."""
    assert IcmpMessage(kind, 0, 0, b"").is_error(4)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 100, 127])
def test_errors_of_icmpv6(kind: int) -> None:
    """RFC 4443 2.1: the high bit is clear, unknown ones included."""
    assert IcmpMessage(kind, 0, 0, b"").is_error(6)


@pytest.mark.parametrize(("version", "whole"), [(4, 576), (6, 1280)])
def test_an_error_quotes_no_more_than_every_host_can_take(version: int, whole: int) -> None:
    """RFC 1812 4.3.2.3, RFC 4443 2.4 (c)."""
    header = 20 if version == 4 else 40
    for message in (icmp.port_unreachable(version, bytes(2000)), icmp.packet_too_big(version, 1300, bytes(2000))):
        assert header + message.length == whole
        assert message.is_error(version)


@pytest.mark.parametrize("version", [4, 6])
def test_packet_too_big_tells_the_mtu(version: int) -> None:
    """RFC 1191 section 4, RFC 4443 3.2."""
    assert icmp.packet_too_big(version, 1300, b"").next_hop_mtu(version) == 1300
    assert icmp.port_unreachable(version, b"").next_hop_mtu(version) is None


def test_the_mtu_of_icmp_is_sixteen_bits() -> None:
    """RFC 1191 section 4: the other half is unused."""
    assert IcmpMessage(3, 4, 0xABCD0514, b"").next_hop_mtu(4) == 0x0514


def test_a_quoted_tcp_segment_names_its_ports_and_sequence() -> None:
    """RFC 792: header plus the first 64 bits of data are always there."""
    quoted = QuotedPacket.parse(ipv4(6, SEGMENT)[:28], 4)
    assert quoted == QuotedPacket(6, *V4, 40000, 443, 0xCAFEBABE)


def test_a_quoted_tcp_segment_over_ipv6() -> None:
    assert QuotedPacket.parse(ipv6(6, SEGMENT), 6) == QuotedPacket(6, *V6, 40000, 443, 0xCAFEBABE)


def test_a_quoted_datagram_has_no_sequence() -> None:
    datagram = serialize_datagram(*V4, 5000, 53, b"query")
    assert QuotedPacket.parse(ipv4(17, datagram), 4) == QuotedPacket(17, *V4, 5000, 53, None)


@pytest.mark.parametrize("version", [4, 6])
def test_a_quoted_echo_request_has_its_identifier_as_source_port(version: int) -> None:
    message = icmp.echo_request(version, 777, 1).serialize(None)
    body = ipv4(1, message) if version == 4 else ipv6(58, message)
    quoted = QuotedPacket.parse(body, version)
    assert (quoted.source_port, quoted.destination_port, quoted.tcp_sequence) == (777, 0, None)


def test_a_quoted_packet_of_another_protocol_has_no_ports() -> None:
    assert QuotedPacket.parse(ipv4(47, b"12345678"), 4) == QuotedPacket(47, *V4, 0, 0, None)


def test_options_of_the_quoted_header_are_passed() -> None:
    assert QuotedPacket.parse(ipv4(6, SEGMENT, options=bytes(8)), 4).source_port == 40000


def test_extension_headers_of_the_quoted_packet_are_passed() -> None:
    body = ipv6(60, bytes([6, 0, 1, 4, 0, 0, 0, 0]) + SEGMENT)
    assert QuotedPacket.parse(body, 6).destination_port == 443


def test_a_quoted_header_that_a_router_changed_is_still_read() -> None:
    """TTL and checksum differ from what was sent, and the total length is that of the whole packet."""
    body = bytearray(ipv4(6, SEGMENT)[:28])
    body[8], body[10] = 1, 0xFF
    assert QuotedPacket.parse(body, 4).source_port == 40000


@pytest.mark.parametrize("length", range(28))
def test_a_quote_cut_before_the_ports_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket):
        QuotedPacket.parse(ipv4(6, SEGMENT)[:length], 4)


@pytest.mark.parametrize("length", range(48))
def test_an_ipv6_quote_cut_before_the_ports_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket):
        QuotedPacket.parse(ipv6(6, SEGMENT)[:length], 6)


def test_a_quote_of_the_other_family_is_malformed() -> None:
    """Nobody but a forger reports over IPv4 on an IPv6 packet."""
    with pytest.raises(MalformedPacket, match="quotes IP version 6"):
        QuotedPacket.parse(ipv6(6, SEGMENT), 4)


def test_a_quoted_later_fragment_is_malformed() -> None:
    """Its data is no transport header."""
    with pytest.raises(MalformedPacket, match="later fragment"):
        QuotedPacket.parse(ipv4(6, SEGMENT, fragment_offset=8), 4)
    later = Ipv6FragmentHeader(6, 8, True, 1).serialize() + SEGMENT
    with pytest.raises(MalformedPacket, match="later fragment"):
        QuotedPacket.parse(ipv6(44, later), 6)
