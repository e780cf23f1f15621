"""The ECN field of IP headers (RFC 3168 section 5)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, ecn_of, with_ecn
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header

CODEPOINTS = [NOT_ECT, ECT_1, ECT_0, CE]
DSCP = 0xB8  # Expedited Forwarding: not ours to change


def ipv4(codepoint: int, identification: int = 0) -> bytes:
    header = Ipv4Header(b"\x0a\0\0\1", b"\x0a\0\0\2", 17, 23, identification, traffic_class=DSCP | codepoint)
    return header.serialize() + b"abc"


def ipv6(codepoint: int) -> bytes:
    header = Ipv6Header(b"\xfd" + bytes(15), b"\xfd" + bytes(15), 17, 3)
    header.traffic_class, header.flow_label = DSCP | codepoint, 0xABCDE
    return header.serialize() + b"abc"


def test_the_codepoints_are_those_of_the_wire() -> None:
    """RFC 3168 section 5, figure 1."""
    assert (NOT_ECT, ECT_1, ECT_0, CE) == (0b00, 0b01, 0b10, 0b11)


@pytest.mark.parametrize("codepoint", CODEPOINTS)
def test_the_field_is_found_in_both_versions(codepoint: int) -> None:
    for packet in (ipv4(codepoint), ipv6(codepoint)):
        assert ecn_of(packet) == ecn_of(packet[:2]) == codepoint


def test_nothing_is_not_ect() -> None:
    """A keepalive."""
    assert ecn_of(b"") == NOT_ECT


@pytest.mark.parametrize("new", CODEPOINTS)
@pytest.mark.parametrize("old", CODEPOINTS)
def test_a_changed_field_leaves_the_rest_and_a_right_checksum(old: int, new: int) -> None:
    """RFC 1624: whatever the checksum was, 0 and the carry at the ends included."""
    assert with_ecn(ipv6(old), new) == ipv6(new)
    for identification in range(0, 65536, 1 if (old, new) == (ECT_0, CE) else 97):
        assert with_ecn(ipv4(old, identification), new) == ipv4(new, identification)


def test_a_wrong_checksum_stays_wrong() -> None:
    packet = bytearray(ipv4(ECT_0))
    packet[8] ^= 1
    with pytest.raises(MalformedPacket, match="checksum"):
        Ipv4Header.parse(with_ecn(bytes(packet), CE))
