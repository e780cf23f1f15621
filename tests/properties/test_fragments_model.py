"""`FragmentReassembler` against a model that keeps every fragment and looks at all of them each time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard._netstack.fragments import FragmentReassembler
from httpx_wireguard._wire.ipv4 import Ipv4Header
from tests.fragment_model import UNKNOWN, V4, DatagramModel, Fragment, add


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
