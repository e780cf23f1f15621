"""Reassembly of IP fragments (RFC 791 3.2, RFC 8200 4.5)."""

from __future__ import annotations

from collections import Counter

import pytest

from httpx_wireguard._netstack.fragments import MAX_FRAGMENTS, REASSEMBLY_TIMEOUT, FragmentReassembler
from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, with_ecn
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")
UDP, FRAGMENT, DESTINATION = 17, 44, 60
PAYLOAD = bytes(range(24))


def ipv4(
    offset: int, data: bytes, more: bool, identification: int = 1, options: bytes = b"", traffic_class: int = 0
) -> bytes:
    header = Ipv4Header(
        *V4,
        protocol=UDP,
        total_length=20 + len(options) + len(data),
        identification=identification,
        dont_fragment=False,
        more_fragments=more,
        fragment_offset=offset,
        traffic_class=traffic_class,
        options=options,
    )
    return header.serialize() + data


def ipv6(offset: int, data: bytes, more: bool, identification: int = 1, next_header: int = UDP) -> bytes:
    payload = Ipv6FragmentHeader(next_header, offset, more, identification).serialize() + data
    return Ipv6Header(*V6, FRAGMENT, len(payload)).serialize() + payload


def whole_ipv4(data: bytes, identification: int = 1) -> bytes:
    return ipv4(0, data, False, identification)


def whole_ipv6(data: bytes) -> bytes:
    return Ipv6Header(*V6, UDP, len(data)).serialize() + data


def test_a_packet_that_is_no_fragment_passes_as_it_is() -> None:
    reassembler = FragmentReassembler()
    for packet in (whole_ipv4(b"data"), whole_ipv6(b"data")):
        add = reassembler.add_ipv4 if packet[0] == 0x45 else reassembler.add_ipv6
        assert add(packet, 0.0) is packet
    assert reassembler.next_timeout() is None


def test_two_ipv4_fragments_make_the_packet() -> None:
    """RFC 791 3.2: header of the first fragment, total length and checksum anew."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 0.0) is None
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False), 0.1) == whole_ipv4(PAYLOAD)
    assert len(reassembler) == reassembler.bytes_held == 0
    assert reassembler.next_timeout() is None


def test_two_ipv6_fragments_make_the_packet() -> None:
    """RFC 8200 4.5: the Fragment header is gone from the rebuilt packet."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv6(ipv6(0, PAYLOAD[:16], True), 0.0) is None
    assert reassembler.add_ipv6(ipv6(16, PAYLOAD[16:], False), 0.1) == whole_ipv6(PAYLOAD)
    assert len(reassembler) == reassembler.bytes_held == 0


def test_fragments_may_arrive_in_any_order() -> None:
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False), 0.0) is None
    assert reassembler.add_ipv4(ipv4(0, PAYLOAD[:8], True), 0.0) is None
    assert reassembler.add_ipv4(ipv4(8, PAYLOAD[8:16], True), 0.0) == whole_ipv4(PAYLOAD)


@pytest.mark.parametrize("congested", [0, 1, 2])
def test_a_congestion_mark_on_any_fragment_is_one_on_the_packet(congested: int) -> None:
    """RFC 3168 5.3."""
    reassembler = FragmentReassembler()
    rebuilt = None
    for number in (1, 0, 2):
        data, codepoint = PAYLOAD[number * 8 : number * 8 + 8], CE if number == congested else ECT_0
        rebuilt = reassembler.add_ipv4(ipv4(number * 8, data, number < 2, traffic_class=0x60 | codepoint), 0.0)
    assert rebuilt == ipv4(0, PAYLOAD, False, traffic_class=0x60 | CE)


def test_fragments_of_equal_codepoint_keep_it() -> None:
    reassembler = FragmentReassembler()
    for codepoint in (NOT_ECT, ECT_0, ECT_1, CE):
        reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, traffic_class=codepoint), 0.0)
        rebuilt = reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False, traffic_class=codepoint), 0.0)
        assert rebuilt == ipv4(0, PAYLOAD, False, traffic_class=codepoint)


@pytest.mark.parametrize("codepoints", [(CE, NOT_ECT), (NOT_ECT, CE)])
def test_a_congestion_mark_beside_a_fragment_without_ecn_drops_the_datagram(codepoints: tuple[int, int]) -> None:
    """RFC 3168 5.3: a mark must not be lost, and must not reach who does not know of it."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv6(with_ecn(ipv6(0, PAYLOAD[:16], True), codepoints[0]), 0.0) is None
    assert reassembler.add_ipv6(with_ecn(ipv6(16, PAYLOAD[16:], False), codepoints[1]), 0.0) is None
    assert reassembler.drops == {"congestion mark on a fragment without ECN": 1}
    assert len(reassembler) == reassembler.bytes_held == 0


def test_padding_behind_the_fragment_is_cut_off() -> None:
    """WireGuard pads the inner packet to 16 bytes."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True) + bytes(12), 0.0)
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False) + bytes(4), 0.0) == whole_ipv4(PAYLOAD)
    reassembler.add_ipv6(ipv6(0, PAYLOAD[:16], True) + bytes(12), 0.0)
    assert reassembler.add_ipv6(ipv6(16, PAYLOAD[16:], False) + bytes(4), 0.0) == whole_ipv6(PAYLOAD)


