"""What happens for a packet or a timer does not depend on how many connections and peers there are beside it.

Work is counted in bytecodes, so there is no noise. A few more are allowed: a dictionary may grow while it is watched.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from httpx_wireguard._netstack.tcp import State
from tests.benchmarks.layers import Transfer
from tests.benchmarks.scale import Crowd
from tests.measures import bytecodes

FEW, MANY = 3, 300
IDLE = 5.0  # seconds: the other connections have lent their windows


def transfer_with(count: int) -> Transfer:
    transfer = Transfer(count)
    transfer.now += IDLE
    transfer.readers, transfer.writers = transfer.readers[:1], transfer.writers[:1]
    transfer.run(1 << 16)
    return transfer


def download_beside(count: int) -> int:
    transfer = transfer_with(count)
    return bytecodes(lambda: transfer.run(1 << 18))


def timer_beside(count: int) -> int:
    """One connection retransmits; the others have nothing in flight."""
    transfer = transfer_with(count)
    engine = transfer.server.engine
    transfer.writers[0].send(bytes(1000), transfer.now)
    engine.datagrams_to_send(transfer.now)
    due = engine.stack.next_timeout()
    assert due is not None

    def work() -> None:
        engine.handle_timeout(due)
        engine.datagrams_to_send(due)
        engine.next_timeout()
        engine.take_woken()

    return bytecodes(work)


def unreachable_peer_beside(count: int) -> int:
    """The second time: the first one forgets which connections were opened meanwhile."""
    stack = transfer_with(count).client.engine.stack
    stack.fail_opening(lambda _: None)
    return bytecodes(lambda: stack.fail_opening(lambda _: None))


def idle_moment_beside(count: int) -> int:
    """A driver that looks although nothing happened."""
    transfer = transfer_with(count)
    engine = transfer.client.engine

    def work() -> None:
        engine.handle_timeout(transfer.now)
        engine.datagrams_to_send(transfer.now)
        engine.next_timeout()
        engine.take_woken()

    return bytecodes(work)


def packets_beside_peers(count: int) -> int:
    crowd = Crowd(count)
    return bytecodes(lambda: crowd.exchange(1))


@pytest.mark.parametrize(
    "work_beside",
    [download_beside, timer_beside, unreachable_peer_beside, idle_moment_beside, packets_beside_peers],
)
def test_the_work_does_not_grow_with_the_number_of_others(work_beside: Callable[[int], int]) -> None:
    work_beside(FEW)  # for the interpreters that do not count all of it
    few, many = work_beside(FEW), work_beside(MANY)
    assert many <= 1.02 * few + 20


def test_connections_that_are_open_or_over_no_longer_wait_for_a_peer() -> None:
    transfer = Transfer(5)
    stack = transfer.client.engine.stack
    waiting = transfer.client.connect(4, 81, transfer.now)
    assert waiting.state is State.SYN_SENT
    asked: list[bytes] = []
    for _ in range(2):
        stack.fail_opening(lambda address: asked.append(address))
    assert len(asked) == 2
    waiting.abort(transfer.now)
    stack.fail_opening(lambda address: asked.append(address))
    assert len(asked) == 2
