"""32-bit sequence numbers that wrap around (RFC 9293 3.4, in the arithmetic of RFC 1982).

The comparisons hold for numbers less than 2**31 apart. At exactly 2**31 the order is undefined (RFC 1982 3.2): both
`lt(a, b)` and `lt(b, a)` are then False.
"""

from __future__ import annotations

MODULUS = 2**32
_HALF = 2**31


def add(sequence: int, count: int) -> int:
    """`count` bytes after `sequence`, or before it when negative."""
    return (sequence + count) % MODULUS


def distance(start: int, end: int) -> int:
    """Bytes from `start` to `end`, negative when `end` comes first: -2**31 to 2**31 - 1."""
    return (end - start + _HALF) % MODULUS - _HALF


def lt(left: int, right: int) -> bool:
    return 0 < (right - left) % MODULUS < _HALF


def le(left: int, right: int) -> bool:
    return (right - left) % MODULUS < _HALF


def unwrap(sequence: int, near: int) -> int:
    """The unbounded offset that is congruent to `sequence` and nearest to the offset `near`.

    May be negative, when `sequence` lies before offset 0.
    """
    return near + distance(near % MODULUS, sequence)
