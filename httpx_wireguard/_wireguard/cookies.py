"""MAC1, MAC2 and cookies (paper 5.3, 5.4.4, 5.4.7): what keeps a flood of handshakes from costing X25519.

`MacStamper` is the sending side, one per peer. `CookieChecker` is the receiving side, one per device;
`LoadMeter` and `TokenBuckets` tell it when and whom to refuse.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from typing import Any

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard import crypto
from httpx_wireguard._wireguard.constants import (
    COOKIE_LIFETIME,
    COOKIE_SECRET_LIFETIME,
    KEY_SIZE,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAC_SIZE,
    MAX_TOKEN_BUCKETS,
    TOKEN_BURST,
    TOKENS_PER_SECOND,
    UNDER_LOAD_HANDSHAKES,
)
from httpx_wireguard._wireguard.entropy import Entropy
from httpx_wireguard._wireguard.messages import CookieReply

_XNONCE_SIZE = 24
_NO_MAC2 = bytes(MAC_SIZE)


class MacStamper:
    """Fills mac1 and mac2 of the handshake messages to one peer, and keeps the cookie that it sent us."""

    __slots__ = ("_cookie", "_cookie_key", "_cookie_received", "_last_mac1", "_mac1_key")

    def __init__(self, remote_static: bytes) -> None:
        self._mac1_key = crypto.hash_of(LABEL_MAC1, remote_static)
        self._cookie_key = crypto.hash_of(LABEL_COOKIE, remote_static)
        self._last_mac1 = b""  # empty = no message that a cookie reply could answer
        self._cookie = b""
        self._cookie_received = 0.0

    def stamp(self, message: bytes, now: float) -> bytes:
        """Return a serialized handshake message with its last 32 bytes replaced by both MACs."""
        body = message[: -2 * MAC_SIZE]
        self._last_mac1 = crypto.keyed_mac(self._mac1_key, body)
        body += self._last_mac1
        if not self._cookie or now - self._cookie_received >= COOKIE_LIFETIME:
            self._cookie = b""
            return body + _NO_MAC2
        return body + crypto.keyed_mac(self._cookie, body)

    def receive_reply(self, reply: CookieReply, now: float) -> None:
        """Keep the cookie for later messages. Never a reason to send one at once (paper 6.6).

        Raises:
            MalformedPacket: not from the peer, or it answers no message of ours, or one already answered.
        """
        if not self._last_mac1:
            raise MalformedPacket("cookie reply to no message of ours")
        self._cookie = crypto.xaead_open(self._cookie_key, reply.nonce, reply.sealed_cookie, self._last_mac1)
        self._cookie_received = now
        self._last_mac1 = b""


class CookieChecker:
    """Checks the MACs of received handshake messages and makes cookies."""

    __slots__ = ("_cookie_key", "_entropy", "_mac1_key", "_secret", "_secret_made")

    def __init__(self, local_static: bytes, entropy: Entropy) -> None:
        self._mac1_key = crypto.hash_of(LABEL_MAC1, local_static)
        self._cookie_key = crypto.hash_of(LABEL_COOKIE, local_static)
        self._entropy = entropy
        self._secret = b""
        self._secret_made = 0.0

    def mac1_valid(self, datagram: bytes) -> bool:
        expected = crypto.keyed_mac(self._mac1_key, datagram[: -2 * MAC_SIZE])
        return crypto.constant_time_equal(expected, datagram[-2 * MAC_SIZE : -MAC_SIZE])

    def mac2_valid(self, datagram: bytes, source: tuple[Any, ...], now: float) -> bool:
        expected = crypto.keyed_mac(self._cookie_for(source, now), datagram[:-MAC_SIZE])
        return crypto.constant_time_equal(expected, datagram[-MAC_SIZE:])

    def reply_to(self, datagram: bytes, sender: int, source: tuple[Any, ...], now: float) -> CookieReply:
        """Return the cookie reply to a handshake message with a valid mac1 from `source`."""
        nonce = self._entropy.random(_XNONCE_SIZE)
        mac1 = datagram[-2 * MAC_SIZE : -MAC_SIZE]
        sealed = crypto.xaead_seal(self._cookie_key, nonce, self._cookie_for(source, now), mac1)
        return CookieReply(sender, nonce, sealed)

    def _cookie_for(self, source: tuple[Any, ...], now: float) -> bytes:
        if not self._secret or now - self._secret_made >= COOKIE_SECRET_LIFETIME:
            self._secret = self._entropy.random(KEY_SIZE)
            self._secret_made = now
        return crypto.keyed_mac(self._secret, f"{source[0]} {source[1]}".encode())


class LoadMeter:
    """Under load = `threshold` handshake messages with a valid mac1 arrived within the last second.

    Others cost one hash each, and whoever does not know our public key may not switch cookies on.
    """

    __slots__ = ("_arrivals",)

    def __init__(self, threshold: int = UNDER_LOAD_HANDSHAKES) -> None:
        self._arrivals: deque[float] = deque(maxlen=threshold)

    def count(self, now: float) -> bool:
        """Note one message and return whether the host is under load."""
        arrivals = self._arrivals
        arrivals.append(now)
        return len(arrivals) == arrivals.maxlen and now - arrivals[0] < 1.0


class TokenBuckets:
    """Handshake messages per source: IPv4 addresses, IPv6 /64 networks. Consulted only under load."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[bytes, tuple[float, float]] = {}  # tokens, when counted; least recently used first

    def take(self, source: tuple[Any, ...], now: float) -> bool:
        """Return whether `source` may have one more message processed, and count it."""
        network = _rate_limited_network(source)
        tokens, counted = self._buckets.pop(network, (float(TOKEN_BURST), now))
        tokens = min(TOKEN_BURST, tokens + (now - counted) * TOKENS_PER_SECOND)
        allowed = tokens >= 1.0
        if len(self._buckets) >= MAX_TOKEN_BUCKETS and not self._drop_full_bucket(now):
            return False  # too many sources within a quarter second: refuse new ones, as the kernel does
        self._buckets[network] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def _drop_full_bucket(self, now: float) -> bool:
        oldest = next(iter(self._buckets))
        refilled = now - self._buckets[oldest][1] >= TOKEN_BURST / TOKENS_PER_SECOND
        if refilled:
            del self._buckets[oldest]
        return refilled


def _rate_limited_network(source: tuple[Any, ...]) -> bytes:
    try:
        address = ipaddress.ip_address(str(source[0]).partition("%")[0])
    except ValueError:
        return str(source[0]).encode()
    if address.version == 6:
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed
