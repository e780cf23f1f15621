"""Time stamps of initiations (paper 5.1): coarse, and strictly increasing whatever the wall clock does."""

from __future__ import annotations

from struct import Struct

from httpx_wireguard._wireguard.constants import TIMESTAMP_GRAIN

_TAI64N = Struct("!QI")
_NANOSECONDS = 10**9


class StampSource:
    """The stamps sent to one peer. The peer drops any that is not above the last it saw."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (0, 0)  # seconds, nanoseconds

    def next(self, wall_clock: bytes) -> bytes:
        """Return the stamp to send at the TAI64N time `wall_clock`, which may have stepped back."""
        seconds, nanoseconds = _TAI64N.unpack(wall_clock)
        stamp = (seconds, nanoseconds - nanoseconds % TIMESTAMP_GRAIN)
        self._last = max(stamp, _after(*self._last))
        return _TAI64N.pack(*self._last)


def _after(seconds: int, nanoseconds: int) -> tuple[int, int]:
    nanoseconds += TIMESTAMP_GRAIN
    return (seconds, nanoseconds) if nanoseconds < _NANOSECONDS else (seconds + 1, 0)
