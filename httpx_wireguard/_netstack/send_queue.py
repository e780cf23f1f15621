"""Bytes that the application has written and the far side has not acknowledged."""

from __future__ import annotations

from bisect import bisect_right

from httpx_wireguard._wire import Buffer

_MERGE_BELOW = 16384  # bytes; ours: smaller writes are joined, so that a run of tiny ones stays cheap to slice


class SendQueue:
    """A window of bytes addressed by sequence number (unwrapped, so it never goes back to 0).

    Written at `end`, sliced anywhere between `start` and `end`, released from `start`.
    """

    __slots__ = ("_chunks", "_starts", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self._chunks: list[bytes] = []
        self._starts: list[int] = []

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, written: Buffer) -> None:
        """Take the bytes as they are now."""
        data = _immutable(written)
        if not data:
            return
        if self._chunks and len(self._chunks[-1]) + len(data) <= _MERGE_BELOW:
            self._chunks[-1] += data
        else:
            self._chunks.append(data)
            self._starts.append(self.end)
        self.end += len(data)

    def slice(self, start: int, length: int) -> bytes:
        """`length` bytes from sequence number `start`; fewer at the end of the queue."""
        index = bisect_right(self._starts, start) - 1
        offset = start - self._starts[index]
        piece = self._chunks[index][offset : offset + length]
        while len(piece) < length and index + 1 < len(self._chunks):
            index += 1
            piece += self._chunks[index][: length - len(piece)]
        return piece

    def slices(self, start: int, length: int, step: int) -> list[bytes]:
        """The bytes from `start` for `length`, cut every `step` bytes: the payloads of a run of segments."""
        pieces: list[bytes] = []
        stop = min(start + length, self.end)
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            chunk, offset = self._chunks[index], start - self._starts[index]
            whole = min(len(chunk) - offset, stop - start) // step * step  # what needs no joining
            pieces += [chunk[at : at + step] for at in range(offset, offset + whole, step)]
            start += whole
            if start < stop:
                pieces.append(self.slice(start, min(step, stop - start)))
                start += step
                index = bisect_right(self._starts, start) - 1
        return pieces

    def release(self, upto: int) -> None:
        """Forget the bytes before sequence number `upto`."""
        self.start = max(self.start, min(upto, self.end))
        done = bisect_right(self._starts, self.start) - 1
        if self.start == self.end:
            done = len(self._chunks)
        if done > 0:
            del self._chunks[:done], self._starts[:done]


def _immutable(data: Buffer) -> bytes:
    """A copy, unless nobody can change these bytes: a view of all of a `bytes` is that object."""
    if isinstance(data, memoryview):
        whole = data.obj
        if type(whole) is bytes and data.c_contiguous and data.nbytes == len(whole):
            return whole
    return bytes(data)
