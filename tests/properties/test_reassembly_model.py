"""`ReassemblyQueue` against a model that knows nothing but one byte per offset."""

from __future__ import annotations

from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard._netstack.reassembly import ReassemblyQueue


class ByteModel:
    """A dict of offset to byte; the first byte to arrive stays."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def new_bytes(self, start: int, data: bytes) -> int:
        return sum(offset not in self.held for offset in range(start, start + len(data)))

    def insert(self, start: int, data: bytes) -> None:
        for offset, byte in enumerate(data, start):
            self.held.setdefault(offset, byte)

    def take_from(self, next_offset: int) -> bytes:
        taken = bytearray()
        for offset in count(next_offset):
            if offset not in self.held:
                break
            taken.append(self.held.pop(offset))
        if taken or any(offset < next_offset for offset in self.held):
            self.held = {offset: byte for offset, byte in self.held.items() if offset >= next_offset}
        return bytes(taken)

    def ranges(self) -> set[tuple[int, int]]:
        starts = [offset for offset in self.held if offset - 1 not in self.held]
        ends = [offset + 1 for offset in self.held if offset + 1 not in self.held]
        return set(zip(sorted(starts), sorted(ends), strict=True))

    def first_held(self, start: int, end: int) -> tuple[int, int] | None:
        held = [offset for offset in range(start, end) if offset in self.held]
        if not held:
            return None
        return held[0], next(offset for offset in count(held[0]) if offset not in self.held or offset == end)

    def touches(self, start: int, data: bytes) -> bool:
        return any(offset in self.held for offset in range(start - 1, start + len(data) + 1))


INSERTS = st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=12))
TAKES = st.integers(0, 140)


@given(st.lists(INSERTS | TAKES, max_size=60), st.integers(1, 100), st.integers(1, 6))
def test_queue_equals_one_byte_per_offset(
    steps: list[tuple[int, bytes] | int], max_bytes: int, max_ranges: int
) -> None:
    """With limits low enough to refuse data and to join pieces in most runs."""
    queue, model = ReassemblyQueue(max_bytes, max_ranges), ByteModel()
    for step in steps:
        if isinstance(step, int):
            pieces = queue.take_from(step)
            assert all(pieces)
            assert b"".join(pieces) == model.take_from(step)
        else:
            new = model.new_bytes(*step)
            stretch = step[0], step[0] + len(step[1])
            assert queue.first_held(*stretch) == model.first_held(*stretch)
            full = len(model.held) + new > max_bytes
            no_range_left = len(model.ranges()) >= max_ranges and not model.touches(*step)
            accepted = queue.insert(*step)
            assert accepted == (0 if full or no_range_left else new)
            if accepted:
                model.insert(*step)
                assert queue.ranges(1)[0][0] <= step[0] + len(step[1])
        assert queue.bytes_held == len(model.held) <= max_bytes
        reported = queue.ranges(1000)
        assert len(reported) == len(set(reported)) <= max_ranges
        assert set(reported) == model.ranges()
        assert bool(queue) == bool(model.held)


@given(st.data(), st.binary(min_size=1, max_size=300))
def test_any_order_of_any_cut_gives_the_stream_back(data: st.DataObject, stream: bytes) -> None:
    """Segments of one stream in any order, taken whenever the next byte is there."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    segments = list(pairwise(cuts))
    copies = data.draw(st.lists(st.sampled_from(segments), max_size=5))
    queue, received = ReassemblyQueue(1000), b""
    for start, end in data.draw(st.permutations(segments + copies)):
        if end > len(received):
            queue.insert(start, stream[start:end])
        received += b"".join(queue.take_from(len(received)))
    assert received == stream
    assert queue.bytes_held == 0
