"""The Internet checksum (RFC 1071)."""

from __future__ import annotations

import pytest

from httpx_wireguard._wire.checksum import checksum, ones_sum, pseudo_header_sum, transport_checksum


def test_sum_of_the_example_in_the_rfc() -> None:
    """RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_sum(data) == 0xDDF2
    assert checksum(data) == 0x220D


def test_odd_length_counts_as_padded_with_a_zero_byte() -> None:
    """RFC 1071 section 1 and RFC 9293 3.1."""
    assert ones_sum(b"\x12\x34\x56") == ones_sum(b"\x12\x34\x56\x00") == 0x1234 + 0x5600


def test_words_that_add_up_to_all_ones_have_checksum_zero() -> None:
    """The two zeros of one's complement: 0xFFFF comes out of any sum but that of nothing."""
    assert checksum(b"\xff\xff") == 0
    assert checksum(b"\x12\x34\xed\xcb") == 0


def test_nothing_but_zeros_has_checksum_all_ones() -> None:
    assert checksum(bytes(20)) == checksum(b"") == 0xFFFF


def test_partial_sums_of_even_pieces_add_up() -> None:
    """RFC 1071 section 2 (C): incremental computation."""
    head, tail = bytes(range(250, 256)), b"\xff\xfe\xfd\xfc\xfb"
    assert checksum(tail, ones_sum(head)) == checksum(head + tail)


def test_pseudo_header_of_ipv4_equals_its_bytes() -> None:
    """RFC 9293 3.1: source, destination, zero, protocol, length."""
    source, destination = bytes([192, 168, 0, 1]), bytes([10, 0, 0, 200])
    layout = source + destination + bytes([0, 17]) + (1000).to_bytes(2, "big")
    assert checksum(b"", pseudo_header_sum(source, destination, 17, 1000)) == checksum(layout)


def test_pseudo_header_of_ipv6_equals_its_bytes() -> None:
    """RFC 8200 8.1: source, destination, 32-bit length, 24 zero bits, next header."""
    source, destination = bytes(range(16)), bytes(range(100, 116))
    layout = source + destination + (70000).to_bytes(4, "big") + bytes([0, 0, 0, 58])
    assert checksum(b"", pseudo_header_sum(source, destination, 58, 70000)) == checksum(layout)


def test_pseudo_header_sum_is_linear_in_the_length() -> None:
    """A connection may keep the sum for length 0 and add each segment's length."""
    source, destination = b"\xfe" * 16, b"\xff" * 16
    once = pseudo_header_sum(source, destination, 6, 0)
    for length in (20, 1420, 65535):
        whole = pseudo_header_sum(source, destination, 6, length)
        assert checksum(b"x", once + length) == checksum(b"x", whole)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(kind: type[bytes | bytearray | memoryview]) -> None:
    assert checksum(kind(b"\x01\x02\x03")) == checksum(b"\x01\x02\x03\x00")


def test_a_segment_with_its_checksum_in_place_sums_to_zero() -> None:
    """RFC 1071 section 1: the receiver sums over the field too."""
    source, destination = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    segment = bytearray(b"\x01\x02\x00\x00payload")
    segment[2:4] = transport_checksum(source, destination, 6, segment).to_bytes(2, "big")
    assert transport_checksum(source, destination, 6, segment) == 0
    segment[5] ^= 1
    assert transport_checksum(source, destination, 6, segment) != 0
