"""Properties of the codecs: what is serialized parses to the same, and no bytes do worse than not to parse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._wire import Buffer, ip_version
from httpx_wireguard._wire.checksum import checksum, ones_sum, pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage, QuotedPacket
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header, find_upper_layer
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions, segment_is_intact
from httpx_wireguard._wire.udp import UdpHeader, datagram_is_intact, serialize_datagram


def uint(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


ADDRESS_PAIRS = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(st.binary(min_size=size, max_size=size), st.binary(min_size=size, max_size=size))
)
SACK_BLOCKS = st.lists(st.tuples(uint(32), uint(32)), max_size=4).map(tuple)


@st.composite
def tcp_options(draw: st.DrawFn) -> TcpOptions:
    """Any options that fit into 40 bytes, so that none is left off."""
    options = TcpOptions(
        mss=draw(st.none() | uint(16)),
        window_scale=draw(st.none() | st.integers(0, 14)),
        sack_permitted=draw(st.booleans()),
        timestamp_value=draw(st.none() | uint(32)),
    )
    if options.timestamp_value is not None:
        options.timestamp_echo = draw(uint(32))
    room = (40 - len(options.serialize()) - 4) // 8
    options.sack_blocks = draw(SACK_BLOCKS)[:room]
    return options


TCP_HEADERS = st.builds(
    TcpHeader,
    source_port=uint(16),
    destination_port=uint(16),
    sequence=uint(32),
    acknowledgment=uint(32),
    flags=uint(8),
    window=uint(16),
    urgent_pointer=uint(16),
    checksum=uint(16),
    options=tcp_options(),
)


def reference_sum(data: bytes) -> int:
    """RFC 1071 section 1 to the letter: add 16-bit words, wrap every carry around."""
    total = 0
    for high, low in zip(data[::2], data[1::2] + b"\x00" * (len(data) % 2), strict=True):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=200) | st.lists(st.sampled_from([0, 255]), max_size=40).map(bytes))
def test_checksum_equals_the_sum_word_by_word(data: bytes) -> None:
    assert ones_sum(data) == reference_sum(data)
    assert checksum(data) == reference_sum(data) ^ 0xFFFF


@given(
    ADDRESS_PAIRS,
    uint(32) | st.integers(2**32 - 50, 2**32),
    st.lists(
        st.sampled_from([b"", b"x", b"\xff\xff", b"four", b"word", bytes(6), b"\xff" * 17]), min_size=1, max_size=9
    ),
    uint(8),
    st.sampled_from([b"", TcpOptions(timestamp_value=0xFFFF0000, timestamp_echo=0xFFFF).serialize()]),
)
def test_a_run_of_segments_is_what_each_of_them_is_by_itself(
    addresses: tuple[bytes, bytes], sequence: int, payloads: list[bytes], flags: int, options: bytes
) -> None:
    """And each says what it was asked to say, with a checksum that is right."""
    writer = SegmentWriter(*addresses, 40_000, 80)
    packets = writer.run(sequence, payloads, 2**32 + 7, flags, Flags.PSH, 512, options)
    assert len(packets) == len(payloads)
    starts = accumulate(map(len, payloads), initial=sequence)
    for packet, payload, start in zip(packets, payloads, starts, strict=False):
        last = Flags.PSH if packet is packets[-1] else 0
        assert [packet] == writer.run(start, [payload], 2**32 + 7, flags, last, 512, options)
        segment = packet[20 if len(addresses[0]) == 4 else 40 :]
        header = TcpHeader.parse(segment)
        assert (header.sequence, header.acknowledgment, header.flags) == (start % 2**32, 7, flags | last)
        assert (header.source_port, header.destination_port, header.window) == (40_000, 80, 512)
        assert segment[20:] == options + payload
        assert segment_is_intact(*addresses, segment)


@given(ADDRESS_PAIRS, uint(8), uint(16), st.binary(max_size=50))
def test_pseudo_header_equals_the_sum_word_by_word(
    addresses: tuple[bytes, bytes], protocol: int, length: int, data: bytes
) -> None:
    layout = b"".join(addresses) + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol]) + data
    assert checksum(data, pseudo_header_sum(*addresses, protocol, length)) == reference_sum(layout) ^ 0xFFFF


@given(
    source=st.binary(min_size=4, max_size=4),
    destination=st.binary(min_size=4, max_size=4),
    protocol=uint(8),
    payload=st.binary(max_size=20),
    identification=uint(16),
    flags=st.tuples(st.booleans(), st.booleans()),
    fragment_offset=st.integers(0, 8191).map(lambda units: units * 8),
    time_to_live=uint(8),
    traffic_class=uint(8),
    options=st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4)),
)
def test_ipv4_round_trip(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    identification: int,
    flags: tuple[bool, bool],
    fragment_offset: int,
    time_to_live: int,
    traffic_class: int,
    options: bytes,
) -> None:
    total_length = 20 + len(options) + len(payload)
    header = Ipv4Header(
        source,
        destination,
        protocol,
        total_length,
        identification,
        *flags,
        fragment_offset,
        time_to_live,
        traffic_class,
        options,
    )
    wire = header.serialize()
    assert len(wire) == header.header_length
    assert Ipv4Header.parse(wire + payload) == header


@given(
    st.builds(
        Ipv6Header,
        source=st.binary(min_size=16, max_size=16),
        destination=st.binary(min_size=16, max_size=16),
        next_header=uint(8),
        payload_length=st.integers(0, 100),
        hop_limit=uint(8),
        traffic_class=uint(8),
        flow_label=uint(20),
    )
)
def test_ipv6_round_trip(header: Ipv6Header) -> None:
    assert Ipv6Header.parse(header.serialize() + bytes(100)) == header


@given(uint(8), st.integers(0, 8191), st.booleans(), uint(32))
def test_ipv6_fragment_header_round_trip(next_header: int, units: int, more: bool, identification: int) -> None:
    header = Ipv6FragmentHeader(next_header, units * 8, more, identification)
    assert Ipv6FragmentHeader.parse(header.serialize()) == header


@given(TCP_HEADERS)
def test_tcp_round_trip(header: TcpHeader) -> None:
    wire = header.serialize()
    parsed = TcpHeader.parse(wire)
    assert parsed == header
    assert parsed.header_length == len(wire)


@given(
    st.builds(
        TcpOptions,
        mss=st.none() | uint(16),
        window_scale=st.none() | st.integers(0, 14),
        sack_permitted=st.booleans(),
        sack_blocks=st.lists(st.tuples(uint(32), uint(32)), max_size=6).map(tuple),
        timestamp_value=st.none() | uint(32),
    )
)
def test_tcp_options_fit_into_the_header(options: TcpOptions) -> None:
    """RFC 9293 3.1: at most 40 bytes, in whole words; the first SACK blocks stay (RFC 2018 section 4)."""
    wire = options.serialize()
    assert len(wire) <= 40
    assert len(wire) % 4 == 0
    blocks = TcpOptions.parse(wire).sack_blocks
    assert blocks == options.sack_blocks[: len(blocks)]
    assert len(blocks) == min(4, len(options.sack_blocks)) or len(wire) > 40 - 8


@given(TCP_HEADERS, ADDRESS_PAIRS, st.binary(max_size=50))
def test_tcp_segments_carry_a_right_checksum(header: TcpHeader, addresses: tuple[bytes, bytes], payload: bytes) -> None:
    segment = header.serialize_segment(*addresses, payload)
    assert segment_is_intact(*addresses, segment)
    assert segment.endswith(payload)


@given(ADDRESS_PAIRS, uint(16), uint(16), st.binary(max_size=50))
def test_udp_round_trip(
    addresses: tuple[bytes, bytes], source_port: int, destination_port: int, payload: bytes
) -> None:
    datagram = serialize_datagram(*addresses, source_port, destination_port, payload)
    header = UdpHeader.parse(datagram)
    assert (header.source_port, header.destination_port) == (source_port, destination_port)
    assert header.length == len(datagram) == 8 + len(payload)
    assert header.serialize() + payload == datagram
    assert header.checksum != 0
    assert datagram_is_intact(*addresses, datagram)


@given(uint(8), uint(8), uint(32), st.binary(max_size=50), st.none() | ADDRESS_PAIRS)
def test_icmp_round_trip(
    kind: int, code: int, rest_of_header: int, body: bytes, addresses: tuple[bytes, bytes] | None
) -> None:
    message = IcmpMessage(kind, code, rest_of_header, body)
    pseudo = None if addresses is None else pseudo_header_sum(*addresses, 58, message.length)
    assert IcmpMessage.parse(message.serialize(pseudo), pseudo) == message


@given(st.binary(max_size=40))
def test_no_option_bytes_break_the_tcp_options(data: bytes) -> None:
    """RFC 9293 MUST-7; what was understood survives being sent and read again."""
    options = TcpOptions.parse(data)
    again = TcpOptions.parse(options.serialize())
    again.sack_blocks = options.sack_blocks  # the aligned layout may have room for fewer
    assert again == options


# A valid first byte lets more than one example in 16 get past the version check.
ARBITRARY = st.builds(lambda first, rest: bytes([first]) + rest, uint(8), st.binary(max_size=120)) | st.binary(
    max_size=8
)
IPV4_LIKE = st.builds(lambda rest: b"\x45" + rest, st.binary(max_size=80))
# Next headers that the walk follows, at the places where it looks for them.
IPV6_LIKE = st.builds(
    lambda addresses, first, chain: b"\x60" + bytes(5) + bytes([first, 64]) + addresses + b"".join(chain),
    st.binary(min_size=32, max_size=32),
    st.sampled_from([0, 6, 17, 43, 44, 58, 59, 60]),
    st.lists(
        st.builds(
            lambda kind, length, rest: bytes([kind, length]) + rest,
            st.sampled_from([0, 6, 17, 43, 44, 58, 59, 60]),
            st.integers(0, 1),
            st.binary(min_size=6, max_size=6) | st.just(bytes(6)),
        ),
        max_size=12,
    ),
)
PARSERS: dict[str, Callable[[Buffer], object]] = {
    "version": ip_version,
    "IPv4": Ipv4Header.parse,
    "IPv6": Ipv6Header.parse,
    "IPv6 chain": find_upper_layer,
    "TCP": TcpHeader.parse,
    "UDP": UdpHeader.parse,
    "ICMP": IcmpMessage.parse,
    "quoted IPv4": lambda data: QuotedPacket.parse(data, 4),
    "quoted IPv6": lambda data: QuotedPacket.parse(data, 6),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=ARBITRARY | IPV4_LIKE | IPV6_LIKE)
def test_arbitrary_bytes_parse_or_are_malformed(name: str, data: bytes) -> None:
    """Nothing from the network raises anything but `MalformedPacket`."""
    for buffer in (data, memoryview(data)):
        with contextlib.suppress(MalformedPacket):
            PARSERS[name](buffer)


@given(IPV6_LIKE)
def test_the_upper_layer_lies_inside_the_packet(data: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        upper = find_upper_layer(data)
        assert 40 <= upper.offset <= len(data)
        assert upper.fragment is None or data[upper.fragment_named_at] == 44
