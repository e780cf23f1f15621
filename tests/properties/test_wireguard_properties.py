"""WireGuard's pure parts against simple models, and the device against arbitrary datagrams."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._netstack.segment_writer import SegmentWriter
from httpx_wireguard._wire.trains import Train, train_length
from httpx_wireguard._wireguard.allowed_ips import AllowedIps
from httpx_wireguard._wireguard.constants import (
    MAX_RUN_BYTES,
    MAX_RUN_DATAGRAMS,
    REJECT_AFTER_MESSAGES,
    REPLAY_WINDOW,
    TIMESTAMP_GRAIN,
    TOKEN_BURST,
    TOKENS_PER_SECOND,
)
from httpx_wireguard._wireguard.cookies import TokenBuckets
from httpx_wireguard._wireguard.crypto import hchacha20, xaead_open, xaead_seal
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.messages import CookieReply, Initiation, Response, message_type
from httpx_wireguard._wireguard.replay import ReplayWindow
from httpx_wireguard._wireguard.runs import RunQueue
from httpx_wireguard._wireguard.session import Session
from httpx_wireguard._wireguard.tai64n import StampSource
from tests.wireguard_net import connected, ipv4_packet, split, take_datagrams, two_hosts

KEYS = (b"1" * 32, b"2" * 32)
SOURCE = ("203.0.113.9", 999)


class SetModel:
    """Every counter ever seen, and the rule in the words of the paper."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.highest = -1

    def accept(self, counter: int) -> bool:
        if counter >= REJECT_AFTER_MESSAGES or counter in self.seen or counter <= self.highest - REPLAY_WINDOW:
            return False
        self.seen.add(counter)
        self.highest = max(counter, self.highest)
        return True


counters = st.one_of(
    st.integers(0, 200),
    st.integers(REPLAY_WINDOW - 100, REPLAY_WINDOW + 100),
    st.integers(0, 5 * REPLAY_WINDOW),
    st.integers(REJECT_AFTER_MESSAGES - 100, 2**64 - 1),
)


@given(st.lists(st.tuples(counters, st.integers(1, 300)), max_size=30))
def test_replay_window_equals_a_set(starts: list[tuple[int, int]]) -> None:
    """Runs of counters that begin anywhere, also one over another."""
    window, model = ReplayWindow(), SetModel()
    for start, length in starts:
        for counter in range(start, start + length):
            fresh = window.is_fresh(counter)
            if fresh:
                window.mark(counter)
            assert fresh == model.accept(counter)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 5, 30])), min_size=1, max_size=20),
    st.integers(0, 2),
    st.sets(st.integers(0, 119)),
)
def test_fast_path_of_a_session_equals_the_reference(
    runs: list[tuple[int, int]], start: int, altered: set[int]
) -> None:
    """Any order, duplicates and forgeries, from a counter at zero, at a wrap of the ring, or near the limit."""
    order = [number for begin, length in runs for number in range(begin, min(begin + length, 41))]
    first = (0, REPLAY_WINDOW - 20, REJECT_AFTER_MESSAGES - 20)[start]
    sender = Session(KEYS, 7, 9, True, 0.0)
    sender.sent = first
    buffers, _ = sender.seal_run([bytes([number]) * 16 for number in range(41)], 1420)
    messages = [buffers[2 * number] + buffers[2 * number + 1] for number in order]
    for position in altered & set(range(len(messages))):
        messages[position] = messages[position][:-1] + bytes([messages[position][-1] ^ 1])
    fast, reference = (Session(KEYS[::-1], 9, 7, False, 0.0) for _ in range(2))
    fast_drops: Counter[Drop] = Counter()
    reference_drops: Counter[Drop] = Counter()
    data = memoryview(b"".join(messages))
    opened, consumed = fast.open_run(data, 48, lambda reason: fast_drops.update([reason]))
    expected = [
        plaintext
        for message in messages
        for plaintext in reference.open(memoryview(message), lambda reason: reference_drops.update([reason]))
    ]
    assert (opened, consumed, fast_drops) == (expected, len(data), reference_drops)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network | IPv6Network:
    """Networks that overlap often: few different bits."""
    if draw(st.booleans()):
        bits, prefix = draw(st.integers(0, 7)) << 29 | draw(st.integers(0, 3)), draw(st.integers(0, 32))
        return IPv4Network((IPv4Address(bits), prefix), strict=False)
    bits, prefix = draw(st.integers(0, 7)) << 125 | draw(st.integers(0, 3)), draw(st.integers(0, 128))
    return IPv6Network((IPv6Address(bits), prefix), strict=False)


addresses = st.one_of(
    st.builds(lambda high, low: IPv4Address(high << 29 | low), st.integers(0, 7), st.integers(0, 7)),
    st.builds(lambda high, low: IPv6Address(high << 125 | low), st.integers(0, 7), st.integers(0, 7)),
)


