"""TCP against models: streams over faulty networks, the fast path against the slow one, and the parts by themselves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from httpx_wireguard._deadlines import Deadlines
from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.scoreboard import Delivery, Scoreboard, Transmission
from httpx_wireguard._netstack.send_queue import SendQueue
from httpx_wireguard._netstack.sender import Sender
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.tcp import State, TcpConnection
from httpx_wireguard._wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP
from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT, ecn_of
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.trains import Train, train_length
from tests.simnet import Link, Network, SeededEntropy
from tests.tcp_net import PACKED, StackHost

CLIENT, SERVER = PACKED[4]
CLIENT6, SERVER6 = PACKED[6]
slow = settings(max_examples=60, suppress_health_check=list(HealthCheck))
quick = settings(max_examples=150)


# -- streams over a faulty network


class Step(NamedTuple):
    """What an application does at one moment."""

    side: int
    action: str  # write, read, shutdown, close, abort
    size: int
    pause: float


class Application:
    """One end: remembers what it wrote and read."""

    def __init__(self, connection: TcpConnection, seed: int) -> None:
        self.connection = connection
        self.written = bytearray()
        self.read = bytearray()
        self.shut = self.gave_up = False
        self._random = random.Random(seed)

    def act(self, step: Step, now: float) -> None:
        try:
            if step.action == "write" and not self.shut:
                data = self._random.randbytes(step.size)
                self.written += data[: self.connection.send(data, now)]
            elif step.action == "read" and not self.gave_up:
                self.read += self.connection.receive(step.size, now)
            elif step.action == "shutdown":
                self.shut = True
                self.connection.shutdown_write(now)
            elif step.action == "close":
                self.shut = self.gave_up = True
                self.connection.close(now)
            elif step.action == "abort":
                self.shut = self.gave_up = True
                self.connection.abort(now)
        except WireGuardError:
            assert self.connection.error is not None

    def drain(self, now: float) -> bool:
        """Read to the end; whether that is reached, one way or the other."""
        try:
            while data := self.connection.receive(1 << 20, now):
                self.read += data
        except WireGuardError:
            return True
        return self.connection.at_eof


links = st.builds(
    Link,
    delay=st.sampled_from([0.001, 0.02, 0.2]),
    jitter=st.sampled_from([0.0, 0.01, 0.05]),
    fifo=st.booleans(),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.2]),
    duplicate=st.sampled_from([0.0, 0.1]),
    rate=st.sampled_from([0.0, 100_000.0, 2_000_000.0]),
    queue=st.sampled_from([20_000, 1 << 20]),
)
actions = st.sampled_from(["write"] * 8 + ["read"] * 6 + ["shutdown", "close", "abort"])
steps = st.builds(
    Step, st.integers(0, 1), actions, st.sampled_from([1, 7, 1000, 1369, 50_000]), st.sampled_from([0.0, 0.005, 0.3])
)


def check_prefixes(applications: list[Application]) -> None:
    """Whatever happened: what was read is what was written, from its beginning."""
    for reader, writer in (applications, reversed(applications)):
        assert writer.written[: len(reader.read)] == reader.read


@slow
@given(
    st.lists(steps, max_size=25), links, links, st.integers(0, 99), st.sampled_from([576, 1280, 1420]), st.booleans()
)
def test_any_schedule_delivers_exact_bytes_or_a_clean_error(
    schedule: list[Step], there: Link, back: Link, seed: int, mtu: int, ipv6: bool
) -> None:
    hosts = [StackHost(0, max(mtu, 1280) if ipv6 else mtu), StackHost(1)]
    network = Network(hosts, there, back, seed=seed)
    listener = hosts[1].stack.listen_tcp(80)
    connection = hosts[0].stack.open_tcp((SERVER6 if ipv6 else SERVER, 80), network.now)
    accepted: list[TcpConnection] = []

    def opened() -> bool:
        if (served := listener.accept(network.now)) is not None:
            accepted.append(served)
        return bool(accepted)

    assume(network.run(opened, 300.0))
    applications = [Application(connection, 1), Application(accepted[0], 2)]
    for step in schedule:
        applications[step.side].act(step, network.now)
        network.advance(step.pause)
        check_prefixes(applications)
    for application in applications:
        application.shut = True
        application.connection.shutdown_write(network.now)

    def ended() -> bool:
        done = [each.gave_up or each.drain(network.now) for each in applications]
        return all(done)

    if not network.run(ended, 5000.0):  # a reset may be lost, and a reader alone never finds out: RFC 9293 3.5.1
        assert any(each.gave_up for each in applications)
    check_prefixes(applications)
    for reader, writer in (applications, reversed(applications)):
        if not reader.gave_up and reader.connection.at_eof:
            assert reader.read == writer.written or writer.gave_up
        for each in (reader, writer):
            each.connection.close(network.now)
    network.run(lambda: False, 5000.0)
    assert [host.stack.connection_count for host in hosts] == [0, 0]


# -- the fast path


INITIAL_SEQUENCE = 2**32 - 5  # the numbers begin again at 0 in the middle of what is in flight


class Owner:
    """Hears everything and does nothing."""

    def touch(self, connection: TcpConnection) -> None: ...
    def wake(self, connection: TcpConnection) -> None: ...
    def on_established(self, connection: TcpConnection) -> None: ...
    def on_closed(self, connection: TcpConnection) -> None: ...
    def on_path_mtu(self, remote: bytes, mtu: int, now: float) -> None: ...
    def drop(self, reason: str) -> None: ...


def connection(state: str, *, ecn: bool = False) -> TcpConnection:
    made = TcpConnection(
        Owner(),
        (CLIENT, 40000),
        (SERVER, 80),
        initial_sequence=INITIAL_SEQUENCE,
        mss=1380,
        socket_capacity=4096,
        make_control=Reno,
    )
    made.open(0.0)
    made.packets_to_send(0.0)
    options = TcpOptions(mss=1380, window_scale=0, sack_permitted=True, timestamp_value=1000)
    flags = Flags.SYN | Flags.ACK | (Flags.ECE if ecn else 0)
    syn = TcpHeader(80, 40000, 2**32 - 101, INITIAL_SEQUENCE + 1, int(flags), 5000, options=options)
    made.receive_segment(syn, b"", 0.1)
    made.packets_to_send(0.1)
    made.send(b"in flight", 0.1)
    made.packets_to_send(0.1)
    if state == "half closed":
        made.shutdown_write(0.1)
    elif state == "orphan":
        made.close(0.1)
    elif state == "retransmitting":
        made.handle_timeout(9.0)
    made.packets_to_send(9.0)
    return made


segments = st.tuples(
    st.sampled_from([0] * 6 + [-40, 40, 5000]),  # how far from where the last one ended
    st.sampled_from([0, 1, 2, 60, 60, 60, 700, 3000]),
    st.sampled_from([ECT_0] * 5 + [CE] * 2 + [NOT_ECT, ECT_1]),
    st.sampled_from(
        [Flags.ACK] * 8
        + [Flags.ACK | Flags.PSH] * 4
        + [Flags.ACK | Flags.CWR, Flags.ACK | Flags.ECE, Flags.ACK | Flags.FIN, Flags.RST, Flags.SYN]
    ),
    st.sampled_from([5000] * 6 + [0, 4000]),
    st.sampled_from([0, 0, 1, 1, -2000]),
    st.sampled_from([9] * 6 + [0, 0, 2, 4, 10, 149]),  # how much it acknowledges
    st.sampled_from([1, 1, 2, 5, 9, 60]),  # how many of them, one behind the other
    st.sampled_from([True] * 9 + [False]),  # with a timestamp, as agreed; else with a SACK block, which is as long
)


def observed(subject: TcpConnection) -> tuple[object, ...]:
    """Everything that matters for what happens next."""
    receiver, sender = subject.receiver, subject.sender
    packets = subject.packets_to_send(10.0)
    return (
        subject.state,
        str(subject.error),
        packets,
        receiver.next,
        receiver.right_edge,
        receiver.fin_at,
        receiver.fin_received,
        receiver.queue.ranges(99),
        receiver.ack_deadline,
        receiver.unacknowledged,
        receiver.ecn_echo,
        sender.cwr_due,
        sender.unacknowledged,
        sender.next,
        sender.window,
        sender.largest_window,
        sender._wl1,
        sender._wl2,
        sender.retries,
        sender.rtt.timeout,
        sender.congestion.window,
        subject._last_received,
        subject._progress_at,
        subject._timestamp_echo,
        subject.next_timeout(),
        subject.receive(1 << 20, 10.0) if receiver.buffered else b"",
    )


def ip_header(size: int, codepoint: int, length: int) -> bytes:
    """Of IPv4, perhaps with options, or of IPv6."""
    if size < 40:
        options = b"\x01" * (size - 20)
        header = Ipv4Header(SERVER, CLIENT, PROTOCOL_TCP, size + length, traffic_class=codepoint, options=options)
        return header.serialize()
    return Ipv6Header(SERVER6, CLIENT6, PROTOCOL_TCP, length, traffic_class=codepoint).serialize()


@settings(max_examples=600)
@given(
    st.lists(segments, min_size=1, max_size=12),
    st.sampled_from(["open", "half closed", "orphan", "retransmitting"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([20, 20, 40, 40, 24]),
    st.booleans(),
)
def test_the_fast_path_equals_the_slow_path(
    batch: list[tuple[int, int, int, Flags, int, int, int, int, bool]],
    state: str,
    quick_acks: bool,
    ecn: bool,
    offset: int,
    ends: bool,
) -> None:
    """Segments one by one, and those that make a train, in a batch of any kind.

    Args:
        offset: of the TCP header.
        ends: the last of them is as the last of a write: a little shorter, with PSH.
    """
    sequence, clock = 2**32 - 100, 1000
    built: list[tuple[bytes, TcpHeader, bytes]] = []
    for step, size, codepoint, flags, window, tick, ack, count, timed in batch:
        sequence, clock = sequence + step, clock + tick
        for last in (*(count - 1) * (False,), True):
            bits = int(flags | Flags.PSH) if last and ends else int(flags)
            header = TcpHeader(80, 40000, sequence % 2**32, (INITIAL_SEQUENCE + 1 + ack) % 2**32, bits, window)
            if timed:
                header.options.timestamp_value = clock % 2**32
            else:
                header.options.sack_blocks = (((clock + 50) % 2**32, 0),)
            length = max(size - 3, 0) if last and ends else size
            built.append((ip_header(offset, codepoint, 32 + length), header, bytes([len(built) % 256]) * length))
            sequence += length
    fast, slow_ = connection(state, ecn=ecn), connection(state, ecn=ecn)
    for each in (fast, slow_):
        each.receiver.quick_acks = 10_000 if quick_acks else 0
    packets: Sequence[bytes] = [start + header.serialize() + payload for start, header, payload in built]
    if train_length(packets) == len(packets):
        packets = Train(packets)
    while packets:  # what the end of a connection leaves of a batch is for whoever comes next
        packets = packets[fast.receive_packets(packets, offset, 9.5) :]
    for start, header, payload in built:
        slow_.receive_segment(header, payload, 9.5, ce=ecn_of(start) == CE)
    assert observed(fast) == observed(slow_)


# -- parts


@quick
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.sampled_from([0, 1, 3, 100, 9_000, 17_000, 40_000])),
            st.tuples(st.just("release"), st.integers(0, 60_000)),
            st.tuples(st.just("slices"), st.integers(0, 100_000)),
        ),
        max_size=20,
    ),
    st.sampled_from([1, 7, 536, 1368]),
)
def test_the_send_queue_is_a_window_of_bytes(operations: list[tuple[str, int]], step: int) -> None:
    rng = random.Random(len(operations))
    queue, model, start = SendQueue(500), bytearray(), 500
    for action, number in operations:
        if action == "append":
            data = rng.randbytes(number)
            queue.append(data)
            model += data
        elif action == "release":
            count = min(number, len(model))
            queue.release(start + number)
            del model[:count]
            start += count
        elif model:
            at = number % len(model)
            length = rng.randrange(5_000)
            pieces = queue.slices(start + at, length, step)
            assert b"".join(pieces) == model[at : at + length]
            assert all(len(piece) == step for piece in pieces[:-1])
            assert queue.slice(start + at, length) == model[at : at + length]
        assert (queue.start, queue.end, len(queue)) == (start, start + len(model), len(model))


@quick
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 12), st.just(0)),
            st.tuples(st.just("sack"), st.integers(0, 60), st.integers(1, 12)),
            st.tuples(st.just("acknowledge"), st.integers(0, 40), st.just(0)),
            st.tuples(st.just("lose"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("lose all"), st.just(0), st.just(0)),
            st.tuples(st.just("send again"), st.integers(1, 12), st.just(0)),
            st.tuples(st.just("last"), st.integers(1, 5), st.just(0)),
            st.tuples(st.just("forget"), st.just(0), st.just(0)),
        ),
        max_size=40,
    )
)
def test_the_scoreboard_is_three_sets_of_bytes(operations: list[tuple[str, int, int]]) -> None:
    """What is in flight, what of it the far side holds, and what is lost; and every byte is delivered once."""
    board = Scoreboard()
    una = end = 100
    held, lost = set[int](), set[int]()
    for action, number, length in operations:
        delivery = Delivery(None, 0.0, 1.0)
        known = set(range(una, end)) & held
        if action == "send":
            board.add(Transmission(end, end + number))
            end += number
        elif action == "sack":
            start = una + 1 + number
            if start < end:
                block = range(start, min(start + length, end))
                board.sack(block.start, block.stop, delivery)
                assert delivery.length == len(set(block) - known)
                held |= set(block)
                lost -= set(block)
        elif action == "acknowledge":
            before, una = una, min(una + number, end)
            board.acknowledge(una, delivery)
            assert delivery.length == len(set(range(before, una)) - known)
            held, lost = ({byte for byte in some if byte >= una} for some in (held, lost))
        elif action == "lose" and number < len(board.transmissions):
            one = board.transmissions[number]
            if not one.sacked and not one.lost:
                board.mark_lost(one)
                lost |= set(range(one.start, one.end))
        elif action == "lose all":
            board.lose_all()
            lost = set(range(una, end)) - held
        elif action == "send again" and (first := board.first_lost()) is not None:
            assert first.start == min(lost)
            again = board.send_again(first, min(first.start + number, first.end))
            lost -= set(range(again.start, again.end))
            assert again.retransmitted
        elif action == "last" and (tail := board.last_segment(number, fin=False)) is not None:
            assert tail.end == end
            assert 0 < tail.end - tail.start <= number
        elif action == "forget":
            board.forget_sacks()
            held = set()
        check_scoreboard(board, una, end, held, lost)


def check_scoreboard(board: Scoreboard, una: int, end: int, held: set[int], lost: set[int]) -> None:
    assert (board.sacked, board.lost) == (len(held), len(lost))
    edges = [(one.start, one.end) for one in board.transmissions]
    assert [start for start, _ in edges] + [end] == [una] + [stop for _, stop in edges]
    assert {byte for one in board.transmissions if one.sacked for byte in range(one.start, one.end)} == held
    assert {byte for one in board.transmissions if one.lost for byte in range(one.start, one.end)} == lost
    assert (board.first_lost() is None) == (not lost)


@quick
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 50)),
            st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("take"), st.just(0), st.integers(0, 20)),
        ),
        max_size=120,
    )
)
def test_deadlines_are_a_dictionary(operations: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    now = 0.0
    for action, item, number in operations:
        if action == "set":
            deadlines.set(item, now + number)
            model[item] = now + number
        elif action == "drop":
            deadlines.set(item, None)
            model.pop(item, None)
        else:
            now += number
            taken = deadlines.take_due(now)
            assert len(taken) == len(set(taken))
            assert set(taken) == {item for item, due in model.items() if due <= now}
            model = {item: due for item, due in model.items() if due > now}
        following = deadlines.next()
        assert (following is None) == (not model)
        if following is not None:
            assert following <= min(model.values())


@quick
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, 5_000)),
            st.tuples(st.just("ack"), st.integers(0, 4_000)),
            st.tuples(st.just("sack"), st.integers(0, 4_000)),
            st.tuples(st.just("window"), st.sampled_from([0, 100, 1000, 65_535])),
            st.tuples(st.just("timeout"), st.just(0)),
            st.tuples(st.just("close"), st.just(0)),
            st.tuples(st.just("mss"), st.integers(100, 1000)),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_a_sender_never_sends_what_it_must_not(operations: list[tuple[str, int]], sack: bool) -> None:
    """Neither beyond the window, nor more than SND.NXT again, nor a byte other than what was written."""
    sender = Sender(0, 1000, Reno)
    sender.next = 1
    sender.start_timer(0.0)
    sender.start(1000, sack=sack)
    sender.on_established(50, 1, 10_000, 0.1)
    rng, stream, now = random.Random(1), bytearray(), 0.1
    edge, full = sender.unacknowledged + sender.window, sender.mss
    for number, (action, size) in enumerate(operations):
        now += 0.05
        if action == "write" and sender.fin_at is None:
            data = rng.randbytes(size)
            sender.queue.append(data)
            stream += data
        elif action == "ack" and sender.unacknowledged < sender.next:
            sender.on_ack(min(sender.unacknowledged + 1 + size, sender.next), [], None, False, None, now)
        elif action == "sack" and sender.next - sender.unacknowledged > 2:
            start = sender.unacknowledged + 1 + size % (sender.next - sender.unacknowledged - 2)
            blocks = [(start, min(start + 1000, sender.next))] if sack else []
            sender.on_ack(sender.unacknowledged, blocks, None, True, None, now)
        elif action == "window":
            sender.update_window(51 + number, sender.unacknowledged, size)
        elif action == "timeout" and sender.unacknowledged < sender.next:
            sender.on_timeout(now)
        elif action == "close" and sender.fin_at is None:
            sender.close()
        elif action == "mss":
            full = min(full, size)
            sender.set_mss(size, now)
        edge = max(edge, sender.unacknowledged + sender.window)
        for run in sender.runs_to_send(now):
            sequence = run.sequence
            assert sequence >= sender.unacknowledged
            for payload in run.payloads:
                assert len(payload) <= full
                assert payload == stream[sequence - 1 : sequence - 1 + len(payload)]
                sequence += len(payload)
            assert sequence + run.fin <= sender.next
            assert sequence <= edge
            assert not run.fin or sequence == sender.fin_at
        assert sender.retransmit_at is not None or sender.unacknowledged == sender.next


# -- hostile input


def guarded(packet: bytes) -> bytes | None:
    """What the device lets through: a whole header, and no byte beyond the packet's own length."""
    if packet[:1] and packet[0] >> 4 == 4 and len(packet) >= 20:
        length = int.from_bytes(packet[2:4], "big")
        return packet[:length] if 20 <= length <= len(packet) else None
    if packet[:1] and packet[0] >> 4 == 6 and len(packet) >= 40:
        length = 40 + int.from_bytes(packet[4:6], "big")
        return packet[:length] if length <= len(packet) else None
    return None


