"""Datagrams on their way to the UDP socket, merged into runs that one segmented send can take."""

from __future__ import annotations

from typing import Any, NamedTuple

from httpx_wireguard._wire.ecn import NOT_ECT
from httpx_wireguard._wireguard.constants import MAX_RUN_BYTES, MAX_RUN_DATAGRAMS

SocketAddress = tuple[Any, ...]  # whatever the socket's recvmsg returns and sendto takes


class DatagramRun(NamedTuple):
    """Datagrams of one size and one ECN codepoint to one endpoint; only the last may be shorter."""

    endpoint: SocketAddress
    segment_size: int  # bytes of every datagram but the last
    buffers: list[bytes]  # concatenated, they are the datagrams
    ecn: int  # codepoint of the outer IP header


class RunQueue:
    """Collects datagrams in order and merges equal-sized neighbours to one endpoint."""

    __slots__ = ("_bytes", "_room", "runs")

    def __init__(self) -> None:
        self.runs: list[DatagramRun] = []
        self._room = 0  # datagrams that the last run still takes
        self._bytes = 0  # bytes in the last run

    def add(self, endpoint: SocketAddress, buffers: list[bytes], sizes: list[int], ecn: int = NOT_ECT) -> None:
        """Append datagrams: `sizes[i]` bytes in `buffers[2 * i]` and `buffers[2 * i + 1]`."""
        start, count = 0, len(sizes)
        while start < count:
            size = sizes[start]
            room = self._room_for(endpoint, size, ecn)
            end = start + 1
            limit = min(count, start + room)
            while end < limit and sizes[end] == size:
                end += 1
            self._extend(buffers[2 * start : 2 * end], size, end - start)
            start = end

    def add_datagram(self, endpoint: SocketAddress, datagram: bytes) -> None:
        self._room_for(endpoint, len(datagram), NOT_ECT)
        self._extend([datagram], len(datagram), 1)

    def take(self) -> list[DatagramRun]:
        """Return and forget all runs."""
        runs = self.runs
        self.runs = []
        self._room = 0
        return runs

    def _extend(self, buffers: list[bytes], size: int, count: int) -> None:
        run = self.runs[-1]
        run.buffers.extend(buffers)
        self._bytes += size * count
        self._room = self._room - count if size == run.segment_size else 0

    def _room_for(self, endpoint: SocketAddress, size: int, ecn: int) -> int:
        """Return how many datagrams of `size` the last run takes; begins a new run if it takes none."""
        if self._room:
            run = self.runs[-1]
            fits = size <= run.segment_size and self._bytes + size <= MAX_RUN_BYTES
            if fits and run.endpoint == endpoint and run.ecn == ecn:
                return min(self._room, (MAX_RUN_BYTES - self._bytes) // size) if size == run.segment_size else 1
        self.runs.append(DatagramRun(endpoint, size, [], ecn))
        self._room = MAX_RUN_DATAGRAMS
        self._bytes = 0
        return min(MAX_RUN_DATAGRAMS, max(1, MAX_RUN_BYTES // size))
