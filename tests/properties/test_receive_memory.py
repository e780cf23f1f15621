"""Receivers that share memory, against what must hold whatever arrives, is read, or ends."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from httpx_wireguard._netstack.limits import RECEIVE_FLOOR, ReceiveMemory
from httpx_wireguard._netstack.receiver import ROUNDING, Receiver

LIMIT = 250_000

steps = st.lists(
    st.tuples(
        st.integers(0, 4),  # which connection
        st.sampled_from(["arrive"] * 6 + ["early"] * 2 + ["read"] * 6 + ["read a little", "give back", "end", "leave"]),
        st.integers(1, 120_000),
        st.sampled_from([0.0, 0.01, 0.1, 2.0, 2.0]),  # seconds that pass
    ),
    max_size=60,
)


def opened(memory: ReceiveMemory, now: float, index: int) -> Receiver:
    receiver = Receiver(0, 1000, 1 << 17, memory)
    receiver.open(now)
    receiver.reset_edge()
    receiver.scale = 8
    receiver.start(now, (0.001, 0.05, None, 0.2, 0.05)[index], timestamps=index != 2)
    return receiver


def arrive(receiver: Receiver, offset: int, length: int, now: float) -> None:
    """As far as the window allows, in segments."""
    position = receiver.next + offset
    stop = min(position + length, receiver.right_edge)
    while position < stop:
        size = min(1400, stop - position)
        receiver.on_data(position, bytes(size), now)
        position += size


@settings(max_examples=300)
@given(steps)
def test_memory_is_neither_lost_nor_given_twice_and_no_window_moves_back(
    actions: list[tuple[int, str, int, float]],
) -> None:
    memory, now = ReceiveMemory(LIMIT), 0.0
    receivers = [opened(memory, now, index) for index in range(5)]
    lent = [False] * 5  # gave back what its window promises
    for index, action, number, pause in actions:
        now += pause
        receiver, edge = receivers[index], receivers[index].right_edge
        before = [each._granted for each in receivers]
        if action == "arrive" and not receiver.fin_received:
            arrive(receiver, 0, number, now)
        elif action == "early" and not receiver.fin_received:
            arrive(receiver, 1 + number // 3, number // 2, now)
        elif action in ("read", "read a little") and receiver.buffered:
            receiver.take(1 << 30 if action == "read" else 1 + number % 5000, now)
        elif action == "give back":
            receiver.give_back()
        elif action == "end" and not receiver.fin_received and not receiver.queue:
            receiver.on_fin()
        elif action == "leave":
            receiver.leave()
            receiver, edge = opened(memory, now, index), 0
            receivers[index] = receiver
            lent[index] = False
        receiver.window_field()
        assert receiver.right_edge >= edge
        for which, each in enumerate(receivers):
            held = each.buffered + each.queue.bytes_held
            assert held <= each._granted
            promised = 0 if each.fin_received else each.right_edge - each.next + each.buffered
            if each._granted < before[which] if which != index else action == "give back":
                lent[which] = True
            assert lent[which] or promised <= each._granted
        assert sum(each._granted for each in receivers) + memory.free == LIMIT
        assert memory.free >= -5 * RECEIVE_FLOOR
        assert all(each._size <= each._granted - ROUNDING for each in receivers if not each.fin_received)