def ipv4(body: bytes, protocol: int, fragment: int) -> bytes:
    header = Ipv4Header(SERVER, CLIENT, protocol, 20 + len(body), identification=1, dont_fragment=False)
    header.more_fragments, header.fragment_offset = bool(fragment & 1), fragment & ~7
    return header.serialize() + body


def ipv6(body: bytes, protocol: int, fragment: int) -> bytes:
    return Ipv6Header(SERVER6, CLIENT6, protocol, len(body)).serialize() + body


protocols = st.sampled_from([PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP, PROTOCOL_ICMPV6, 0, 43, 44, 60, 47])
wild: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=120).map(lambda data: b"\x45\x00" + (len(data) + 4).to_bytes(2, "big") + data),
    st.binary(max_size=120).map(lambda data: b"\x60\x00\x00\x00" + max(len(data) - 34, 0).to_bytes(2, "big") + data),
    st.builds(ipv4, st.binary(max_size=80), protocols, st.sampled_from([0, 0, 0, 1, 8, 9, 65528])),
    st.builds(ipv6, st.binary(max_size=80), protocols, st.just(0)),
)


@settings(max_examples=300)
@given(st.lists(wild, min_size=1, max_size=8))
def test_arbitrary_packets_never_raise(packets: list[bytes]) -> None:
    stack = Stack((CLIENT, CLIENT6), 1420, SeededEntropy(1), 1 << 17)
    stack.listen_tcp(80)
    stack.open_udp(53)
    stack.open_tcp((SERVER, 80), 0.0)
    stack.receive_packets([packet for raw in packets if (packet := guarded(raw)) is not None], 0.0)
    for _, replies in stack.packets_to_send(0.0):
        assert all(len(reply) <= 1420 for reply in replies)


