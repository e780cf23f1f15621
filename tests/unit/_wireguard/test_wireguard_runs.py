"""Datagrams merged into runs for segmented sends."""

from __future__ import annotations

from httpx_wireguard._wireguard.runs import DatagramRun, RunQueue

HERE = ("192.0.2.1", 1)
THERE = ("192.0.2.2", 2)


def add(queue: RunQueue, endpoint: tuple[str, int], *sizes: int) -> None:
    buffers = [part for size in sizes for part in (b"h" * 16, b"x" * (size - 16))]
    queue.add(endpoint, buffers, list(sizes))


def shape(runs: list[DatagramRun]) -> list[tuple[str, int, int]]:
    return [(run.endpoint[0], run.segment_size, sum(map(len, run.buffers))) for run in runs]


def test_neighbours_of_equal_size_are_one_run() -> None:
    queue = RunQueue()
    add(queue, HERE, 100, 100)
    add(queue, HERE, 100)
    assert shape(queue.take()) == [("192.0.2.1", 100, 300)]


def test_shorter_datagram_ends_a_run() -> None:
    """UDP_SEGMENT: only the last segment may be shorter."""
    queue = RunQueue()
    add(queue, HERE, 100, 100, 50, 50, 100)
    assert shape(queue.take()) == [("192.0.2.1", 100, 250), ("192.0.2.1", 50, 50), ("192.0.2.1", 100, 100)]


def test_longer_datagram_begins_a_run() -> None:
    queue = RunQueue()
    add(queue, HERE, 100, 120, 120)
    assert shape(queue.take()) == [("192.0.2.1", 100, 100), ("192.0.2.1", 120, 240)]


def test_another_endpoint_begins_a_run() -> None:
    queue = RunQueue()
    add(queue, HERE, 100)
    add(queue, THERE, 100)
    add(queue, HERE, 100)
    assert [run.endpoint for run in queue.take()] == [HERE, THERE, HERE]


def test_another_codepoint_begins_a_run() -> None:
    """The ECN field is one per send."""
    queue = RunQueue()
    for codepoint in (0, 0, 2, 2, 0):
        queue.add(HERE, [b"h" * 16, b"x" * 84], [100], codepoint)
    queue.add_datagram(HERE, b"d" * 100)
    sizes = [(run.ecn, sum(map(len, run.buffers))) for run in queue.take()]
    assert sizes == [(0, 200), (2, 200), (0, 200)]


def test_run_has_at_most_64_datagrams() -> None:
    queue = RunQueue()
    add(queue, HERE, *[100] * 130)
    assert [size for _, _, size in shape(queue.take())] == [6400, 6400, 200]


def test_run_has_at_most_65000_bytes() -> None:
    queue = RunQueue()
    add(queue, HERE, *[1452] * 60)
    assert shape(queue.take()) == [("192.0.2.1", 1452, 44 * 1452), ("192.0.2.1", 1452, 16 * 1452)]


def test_shorter_tail_does_not_overfill_a_run() -> None:
    queue = RunQueue()
    add(queue, HERE, *[1452] * 44, 1300)
    assert [size for _, _, size in shape(queue.take())] == [44 * 1452, 1300]


def test_single_datagrams_merge_too() -> None:
    queue = RunQueue()
    queue.add_datagram(HERE, b"a" * 148)
    queue.add_datagram(HERE, b"b" * 92)
    queue.add_datagram(HERE, b"c" * 92)
    first, second = queue.take()
    assert b"".join(first.buffers) == b"a" * 148 + b"b" * 92
    assert b"".join(second.buffers) == b"c" * 92


def test_taken_runs_are_not_extended() -> None:
    queue = RunQueue()
    add(queue, HERE, 100)
    (first,) = queue.take()
    add(queue, HERE, 100)
    assert shape([first]) == [("192.0.2.1", 100, 100)]
    assert shape(queue.take()) == [("192.0.2.1", 100, 100)]
    assert queue.take() == []
