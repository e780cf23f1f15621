"""Bytes of TCP options against a parser that reads them the plain way, and a connection opened by a SYN with them.

Nothing may raise.
"""

from __future__ import annotations

from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._wire.tcp import MAX_OPTIONS_LENGTH, MAX_WINDOW_SCALE, Flags, TcpHeader, TcpOptions
from tests.fuzz.harness import Script
from tests.fuzz.packets import OURS4, OURS6, ip_packet
from tests.simnet import SeededEntropy

LENGTHS = {2: 4, 3: 3, 4: 2, 8: 10}  # kind to length; RFC 9293 3.2, RFC 7323, RFC 2018


def plain(data: bytes) -> dict[int, bytes]:
    """The last value of each known option that has its length; the walk ends where a length makes no sense."""
    values: dict[int, bytes] = {}
    while data and data[0] != 0:
        if data[0] == 1:
            data = data[1:]
            continue
        length = data[1] if len(data) > 1 else 0
        if not 2 <= length <= len(data):
            break
        if length == LENGTHS.get(data[0]) or (data[0] == 5 and length in (10, 18, 26, 34)):
            values[data[0]] = data[2:length]
        data = data[length:]
    return values


def check_meaning(options: TcpOptions, values: dict[int, bytes]) -> None:
    def number(kind: int, part: slice = slice(None)) -> int | None:
        return int.from_bytes(values[kind][part], "big") if kind in values else None

    scale = number(3)
    assert options.mss == number(2)
    assert options.window_scale == (None if scale is None else min(scale, MAX_WINDOW_SCALE))
    assert options.sack_permitted == (4 in values)
    assert b"".join(edge.to_bytes(4, "big") for block in options.sack_blocks for edge in block) == values.get(5, b"")
    assert options.timestamp_value == number(8, slice(0, 4))
    assert options.timestamp_echo == (number(8, slice(4, 8)) or 0)


def run(data: bytes) -> None:
    script = Script(data)
    version, window = script.choose((4, 6)), script.choose((65535, 0, 1, 500))
    wire = script.take(MAX_OPTIONS_LENGTH)
    options = TcpOptions.parse(wire)
    check_meaning(options, plain(wire))
    sent = options.serialize()
    assert len(sent) <= MAX_OPTIONS_LENGTH
    assert not len(sent) % 4
    again = TcpOptions.parse(sent)
    assert again.sack_blocks == options.sack_blocks[: len(again.sack_blocks)]
    again.sack_blocks = options.sack_blocks
    assert again == options
    check_opening(version, window, wire[: len(wire) & ~3], script.take(MAX_OPTIONS_LENGTH) or wire)


def check_opening(version: int, window: int, syn_options: bytes, later_options: bytes) -> None:
    """The segments of a connection fit the path and the far side's MSS, whatever was asked for."""
    stack = Stack([OURS4, OURS6], 1420, SeededEntropy(1), 1 << 17)
    listener = stack.listen_tcp(80)
    stack.receive_packets([segment(version, TcpHeader(9, 80, 99, 0, int(Flags.SYN), window), syn_options)], 1.0)
    ((_, (answer,)),) = stack.packets_to_send(1.0)
    ours = TcpHeader.parse(answer, 20 if version == 4 else 40)
    header = TcpHeader(9, 80, 100, (ours.sequence + 1) % 2**32, int(Flags.ACK), window)
    stack.receive_packets([segment(version, header, later_options[: len(later_options) & ~3])], 1.1)
    connection = listener.accept(1.1)
    if connection is None:
        return  # its timestamp was old
    connection.send(bytes(3000), 1.1)
    limit = max(TcpOptions.parse(syn_options).mss or (536 if version == 4 else 1220), 88)
    for _, packets in stack.packets_to_send(1.1):
        for packet in packets:
            sent = TcpHeader.parse(packet, 20 if version == 4 else 40)
            assert len(packet) <= 1420
            assert len(packet) - (20 if version == 4 else 40) - 20 <= limit
            assert (sent.options.timestamp_value is None) == (TcpOptions.parse(syn_options).timestamp_value is None)


def segment(version: int, header: TcpHeader, options: bytes) -> bytes:
    fixed = bytearray(header.serialize())
    fixed[12] = (20 + len(options)) << 2
    return ip_packet(version, 6, bytes(fixed) + options)
