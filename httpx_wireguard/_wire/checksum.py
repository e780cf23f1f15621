"""The Internet checksum (RFC 1071), by one division instead of a loop over words.

A *partial sum* is a non-negative int that is congruent to the sum of the 16-bit big-endian words modulo 0xFFFF, and
that is zero only when every word is zero. Partial sums of pieces that each begin at an even offset are added with `+`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct

from httpx_wireguard._wire import Buffer

_number = int.from_bytes  # big-endian


def ones_sum(data: Buffer) -> int:
    """Partial sum of `data`, 0 to 0xFFFF. An odd length counts as padded with one zero byte (RFC 1071 section 1)."""
    return _fold(ones_sums((data,))[0])


def ones_sums(run: Sequence[Buffer]) -> list[int]:
    """Partial sums of buffers of one length, not brought down to 16 bits; an odd length counts as in `ones_sum`."""
    # One's complement addition of 16-bit words wraps the carry around, which is arithmetic modulo 2**16 - 1. There
    # 2**16 is congruent to 1, so a whole buffer read as one big-endian number, w0 * 2**(16n) + ... + wn, is congruent
    # to w0 + ... + wn: one C-speed division replaces the loop.
    length = len(run[0])
    if length & 1:
        return [_number(data) << 8 for data in run]
    # the sum of four parts takes a quarter of the division, and folding it once more an eighth
    unpack, shift, mask = _quarters(length)
    quarters = map(unpack, run)
    return [
        ((total := _number(a) + _number(b) + _number(c) + _number(d)) >> shift) + (total & mask)
        for a, b, c, d in quarters
    ]


@lru_cache(maxsize=64)  # lengths may come from the application: bounded
def _quarters(length: int) -> tuple[Callable[[Buffer], tuple[bytes, ...]], int, int]:
    """Of an even length: cuts data into four parts of whole words; and where, in bits, their sum is cut in two.

    That is a multiple of 16, so the halves' sum is congruent to it modulo 0xFFFF.
    """
    quarter = length // 8 * 2
    rest = length - 3 * quarter
    shift = rest // 4 * 16 + 16
    return Struct(f"{quarter}s{quarter}s{quarter}s{rest}s").unpack, shift, (1 << shift) - 1


def checksum(data: Buffer, initial: int = 0) -> int:
    """The checksum field for `data`: the complement of its sum.

    Args:
        data: the bytes covered, with the checksum field itself zero. With the received field in place, a correct
            packet gives 0.
        initial: a partial sum to start from, such as `pseudo_header_sum`.
    """
    return 0xFFFF - _fold(initial + ones_sum(data))


def pseudo_header_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Partial sum of the pseudo header of RFC 9293 3.1 (4-byte addresses) or RFC 8200 8.1 (16-byte addresses).

    Args:
        length: bytes of transport header and payload. The sum is linear in it: a caller may keep the sum for
            length 0 with the connection and add the length of each segment.
    """
    return int.from_bytes(source + destination, "big") % 0xFFFF + protocol + length


def transport_checksum(source: bytes, destination: bytes, protocol: int, segment: Buffer) -> int:
    """The checksum field for a whole TCP, UDP or ICMPv6 message; 0 when `segment` carries a correct one already."""
    return checksum(segment, pseudo_header_sum(source, destination, protocol, len(segment)))


def _fold(total: int) -> int:
    # The remainder has one zero where one's complement has two. Added words give 0xFFFF, never 0, unless all of them
    # are zero (RFC 1624 section 3).
    return total % 0xFFFF or (0xFFFF if total else 0)
