"""Trains of segments against a reading of the headers one by one."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._wire.checksum import checksum
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader
from httpx_wireguard._wire.trains import as_train, train_length

V4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
V6 = bytes(15) + b"\1", bytes(15) + b"\2"
TIMESTAMP = bytes.fromhex("0101080a 00000001 00000002")


def run(addresses: tuple[bytes, bytes], sequence: int, sizes: list[int], options: bytes = TIMESTAMP) -> list[bytes]:
    """Segments one behind the other; those of one size are written together."""
    packets: list[bytes] = []
    writer = SegmentWriter(*addresses, 80, 40000)
    for size, group in groupby(sizes):
        payloads = [bytes(size) for _ in group]
        packets += writer.run(sequence % 2**32, payloads, 1, 0x10, 0x08, 500, options)
        sequence += size * len(payloads)
    return packets


def parsed(packet: bytes) -> tuple[Ipv4Header | Ipv6Header, TcpHeader, int, int]:
    """The headers without what may differ inside a train, how much data the packet has, and its timestamp."""
    ip: Ipv4Header | Ipv6Header
    if packet[0] >> 4 == 4:
        ip = Ipv4Header.parse(packet)
        ip.identification = 0
        length, offset = ip.total_length, 20
        ip.total_length = 0
    else:
        ip = Ipv6Header.parse(packet)
        length, offset = 40 + ip.payload_length, 40
        ip.payload_length = 0
    tcp = TcpHeader.parse(packet, offset)
    tcp.flags &= ~Flags.PSH
    tcp.checksum = 0
    timestamp, tcp.options.timestamp_echo = tcp.options.timestamp_value, 0
    if timestamp is not None:
        tcp.options.timestamp_value = 0
    return ip, tcp, length - offset - 32, timestamp or 0


def own_length(packet: bytes) -> int:
    """What its header says."""
    is_ipv4 = packet[0] >> 4 == 4
    return int.from_bytes(packet[2:4], "big") if is_ipv4 else 40 + int.from_bytes(packet[4:6], "big")


def reference(packets: list[bytes]) -> int:
    """How many packets, after the first, continue it."""
    ip, tcp, size, latest = parsed(packets[0])
    if not size:
        return 0
    for index, packet in enumerate(packets[1:], 1):
        end = tcp.sequence + size
        try:
            next_ip, next_tcp, size, timestamp = parsed(packet)
        except MalformedPacket:
            return index
        tcp.sequence = end
        is_next = next_tcp == tcp and next_tcp.header_length == tcp.header_length
        goes_back = (timestamp - latest) % 2**32 >= 2**31
        if next_ip != ip or not is_next or end >= 2**32 or size <= 0 or goes_back:
            return index
        latest = timestamp
    return len(packets)


@settings(max_examples=800)
@given(
    st.sampled_from([V4, V6]),
    st.sampled_from([0, 2**31, 2**32 - 2500]),
    st.lists(st.sampled_from([0, 1, 1000, 1000, 1000, 1368]), min_size=1, max_size=9).flatmap(
        lambda sizes: st.sampled_from([sizes, sizes * 9, [1000] * len(sizes)])
    ),
    st.sampled_from([0, 9]),
    st.lists(
        st.tuples(
            st.integers(-1, 8), st.integers(0, 71) | st.integers(2, 7) | st.integers(-8, -1), st.sampled_from([1, 8])
        ),
        max_size=3,
    ),
)
def test_a_train_ends_where_a_header_differs(
    addresses: tuple[bytes, bytes],
    sequence: int,
    sizes: list[int],
    padding: int,
    changes: list[tuple[int, int, int]],
) -> None:
    packets = [bytearray(packet + bytes(padding)) for packet in run(addresses, sequence, sizes)]
    header = len(packets[0]) - sizes[0] - padding
    for index, at, bit in changes:
        at += header if at < 0 else 0
        if index < len(packets) and index % len(packets) and at < header:
            to = len(packets) if at >= header - 8 else index + 1 or None  # the clock goes on from there
            for packet in packets[index:to]:
                packet[at] ^= 16 if at == header - 20 else bit  # the length of the header, not what is reserved
                if addresses is V4:
                    packet[10:12] = bytes(2)
                    packet[10:12] = checksum(packet[:20]).to_bytes(2, "big")
    batch = [bytes(packet) for packet in packets]
    expected = reference(batch)
    train = as_train(batch)
    assert train == ([packet[: own_length(packet)] for packet in batch] if expected == len(batch) else None)
    if all(own_length(packet) <= len(packet) for packet in batch):
        assert train_length(batch) == expected


@given(st.sampled_from([V4, V6]), st.sampled_from([b"", TIMESTAMP[::-1], TIMESTAMP + bytes(4)]), st.integers(0, 9))
def test_what_the_fast_path_does_not_know_is_no_train(
    addresses: tuple[bytes, bytes], options: bytes, size: int
) -> None:
    assert train_length(run(addresses, 7, [size] * 5, options)) == 0
    assert train_length(run(addresses, 7, [0] * 5)) == 0
    assert train_length([packet[:30] for packet in run(addresses, 7, [size] * 5)]) == 0
    datagrams = [packet[:9] + b"\x11" + packet[10:] for packet in run(V4, 7, [100] * 5)]
    fragments = [packet[:7] + b"\x01" + packet[8:] for packet in run(V4, 7, [100] * 5)]
    assert train_length(datagrams) == train_length(fragments) == 0


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize(("value", "length"), [(2, 6), (1, 6), (0, 3), (2**31, 6), (2**31 + 1, 3)])
def test_the_clock_of_a_train_does_not_go_back(addresses: tuple[bytes, bytes], value: int, length: int) -> None:
    later = TIMESTAMP[:4] + value.to_bytes(4, "big") + TIMESTAMP[8:]
    assert train_length(run(addresses, 7, [1000] * 3) + run(addresses, 3007, [1000] * 3, later)) == length