def test_options_of_the_first_ipv4_fragment_are_kept() -> None:
    """RFC 791 3.2: options that are not copied stand in the first fragment only."""
    reassembler = FragmentReassembler()
    options = b"\x07\x03\x04\x00"
    reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False), 0.0)
    packet = reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, options=options), 0.0)
    assert packet == ipv4(0, PAYLOAD, False, options=options)


def test_the_unfragmentable_part_names_what_followed_the_fragment_header() -> None:
    """RFC 8200 4.5: the Next Header of its last header comes from the first fragment's Fragment header."""
    skipped = bytes([FRAGMENT, 0, 1, 4, 0, 0, 0, 0])

    def packet(offset: int, data: bytes, more: bool, next_header: int) -> bytes:
        payload = skipped + Ipv6FragmentHeader(next_header, offset, more, 1).serialize() + data
        return Ipv6Header(*V6, DESTINATION, len(payload)).serialize() + payload

    reassembler = FragmentReassembler()
    reassembler.add_ipv6(packet(16, PAYLOAD[16:], False, next_header=99), 0.0)
    rebuilt = reassembler.add_ipv6(packet(0, PAYLOAD[:16], True, next_header=UDP), 0.0)
    payload = bytes([UDP]) + skipped[1:] + PAYLOAD
    assert rebuilt == Ipv6Header(*V6, DESTINATION, len(payload)).serialize() + payload


def test_datagrams_with_other_identifications_are_kept_apart() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, b"A" * 8, True, identification=1), 0.0)
    reassembler.add_ipv4(ipv4(0, b"B" * 8, True, identification=2), 0.0)
    reassembler.add_ipv6(ipv6(0, b"C" * 8, True, identification=1), 0.0)
    assert reassembler.add_ipv4(ipv4(8, b"a", False, identification=1), 0.0) == whole_ipv4(b"A" * 8 + b"a", 1)
    assert reassembler.add_ipv4(ipv4(8, b"b", False, identification=2), 0.0) == whole_ipv4(b"B" * 8 + b"b", 2)
    assert reassembler.add_ipv6(ipv6(8, b"c", False, identification=1), 0.0) == whole_ipv6(b"C" * 8 + b"c")


def test_an_exact_copy_is_passed_over() -> None:
    """RFC 8200 4.5: networks duplicate."""
    reassembler = FragmentReassembler()
    for _ in range(2):
        assert reassembler.add_ipv6(ipv6(0, PAYLOAD[:8], True), 0.0) is None
        assert reassembler.add_ipv6(ipv6(16, PAYLOAD[16:], False), 0.0) is None
    assert reassembler.bytes_held == 16
    assert reassembler.add_ipv6(ipv6(8, PAYLOAD[8:16], True), 0.0) == whole_ipv6(PAYLOAD)
    assert not reassembler.drops


@pytest.mark.parametrize(
    ("offset", "data", "more"),
    [(8, b"x" * 8, True), (0, b"x" * 16, True), (8, b"x" * 16, True), (16, b"x" * 16, True), (16, b"x", False)],
)
def test_overlap_drops_the_datagram_and_all_that_follows_of_it(offset: int, data: bytes, more: bool) -> None:
    """RFC 5722 section 3: those not yet received included."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv6(ipv6(8, PAYLOAD[8:24], True), 0.0)
    assert reassembler.add_ipv6(ipv6(offset, data, more), 0.0) is None
    assert reassembler.drops == {"fragments overlap": 1}
    assert reassembler.bytes_held == 0
    for start, piece, has_more in ((0, b"", True), (0, PAYLOAD[:8], True), (8, PAYLOAD[8:24], True), (24, b"z", False)):
        assert reassembler.add_ipv6(ipv6(start, piece, has_more), 1.0) is None
    assert reassembler.bytes_held == 0


def test_overlap_of_ipv4_fragments_drops_the_datagram_too() -> None:
    """RFC 5722 speaks of IPv6; what it prevents works over IPv4 as well."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 0.0)
    assert reassembler.add_ipv4(ipv4(8, PAYLOAD[8:], False), 0.0) is None
    assert reassembler.drops == {"fragments overlap": 1}


