"""The four messages: layouts and exact lengths (WireGuard paper 5.4)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard.messages import CookieReply, Initiation, Response, message_type


def test_initiation_is_laid_out_as_in_the_paper() -> None:
    """Paper 5.4.2: type, sender, ephemeral 32, static 48, timestamp 28, mac1, mac2."""
    noise = bytes(range(108))
    datagram = Initiation(0x04030201, noise, b"a" * 16, b"b" * 16).serialize()
    assert datagram == b"\x01\0\0\0" + b"\x01\x02\x03\x04" + noise + b"a" * 16 + b"b" * 16
    assert len(datagram) == 148
    assert Initiation.parse(datagram) == Initiation(0x04030201, noise, b"a" * 16, b"b" * 16)


def test_response_is_laid_out_as_in_the_paper() -> None:
    """Paper 5.4.3: type, sender, receiver, ephemeral 32, empty 16, mac1, mac2."""
    noise = bytes(range(48))
    datagram = Response(1, 2, noise, b"a" * 16, b"b" * 16).serialize()
    assert datagram == b"\x02\0\0\0\x01\0\0\0\x02\0\0\0" + noise + b"a" * 16 + b"b" * 16
    assert len(datagram) == 92
    assert Response.parse(datagram) == Response(1, 2, noise, b"a" * 16, b"b" * 16)


def test_cookie_reply_is_laid_out_as_in_the_paper() -> None:
    """Paper 5.4.7: type, receiver, nonce 24, cookie 32."""
    datagram = CookieReply(7, b"n" * 24, b"c" * 32).serialize()
    assert datagram == b"\x03\0\0\0\x07\0\0\0" + b"n" * 24 + b"c" * 32
    assert len(datagram) == 64
    assert CookieReply.parse(datagram) == CookieReply(7, b"n" * 24, b"c" * 32)


@pytest.mark.parametrize(("kind", "length"), [(1, 148), (2, 92), (3, 64)])
def test_handshake_messages_have_exactly_one_length(kind: int, length: int) -> None:
    """Neither truncated nor with anything behind."""
    assert message_type(bytes([kind]).ljust(length, b"\0")) == kind
    for wrong in (length - 1, length + 1, length + 16):
        with pytest.raises(MalformedPacket):
            message_type(bytes([kind]).ljust(wrong, b"\0"))


def test_transport_message_has_at_least_a_header_and_a_tag() -> None:
    assert message_type(b"\x04".ljust(32, b"\0")) == 4
    assert message_type(b"\x04".ljust(1500, b"\0")) == 4
    with pytest.raises(MalformedPacket):
        message_type(b"\x04".ljust(31, b"\0"))


@pytest.mark.parametrize("start", ["01010000", "01000001", "04000100", "00000000", "05000000", "ff000000"])
def test_reserved_bytes_must_be_zero_and_the_type_known(start: str) -> None:
    for length in (32, 64, 92, 148):
        with pytest.raises(MalformedPacket):
            message_type(bytes.fromhex(start).ljust(length, b"\0"))


def test_datagram_shorter_than_a_type_is_malformed() -> None:
    for length in range(4):
        with pytest.raises(MalformedPacket):
            message_type(b"\x01\0\0\0"[:length])


def test_parsing_one_type_as_another_is_refused() -> None:
    with pytest.raises(MalformedPacket):
        Initiation.parse(Response(1, 2, bytes(48)).serialize())
