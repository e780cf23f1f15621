"""One peer: its handshakes, up to three sessions, timers, and the packets that wait for a session."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard.constants import (
    INITIATION_INTERVAL,
    MAX_STAGED_PACKETS,
    NO_PRESHARED_KEY,
    REKEY_AFTER_TIME,
    UNANSWERED_ATTEMPTS,
)
from httpx_wireguard._wireguard.cookies import MacStamper
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.handshake import InitiatorHandshake, ResponderHandshake
from httpx_wireguard._wireguard.interface import Interface
from httpx_wireguard._wireguard.messages import CookieReply, Initiation, Response
from httpx_wireguard._wireguard.runs import SocketAddress
from httpx_wireguard._wireguard.session import Session
from httpx_wireguard._wireguard.timers import NEVER, PeerTimers, Timer

from .tai64n import StampSource

if TYPE_CHECKING:
    from httpx_wireguard._config import PeerConfig


class Peer:
    """State of one peer. Only `Device` calls the methods; the fields are for reading, but `endpoint`.

    Attributes:
        endpoint: where datagrams go. None until the driver has resolved the configured one, or until the peer
            has sent an authentic message; follows the source of every authentic message.
        last_handshake: when the newest session was established, monotonic seconds; None before the first.
        responses_rejected: answers since the last session that did not authenticate: somebody's keys differ.
        attempts: initiations sent since the last session, or since the round of attempts began.
        first_attempt: when that round began; None with a session. Both keep their values after giving up.
        received_bytes, sent_bytes: UDP payload of authentic messages, as `wg show transfer` counts.
        last_error: why the last thing failed, for diagnosis; None if nothing has.
        drops: what was dropped, by reason.
    """

    __slots__ = (
        "_handshake",
        "_handshake_index",
        "_interface",
        "_last_initiation_received",
        "_latest_timestamp",
        "_preshared_key",
        "_round_runs",
        "_staged",
        "_stamper",
        "_stamps",
        "_static_static",
        "_timers",
        "attempts",
        "config",
        "cookies_received",
        "current",
        "drops",
        "endpoint",
        "first_attempt",
        "initiations_sent",
        "last_error",
        "last_handshake",
        "next",
        "previous",
        "public_key",
        "received_bytes",
        "responses_received",
        "responses_rejected",
        "sent_bytes",
    )

    def __init__(self, config: PeerConfig, interface: Interface) -> None:
        self.config = config
        self.public_key = config.public_key
        self.endpoint: SocketAddress | None = None
        self._interface = interface
        self._timers = PeerTimers(config.persistent_keepalive, interface.jitter)
        self._staged: deque[bytes] = deque()
        self._stamper = MacStamper(config.public_key)
        self._stamps = StampSource()
        secret = config.preshared_key
        self._preshared_key = secret.reveal() if secret is not None else NO_PRESHARED_KEY
        self._static_static: bytes | None
        try:
            self._static_static = interface.private_key.exchange(config.public_key)
        except MalformedPacket:
            self._static_static = None  # low order: nothing is ever sent to such a peer
        self._reset_statistics()
        self._reset_keys()
        self._latest_timestamp = b""  # survives the erasure of keys, or old initiations could be replayed
        self._last_initiation_received = -NEVER

    def _reset_statistics(self) -> None:
        self.last_handshake: float | None = None
        self.initiations_sent = 0
        self.attempts = 0
        self.first_attempt: float | None = None
        self._round_runs = False
        self.responses_received = 0
        self.responses_rejected = 0
        self.cookies_received = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.last_error: str | None = None
        self.drops: Counter[str] = Counter()

    def _reset_keys(self) -> None:
        self._handshake: InitiatorHandshake | None = None
        self._handshake_index = 0
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None  # ours as responder, until the initiator has used it

    def __repr__(self) -> str:
        return f"<Peer {self.public_key[:3].hex()}... at {self.endpoint}>"

    def has_session(self, now: float) -> bool:
        """Return whether a packet sent now would be sealed at once."""
        return self.current is not None and self.current.can_send(1, now)

    def drop(self, reason: Drop, count: int = 1) -> None:
        self.drops[reason] += count
        self._interface.drops[reason] += count

    # --- sending packets ---

    def send(self, packets: Sequence[bytes], now: float) -> None:
        """Seal packets, or stage them and start a handshake."""
        session = self.current
        if session is not None and session.can_send(len(packets), now):
            self._transmit(session, packets, now)
        elif self._can_ever_send():
            self._stage(packets)
            self._start_handshake(now)
        else:
            unusable = self._static_static is None
            self._fail(Drop.UNUSABLE_KEY if unusable else Drop.NO_ENDPOINT, len(packets))

    def initiate(self, now: float) -> None:
        """Start a handshake ahead of the first packet, unless a session is there that needs none."""
        session = self.current
        if session is None or not session.can_send(1, now) or now - session.created >= REKEY_AFTER_TIME:
            self._start_handshake(now)

    def _can_ever_send(self) -> bool:
        """A configured endpoint may still be on its way from the resolver: packets wait for it."""
        located = self.endpoint is not None or self.config.endpoint is not None
        return located and self._static_static is not None

    def _fail(self, reason: Drop, count: int) -> None:
        self.drop(reason, count)
        self.last_error = str(reason)

    def _stage(self, packets: Sequence[bytes]) -> None:
        self._staged.extend(packets)
        excess = len(self._staged) - MAX_STAGED_PACKETS
        if excess > 0:
            self.drop(Drop.STAGED_OVERFLOW, excess)
            for _ in range(excess):
                self._staged.popleft()

    def _transmit(self, session: Session, packets: Sequence[bytes], now: float) -> None:
        """Seal and queue packets; an empty one is a keepalive and expects no answer."""
        if self.endpoint is None:
            return self._fail(Drop.NO_ENDPOINT, len(packets))
        for codepoint, run in session.ecn.encapsulate(packets):
            buffers, sizes = session.seal_run(run, self._interface.mtu)
            self._interface.queue.add(self.endpoint, buffers, sizes, codepoint)
            self.sent_bytes += sum(sizes)
        self._timers.on_authenticated_sent(now)
        if any(packets):
            self._timers.on_data_sent(now)
        if session.wants_rekey_after_sending(now):
            self._start_handshake(now)

    def _flush(self, session: Session, now: float) -> None:
        """Send what waited for a session, oldest first."""
        if self._staged:
            packets = list(self._staged)
            self._staged.clear()
            self._transmit(session, packets, now)

    def _send_keepalive(self, now: float) -> None:
        """Send an empty packet, or start the handshake that will be followed by one."""
        if self.has_session(now) and self.current is not None:
            self._transmit(self.current, [b""], now)
        elif self._timers.is_armed(Timer.RETRY_HANDSHAKE):
            pass  # under way; unlike a packet of the user's, this does not prolong the attempts
        else:
            self._start_handshake(now)

    # --- handshake as initiator ---

    def _start_handshake(self, now: float) -> None:
        self._timers.on_handshake_wanted(now)
        self._send_initiation(now)

    def _send_initiation(self, now: float) -> None:
        """Paper 5.4.2, at most once per REKEY_TIMEOUT, each with a fresh ephemeral key and index."""
        if self.endpoint is None or self._static_static is None:
            return
        if not self._timers.may_initiate(now):
            return self._timers.on_initiation_postponed()
        interface = self._interface
        self._forget_handshake()
        handshake = InitiatorHandshake(
            interface.private_key, self.public_key, self._static_static, interface.ephemeral(), self._preshared_key
        )
        index = interface.new_index()
        noise = handshake.write_initiation(self._stamps.next(interface.entropy.tai64n()))
        self._handshake, self._handshake_index = handshake, index
        interface.handshakes[index] = self
        self._count_attempt(now)
        self._send_handshake_message(Initiation(index, noise).serialize(), now)
        self._timers.on_initiation_sent(now)

    def _count_attempt(self, now: float) -> None:
        if self.first_attempt is None or not self._round_runs:
            self.attempts = 0
            self.first_attempt = now
        self._round_runs = True
        self.attempts += 1
        self.initiations_sent += 1
        if self.attempts % UNANSWERED_ATTEMPTS == 0:
            self._interface.unanswered.append(self)

    def receive_response(self, message: Response, source: SocketAddress, size: int, now: float) -> None:
        """Paper 5.4.3: the session is complete on our side; the next packet, at once, completes it on theirs.

        Raises:
            MalformedPacket: not an answer to our initiation, which stays usable.
        """
        handshake = self._handshake
        if handshake is None:
            raise MalformedPacket("response to no initiation")
        try:
            handshake.read_response(message.noise)
        except MalformedPacket:
            self.responses_rejected += 1
            raise
        session = Session(handshake.split(), self._handshake_index, message.sender, True, now)
        self._forget_handshake()
        self.responses_received += 1
        self._on_authentic(source, size)
        self._install_as_initiator(session)
        self._timers.on_session_derived(now)
        self._on_handshake_complete(now)
        self._timers.on_authenticated_received(now)
        if self._staged:
            self._flush(session, now)
        else:
            self._transmit(session, [b""], now)

    def receive_cookie(self, reply: CookieReply, now: float) -> None:
        """Keep a cookie for the next handshake message. The endpoint stays: a cookie does not prove the source.

        Raises:
            MalformedPacket: not an answer to our last handshake message.
        """
        self._stamper.receive_reply(reply, now)
        self.cookies_received += 1

    # --- handshake as responder ---

    def receive_initiation(
        self, handshake: ResponderHandshake, message: Initiation, source: SocketAddress, size: int, now: float
    ) -> None:
        """Paper 5.4.2 and 5.4.3: check, answer, and keep the new session until the initiator has used it.

        Raises:
            MalformedPacket: not authentic.
        """
        if self._static_static is None:
            raise MalformedPacket("peer's public key is of low order")
        timestamp = handshake.read_payload(self._static_static)
        if timestamp <= self._latest_timestamp:
            return self.drop(Drop.REPLAYED_INITIATION)
        if now - self._last_initiation_received < INITIATION_INTERVAL:
            return self.drop(Drop.INITIATION_FLOOD)
        self._latest_timestamp = timestamp
        self._last_initiation_received = now
        self._on_authentic(source, size)
        self._timers.on_authenticated_received(now)
        self._send_response(handshake, message.sender, now)

    def _send_response(self, handshake: ResponderHandshake, remote_index: int, now: float) -> None:
        interface = self._interface
        noise = handshake.write_response(interface.ephemeral(), self._preshared_key)
        index = interface.new_index()
        self._install_as_responder(Session(handshake.split(), index, remote_index, False, now))
        self._timers.on_session_derived(now)
        self._timers.on_response_sent(now)
        self._send_handshake_message(Response(index, remote_index, noise).serialize(), now)

    def _send_handshake_message(self, message: bytes, now: float) -> None:
        if self.endpoint is None:
            return
        self._interface.queue.add_datagram(self.endpoint, self._stamper.stamp(message, now))
        self.sent_bytes += len(message)
        self._timers.on_authenticated_sent(now)

    # --- sessions ---

    def receive_opened(
        self, session: Session, plaintexts: Sequence[bytes], size: int, source: SocketAddress, now: float
    ) -> None:
        """React to authentic packets of one session, `size` bytes of datagrams: once per batch."""
        self._on_authentic(source, size)
        if session is self.next:
            self._confirm(session, now)
        self._timers.on_authenticated_received(now)
        if any(plaintexts):
            self._timers.on_data_received(now)
        if session.wants_rekey_after_receiving(now):
            self._start_handshake(now)

    def _on_authentic(self, source: SocketAddress, size: int) -> None:
        """Paper 2.1: answer to wherever the peer was last heard from."""
        self.endpoint = source
        self.received_bytes += size

    def _install_as_initiator(self, session: Session) -> None:
        """The response proves that the responder has the session too."""
        retired = self.previous, (self.current if self.next is not None else None)
        self.previous = self.next if self.next is not None else self.current
        self.current, self.next = session, None
        self._register(session, *retired)

    def _install_as_responder(self, session: Session) -> None:
        """Nothing may be sent with it until the initiator has proven that it has it."""
        retired = self.previous, self.next
        self.previous, self.next = None, session
        self._register(session, *retired)

    def _confirm(self, session: Session, now: float) -> None:
        """The initiator has used our new session: it becomes current."""
        self._unregister(self.previous)
        self.previous, self.current, self.next = self.current, session, None
        self._on_handshake_complete(now)
        self._flush(session, now)

    def _on_handshake_complete(self, now: float) -> None:
        self._forget_handshake()
        self._timers.on_handshake_complete()
        self.last_handshake = now
        self.last_error = None
        self.responses_rejected = 0
        self.attempts = 0
        self.first_attempt = None

    def _register(self, session: Session, *retired: Session | None) -> None:
        self._unregister(*retired)
        self._interface.sessions[session.local_index] = (self, session)

    def _unregister(self, *sessions: Session | None) -> None:
        for session in sessions:
            if session is not None:
                del self._interface.sessions[session.local_index]

    def _forget_handshake(self) -> None:
        if self._handshake is not None:
            del self._interface.handshakes[self._handshake_index]
            self._handshake = None

    # --- timers ---

    def next_expiry(self) -> float:
        return self._timers.next_expiry()

    def handle_timeout(self, now: float) -> None:
        """Do what the expired timers ask for."""
        for timer in self._timers.take_expired(now):
            if timer is Timer.ZERO_KEYS:
                self.erase_keys()
            elif timer is Timer.RETRY_HANDSHAKE:
                self._retry_handshake(now)
            elif timer is Timer.NEW_HANDSHAKE:
                self._start_handshake(now)
            elif timer is Timer.KEEPALIVE:
                self._on_keepalive_expired(now)
            else:
                self._send_keepalive(now)
                self._timers.on_persistent_keepalive_expired(now)

    def _retry_handshake(self, now: float) -> None:
        if not self._timers.gives_up(now):
            return self._send_initiation(now)
        self._round_runs = False
        self._forget_handshake()
        self.drop(Drop.STAGED_GIVEN_UP, len(self._staged))
        self._staged.clear()
        self._timers.on_given_up(now)
        self._interface.given_up.append(self)

    def _on_keepalive_expired(self, now: float) -> None:
        another = self._timers.take_another_keepalive()
        self._send_keepalive(now)
        if another:
            self._timers.on_data_received(now)

    def erase_keys(self) -> None:
        """Paper 6.3: forget every session and handshake."""
        self._forget_handshake()
        self._unregister(self.previous, self.current, self.next)
        self._reset_keys()

    def close(self) -> None:
        """Forget every key for good."""
        self.erase_keys()
        self._timers.stop()
        self._staged.clear()
        self._static_static = None
        self._preshared_key = NO_PRESHARED_KEY
