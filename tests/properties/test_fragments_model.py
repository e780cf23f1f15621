"""`FragmentReassembler` against a model that keeps every fragment and looks at all of them each time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard._netstack.fragments import FragmentReassembler
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")
UNKNOWN = 253  # RFC 3692 experimental protocol: no upper-layer header that RFC 7112 would ask for

Fragment = tuple[int, bytes, bool]  # offset, data, more


def add(reassembler: FragmentReassembler, version: int, identification: int, fragment: Fragment) -> bytes | None:
    """Wrap the fragment into a packet, add it, and unwrap the payload of what comes out."""
    offset, data, more = fragment
    if version == 4:
        length = 20 + len(data)
        header = Ipv4Header(*V4, UNKNOWN, length, identification, False, more, offset)
        packet = reassembler.add_ipv4(header.serialize() + data, 0.0)
        if packet is None:
            return None
        assert Ipv4Header.parse(packet).total_length == len(packet)
        assert not Ipv4Header.parse(packet).is_fragment
        return packet[20:]
    payload = Ipv6FragmentHeader(UNKNOWN, offset, more, identification).serialize() + data
    packet = reassembler.add_ipv6(Ipv6Header(*V6, 44, len(payload)).serialize() + payload, 0.0)
    if packet is None:
        return None
    assert Ipv6Header.parse(packet) == Ipv6Header(*V6, UNKNOWN, len(packet) - 40)
    return packet[40:]


def cut(payload: bytes, cuts: set[int]) -> list[Fragment]:
    """`payload` in fragments, cut at every multiple of 8 that is named and inside."""
    edges = sorted({0, len(payload)} | {8 * units for units in cuts if 8 * units < len(payload)})
    return [(start, payload[start:end], end < len(payload)) for start, end in pairwise(edges)]


PAYLOADS = st.tuples(
    st.sampled_from([4, 6]), st.binary(min_size=9, max_size=120), st.sets(st.integers(1, 15), min_size=1)
).filter(lambda drawn: len(cut(drawn[1], drawn[2])) > 1)


@given(st.data(), st.lists(PAYLOADS, min_size=1, max_size=4))
def test_interleaved_datagrams_all_come_out_whole(
    data: st.DataObject, drawn: list[tuple[int, bytes, set[int]]]
) -> None:
    """Any cut, any order, any mix of datagrams, with copies of some fragments that come before the last one."""
    mixed = [
        (number, version, fragment)
        for number, (version, payload, cuts) in enumerate(drawn)
        for fragment in cut(payload, cuts)
    ]
    reassembler, rebuilt = FragmentReassembler(), {}
    for number, version, fragment in data.draw(st.permutations(mixed)):
        payload = add(reassembler, version, number, fragment)
        if payload is not None:
            rebuilt[number] = payload
        elif data.draw(st.booleans()):
            assert add(reassembler, version, number, fragment) is None
    assert rebuilt == {number: payload for number, (_, payload, _) in enumerate(drawn)}
    assert len(reassembler) == reassembler.bytes_held == 0
    assert not reassembler.drops


class DatagramModel:
    """All fragments of one datagram so far; judged by looking at every byte."""

    def __init__(self) -> None:
        self.fragments: list[Fragment] = []
        self.rejected = False

    def add(self, fragment: Fragment) -> bytes | None:
        if not fragment[1] or (fragment[2] and len(fragment[1]) % 8) or self.rejected or fragment in self.fragments:
            return None
        self.fragments.append(fragment)
        places = [offset + i for offset, data, _ in self.fragments for i in range(len(data))]
        ends = [offset + len(data) for offset, data, more in self.fragments if not more]
        if len(places) != len(set(places)) or len(ends) > 1 or any(place >= end for place in places for end in ends):
            self.rejected = True
            self.fragments = []
            return None
        if ends and len(places) == ends[0]:
            whole = b"".join(data for _, data, _ in sorted(self.fragments))
            self.fragments = []
            return whole
        return None


FRAGMENTS = st.tuples(
    st.integers(0, 6).map(lambda units: 8 * units),
    st.sampled_from([b"", b"a", b"abcdefgh", b"ABCDEFGH", b"0123456789abcdef"]),
    st.booleans(),
).filter(lambda fragment: fragment[0] > 0 or fragment[2])  # offset 0 without more is no fragment


@given(st.sampled_from([4, 6]), st.lists(FRAGMENTS, max_size=20))
def test_arbitrary_fragments_are_judged_like_the_model(version: int, fragments: list[Fragment]) -> None:
    """Overlap, several ends, holes and copies, in any order."""
    reassembler, model = FragmentReassembler(), DatagramModel()
    for fragment in fragments:
        assert add(reassembler, version, 1, fragment) == model.add(fragment)
        assert reassembler.bytes_held == sum(len(data) for _, data, _ in model.fragments)


@given(st.lists(st.tuples(st.integers(1, 5), FRAGMENTS, st.integers(0, 20)), max_size=60))
def test_limits_hold_whatever_comes(steps: list[tuple[int, Fragment, int]]) -> None:
    reassembler = FragmentReassembler(max_bytes=50, max_datagrams=3, timeout=30.0)
    now = 0.0
    for identification, (offset, data, more), seconds in steps:
        now += seconds
        header = Ipv4Header(*V4, UNKNOWN, 20 + len(data), identification, False, more, offset)
        reassembler.add_ipv4(header.serialize() + data, now)
        assert 0 <= reassembler.bytes_held <= 50
        assert len(reassembler) <= 3
        due = reassembler.next_timeout()
        assert (due is None) == (len(reassembler) == 0)
        assert due is None or now < due <= now + 30.0
