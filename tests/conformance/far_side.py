"""The far side of a connection as the conformance scripts see it: packets to numbers that begin at 0, and back."""

from __future__ import annotations

import re
from typing import NamedTuple

from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import IcmpMessage
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import TcpHeader, TcpOptions, segment_is_intact
from tests.conformance.script import ECN, FLAGS, ScriptError, Segment

ADDRESSES = {4: (b"\x0a\0\0\x02", b"\x0a\0\0\x01"), 6: (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01")}
PORT = 80  # of whoever listens
THEIR_CLOCK = 7_000_000  # the far side's timestamp at 0.000
PATTERN = bytes(position * 7 % 251 for position in range(251)) * 264  # the text, by its sequence number
ICMP = {  # type and code; RFC 792, RFC 4443
    4: {"net": (3, 0), "host": (3, 1), "protocol": (3, 2), "port": (3, 3), "too-big": (3, 4), "source-route": (3, 5)}
    | {"quench": (4, 0), "time": (11, 0), "parameter": (12, 0)},
    6: {"net": (1, 0), "prohibited": (1, 1), "host": (1, 3), "port": (1, 4), "too-big": (2, 0), "time": (3, 0)}
    | {"parameter": (4, 0)},
}


class Sent(NamedTuple):
    """A segment of ours: when it left, each field as a script would write it, and its text."""

    at: float
    fields: dict[str, str]  # flags, seq, ack, win, urg, ecn
    options: dict[str, str]
    payload: bytes

    def __str__(self) -> str:
        fields = self.fields
        text = f"{fields['flags'] or '-'} {fields['seq']}"
        for name in ("ack", "win", "urg"):
            text += f" {name} {fields[name]}" if fields.get(name, "0") != "0" or name == "ack" in fields else ""
        text += f" {fields['ecn']}" if fields["ecn"] != "not-ect" else ""
        options = ",".join(f"{name} {value}".strip() for name, value in self.options.items())
        return f"{text} <{options}>" if options else text


class RawOptions(TcpOptions):
    """Bytes that need not be options."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.raw = raw
        if len(raw) % 4:
            raise ScriptError(f"{len(raw)} bytes of options are no words of four")

    def serialize(self) -> bytes:
        return self.raw


class FarSide:
    """Reads what we send and writes what the script lets the far side send.

    Sequence numbers count from each side's SYN, timestamps from 0.000, both in milliseconds; windows are bytes.
    """

    def __init__(self, version: int, initial_sequence: int) -> None:
        self.version = version
        us, them = ADDRESSES[version]
        self._ours, self._theirs = (us, PORT), (them, 40000)
        self._our_initial, self.initial_sequence = 0, initial_sequence
        self.syn_at = 0  # where the far side's SYN was, for a script that does not begin at 0
        self.marks = {"una": 0, "nxt": 0, "rcv": 0, "edge": 0}
        self._our_scale: int | None = None
        self._their_scale: int | None = None
        self._our_clock: int | None = None  # our timestamp at 0.000
        self._their_timestamps = False
        self._last_timestamp = 0  # of ours
        self._window = 65535  # that the far side advertises

    @property
    def timestamps(self) -> bool:
        """Both SYNs had the option."""
        return self._our_clock is not None and self._their_timestamps

    @property
    def _scaled(self) -> bool:
        return self._our_scale is not None and self._their_scale is not None

    def number(self, text: str) -> int:
        """A sequence number: 7, nxt, rcv-1; the marks are ours (una, nxt) or theirs (rcv, edge)."""
        match = re.fullmatch(r"(una|nxt|rcv|edge)?([+-]?\d+)?", text)
        if match is None or not text:
            raise ScriptError(f"{text!r} is no sequence number")
        return (self.marks[match[1]] if match[1] else 0) + int(match[2] or 0)

    # -- from us

    def read(self, packet: bytes, at: float) -> Sent:
        """A packet of ours.

        Raises:
            AssertionError: its checksum is wrong.
        """
        ip = Ipv4Header.parse(packet) if self.version == 4 else Ipv6Header.parse(packet)
        start = 20 if self.version == 4 else 40
        assert segment_is_intact(ip.source, ip.destination, packet[start:]), f"checksum of {packet.hex()}"
        header = TcpHeader.parse(packet, start)
        payload = packet[start + header.header_length :]
        flags = "".join(flag for flag, bit in FLAGS.items() if header.flags & bit)
        if "S" in flags:
            self._on_our_syn(header, at)
        first = _signed(header.sequence - self._our_initial)
        fields = {
            "flags": flags,
            "seq": f"{first}:{first + len(payload)}" if payload else str(first),
            "win": str(header.window << (self._our_scale or 0 if self._scaled and "S" not in flags else 0)),
            "urg": str(header.urgent_pointer),
            "ecn": ECN[ip.traffic_class & 3],
        }
        if "." in flags:
            fields["ack"] = str(_signed(header.acknowledgment - self.initial_sequence))
        return Sent(at, fields, self._read_options(header.options), payload)

    def note(self, sent: Sent) -> None:
        """The script knows of this segment now: move the marks."""
        fields, marks = sent.fields, self.marks
        if "R" not in fields["flags"]:
            first, _, end = fields["seq"].partition(":")
            control = ("S" in fields["flags"]) + ("F" in fields["flags"])
            marks["nxt"] = max(marks["nxt"], int(end or first) + control)
            marks["rcv"] = int(fields.get("ack", marks["rcv"]))
            marks["edge"] = max(marks["edge"], marks["rcv"] + int(fields["win"]))

    def _on_our_syn(self, header: TcpHeader, at: float) -> None:
        self._ours, self._theirs = (self._ours[0], header.source_port), (self._theirs[0], header.destination_port)
        if header.sequence != self._our_initial:
            self._our_initial = header.sequence
            self.marks["una"] = self.marks["nxt"] = 0
        self._our_scale, value = header.options.window_scale, header.options.timestamp_value
        self._our_clock = None if value is None else value - round(at * 1000)

    def _read_options(self, options: TcpOptions) -> dict[str, str]:
        found = {}
        if options.mss is not None:
            found["mss"] = str(options.mss)
        if options.window_scale is not None:
            found["wscale"] = str(options.window_scale)
        if options.sack_permitted:
            found["sackOK"] = ""
        if options.sack_blocks:
            edges = ([_signed(edge - self.initial_sequence) for edge in block] for block in options.sack_blocks)
            found["sack"] = " ".join(f"{left}:{right}" for left, right in edges)
        if options.timestamp_value is not None:
            self._last_timestamp = _signed(options.timestamp_value - (self._our_clock or 0))
            found["ts"] = str(self._last_timestamp)
            found["ecr"] = str(_signed(options.timestamp_echo - THEIR_CLOCK) if options.timestamp_echo else 0)
        return found

    def differences(self, written: Segment, sent: Sent, *, ecn: bool) -> list[str]:
        """The names of the fields that were written and are not so; `ecn`: ECE and CWR count."""
        first = self.number(written.first)
        uncounted = ("" if "P" in written.flags else "P") + ("" if ecn else "EW")
        flags = sent.fields["flags"].translate(dict.fromkeys(map(ord, uncounted)))
        want = {"flags": written.flags, "seq": f"{first}:{first + written.length}" if written.length else str(first)}
        if written.ack is not None:
            want["ack"] = str(self.number(written.ack))
        want |= {key: value for key, value in (("win", written.win), ("urg", written.urg)) if value is not None}
        if written.ecn is not None:
            want["ecn"] = written.ecn
        got = sent.fields | {"flags": flags}
        wrong = [name for name, value in want.items() if got.get(name) != value]
        if sent.payload != text(first, written.length) and "seq" not in wrong:
            wrong.append("text")
        return wrong + self._different_options(written, sent)

    def _different_options(self, written: Segment, sent: Sent) -> list[str]:
        """A list of options is the whole list, except that timestamps go without saying where they were agreed on."""
        want, got = dict(written.options or {}), dict(sent.options)
        implied = self.timestamps and "S" not in written.flags and "R" not in written.flags
        if implied and "nots" not in want:
            want.setdefault("ts", "")
            want.setdefault("ecr", "")
        elif "ts" in want:
            want.setdefault("ecr", "")
        want.pop("nots", None)
        wrong = [name for name, value in want.items() if name not in got or not _agree(name, value, got[name])]
        if written.options is not None:
            wrong += [name for name in got if name not in want]
        return wrong

    # -- to us

    def segment(self, written: Segment, at: float) -> bytes:
        """The packet for a segment as written; what it leaves open is what an ordinary far side would say."""
        flags, first = written.flags, self.number(written.first)
        ack = self.marks["una"] if written.ack is None else self.number(written.ack)
        if "." in flags and ack <= self.marks["nxt"]:
            self.marks["una"] = max(self.marks["una"], ack)
        options = self._options(written, at)
        self._window = self._window if written.win is None else int(written.win)
        scale = self._their_scale or 0 if self._scaled and "S" not in flags else 0
        if written.win is not None and (
            self._window >> scale << scale != self._window or self._window >> scale > 0xFFFF
        ):
            raise ScriptError(f"a window of {self._window} does not fit the header with a scale of {scale}")
        header = TcpHeader(
            self._theirs[1],
            self._ours[1],
            (self.initial_sequence + first) & 0xFFFFFFFF,
            (self._our_initial + ack) & 0xFFFFFFFF if "." in flags else 0,
            sum(FLAGS[flag] for flag in flags),
            min(self._window >> scale, 0xFFFF),
            int(written.urg or 0),
            options=options,
        )
        payload = written.fill.encode() * written.length if written.fill else text(first, written.length)
        segment = header.serialize_segment(self._theirs[0], self._ours[0], payload)
        return self._packet(PROTOCOL_TCP, segment, ECN.index(written.ecn or "not-ect"))

    def _options(self, written: Segment, at: float) -> TcpOptions:
        named, syn = written.options or {}, "S" in written.flags
        if "raw" in named:
            return RawOptions(bytes.fromhex(named["raw"]))
        options = TcpOptions(
            mss=int(named["mss"]) if "mss" in named else None,
            window_scale=int(named["wscale"]) if "wscale" in named else None,
            sack_permitted="sackOK" in named,
            sack_blocks=tuple(self._block(block) for block in named.get("sack", "").split()),
        )
        if "ts" in named or (self.timestamps and not syn and "nots" not in named and "R" not in written.flags):
            options.timestamp_value = (THEIR_CLOCK + int(named.get("ts") or round(at * 1000))) & 0xFFFFFFFF
            if "." in written.flags:
                echo = int(named.get("ecr", self._last_timestamp))
                options.timestamp_echo = ((self._our_clock or 0) + echo) & 0xFFFFFFFF
        if syn:
            self.syn_at = self.number(written.first)
            self._their_scale = None if options.window_scale is None else min(options.window_scale, 14)  # RFC 7323 2.3
            self._their_timestamps = "ts" in named
        return options

    def _block(self, written: str) -> tuple[int, int]:
        left, _, right = written.partition(":")
        return tuple((self._our_initial + self.number(edge)) & 0xFFFFFFFF for edge in (left, right))  # type: ignore[return-value]  # two

    def icmp_error(self, kind: str, sequence: int, rest: int) -> bytes:
        """An ICMP error about a segment of ours."""
        quoted = TcpHeader(self._ours[1], self._theirs[1], (self._our_initial + sequence) & 0xFFFFFFFF, 0, 0x10, 0)
        body = self._packet(PROTOCOL_TCP, quoted.serialize(), 0, back=True)[: 28 if self.version == 4 else 60]
        message = IcmpMessage(*ICMP[self.version][kind], rest, body)
        if self.version == 4:
            return self._packet(PROTOCOL_ICMP, message.serialize(), 0)
        total = pseudo_header_sum(self._theirs[0], self._ours[0], PROTOCOL_ICMPV6, message.length)
        return self._packet(PROTOCOL_ICMPV6, message.serialize(total), 0)

    def _packet(self, protocol: int, body: bytes, ecn: int, *, back: bool = False) -> bytes:
        source, destination = self._theirs[0], self._ours[0]
        if back:
            source, destination = destination, source
        if self.version == 4:
            return Ipv4Header(source, destination, protocol, 20 + len(body), traffic_class=ecn).serialize() + body
        return Ipv6Header(source, destination, protocol, len(body), traffic_class=ecn).serialize() + body


def _agree(name: str, written: str, got: str) -> bool:
    if name == "ts" and written:
        return abs(int(written) - int(got)) <= 1
    return written in ("", got)


def text(first: int, length: int) -> bytes:
    """What the stream holds from sequence number `first` on, on both sides."""
    start = first % 251
    return PATTERN[start : start + length]


def _signed(difference: int) -> int:
    return (difference + 2**31) % 2**32 - 2**31