@given(st.lists(networks(), max_size=12), st.lists(addresses, min_size=1, max_size=8))
def test_allowed_ips_equal_a_search_through_all_networks(
    entries: list[IPv4Network | IPv6Network], asked: list[IPv4Address | IPv6Address]
) -> None:
    """The longest network that contains the address; of equal ones the last."""
    table: AllowedIps[int] = AllowedIps()
    for owner, network in enumerate(entries):
        table.add([network], owner)
    for address in asked:
        matches = [(n.prefixlen, owner) for owner, n in enumerate(entries) if address in n]
        assert table.lookup(ip_address(address).packed) == (max(matches)[1] if matches else None)
        assert table.lookup(ip_address(address).packed) == (max(matches)[1] if matches else None)


@given(st.lists(st.lists(st.integers(32, 2000), min_size=1, max_size=70), max_size=8), st.lists(st.booleans()))
def test_runs_carry_every_datagram_once_and_in_order(batches: list[list[int]], far: list[bool]) -> None:
    queue = RunQueue()
    expected: list[tuple[str, bytes]] = []
    for number, sizes in enumerate(batches):
        host = "far" if number < len(far) and far[number] else "near"
        bodies = [bytes([index % 256]) * (size - 16) for index, size in enumerate(sizes)]
        queue.add((host, 1), [part for body in bodies for part in (b"h" * 16, body)], sizes)
        expected += [(host, b"h" * 16 + body) for body in bodies]
    runs = queue.take()
    carried = [(run.endpoint[0], data) for run in runs for data in split(run.buffers, run.segment_size)]
    assert carried == expected
    for run in runs:
        size = sum(map(len, run.buffers))
        assert size <= MAX_RUN_BYTES
        assert size <= run.segment_size * MAX_RUN_DATAGRAMS


plausible = st.builds(
    lambda start, rest: bytes([start, 0, 0, 0]) + rest,
    st.integers(0, 5),
    st.one_of(
        *(st.binary(min_size=size - 4, max_size=size - 4) for size in (32, 64, 92, 148)), st.binary(max_size=200)
    ),
)


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=200), plausible), max_size=5), st.integers(-1, 250))
def test_arbitrary_datagrams_raise_nothing_and_get_no_answer(datagrams: list[bytes], segment_size: int) -> None:
    """Silence to everything unauthenticated, however it is cut."""
    _, client, server = two_hosts(load=1)
    for datagram in datagrams:
        for host in (client, server):
            assert host.device.receive_datagrams(memoryview(datagram), segment_size, SOURCE, 1.0) == []
            assert host.device.datagrams_to_send() == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_altered_genuine_datagrams_raise_nothing_and_deliver_nothing(data: st.DataObject) -> None:
    """A flipped bit anywhere in a message of a live session, with others of the session around it."""
    net, client, server = connected()
    net.send(client, server)
    net.send(server, client)
    message = data.draw(st.sampled_from([sent.data for sent in net.log]))
    position = data.draw(st.integers(0, len(message) * 8 - 1))
    altered = bytearray(message)
    altered[position // 8] ^= 1 << position % 8
    copies = memoryview(bytes(altered) * data.draw(st.integers(1, 3)))
    for host in (client, server):
        assert host.device.receive_datagrams(copies, len(message), SOURCE, net.now) == []
        assert all(peer.endpoint != SOURCE for peer in host.device.peers)


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_arbitrary_plaintext_of_an_authentic_peer_is_harmless(plaintexts: list[bytes]) -> None:
    """The peer is hostile: what it seals need not be IP."""
    net, client, server = connected()
    session = client.peer(server).current
    assert session is not None
    genuine = ipv4_packet("10.0.0.1", "10.0.0.2")
    for plaintext in [*plaintexts, genuine]:
        buffers, _ = session.seal_run([plaintext], 1420)
        packets = net.inject(b"".join(buffers), client.address, server)
        assert all(packet[12:16] == genuine[12:16] for packet in packets)
    assert server.received[-1] == genuine


@given(st.lists(st.integers(20, 1420), min_size=1, max_size=60))
def test_batches_of_any_sizes_arrive_whole(lengths: list[int]) -> None:
    """Sealed in one call, read back as the runs that were sent."""
    net, client, server = connected()
    packets = [ipv4_packet("10.0.0.1", "10.0.0.2", length) for length in lengths]
    client.device.send_packets(client.peer(server), packets, net.now)
    received = []
    for run in client.device.datagrams_to_send():
        data = memoryview(b"".join(run.buffers))
        received += server.device.receive_datagrams(data, run.segment_size, client.address, net.now)
    assert received == packets
    assert take_datagrams(server.device) == []


# Few lengths, sources and beginnings, so that neighbours are often alike; some lie about their length.
INNER = [
    (start + length.to_bytes(2, "big") + bytes(8) + bytes([10, 0, 0, source])).ljust(size, b"\0")
    for start in (b"\x45\x00", b"\x60\x00")
    for length in (60, 48, 20)
    for source in (1, 2)
    for size in (60, 64)
] + [b"", b"E", b"\x45\x00\x00\x13" + bytes(40), b"\x00" * 60, b"\x60\x00" + bytes(46)]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(INNER), max_size=12))
def test_a_batch_of_inner_packets_is_judged_like_each_of_them(plaintexts: list[bytes]) -> None:
    """The fast path compares with the last packet that was accepted; the reference looks at each."""
    _, _, server = two_hosts()
    (peer,), device = server.device.peers, server.device
    packets = device._accept_packets(peer, plaintexts) if plaintexts else []
    counted = Counter(peer.drops)
    expected = [packet for each in plaintexts if (packet := device._accept_packet(peer, each)) is not None]
    assert packets == expected
    assert counted + counted == peer.drops


