"""TCP header and options (RFC 9293, RFC 7323, RFC 2018)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions, segment_is_intact

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")
FIXED = bytes.fromhex("01bbc000 00000001 00000002 5018 ffff 1234 0007")


def with_options(options: bytes) -> bytes:
    """The sample header with raw option bytes, a multiple of 4."""
    assert len(options) % 4 == 0
    wire = bytearray(FIXED + options)
    wire[12] = len(wire) << 2
    return bytes(wire)


def parsed(options: bytes) -> TcpOptions:
    return TcpHeader.parse(with_options(options)).options


def test_a_header_is_read_field_by_field() -> None:
    header = TcpHeader.parse(FIXED + b"payload")
    assert header == TcpHeader(
        source_port=443,
        destination_port=49152,
        sequence=1,
        acknowledgment=2,
        flags=Flags.PSH | Flags.ACK,
        window=0xFFFF,
        checksum=0x1234,
        urgent_pointer=7,
    )
    assert header.header_length == 20


def test_serialize_gives_the_same_bytes_back() -> None:
    assert TcpHeader.parse(FIXED).serialize() == FIXED


def test_a_header_is_found_behind_an_offset() -> None:
    assert TcpHeader.parse(memoryview(bytes(40) + FIXED), 40).source_port == 443


def test_reserved_bits_are_ignored() -> None:
    """RFC 9293 3.1: Rsrvd must be ignored in received segments."""
    wire = bytearray(FIXED)
    wire[12] |= 0x0F
    assert TcpHeader.parse(wire) == TcpHeader.parse(FIXED)


@pytest.mark.parametrize("length", [0, 19])
def test_a_header_cut_short_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPacket, match="20 bytes"):
        TcpHeader.parse(FIXED[:length])


@pytest.mark.parametrize("words", [0, 4, 6, 15])
def test_a_data_offset_that_contradicts_what_arrived_is_malformed(words: int) -> None:
    wire = bytearray(FIXED)
    wire[12] = words << 4
    with pytest.raises(MalformedPacket, match=r"outside 20\.\.20"):
        TcpHeader.parse(wire)


def test_options_of_a_syn_are_laid_out_in_twenty_bytes() -> None:
    """Every 32-bit field on a 4-byte boundary."""
    options = TcpOptions(mss=1380, window_scale=7, sack_permitted=True, timestamp_value=5, timestamp_echo=6)
    assert options.serialize() == bytes.fromhex("02040564 0402080a 00000005 00000006 01030307")


def test_timestamps_alone_are_nop_nop_ts() -> None:
    """RFC 7323 appendix A: the header of a data segment is 32 bytes."""
    header = TcpHeader(1, 2, 3, 4, Flags.ACK, 5, options=TcpOptions(timestamp_value=7, timestamp_echo=8))
    wire = header.serialize()
    assert wire[20:] == bytes.fromhex("0101080a 00000007 00000008")
    assert TcpHeader.parse(wire).header_length == 32


def test_sack_permitted_without_timestamps_is_aligned() -> None:
    wire = TcpOptions(mss=1380, sack_permitted=True).serialize()
    assert wire == bytes.fromhex("02040564 04020101")


def test_four_sack_blocks_fit_without_timestamps() -> None:
    """RFC 2018 section 3."""
    blocks = tuple((n, n + 1) for n in range(10, 60, 10))
    wire = TcpOptions(sack_blocks=blocks).serialize()
    assert wire[:4] == bytes([1, 1, 5, 34])
    assert parsed(wire).sack_blocks == blocks[:4]


def test_three_sack_blocks_fit_beside_timestamps() -> None:
    """RFC 2018 section 3: the last ones are left off, since the first are the news."""
    blocks = tuple((n, n + 1) for n in range(10, 60, 10))
    wire = TcpOptions(sack_blocks=blocks, timestamp_value=1).serialize()
    assert len(wire) == 40
    assert parsed(wire).sack_blocks == blocks[:3]


def test_an_echo_without_a_value_is_not_sent() -> None:
    assert TcpOptions(timestamp_echo=9).serialize() == b""


def test_unaligned_options_are_read() -> None:
    """RFC 9293 MUST-64."""
    options = parsed(bytes.fromhex("01 080a 00000005 00000006 030307 02040564 0000"))
    assert options == TcpOptions(mss=1380, window_scale=7, timestamp_value=5, timestamp_echo=6)


def test_unknown_options_are_ignored() -> None:
    """RFC 9293 MUST-6."""
    assert parsed(bytes.fromhex("fd06f989abcd 1302 02040564")) == TcpOptions(mss=1380)


def test_options_behind_the_end_are_not_read() -> None:
    """RFC 9293 3.2: End of Option List."""
    assert parsed(bytes.fromhex("030307 00 04 0000 02040564 00")) == TcpOptions(window_scale=7)


@pytest.mark.parametrize("length", [0, 1, 9, 255])
def test_a_length_that_leads_nowhere_ends_the_options(length: int) -> None:
    """RFC 9293 MUST-7: zero would loop for ever, 9 and 255 point outside the header."""
    assert parsed(bytes.fromhex("02040564") + bytes([254, length, 3, 3, 7, 1, 1, 1])) == TcpOptions(mss=1380)


def test_an_option_that_reaches_outside_the_header_is_not_cut_to_size() -> None:
    """RFC 9293 MUST-7: timestamps of 12 bytes, 10 of which are there, are no timestamps."""
    assert parsed(bytes.fromhex("0101 080c 00000005 00000006")) == TcpOptions()


def test_a_kind_without_a_length_byte_ends_the_options() -> None:
    """RFC 9293 MUST-7."""
    assert parsed(bytes([3, 3, 7, 2])) == TcpOptions(window_scale=7)


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("length", range(2, 37))
def test_a_known_option_of_a_wrong_length_is_passed_over(kind: int, length: int) -> None:
    """RFC 9293 MUST-7: every length of every kind, with an intact option behind it where there is room."""
    right = {2: (4,), 3: (3,), 4: (2,), 5: (10, 18, 26, 34), 8: (10,)}[kind]
    option = bytes([kind, length]) + bytes(length - 2)
    behind = bytes([8, 10, 0, 0, 0, 1, 0, 0, 0, 2]) if kind == 3 else bytes([3, 3, 7])
    if len(option + behind) > 40:
        behind = b""
    options = parsed((option + behind).ljust(-(-len(option + behind) // 4) * 4, b"\x00"))
    if length not in right:
        expected = TcpOptions(timestamp_value=1, timestamp_echo=2) if kind == 3 else TcpOptions(window_scale=7)
        assert options == (expected if behind else TcpOptions())
    else:
        assert options != TcpOptions()


@pytest.mark.parametrize("count", [15, 255])
def test_a_window_scale_above_fourteen_is_used_as_fourteen(count: int) -> None:
    """RFC 7323 2.3."""
    assert parsed(bytes([3, 3, count, 0])).window_scale == 14


def test_the_aligned_timestamps_equal_the_general_reading() -> None:
    """The shortcut for NOP NOP TS against the same option in another place."""
    aligned = bytes.fromhex("0101 080a deadbeef 01234567")
    moved = bytes.fromhex("01 080a deadbeef 01234567 01")
    assert parsed(aligned) == parsed(moved) == TcpOptions(timestamp_value=0xDEADBEEF, timestamp_echo=0x01234567)


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_serialized_segment_is_intact_until_a_bit_flips(addresses: tuple[bytes, bytes]) -> None:
    """RFC 9293 MUST-2 and MUST-3."""
    header = TcpHeader(1, 2, 3, 4, Flags.ACK, 5, checksum=0xBEEF, options=TcpOptions(timestamp_value=1))
    segment = bytearray(header.serialize_segment(*addresses, b"odd"))
    assert segment_is_intact(*addresses, segment)
    assert TcpHeader.parse(segment).header_length == 32
    segment[-1] ^= 1
    assert not segment_is_intact(*addresses, segment)
