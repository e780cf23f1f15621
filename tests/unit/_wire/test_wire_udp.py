"""UDP header (RFC 768)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire.udp import UdpHeader, datagram_is_intact, serialize_datagram

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")


def test_a_header_is_read_field_by_field() -> None:
    assert UdpHeader.parse(bytes.fromhex("00350bb8000b1234") + b"abc") == UdpHeader(53, 3000, 11, 0x1234)


def test_a_header_is_found_behind_an_offset() -> None:
    wire = memoryview(b"xx" + bytes.fromhex("00350bb800080000"))
    assert UdpHeader.parse(wire, 2) == UdpHeader(53, 3000, 8)


def test_serialize_leaves_the_checksum_as_it_stands() -> None:
    assert UdpHeader(53, 3000, 11, 0x1234).serialize() == bytes.fromhex("00350bb8000b1234")


def test_seven_bytes_are_malformed() -> None:
    with pytest.raises(MalformedPacket, match="8 bytes"):
        UdpHeader.parse(bytes(7))


@pytest.mark.parametrize("length", [0, 7, 12])
def test_a_length_that_contradicts_what_arrived_is_malformed(length: int) -> None:
    """RFC 768: at least 8. Zero means a jumbogram in RFC 2675, which we do not take."""
    with pytest.raises(MalformedPacket, match=r"outside 8\.\.11"):
        UdpHeader.parse(UdpHeader(1, 2, length).serialize() + b"abc")


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_serialized_datagram_is_intact_until_a_bit_flips(addresses: tuple[bytes, bytes]) -> None:
    datagram = bytearray(serialize_datagram(*addresses, 53, 3000, b"odd"))
    assert datagram_is_intact(*addresses, datagram)
    datagram[-1] ^= 0x10
    assert not datagram_is_intact(*addresses, datagram)


def test_a_datagram_for_another_host_is_not_intact() -> None:
    """RFC 768: the pseudo header protects against misrouted datagrams."""
    datagram = serialize_datagram(*V4, 53, 3000, b"abc")
    assert not datagram_is_intact(V4[0], bytes([10, 0, 0, 3]), datagram)


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_computed_zero_is_sent_as_all_ones(addresses: tuple[bytes, bytes]) -> None:
    """RFC 768: zero on the wire means that there is no checksum."""
    plain = serialize_datagram(*addresses, 1, 2, b"\x00\x00")
    payload = plain[6:8]  # adding the complement of the sum to the sum gives all ones, whose complement is zero
    datagram = serialize_datagram(*addresses, 1, 2, payload)
    assert datagram[6:8] == b"\xff\xff"
    assert datagram_is_intact(*addresses, datagram)


def test_no_checksum_passes_over_ipv4_only() -> None:
    """RFC 768, and RFC 8200 8.1: IPv6 receivers must discard."""
    datagram = UdpHeader(1, 2, 11).serialize() + b"abc"
    assert datagram_is_intact(*V4, datagram)
    assert not datagram_is_intact(*V6, datagram)
