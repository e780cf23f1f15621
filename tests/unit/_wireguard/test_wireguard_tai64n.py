"""Time stamps of initiations (WireGuard paper 5.1)."""

from __future__ import annotations

from httpx_wireguard._wireguard.tai64n import StampSource


def tai64n(seconds: int, nanoseconds: int) -> bytes:
    return (2**62 + 10 + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")


def test_nanoseconds_are_rounded_down_to_2_24() -> None:
    """A finer clock would leak what other protocols' time stamps protect."""
    assert StampSource().next(tai64n(5, 2**24 * 3 + 12345)) == tai64n(5, 2**24 * 3)
    assert StampSource().next(tai64n(5, 100)) == tai64n(5, 0)


def test_stamps_grow_when_the_clock_stands_still() -> None:
    stamps = StampSource()
    taken = [stamps.next(tai64n(5, 999_999_999)) for _ in range(200)]
    assert taken == sorted(set(taken))
    assert all(int.from_bytes(stamp[8:], "big") < 10**9 for stamp in taken)


def test_stamps_grow_when_the_clock_steps_back() -> None:
    stamps = StampSource()
    before = stamps.next(tai64n(5000, 0))
    after = stamps.next(tai64n(10, 0))
    assert after > before
    assert stamps.next(tai64n(20, 0)) > after


def test_stamps_follow_the_clock_when_it_has_caught_up() -> None:
    stamps = StampSource()
    stamps.next(tai64n(5000, 0))
    stamps.next(tai64n(10, 0))
    assert stamps.next(tai64n(6000, 0)) == tai64n(6000, 0)
