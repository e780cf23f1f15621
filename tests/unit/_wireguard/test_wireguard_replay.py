"""The window of received counters (WireGuard paper 5.4.6, RFC 6479)."""

from __future__ import annotations

from httpx_wireguard._wireguard.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW
from httpx_wireguard._wireguard.replay import ReplayWindow


def accept(window: ReplayWindow, counter: int) -> bool:
    fresh = window.is_fresh(counter)
    if fresh:
        window.mark(counter)
    return fresh


def test_counter_is_accepted_once() -> None:
    window = ReplayWindow()
    for counter in (0, 1, 9, 8, 7, REPLAY_WINDOW, REPLAY_WINDOW - 1):
        assert accept(window, counter)
        assert not accept(window, counter)


def test_counters_in_reverse_are_all_accepted_within_the_window() -> None:
    window = ReplayWindow()
    assert all(accept(window, counter) for counter in reversed(range(REPLAY_WINDOW)))
    assert not any(accept(window, counter) for counter in range(REPLAY_WINDOW))


def test_counter_behind_the_window_is_refused() -> None:
    """The highest and the 8191 below it are remembered."""
    window = ReplayWindow()
    assert accept(window, 3 * REPLAY_WINDOW)
    assert not window.is_fresh(2 * REPLAY_WINDOW)
    assert window.is_fresh(2 * REPLAY_WINDOW + 1)


def test_jump_forgets_what_the_ring_held() -> None:
    """The same slot now stands for a counter one window later."""
    window = ReplayWindow()
    for counter in range(100):
        accept(window, counter)
    assert accept(window, REPLAY_WINDOW + 200)
    assert all(window.is_fresh(counter) for counter in range(REPLAY_WINDOW, REPLAY_WINDOW + 200))
    assert not window.is_fresh(REPLAY_WINDOW + 200)


def test_jump_over_several_windows_forgets_everything() -> None:
    window = ReplayWindow()
    for counter in range(0, REPLAY_WINDOW, 3):
        accept(window, counter)
    assert accept(window, 10 * REPLAY_WINDOW)
    below = range(9 * REPLAY_WINDOW + 1, 10 * REPLAY_WINDOW)
    assert all(window.is_fresh(counter) for counter in below)


def test_marking_a_run_equals_marking_each() -> None:
    """Also one that begins beyond a gap, which may be wider than the window."""
    runs, each = ReplayWindow(), ReplayWindow()
    for start, end in ((0, 1), (1, 64), (70, 8191), (8191, 8300), (8300, 20000), (29000, 29001), (29001, 29001)):
        runs.mark_run(start, end)
        for counter in range(start, end):
            each.mark(counter)
        assert runs.next == each.next
        assert runs._seen == each._seen


def test_counters_from_the_limit_on_are_refused() -> None:
    """Paper 6.1: REJECT_AFTER_MESSAGES."""
    window = ReplayWindow()
    assert accept(window, REJECT_AFTER_MESSAGES - 1)
    for counter in (REJECT_AFTER_MESSAGES, REJECT_AFTER_MESSAGES + 1, 2**64 - 1):
        assert not window.is_fresh(counter)


def test_near_the_limit_no_run_goes_unchecked() -> None:
    window = ReplayWindow()
    assert window.is_ahead(0)
    assert window.is_ahead(REJECT_AFTER_MESSAGES - 2**16 - 1)
    assert not window.is_ahead(REJECT_AFTER_MESSAGES - 2**16)


def test_what_lies_below_the_highest_counter_is_not_ahead() -> None:
    window = ReplayWindow()
    accept(window, 10)
    assert not window.is_ahead(9)
    assert window.is_ahead(11)
