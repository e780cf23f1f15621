"""Datagram to peer by type and receiver index; inner packet to peer by allowed IPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from httpx_wireguard._deadlines import Deadlines
from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wire.ecn import NOT_ECT
from httpx_wireguard._wire.trains import SHORTEST_TRAIN, as_train
from httpx_wireguard._wireguard.allowed_ips import AllowedIps
from httpx_wireguard._wireguard.constants import KEY_SIZE, UNDER_LOAD_HANDSHAKES
from httpx_wireguard._wireguard.cookies import CookieChecker, LoadMeter, TokenBuckets
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.entropy import Entropy
from httpx_wireguard._wireguard.handshake import ResponderHandshake
from httpx_wireguard._wireguard.interface import Interface
from httpx_wireguard._wireguard.messages import (
    COOKIE_REPLY,
    INITIATION,
    KEEPALIVE_SIZE,
    TRANSPORT,
    TRANSPORT_HEADER,
    CookieReply,
    Initiation,
    Response,
    message_type,
)
from httpx_wireguard._wireguard.peer import Peer
from httpx_wireguard._wireguard.runs import DatagramRun, SocketAddress
from httpx_wireguard._wireguard.session import Session
from httpx_wireguard._wireguard.timers import NEVER

if TYPE_CHECKING:
    from httpx_wireguard._config import Config

__all__ = ["DatagramRun", "Device", "Entropy", "Peer", "SocketAddress"]


class Device:
    """One WireGuard interface, both roles. Sans-IO: every call takes the time, nothing blocks, nothing is sent.

    Endpoints are left to the driver: set `peer.endpoint` to the socket address that the configured one resolves to.
    Until then packets for the peer are staged.

    Attributes:
        peers: in the order of the configuration.
        queue: what `datagrams_to_send` will return.
        drops: datagrams and packets dropped, by reason (`Drop`).
    """

    def __init__(self, config: Config, entropy: Entropy, under_load_threshold: int = UNDER_LOAD_HANDSHAKES) -> None:
        private_key = PrivateKey(config.private_key.reveal())
        self._interface = Interface(private_key, entropy, config.mtu)
        self.queue = self._interface.queue
        self.drops: Counter[str] = self._interface.drops
        self._cookies = CookieChecker(private_key.public, entropy)
        self._load = LoadMeter(under_load_threshold)
        self._buckets = TokenBuckets()
        self._allowed_ips: AllowedIps[Peer] = AllowedIps()
        self._by_key: dict[bytes, Peer] = {}
        self._deadlines: Deadlines[Peer] = Deadlines()
        self._closed = False
        self.peers: list[Peer] = []
        for peer_config in config.peers:
            if peer_config.public_key == private_key.public:
                continue  # a tunnel to itself: ignored, as `wg` does
            peer = Peer(peer_config, self._interface)
            self.peers.append(peer)
            self._by_key[peer.public_key] = peer
            self._allowed_ips.add(peer_config.allowed_ips, peer)
            self._reschedule(peer)

    # --- receiving ---

    def receive_datagrams(
        self, data: memoryview, segment_size: int, source: SocketAddress, now: float, *, ecn: int = NOT_ECT
    ) -> list[bytes]:
        """Take one read of the UDP socket and return the packets inside.

        Args:
            data: one datagram, or several that the kernel coalesced: all of `segment_size`, the last may be shorter.
            source: where all of them came from.
            ecn: the codepoint of their outer IP headers.

        Returns:
            Authentic inner packets, each from an address that belongs to the sending peer, without padding, in order.
            Everything else is dropped and counted; nothing is raised.
        """
        packets: list[bytes] = []
        if self._closed:
            return packets
        segment_size = segment_size if segment_size > 0 else len(data)
        while len(data):
            accepted, consumed = self._receive_next(data, segment_size, source, ecn, now)
            packets = packets + accepted if packets else accepted
            data = data[consumed:]
        return packets

    def _receive_next(
        self, data: memoryview, segment_size: int, source: SocketAddress, ecn: int, now: float
    ) -> tuple[list[bytes], int]:
        """Take the first datagram of `data`, and those behind it of the same session; return what was inside, and
        their bytes."""
        datagram = data[:segment_size]
        try:
            kind = message_type(datagram)
            if kind != TRANSPORT:
                self._receive_handshake_message(kind, bytes(datagram), source, now)
                return [], len(datagram)
        except MalformedPacket:
            self.drops[Drop.MALFORMED] += 1
            return [], len(datagram)
        _, index, _ = TRANSPORT_HEADER.unpack_from(datagram)
        owner = self._interface.sessions.get(index)
        if owner is None:
            self.drops[Drop.UNKNOWN_INDEX] += 1
            return [], len(datagram)
        peer, session = owner
        if session.is_expired(now):
            peer.drop(Drop.SESSION_EXPIRED)
            return [], len(datagram)
        packets, consumed = session.open_run(data, segment_size, peer.drop)
        if packets:
            self._receive_opened(peer, session, packets, source, now)
            packets = self._accept_packets(peer, packets)
            if ecn:
                packets = session.ecn.decapsulate(packets, ecn, peer.drop)
        return packets, consumed

    def _receive_opened(
        self, peer: Peer, session: Session, plaintexts: list[bytes], source: SocketAddress, now: float
    ) -> None:
        size = KEEPALIVE_SIZE * len(plaintexts) + sum(map(len, plaintexts))
        peer.receive_opened(session, plaintexts, size, source, now)
        self._reschedule(peer)

    def _accept_packets(self, peer: Peer, plaintexts: list[bytes]) -> list[bytes]:
        """The packets that `_accept_packet` lets through. The fast path: a train has one source."""
        train = as_train(plaintexts) if len(plaintexts) >= SHORTEST_TRAIN else None
        if train is None:
            return self._accept_each(peer, plaintexts)
        return train if self._accept_packet(peer, train[0]) else self._accept_each(peer, plaintexts[1:])

    def _accept_each(self, peer: Peer, plaintexts: list[bytes]) -> list[bytes]:
        """Most packets of a batch are as long, and from the same address, as the last one that was accepted whole:
        comparing with that one is cheaper than looking."""
        packets: list[bytes] = []
        ipv4_start = ipv4_source = ipv6_start = b""
        length = -1
        for plaintext in plaintexts:
            if len(plaintext) == length and (
                (plaintext[12:16] == ipv4_source and plaintext[:4] == ipv4_start) or plaintext[:24] == ipv6_start
            ):
                packets.append(plaintext)
                continue
            packet = self._accept_packet(peer, plaintext)
            if packet is None:
                continue
            packets.append(packet)
            if packet is plaintext:
                length = len(plaintext)
                is_ipv4 = plaintext[0] >> 4 == 4
                ipv4_start, ipv4_source = (plaintext[:4], plaintext[12:16]) if is_ipv4 else (b"", b"")
                ipv6_start = b"" if is_ipv4 else plaintext[:24]  # version to source address: one flow has one
        return packets

    def _accept_packet(self, peer: Peer, plaintext: bytes) -> bytes | None:
        """Return the packet without padding if it is IP and its source belongs to `peer` (paper 2)."""
        if not plaintext:
            return None  # a keepalive
        version = plaintext[0] >> 4
        if version == 4 and len(plaintext) >= 20:
            length, source = int.from_bytes(plaintext[2:4], "big"), plaintext[12:16]
            fits = 20 <= length <= len(plaintext)
        elif version == 6 and len(plaintext) >= 40:
            length, source = 40 + int.from_bytes(plaintext[4:6], "big"), plaintext[8:24]
            fits = length <= len(plaintext)
        else:
            length, source, fits = 0, b"", False
        if not fits:
            peer.drop(Drop.MALFORMED_INNER)
            return None
        if self._allowed_ips.lookup(source) is not peer:
            peer.drop(Drop.SOURCE_NOT_ALLOWED)
            return None
        return plaintext if length == len(plaintext) else plaintext[:length]

    def _receive_handshake_message(self, kind: int, datagram: bytes, source: SocketAddress, now: float) -> None:
        """Paper 5.3: nothing is answered, and no X25519 computed, before mac1 proves that the sender knows our key."""
        if kind == COOKIE_REPLY:
            return self._receive_cookie_reply(CookieReply.parse(datagram), now)
        if not self._cookies.mac1_valid(datagram):
            self.drops[Drop.INVALID_MAC1] += 1
            return
        message = Initiation.parse(datagram) if kind == INITIATION else Response.parse(datagram)
        if self._load.count(now) and not self._admit(datagram, message.sender, source, now):
            self.drops[Drop.UNDER_LOAD] += 1
            return
        try:
            if isinstance(message, Initiation):
                self._receive_initiation(message, source, len(datagram), now)
            else:
                self._receive_response(message, source, len(datagram), now)
        except MalformedPacket:
            self.drops[Drop.HANDSHAKE_FAILED] += 1

    def _admit(self, datagram: bytes, sender: int, source: SocketAddress, now: float) -> bool:
        """Paper 5.3, under load: mac2 has to prove that the sender receives at `source`, else a cookie goes there."""
        if self._cookies.mac2_valid(datagram, source, now):
            return self._buckets.take(source, now)
        reply = self._cookies.reply_to(datagram, sender, source, now)
        self.queue.add_datagram(source, reply.serialize())
        return False

    def _receive_initiation(self, message: Initiation, source: SocketAddress, size: int, now: float) -> None:
        handshake = ResponderHandshake(self._interface.private_key, message.noise)
        peer = self._by_key.get(handshake.remote_static)
        if peer is None:
            self.drops[Drop.UNKNOWN_PEER] += 1
            return
        peer.receive_initiation(handshake, message, source, size, now)
        self._reschedule(peer)

    def _receive_response(self, message: Response, source: SocketAddress, size: int, now: float) -> None:
        peer = self._interface.handshakes.get(message.receiver)
        if peer is None:
            self.drops[Drop.UNKNOWN_INDEX] += 1
            return
        peer.receive_response(message, source, size, now)
        self._reschedule(peer)

    def _receive_cookie_reply(self, reply: CookieReply, now: float) -> None:
        """It answers either our initiation or, if we are the responder, our response."""
        peer = self._interface.handshakes.get(reply.receiver)
        if peer is None and reply.receiver in self._interface.sessions:
            peer, _ = self._interface.sessions[reply.receiver]
        if peer is None:
            self.drops[Drop.UNKNOWN_INDEX] += 1
            return
        try:
            peer.receive_cookie(reply, now)
        except MalformedPacket:
            self.drops[Drop.INVALID_COOKIE_REPLY] += 1

    # --- sending ---

    def route(self, destination: bytes) -> Peer | None:
        """Return the peer whose AllowedIPs cover the packed address `destination` most closely, or None."""
        return self._allowed_ips.lookup(destination)

    def send_packets(self, peer: Peer, packets: Sequence[bytes], now: float) -> None:
        """Seal IP packets for `peer`, or stage them and start a handshake if there is no session."""
        if packets and not self._closed:
            peer.send(packets, now)
            self._reschedule(peer)

    def initiate(self, peer: Peer, now: float) -> None:
        """Start a handshake before there is a packet to send.

        A no-op with a fresh session; within 5 s of the last handshake message it starts when they are over.
        """
        if not self._closed:
            peer.initiate(now)
            self._reschedule(peer)

    def datagrams_to_send(self) -> list[DatagramRun]:
        """Return and forget what is due, in order; equal-sized neighbours to one endpoint are one run."""
        return self.queue.take()

    def on_send_error(self, endpoint: SocketAddress, error: OSError) -> None:
        """Remember, for diagnosis, that the host refused to send to `endpoint`. Never fatal: it may pass."""
        for peer in self.peers:
            if peer.endpoint == endpoint:
                peer.last_error = str(error)

    def take_given_up(self) -> list[Peer]:
        """Return, once, the peers whose handshake attempts ended without an answer. Their packets are dropped."""
        given_up = self._interface.given_up
        self._interface.given_up = []
        return given_up

    def take_unanswered(self) -> list[Peer]:
        """Return, each time that several initiations in a row went unanswered, the peers concerned: their endpoints'
        names may mean other addresses by now. The protocol itself never looks again."""
        unanswered, self._interface.unanswered = self._interface.unanswered, []
        return unanswered

    # --- time ---

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout` next.

        Returns:
            Monotonic seconds on the clock passed as `now`; None when no timer runs. May lie in the past.
        """
        return self._deadlines.next()

    def handle_timeout(self, now: float) -> None:
        """Do what is due at `now`; a spurious call does nothing."""
        for peer in self._deadlines.take_due(now):
            peer.handle_timeout(now)
            self._reschedule(peer)

    def _reschedule(self, peer: Peer) -> None:
        at = peer.next_expiry()
        self._deadlines.set(peer, None if at == NEVER else at)

    def close(self) -> None:
        """Destroy the keys and send nothing; every later call is a no-op."""
        self._closed = True
        for peer in self.peers:
            peer.close()
        self._deadlines = Deadlines()
        self._allowed_ips.clear()
        self._interface.given_up.clear()
        self._interface.unanswered.clear()
        self.queue.take()
        self._interface.private_key = PrivateKey(bytes(KEY_SIZE))
