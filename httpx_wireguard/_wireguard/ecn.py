"""Congestion marks between inner and outer IP headers (RFC 6040)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, ecn_of, with_ecn
from httpx_wireguard._wireguard.drops import Drop

# RFC 6040 4.2 figure 4: by the outer codepoint, what becomes of Not-ECT, ECT(1), ECT(0) and CE inside; None: drop
DECAPSULATED: dict[int, tuple[int | None, ...]] = {
    NOT_ECT: (NOT_ECT, ECT_1, ECT_0, CE),
    ECT_1: (NOT_ECT, ECT_1, ECT_1, CE),
    ECT_0: (NOT_ECT, ECT_1, ECT_0, CE),
    CE: (None, CE, CE, CE),
}
_SAME_FIELD = itemgetter(slice(2))  # version and traffic class


class EcnMode:
    """How the ECN field is carried within one session.

    Marks on an outer header that the far side does not look at (wireguard-go) would be lost, and congestion unseen. So
    the outer header is Not-ECT, RFC 6040 4.3's compatibility mode, until the far side has shown by an ECN-capable
    packet in an ECN-capable datagram that it knows of the field; then it is a copy, the normal mode. To show the same,
    the first ECN-capable packet of a session is sent in normal mode in any case: one mark more or less is no loss.

    It belongs to the session because its keys live in one process: behind the next session's, even of the same peer,
    there may be another implementation.
    """

    __slots__ = ("_normal", "_shown")

    def __init__(self) -> None:
        self._normal = False
        self._shown = False

    def encapsulate(self, packets: Sequence[bytes]) -> list[tuple[int, Sequence[bytes]]]:
        """RFC 6040 4.1: packets to send, at least one, in their order, cut where the outer codepoint changes."""
        if self._normal:
            return [(ecn_of(start), list(run)) for start, run in groupby(packets, _SAME_FIELD)]
        if not self._shown and ecn_of(packets[0]) in (ECT_0, ECT_1):
            self._shown = True
            shown = [(ecn_of(packets[0]), packets[:1]), (NOT_ECT, packets[1:])]
            return shown if len(packets) > 1 else shown[:1]
        return [(NOT_ECT, packets)]

    def decapsulate(self, packets: list[bytes], outer: int, on_drop: Callable[[Drop], None]) -> list[bytes]:
        """RFC 6040 4.2: what is left of authentic packets whose datagrams came with the codepoint `outer`."""
        if outer in (ECT_0, ECT_1) and not self._normal:
            self._normal = any(ecn_of(packet) == outer for packet in packets)
        if outer in (NOT_ECT, ECT_0):
            return packets
        arrived: list[bytes] = []
        for packet in packets:
            inner = ecn_of(packet)
            codepoint = DECAPSULATED[outer][inner]
            if codepoint is None:
                on_drop(Drop.CONGESTION)
            else:
                arrived.append(packet if codepoint == inner else with_ecn(packet, codepoint))
        return arrived
