"""Which counters a session has already received."""

from __future__ import annotations

from httpx_wireguard._wireguard.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW


class ReplayWindow:
    """A sliding window over received counters, on RFC 6479's ring that is never shifted.

    One byte per counter instead of one bit: a run of consecutive counters is then one slice assignment, and
    8 KiB a session is little. Nothing here knows whether a counter is authentic: mark only after authentication.
    """

    __slots__ = ("_seen", "next")

    def __init__(self) -> None:
        self._seen = bytearray(REPLAY_WINDOW)  # at counter % REPLAY_WINDOW
        self.next = 0  # one past the highest counter marked

    def is_ahead(self, counter: int) -> bool:
        """Return whether `counter`, and any that follow it in one batch, are fresh because nothing so high was marked.

        A batch has at most 2^16 messages (one UDP read), so it cannot cross the limit from farther away.
        """
        return self.next <= counter < REJECT_AFTER_MESSAGES - 2**16

    def is_fresh(self, counter: int) -> bool:
        """Return whether `counter` is inside the limits of a session, not too old, and not yet marked."""
        if counter >= self.next:
            return counter < REJECT_AFTER_MESSAGES
        return counter >= self.next - REPLAY_WINDOW and not self._seen[counter % REPLAY_WINDOW]

    def mark(self, counter: int) -> None:
        """Note one counter that `is_fresh`."""
        if counter >= self.next:
            self._forget(self.next, counter)
            self.next = counter + 1
        self._seen[counter % REPLAY_WINDOW] = 1

    def mark_run(self, start: int, end: int) -> None:
        """Note every counter from `start`, which `is_ahead`, up to, not including, `end`."""
        if start < end:
            self._forget(self.next, start)
            self._fill(start, end, b"\1")
            self.next = end

    def _forget(self, start: int, end: int) -> None:
        self._fill(start, end, b"\0")

    def _fill(self, start: int, end: int, value: bytes) -> None:
        count = end - start
        if count <= 0:
            return
        if count >= REPLAY_WINDOW:
            self._seen[:] = value * REPLAY_WINDOW
            return
        first = start % REPLAY_WINDOW
        until_wrap = min(count, REPLAY_WINDOW - first)
        self._seen[first : first + until_wrap] = value * until_wrap
        self._seen[: count - until_wrap] = value * (count - until_wrap)
