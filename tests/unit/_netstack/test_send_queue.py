"""Bytes that wait for their acknowledgment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from httpx_wireguard._netstack.send_queue import SendQueue


def queue_of(*writes: bytes | bytearray | memoryview, start: int = 1000) -> SendQueue:
    queue = SendQueue(start)
    for data in writes:
        queue.append(data)
    return queue


def test_a_new_queue_is_empty_where_it_starts() -> None:
    queue = SendQueue(7)
    assert (queue.start, queue.end, len(queue)) == (7, 7, 0)


def test_written_bytes_are_addressed_by_sequence_number() -> None:
    queue = queue_of(b"hello ", b"world")
    assert len(queue) == 11
    assert queue.slice(1000, 5) == b"hello"
    assert queue.slice(1004, 4) == b"o wo"


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_a_buffer_is_taken_as_it_is_when_it_is_written(
    view: Callable[[bytearray], bytes | bytearray | memoryview],
) -> None:
    buffer = bytearray(b"now")
    queue = queue_of(view(buffer))
    buffer[:] = b"new"
    assert queue.slice(1000, 3) == b"now"


def test_bytes_are_not_copied_and_a_part_of_them_is_that_part() -> None:
    data = bytes(range(100))
    assert queue_of(memoryview(data).cast("B")).slices(1000, 100, 100)[0] is data
    assert queue_of(memoryview(data)[1:]).slice(1000, 100) == data[1:]
    assert queue_of(memoryview(data)[::-1]).slice(1000, 100) == data[::-1]


def test_a_slice_beyond_the_end_is_cut() -> None:
    assert queue_of(b"abc").slice(1001, 10) == b"bc"


def test_a_slice_may_span_many_writes() -> None:
    queue = queue_of(b"a" * 20_000, b"b" * 20_000, b"c" * 20_000)
    assert queue.slice(1000 + 19_999, 20_002) == b"a" + b"b" * 20_000 + b"c"


def test_an_empty_write_changes_nothing() -> None:
    queue = queue_of(b"abc", b"")
    assert queue.end == 1003
    assert queue.slices(1000, 3, 2) == [b"ab", b"c"]


def test_slices_are_full_segments_and_one_rest() -> None:
    assert queue_of(b"abcdefgh").slices(1000, 8, 3) == [b"abc", b"def", b"gh"]


def test_slices_join_what_two_writes_brought() -> None:
    """A segment is as full as it can be, wherever the writes ended (RFC 9293 3.7)."""
    queue = queue_of(b"a" * 20_000, b"b" * 20_000)
    pieces = queue.slices(1000, 40_000, 1500)
    assert [len(piece) for piece in pieces] == [1500] * 26 + [1000]
    assert b"".join(pieces) == b"a" * 20_000 + b"b" * 20_000


def test_slices_stop_at_the_end_of_the_queue() -> None:
    assert queue_of(b"abc").slices(1001, 100, 10) == [b"bc"]


def test_released_bytes_are_gone_and_the_rest_keeps_its_numbers() -> None:
    queue = queue_of(b"a" * 20_000, b"b" * 20_000)
    queue.release(1000 + 20_001)
    assert (queue.start, len(queue)) == (21_001, 19_999)
    assert queue.slice(21_001, 2) == b"bb"


def test_release_never_goes_back_nor_beyond_the_end() -> None:
    queue = queue_of(b"abc")
    queue.release(1002)
    queue.release(1001)
    assert queue.start == 1002
    queue.release(9999)
    assert (queue.start, queue.end) == (1003, 1003)


def test_writing_goes_on_after_everything_was_released() -> None:
    queue = queue_of(b"abc")
    queue.release(1003)
    queue.append(b"def")
    assert queue.slice(1003, 3) == b"def"


def test_small_writes_after_a_partial_release_keep_their_numbers() -> None:
    queue = queue_of(b"abc")
    queue.release(1002)
    queue.append(b"def")
    assert queue.slices(1002, 4, 4) == [b"cdef"]
