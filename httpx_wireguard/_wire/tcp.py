"""TCP header and options (RFC 9293 3.1 and 3.2, RFC 7323, RFC 2018)."""

from __future__ import annotations

import struct
from dataclasses import field
from enum import IntFlag
from typing import Self

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._records import record
from httpx_wireguard._wire import PROTOCOL_TCP, Buffer
from httpx_wireguard._wire.checksum import transport_checksum

_TCP = struct.Struct("!HHIIBBHHH")
_U16 = struct.Struct("!H")
_TIMESTAMPS = struct.Struct("!II")
_SACK_BLOCK = struct.Struct("!II")

TCP_HEADER_LENGTH = _TCP.size  # bytes, without options
MAX_OPTIONS_LENGTH = 40  # bytes; RFC 9293 3.1: the data offset is at most 15 words
MAX_WINDOW_SCALE = 14  # RFC 7323 2.3
MAX_SACK_BLOCKS = 4  # RFC 2018 section 3: as many as fit into 40 bytes

# RFC 9293 3.2; window scale and timestamps: RFC 7323 2.2 and 3.2; SACK: RFC 2018 sections 2 and 3.
OPTION_END = 0
OPTION_NO_OPERATION = 1
OPTION_MSS = 2
OPTION_WINDOW_SCALE = 3
OPTION_SACK_PERMITTED = 4
OPTION_SACK = 5
OPTION_TIMESTAMPS = 8

_PAD = bytes((OPTION_NO_OPERATION, OPTION_NO_OPERATION))
_TIMESTAMPS_PREFIX = bytes((OPTION_TIMESTAMPS, 10))
_ALIGNED_TIMESTAMPS = _PAD + _TIMESTAMPS_PREFIX  # RFC 7323 appendix A


class Flags(IntFlag):
    """Control bits (RFC 9293 3.1; ECE and CWR: RFC 3168 6.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


@record
class TcpOptions:
    """The options we know. Whether an option may stand on this segment is for the connection to judge."""

    mss: int | None = None  # bytes of payload
    window_scale: int | None = None  # shift count, 0 to 14
    sack_permitted: bool = False
    sack_blocks: tuple[tuple[int, int], ...] = ()  # sequence numbers: first byte held, first byte behind it
    timestamp_value: int | None = None
    timestamp_echo: int = 0  # sent only together with timestamp_value

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the bytes between the fixed header and the payload. Never raises.

        Unknown options and known ones of a wrong length are passed over (RFC 9293 MUST-6); a length that points
        outside the header ends the walk with what was read so far (MUST-7). The last of two equal options counts.
        """
        options = cls()
        if len(data) == 12 and data.startswith(_ALIGNED_TIMESTAMPS):  # every segment of most connections
            options.timestamp_value, options.timestamp_echo = _TIMESTAMPS.unpack_from(data, 4)
            return options
        position, end = 0, len(data)
        while position < end:
            kind = data[position]
            if kind == OPTION_END:
                break
            if kind == OPTION_NO_OPERATION:
                position += 1
                continue
            length = data[position + 1] if position + 1 < end else 0
            if length < 2 or position + length > end:
                break
            options._set(kind, data[position + 2 : position + length])
            position += length
        return options

    def _set(self, kind: int, value: bytes) -> None:
        match kind, len(value):
            case (2, 2):  # OPTION_MSS
                (self.mss,) = _U16.unpack(value)
            case (3, 1):  # OPTION_WINDOW_SCALE; RFC 7323 2.3: a larger count is used as 14
                self.window_scale = min(value[0], MAX_WINDOW_SCALE)
            case (4, 0):  # OPTION_SACK_PERMITTED
                self.sack_permitted = True
            case (5, 8 | 16 | 24 | 32):  # OPTION_SACK
                self.sack_blocks = tuple(_SACK_BLOCK.iter_unpack(value))
            case (8, 8):  # OPTION_TIMESTAMPS
                self.timestamp_value, self.timestamp_echo = _TIMESTAMPS.unpack(value)

    def serialize(self) -> bytes:
        """A multiple of 4 bytes, every 32-bit field aligned.

        Timestamps alone are NOP NOP TS, 12 bytes. SACK blocks that do not fit are left off, the last ones first:
        3 go with timestamps (RFC 2018 section 3).
        """
        parts = []
        if self.mss is not None:
            parts.append(bytes((OPTION_MSS, 4)) + _U16.pack(self.mss))
        if self.sack_permitted:
            parts.append(bytes((OPTION_SACK_PERMITTED, 2)))
        elif self.timestamp_value is not None:
            parts.append(_PAD)
        if self.timestamp_value is not None:
            parts.append(_TIMESTAMPS_PREFIX + _TIMESTAMPS.pack(self.timestamp_value, self.timestamp_echo))
        elif self.sack_permitted:
            parts.append(_PAD)
        if self.window_scale is not None:
            parts.append(bytes((OPTION_NO_OPERATION, OPTION_WINDOW_SCALE, 3, self.window_scale)))
        room = (MAX_OPTIONS_LENGTH - sum(map(len, parts)) - 4) // _SACK_BLOCK.size
        if blocks := self.sack_blocks[: min(room, MAX_SACK_BLOCKS)]:
            parts.append(_PAD + bytes((OPTION_SACK, 2 + _SACK_BLOCK.size * len(blocks))))
            parts.extend(_SACK_BLOCK.pack(*block) for block in blocks)
        return b"".join(parts)