def test_a_rejected_datagram_is_forgotten_with_its_time() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 0.0)
    reassembler.add_ipv4(ipv4(8, PAYLOAD[8:], False), 0.0)
    reassembler.handle_timeout(REASSEMBLY_TIMEOUT)
    assert len(reassembler) == 0
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 31.0)
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False), 31.0) == whole_ipv4(PAYLOAD)


def test_two_ends_drop_the_datagram() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(16, b"end", False), 0.0)
    assert reassembler.add_ipv4(ipv4(32, b"end", False), 0.0) is None
    assert reassembler.drops == {"fragments disagree about the length": 1}


def test_data_behind_the_end_drops_the_datagram() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(16, b"end", False), 0.0)
    assert reassembler.add_ipv4(ipv4(24, bytes(8), True), 0.0) is None
    assert reassembler.drops == {"fragments disagree about the length": 1}


def test_an_end_before_data_drops_the_datagram() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(24, bytes(8), True), 0.0)
    assert reassembler.add_ipv4(ipv4(16, b"end", False), 0.0) is None
    assert reassembler.drops == {"fragments disagree about the length": 1}


def test_a_copy_that_claims_to_be_the_end_drops_the_datagram() -> None:
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(16, bytes(8), True), 0.0)
    assert reassembler.add_ipv4(ipv4(16, bytes(8), False), 0.0) is None
    assert reassembler.drops == {"fragments disagree about the length": 1}


@pytest.mark.parametrize("data", [b"", b"1234567"])
def test_a_fragment_of_an_impossible_length_is_dropped(data: bytes) -> None:
    """RFC 8200 4.5: all but the last are multiples of 8 bytes."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv4(ipv4(8, data, True), 0.0) is None
    assert reassembler.add_ipv6(ipv6(8, data, True), 0.0) is None
    assert reassembler.drops == {"fragment length": 2}
    assert len(reassembler) == 0


def test_a_fragment_beyond_the_largest_packet_is_dropped() -> None:
    """The "ping of death": offset and length add up to more than 65,535."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv4(ipv4(65528, bytes(8), False), 0.0) is None
    assert reassembler.add_ipv6(ipv6(65528, bytes(8), False), 0.0) is None
    assert reassembler.drops == {"fragment beyond 65,535 bytes": 2}
    assert len(reassembler) == 0


def test_headers_that_make_the_packet_too_long_are_noticed_at_the_end() -> None:
    """The first fragment's header may be longer than the last one's."""
    reassembler = FragmentReassembler()
    packet = None
    for offset in range(8000, 65500, 8000):
        reassembler.add_ipv4(ipv4(offset, bytes(min(8000, 65512 - offset)), offset < 64000), 0.0)
    packet = reassembler.add_ipv4(ipv4(0, bytes(8000), True, options=bytes(8)), 0.0)
    assert packet is None
    assert reassembler.drops == {"fragment beyond 65,535 bytes": 1}
    assert reassembler.bytes_held == len(reassembler) == 0


def test_extension_headers_that_make_the_packet_too_long_are_noticed_at_the_end() -> None:
    """RFC 8200 4.5: the unfragmentable part counts, and only the first fragment's is used."""
    reassembler = FragmentReassembler()
    for offset in range(8000, 65500, 8000):
        reassembler.add_ipv6(ipv6(offset, bytes(min(8000, 65535 - offset)), offset < 64000), 0.0)
    payload = bytes([FRAGMENT, 0, 1, 4, 0, 0, 0, 0]) + Ipv6FragmentHeader(UDP, 0, True, 1).serialize() + bytes(8000)
    assert reassembler.add_ipv6(Ipv6Header(*V6, DESTINATION, len(payload)).serialize() + payload, 0.0) is None
    assert reassembler.drops == {"fragment beyond 65,535 bytes": 1}
    assert reassembler.bytes_held == len(reassembler) == 0


def test_the_largest_packet_is_rebuilt() -> None:
    reassembler = FragmentReassembler()
    data = bytes(n % 251 for n in range(65515))
    for offset in range(0, 64000, 1280):
        assert reassembler.add_ipv4(ipv4(offset, data[offset : offset + 1280], True), 0.0) is None
    rebuilt = reassembler.add_ipv4(ipv4(65280, data[65280:], False), 0.0)
    assert rebuilt is None
    rebuilt = reassembler.add_ipv4(ipv4(64000, data[64000:65280], True), 0.0)
    assert rebuilt == whole_ipv4(data)


