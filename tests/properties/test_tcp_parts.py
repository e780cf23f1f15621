"""TCP's small parts against models: sequence numbers, the segment writer, the receiver; and batches of packets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._netstack.receiver import Receiver
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._netstack.sequence import unwrap
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._wire.ipv4 import Ipv4Header
from httpx_wireguard._wire.ipv6 import Ipv6Header
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions
from httpx_wireguard._wire.udp import serialize_datagram
from tests.simnet import SeededEntropy

OURS, THEIRS = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
OURS6, THEIRS6 = b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01"


def uint(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


@given(uint(32), st.integers(-(2**34), 2**40))
def test_unwrap_is_congruent_and_the_nearest(sequence: int, near: int) -> None:
    """RFC 9293 3.4."""
    unwrapped = unwrap(sequence, near)
    assert unwrapped % 2**32 == sequence
    assert -(2**31) <= unwrapped - near < 2**31


@given(st.integers(0, 2**40), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**20), 2**20))
def test_unwrap_keeps_order_and_distance(near: int, ahead: int, step: int) -> None:
    """What is compared with `<` afterwards lies on one line, not on a circle."""
    first, second = (unwrap((near + offset) % 2**32, near) for offset in (ahead // 2, ahead // 2 + step))
    assert second - first == step


@given(
    version=st.sampled_from([4, 6]),
    ports=st.tuples(uint(16), uint(16)),
    sequence=uint(32),
    acknowledgment=uint(32),
    flags=st.tuples(uint(8), uint(8)),
    window=uint(16),
    options=st.builds(TcpOptions, timestamp_value=st.none() | uint(32), sack_permitted=st.booleans()),
    payloads=st.lists(st.binary(max_size=40) | st.sampled_from([b"\xff" * 33, bytes(1368)]), min_size=1, max_size=4),
)
def test_the_segment_writer_equals_the_codecs(
    version: int,
    ports: tuple[int, int],
    sequence: int,
    acknowledgment: int,
    flags: tuple[int, int],
    window: int,
    options: TcpOptions,
    payloads: list[bytes],
) -> None:
    """The fast path out, byte by byte what the readable header classes make, checksums included."""
    source, destination = (OURS, THEIRS) if version == 4 else (OURS6, THEIRS6)
    expected = []
    for number, payload in enumerate(payloads):
        bits = flags[0] | (flags[1] if number == len(payloads) - 1 else 0)
        at = (sequence + sum(map(len, payloads[:number]))) % 2**32
        segment = TcpHeader(*ports, at, acknowledgment, bits, window, options=options).serialize_segment(
            source, destination, payload
        )
        if version == 4:
            ip = Ipv4Header(source, destination, 6, 20 + len(segment)).serialize()
        else:
            ip = Ipv6Header(source, destination, 6, len(segment)).serialize()
        expected.append(ip + segment)
    writer = SegmentWriter(source, destination, *ports)
    assert writer.run(sequence, payloads, acknowledgment, *flags, window, options.serialize()) == expected


class ReceiverModel:
    """Which bytes of the far side's stream are here, one by one, and what of them was read."""

    def __init__(self, first: int, edge: int) -> None:
        self.here: set[int] = set()
        self.next, self.edge, self.read = first, edge, first

    def take(self, sequence: int, length: int) -> None:
        self.here |= set(range(max(sequence, self.next), min(sequence + length, self.edge)))
        while self.next in self.here:
            self.next += 1

    def beyond(self) -> set[tuple[int, int]]:
        """The ranges behind a hole."""
        held = {byte for byte in self.here if byte > self.next}
        starts = sorted(byte for byte in held if byte - 1 not in held)
        ends = sorted(byte + 1 for byte in held if byte + 1 not in held)
        return set(zip(starts, ends, strict=True))


BUFFER = 400
segments = st.tuples(st.just("segment"), st.integers(-30, BUFFER + 30), st.integers(1, 90))
reads = st.tuples(st.just("read"), st.integers(1, 200), st.just(0))
acknowledgments = st.tuples(st.just("acknowledge"), st.just(0), st.just(0))


