"""Explicit Congestion Notification in IP headers (RFC 3168 section 5)."""

from __future__ import annotations

NOT_ECT, ECT_1, ECT_0, CE = range(4)  # the ECN field's codepoints: RFC 3168 section 5


def ecn_of(packet: bytes) -> int:
    """The codepoint of an IPv4 or IPv6 packet, or of its first two bytes; Not-ECT for an empty one."""
    if not packet:
        return NOT_ECT
    return (packet[1] if packet[0] >> 4 == 4 else packet[1] >> 4) & CE


def with_ecn(packet: bytes, codepoint: int) -> bytes:
    """The packet with another codepoint. An IPv4 header checksum follows (RFC 1624), and stays wrong if it was."""
    if packet[0] >> 4 != 4:
        return packet[:1] + bytes((packet[1] & 0xCF | codepoint << 4,)) + packet[2:]
    change = codepoint - (packet[1] & CE)
    checksum = (int.from_bytes(packet[10:12], "big") - change) % 0xFFFF
    return packet[:1] + bytes((packet[1] + change,)) + packet[2:10] + checksum.to_bytes(2, "big") + packet[12:]
