"""The four messages (paper 5.4): exact lengths, little-endian, one type byte and three zero bytes first."""

from __future__ import annotations

import struct
from typing import Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wireguard.constants import MAC_SIZE, TAG_SIZE

INITIATION = 1
RESPONSE = 2
COOKIE_REPLY = 3
TRANSPORT = 4

INITIATION_SIZE = 148  # bytes
RESPONSE_SIZE = 92  # bytes
COOKIE_REPLY_SIZE = 64  # bytes
TRANSPORT_HEADER_SIZE = 16  # bytes: type, receiver index, counter
KEEPALIVE_SIZE = TRANSPORT_HEADER_SIZE + TAG_SIZE  # bytes: a transport message around nothing, the shortest

TRANSPORT_HEADER = struct.Struct("<IIQ")  # type, receiver index, counter
_TYPE = struct.Struct("<I")
_INITIATION = struct.Struct("<II108s16s16s")
_RESPONSE = struct.Struct("<III48s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")
_SIZES = {INITIATION: INITIATION_SIZE, RESPONSE: RESPONSE_SIZE, COOKIE_REPLY: COOKIE_REPLY_SIZE}


def message_type(datagram: bytes | memoryview) -> int:
    """Return the type of a datagram whose length fits it.

    Raises:
        MalformedPacket: unknown type, reserved bytes that are not zero, or a length that the type does not have.
    """
    if len(datagram) < _TYPE.size:
        raise MalformedPacket(f"datagram of {len(datagram)} bytes has no message type")
    (kind,) = _TYPE.unpack_from(datagram)
    fits = len(datagram) >= KEEPALIVE_SIZE if kind == TRANSPORT else len(datagram) == _SIZES.get(kind)
    if not fits:
        raise MalformedPacket(f"no message of type {kind:#x} has {len(datagram)} bytes")
    return int(kind)


@record
class Initiation:
    """First message, initiator to responder."""

    sender: int
    noise: bytes  # ephemeral 32, sealed static 48, sealed timestamp 28
    mac1: bytes = bytes(MAC_SIZE)
    mac2: bytes = bytes(MAC_SIZE)

    @classmethod
    def parse(cls, datagram: bytes | memoryview) -> Self:
        _expect(datagram, INITIATION)
        return cls(*_INITIATION.unpack(datagram)[1:])

    def serialize(self) -> bytes:
        return _INITIATION.pack(INITIATION, self.sender, self.noise, self.mac1, self.mac2)


@record
class Response:
    """Second message, responder to initiator."""

    sender: int
    receiver: int
    noise: bytes  # ephemeral 32, sealed nothing 16
    mac1: bytes = bytes(MAC_SIZE)
    mac2: bytes = bytes(MAC_SIZE)

    @classmethod
    def parse(cls, datagram: bytes | memoryview) -> Self:
        _expect(datagram, RESPONSE)
        return cls(*_RESPONSE.unpack(datagram)[1:])

    def serialize(self) -> bytes:
        return _RESPONSE.pack(RESPONSE, self.sender, self.receiver, self.noise, self.mac1, self.mac2)


@record
class CookieReply:
    """Answer of a host under load to a handshake message without a valid mac2."""

    receiver: int
    nonce: bytes  # 24 bytes, random
    sealed_cookie: bytes  # 16 bytes and the tag

    @classmethod
    def parse(cls, datagram: bytes | memoryview) -> Self:
        _expect(datagram, COOKIE_REPLY)
        return cls(*_COOKIE_REPLY.unpack(datagram)[1:])

    def serialize(self) -> bytes:
        return _COOKIE_REPLY.pack(COOKIE_REPLY, self.receiver, self.nonce, self.sealed_cookie)


def _expect(datagram: bytes | memoryview, kind: int) -> None:
    if message_type(datagram) != kind:
        raise MalformedPacket(f"not a message of type {kind}")
