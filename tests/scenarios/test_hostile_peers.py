"""One host against far sides that mean it ill: what they can make it hold, do and say is bounded (docs/limits.md).

The adversary speaks raw segments from an address of its own; a well-behaved far side is connected to the same host.
After every test that connection still works, and the host's memory is within its bounds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from httpx_wireguard._errors import ConnectionTimedOut
from httpx_wireguard._netstack.limits import CHALLENGE_LIMIT, RECEIVE_FLOOR, ReceiveMemory
from httpx_wireguard._netstack.listener import HALF_OPEN_LIMIT
from httpx_wireguard._netstack.reassembly import MAX_RANGES
from httpx_wireguard._netstack.receiver import INITIAL_BUFFER, ROUNDING
from httpx_wireguard._netstack.sender import INITIAL_SEND_BUFFER
from httpx_wireguard._netstack.tcp import MINIMUM_MSS, State, TcpConnection
from httpx_wireguard._wire.tcp import Flags, TcpOptions
from tests.measures import deep_size
from tests.victim import FOE, MSS, PER_BYTE_GRANTED, WORK, Far, Victim

SYN, ACK, FIN, RST, PSH = Flags.SYN, Flags.ACK, Flags.FIN, Flags.RST, Flags.PSH


@pytest.fixture
def victim() -> Iterator[Victim]:
    host = Victim()
    yield host
    host.check_memory()
    host.check_friend()


def connected(victim: Victim, options: TcpOptions | None = None) -> tuple[Far, TcpConnection]:
    """The adversary, and the victim's end of its connection."""
    far = Far(victim, FOE, 6000, options)
    return far, far.connect()


def in_flight(victim: Victim, far: Far, connection: TcpConnection, length: int) -> int:
    """The victim sends; returns the sequence number from which on nothing is acknowledged."""
    start = far.acknowledged
    connection.send(bytes(length), victim.now)
    victim.pump()
    return start


def received_memory(connection: TcpConnection) -> int:
    receiver = connection.receiver
    return deep_size(receiver, [receiver._memory])


# -- data


