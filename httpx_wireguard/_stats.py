"""Counters of a tunnel, as a user sees them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from httpx_wireguard._engine import Engine, readable_endpoint
from httpx_wireguard._wireguard.peer import Peer


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One peer, as `wg show` would tell it.

    Attributes:
        public_key: base64.
        endpoint: "host:port" where datagrams go now, or None.
        handshake_age: seconds since the last completed handshake, or None.
        received_bytes, sent_bytes: UDP payload of authentic messages.
        initiations_sent, responses_received: handshake messages.
        drops: what was dropped, by reason.
    """

    public_key: str
    endpoint: str | None
    handshake_age: float | None
    received_bytes: int
    sent_bytes: int
    initiations_sent: int
    responses_received: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class TunnelStats:
    """Counters of a tunnel.

    Attributes:
        peers: in the order of the configuration.
        connections: TCP connections in any state but CLOSED.
        drops: packets and datagrams thrown away, by reason.
    """

    peers: tuple[PeerStats, ...]
    connections: int
    drops: dict[str, int]


def stats_of(engine: Engine, now: float) -> TunnelStats:
    """The engine's counters as they stand now."""
    return TunnelStats(
        tuple(_peer_stats(peer, now) for peer in engine.device.peers),
        engine.stack.connection_count,
        dict(engine.stack.drops + engine.device.drops),
    )


def _peer_stats(peer: Peer, now: float) -> PeerStats:
    return PeerStats(
        public_key=base64.b64encode(peer.public_key).decode(),
        endpoint=readable_endpoint(peer.endpoint) if peer.endpoint else None,
        handshake_age=None if peer.last_handshake is None else now - peer.last_handshake,
        received_bytes=peer.received_bytes,
        sent_bytes=peer.sent_bytes,
        initiations_sent=peer.initiations_sent,
        responses_received=peer.responses_received,
        drops={str(reason): count for reason, count in peer.drops.items()},
    )
