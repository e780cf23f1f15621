"""Segments as whole IP packets."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions, segment_is_intact

ADDRESSES = {4: (bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])), 6: (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(15))}
TIMESTAMP = TcpOptions(timestamp_value=0xDEADBEEF, timestamp_echo=0xFFFFFFFF).serialize()


def packets(version: int, payloads: list[bytes], sequence: int = 1, options: bytes = b"") -> list[bytes]:
    writer = SegmentWriter(*ADDRESSES[version], 40000, 80)
    return writer.run(sequence, payloads, 2**32 + 9, Flags.ACK, Flags.PSH | Flags.FIN, 512, options)


def headers(version: int, packets: list[bytes]) -> list[TcpHeader]:
    return [TcpHeader.parse(packet, 20 if version == 4 else 40) for packet in packets]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"x", b"\xff\xff", b"odd", bytes(1368), b"\xff" * 1368, b"\xff" * 65])
@pytest.mark.parametrize("options", [b"", TIMESTAMP])
def test_checksums_are_right(version: int, payload: bytes, options: bytes) -> None:
    """RFC 9293 MUST-2: over pseudo header, header and text, padded to 16 bits."""
    source, destination = ADDRESSES[version]
    for packet in packets(version, [payload, payload], 0xFFFFFFF0, options):
        assert segment_is_intact(source, destination, packet[20 if version == 4 else 40 :])


def test_the_ipv4_header_is_whole() -> None:
    """RFC 791; RFC 6864 4.1: don't fragment, so identification 0 will do."""
    (packet,) = packets(4, [b"hello"])
    header = Ipv4Header.parse(packet)
    assert (header.source, header.destination) == ADDRESSES[4]
    assert (header.total_length, header.protocol, header.time_to_live) == (len(packet), 6, 64)
    assert header.dont_fragment
    assert header.identification == 0


def test_the_ipv6_header_is_whole() -> None:
    """RFC 8200 3."""
    (packet,) = packets(6, [b"hello"])
    header = Ipv6Header.parse(packet)
    assert (header.source, header.destination) == ADDRESSES[6]
    assert (header.payload_length, header.next_header, header.hop_limit) == (len(packet) - 40, 6, 64)


@pytest.mark.parametrize("version", [4, 6])
def test_the_codepoint_stands_in_the_ip_header_of_every_packet(version: int) -> None:
    """RFC 3168 5; headers of one length and different codepoints are kept apart."""
    writer = SegmentWriter(*ADDRESSES[version], 40000, 80)
    for codepoint in (2, 0, 2, 1, 0):
        run = writer.run(1, [b"hello", b"world"], 1, Flags.ACK, 0, 1, b"", codepoint)
        for packet in run:
            header = Ipv4Header.parse(packet) if version == 4 else Ipv6Header.parse(packet)
            assert header.traffic_class == codepoint
            assert segment_is_intact(*ADDRESSES[version], packet[20 if version == 4 else 40 :])


def test_consecutive_segments_have_consecutive_sequence_numbers() -> None:
    run = headers(4, packets(4, [b"abc", b"defg", b"h"], sequence=2**32 - 4))
    assert [header.sequence for header in run] == [2**32 - 4, 2**32 - 1, 3]


def test_the_acknowledgment_is_cut_to_32_bits() -> None:
    assert headers(4, packets(4, [b"a"]))[0].acknowledgment == 9


def test_only_the_last_segment_carries_the_last_flags() -> None:
    run = headers(6, packets(6, [b"a", b"b", b"c"]))
    assert [header.flags for header in run] == [Flags.ACK, Flags.ACK, Flags.ACK | Flags.PSH | Flags.FIN]


def test_ports_window_options_and_text_are_what_was_asked_for() -> None:
    (packet,) = packets(4, [b"hello"], options=TIMESTAMP)
    (header,) = headers(4, [packet])
    assert (header.source_port, header.destination_port, header.window) == (40000, 80, 512)
    assert header.options.timestamp_value == 0xDEADBEEF
    assert packet[20 + header.header_length :] == b"hello"


def test_segments_of_many_sizes_keep_their_own_lengths() -> None:
    """The headers of the sizes in use are remembered."""
    for packet, size in zip(packets(4, [bytes(size) for size in range(40)]), range(40), strict=True):
        assert Ipv4Header.parse(packet).total_length == len(packet) == 40 + size
