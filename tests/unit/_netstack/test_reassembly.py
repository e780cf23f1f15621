"""Out-of-order TCP data (RFC 9293 3.10.7.4, RFC 2018 section 4)."""

from __future__ import annotations

from functools import partial

import pytest

from httpx_wireguard._netstack.reassembly import ReassemblyQueue
from tests.measures import bytecodes


def queue_with(*segments: tuple[int, bytes], max_bytes: int = 65536, max_ranges: int = 1024) -> ReassemblyQueue:
    queue = ReassemblyQueue(max_bytes, max_ranges)
    for start, data in segments:
        queue.insert(start, data)
    return queue


def test_data_behind_a_hole_waits() -> None:
    queue = queue_with((10, b"later"))
    assert queue.take_from(0) == []
    assert queue.bytes_held == 5
    assert queue


def test_data_comes_out_when_the_hole_is_filled() -> None:
    queue = queue_with((10, b"later"))
    assert queue.take_from(10) == [b"later"]
    assert queue.bytes_held == 0
    assert not queue
    assert queue.ranges() == []


def test_only_the_contiguous_data_comes_out() -> None:
    queue = queue_with((10, b"abc"), (13, b"def"), (20, b"xyz"))
    assert b"".join(queue.take_from(10)) == b"abcdef"
    assert queue.ranges() == [(20, 23)]


def test_a_take_from_the_middle_forgets_what_lies_below() -> None:
    """The segment that filled the hole may overlap what is held."""
    queue = queue_with((4, b"old"), (10, b"abc"), (13, b"def"))
    assert queue.take_from(14) == [b"ef"]
    assert queue.bytes_held == 0


def test_a_take_at_the_end_of_what_is_held_forgets_it() -> None:
    queue = queue_with((10, b"abc"), (20, b"xyz"))
    assert queue.take_from(13) == []
    assert queue.ranges() == [(20, 23)]
    assert queue.bytes_held == 3


def test_a_take_past_everything_forgets_everything() -> None:
    queue = queue_with((10, b"abc"), (20, b"xyz"))
    assert queue.take_from(100) == []
    assert not queue
    assert queue.bytes_held == 0


def test_insert_counts_new_bytes_only() -> None:
    queue = queue_with((10, b"abc"))
    assert queue.insert(10, b"abc") == 0
    assert queue.insert(8, b"..abcd") == 3
    assert queue.insert(30, b"") == 0
    assert queue.bytes_held == 6


def test_the_bytes_that_came_first_win() -> None:
    """No one may change data that was acknowledged with SACK already."""
    queue = queue_with((12, b"FIRST"), (20, b"ALSO"), (10, b"................"))
    assert b"".join(queue.take_from(10)) == b"..FIRST...ALSO.."


def test_a_segment_inside_a_range_changes_nothing() -> None:
    queue = queue_with((10, b"abcdef"), (12, b"XX"))
    assert b"".join(queue.take_from(10)) == b"abcdef"


def test_touching_ranges_become_one() -> None:
    queue = queue_with((10, b"ab"), (14, b"ef"), (12, b"cd"))
    assert queue.ranges() == [(10, 16)]
    assert b"".join(queue.take_from(10)) == b"abcdef"


def test_one_segment_closes_many_holes() -> None:
    queue = queue_with(*((n, b"x") for n in range(0, 20, 2)), (30, b"y"))
    assert queue.insert(1, b"-" * 18) == 9
    assert queue.ranges() == [(0, 19), (30, 31)]
    assert b"".join(queue.take_from(0)) == b"x-" * 9 + b"x"


def test_data_that_arrives_backwards_comes_out_forwards() -> None:
    queue = queue_with((14, b"ef"), (12, b"cd"), (10, b"ab"))
    assert queue.take_from(10) == [b"ab", b"cd", b"ef"]


def test_the_range_of_the_latest_segment_is_reported_first() -> None:
    """RFC 2018 section 4: the first block contains the segment that triggered the acknowledgment."""
    queue = queue_with((10, b"a"), (20, b"b"), (30, b"c"))
    assert queue.ranges() == [(30, 31), (20, 21), (10, 11)]
    queue.insert(21, b"b")
    assert queue.ranges() == [(20, 22), (30, 31), (10, 11)]


def test_a_duplicate_is_reported_first_too() -> None:
    """RFC 2018 section 4: also when the segment brought nothing new."""
    queue = queue_with((10, b"aaa"), (20, b"b"))
    queue.insert(11, b"a")
    assert queue.ranges() == [(10, 13), (20, 21)]


def test_a_segment_appended_to_the_last_range_is_reported_first() -> None:
    queue = queue_with((30, b"c"), (10, b"a"), (31, b"d"))
    assert queue.ranges() == [(30, 32), (10, 11)]


def test_only_as_many_ranges_are_reported_as_asked_for() -> None:
    queue = queue_with(*((n, b"x") for n in range(0, 20, 2)))
    assert queue.ranges(2) == [(18, 19), (16, 17)]
    assert len(queue.ranges()) == 4


