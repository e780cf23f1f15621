"""Every codec: bytes are read or are `MalformedPacket`; what was read, or made up, comes back from its own bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire import ip_version
from httpx_wireguard._wire.checksum import pseudo_header_sum, transport_checksum
from httpx_wireguard._wire.icmp import IcmpMessage, QuotedPacket
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header, find_upper_layer
from httpx_wireguard._wire.tcp import TcpHeader, segment_is_intact
from httpx_wireguard._wire.udp import UdpHeader, datagram_is_intact, serialize_datagram
from httpx_wireguard._wireguard.messages import CookieReply, Initiation, Response, message_type
from tests.fuzz.harness import Script
from tests.fuzz.packets import FAR4, FAR6, OURS4, OURS6

ADDRESSES = ((FAR4, OURS4), (FAR6, OURS6))


def read_ipv4(data: bytes) -> None:
    """With the header's checksum set right: a fuzzer would not guess it."""
    length = 4 * (data[0] & 15) if data else 0
    draft = data[:10] + b"\0\0" + data[12:]
    data = draft[:10] + _plain_checksum(draft[:length]).to_bytes(2, "big") + draft[12:]
    header = Ipv4Header.parse(data)
    assert header.header_length <= header.total_length <= len(data)
    assert Ipv4Header.parse(header.serialize() + data[header.header_length :]) == header


def read_ipv6(data: bytes) -> None:
    header = Ipv6Header.parse(data)
    assert header.serialize() == data[:40]
    upper = find_upper_layer(data)
    assert 40 <= upper.offset <= len(data)
    if upper.fragment is not None:
        assert data[upper.fragment_named_at] == 44
        assert 40 <= upper.fragment_position <= upper.offset - 8


def read_fragment(data: bytes) -> None:
    header = Ipv6FragmentHeader.parse(data, 0)
    assert Ipv6FragmentHeader.parse(header.serialize(), 0) == header


def read_tcp(data: bytes) -> None:
    header = TcpHeader.parse(data)
    again = TcpHeader.parse(header.serialize())
    again.options.sack_blocks = header.options.sack_blocks  # the aligned layout may have room for fewer
    assert again == header
    for source, destination in ADDRESSES:
        assert segment_is_intact(source, destination, header.serialize_segment(source, destination, data[20:]))


def read_udp(data: bytes) -> None:
    header = UdpHeader.parse(data)
    assert header.serialize() == data[:8]
    assert 8 <= header.length <= len(data)
    for source, destination in ADDRESSES:
        datagram = serialize_datagram(source, destination, header.source_port, header.destination_port, data[8:])
        assert datagram_is_intact(source, destination, datagram)
        damaged = bytes([datagram[0] ^ 1]) + datagram[1:]
        assert not datagram_is_intact(source, destination, damaged)


def read_icmp(data: bytes) -> None:
    """With the checksum set right over IPv4, or over IPv6."""
    for source, destination, protocol in ((FAR4, OURS4, 1), (FAR6, OURS6, 58)):
        covered = pseudo_header_sum(source, destination, protocol, len(data)) if protocol == 58 else None
        draft = data[:2] + b"\0\0" + data[4:]
        field = transport_checksum(source, destination, protocol, draft) if covered else _plain_checksum(draft)
        wire = data[:2] + field.to_bytes(2, "big") + data[4:]
        message = IcmpMessage.parse(wire, covered)
        assert message.serialize(covered) == wire
        assert message.length == len(wire)


def _plain_checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def read_quoted(data: bytes) -> None:
    quoted = QuotedPacket.parse(data, ip_version(data))
    assert len(quoted.source) == len(quoted.destination) in (4, 16)
    assert (quoted.tcp_sequence is not None) == (quoted.protocol == 6)


def read_message(data: bytes) -> None:
    kinds: dict[int, type[Initiation | Response | CookieReply]] = {1: Initiation, 2: Response, 3: CookieReply}
    kind = message_type(data)
    if kind in kinds:
        message = kinds[kind].parse(data)
        assert message.serialize() == data
        for other in kinds.values():
            assert other is kinds[kind] or not _parses(other.parse, data)


def _parses(parse: Callable[[bytes], object], data: bytes) -> bool:
    try:
        parse(data)
    except MalformedPacket:
        return False
    return True


def make_ipv4(data: bytes) -> None:
    script = Script(data)
    header = Ipv4Header(*ADDRESSES[0], script.byte(), 0, script.number(2), script.flag(), script.flag())
    header.fragment_offset, header.time_to_live = script.number(2) & ~7, script.byte()
    header.traffic_class, words = script.byte(), script.byte() % 11
    header.options = script.take(4 * words).ljust(4 * words, b"\1")
    payload = script.rest()
    header.total_length = header.header_length + len(payload)
    assert Ipv4Header.parse(header.serialize() + payload) == header


READERS: tuple[Callable[[bytes], None], ...] = (
    read_ipv4,
    read_ipv6,
    read_fragment,
    read_tcp,
    read_udp,
    read_icmp,
    read_quoted,
    read_message,
    make_ipv4,
)


def run(data: bytes) -> None:
    """The first byte says which codec."""
    with contextlib.suppress(MalformedPacket):
        READERS[(data or b"\0")[0] % len(READERS)](data[1:])
