"""IP addresses as the stack holds them: packed, 4 or 16 bytes."""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

IpAddress: TypeAlias = bytes  # 4 or 16 bytes, network order
SocketName: TypeAlias = tuple[str, int]  # (IP address as text, port)


def pack(host: str) -> IpAddress:
    """Parse an IP address; an IPv4-mapped IPv6 address is the IPv4 address, so that it obeys the IPv4 routes.

    Raises:
        ValueError: not an IP address, or one with a zone: a tunnel has no links to choose from.
    """
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{host!r} has a zone; inside a tunnel there is only one link")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
    return address.packed


def readable(address: IpAddress, port: int) -> SocketName:
    return str(ipaddress.ip_address(address)), port


def is_unicast(address: IpAddress) -> bool:
    """An address that a packet may truly come from (RFC 1122 3.2.1.3, RFC 4291 2.5-2.7)."""
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and address[:15] != bytes(15)


def fixed_headers(address: IpAddress) -> int:
    """Bytes of the IP and TCP headers without options (RFC 9293 3.7.1)."""
    return 40 if len(address) == 4 else 60
