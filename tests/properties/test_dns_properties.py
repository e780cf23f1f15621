"""Names and answers: what a resolver may be told, against the plain meaning of it."""

from __future__ import annotations

from collections import OrderedDict

import dns.flags
import dns.message
import dns.name
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._dns import MAX_NEGATIVE_TTL, MAX_POSITIVE_TTL, Answer, AnswerCache, parse_reply, query_name
from httpx_wireguard._errors import NameResolutionError
from httpx_wireguard._resolver import MAX_ADDRESSES
from tests.dns_server import SERVER
from tests.memory_tunnel import Datagram, MemoryTunnel, VirtualDriver

NAME = dns.name.from_text("www.example.")
REQUEST = dns.message.make_query(NAME, "A", use_edns=0, id=0x1234)
addresses4 = st.integers(1, 20).map(lambda number: f"10.0.0.{number}")


@given(
    aliases=st.integers(0, 5),
    found=st.lists(addresses4, min_size=1, max_size=40),
    ttls=st.lists(st.integers(1, 500), min_size=6, max_size=6),
    data=st.data(),
)
def test_an_answer_is_the_end_of_its_chain_of_aliases_for_its_shortest_ttl(
    aliases: int, found: list[str], ttls: list[int], data: st.DataObject
) -> None:
    """RFC 1034 3.6.2: in whatever order the records stand; kept until the first of them ends, and no longer."""
    names = [NAME, *(dns.name.from_text(f"alias{number}.example.") for number in range(aliases))]
    chain = [
        dns.rrset.from_text(owner, ttl, "IN", "CNAME", target.to_text())
        for owner, target, ttl in zip(names, names[1:], ttls, strict=False)
    ]
    chain.append(dns.rrset.from_text(names[-1], ttls[aliases], "IN", "A", *found))
    order = data.draw(st.permutations(chain))
    asked = []

    def serve(query: bytes) -> list[Datagram]:
        asked.append(query)
        reply = dns.message.make_response(dns.message.from_wire(query))
        reply.answer += order
        return [(reply.to_wire(), SERVER)]

    driver = VirtualDriver()
    tunnel = MemoryTunnel(driver, [SERVER[0]], versions=(4,))
    tunnel.udp[SERVER] = serve
    expected = tunnel.resolve("www.example")
    assert set(expected) <= set(found)  # dnspython shuffles the records of a set
    assert len(expected) == len(set(expected)) == min(len(set(found)), MAX_ADDRESSES)
    driver.time = min(ttls[: aliases + 1]) - 0.5
    assert tunnel.resolve("www.example") == expected
    assert len(asked) == 1
    driver.time += 1.0
    tunnel.resolve("www.example")
    assert len(asked) == 2


@given(
    identifier=st.sampled_from([0x1234, 0x1234, 0x1235]),
    name=st.sampled_from([NAME, NAME, dns.name.from_text("WWW.example."), dns.name.from_text("w.example.")]),
    kind=st.sampled_from(["A", "A", "AAAA"]),
    flags=st.sampled_from([0x8180, 0x8180, 0x0100, 0x8380, 0xA980]),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 60) | st.just(1000),
)
def test_only_the_reply_to_the_question_is_taken_for_it(
    identifier: int, name: dns.name.Name, kind: str, flags: int, changes: list[tuple[int, int]], cut: int
) -> None:
    """RFC 5452 9.1: id and question must match; everything else is passed over, and nothing raises."""
    reply = dns.message.make_response(dns.message.make_query(name, kind, id=identifier))
    reply.answer.append(dns.rrset.from_text(name, 60, "IN", kind, "10.0.0.1" if kind == "A" else "fd00::1"))
    reply.flags = dns.flags.Flag(flags)
    wire = bytearray(reply.to_wire())
    for at, value in changes:
        wire[at % len(wire)] = value
    genuine = not changes and cut >= len(wire)
    matches = identifier == 0x1234 and kind == "A" and name == NAME
    try:
        taken = parse_reply(REQUEST, bytes(wire[:cut]))
    except dns.message.Truncated:
        assert wire[2] & 2, "the TC bit is not set"
        return
    if genuine:
        assert (taken is not None) == (matches and flags == 0x8180)
    if taken is not None:
        assert taken.id == 0x1234
        assert [(question.name, question.rdtype.name) for question in taken.question] in ([(NAME, "A")], [])


@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_datagrams_are_no_reply_or_one(datagram: bytes, right_id: bool) -> None:
    wire = (b"\x12\x34" if right_id else b"") + datagram
    try:
        reply = parse_reply(REQUEST, wire)
    except dns.message.Truncated:
        return
    assert reply is None or reply.id == 0x1234


@given(st.text(max_size=80) | st.text("ab.-_\\123ü\u3002", max_size=300))
def test_any_text_is_a_name_to_ask_for_or_refused(host: str) -> None:
    try:
        name = query_name(host)
    except NameResolutionError as error:
        assert error.host == host
        return
    wire = (name if name.is_absolute() else name.concatenate(dns.name.root)).to_wire()
    assert wire is not None
    assert len(wire) <= 255


numbers = st.integers(0, 2)
families = st.sampled_from([4, 6])
puts = st.tuples(st.just("put"), numbers, families, numbers, st.sampled_from([-1, 0, 1, 299, 301, 2000]))
gets = st.tuples(st.just("get"), numbers, families, st.just(0), st.sampled_from([0, 0, 1, 400]))


@settings(max_examples=300)
@given(st.lists(puts | gets, max_size=60))
def test_the_cache_is_a_dictionary_of_the_latest_few(operations: list[tuple[str, int, int, int, int]]) -> None:
    """Of size 2: NXDOMAIN counts for both families (RFC 2308 5), a TTL has a cap, the least recently used goes."""
    cache = AnswerCache(2)
    model: OrderedDict[tuple[int, int | None], tuple[float, Answer]] = OrderedDict()
    names = [dns.name.from_text(f"n{number}.") for number in range(3)]
    answers = [Answer(("10.0.0.1",)), Answer(()), Answer((), exists=False)]
    now = 0.0
    for action, number, version, answer, seconds in operations:
        if action == "put":
            cache.put(names[number], version, answers[answer], seconds, now)
            lifetime = min(seconds, MAX_NEGATIVE_TTL if answer else MAX_POSITIVE_TTL)
            if lifetime > 0:
                key = (number, None if answer == 2 else version)
                model[key] = (now + lifetime, answers[answer])
                model.move_to_end(key)
                while len(model) > 2:
                    model.popitem(last=False)
            continue
        now += seconds
        expected = None
        for key in ((number, version), (number, None)):
            if expected is None and key in model and now < model[key][0]:
                expected = model[key][1]
                model.move_to_end(key)
        assert cache.get(names[number], version, now) == expected


def test_a_name_of_255_bytes_is_the_longest() -> None:
    """RFC 1035 2.3.4: as it stands on the wire."""
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert query_name(longest) is not None
    with pytest.raises(NameResolutionError):
        query_name(longest + "a")
