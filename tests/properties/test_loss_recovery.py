"""Loss recovery over a path with a script of accidents: it ends, and sends what it may, when it may."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._netstack.congestion.cubic import Cubic
from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.pacing import COLD_BURST_SEGMENTS, LATENESS, MINIMUM_BURST_SEGMENTS, Pacer
from tests.lossy_path import Path, Receiver, sender_on

MSS = 1000

LOST: list[float] = []
fates = st.lists(
    st.one_of(
        st.just([0.0]),  # in order
        st.just(LOST),
        st.sampled_from([[0.001], [0.03], [0.2], [2.0]]),  # late
        st.sampled_from([[0.0, 0.0], [0.0, 0.1], [0.4, 0.0]]),  # twice
    ),
    max_size=40,
)
writes = st.lists(
    st.tuples(st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([1, 10, 999, MSS, 1001, 4 * MSS, 20 * MSS])),
    min_size=1,
    max_size=4,
)
receivers = st.builds(
    Receiver,
    sack=st.booleans(),
    reports=st.booleans(),
    timestamps=st.booleans(),
    window=st.sampled_from([700, 3 * MSS, 1 << 20]),
)


class Watch:
    """Looks at a sender each time it has sent."""

    def __init__(self, sack: bool) -> None:
        self.sack = sack
        self.known_lost: set[tuple[int, float]] = set()

    def __call__(self, path: Path) -> None:
        sender, board = path.sender, path.sender.board
        at = sender.unacknowledged
        for one in board.transmissions:
            assert one.start == at < one.end
            assert not (one.sacked and one.lost)
            at = one.end
        assert at == sender.next
        lost = sum(one.end - one.start for one in board.transmissions if one.lost)
        held = sum(one.end - one.start for one in board.transmissions if one.sacked)
        assert (board.lost, board.sacked) == (lost, held)
        if self.sack:
            assert sender.size == sender.next - sender.unacknowledged - lost - held
        assert sender.next <= path.edge
        # a probe of the tail may leave beyond the congestion window, and what was declared lost may not be
        assert sender.size <= max(path.in_flight_before, sender.congestion.window, sender.mss) + sender.mss
        assert sender.retransmit_at is not None or sender.next == sender.unacknowledged
        assert sender.recovering or not board.lost
        self._check_what_is_lost(path)

    def _check_what_is_lost(self, path: Path) -> None:
        """RFC 8985 6.2: nothing that left after the newest delivery. A timeout judges otherwise."""
        sender = path.sender
        if not self.sack or sender.recovery is None or sender.recovery.after_timeout:
            return
        for one in sender.board.transmissions:
            assert not one.lost or one.sent_at <= path.newest


@settings(max_examples=200)
@given(writes, receivers, fates, fates, st.booleans(), st.sampled_from([Reno, Cubic]), st.sampled_from([10, 80]))
def test_whatever_happens_everything_arrives(
    script: list[tuple[float, int]],
    receiver: Receiver,
    there: list[list[float]],
    back: list[list[float]],
    close: bool,
    control: type[Reno] | type[Cubic],
    window: int,
) -> None:
    """No state without a timer while anything is unacknowledged, and no timer that is due for ever."""
    sender = sender_on(control, MSS, receiver.window, receiver.sack)
    sender.congestion.window = window * MSS
    path = Path(sender, receiver, there, back, Watch(receiver.sack))
    for pause, size in script:
        path.wait(pause)
        sender.queue.append(bytes(size))
        path.pump()
    if close:
        sender.close()
    path.run()
    assert receiver.next == sender.end
    assert path.now < 2000.0


@settings(max_examples=80)
@given(receivers, fates, fates, st.integers(100, 999), st.integers(0, 80))
def test_a_path_that_becomes_smaller_delivers_everything_too(
    receiver: Receiver, there: list[list[float]], back: list[list[float]], mss: int, steps: int
) -> None:
    """RFC 1191 6.5, in the middle of whatever is going on."""
    sender = sender_on(Cubic, MSS, receiver.window, receiver.sack)
    path = Path(sender, receiver, there, back, Watch(receiver.sack))
    sender.queue.append(bytes(20 * MSS))
    sender.close()
    path.pump()
    for _ in range(steps):
        path.done or path.step()
    sender.set_mss(mss, path.now)
    path.run()
    assert receiver.next == sender.end


@given(
    st.sampled_from([5_000.0, 1e5, 1e6, 1e8]),
    st.lists(st.tuples(st.floats(0.0, 0.02), st.integers(1, 200_000)), min_size=1, max_size=60),
)
def test_no_interval_sees_more_than_its_pace_and_one_burst(rate: float, wishes: list[tuple[float, int]]) -> None:
    pacer, now = Pacer(MSS), 0.0
    sent: list[tuple[float, int]] = []
    for pause, wanted in wishes:
        now += pause
        allowance, again = pacer.allowance(rate, wanted, MSS, now)
        assert (allowance > 0) == (again is None)
        assert again is None or now < again < inf
        length = min(allowance, wanted)
        pacer.on_sent(length)
        sent.append((now, length))
    burst = max(COLD_BURST_SEGMENTS * MSS, MINIMUM_BURST_SEGMENTS * MSS, rate * LATENESS)
    for first, (begin, _) in enumerate(sent):
        total = 0
        for moment, length in sent[first:]:
            total += length
            assert total <= rate * (moment - begin) + burst + 1 + 1e-3


@given(st.sampled_from([5_000.0, 1e5, 1e6, 1e8]), st.floats(0.0, 0.001))
def test_a_driver_in_time_gets_the_whole_rate(rate: float, late: float) -> None:
    """Asking when the pacer says, or a little later, all of it leaves: over many pieces no rate is lost."""
    pacer, now, total = Pacer(MSS), 0.0, 0
    while now < 0.3 + 20 * MSS / rate:
        allowance, again = pacer.allowance(rate, 1 << 30, MSS, now)
        pacer.on_sent(allowance)
        total += allowance
        if again is not None:
            now = again + late
    assert total >= rate * now - max(rate * LATENESS, 2 * MSS)