@settings(max_examples=300)
@given(st.lists(segments | segments | reads | acknowledgments, max_size=60), st.sampled_from([0, 3]))
def test_the_receiver_keeps_exactly_what_its_window_lets_in(steps: list[tuple[str, int, int]], scale: int) -> None:
    """RFC 9293 3.10.7.4: every byte between RCV.NXT and the right edge told, wherever its segment begins and ends."""
    first = 2**32 - 100
    receiver = Receiver(first, 100, BUFFER)
    receiver.scale = scale
    receiver.reset_edge()
    model = ReceiverModel(first, receiver.right_edge)
    for action, number, length in steps:
        if action == "segment":
            sequence = model.next + number
            payload = bytes(byte % 251 for byte in range(sequence, sequence + length))
            if receiver.acceptable(sequence, length):
                assert receiver.on_data(sequence, payload, 0.0) == (sequence <= model.next < sequence + length)
                model.take(sequence, length)
            else:
                assert sequence + length <= model.next or sequence >= model.edge
        elif action == "read" and receiver.buffered:
            data = receiver.take(number, 0.0)
            assert data == bytes(byte % 251 for byte in range(model.read, min(model.read + number, model.next)))
            model.read += len(data)
        elif action == "acknowledge":
            told = model.next + (receiver.window_field() << scale)
            assert told > model.edge - (1 << scale)
            assert told < model.read + BUFFER + (1 << scale)
            model.edge = max(model.edge, told)
        assert receiver.next == model.next
        assert receiver.right_edge == model.edge
        assert receiver.buffered == model.next - model.read
        assert set(receiver.queue.ranges(99)) == model.beyond()


def stack(shut: bool) -> tuple[Stack, list[int]]:
    """With two connections, one of them from the listener; and their far side's next sequence numbers."""
    made = Stack([OURS, OURS6], 1420, SeededEntropy(5), 1 << 17)
    made.listen_tcp(80)
    made.open_udp(53)
    timestamps = TcpOptions(timestamp_value=7, mss=1360)
    active = made.open_tcp((THEIRS, 443), 1.0)
    syn_ack = TcpHeader(443, active.local[1], 99, active.sender.next % 2**32, 0x12, 999, options=timestamps)
    syn = TcpHeader(7, 80, 99, 0, int(Flags.SYN), 999, options=timestamps)
    made.packets_to_send(1.0)
    made.receive_packets([packet(syn_ack), packet(syn)], 1.0)
    made.packets_to_send(1.0)
    passive = list(made._connections.values())[1]
    made.receive_packets(
        [packet(TcpHeader(7, 80, 100, passive.sender.next % 2**32, 0x10, 999, options=timestamps))], 1.0
    )
    if shut:
        for connection in (active, passive):
            connection.shutdown_write(1.0)
        made.packets_to_send(1.0)
    return made, [100, 100]


def packet(header: TcpHeader, payload: bytes = b"", ip_options: bytes = b"", cut: int = 0) -> bytes:
    segment = header.serialize_segment(THEIRS, OURS, payload)
    segment = segment[: len(segment) - cut]
    length = 20 + len(ip_options) + len(segment)
    return Ipv4Header(THEIRS, OURS, 6, length, options=ip_options).serialize() + segment


arrivals = st.tuples(
    st.sampled_from(["active", "active", "active", "passive", "passive", "nobody", "udp"]),
    st.sampled_from([0, 0, 0, 0, 100, -100]),  # how far from where the connection's last segment ended
    st.sampled_from([1, 100, 1360, 0]),
    st.sampled_from([0x10, 0x10, 0x18, 0x11, 0x04, 0x02]),
    st.sampled_from([b"", b"", b"", b"\1\1\1\1"]),
    st.sampled_from([0, 0, 0, 0, 8, 30]),  # bytes missing at the end
)


@settings(max_examples=200)
@given(st.lists(arrivals, min_size=1, max_size=12), st.booleans())
def test_a_batch_is_what_its_packets_are_one_by_one(
    batch: list[tuple[str, int, int, int, bytes, int]], shut: bool
) -> None:
    """The demultiplexer's runs: neighbours of one connection, with others, options and cut headers between them."""
    together, sequences = stack(shut)
    single, _ = stack(shut)
    ends = list(together._connections.values())
    packets = []
    for target, step, size, flags, ip_options, cut in batch:
        if target == "udp":
            body = serialize_datagram(THEIRS, OURS, 9, 53, bytes(size))
            packets.append(Ipv4Header(THEIRS, OURS, 17, 20 + len(body)).serialize() + body)
            continue
        number = 0 if target == "active" else 1
        ports = (5, 5) if target == "nobody" else (ends[number].remote[1], ends[number].local[1])
        sequences[number] += step
        header = TcpHeader(*ports, sequences[number] % 2**32, ends[number].sender.next % 2**32, flags, 999)
        header.options.timestamp_value = 7
        packets.append(packet(header, bytes([len(packets)]) * size, ip_options, min(cut, size + 32)))
        sequences[number] += size
    together.receive_packets(packets, 2.0)
    for each in packets:
        single.receive_packets([each], 2.0)
    assert together.packets_to_send(2.0) == single.packets_to_send(2.0)
    assert together.drops == single.drops
    assert together.next_timeout() == single.next_timeout()
    for one, other in zip(together._connections.values(), single._connections.values(), strict=True):
        assert (one.state, one.receiver.next) == (other.state, other.receiver.next)
        assert not one.receiver.buffered or one.receive(1 << 20, 2.0) == other.receive(1 << 20, 2.0)
