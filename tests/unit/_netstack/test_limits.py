"""What the connections of a tunnel share: receive memory, challenge acknowledgments, TIME-WAIT."""

from __future__ import annotations

from httpx_wireguard._netstack.limits import (
    CHALLENGE_LIMIT,
    CHALLENGE_PERIOD,
    IDLE_TIME,
    RECEIVE_FLOOR,
    RESERVE,
    TIME_WAIT_LIMIT,
    ChallengeBudget,
    ReceiveMemory,
    SharedLimits,
)
from tests.simnet import SeededEntropy


class Holder:
    """Holds memory until it is asked to give it back."""

    def __init__(self, memory: ReceiveMemory, wanted: int = 0) -> None:
        self._memory = memory
        self.held = memory.claim(wanted)

    def give_back(self) -> None:
        self._memory.release(self.held)
        self.held = 0


def test_a_claim_is_granted_as_far_as_there_is_memory() -> None:
    memory = ReceiveMemory(1000)
    assert [memory.claim(600), memory.claim(600), memory.claim(600)] == [600, 400, 0]
    memory.release(50)
    assert memory.claim(600) == 50


def test_a_floor_is_granted_always_and_counted() -> None:
    """Connections beyond the limit can go on; what they hold is missing for the others."""
    memory = ReceiveMemory(RECEIVE_FLOOR)
    assert [memory.admit(), memory.admit(), memory.claim(1)] == [RECEIVE_FLOOR, RECEIVE_FLOOR, 0]
    memory.release(RECEIVE_FLOOR)
    assert memory.claim(1) == 0


def test_connections_count_as_active_for_a_second_after_a_round_trip() -> None:
    memory = ReceiveMemory()
    one, two, three = Holder(memory), Holder(memory), Holder(memory)
    assert [memory.on_round(one, 0.0), memory.on_round(two, 0.5), memory.on_round(one, 0.75)] == [1, 2, 2]
    assert memory.on_round(three, 0.5 + IDLE_TIME) == 3
    assert memory.on_round(three, 0.75 + IDLE_TIME) == 2
    assert memory.on_round(three, 9.0) == 1
    assert memory.on_round(two, 9.0) == 2


def test_the_connection_that_is_idle_longest_gives_back_first_and_no_more_than_needed() -> None:
    memory = ReceiveMemory(1000)
    holders = [Holder(memory, 300) for _ in range(3)]
    for step, index in enumerate((2, 0, 1)):
        memory.on_round(holders[index], 0.1 * step)
    memory.on_round(Holder(memory), 5.0)
    assert memory.claim(350) == 350
    assert [holder.held for holder in holders] == [300, 300, 0]
    assert memory.claim(350) == 350
    assert [holder.held for holder in holders] == [0, 300, 0]


def test_an_active_connection_is_never_asked_to_give_back() -> None:
    memory = ReceiveMemory(1000)
    holder = Holder(memory, 900)
    memory.on_round(holder, 0.0)
    memory.on_round(Holder(memory), 0.5)
    assert memory.claim(500) == 100
    assert holder.held == 900


def test_a_connection_that_is_active_again_is_not_asked() -> None:
    memory = ReceiveMemory(1000)
    one, two = Holder(memory, 500), Holder(memory, 500)
    memory.on_round(one, 0.0)
    memory.on_round(two, 5.0)
    memory.on_round(one, 5.1)
    assert memory.claim(1) == 0


def test_there_is_no_share_to_keep_to_while_memory_is_ample() -> None:
    memory = ReceiveMemory(8000)
    memory.claim(8000 - int(8000 * RESERVE))
    assert memory.fair_share() is None
    memory.claim(1)
    one, two = Holder(memory), Holder(memory)
    memory.on_round(one, 0.0)
    memory.on_round(two, 0.0)
    assert memory.fair_share() == 4000
    memory.forget(one, 0)
    assert memory.fair_share() == 8000


def test_idle_connections_give_back_before_active_ones_must() -> None:
    memory = ReceiveMemory(8000)
    holder = Holder(memory, 8000)
    memory.on_round(holder, 0.0)
    memory.on_round(Holder(memory), 5.0)
    assert memory.fair_share() is None
    assert holder.held == 0


def test_challenges_are_limited_by_a_number_that_nobody_can_know() -> None:
    """CVE-2016-5696: between half and one and a half of the limit, drawn anew for each period."""
    budget = ChallengeBudget(SeededEntropy(1))
    counts = []
    for period in range(100):
        now = period * CHALLENGE_PERIOD
        counts.append(sum(budget.take(now + 0.5 * CHALLENGE_PERIOD) for _ in range(2 * CHALLENGE_LIMIT)))
    assert len(set(counts)) > 80
    assert min(counts) >= CHALLENGE_LIMIT // 2
    assert max(counts) < CHALLENGE_LIMIT * 3 // 2
    assert abs(sum(counts) / 100 - CHALLENGE_LIMIT) < CHALLENGE_LIMIT / 8


def test_without_entropy_challenges_are_not_limited() -> None:
    budget = ChallengeBudget(None)
    assert all(budget.take(0.0) for _ in range(3 * CHALLENGE_LIMIT))


def test_the_oldest_of_too_many_connections_in_time_wait_ends() -> None:
    shared = SharedLimits()
    ended: list[int] = []

    class Waiting:
        def __init__(self, number: int) -> None:
            self.number = number

        def end_time_wait(self) -> None:
            ended.append(self.number)

    waiting = [Waiting(number) for number in range(TIME_WAIT_LIMIT + 3)]
    for connection in waiting[:TIME_WAIT_LIMIT]:
        shared.enter_time_wait(connection)
    shared.leave_time_wait(waiting[1])
    for connection in waiting[TIME_WAIT_LIMIT:]:
        shared.enter_time_wait(connection)
    assert ended == [0, 2]