def test_an_atomic_fragment_is_rebuilt_on_its_own() -> None:
    """RFC 6946 section 4: isolated from other fragments with the same identification."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv6(ipv6(0, PAYLOAD[:8], True), 0.0)
    assert reassembler.add_ipv6(ipv6(0, b"atomic: 8+", False), 0.0) == whole_ipv6(b"atomic: 8+")
    assert reassembler.add_ipv6(ipv6(8, PAYLOAD[8:], False), 0.0) == whole_ipv6(PAYLOAD)


def test_a_first_fragment_without_the_whole_header_chain_is_dropped() -> None:
    """RFC 7112 section 5."""
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv6(ipv6(0, bytes(8), True, next_header=6), 0.0) is None
    assert reassembler.drops == {"malformed fragment": 1}


def test_padding_does_not_complete_the_header_chain() -> None:
    """RFC 7112 section 5: what WireGuard padded is not part of the fragment."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv6(ipv6(0, bytes(16), True, next_header=6) + bytes(8), 0.0)
    assert reassembler.drops == {"malformed fragment": 1}


def test_fragments_that_do_not_parse_are_dropped() -> None:
    reassembler = FragmentReassembler()
    assert reassembler.add_ipv4(b"\x45", 0.0) is None
    assert reassembler.add_ipv6(b"\x60", 0.0) is None
    assert reassembler.drops == {"malformed fragment": 2}


def test_an_unfinished_datagram_is_given_up_in_time() -> None:
    """RFC 8200 4.5: counted from the fragment that arrived first, not from the latest one."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:8], True), 100.0)
    reassembler.add_ipv4(ipv4(8, PAYLOAD[8:16], True), 120.0)
    assert reassembler.next_timeout() == 100.0 + REASSEMBLY_TIMEOUT
    reassembler.handle_timeout(129.9)
    assert len(reassembler) == 1
    reassembler.handle_timeout(130.0)
    assert len(reassembler) == reassembler.bytes_held == 0
    assert reassembler.drops == {"reassembly timed out": 1}
    assert reassembler.next_timeout() is None


def test_a_fragment_that_comes_too_late_completes_nothing() -> None:
    """Also when nobody called `handle_timeout` in between."""
    reassembler = FragmentReassembler()
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 0.0)
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False), REASSEMBLY_TIMEOUT) is None


def test_the_oldest_datagram_goes_when_there_are_too_many() -> None:
    reassembler = FragmentReassembler(max_datagrams=2)
    for identification in (1, 2, 3):
        reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, identification), float(identification))
    assert len(reassembler) == 2
    assert reassembler.drops == {"too many unfinished datagrams": 1}
    assert reassembler.next_timeout() == 2.0 + REASSEMBLY_TIMEOUT
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False, 2), 4.0) == whole_ipv4(PAYLOAD, 2)


def test_the_oldest_data_goes_when_there_are_too_many_bytes() -> None:
    reassembler = FragmentReassembler(max_bytes=40)
    for identification in (1, 2, 3):
        reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, identification), float(identification))
    assert reassembler.bytes_held == 32
    assert reassembler.drops == {"too many bytes in fragments": 1}
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], False, 3), 4.0) == whole_ipv4(PAYLOAD, 3)


def test_the_datagram_that_just_grew_stays_while_others_can_go() -> None:
    """It is old, but alive."""
    reassembler = FragmentReassembler(max_bytes=40)
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, 1), 1.0)
    reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True, 2), 2.0)
    reassembler.add_ipv4(ipv4(24, b"the end.", True, 1), 3.0)
    assert reassembler.bytes_held == 40
    reassembler.add_ipv4(ipv4(32, b"!", False, 1), 3.0)
    assert reassembler.drops == {"too many bytes in fragments": 1}
    assert reassembler.add_ipv4(ipv4(16, PAYLOAD[16:], True, 1), 4.0) == whole_ipv4(PAYLOAD + b"the end.!", 1)


def test_a_datagram_larger_than_the_limit_goes_itself() -> None:
    reassembler = FragmentReassembler(max_bytes=10)
    assert reassembler.add_ipv4(ipv4(0, PAYLOAD[:16], True), 0.0) is None
    assert len(reassembler) == reassembler.bytes_held == 0


def test_tiny_fragments_are_bounded() -> None:
    """CVE-2018-5391: thousands of 8-byte fragments of one datagram."""
    reassembler = FragmentReassembler()
    for index in range(MAX_FRAGMENTS + 10):
        reassembler.add_ipv4(ipv4(index * 16, bytes(8), True), 0.0)
    assert reassembler.bytes_held == 0
    assert reassembler.drops["too many fragments in one datagram"] == 1
    assert reassembler.drops["fragment of a rejected datagram"] == 9


def test_drops_are_counted_where_the_caller_wants() -> None:
    drops: Counter[str] = Counter()
    FragmentReassembler(drops).add_ipv4(b"", 0.0)
    assert drops == {"malformed fragment": 1}
