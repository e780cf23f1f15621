"""Handshake messages, cookies and transport messages from a hostile peer that has its key, and from strangers.

Nothing may raise. A message is made right and then perhaps altered, so that the fuzzer gets behind every check that it
could not pass by luck: mac1, the sealed static key and timestamp, mac2, the cookie's seal, the transport's tag.
"""

from __future__ import annotations

import contextlib

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard.constants import MAX_STAGED_PACKETS
from httpx_wireguard._wireguard.cookies import CookieChecker, MacStamper
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.device import Device, SocketAddress
from httpx_wireguard._wireguard.handshake import InitiatorHandshake, ResponderHandshake
from httpx_wireguard._wireguard.messages import INITIATION_SIZE, CookieReply, Initiation, Response, message_type
from httpx_wireguard._wireguard.session import Session
from tests.fuzz.harness import Script
from tests.fuzz.packets import FAR4, ip_packet
from tests.simnet import SeededEntropy

OURS, FAR, SECOND, STRANGER = (PrivateKey(bytes([number]) * 32) for number in (1, 2, 3, 4))
SECRETS = {key.public: OURS.exchange(key.public) for key in (FAR, SECOND, STRANGER)}
SOURCES: tuple[SocketAddress, ...] = (("192.0.2.1", 1), ("192.0.2.1", 2), ("2001:db8::1", 1), ("2001:db8:1::1", 1))
CONFIG = Config(
    private_key=b"\1" * 32,
    address=("10.0.0.2/32",),
    peers=(
        PeerConfig(FAR.public, ("10.0.0.1/32", "::/0"), "192.0.2.1:1"),
        PeerConfig(SECOND.public, ("10.0.0.3/32",), preshared_key=b"\5" * 32, persistent_keepalive=25),
    ),
)


class Victim:
    """A device, and what the far side knows of it."""

    def __init__(self, load: int) -> None:
        self.device = Device(CONFIG, SeededEntropy(7), load)
        self.device.peers[0].endpoint = SOURCES[0]
        self.now = 1.0
        self.stamper = MacStamper(OURS.public)
        self.cookies = CookieChecker(FAR.public, SeededEntropy(8))
        self.entropy = SeededEntropy(9)
        self.stamp = 0
        self.initiation: bytes = b""  # the last one that it sent
        self.sent: list[bytes] = []  # all of it, latest last
        self.initiations: list[InitiatorHandshake | None] = []  # None: answered
        self.sessions: list[Session] = []

    def deliver(self, datagrams: bytes, segment_size: int, source: SocketAddress) -> None:
        packets = self.device.receive_datagrams(memoryview(datagrams), segment_size, source, self.now)
        assert all(packet[12:16] in (FAR4, b"\x0a\0\0\3") or packet[0] >> 4 == 6 for packet in packets)
        self.collect()

    def collect(self) -> None:
        """Read what it sends: complete handshakes that it asked for, learn of cookies."""
        for run in self.device.datagrams_to_send():
            data = b"".join(run.buffers)
            for at in range(0, len(data), run.segment_size):
                self.sent = [*self.sent[-7:], data[at : at + run.segment_size]]
                self.read(self.sent[-1])

    def read(self, datagram: bytes) -> None:
        kind = message_type(datagram)
        if kind == 1:
            self.initiation = datagram
        elif kind == 2:
            response = Response.parse(datagram)
            handshake = self.initiations[response.receiver]
            assert handshake is not None, "an initiation that is answered twice"
            self.initiations[response.receiver] = None
            handshake.read_response(response.noise)
            session = Session(handshake.split(), response.receiver, response.sender, True, self.now)
            self.sessions = [*self.sessions[-3:], session]
        elif kind == 3:
            with contextlib.suppress(MalformedPacket):  # it may answer another message than our last one
                self.stamper.receive_reply(CookieReply.parse(datagram), self.now)

    # -- messages to it

    def initiate(self, script: Script) -> bytes:
        static = script.choose((FAR, FAR, FAR, SECOND, STRANGER))
        ephemeral = PrivateKey(self.entropy.random(32))
        psk = CONFIG.peers[1].preshared_key if static is SECOND else None
        handshake = InitiatorHandshake(
            static, OURS.public, SECRETS[static.public], ephemeral, psk.reveal() if psk is not None else bytes(32)
        )
        self.stamp += script.signed()
        index = len(self.initiations)
        noise = handshake.write_initiation(max(self.stamp, 0).to_bytes(12, "big"))
        self.initiations.append(handshake)
        return self.stamper.stamp(Initiation(index, noise).serialize(), self.now)

    def respond(self, script: Script) -> bytes:
        """To the initiation that it sent last, if that can be read."""
        if len(self.initiation) != INITIATION_SIZE:
            return b""
        initiation = Initiation.parse(self.initiation)
        try:
            handshake = ResponderHandshake(FAR, initiation.noise)
            handshake.read_payload(SECRETS[FAR.public])
        except MalformedPacket:
            return b""  # it was for the other peer
        noise = handshake.write_response(PrivateKey(self.entropy.random(32)), bytes(32))
        index = script.byte()
        self.sessions = [
            *self.sessions[-3:],
            Session(handshake.split(), index, initiation.sender, False, self.now),
        ]
        return self.stamper.stamp(Response(index, initiation.sender, noise).serialize(), self.now)

    def cookie(self, script: Script) -> bytes:
        """An answer to one of its handshake messages, as a host under load gives it."""
        handshakes = [datagram for datagram in self.sent if len(datagram) in (148, 92)]
        if not handshakes:
            return b""
        datagram = script.choose(handshakes)
        sender = int.from_bytes(datagram[4:8], "little")
        return self.cookies.reply_to(datagram, sender, SOURCES[0], self.now).serialize()

    def transport(self, script: Script) -> bytes:
        if not self.sessions:
            return b""
        session = script.choose(self.sessions[::-1])
        session.sent = max(session.sent + script.choose((0, 0, 0, -1, -3, 100, 9000)), 0)
        body = script.take(script.byte())
        payloads = [ip_packet(4, 17, body) if script.flag() else body] * script.choose((1, 1, 2, 5))
        return b"".join(session.seal_run(payloads, 1420)[0])

    def stray(self, script: Script) -> bytes:
        """Any bytes behind a type that is known, of the size that it has."""
        kind = script.choose((1, 2, 3, 4, 0, 5))
        size = {1: 148, 2: 92, 3: 64}.get(kind, script.byte())
        body = bytes([kind, 0, 0, 0]) + script.take(script.byte()).ljust(max(size - 4, 0), b"\x55")[: max(size - 4, 0)]
        return self.stamper.stamp(body, self.now) if kind in (1, 2) and script.flag() else body

    def replay(self, script: Script) -> bytes:
        """What it sent itself, sent back."""
        return script.choose(self.sent) if self.sent else b""


