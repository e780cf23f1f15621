"""IPv4 header (RFC 791)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire import ip_version
from httpx_wireguard._wire.ipv4 import Ipv4Header

# 115 bytes of UDP from 192.168.0.1 to 192.168.0.199; its checksum, b861, is worked out by hand.
HEADER = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")


def packet_with(position: int, value: int) -> bytes:
    """The sample packet with one header byte replaced and the checksum made right again."""
    header = bytearray(HEADER)
    header[position] = value
    header[10:12] = b"\x00\x00"
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    header[10:12] = (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2, "big")
    return bytes(header) + bytes(95)


def test_a_header_is_read_field_by_field() -> None:
    header = Ipv4Header.parse(HEADER + bytes(95))
    assert header == Ipv4Header(
        source=bytes([192, 168, 0, 1]),
        destination=bytes([192, 168, 0, 199]),
        protocol=17,
        total_length=115,
        dont_fragment=True,
        time_to_live=64,
    )
    assert header.checksum == 0xB861
    assert header.header_length == 20
    assert not header.is_fragment


def test_serialize_fills_in_the_checksum() -> None:
    """RFC 791 3.1."""
    assert Ipv4Header.parse(HEADER + bytes(95)).serialize() == HEADER


def test_a_header_is_found_behind_an_offset() -> None:
    assert Ipv4Header.parse(memoryview(b"ABC" + HEADER + bytes(95)), 3).total_length == 115


def test_a_wrong_header_checksum_is_malformed() -> None:
    """RFC 1122 3.2.1.2: discard silently."""
    with pytest.raises(MalformedPacket, match="checksum"):
        Ipv4Header.parse(HEADER[:-1] + b"\xc8" + bytes(95))


def test_another_version_is_malformed() -> None:
    """RFC 1122 3.2.1.1."""
    with pytest.raises(MalformedPacket, match="version 6"):
        Ipv4Header.parse(packet_with(0, 0x65))


@pytest.mark.parametrize("length", [0, 1, 19])
def test_a_header_cut_short_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket, match="20 bytes"):
        Ipv4Header.parse(HEADER[:length])


@pytest.mark.parametrize("first_byte", [0x40, 0x44])
def test_a_header_length_below_five_words_is_malformed(first_byte: int) -> None:
    """RFC 791 3.1: the minimum value of IHL is 5."""
    with pytest.raises(MalformedPacket, match="lengths"):
        Ipv4Header.parse(packet_with(0, first_byte))


def test_a_total_length_beyond_what_arrived_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="lengths"):
        Ipv4Header.parse(packet_with(3, 116))


def test_a_total_length_inside_the_header_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="lengths"):
        Ipv4Header.parse(packet_with(3, 19))


def test_bytes_behind_the_total_length_are_tolerated() -> None:
    """WireGuard pads the inner packet to 16 bytes; the reader trims by the inner length."""
    assert Ipv4Header.parse(HEADER + bytes(108)).total_length == 115


def test_options_are_kept() -> None:
    header = Ipv4Header(b"\x01" * 4, b"\x02" * 4, 6, 28, options=b"\x94\x04\x00\x00\x01\x01\x01\x00")
    wire = header.serialize()
    assert wire[0] == 0x47
    assert Ipv4Header.parse(wire) == header


@pytest.mark.parametrize("length", [3, 44])
def test_options_of_an_impossible_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="options"):
        Ipv4Header(b"\x01" * 4, b"\x02" * 4, 6, 100, options=bytes(length)).serialize()


def test_fragment_fields_are_in_bytes() -> None:
    """RFC 791 3.1: the wire counts in units of 8 bytes."""
    header = Ipv4Header(
        b"\x01" * 4, b"\x02" * 4, 17, 20, dont_fragment=False, more_fragments=True, fragment_offset=1480
    )
    wire = header.serialize()
    assert wire[6:8] == (0x2000 | 185).to_bytes(2, "big")
    assert Ipv4Header.parse(wire).is_fragment


def test_ip_version_is_the_first_nibble() -> None:
    assert ip_version(HEADER) == 4
    assert ip_version(b"\x60") == 6


def test_an_empty_packet_has_no_version() -> None:
    with pytest.raises(MalformedPacket):
        ip_version(b"")
