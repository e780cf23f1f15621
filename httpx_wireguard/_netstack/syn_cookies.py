"""SYN cookies: answers to a flood of SYNs that keep no state (RFC 4987 3.6 and appendix A)."""

from __future__ import annotations

import hashlib
from bisect import bisect_right

from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions

COOKIE_PERIOD = 64.0  # seconds; ours: a cookie is good for the rest of its period and for the next one
_MSS = (88, 536, 1220, 1240, 1300, 1340, 1380, 1460)  # the largest of these that the far side takes is remembered
_MAC_BITS = 29  # beside 3 for the MSS: while a flood lasts, a forged acknowledgment succeeds once in 2**28 times
_NO_SCALE, _SACK, _OPTION_BITS = 15, 16, 63  # what the low bits of our timestamp remember, as Linux does it


class SynCookies:
    """What a SYN said comes back in the acknowledgment of our answer: in its sequence number, and in its timestamp.

    Without timestamps the connection has neither window scaling nor selective acknowledgments.
    """

    __slots__ = ("_secret", "_until")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._until = float("-inf")  # no cookie is good any more

    def answer(self, key: bytes, syn: TcpHeader, own: TcpOptions, window: int, now: float) -> TcpHeader:
        """The SYN,ACK.

        Args:
            key: addresses and ports.
            own: what we would answer to every offer, with our clock in `timestamp_value`.
        """
        self._until = (now // COOKIE_PERIOD + 2) * COOKIE_PERIOD
        offer = syn.options
        default = 536 if len(key) == 12 else 1220  # RFC 9293 MUST-15
        index = max(bisect_right(_MSS, default if offer.mss is None else offer.mss) - 1, 0)
        options = TcpOptions(mss=own.mss)
        if offer.timestamp_value is not None and own.timestamp_value is not None:
            options.sack_permitted = offer.sack_permitted
            options.window_scale = own.window_scale if offer.window_scale is not None else None
            scale = _NO_SCALE if offer.window_scale is None else offer.window_scale
            low = scale | _SACK * offer.sack_permitted
            clock = own.timestamp_value  # rounded down: later timestamps must not be smaller
            options.timestamp_value = (clock - ((clock - low) & _OPTION_BITS)) & 0xFFFFFFFF
            options.timestamp_echo = offer.timestamp_value
        return TcpHeader(
            source_port=syn.destination_port,
            destination_port=syn.source_port,
            sequence=self._cookie(key, syn.sequence, int(now // COOKIE_PERIOD), index),
            acknowledgment=(syn.sequence + 1) & 0xFFFFFFFF,
            flags=int(Flags.SYN | Flags.ACK),
            window=window,
            options=options,
        )

    def recall(self, key: bytes, header: TcpHeader, now: float) -> TcpHeader | None:
        """The SYN behind this acknowledgment of one of our cookies; None if it is none."""
        if now >= self._until:
            return None
        sequence, cookie = (header.sequence - 1) & 0xFFFFFFFF, (header.acknowledgment - 1) & 0xFFFFFFFF
        index, period = cookie >> _MAC_BITS, int(now // COOKIE_PERIOD)
        if cookie not in (self._cookie(key, sequence, each, index) for each in (period, period - 1)):
            return None
        options = TcpOptions(mss=_MSS[index], timestamp_value=header.options.timestamp_value)
        if options.timestamp_value is not None:
            low = header.options.timestamp_echo
            options.sack_permitted = bool(low & _SACK)
            options.window_scale = None if low & _NO_SCALE == _NO_SCALE else low & _NO_SCALE
        return TcpHeader(
            header.source_port, header.destination_port, sequence, 0, int(Flags.SYN), 0xFFFF, options=options
        )

    def _cookie(self, key: bytes, sequence: int, period: int, index: int) -> int:
        message = key + sequence.to_bytes(4, "big") + period.to_bytes(8, "big", signed=True) + bytes([index])
        digest = hashlib.blake2s(message, digest_size=4, key=self._secret).digest()
        return index << _MAC_BITS | int.from_bytes(digest, "big") >> (32 - _MAC_BITS)