def run(data: bytes) -> None:
    script = Script(data)
    victim = Victim(load=script.choose((100, 1, 2, 8)))
    previous = b""
    while script:
        step = script.byte() % 16
        if step < 10:
            make = script.choose(
                (victim.initiate, victim.respond, victim.transport, victim.cookie, victim.stray, victim.replay)
            )
            previous = datagram = altered(script, make(script)) or previous
            size = len(datagram) if script.byte() % 8 else script.number(2)
            victim.deliver(datagram * script.choose((1, 1, 1, 2)), size, script.choose(SOURCES))
        elif step < 13:
            victim.device.send_packets(
                script.choose(victim.device.peers), [bytes(20 + script.byte())] * script.choose((1, 3, 200)), victim.now
            )
            victim.collect()
        else:
            pass_time(script, victim)
        check(victim)
    victim.device.close()
    assert victim.device.next_timeout() is None
    assert victim.device.datagrams_to_send() == []
    interface = victim.device._interface
    assert not interface.sessions
    assert not interface.handshakes


def altered(script: Script, datagram: bytes) -> bytes:
    """Mostly not."""
    match script.byte() % 16:
        case 13 if datagram:
            changed = bytearray(datagram)
            changed[script.byte() % len(changed)] ^= script.byte() or 1
            return bytes(changed)
        case 14:
            return datagram[: script.byte()]
        case 15:
            return datagram + script.take(script.byte() % 32)
    return datagram


def pass_time(script: Script, victim: Victim) -> None:
    """A little, or to the next timer."""
    due = victim.device.next_timeout()
    victim.now += script.choose((0.01, 0.3, 6.0, 130.0, 200.0, 600.0)) if script.flag() else 0.0
    victim.now = max(victim.now, due if due is not None and script.flag() else 0.0)
    victim.device.handle_timeout(victim.now)
    victim.collect()
    due = victim.device.next_timeout()
    assert due is None or due > victim.now, "a timer that stays due"


def check(victim: Victim) -> None:
    """What is held is bounded, and all of it belongs to somebody."""
    interface = victim.device._interface
    sessions = {
        session.local_index
        for peer in victim.device.peers
        for session in (peer.previous, peer.current, peer.next)
        if session is not None
    }
    assert set(interface.sessions) == sessions
    assert len(interface.handshakes) <= len(victim.device.peers)
    for peer in victim.device.peers:
        assert len(peer._staged) <= MAX_STAGED_PACKETS
        assert peer.attempts >= 0
        assert peer.sent_bytes >= 0 <= peer.received_bytes
        assert all(count >= 0 for count in peer.drops.values())
    assert all(count >= 0 for count in victim.device.drops.values())
    assert len(victim.device._buckets._buckets) <= 16
