"""Two stacks and every single packet between them in the hands of the test.

`test_tcp_streams.py` draws a network's loss and delay and lets chance do the rest; here each packet is delivered, lost,
copied or overtaken by a decision of its own, so that what fails shrinks to the few packets that matter.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from httpx_wireguard._errors import ConnectionTimedOut
from httpx_wireguard._wire.checksum import pseudo_header_sum
from httpx_wireguard._wire.icmp import packet_too_big
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from tests.simnet import SeededEntropy
from tests.watch import MAX_CALLS, Watch, WatchedStack

V4 = (bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]))
V6 = (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01")
ROUNDS = 2000  # of delivery and timers, until a healed network has brought everything to its end

sides = st.integers(0, 1)
places = st.sampled_from([0, 0, 0, 1, 2, -1])  # which of the packets on their way


class TwoStacks(RuleBasedStateMachine):
    """Two ends of one connection: what is read is what was written, or the connection failed and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.stacks = [WatchedStack([V4[n], V6[n]], 1420, SeededEntropy(n), 1 << 17, far=bool(n)) for n in (0, 1)]
        self.listener = self.stacks[1].listen_tcp(80)
        self.flying: tuple[list[bytes], list[bytes]] = ([], [])
        self.path_mtu = 1420
        self.ends: list[Watch] = []
        self.gave_up = [False, False]  # closed or aborted: nobody promises the rest of the stream any more

    @initialize(ipv6=st.booleans())
    def connect(self, ipv6: bool) -> None:
        connection = self.stacks[0].open_tcp(((V6 if ipv6 else V4)[1], 80), self.now)
        self.ends.append(self.stacks[0].watches.add(connection))
        while (accepted := self.listener.accept(self.now)) is None:
            self.send()
            self.deliver_all(0)
            self.deliver_all(1)
        self.ends.append(self.stacks[1].watches.add(accepted))

    def send(self) -> None:
        for side, stack in enumerate(self.stacks):
            for _ in range(MAX_CALLS):
                runs = stack.packets_to_send(self.now)
                if not runs:
                    break
                for packet in (packet for _, packets in runs for packet in packets):
                    if len(packet) <= self.path_mtu:
                        self.flying[side].append(packet)
                    else:
                        self.refuse(stack, packet)
            else:
                raise AssertionError("it sends for ever")

    def refuse(self, stack: WatchedStack, packet: bytes) -> None:
        """RFC 1191, RFC 8201: a router tells what it takes."""
        message = packet_too_big(packet[0] >> 4, self.path_mtu, packet)
        if packet[0] >> 4 == 4:
            body, header = message.serialize(), Ipv4Header(bytes([192, 0, 2, 1]), packet[12:16], 1, 28)
            header.total_length = 20 + len(body)
            stack.receive_packets([header.serialize() + body], self.now)
        else:
            router, covered = b"\x20" + bytes(14) + b"\x01", 0
            covered = pseudo_header_sum(router, packet[8:24], 58, message.length)
            body = message.serialize(covered)
            stack.receive_packets([Ipv6Header(router, packet[8:24], 58, len(body)).serialize() + body], self.now)

    # -- the network

    @rule(sender=sides, place=places)
    def deliver(self, sender: int, place: int) -> None:
        """Any but the first of them overtakes."""
        if self.flying[sender]:
            packet = self.flying[sender].pop(place % len(self.flying[sender]))
            self.stacks[1 - sender].receive_packets([packet], self.now)

    @rule(sender=sides)
    def deliver_all(self, sender: int) -> None:
        """In order, in one read of the socket."""
        packets = self.flying[sender][:]
        self.flying[sender].clear()
        self.stacks[1 - sender].receive_packets(packets, self.now)

    @rule(sender=sides, place=places)
    def lose(self, sender: int, place: int) -> None:
        if self.flying[sender]:
            del self.flying[sender][place % len(self.flying[sender])]

    @rule(sender=sides)
    def lose_all(self, sender: int) -> None:
        self.flying[sender].clear()

    @rule(sender=sides, place=places)
    def copy(self, sender: int, place: int) -> None:
        if self.flying[sender]:
            self.flying[sender].append(self.flying[sender][place % len(self.flying[sender])])

    @rule(mtu=st.sampled_from([1400, 1280]))
    def narrow(self, mtu: int) -> None:
        self.path_mtu = min(mtu, self.path_mtu)

    # -- time

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3]))
    def pause(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def timer(self) -> None:
        """Time jumps to the next timer."""
        due = [timeout for stack in self.stacks if (timeout := stack.next_timeout()) is not None]
        self.now = max(self.now, min(due, default=self.now))
        for stack in self.stacks:
            stack.handle_timeout(self.now)

    # -- the applications

    @rule(side=sides, size=st.sampled_from([1, 100, 1368, 5000, 40_000]))
    def write(self, side: int, size: int) -> None:
        self.ends[side].write(size, self.now)

    @rule(side=sides, size=st.sampled_from([1, 1000, 1 << 20]))
    def read(self, side: int, size: int) -> None:
        self.ends[side].read_some(size, self.now)

    @rule(side=sides)
    def shutdown(self, side: int) -> None:
        self.ends[side].shutdown(self.now)

    @precondition(lambda self: not any(self.gave_up))
    @rule(side=sides, rudely=st.booleans())
    def give_up(self, side: int, rudely: bool) -> None:
        self.gave_up[side] = True
        self.ends[side].abort(self.now) if rudely else self.ends[side].close(self.now)

    # -- what holds

    @invariant()
    def nothing_is_due_and_everything_holds(self) -> None:
        self.send()
        for stack in self.stacks:
            stack.watches.check()

    def teardown(self) -> None:
        """The network heals, both write no more and read to the end."""
        if len(self.ends) < 2:
            return
        for end in self.ends:
            end.shutdown(self.now)
        self.run_until(lambda: all(map(self.ended, (0, 1))))
        for side, end in enumerate(self.ends):
            other = self.ends[1 - side]
            if not any(self.gave_up):
                assert end.connection.at_eof or self.timed_out, end.connection.error
            if end.connection.at_eof and not self.gave_up[1 - side]:
                assert end.read == other.written
        for end in self.ends:
            end.close(self.now)
        self.run_until(lambda: not any(stack.connection_count for stack in self.stacks))
        assert [stack.connection_count for stack in self.stacks] == [0, 0]

    @property
    def timed_out(self) -> bool:
        """So many losses in a row were drawn; the other end may then hear of it by a reset."""
        return any(isinstance(end.connection.error, ConnectionTimedOut) for end in self.ends)

    def ended(self, side: int) -> bool:
        end = self.ends[side]
        if not self.gave_up[side]:
            end.read_some(1 << 20, self.now)
        return self.gave_up[side] or end.connection.at_eof or end.connection.error is not None

    def run_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(ROUNDS):
            self.nothing_is_due_and_everything_holds()
            nobody_will = not any(self.flying) and all(stack.next_timeout() is None for stack in self.stacks)
            if condition() or nobody_will:  # a reset was lost, and a reader alone never finds out: RFC 9293 3.5.1
                return
            if any(self.flying):
                self.now += 0.01
                self.deliver_all(0)
                self.deliver_all(1)
            else:
                self.timer()


TestTwoStacks = TwoStacks.TestCase
TestTwoStacks.settings = settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))