@record
class TcpHeader:
    """TCP header (RFC 9293 3.1)."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int  # of `Flags`
    window: int  # as on the wire, not scaled
    urgent_pointer: int = 0
    checksum: int = 0
    options: TcpOptions = field(default_factory=TcpOptions)
    header_length: int = field(default=0, compare=False)  # bytes, options included, as parsed; 0 when built by hand

    @classmethod
    def parse(cls, packet: Buffer, offset: int = 0) -> Self:
        """Read the header at `offset`; the payload begins at `offset + header_length`. The checksum is not verified.

        Raises:
            MalformedPacket: fewer than 20 bytes, or a data offset below 5 words or beyond what arrived.
        """
        available = len(packet) - offset
        if available < TCP_HEADER_LENGTH:
            raise MalformedPacket(f"TCP header needs {TCP_HEADER_LENGTH} bytes, got {available}")
        (source_port, destination_port, sequence, acknowledgment, data_offset, flags, window, checksum, urgent) = (
            _TCP.unpack_from(packet, offset)
        )
        header_length = (data_offset >> 4) << 2
        if not TCP_HEADER_LENGTH <= header_length <= available:
            raise MalformedPacket(f"TCP header length {header_length} outside {TCP_HEADER_LENGTH}..{available}")
        return cls(
            source_port=source_port,
            destination_port=destination_port,
            sequence=sequence,
            acknowledgment=acknowledgment,
            flags=flags,
            window=window,
            urgent_pointer=urgent,
            checksum=checksum,
            options=TcpOptions.parse(bytes(packet[offset + TCP_HEADER_LENGTH : offset + header_length])),
            header_length=header_length,
        )

    def serialize(self) -> bytes:
        """The header with `checksum` as it stands; `serialize_segment` computes it."""
        options = self.options.serialize()
        fixed = _TCP.pack(
            self.source_port,
            self.destination_port,
            self.sequence,
            self.acknowledgment,
            (TCP_HEADER_LENGTH + len(options)) << 2,
            self.flags,
            self.window,
            self.checksum,
            self.urgent_pointer,
        )
        return fixed + options

    def serialize_segment(self, source: bytes, destination: bytes, payload: Buffer = b"") -> bytes:
        """Header and payload with the checksum computed (MUST-2), ready to follow an IP header.

        Args:
            source: packed address, 4 or 16 bytes; `destination` likewise.
        """
        header = self.serialize()
        segment = bytearray(header)
        segment[16:18] = b"\x00\x00"
        segment += payload
        segment[16:18] = transport_checksum(source, destination, PROTOCOL_TCP, segment).to_bytes(2, "big")
        return bytes(segment)


def segment_is_intact(source: bytes, destination: bytes, segment: Buffer) -> bool:
    """Whether the checksum holds (MUST-3). `segment` runs from the TCP header to the end of the payload."""
    return transport_checksum(source, destination, PROTOCOL_TCP, segment) == 0
