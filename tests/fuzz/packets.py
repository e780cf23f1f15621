"""Packets inside the tunnel: the addresses of both sides, and what the device lets through to the stack."""

from __future__ import annotations

from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header

OURS4, FAR4 = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
OURS6, FAR6 = b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01"


def ip_packet(version: int, protocol: int, payload: bytes) -> bytes:
    """From the far side to us."""
    if version == 4:
        return Ipv4Header(FAR4, OURS4, protocol, 20 + len(payload)).serialize() + payload
    return Ipv6Header(FAR6, OURS6, protocol, len(payload)).serialize() + payload


def admitted(packet: bytes) -> list[bytes]:
    """What the device makes of it (`Device._accept_packet`): a whole header, and no byte beyond the packet's length."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        length = int.from_bytes(packet[2:4], "big")
        return [packet[:length]] if 20 <= length <= len(packet) else []
    if version == 6 and len(packet) >= 40:
        length = 40 + int.from_bytes(packet[4:6], "big")
        return [packet[:length]] if length <= len(packet) else []
    return []
