"""A sleep that another thread, or a descriptor, ends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from httpx_wireguard._drivers.sleeper import Sleeper


@pytest.fixture(params=["eventfd", "pair"])
def sleeper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sleeper]:
    if request.param == "pair":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("Linux has it")
    sleeper = Sleeper()
    yield sleeper
    sleeper.close()


def sleeps(sleeper: Sleeper, readers: list[socket.socket], writers: list[socket.socket]) -> bool:
    """Whether nothing ends a sleep at once."""
    thread = threading.Thread(target=sleeper.sleep, args=(readers, writers, 60.0), daemon=True)
    thread.start()
    thread.join(0.05)
    asleep = thread.is_alive()
    sleeper.wake()
    thread.join()
    sleeper.clear()
    return asleep


def test_a_wake_before_the_sleep_ends_it_and_the_one_after_lasts(sleeper: Sleeper) -> None:
    sleeper.wake()
    sleeper.wake()
    sleeper.sleep([], [], 60.0)
    sleeper.clear()
    assert sleeps(sleeper, [], [])
    assert sleeps(sleeper, [], [])


def test_what_is_readable_or_writable_ends_a_sleep_and_what_is_not_watched_any_more_does_not(sleeper: Sleeper) -> None:
    near, far = socket.socketpair()
    with near, far:
        assert sleeps(sleeper, [near], [])
        assert not sleeps(sleeper, [near], [near])
        far.send(b"x")
        assert not sleeps(sleeper, [near], [])
        assert sleeps(sleeper, [], [])


def test_a_closed_sleeper_may_be_woken_and_does_not_sleep_for_ever(sleeper: Sleeper) -> None:
    sleeper.close()
    sleeper.wake()
    sleeper.sleep([], [], 60.0)
