"""Randomness and the wall clock, for the core that has neither."""

from __future__ import annotations

import os
import time

TAI64_EPOCH = 2**62 + 10  # the TAI64N label of 1970-01-01, ten leap seconds in: as WireGuard's own implementations


class SystemEntropy:
    """`os.urandom`, and the system's clock as TAI64N labels (cr.yp.to/libtai/tai64.html)."""

    def random(self, n: int) -> bytes:
        return os.urandom(n)

    def tai64n(self) -> bytes:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return (TAI64_EPOCH + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
