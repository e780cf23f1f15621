"""Trains: data segments of one TCP stream that one large send was cut into, as segmentation offload does it.

They differ in so little that a whole batch of them is compared at once: its headers, side by side, are one long
integer, and that shifted by one header is what each has to equal. (Linux' GRO asks the same of two packets.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import gt, itemgetter
from typing import NamedTuple

from httpx_wireguard._wire import PROTOCOL_TCP

SHORTEST_TRAIN = 4  # packets; ours: fewer are sooner looked at one by one

_ANY = b"\x00"
_SAME = b"\xff"
_BUT_PSH = b"\xf7"
_TCP_HEAD = b"\x80"  # in one byte: 8 words of header, which a timestamp fills up
_TIMESTAMP = b"\x01\x01\x08\x0a"  # NOP, NOP, kind 8, length 10: RFC 7323 appendix A
# ports, sequence number, acknowledgment, header length, flags, window, checksum, urgent pointer, option, its timestamps
_TCP_MASK = 4 * _SAME + 4 * _ANY + 5 * _SAME + _BUT_PSH + 2 * _SAME + 2 * _ANY + 6 * _SAME + 8 * _ANY
_TIMESTAMPS_MASK = 24 * _ANY + 8 * _SAME


class _Layout(NamedTuple):
    """IP header without options or extensions, and the TCP header that is understood here."""

    size: int  # bytes of both headers
    uncounted: int  # bytes of them that the IP header's length does not count
    mask: bytes  # what has to be the same
    usual_mask: bytes  # what mostly is, too: the IP header's length, and the timestamps
    head: Callable[[bytes], bytes]
    sequence: str  # how the sequence number is unpacked
    fields: str  # how the length, the sequence number and the timestamp are


# version and service; length, identification; fragment to protocol; checksum; addresses
_IPV4_MASK = 2 * _SAME + 4 * _ANY + 4 * _SAME + 2 * _ANY + 8 * _SAME + _TCP_MASK
_IPV4_USUAL = 2 * _ANY + 2 * _SAME + 16 * _ANY + _TIMESTAMPS_MASK
_IPV4 = _Layout(52, 0, _IPV4_MASK, _IPV4_USUAL, itemgetter(slice(52)), "24xI24x", "2xH20xI16xI4x")
# version to flow label; length; next header to addresses
_IPV6_MASK = 4 * _SAME + 2 * _ANY + 34 * _SAME + _TCP_MASK
_IPV6_USUAL = 4 * _ANY + 2 * _SAME + 34 * _ANY + _TIMESTAMPS_MASK
_IPV6 = _Layout(72, 40, _IPV6_MASK, _IPV6_USUAL, itemgetter(slice(72)), "44xI24x", "4xH38xI16xI4x")


class Train(list[bytes]):
    """IP packets, cut to their own length, of which `train_length` says that they are one train."""

    __slots__ = ()


def as_train(packets: Sequence[bytes]) -> Train | None:
    """The packets without padding, if all of them are one train."""
    count, lengths = _compare(packets)
    if count < len(packets):
        return None
    sizes = list(map(len, packets))
    if sizes == lengths:
        return Train(packets)
    if any(map(gt, lengths, sizes)):
        return None
    return Train([packet[:length] for packet, length in zip(packets, lengths, strict=True)])


def train_length(packets: Sequence[bytes]) -> int:
    """How many of the packets, from the first one on, are one train; 0 when the first cannot be in one.

    Each, as long as it says, continues the stream where the one before it ends. They differ in length, sequence number,
    PSH, the checksums and the IPv4 identification, and have no option but a timestamp, which does not go back. (Most
    are full, and of the same millisecond. But a server of TLS ends each record with a segment that is not full.)
    """
    return _compare(packets)[0]


def _compare(packets: Sequence[bytes]) -> tuple[int, list[int]]:
    """`train_length`, and what each packet in the train says of its length."""
    layout, payload = _layout_of(packets[0])
    count, size = len(packets), layout.size
    if payload <= 0:
        return 0, []
    heads = b"".join(map(layout.head, packets))
    if len(heads) != count * size:
        return 0, []  # some are too short
    rows, bits = int.from_bytes(heads, "big"), 8 * size
    changes, (same, usual) = rows ^ rows >> bits, _masks(layout, count)
    alike, different = not changes & usual, changes & same
    if different:
        count -= 1 + (different.bit_length() - 1) // bits
    if not alike:
        return _compare_each(_fields(layout.fields, count).unpack_from(heads), layout)
    sequences = _fields(layout.sequence, count).unpack_from(heads)
    expected = range(sequences[0], sequences[0] + count * payload, payload)
    if sequences != tuple(expected):  # in the one batch of 4 GiB in which the numbers begin again at 0, too
        count = next(index for index in range(count) if sequences[index] != expected[index])
    return count, [size + payload] * count


def _compare_each(fields: tuple[int, ...], layout: _Layout) -> tuple[int, list[int]]:
    """`_compare` for packets of different lengths or times."""
    size, expected, latest = layout.size, fields[1], fields[2]
    lengths = [length + layout.uncounted for length in fields[::3]]
    for index, (length, sequence, timestamp) in enumerate(zip(lengths, fields[1::3], fields[2::3], strict=True)):
        if sequence != expected or length <= size or (timestamp - latest) & 0x80000000:
            return index, lengths[:index]
        expected, latest = sequence + length - size, timestamp
    return len(lengths), lengths


def _layout_of(packet: bytes) -> tuple[_Layout, int]:
    """How the packet's headers lie, and how much data is behind them; 0 if they are not of that kind."""
    layout, payload = _IPV4, 0
    if len(packet) > _IPV4.size and packet[0] == 0x45:
        if packet[9] == PROTOCOL_TCP and not (packet[6] & 0x3F or packet[7]):  # no fragment: RFC 791 3.1
            payload = int.from_bytes(packet[2:4], "big") - layout.size
    elif len(packet) > _IPV6.size and packet[0] >> 4 == 6 and packet[6] == PROTOCOL_TCP:
        layout = _IPV6
        payload = 40 + int.from_bytes(packet[4:6], "big") - layout.size
    at = layout.size - 32
    if packet[at + 12 : at + 13] != _TCP_HEAD or packet[at + 20 : at + 24] != _TIMESTAMP:
        payload = 0
    return layout, payload


@lru_cache(maxsize=128)  # how many come at once is up to the network: bounded
def _masks(layout: _Layout, count: int) -> tuple[int, int]:
    """What has to be the same, and what mostly is, for all rows but the first, which has none before it."""
    return int.from_bytes(layout.mask * (count - 1), "big"), int.from_bytes(layout.usual_mask * (count - 1), "big")


@lru_cache(maxsize=128)
def _fields(form: str, count: int) -> struct.Struct:
    """These fields of each header."""
    return struct.Struct("!" + form * count)
