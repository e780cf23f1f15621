"""Where randomness and wall-clock time enter the protocol."""

from __future__ import annotations

from typing import Protocol


class Entropy(Protocol):
    """Source of randomness and time stamps; a test passes a seeded one."""

    def random(self, n: int) -> bytes:
        """Return `n` unpredictable bytes."""

    def tai64n(self) -> bytes:
        """Return the wall-clock time as TAI64N: 8 bytes of seconds, 4 bytes of nanoseconds, big-endian.

        May step back; `Device` never sends a smaller stamp than before.
        """
