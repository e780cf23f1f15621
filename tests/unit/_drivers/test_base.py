"""How much a driver takes in before it lets its reader have it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from httpx_wireguard._drivers.base import BULK, READ_AHEAD, READS_PER_STEP, BaseDriver
from httpx_wireguard._errors import WireGuardError


class Socket:
    """Gives reads of these sizes, then nothing."""

    holds = has_errors = False

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def receive(self, in_stream: bool) -> tuple[memoryview, int, tuple[Any, ...], int] | None:
        return (memoryview(bytes(self.sizes.pop(0))), 1452, ("192.0.2.1", 1), 0) if self.sizes else None


def holding(read_ahead: int) -> int:
    """The capacity of a socket of which so many bytes are read ahead."""
    return round(read_ahead / READ_AHEAD)


class Engine:
    def __init__(self, capacity: int) -> None:
        self.stack = SimpleNamespace(socket_capacity=capacity)
        self.received: list[int] = []

    def receive_datagrams(self, data: memoryview, *_: object, ecn: int) -> None:
        self.received.append(len(data))

    def take_woken(self) -> Iterator[Any]:
        return iter(())


class Driver(BaseDriver):
    def start(self) -> None: ...
    def pump(self) -> None: ...
    def close(self, error: WireGuardError) -> None: ...
    def close_soon(self) -> None: ...
    def _close_sockets(self) -> None: ...


@pytest.mark.parametrize(
    ("sizes", "taken", "drained"),
    [
        ([100, 100], 1, False),
        ([BULK, BULK, BULK, BULK], 3, False),
        ([2 * BULK, BULK, BULK], 2, False),
        ([BULK, 100, BULK], 2, False),
        ([BULK], 1, True),
        ([], 0, True),
    ],
)
def test_behind_a_full_read_others_are_taken_before_the_reader_gets_it(
    sizes: list[int], taken: int, drained: bool
) -> None:
    engine: Any = Engine(holding(3 * BULK))
    sockets: Any = [Socket(list(sizes))]
    driver = Driver(engine, sockets, lambda peer: None)
    assert driver._receive_until(lambda: bool(engine.received)) is drained
    assert engine.received == sizes[:taken]


def test_a_small_socket_is_not_read_ahead_for_its_window_is_soon_used_up() -> None:
    engine: Any = Engine(holding(BULK))
    sockets: Any = [Socket([BULK, BULK])]
    assert not Driver(engine, sockets, lambda peer: None)._receive_until(lambda: bool(engine.received))
    assert engine.received == [BULK]


def test_behind_a_lone_datagram_there_is_nothing_that_a_poll_would_not_tell() -> None:
    engine: Any = Engine(holding(BULK))
    sockets: Any = [Socket([100, 100])]
    assert Driver(engine, sockets, lambda peer: None)._receive_until(lambda: False)
    assert engine.received == [100]


def test_a_driver_whose_reader_is_not_served_reads_up_to_a_limit() -> None:
    engine: Any = Engine(holding(BULK))
    sockets: Any = [Socket([BULK] * 20)]
    assert not Driver(engine, sockets, lambda peer: None)._receive_until(lambda: False)
    assert len(engine.received) == READS_PER_STEP
