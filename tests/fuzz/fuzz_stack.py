"""The stack alone, with sockets of every kind, against a far side that knows the state of each connection.

Nothing may raise; `watch.py` says what has to hold after every step. At the end the application gives everything up,
the far side stays silent, and everything must come to its end by its own timers.
"""

from __future__ import annotations

from httpx_wireguard._errors import AddressInUse, MessageTooLong, WireGuardError
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from tests.fuzz.far_side import FarSide
from tests.fuzz.harness import Script
from tests.fuzz.packets import FAR4, FAR6, OURS4, OURS6, admitted, ip_packet
from tests.simnet import SeededEntropy
from tests.watch import MAX_CALLS, Watch, WatchedStack

MAX_CONNECTIONS = 12  # that the application opens or accepts
TIMERS_TO_END = 200  # for each connection, until silence has ended it; a retransmission is one
PAUSES = (0.0, 0.001, 0.01, 0.05, 0.3, 1.0, 10.0, 100.0, 1e7)


class Host:
    """A stack with an application that does what the script says."""

    def __init__(self, script: Script) -> None:
        self.now = 1000.0
        mtu, capacity = script.choose((1420, 1280)), script.choose((1 << 17, 4096))
        self.stack = WatchedStack([OURS4, OURS6], mtu, SeededEntropy(3), capacity)
        self.watches = self.stack.watches
        self.far_side = FarSide(self.watches)
        self.listener = self.stack.listen_tcp(80, backlog=2)
        self.udp = [self.stack.open_udp(53), self.stack.open_udp(0, (FAR4, 53)), self.stack.open_udp(0, (FAR6, 53))]
        self.pings = [self.stack.open_ping(FAR4), self.stack.open_ping(FAR6)]
        self.held: list[Watch] = []  # by the application
        self.open(script)

    def open(self, script: Script) -> None:
        """A connection with data in flight, so that no script has to find that first."""
        version, kind = script.choose((4, 6)), script.byte()
        watch = self.connect(version)
        (_, ours), (_, theirs) = watch.connection.local_address, watch.connection.remote_address
        options = TcpOptions(
            mss=1380,
            window_scale=None if kind & 1 else 7,
            sack_permitted=not kind & 2,
            timestamp_value=None if kind & 4 else watch.timestamp,
        )
        acknowledgment = watch.connection.sender.next % 2**32
        header = TcpHeader(theirs, ours, 2**32 - 1000, acknowledgment, int(Flags.SYN | Flags.ACK), 65535, 0, 0, options)
        segment = header.serialize_segment(FAR4, OURS4)
        self.receive([ip_packet(version, 6, segment)])
        watch.write(script.choose((5000, 0, 100, 20_000)), self.now)
        self.send()

    def connect(self, version: int) -> Watch:
        connection = self.stack.open_tcp((FAR4 if version == 4 else FAR6, 443), self.now)
        watch = self.watches.add(connection)
        self.held.append(watch)
        self.send()
        return watch

    def receive(self, packets: list[bytes]) -> None:
        self.stack.receive_packets(packets, self.now)
        self.send()

    def send(self) -> None:
        """Until nothing more is due; then look at everything."""
        for _ in range(MAX_CALLS):
            if not self.stack.packets_to_send(self.now):
                break
        else:
            raise AssertionError("it sends for ever")
        self.stack.take_woken()
        self.watches.check()

    # -- steps

    def act(self, script: Script) -> None:
        """The application does something with a socket."""
        watch = script.choose(self.held[::-1]) if self.held else None
        step = script.byte() % 16
        if step >= 12 or watch is None:
            self._act_elsewhere(script, step)
        elif step < 4:
            watch.write(script.choose((1, 100, 1368, 5000, 60_000)), self.now)
        elif step < 8:
            watch.read_some(script.choose((1 << 20, 1, 1000, 5000)), self.now)
        elif step == 8:
            watch.shutdown(self.now)
        elif step == 9:
            watch.close(self.now)
        elif step == 10:
            watch.abort(self.now)
        elif not watch.closed:
            watch.connection.set_keepalive(script.choose((60.0, 7200.0)), 5.0, 3, self.now)
        self.send()

    def _act_elsewhere(self, script: Script, step: int) -> None:
        if step == 15:
            self._send_datagrams(script)
        elif len(self.held) >= MAX_CONNECTIONS:
            pass
        elif step == 14:
            try:
                self.connect(script.choose((4, 6)))
            except AddressInUse:
                raise AssertionError("thousands of ports are free") from None
        elif (accepted := self.listener.accept(self.now)) is not None:
            self.held.append(self.watches.add(accepted))

    def _send_datagrams(self, script: Script) -> None:
        udp, ping = script.choose(self.udp), script.choose(self.pings)
        try:
            while (received := udp.receive(self.now)) is not None:
                assert len(received[0]) < 1 << 16
            while ping.receive(self.now) is not None:
                pass
            ping.send(script.byte(), script.take(3), self.now)
            udp.send(bytes(script.choose((10, 1400, 2000))), self.now, (FAR4, 53))
        except (MessageTooLong, WireGuardError):
            pass  # a datagram too long, or an ICMP error that came

    def pass_time(self, pause: float) -> None:
        self.now += pause
        for _ in range(3):
            self.stack.handle_timeout(self.now)
            self.send()
            due = self.stack.next_timeout()
            if due is None or due > self.now:
                return
        raise AssertionError("a timer that stays due")

    def end(self) -> None:
        """Everything is given up, and nobody answers."""
        for udp in self.udp:
            udp.close(self.now)
        for ping in self.pings:
            ping.close(self.now)
        self.listener.close(self.now)
        for watch in self.held:
            watch.close(self.now)
        self.send()
        for _ in range(TIMERS_TO_END * (1 + len(self.watches.all))):
            due = self.stack.next_timeout()
            if due is None:
                break
            self.pass_time(max(due - self.now, 0.0))
        assert self.stack.connection_count == 0, "a connection that outlives both of its ends"
        assert self.stack.next_timeout() is None
        assert not self.stack._half_open


def run(data: bytes) -> None:
    script = Script(data)
    to_the_end = script.byte() % 4 == 0  # most of the time goes there
    host = Host(script)
    waiting: list[bytes] = []
    while script:
        step = script.byte() % 16
        if step < 9:
            waiting += [packet for made in host.far_side.packets(script) for packet in admitted(made)]
            if step < 7:  # else they arrive together with the next ones
                host.receive(waiting)
                waiting = []
        elif step < 13:
            host.act(script)
        else:
            due = host.stack.next_timeout()
            host.pass_time(script.choose(PAUSES) if due is None or step == 13 else max(due - host.now, 0.0))
    if to_the_end:
        host.end()
