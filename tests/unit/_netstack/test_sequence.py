"""Comparison of 32-bit sequence numbers (RFC 9293 3.4, RFC 1982)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.sequence import add, distance, le, lt, unwrap

LAST = 2**32 - 1


def test_addition_wraps_around() -> None:
    assert add(LAST, 1) == 0
    assert add(0, -1) == LAST


@pytest.mark.parametrize(("left", "right"), [(0, 1), (LAST, 0), (2**31, 2**31 + 1), (0, 2**31 - 1), (LAST - 5, 2**30)])
def test_the_earlier_number_is_less(left: int, right: int) -> None:
    """RFC 1982 3.2."""
    assert lt(left, right)
    assert le(left, right)
    assert not lt(right, left)
    assert not le(right, left)


@pytest.mark.parametrize("number", [0, 1, 2**31, LAST])
def test_a_number_is_not_less_than_itself(number: int) -> None:
    assert not lt(number, number)
    assert le(number, number)


@pytest.mark.parametrize("number", [0, 5, 2**31, LAST])
def test_numbers_half_the_circle_apart_have_no_order(number: int) -> None:
    """RFC 1982 3.2: undefined; never both ways true."""
    opposite = add(number, 2**31)
    assert not lt(number, opposite)
    assert not lt(opposite, number)
    assert not le(number, opposite)


@pytest.mark.parametrize(("start", "end", "bytes_between"), [(0, 5, 5), (5, 0, -5), (LAST, 4, 5), (0, 2**31, -(2**31))])
def test_distance_is_signed(start: int, end: int, bytes_between: int) -> None:
    assert distance(start, end) == bytes_between


@pytest.mark.parametrize("near", [0, 2**31, 2**32 - 1, 2**32, 7 * 2**32 + 12345])
@pytest.mark.parametrize("ahead", [-(2**31), -1, 0, 1, 2**31 - 1])
def test_unwrap_finds_the_nearest_offset(near: int, ahead: int) -> None:
    assert unwrap((near + ahead) % 2**32, near) == near + ahead
