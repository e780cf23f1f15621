"""Section 6 of the paper as data: which deadline each event arms or disarms.

Nothing here sends. The peer reports events with `on_*`, asks `take_expired` what is due, and does it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from httpx_wireguard._wireguard.constants import (
    KEEPALIVE_TIMEOUT,
    NEW_HANDSHAKE_TIMEOUT,
    REKEY_ATTEMPT_TIME,
    REKEY_TIMEOUT,
    ZERO_KEYS_AFTER_TIME,
)


class Timer(IntEnum):
    """A deadline, in the order in which deadlines that expire together are served."""

    ZERO_KEYS = 0
    RETRY_HANDSHAKE = 1
    NEW_HANDSHAKE = 2
    KEEPALIVE = 3
    PERSISTENT_KEEPALIVE = 4


NEVER = float("inf")


class PeerTimers:
    """The deadlines of one peer, in monotonic seconds, `NEVER` when disarmed."""

    __slots__ = (
        "_another_keepalive",
        "_attempts_began",
        "_deadlines",
        "_jitter",
        "_last_handshake_sent",
        "_persistent",
    )

    def __init__(self, persistent_keepalive: float, jitter: Callable[[], float]) -> None:
        """`jitter` returns 0 to 1/3 second, anew for each use; `persistent_keepalive` is 0 when off."""
        self._deadlines = [NEVER] * len(Timer)
        self._persistent = persistent_keepalive
        if persistent_keepalive:
            self._deadlines[Timer.PERSISTENT_KEEPALIVE] = 0.0  # due at once: the first one makes the handshake
        self._jitter = jitter
        self._another_keepalive = False
        self._attempts_began = NEVER
        self._last_handshake_sent = -NEVER

    # --- what is due ---

    def next_expiry(self) -> float:
        return min(self._deadlines)

    def is_armed(self, timer: Timer) -> bool:
        return self._deadlines[timer] != NEVER

    def take_expired(self, now: float) -> list[Timer]:
        """Disarm and return the timers that are due."""
        expired = [timer for timer in Timer if self._deadlines[timer] <= now]
        for timer in expired:
            self._deadlines[timer] = NEVER
        return expired

    def may_initiate(self, now: float) -> bool:
        """Paper 6.1: one handshake message per REKEY_TIMEOUT, whatever asks for it."""
        return now >= self._last_handshake_sent + REKEY_TIMEOUT

    def gives_up(self, now: float) -> bool:
        """Paper 6.4: whether the attempts have gone on for REKEY_ATTEMPT_TIME without anybody asking anew."""
        return now - self._attempts_began >= REKEY_ATTEMPT_TIME

    # --- events ---

    def on_handshake_wanted(self, now: float) -> None:
        """Paper 6.4: a new packet asks for a handshake, which starts the attempt time anew."""
        self._attempts_began = now

    def on_initiation_postponed(self) -> None:
        """A handshake is wanted inside REKEY_TIMEOUT: it starts when that is over, unless one completes before."""
        if not self.is_armed(Timer.RETRY_HANDSHAKE):
            self._deadlines[Timer.RETRY_HANDSHAKE] = self._last_handshake_sent + REKEY_TIMEOUT + self._jitter()

    def on_initiation_sent(self, now: float) -> None:
        """Paper 6.4: retry after REKEY_TIMEOUT and jitter, so that two peers do not retry in step."""
        self._last_handshake_sent = now
        self._deadlines[Timer.RETRY_HANDSHAKE] = now + REKEY_TIMEOUT + self._jitter()

    def on_response_sent(self, now: float) -> None:
        self._last_handshake_sent = now

    def on_session_derived(self, now: float) -> None:
        """Paper 6.3: keys exist, so they have to be erased some day."""
        self._deadlines[Timer.ZERO_KEYS] = now + ZERO_KEYS_AFTER_TIME

    def on_handshake_complete(self) -> None:
        """The initiator has the response, or the responder a first packet under the new session."""
        self._deadlines[Timer.RETRY_HANDSHAKE] = NEVER

    def on_given_up(self, now: float) -> None:
        self._deadlines[Timer.KEEPALIVE] = NEVER
        if not self.is_armed(Timer.ZERO_KEYS):
            self._deadlines[Timer.ZERO_KEYS] = now + ZERO_KEYS_AFTER_TIME

    def on_data_sent(self, now: float) -> None:
        """Paper 6.5: an answer is due in KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, or the session is dead."""
        if self._deadlines[Timer.NEW_HANDSHAKE] == NEVER:
            self._deadlines[Timer.NEW_HANDSHAKE] = now + NEW_HANDSHAKE_TIMEOUT + self._jitter()

    def on_data_received(self, now: float) -> None:
        """Paper 6.5: answer within KEEPALIVE_TIMEOUT, counted from the first packet unanswered."""
        if self._deadlines[Timer.KEEPALIVE] == NEVER:
            self._deadlines[Timer.KEEPALIVE] = now + KEEPALIVE_TIMEOUT
        else:
            self._another_keepalive = True

    def take_another_keepalive(self) -> bool:
        """Return, once, whether more data came while the keepalive waited; ask before sending it."""
        another = self._another_keepalive
        self._another_keepalive = False
        return another

    def on_authenticated_sent(self, now: float) -> None:
        """Any message that the peer can authenticate, handshakes too."""
        self._deadlines[Timer.KEEPALIVE] = NEVER
        self._another_keepalive = False
        self._on_traversal(now)

    def on_authenticated_received(self, now: float) -> None:
        """Any authentic message, handshakes and empty packets too."""
        self._deadlines[Timer.NEW_HANDSHAKE] = NEVER
        self._on_traversal(now)

    def on_persistent_keepalive_expired(self, now: float) -> None:
        """Sending re-arms it; where nothing could be sent, try again one interval later."""
        if not self.is_armed(Timer.PERSISTENT_KEEPALIVE):
            self._on_traversal(now)

    def stop(self) -> None:
        self._deadlines = [NEVER] * len(Timer)
        self._persistent = 0.0

    def _on_traversal(self, now: float) -> None:
        if self._persistent:
            self._deadlines[Timer.PERSISTENT_KEEPALIVE] = now + self._persistent
