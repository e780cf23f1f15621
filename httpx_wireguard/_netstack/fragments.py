"""Reassembly of IPv4 fragments (RFC 791 3.2) and IPv6 fragments (RFC 8200 4.5)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire.checksum import checksum
from httpx_wireguard._wire.ecn import CE, NOT_ECT, with_ecn
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import (
    FRAGMENT_HEADER_LENGTH,
    IPV6_HEADER_LENGTH,
    Ipv6Header,
    UpperLayer,
    find_upper_layer,
)

MAX_LENGTH = 65535  # bytes; RFC 791 3.1 total length, RFC 8200 section 3 payload length

# Our limits.
REASSEMBLY_TIMEOUT = 30.0  # seconds; RFC 791 3.2 suggests 15, RFC 1122 3.3.2 60 to 120, RFC 8200 4.5 says 60. Every
# lost fragment leaves its datagram's rest behind for that long, while fragments of one datagram arrive within about a
# round trip, and no DNS query or ping still waits for its answer after 30.
MAX_DATAGRAMS = 64  # at once
MAX_BYTES = 1 << 20  # held, of all datagrams: 16 of the largest
MAX_FRAGMENTS = 128  # of one datagram: 65,535 bytes over 576-byte links need 119 (CVE-2018-5391: tiny fragments)


class _Datagram:
    """The fragments of one datagram, sorted by offset and free of overlap."""

    __slots__ = ("codepoints", "deadline", "ends", "head", "held", "offsets", "pieces", "rejected", "total")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # seconds
        self.offsets: list[int] = []
        self.ends: list[int] = []
        self.pieces: list[bytes] = []
        self.held = 0  # bytes
        self.total: int | None = None  # bytes of the whole payload, once the last fragment is here
        self.codepoints: set[int] = set()  # of the fragments' ECN fields
        self.head = b""  # what stands in front of the data in the rebuilt packet, from the first fragment
        self.rejected = False  # keeps the place only, so that later fragments are dropped too

    def add(self, offset: int, data: bytes, more: bool) -> str | None:
        """Keep one fragment.

        Returns:
            Why the datagram has to go, or None. An exact copy of a fragment held is passed over (RFC 8200 4.5).
        """
        end = offset + len(data)
        index = bisect_left(self.offsets, offset)
        if index < len(self.offsets) and self.offsets[index] == offset and self.pieces[index] == data:
            return None if more == (self.total != end) else "fragments disagree about the length"
        if (index and self.ends[index - 1] > offset) or (index < len(self.offsets) and self.offsets[index] < end):
            return "fragments overlap"
        if not more and (self.total is not None or (self.ends and self.ends[-1] > end)):
            return "fragments disagree about the length"
        if more and self.total is not None and end > self.total:
            return "fragments disagree about the length"
        if len(self.offsets) >= MAX_FRAGMENTS:
            return "too many fragments in one datagram"
        if not more:
            self.total = end
        self.offsets.insert(index, offset)
        self.ends.insert(index, end)
        self.pieces.insert(index, data)
        self.held += len(data)
        return None

    @property
    def is_complete(self) -> bool:
        # Without overlap and with nothing beyond the end, as many bytes as the total are all of them.
        return self.held == self.total

    def mark(self) -> bool:
        """RFC 3168 5.3: a congestion mark on any fragment is one on the whole; False where it would then be a mark on
        data without ECN, and the datagram has to go."""
        if CE in self.codepoints:
            self.head = with_ecn(self.head, CE)
        return not {CE, NOT_ECT} <= self.codepoints

    def reject(self) -> None:
        """Forget the data, and all that is still to come (RFC 5722 section 3)."""
        self.rejected = True
        self.offsets, self.ends, self.pieces = [], [], []
        self.held = 0
        self.total = None


_Key = tuple[bytes, bytes, int, int]  # source, destination, identification, protocol (RFC 791) or -1 (RFC 8200)


class FragmentReassembler:
    """Rebuilds fragmented packets. One object serves both IP versions.

    Every limit drops silently: no ICMP error tells a peer how much we hold.

    Attributes:
        drops: fragments and unfinished datagrams given up, by reason.
    """

    def __init__(
        self,
        drops: Counter[str] | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        max_datagrams: int = MAX_DATAGRAMS,
        timeout: float = REASSEMBLY_TIMEOUT,
    ) -> None:
        """
        Args:
            drops: count here instead of in a new counter.
            max_bytes: of fragment data held; at least 65,535, or the largest datagrams never complete.
            timeout: seconds from a datagram's first fragment to arrive (RFC 8200 4.5).
        """
        self.drops: Counter[str] = Counter() if drops is None else drops
        self.bytes_held = 0
        self._max_bytes = max_bytes
        self._max_datagrams = max_datagrams
        self._timeout = timeout
        self._datagrams: dict[_Key, _Datagram] = {}  # in order of their deadlines: dicts keep insertion order

    def __len__(self) -> int:
        """Unfinished datagrams, those given up but remembered included."""
        return len(self._datagrams)

    def add_ipv4(self, packet: bytes, now: float) -> bytes | None:
        """Take a whole IPv4 packet, without trailing bytes or with.

        Returns:
            `packet` itself when it is no fragment, the rebuilt packet when this fragment completes it (header of the
            first fragment, RFC 791 3.2), else None. Never raises on network input.
        """
        try:
            header = Ipv4Header.parse(packet)
        except MalformedPacket:
            self._drop("malformed fragment")
            return None
        if not header.is_fragment:
            return packet
        data = packet[header.header_length : header.total_length]
        if header.header_length + header.fragment_offset + len(data) > MAX_LENGTH:
            self._drop("fragment beyond 65,535 bytes")
            return None
        key = (header.source, header.destination, header.identification, header.protocol)
        head = packet[: header.header_length] if header.fragment_offset == 0 else b""
        ecn = header.traffic_class & CE
        datagram = self._add(key, header.fragment_offset, data, header.more_fragments, head, ecn, now)
        if datagram is None:
            return None
        if len(datagram.head) + datagram.held > MAX_LENGTH:
            self._drop("fragment beyond 65,535 bytes")
            return None
        return _rebuild_ipv4(datagram.head, datagram.pieces)

    def add_ipv6(self, packet: bytes, now: float) -> bytes | None:
        """Take a whole IPv6 packet, without trailing bytes or with.

        Returns:
            `packet` itself when it has no Fragment header, else as `add_ipv4`: the packet without its Fragment
            header. An atomic fragment is rebuilt at once and on its own (RFC 6946). Never raises on network input.
        """
        try:
            header = Ipv6Header.parse(packet)
            end = IPV6_HEADER_LENGTH + header.payload_length
            upper = find_upper_layer(packet if end == len(packet) else packet[:end])
        except MalformedPacket:
            self._drop("malformed fragment")
            return None
        fragment = upper.fragment
        if fragment is None:
            return packet
        data = packet[upper.fragment_position + FRAGMENT_HEADER_LENGTH : end]
        if upper.fragment_position - IPV6_HEADER_LENGTH + fragment.offset + len(data) > MAX_LENGTH:
            self._drop("fragment beyond 65,535 bytes")
            return None
        head = _unfragmentable_part(packet, upper, fragment.next_header) if fragment.offset == 0 else b""
        if fragment.is_atomic:
            return _rebuild_ipv6(head, [data])
        key = (header.source, header.destination, fragment.identification, -1)
        datagram = self._add(key, fragment.offset, data, fragment.more, head, header.traffic_class & CE, now)
        if datagram is None:
            return None
        if len(datagram.head) - IPV6_HEADER_LENGTH + datagram.held > MAX_LENGTH:
            self._drop("fragment beyond 65,535 bytes")
            return None
        return _rebuild_ipv6(datagram.head, datagram.pieces)

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next, in monotonic seconds; None when nothing waits."""
        for datagram in self._datagrams.values():
            return datagram.deadline
        return None

    def handle_timeout(self, now: float) -> None:
        """Give up the datagrams whose time is over. Spurious calls are no-ops."""
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.deadline > now:
                return
            self._remove(key, None if datagram.rejected else "reassembly timed out")

    def _add(
        self, key: _Key, offset: int, data: bytes, more: bool, head: bytes, ecn: int, now: float
    ) -> _Datagram | None:
        """Put a fragment to its datagram; return the datagram, removed, once it is complete."""
        self.handle_timeout(now)
        if not data or (more and len(data) % 8):  # RFC 791 3.2, RFC 8200 4.5: units of 8 bytes
            self._drop("fragment length")
            return None
        datagram = self._datagrams.get(key) or self._open(key, now)
        if datagram.rejected:
            self._drop("fragment of a rejected datagram")
            return None
        held = datagram.held
        if reason := datagram.add(offset, data, more):
            datagram.reject()
            self.bytes_held -= held
            self._drop(reason)
            return None
        self.bytes_held += datagram.held - held
        datagram.head = datagram.head or head
        datagram.codepoints.add(ecn)
        if datagram.is_complete:
            whole = datagram.mark()
            self._remove(key, None if whole else "congestion mark on a fragment without ECN")
            return datagram if whole else None
        self._make_room(key)
        return None

    def _open(self, key: _Key, now: float) -> _Datagram:
        if len(self._datagrams) >= self._max_datagrams:
            self._remove(next(iter(self._datagrams)), "too many unfinished datagrams")
        datagram = self._datagrams[key] = _Datagram(now + self._timeout)
        return datagram

    def _make_room(self, newest: _Key) -> None:
        """Give up the oldest other datagrams first: the oldest is the least likely to be completed."""
        while self.bytes_held > self._max_bytes:
            oldest = next((key for key, each in self._datagrams.items() if each.held and key != newest), newest)
            self._remove(oldest, "too many bytes in fragments")

    def _remove(self, key: _Key, reason: str | None) -> None:
        self.bytes_held -= self._datagrams.pop(key).held
        if reason is not None:
            self._drop(reason)

    def _drop(self, reason: str) -> None:
        self.drops[reason] += 1


def _unfragmentable_part(packet: bytes, upper: UpperLayer, next_header: int) -> bytes:
    """All in front of the Fragment header, with the header that named it naming what follows it (RFC 8200 4.5)."""
    head = bytearray(packet[: upper.fragment_position])
    head[upper.fragment_named_at] = next_header
    return bytes(head)


def _rebuild_ipv4(head: bytes, pieces: list[bytes]) -> bytes:
    header = bytearray(head)
    header[2:4] = (len(head) + sum(map(len, pieces))).to_bytes(2, "big")
    header[6:8] = header[10:12] = b"\x00\x00"  # flags and fragment offset; checksum
    header[10:12] = checksum(header).to_bytes(2, "big")
    return b"".join((header, *pieces))


def _rebuild_ipv6(head: bytes, pieces: list[bytes]) -> bytes:
    header = bytearray(head)
    header[4:6] = (len(head) - IPV6_HEADER_LENGTH + sum(map(len, pieces))).to_bytes(2, "big")
    return b"".join((header, *pieces))
