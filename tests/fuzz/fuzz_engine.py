"""Two engines with a live session; the far one is hostile, and seals what the script makes with the right keys.

Nothing may raise. What reaches our IP host is authentic, but datagrams that nobody sealed, or that were altered on the
way, come as well. Between them the two also talk like honest ends do: a TCP connection, whose datagrams the script
delivers or loses.
"""

from __future__ import annotations

from collections import deque

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._engine import SOCKET_CAPACITY, Engine
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._wireguard.constants import MAX_RUN_BYTES, MAX_RUN_DATAGRAMS, MAX_STAGED_PACKETS
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.device import DatagramRun
from httpx_wireguard._wireguard.messages import INITIATION_SIZE, RESPONSE_SIZE, message_type
from tests.fuzz.far_side import FarSide
from tests.fuzz.harness import Script
from tests.simnet import SeededEntropy
from tests.watch import MAX_CALLS, WatchedStack, our_bytes, their_bytes

OURS, THEIRS = b"\1" * 32, b"\2" * 32
ENDPOINTS = (("192.0.2.1", 51820), ("192.0.2.2", 51820))
STRANGER = ("203.0.113.9", 999)
MTU = 1420
CONFIGS = (
    Config(
        OURS,
        ("10.0.0.2/32", "fd00::2/128"),
        [PeerConfig(PrivateKey(THEIRS).public, ("10.0.0.1/32", "fd00::1/128"), "192.0.2.2:51820")],
    ),
    Config(THEIRS, ("10.0.0.1/32", "fd00::1/128"), [PeerConfig(PrivateKey(OURS).public, "10.0.0.2/32, fd00::2/128")]),
)


