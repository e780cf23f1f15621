"""Why a datagram or packet went no further: the keys of the drop counters."""

from __future__ import annotations

from enum import StrEnum


class Drop(StrEnum):
    # received datagrams
    MALFORMED = "malformed datagram"
    UNKNOWN_INDEX = "unknown receiver index"
    INVALID_MAC1 = "invalid mac1"
    UNDER_LOAD = "under load"
    UNKNOWN_PEER = "unknown peer"
    HANDSHAKE_FAILED = "handshake not authentic"
    REPLAYED_INITIATION = "replayed initiation"
    INITIATION_FLOOD = "initiation flood"
    INVALID_COOKIE_REPLY = "invalid cookie reply"
    SESSION_EXPIRED = "session expired"
    NOT_AUTHENTIC = "transport data not authentic"
    REPLAYED = "replayed counter"
    # authentic packets
    MALFORMED_INNER = "malformed inner packet"
    SOURCE_NOT_ALLOWED = "inner source outside AllowedIPs"
    CONGESTION = "congestion mark on a packet without ECN"  # RFC 6040 4.2: dropped in place of the router
    # packets to send
    STAGED_OVERFLOW = "staged queue full"
    STAGED_GIVEN_UP = "handshake given up"
    NO_ENDPOINT = "peer has no endpoint"
    UNUSABLE_KEY = "peer's public key is of low order"