def test_more_bytes_than_the_limit_are_refused() -> None:
    queue = queue_with((10, b"12345678"), max_bytes=10)
    assert queue.insert(18, b"abc") == 0  # behind the last range
    assert queue.insert(30, b"abc") == 0  # on its own
    assert queue.insert(7, b"abc") == 0  # touching
    assert queue.ranges() == [(10, 18)]
    assert queue.insert(18, b"ab") == 2


def test_overlapping_bytes_do_not_count_against_the_limit() -> None:
    queue = queue_with((10, b"12345678"), max_bytes=10)
    assert queue.insert(10, b"12345678ab") == 2


def test_a_raised_limit_takes_more() -> None:
    """The receive window grows while data waits."""
    queue = queue_with((10, b"12345678"), max_bytes=8)
    assert queue.insert(18, b"9") == 0
    queue.set_max_bytes(9)
    assert queue.insert(18, b"9") == 1


def test_more_ranges_than_the_limit_are_refused() -> None:
    """CVE-2018-5390: a peer may not make us keep endless crumbs."""
    queue = queue_with((10, b"a"), (20, b"b"), max_ranges=2)
    assert queue.insert(30, b"c") == 0
    assert queue.insert(21, b"b") == 1  # extends a range: no new one
    assert queue.insert(11, b"-" * 9) == 9  # closes the hole
    assert queue.insert(30, b"c") == 1


@pytest.mark.parametrize("max_bytes, ranges", [(1000, 64), (1 << 17, 256), (1 << 20, 2048), (16 << 20, 2048)])
def test_a_small_buffer_holds_few_ranges(max_bytes: int, ranges: int) -> None:
    """A range costs some 300 bytes beside its data: one for each 512 bytes of buffer."""
    queue = ReassemblyQueue(max_bytes)
    for number in range(3000):
        queue.insert(10 * number, b"x")
    assert len(queue.ranges(9999)) == ranges


def test_a_buffer_that_became_small_does_not_join_its_pieces_all_the_time() -> None:
    """The work for one segment must not grow with the holes of better times."""
    queue = ReassemblyQueue(1 << 20)
    for number in range(1, 2000):
        queue.insert(10 * number, b"x")
    queue.set_max_bytes(20_000)
    work = [bytecodes(partial(queue.insert, 10 * number + 1, b"y")) for number in range(1, 500)]
    assert sorted(work)[400] < 1000


def test_many_small_segments_are_joined() -> None:
    """CVE-2018-5390: 60,000 one-byte segments must not stay 60,000 objects."""
    queue = ReassemblyQueue(65536)
    data = bytes(n % 251 for n in range(60000))
    for n in range(60000):
        queue.insert(1000 + n, data[n : n + 1])
    pieces = queue.take_from(1000)
    assert b"".join(pieces) == data
    assert len(pieces) < 5000


def test_small_segments_that_arrive_backwards_are_joined_too() -> None:
    queue = ReassemblyQueue(65536)
    data = bytes(n % 251 for n in range(20000))
    for n in reversed(range(20000)):
        queue.insert(n, data[n : n + 1])
    pieces = queue.take_from(0)
    assert b"".join(pieces) == data
    assert len(pieces) < 5000


def test_full_segments_are_handed_out_as_they_came() -> None:
    """Joining costs a copy, which honest traffic never pays."""
    queue = ReassemblyQueue(4 << 20)
    segments = [bytes([n % 256]) * 1380 for n in range(3000)]
    for _ in range(3):  # one loss after the other
        for n, segment in enumerate(segments):
            queue.insert(n * 1380, segment)
        assert all(piece is segment for piece, segment in zip(queue.take_from(0), segments, strict=True))


def test_joined_pieces_lose_nothing() -> None:
    """More than fits into one joined piece."""
    queue = ReassemblyQueue(200_000)
    stream = bytes(n % 251 for n in range(200_000))
    for start in range(0, len(stream), 40):
        queue.insert(start, stream[start : start + 40])
    pieces = queue.take_from(0)
    assert b"".join(pieces) == stream
    assert max(map(len, pieces)) == 65536


def test_pieces_are_never_empty() -> None:
    """Also where a longer copy begins with a range that is held."""
    queue = queue_with((10, b"ab"), (10, b"abcd"), (8, b".."))
    assert queue.take_from(8) == [b"..", b"ab", b"cd"]


def test_offsets_beyond_32_bits_work() -> None:
    start = 5 * 2**32 - 2
    queue = queue_with((start, b"abcd"), (start + 4, b"ef"))
    assert b"".join(queue.take_from(start + 1)) == b"bcdef"


def test_clear_drops_everything() -> None:
    queue = queue_with((10, b"a"), (20, b"b"))
    queue.clear()
    assert not queue
    assert queue.bytes_held == 0
    assert queue.ranges() == []
    assert queue.insert(10, b"a") == 1
