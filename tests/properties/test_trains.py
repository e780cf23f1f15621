"""Trains of segments against a reading of the headers one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._wire.checksum import checksum
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader
from httpx_wireguard._wire.trains import train_length

V4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
V6 = bytes(15) + b"\1", bytes(15) + b"\2"
TIMESTAMP = bytes.fromhex("0101080a 00000001 00000002")


def run(
    addresses: tuple[bytes, bytes], sequence: int, size: int, count: int, options: bytes = TIMESTAMP
) -> list[bytes]:
    return SegmentWriter(*addresses, 80, 40000).run(sequence, [bytes(size)] * count, 1, 0x10, 0x08, 500, options)


def parsed(packet: bytes) -> tuple[Ipv4Header | Ipv6Header, TcpHeader, int]:
    """The headers without what may differ inside a train, and the sequence number behind the packet."""
    ip: Ipv4Header | Ipv6Header
    if packet[0] >> 4 == 4:
        ip = Ipv4Header.parse(packet)
        ip.identification = 0
        length, offset = ip.total_length, 20
    else:
        ip = Ipv6Header.parse(packet)
        length, offset = 40 + ip.payload_length, 40
    tcp = TcpHeader.parse(packet, offset)
    tcp.flags &= ~Flags.PSH
    tcp.checksum = 0
    return ip, tcp, tcp.sequence + length - offset - 32


def reference(packets: list[bytes]) -> int:
    """How many packets, after the first, continue it."""
    ip, tcp, end = parsed(packets[0])
    for index, packet in enumerate(packets[1:], 1):
        try:
            next_ip, next_tcp, next_end = parsed(packet)
        except MalformedPacket:
            return index
        tcp.sequence = end
        is_next = next_tcp == tcp and next_tcp.header_length == tcp.header_length
        if next_ip != ip or not is_next or end >= 2**32:
            return index
        end = next_end
    return len(packets)


@settings(max_examples=400)
@given(
    st.sampled_from([V4, V6]),
    st.sampled_from([0, 2**31, 2**32 - 2500]),
    st.sampled_from([1, 2, 5, 70]),
    st.sampled_from([1, 1000]),
    st.sampled_from([0, 9]),
    st.lists(st.tuples(st.integers(1, 69), st.integers(0, 71), st.sampled_from([1, 8])), max_size=3),
)
def test_a_train_ends_where_a_header_differs(
    addresses: tuple[bytes, bytes],
    sequence: int,
    count: int,
    size: int,
    padding: int,
    changes: list[tuple[int, int, int]],
) -> None:
    packets = [bytearray(packet + bytes(padding)) for packet in run(addresses, sequence, size, count)]
    header = len(packets[0]) - size - padding
    for index, at, bit in changes:
        if index < count and at < header:
            packets[index][at] ^= 16 if at == header - 20 else bit  # the length of the header, not what is reserved
            if addresses is V4:
                packets[index][10:12] = bytes(2)
                packets[index][10:12] = checksum(packets[index][:20]).to_bytes(2, "big")
    batch = [bytes(packet) for packet in packets]
    assert train_length(batch) == reference(batch)


@given(st.sampled_from([V4, V6]), st.sampled_from([b"", TIMESTAMP[::-1], TIMESTAMP + bytes(4)]), st.integers(0, 9))
def test_what_the_fast_path_does_not_know_is_no_train(
    addresses: tuple[bytes, bytes], options: bytes, size: int
) -> None:
    assert train_length(run(addresses, 7, size, 5, options)) == 0
    assert train_length(run(addresses, 7, 0, 5)) == 0
    assert train_length([packet[:30] for packet in run(addresses, 7, size, 5)]) == 0
    datagrams = [packet[:9] + b"\x11" + packet[10:] for packet in run(V4, 7, 100, 5)]
    fragments = [packet[:7] + b"\x01" + packet[8:] for packet in run(V4, 7, 100, 5)]
    assert train_length(datagrams) == train_length(fragments) == 0