class Tunnel:
    """Our engine and the far one, and the datagrams between them."""

    def __init__(self, script: Script) -> None:
        self.now = 1000.0
        self.engines = [Engine(config, SeededEntropy(seed)) for seed, config in enumerate(CONFIGS)]
        self.engines[0].device.peers[0].endpoint = ENDPOINTS[1]
        self.flying: tuple[deque[DatagramRun], deque[DatagramRun]] = (deque(maxlen=32), deque(maxlen=32))
        self.ours, self.theirs = self.engines
        stack = WatchedStack(self.ours.stack.addresses, MTU, SeededEntropy(3), SOCKET_CAPACITY)
        self.ours.stack = stack
        self.listener = self.ours.listen_tcp(80)
        self.sockets = (self.ours.open_udp(53), self.theirs.listen_tcp(443))
        self.watches = stack.watches
        self.far_side = FarSide(self.watches)
        self.watch = self.watches.add(
            self.ours.open_tcp((("10.0.0.1", 443), ("fd00::1", 443))[script.byte() % 2], self.now)
        )
        self.far_end: TcpConnection | None = None
        self.far_written = self.far_read = 0
        self.send()
        for _ in range(6):  # handshake, SYN and all
            self.deliver(0)
            self.deliver(1)

    def send(self) -> None:
        for side, engine in enumerate(self.engines):
            for _ in range(MAX_CALLS):
                runs = engine.datagrams_to_send(self.now)
                self.flying[side].extend(runs)
                for run in runs:
                    check_run(run)
                if not runs:
                    break
            else:
                raise AssertionError("it sends for ever")
            engine.take_woken()
        self.check()

    def deliver(self, sender: int) -> None:
        """The oldest run of one side."""
        if self.flying[sender]:
            run = self.flying[sender].popleft()
            data = memoryview(b"".join(run.buffers))
            self.engines[1 - sender].receive_datagrams(data, run.segment_size, ENDPOINTS[sender], self.now)
            if self.far_end is None:
                accepted = self.sockets[1].accept(self.now)
                self.far_end = accepted
            self.send()

    # -- steps

    def inject(self, script: Script) -> None:
        """Packets sealed by the far side, in one read of the socket as far as they have one size."""
        session = self.theirs.device.peers[0].current
        packets = self.far_side.packets(script)
        if session is None or not packets or not session.can_send(len(packets), self.now):
            return
        if script.byte() % 8 == 7:
            packets.append(script.take(script.byte()))
        padded = max(map(len, packets)) if script.flag() else 0  # zeros behind them: a run of one size
        buffers, sizes = session.seal_run([packet.ljust(padded, b"\0") for packet in packets], max(padded, MTU))
        if len(set(sizes)) > 1:
            for number, size in enumerate(sizes):
                self.ours.receive_datagrams(
                    memoryview(b"".join(buffers[2 * number : 2 * number + 2])), size, ENDPOINTS[1], self.now
                )
        else:
            self.ours.receive_datagrams(memoryview(b"".join(buffers)), sizes[0], ENDPOINTS[1], self.now)
        self.send()

    def disturb(self, script: Script) -> None:
        """Bytes that nobody sealed, or a genuine run altered: no answer, no new endpoint, nothing delivered."""
        peer = self.ours.device.peers[0]
        before, received = peer.endpoint, peer.received_bytes
        if self.flying[1] and script.flag():
            run = self.flying[1][0]
            data = bytearray(b"".join(run.buffers))
            size = run.segment_size
            covered = size - 16 if size in (INITIATION_SIZE, RESPONSE_SIZE) else size  # mac2 counts under load only
            for start in range(0, len(data), size):
                data[start + script.byte() % min(covered, len(data) - start)] ^= script.byte() or 1
        else:
            data = bytearray(script.choose((b"", b"\1\0\0\0", b"\2\0\0\0", b"\4\0\0\0")) + script.take(script.byte()))
            size = script.byte()
        self.ours.receive_datagrams(memoryview(data), size, STRANGER, self.now)
        assert (peer.endpoint, peer.received_bytes) == (before, received)
        assert self.ours.datagrams_to_send(self.now) == []

    def act(self, script: Script) -> None:
        """Either application writes or reads."""
        step, size = script.byte() % 8, script.choose((1 << 16, 1, 1000, 20_000))
        if step < 3:
            self.watch.write(size, self.now)
        elif step < 5:
            self.watch.read_some(size, self.now)
        elif step == 5:
            self.act_elsewhere(script)
        elif self.far_end is not None:
            try:
                if step == 6:
                    self.far_written += self.far_end.send(their_bytes(self.far_written, size), self.now)
                else:
                    data = self.far_end.receive(size, self.now)
                    assert data == our_bytes(self.far_read, len(data)), "another byte than was written"
                    self.far_read += len(data)
            except WireGuardError:
                assert self.far_end.error is not None or self.far_end.sender.fin_at is not None
        self.send()

    def act_elsewhere(self, script: Script) -> None:
        match script.byte() % 5:
            case 0:
                self.watch.shutdown(self.now)
            case 1:
                self.watch.close(self.now)
            case 2 if self.far_end is not None:
                self.far_end.shutdown_write(self.now)
            case 3:
                self.ours.send_udp(self.sockets[0], script.take(9), self.now, ("10.0.0.1", 53))
                while self.sockets[0].receive(self.now) is not None:
                    pass
            case 4:
                accepted = self.listener.accept(self.now)
                if accepted is not None:
                    self.watches.add(accepted).write(100, self.now)

    def pass_time(self, script: Script) -> None:
        pause = script.choose((0.0, 0.001, 0.05, 0.3, 5.0, 130.0, 600.0))
        due = [timeout for engine in self.engines if (timeout := engine.next_timeout()) is not None]
        self.now = max(self.now + pause, min(due, default=0.0) if not pause else 0.0)
        for engine in self.engines:
            for _ in range(3):
                engine.handle_timeout(self.now)
                self.send()
                timeout = engine.next_timeout()
                if timeout is None or timeout > self.now:
                    break
            else:
                raise AssertionError("a timer that stays due")

    def check(self) -> None:
        self.watches.check()
        for engine in self.engines:
            (peer,) = engine.device.peers
            held = [session for session in (peer.previous, peer.current, peer.next) if session is not None]
            assert len(engine.device._interface.sessions) == len(held)
            assert len(peer._staged) <= MAX_STAGED_PACKETS
            assert peer.endpoint in ENDPOINTS or peer.endpoint is None


def check_run(run: DatagramRun) -> None:
    """Datagrams that the path carries, in a run that one call sends."""
    data = b"".join(run.buffers)
    assert run.endpoint in ENDPOINTS
    assert 0 < len(data) <= MAX_RUN_BYTES
    assert -(-len(data) // run.segment_size) <= MAX_RUN_DATAGRAMS
    assert run.segment_size <= MTU + 32
    for start in range(0, len(data), run.segment_size):
        message_type(data[start : start + run.segment_size])


def run(data: bytes) -> None:
    script = Script(data)
    tunnel = Tunnel(script)
    while script:
        step = script.byte() % 16
        if step < 6:
            tunnel.inject(script)
        elif step < 9:
            tunnel.deliver(step % 2)
        elif step == 9:
            tunnel.flying[script.byte() % 2].clear()
        elif step == 10:
            tunnel.disturb(script)
        elif step < 14:
            tunnel.act(script)
        else:
            tunnel.pass_time(script)
    for engine in tunnel.engines:
        engine.close(tunnel.now)
        engine.datagrams_to_send(tunnel.now)
        engine.destroy_keys()
        assert engine.stack.connection_count == 0
        engine.receive_datagrams(memoryview(bytes(64)), 64, STRANGER, tunnel.now)
        assert engine.datagrams_to_send(tunnel.now) == []
