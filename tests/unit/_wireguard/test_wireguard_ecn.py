"""Congestion marks between inner and outer IP headers (RFC 6040)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, ecn_of, with_ecn
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.ecn import EcnMode
from tests.wireguard_net import ipv4_packet

CODEPOINTS = {"Not-ECT": NOT_ECT, "ECT(0)": ECT_0, "ECT(1)": ECT_1, "CE": CE}
# RFC 6040 4.2, figure 4: a row for each inner codepoint, a column for each outer one
FIGURE_4 = """
          Not-ECT  ECT(0)   ECT(1)   CE
Not-ECT   Not-ECT  Not-ECT  Not-ECT  drop
ECT(0)    ECT(0)   ECT(0)   ECT(1)   CE
ECT(1)    ECT(1)   ECT(1)   ECT(1)   CE
CE        CE       CE       CE       CE
"""
OUTER, *ROWS = (line.split() for line in FIGURE_4.strip().splitlines())
CASES = [(inner, outer, result) for inner, *results in ROWS for outer, result in zip(OUTER, results, strict=True)]


def ipv4(codepoint: int, fill: int = 0) -> bytes:
    return with_ecn(ipv4_packet("10.0.0.1", "10.0.0.2", fill=fill), codepoint)


def ipv6(codepoint: int) -> bytes:
    return with_ecn(b"\x60" + bytes(59), codepoint)


class Drops(Counter[Drop]):
    def __call__(self, reason: Drop) -> None:
        self[reason] += 1


def outer_of(mode: EcnMode, *codepoints: int) -> list[int]:
    """The outer codepoint of each of these packets."""
    return [outer for outer, packets in mode.encapsulate([ipv4(each) for each in codepoints]) for _ in packets]


def normal() -> EcnMode:
    mode = EcnMode()
    mode.decapsulate([ipv4(ECT_0)], ECT_0, Drops())
    return mode


@pytest.mark.parametrize("make", [ipv4, ipv6])
@pytest.mark.parametrize(("inner", "outer", "result"), CASES)
def test_every_pair_of_codepoints_is_decapsulated_by_the_table(
    make: Callable[[int], bytes], inner: str, outer: str, result: str
) -> None:
    """RFC 6040 4.2."""
    packet, drops = make(CODEPOINTS[inner]), Drops()
    arrived = EcnMode().decapsulate([packet, packet], CODEPOINTS[outer], drops)
    if result == "drop":
        assert (arrived, drops) == ([], {Drop.CONGESTION: 2})
    else:
        assert (arrived, drops) == ([with_ecn(packet, CODEPOINTS[result])] * 2, {})


def test_each_packet_of_a_read_is_looked_at() -> None:
    """One read has one outer codepoint, and packets of any connection."""
    packets, drops = [ipv4(ECT_0, 1), ipv4(NOT_ECT, 2), ipv6(ECT_1), ipv4(CE, 4)], Drops()
    arrived = EcnMode().decapsulate(packets, CE, drops)
    assert arrived == [ipv4(CE, 1), ipv6(CE), ipv4(CE, 4)]
    assert drops == {Drop.CONGESTION: 1}


def test_nothing_is_sent_ecn_capable_but_one_packet_before_the_far_side_has_shown_that_it_carries_marks() -> None:
    """RFC 6040 4.3: compatibility mode; the one tells the far side that we do."""
    mode = EcnMode()
    assert outer_of(mode, NOT_ECT, ECT_0) == [NOT_ECT, NOT_ECT]
    assert outer_of(mode, ECT_0, ECT_0, ECT_0) == [ECT_0, NOT_ECT, NOT_ECT]
    assert outer_of(mode, ECT_0) == outer_of(mode, CE) == [NOT_ECT]


def test_a_single_packet_may_be_the_one() -> None:
    mode = EcnMode()
    assert mode.encapsulate([ipv6(ECT_1)]) == [(ECT_1, [ipv6(ECT_1)])]
    assert outer_of(mode, ECT_0) == [NOT_ECT]


def test_a_congested_packet_shows_nothing() -> None:
    """It would not look like a copy after it was marked once more."""
    mode = EcnMode()
    assert outer_of(mode, CE) == [NOT_ECT]
    assert outer_of(mode, ECT_0) == [ECT_0]


def test_in_normal_mode_every_outer_field_is_a_copy() -> None:
    """RFC 6040 4.1."""
    assert outer_of(normal(), ECT_0, ECT_0, NOT_ECT, CE, ECT_1, ECT_0) == [ECT_0, ECT_0, NOT_ECT, CE, ECT_1, ECT_0]


def test_normal_mode_keeps_order_and_whole_runs() -> None:
    packets = [ipv4(ECT_0, 1), ipv4(ECT_0, 2), b"", ipv6(NOT_ECT), ipv6(ECT_0)]
    runs = normal().encapsulate(packets)
    assert [packet for _, run in runs for packet in run] == packets
    assert [len(run) for _, run in runs] == [2, 1, 1, 1]
    assert all(ecn_of(packet) == outer for outer, run in runs for packet in run)


@pytest.mark.parametrize("codepoint", [ECT_0, ECT_1])
def test_equal_fields_on_any_packet_of_a_read_show_that_the_far_side_copies(codepoint: int) -> None:
    mode = EcnMode()
    mode.decapsulate([ipv4(NOT_ECT), ipv6(codepoint)], codepoint, Drops())
    assert outer_of(mode, ECT_0, ECT_0) == [ECT_0, ECT_0]


@pytest.mark.parametrize(
    ("inner", "outer"), [(NOT_ECT, ECT_0), (ECT_0, ECT_1), (ECT_0, CE), (CE, CE), (NOT_ECT, NOT_ECT), (ECT_0, NOT_ECT)]
)
def test_other_pairs_do_not_show_it(inner: int, outer: int) -> None:
    """Two congested headers may have been marked in two places."""
    mode = EcnMode()
    outer_of(mode, ECT_0)
    mode.decapsulate([ipv4(inner)], outer, Drops())
    assert outer_of(mode, ECT_0, ECT_0) == [NOT_ECT, NOT_ECT]


def test_what_was_shown_is_not_forgotten_over_packets_without_ecn() -> None:
    mode = normal()
    mode.decapsulate([ipv4(NOT_ECT)], ECT_0, Drops())
    assert outer_of(mode, ECT_0, ECT_0) == [ECT_0, ECT_0]