hostile = st.builds(
    lambda sequence, ack, flags, window, payload, options: (sequence, ack, flags, window, payload, options),
    st.one_of(st.integers(-5, 200), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(-5, 40), st.integers(0, 2**32 - 1)),
    st.integers(0, 255),
    st.sampled_from([0, 1, 100, 65535]),
    st.binary(max_size=40),
    st.binary(max_size=40),
)


@settings(max_examples=300)
@given(st.lists(hostile, max_size=20), st.sampled_from(["open", "half closed", "orphan", "retransmitting"]))
def test_arbitrary_segments_never_break_a_connection(
    batch: list[tuple[int, int, int, int, bytes, bytes]], state: str
) -> None:
    """Whatever an authenticated but hostile far side sends: no exception, no unbounded memory, timers that end."""
    subject = connection(state)
    now = 10.0
    for sequence, ack, flags, window, payload, options in batch:
        options = options[: len(options) & ~3]
        header = bytearray(
            TcpHeader(
                80, 40000, (2**32 - 100 + sequence) % 2**32, (INITIAL_SEQUENCE + 1 + ack) % 2**32, flags, window
            ).serialize()
        )
        header[12] = (20 + len(options)) << 2
        subject.receive_packets([bytes(20) + bytes(header) + options + payload], 20, now)
        subject.packets_to_send(now)
        assert subject.receiver.buffered <= 4096 + 255
        assert subject.sender.unacknowledged <= subject.sender.next
        timeout = subject.next_timeout()
        if timeout is not None and timeout < now + 5:
            now = max(now, timeout)
            subject.handle_timeout(now)
            subject.packets_to_send(now)
    subject.abort(now)
    assert subject.state is State.CLOSED
    assert subject.next_timeout() is None
