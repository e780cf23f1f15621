"""IPv6 header and extension headers (RFC 8200)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire import PROTOCOL_FRAGMENT as FRAGMENT
from httpx_wireguard._wire import PROTOCOL_HOP_BY_HOP as HOP_BY_HOP
from httpx_wireguard._wire import PROTOCOL_ROUTING as ROUTING
from httpx_wireguard._wire import PROTOCOL_TCP as TCP
from httpx_wireguard._wire import PROTOCOL_UDP as UDP
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header, find_upper_layer

DESTINATION = 60
SOURCE = bytes.fromhex("fd000000000000000000000000000001")
TARGET = bytes.fromhex("fd000000000000000000000000000002")


def packet(next_header: int, payload: bytes) -> bytes:
    return Ipv6Header(SOURCE, TARGET, next_header, len(payload)).serialize() + payload


def options(next_header: int, content: bytes = b"\x01\x04\x00\x00\x00\x00") -> bytes:
    """A Hop-by-Hop or Destination Options header around `content`, which is 6, 14, 22 … bytes long."""
    return bytes([next_header, (len(content) + 2) // 8 - 1]) + content


def fragment(next_header: int, offset: int, more: bool) -> bytes:
    return Ipv6FragmentHeader(next_header, offset, more, 7).serialize()


def test_a_header_is_read_field_by_field() -> None:
    wire = bytes.fromhex("6a012345") + bytes([0, 3, 17, 63]) + SOURCE + TARGET + b"abc"
    assert Ipv6Header.parse(wire) == Ipv6Header(
        SOURCE, TARGET, next_header=17, payload_length=3, hop_limit=63, traffic_class=0xA0, flow_label=0x12345
    )


def test_serialize_gives_the_same_bytes_back() -> None:
    wire = bytes.fromhex("6a012345") + bytes([0, 0, 17, 63]) + SOURCE + TARGET
    assert Ipv6Header.parse(wire).serialize() == wire


def test_a_header_is_found_behind_an_offset() -> None:
    assert Ipv6Header.parse(memoryview(b"ABC" + packet(UDP, b"x")), 3).payload_length == 1


def test_another_version_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="version 4"):
        Ipv6Header.parse(b"\x45" + bytes(60))


@pytest.mark.parametrize("length", [0, 1, 39])
def test_a_header_cut_short_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket, match="40 bytes"):
        Ipv6Header.parse(packet(TCP, b"")[:length])


def test_a_payload_longer_than_what_arrived_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="payload length 3"):
        Ipv6Header.parse(packet(TCP, b"abc")[:-1])


def test_upper_layer_directly_behind_the_header() -> None:
    upper = find_upper_layer(packet(TCP, bytes(20)))
    assert (upper.protocol, upper.offset, upper.fragment) == (TCP, 40, None)


def test_extension_headers_are_passed() -> None:
    """RFC 8200 section 4: Hop-by-Hop first, then any order."""
    chain = options(ROUTING) + bytes([DESTINATION, 0, 0, 0, 0, 0, 0, 0]) + options(UDP, bytes([1, 12]) + bytes(12))
    upper = find_upper_layer(packet(HOP_BY_HOP, chain + bytes(8)))
    assert (upper.protocol, upper.offset) == (UDP, 40 + len(chain))


def test_unknown_headers_end_the_walk() -> None:
    """ESP (50) and mobility (135) are upper-layer protocols that nobody here speaks."""
    assert find_upper_layer(packet(50, bytes(8))).protocol == 50
    assert find_upper_layer(packet(135, bytes(8))).protocol == 135


def test_hop_by_hop_options_further_back_are_malformed() -> None:
    """RFC 8200 4.1: only immediately after the IPv6 header."""
    with pytest.raises(MalformedPacket, match="hop-by-hop"):
        find_upper_layer(packet(DESTINATION, options(HOP_BY_HOP) + options(TCP) + bytes(20)))


def test_an_endless_chain_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="more than 8"):
        find_upper_layer(packet(DESTINATION, options(DESTINATION) * 100))


def test_eight_extension_headers_pass() -> None:
    chain = options(DESTINATION) * 7 + options(TCP)
    assert find_upper_layer(packet(DESTINATION, chain)).offset == 40 + 64


def test_an_extension_header_cut_short_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="cut short"):
        find_upper_layer(packet(DESTINATION, options(TCP)[:7]))


def test_an_extension_header_longer_than_the_packet_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="longer than the packet"):
        find_upper_layer(packet(DESTINATION, bytes([TCP, 1]) + bytes(13)))


def test_a_route_with_segments_left_is_malformed() -> None:
    """RFC 8200 4.4, RFC 5095: no source routing through us."""
    with pytest.raises(MalformedPacket, match="segments left"):
        find_upper_layer(packet(ROUTING, bytes([TCP, 0, 0, 1, 0, 0, 0, 0]) + bytes(20)))


def test_an_unknown_option_marked_skip_is_skipped() -> None:
    """RFC 8200 4.2: highest bits 00."""
    assert find_upper_layer(packet(DESTINATION, options(TCP, b"\x1e\x04abcd"))).protocol == TCP


@pytest.mark.parametrize("kind", [0x40, 0x80, 0xC2])
def test_an_unknown_option_marked_discard_is_malformed(kind: int) -> None:
    """RFC 8200 4.2: highest bits 01, 10 and 11."""
    with pytest.raises(MalformedPacket, match="asks to discard"):
        find_upper_layer(packet(DESTINATION, options(TCP, bytes([kind, 4]) + b"abcd")))


@pytest.mark.parametrize("content", ["010500000000", "000000000001"])
def test_an_option_longer_than_its_header_is_malformed(content: str) -> None:
    """One with a length that points outside, one whose length byte would stand outside."""
    with pytest.raises(MalformedPacket, match="option longer"):
        find_upper_layer(packet(DESTINATION, options(TCP, bytes.fromhex(content)) + bytes(20)))


def test_a_header_full_of_options_is_malformed() -> None:
    """RFC 8504 5.3: a host may bound them."""
    with pytest.raises(MalformedPacket, match="more than 16"):
        find_upper_layer(packet(DESTINATION, options(TCP, bytes(2046))))


def test_a_later_fragment_ends_the_walk_at_its_data() -> None:
    chain = options(FRAGMENT) + fragment(DESTINATION, 1280, True)
    upper = find_upper_layer(packet(HOP_BY_HOP, chain + bytes(8)))
    assert (upper.protocol, upper.offset) == (DESTINATION, 40 + 16)
    assert upper.fragment == Ipv6FragmentHeader(DESTINATION, 1280, True, 7)
    assert (upper.fragment_position, upper.fragment_named_at) == (48, 40)


def test_an_atomic_fragment_does_not_end_the_walk() -> None:
    """RFC 6946: it is a whole packet."""
    upper = find_upper_layer(packet(FRAGMENT, fragment(DESTINATION, 0, False) + options(UDP) + bytes(8)))
    assert (upper.protocol, upper.offset, upper.fragment_position) == (UDP, 40 + 16, 40)
    assert upper.fragment is not None
    assert upper.fragment.is_atomic


def test_a_first_fragment_without_the_whole_chain_is_malformed() -> None:
    """RFC 7112 section 5."""
    with pytest.raises(MalformedPacket, match="whole header chain"):
        find_upper_layer(packet(FRAGMENT, fragment(TCP, 0, True) + bytes(16)))


def test_a_first_fragment_with_the_whole_chain_passes() -> None:
    upper = find_upper_layer(packet(FRAGMENT, fragment(TCP, 0, True) + bytes(24)))
    assert (upper.protocol, upper.offset) == (TCP, 48)


def test_two_fragment_headers_are_malformed() -> None:
    """A fragment inside a fragment would be reassembled again and again."""
    nested = fragment(FRAGMENT, 0, False) + fragment(TCP, 0, False)
    with pytest.raises(MalformedPacket, match="two"):
        find_upper_layer(packet(FRAGMENT, nested + bytes(20)))


def test_reserved_bits_of_the_fragment_header_are_ignored() -> None:
    """RFC 8200 4.5: initialized to zero, ignored on reception."""
    wire = bytes([TCP, 0xFF]) + (1280 | 0b111).to_bytes(2, "big") + bytes(4)
    assert Ipv6FragmentHeader.parse(wire) == Ipv6FragmentHeader(TCP, 1280, True, 0)


def test_a_fragment_header_cut_short_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="cut at 7"):
        find_upper_layer(packet(FRAGMENT, fragment(TCP, 8, True)[:7]))
