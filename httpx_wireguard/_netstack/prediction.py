"""Header prediction: segments that are as most segments are, taken without an object made of their headers."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Sequence
from operator import itemgetter

from httpx_wireguard._netstack.receiver import Receiver
from httpx_wireguard._netstack.rtt import MAXIMUM_RTO
from httpx_wireguard._netstack.sender import Sender
from httpx_wireguard._wire.ecn import CE
from httpx_wireguard._wire.tcp import Flags
from httpx_wireguard._wire.trains import SHORTEST_TRAIN, Train, train_length

TIMESTAMP_LAYOUT = 0x0101080A  # NOP, NOP, kind 8, length 10: RFC 7323 appendix A

# by the length of the IP header: its word with the ECN field; then what stands behind the ports of a TCP header with a
# timestamp option and no other
_FAST = {20: struct.Struct("!H22xIIHH4xIII"), 40: struct.Struct("!H42xIIHH4xIII")}
_PAYLOAD = {offset: itemgetter(slice(offset + 32, None)) for offset in _FAST}
_FAST_WORDS = frozenset({8 << 12 | int(Flags.ACK), 8 << 12 | int(Flags.ACK | Flags.PSH)})  # data offset and flags


class PredictedInput:
    """Takes segments that continue the stream or acknowledge what was sent, and do nothing else.

    The outcome has to be that of `TcpConnection.receive_segment`, which takes all segments.

    Attributes:
        sender: our half of the connection.
        receiver: the far side's.
    """

    __slots__ = ("_last_received", "_timestamp_echo", "_timestamp_offset", "receiver", "sender")

    sender: Sender
    receiver: Receiver
    _last_received: float
    _timestamp_echo: int  # TS.Recent
    _timestamp_offset: int

    @abstractmethod
    def _on_news(self, acknowledgment: int, echo: int | None, now: float) -> None:
        """What the sender learns of its data; the arguments are those of `Sender.on_ack`."""

    def _take_predicted(self, packets: Sequence[bytes], index: int, offset: int, now: float) -> int:
        """Take the segments from `index` on that are as predicted; returns how many they are.

        Args:
            offset: where the TCP header begins in each of them.
        """
        if offset not in _FAST:
            return 0
        taken = self._take_train(packets, index, offset, now) if len(packets) - index >= SHORTEST_TRAIN else 0
        return taken or self._take_each(packets, index, offset, now)

    def _take_train(self, packets: Sequence[bytes], index: int, offset: int, now: float) -> int:
        """Take the train that begins at `index`, if its first segment is as predicted; returns of how many it is."""
        train = packets[index:] if index else packets
        count = len(train) if isinstance(train, Train) else _train_ahead(train, offset)
        if not count:
            return 0
        receiver, sender, first = self.receiver, self.sender, train[0]
        start, sequence, acknowledgment, word, window, _, value, back = _FAST[offset].unpack_from(first)
        if (
            sequence != receiver.next & 0xFFFFFFFF
            or acknowledgment != sender.unacknowledged & 0xFFFFFFFF
            or word not in _FAST_WORDS
            or window != sender.window >> sender.scale
            or (value - self._timestamp_echo) & 0x80000000
        ):
            return 0
        payloads = list(map(_PAYLOAD[offset], train if count == len(train) else train[:count]))
        if sum(map(len, payloads)) > receiver.room:
            return 0
        if receiver.next == receiver.last_acknowledgment:
            self._timestamp_echo = value  # RFC 7323 4.3: only of what begins at Last.ACK.sent
        mark = _ce_mark(first)
        marked = start & mark == mark
        self._on_predicted([b"".join(payloads)], len(payloads[0]), len(payloads[-1]), back, marked, now)
        return count

    def _take_each(self, packets: Sequence[bytes], index: int, offset: int, now: float) -> int:
        """Take the segments from `index` on that are as predicted; returns how many they are."""
        receiver, sender = self.receiver, self.sender
        unpack, data_at = _FAST[offset].unpack_from, offset + 32
        marked, mark = False, _ce_mark(packets[index])
        run: list[bytes] = []
        length, sequence, first_back = 0, receiver.next & 0xFFFFFFFF, 0
        room = receiver.room
        una, field = sender.unacknowledged & 0xFFFFFFFF, sender.window >> sender.scale
        echo, refresh = self._timestamp_echo, receiver.next == receiver.last_acknowledgment
        for packet in packets[index:] if index else packets:
            payload = packet[data_at:]
            size = len(payload)
            if len(packet) < data_at or length + size > room:
                break
            start, seq, ack, word, window, layout, value, back = unpack(packet)
            if (
                seq != sequence
                or word not in _FAST_WORDS
                or layout != TIMESTAMP_LAYOUT
                or (value - echo) & 0x80000000
                or (ack == una and (window != field or not size))
            ):
                break
            if ack != una:
                if run or not self._acknowledges(ack, window, back, now):
                    break
                una, field = ack, window
            if refresh:
                echo, refresh = value, False  # RFC 7323 4.3: only of what begins at Last.ACK.sent
            if not size:
                self._timestamp_echo = echo
                return 1
            first_back = first_back if run else back
            run.append(payload)
            length += size
            sequence = (sequence + size) & 0xFFFFFFFF
            if start & mark == mark:
                marked = True
        if run:
            self._timestamp_echo = echo
            self._on_predicted(run, len(run[0]), len(run[-1]), first_back, marked, now)
        return len(run)

    def _acknowledges(self, acknowledgment: int, window: int, back: int, now: float) -> bool:
        """Take what a segment says of our data, if it moves SND.UNA, and nothing special follows from that."""
        sender = self.sender
        advance = (acknowledgment - sender.unacknowledged) & 0xFFFFFFFF
        if sender.fin_at is not None or advance > sender.next - sender.unacknowledged:
            return False
        self._last_received = now
        acknowledgment = sender.unacknowledged + advance
        sender.update_window(self.receiver.next, acknowledgment, window)
        self._on_news(acknowledgment, self._echoed(back, now), now)
        return True

    def _on_predicted(self, payloads: list[bytes], first: int, last: int, back: int, marked: bool, now: float) -> None:
        """What follows from predicted segments: `payloads`, the sizes of the first and of the last of them, the
        timestamp of ours that the first brought back, and whether one was marked CE."""
        receiver, length = self.receiver, sum(map(len, payloads))
        self._last_received = now
        if marked and receiver.ecn:
            receiver.on_ecn(ce=True, cwr=False)
        self.sender.confirm_window(receiver.next + length - last)
        if back != receiver.last_echo and first >= receiver.full_segment:
            receiver.last_echo = back
            ticks = self._age(back, now)
            if ticks is not None:  # a lie that is not seen through makes our window too large or too small for the liar
                receiver.on_echo(ticks)
        receiver.on_in_order(payloads, length, first, now)

    def _echoed(self, back: int, now: float) -> int | None:
        """When the segment left whose timestamp comes back (RFC 7323 4.1), in ms of our clock."""
        ticks = self._age(back, now)
        return None if ticks is None else int(now * 1000) - ticks

    def _age(self, back: int, now: float) -> int | None:
        """How many ms ago we sent the timestamp that comes back; None of one that we cannot have sent."""
        ticks = (self._timestamp_value(now) - back) & 0xFFFFFFFF
        return ticks if ticks <= MAXIMUM_RTO * 1000 else None

    def _timestamp_value(self, now: float) -> int:
        return (int(now * 1000) + self._timestamp_offset) & 0xFFFFFFFF  # RFC 7323 5.4: a tick of 1 ms


def _ce_mark(packet: bytes) -> int:
    """The bits of CE in the first word of an IP header."""
    return CE if packet[0] >> 4 == 4 else CE << 4


def _train_ahead(packets: Sequence[bytes], offset: int) -> int:
    """The `train_length` of packets, SHORTEST_TRAIN at least, that nobody has compared yet, if it is worth a try."""
    first, other, option = packets[0], packets[SHORTEST_TRAIN - 1], slice(offset + 20, offset + 24)
    return train_length(packets) if first[option] == other[option] else 0