@pytest.mark.parametrize("step, length", [(2, 1), (3, 2), (600, 500), (2 * MSS, MSS), (64, 64)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_data_behind_a_hole_costs_no_more_than_the_window_twice(
    victim: Victim, step: int, length: int, shuffled: bool
) -> None:
    """CVE-2018-5390 and its like: neither many holes nor many pieces cost more than their bytes allow."""
    far, connection = connected(victim)
    offsets = list(range(1, INITIAL_BUFFER - length, step))[:6000]
    if shuffled:
        random.Random(1).shuffle(offsets)
    for offset in offsets:
        far.give(ACK, bytes([offset & 255]) * length, offset=offset)
        far.take()
    granted = connection.receiver._granted
    assert granted <= INITIAL_BUFFER + ROUNDING
    assert connection.receiver.queue.bytes_held <= granted
    assert received_memory(connection) < PER_BYTE_GRANTED * granted
    assert len(connection.receiver.queue.ranges(1 << 20)) <= MAX_RANGES
    assert victim.work(far.segment(ACK, far.next + offsets[0] + 1, far.acknowledged, b"z" * 9)) < WORK


def test_tiny_segments_that_nobody_reads_cost_no_more_than_the_window_twice(victim: Victim) -> None:
    far, connection = connected(victim)
    for number in range(12_000):
        far.data(bytes([number & 255, number >> 8]))
        far.take()
    assert received_memory(connection) < PER_BYTE_GRANTED * connection.receiver._granted
    assert connection.receive(1 << 20, victim.now) == b"".join(bytes([n & 255, n >> 8]) for n in range(12_000))


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_were_acknowledged_cannot_be_replaced(victim: Victim, seed: int) -> None:
    """Of overlapping and shifted retransmissions with other contents the first bytes stay, wherever they lay."""
    far, connection = connected(victim)
    rng = random.Random(seed)
    first: dict[int, int] = {}
    for _ in range(600):
        offset, length = rng.randrange(1, 3000), rng.choice([1, 2, 7, 100, 900])
        payload = bytes([rng.randrange(256)]) * length
        far.give(ACK, payload, offset=offset)
        for at, byte in enumerate(payload, offset):
            first.setdefault(at, byte)
        far.take()
    hole = bytes([77]) * 4000
    far.give(ACK, hole)
    expected = bytes(first.get(at, 77) for at in range(4000))
    far.next += connection.receiver.next - 7001
    assert connection.receive(1 << 20, victim.now)[:4000] == expected


def test_data_far_beyond_the_window_and_far_below_it_is_not_kept(victim: Victim) -> None:
    far, connection = connected(victim)
    for offset in (INITIAL_BUFFER + ROUNDING, 1 << 24, 1 << 30, 2**31 - 1, -1000, -(2**31)):
        far.give(ACK, bytes(500), offset=offset)
    assert (connection.receiver.buffered, connection.receiver.queue.bytes_held) == (0, 0)


def test_a_hundred_readers_that_sleep_hold_what_was_granted_and_no_more(victim: Victim) -> None:
    """With 8 MiB for the tunnel: when that is promised, there is a floor for each connection."""
    memory = victim.stack._shared.receive = ReceiveMemory(8 << 20)
    fars = [Far(victim, FOE, 10_000 + number) for number in range(100)]
    for far in fars:
        connection = far.connect()
        while room := connection.receiver.right_edge - connection.receiver.next:
            far.data(bytes(min(room, 1300)))
            far.take()
    held = sum(far.connection.receiver.buffered for far in fars if far.connection is not None)
    assert held <= memory.limit + 100 * RECEIVE_FLOOR
    assert memory.free >= -100 * RECEIVE_FLOOR
    victim.pass_time(2.0)


def test_connections_that_nobody_accepts_are_limited(victim: Victim) -> None:
    """The backlog, and as many as may be half-open; their data stays within their windows."""
    listener = victim.listener
    for number in range(400):
        far = Far(victim, FOE, 10_000 + number)
        far.send(SYN, far.next, 0, options=far.options)
        if answers := far.take():
            far.next, far.acknowledged = far.next + 1, answers[0][0].sequence + 1
            far.data(bytes(1000))
            far.take()
    assert victim.stack.connection_count <= listener.backlog + HALF_OPEN_LIMIT + 1
    while (accepted := listener.accept(victim.now)) is not None:
        accepted.abort(victim.now)
    victim.pump()


# -- SYN floods


def spoofed(rng: random.Random, victim: Victim) -> bytes:
    """A SYN from anywhere."""
    far = Far(victim, bytes([10, 7, rng.randrange(256), rng.randrange(1, 255)]), rng.randrange(1024, 65536))
    return far.segment(SYN, rng.getrandbits(32), 0, options=far.options)


@pytest.mark.parametrize("scale", [None, 7])
def test_a_client_gets_through_a_flood_of_syns(victim: Victim, scale: int | None) -> None:
    """RFC 4987: 2,000 SYNs between each step of its handshake, and its options are in force."""
    rng = random.Random(1)
    options = TcpOptions(mss=1300, window_scale=scale, sack_permitted=True, timestamp_value=1)

    def flood() -> None:
        for _ in range(20):
            victim.give(*(spoofed(rng, victim) for _ in range(100)))
            victim.now += 0.001
        victim.inbox = [each for each in victim.inbox if each[0] == client.address]
        assert victim.stack.connection_count <= HALF_OPEN_LIMIT + 2

    client = Far(victim, FOE, 6001, options)
    flood()
    client.send(SYN, client.next, 0, options=options)
    flood()
    ((answer, _),) = client.take()
    client.next, client.acknowledged = client.next + 1, answer.sequence + 1
    echo, client.clock = answer.options.timestamp_value or 0, 2
    client.send(ACK, client.next, client.acknowledged, echo=echo)
    flood()
    connection = victim.listener.accept(victim.now)
    assert connection is not None
    client.data(b"through")
    assert connection.receive(99, victim.now) == b"through"
    connection.send(bytes(5000), victim.now)
    victim.pump()
    segments = [header for header, text in client.take() if text]
    assert {header.options.timestamp_echo for header in segments} == {2}
    assert min((header.options.timestamp_value or 0) - echo for header in segments) >= 0
    assert connection.sender.sack
    assert connection.sender.mss == 1300 - 12
    assert connection.sender.window == 65535 << (scale or 0)
    assert victim.work(spoofed(rng, victim)) < WORK


def test_a_flood_of_syns_is_forgotten(victim: Victim) -> None:
    rng = random.Random(1)
    victim.give(*(spoofed(rng, victim) for _ in range(1000)))
    victim.pass_time(600.0)
    assert victim.stack.connection_count == 1
    assert victim.listener.half_open == 0


def test_guessed_acknowledgments_make_no_connection(victim: Victim) -> None:
    """While a flood lasts: a cookie has 29 bits of a keyed hash; and the answers are limited in rate."""
    rng = random.Random(1)
    victim.give(*(spoofed(rng, victim) for _ in range(2 * HALF_OPEN_LIMIT)))
    before = victim.stack.connection_count
    far = Far(victim, FOE, 6000)
    for _ in range(3000):
        far.send(ACK, rng.getrandbits(32), rng.getrandbits(32))
    assert victim.stack.connection_count == before
    assert victim.listener.accept(victim.now) is None


# -- blind attacks


def test_resets_and_syns_with_random_numbers_do_nothing_but_draw_a_few_challenges(victim: Victim) -> None:
    """RFC 5961 3.2, 4.2: a window of 128 KiB is hit now and then, the one number that resets is not."""
    far, connection = connected(victim)
    rng = random.Random(1)
    before = victim.sent
    for _ in range(5000):
        far.send(rng.choice([RST, RST | ACK, SYN, SYN | ACK]), rng.getrandbits(32), rng.getrandbits(32))
        victim.now += 0.001
    assert connection.state is State.ESTABLISHED
    assert victim.sent - before <= 5.0 / 0.5 + 1


@pytest.mark.parametrize("flags", [RST, SYN, SYN | ACK, RST | ACK])
def test_resets_and_syns_at_the_edges_of_the_window_are_challenged(victim: Victim, flags: Flags) -> None:
    """RFC 5961 3.2, 4.2: only a reset at exactly RCV.NXT is believed."""
    far, connection = connected(victim)
    edge = connection.receiver.right_edge - connection.receiver.next
    challenges = 0
    for offset in (-1, 1, 2, edge - 1, edge, edge + 1) + (() if flags & RST else (0,)):
        victim.now += 1.0
        far.give(flags, offset=offset)
        challenges += sum(header.flags == ACK for header, _ in far.take())
        assert connection.state is State.ESTABLISHED
    assert challenges >= 4
    far.give(RST)
    assert connection.state is State.CLOSED


def test_data_with_an_impossible_acknowledgment_is_not_taken(victim: Victim) -> None:
    """RFC 5961 5.2: a blind injection has to guess the acknowledgment too, to within the largest window."""
    far, connection = connected(victim)
    window = connection.sender.largest_window
    for acknowledgment in (far.acknowledged + 1, far.acknowledged - window - 1, far.acknowledged + 2**31):
        far.send(ACK, far.next, acknowledgment, b"injected")
    assert not connection.readable
    far.send(ACK, far.next, far.acknowledged - window, b"old, but possible")
    assert connection.readable


def test_challenges_of_all_connections_together_are_limited(victim: Victim) -> None:
    """CVE-2016-5696: an off-path attacker must not learn from how many he got."""
    fars = [Far(victim, FOE, 10_000 + number) for number in range(2 * CHALLENGE_LIMIT)]
    for far in fars:
        far.connect()
    victim.now += 10.0
    before = victim.sent
    for far in fars:
        far.give(SYN)
    assert CHALLENGE_LIMIT // 2 <= victim.sent - before < CHALLENGE_LIMIT * 3 // 2
    victim.now += 1.0


# -- acknowledgments


def test_acknowledgments_of_data_never_sent_change_nothing(victim: Victim) -> None:
    """RFC 9293 3.10.7.4 fifth, RFC 5961 5.2."""
    far, connection = connected(victim)
    start = in_flight(victim, far, connection, 5000)
    before = victim.sent
    for beyond in (5001, 6000, 1 << 20, 2**31 - 1):
        far.send(ACK, far.next, start + beyond)
    assert len(connection.sender.queue) == 5000
    assert victim.sent - before == 1


NONSENSE: dict[str, Callable[[int, random.Random], tuple[tuple[int, int], ...]]] = {
    "beyond SND.NXT": lambda una, rng: ((una + 60_000, una + 60_000 + rng.randrange(1, 9000)),),
    "below SND.UNA": lambda una, rng: ((una - rng.randrange(100, 9000), una - rng.randrange(100)),),
    "inverted": lambda una, rng: ((una + 9000, una + rng.randrange(9000)),),
    "empty": lambda una, rng: ((una + 100, una + 100),) * 3,
    "across everything": lambda una, rng: ((una - 1000, una + 60_000),),
    "single bytes": lambda una, rng: tuple((at, at + 1) for at in (una + rng.randrange(1, 13_000) for _ in range(3))),
    "random": lambda una, rng: tuple((rng.getrandbits(32), rng.getrandbits(32)) for _ in range(3)),
    "duplicates": lambda una, rng: ((una - 500, una - 400), (una + 1368, una + 2736)),  # RFC 2883
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_in_selective_acknowledgments_is_survived(victim: Victim, kind: str) -> None:
    """CVE-2019-11477 and its like: bounded work for each segment, and every byte arrives in the end."""
    far, connection = connected(victim)
    rng = random.Random(1)
    start = in_flight(victim, far, connection, 13_000)
    for _ in range(1500):
        far.send(ACK, far.next, start, blocks=NONSENSE[kind](start, rng))
        victim.now += 0.0001
        victim.inbox.clear()
    blocks = NONSENSE[kind](start, rng)
    assert victim.work(far.segment(ACK, far.next, start, blocks=blocks)) < WORK
    assert len(connection.sender.queue) == 13_000
    far.send(ACK, far.next, start + 13_000)
    assert len(connection.sender.queue) == 0
    far.acknowledged = start + 13_000


def grown_window(victim: Victim, far: Far, connection: TcpConnection, step: int) -> int:
    """The congestion window after a flight was acknowledged in steps."""
    start = in_flight(victim, far, connection, 10 * 1368)
    for acknowledged in range(step, 10 * 1368 + 1, step):
        far.send(ACK, far.next, start + acknowledged)
    far.acknowledged = start + 10 * 1368
    return connection.sender.congestion.window


def test_acknowledgments_in_many_small_steps_do_not_open_the_congestion_window_faster(victim: Victim) -> None:
    """RFC 3465: bytes count, not acknowledgments (Savage et al., 1999)."""
    whole = grown_window(victim, *connected(victim), step=1368)
    far = Far(victim, FOE, 6001)
    assert grown_window(victim, far, far.connect(), step=4) <= whole


def test_acknowledgments_of_what_did_not_arrive_yet_are_bounded_by_what_was_sent(victim: Victim) -> None:
    """Savage et al., 1999: an optimistic receiver gets its data faster, and no more than its window in flight."""
    far, connection = connected(victim)
    for _ in range(100):
        connection.send(bytes(1 << 18), victim.now)
        victim.pump()
        far.take()
        victim.now += 0.00001
        far.give(ACK)
        sender = connection.sender
        assert sender.next - sender.unacknowledged <= sender.window
        assert len(sender.queue) <= max(INITIAL_SEND_BUFFER, sender.buffer_limit)
    connection.abort(victim.now)
    victim.pump()


# -- options, windows, clocks


@pytest.mark.parametrize("seed", range(4))
def test_random_options_are_survived(victim: Victim, seed: int) -> None:
    """RFC 9293 MUST-6, MUST-7: on SYNs and on open connections, of every length."""
    rng = random.Random(seed)
    far, connection = connected(victim)
    for number in range(400):
        plain = Far(victim, FOE, 7000 + number % 50 if number % 2 else far.port)
        options = bytearray(rng.randbytes(rng.randrange(0, 11) * 4))
        if options:
            options[0] = rng.choice([0, 1, 2, 3, 4, 5, 8, 254])
        segment = bytearray(plain.segment(rng.choice([SYN, ACK]), far.next, far.acknowledged, options=TcpOptions()))
        segment[32] = (20 + len(options)) << 2
        packet = bytes(segment[:40]) + bytes(options) + bytes(rng.randrange(3))
        victim.give(packet[:2] + len(packet).to_bytes(2, "big") + packet[4:])
        victim.inbox.clear()
    assert connection.state is State.ESTABLISHED


@pytest.mark.parametrize("offered", [0, 1, 20, 87])
def test_a_tiny_mss_costs_packets_but_not_without_bound(victim: Victim, offered: int) -> None:
    """CVE-2019-11479: segments are cut to the floor and not below."""
    far, connection = connected(victim, TcpOptions(mss=offered, window_scale=14, sack_permitted=True))
    before = victim.sent
    connection.send(bytes(1 << 19), victim.now)
    victim.pump()
    texts = [text for _, text in far.take()]
    assert victim.sent - before <= 10
    assert {len(text) for text in texts} == {MINIMUM_MSS}


def test_a_window_that_flaps_costs_a_segment_each_time_at_the_most(victim: Victim) -> None:
    far, connection = connected(victim)
    connection.send(bytes(400_000), victim.now)
    victim.pump()
    far.take()
    before = victim.sent
    for number in range(500):
        far.window = (0, 1, 3, 0xFFFF)[number % 4]
        far.send(ACK, far.next, far.acknowledged)
        victim.now += 0.0001
    assert victim.sent - before <= 500
    assert connection.state is State.ESTABLISHED
    connection.abort(victim.now)
    victim.pump()


def test_a_closed_window_holds_a_connection_only_as_long_as_its_user_wants(victim: Victim) -> None:
    """RFC 9293 MUST-37, RFC 5482; what the user wrote is bounded by the writer's first buffer."""
    far, connection = connected(victim)
    far.window = 0
    far.give(ACK)
    connection.user_timeout = 300.0
    assert connection.send(bytes(1 << 24), victim.now) == INITIAL_SEND_BUFFER
    victim.pump()
    for _ in range(40):
        victim.pass_time(10.0)
        for _ in far.take():
            far.give(ACK)
    assert isinstance(connection.error, ConnectionTimedOut)


def test_a_closed_socket_does_not_wait_for_a_window_for_ever(victim: Victim) -> None:
    """Nobody would miss its data: Linux' tcp_orphan_retries."""
    far, connection = connected(victim)
    far.window = 0
    far.give(ACK)
    connection.send(bytes(100_000), victim.now)
    connection.close(victim.now)
    victim.pump()
    for _ in range(120):
        victim.pass_time(10.0)
        for _ in far.take():
            far.give(ACK)
    assert connection.state is State.CLOSED


LIES: dict[str, Callable[[int, int], int]] = {
    "the future": lambda clock, number: clock + 1000 + number,
    "zero": lambda clock, number: 0,
    "half around": lambda clock, number: clock - 2**31 + number,
    "the start": lambda clock, number: clock - 100_000,
    "anything": lambda clock, number: hash((clock, number)) % 2**32,
}


@pytest.mark.parametrize("kind", LIES)
def test_timestamps_that_lie_leave_the_timers_sane(victim: Victim, kind: str) -> None:
    """RFC 7323 4.1, 5.3: an echo is a hint."""
    far, connection = connected(victim)
    for number in range(60):
        start = in_flight(victim, far, connection, 3000)
        clock = next(header.options.timestamp_value or 0 for header, text in far.take() if text)
        victim.now += 0.05
        far.clock += 1
        far.send(ACK, far.next, start + 3000, bytes(1368), echo=LIES[kind](clock, number))
        far.next += 1368
        connection.receive(1 << 20, victim.now)
        victim.pump()
        assert 0.2 <= connection.sender.rtt.timeout <= 120.0
        assert 0.0 < (connection.receiver.rtt or 0.0) <= 120.0
    assert connection.receiver._granted <= 1 << 18


def test_timestamps_that_jump_do_not_stop_the_stream_of_their_own_side_only(victim: Victim) -> None:
    """RFC 7323 5.3: what seems old is dropped and acknowledged; a reset, and the clock as it was, get through."""
    far, connection = connected(victim)
    far.clock = 2**31 - 5
    far.data(b"a")
    for clock in (2**31 + 2**30, 5, 1):
        far.clock = clock
        far.give(ACK, b"x")
    assert connection.receive(99, victim.now) == b"ax"


# -- the end of the stream


def test_data_behind_the_end_of_the_stream_is_not_kept(victim: Victim) -> None:
    far, connection = connected(victim)
    far.give(ACK | FIN, b"end", offset=0)
    for offset in (3, 4, 100, 5000):
        far.give(ACK | FIN, bytes(900), offset=offset)
        far.give(ACK, bytes(900), offset=offset)
    assert connection.receive(9999, victim.now) == b"end"
    assert connection.at_eof
    assert connection.receiver.queue.bytes_held == 0


def test_the_end_of_the_stream_does_not_move(victim: Victim) -> None:
    """The first FIN counts, also when it came before its data."""
    far, connection = connected(victim)
    far.give(ACK | FIN, b"three", offset=10)
    for offset in (0, 5, 12, 20, 4000):
        far.give(ACK | FIN, b"", offset=offset)
    assert not connection.at_eof
    far.give(ACK, b"0123456789")
    assert connection.receive(99, victim.now) == b"0123456789three"
    assert connection.at_eof


def test_far_sides_that_never_close_their_half_are_let_go(victim: Victim) -> None:
    """A socket that was closed waits a minute in FIN-WAIT-2; data meanwhile is answered by a reset."""
    pairs = [(far := Far(victim, FOE, 10_000 + number), far.connect()) for number in range(50)]
    for far, connection in pairs:
        connection.close(victim.now)
        victim.pump()
        far.take()
        far.acknowledged += 1
        far.give(ACK)
        assert connection.state is State.FIN_WAIT_2
    for far, _ in pairs[:25]:
        far.data(b"still talking")
        assert [header.flags for header, _ in far.take()] == [RST | ACK]
    victim.pass_time(61.0)
    assert victim.stack.connection_count == 1


def test_far_sides_that_vanish_at_any_moment_are_let_go(victim: Victim) -> None:
    """Nothing is left of a connection that its user closed, whatever state the far side left it in."""
    rng = random.Random(1)
    for number in range(60):
        far = Far(victim, FOE, 10_000 + number)
        connection = far.connect()
        if rng.random() < 0.5:
            far.data(bytes(rng.randrange(1, 3000)))
        if rng.random() < 0.5:
            connection.send(bytes(rng.randrange(1, 30_000)), victim.now)
        if rng.random() < 0.5:
            far.give(ACK | FIN)
        if rng.random() < 0.3:
            connection.receive(1 << 20, victim.now)
        connection.close(victim.now)
        victim.pump()
    victim.pass_time(2000.0)
    assert victim.stack.connection_count == 1
    assert victim.granted == victim.connection.receiver._granted