@given(
    st.sampled_from(["10.0.0.1", "10.0.0.3"]),
    st.sampled_from([4, 5, 9]),
    st.sampled_from([1, 700, 1368]),
    st.sampled_from([1, 1365, 1368]),
    st.integers(0, 15),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 60)), max_size=2),
)
def test_a_train_of_inner_packets_is_judged_like_each_of_them(
    source: str, count: int, size: int, last: int, padding: int, changes: list[tuple[int, int]]
) -> None:
    """One check of the source for all; a packet that differs, be it by its source, is looked at by itself."""
    _, _, server = two_hosts()
    (peer,), device = server.device.peers, server.device
    addresses = IPv4Address(source).packed, IPv4Address("10.0.0.2").packed
    option = bytes.fromhex("0101080a 00000001 00000002")
    payloads = [bytes(size)] * (count - 1) + [bytes(min(last, size))]
    segments = SegmentWriter(*addresses, 80, 40000).run(7, payloads, 1, 0x10, 0x08, 500, option)
    plaintexts = [bytearray(segment + bytes(padding)) for segment in segments]
    for index, at in changes:
        if index < count and at < len(plaintexts[index]):
            plaintexts[index][at] ^= 2
    batch = list(map(bytes, plaintexts))
    expected = [packet for each in batch if (packet := device._accept_packet(peer, each)) is not None]
    counted = Counter(peer.drops)
    accepted = device._accept_packets(peer, batch)
    assert (accepted, counted + counted) == (expected, peer.drops)
    is_train = len(accepted) == count and train_length(accepted) == count
    assert isinstance(accepted, Train) == is_train


def uint32() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@given(
    st.builds(Initiation, uint32(), exactly(108), exactly(16), exactly(16))
    | st.builds(Response, uint32(), uint32(), exactly(48), exactly(16), exactly(16))
    | st.builds(CookieReply, uint32(), exactly(24), exactly(32)),
    st.integers(-1, 1),
)
def test_handshake_messages_survive_the_wire_and_have_one_length(
    message: Initiation | Response | CookieReply, longer: int
) -> None:
    wire = message.serialize()
    assert type(message).parse(wire) == message
    assert message_type(wire) == wire[0]
    if longer:
        with pytest.raises(MalformedPacket):
            message_type((wire + b"\0")[: len(wire) + longer])


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 999_999_999)), max_size=20))
def test_stamps_rise_whatever_the_clock_does(readings: list[tuple[int, int]]) -> None:
    """Paper 5.1: the peer drops one that is not above the last; none is ahead of the clock for longer than it must."""
    stamps, last = StampSource(), bytes(12)
    for seconds, nanoseconds in readings:
        clock = seconds.to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
        stamp = stamps.next(clock)
        assert stamp > last
        assert int.from_bytes(stamp[8:], "big") < 10**9
        assert int.from_bytes(stamp[8:], "big") % TIMESTAMP_GRAIN == 0
        assert stamp <= clock or stamp[:8] in (last[:8], (int.from_bytes(last[:8], "big") + 1).to_bytes(8, "big"))
        last = stamp


hosts = st.sampled_from(["192.0.2.1", "192.0.2.1", "2001:db8::1"])


@given(st.lists(st.tuples(hosts, st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.06, 1.0])), max_size=60))
def test_no_source_gets_more_than_its_tokens(asked: list[tuple[str, float]]) -> None:
    """TOKEN_BURST at once, then TOKENS_PER_SECOND; and nobody who waits long enough is refused."""
    buckets, now = TokenBuckets(), 0.0
    taken: dict[str, list[float]] = {}
    for host, pause in asked:
        now += pause
        before = taken.setdefault(host, [])
        allowed = buckets.take((host, 1), now)
        most = min(
            (
                TOKEN_BURST + (now - start) * TOKENS_PER_SECOND - len(before[index:])
                for index, start in enumerate(before)
            ),
            default=float(TOKEN_BURST),
        )
        assert allowed == (most >= 1.0) or abs(most - 1.0) < 1e-6
        if allowed:
            before.append(now)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(max_size=64), st.binary())
def test_xchacha_opens_what_it_sealed(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> None:
    assert xaead_open(key, nonce, xaead_seal(key, nonce, plaintext, associated), associated) == plaintext
    assert len(hchacha20(key, nonce[:16])) == 32
