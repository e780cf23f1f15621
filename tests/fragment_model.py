"""Reassembly of fragments as a model that keeps every fragment and looks at every byte each time."""

from __future__ import annotations

from httpx_wireguard._netstack.fragments import FragmentReassembler
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6FragmentHeader, Ipv6Header

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02")
UNKNOWN = 253  # RFC 3692 experimental protocol: no upper-layer header that RFC 7112 would ask for

Fragment = tuple[int, bytes, bool]  # offset, data, more


def add(
    reassembler: FragmentReassembler, version: int, identification: int, fragment: Fragment, now: float = 0.0
) -> bytes | None:
    """Wrap the fragment into a packet, add it, and unwrap the payload of what comes out."""
    offset, data, more = fragment
    if version == 4:
        length = 20 + len(data)
        header = Ipv4Header(*V4, UNKNOWN, length, identification, False, more, offset)
        packet = reassembler.add_ipv4(header.serialize() + data, now)
        if packet is None:
            return None
        assert Ipv4Header.parse(packet).total_length == len(packet)
        assert not Ipv4Header.parse(packet).is_fragment
        return packet[20:]
    payload = Ipv6FragmentHeader(UNKNOWN, offset, more, identification).serialize() + data
    packet = reassembler.add_ipv6(Ipv6Header(*V6, 44, len(payload)).serialize() + payload, now)
    if packet is None:
        return None
    assert Ipv6Header.parse(packet) == Ipv6Header(*V6, UNKNOWN, len(packet) - 40)
    return packet[40:]


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
