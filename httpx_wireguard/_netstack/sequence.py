"""32-bit sequence numbers that wrap around (RFC 9293 3.4) as integers that do not."""

from __future__ import annotations

MODULUS = 2**32
_HALF = 2**31


def unwrap(sequence: int, near: int) -> int:
    """The unbounded integer that is congruent to `sequence` and nearest to `near`; negative before 0.

    At exactly 2**31 apart it is the earlier one (RFC 1982 3.2 leaves that open).
    """
    return near + (sequence - near + _HALF) % MODULUS - _HALF
